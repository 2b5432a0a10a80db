"""The same store behind a URL (s3://bucket/sweep, gs://..., memory://...), by way of fsspec.

Such places have no atomic rename, so a run counts as finished once its row.parquet is there, and that is written last.
Claims are files that are looked at before they are written: two sweeps that start in the same instant may both do a run;
the table still holds it once, since its place is its key.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fusionlab.errors import MissingPackageError, OutputError, SweepError
from fusionlab.experiments.claims import STALE_SECONDS, describe_process, is_running
from fusionlab.experiments.store import ROW, Store


class RemoteClaim:
    """A claim behind a URL; see `claims.Claim`."""

    def __init__(self, store: RemoteStore, key: str) -> None:
        self.store, self.key = store, key

    def release(self) -> None:
        """Give it up."""
        with contextlib.suppress(Exception):  # what a file system of the network raises is its own
            self.store.system.rm_file(self.store.path(f"claims/{self.key}"))

    def __enter__(self) -> RemoteClaim:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()


class RemoteStore(Store):
    """A sweep's folder behind an fsspec URL. Drafts are made in a local folder and uploaded when they are whole."""

    def __init__(self, url: str) -> None:
        import fsspec

        try:
            self.system, self.root = fsspec.core.url_to_fs(url)
        except (ValueError, ImportError) as error:
            kind = MissingPackageError if isinstance(error, ImportError) else SweepError
            raise kind(f"cannot open {url}: {error}", remedy="install the fsspec package for that protocol") from error
        self._url = url
        super().__init__(Path(tempfile.gettempdir()) / "fusionlab-drafts")

    @property
    def url(self) -> str:
        """What opens it again, from another process."""
        return self._url

    def __str__(self) -> str:
        return self._url

    def path(self, name: str) -> str:
        """A file's path in the file system."""
        return f"{self.root.rstrip('/')}/{name}"

    @contextlib.contextmanager
    def explaining(self) -> Iterator[None]:
        """Turn what the file system raises into an OutputError."""
        try:
            yield
        except (FileNotFoundError, OutputError):
            raise
        except Exception as error:  # every protocol has errors of its own
            raise OutputError(f"cannot write to {self._url}: {error}",
                              remedy="check credentials and room; finished runs are kept") from error  # fmt: skip

    def create(self) -> None:
        """Try to write there. Raises OutputError."""
        self.write_bytes("partial/.trial", b"\0")

    def names(self, part: str) -> list[str]:
        """What stands in one of the folders, of runs only what is whole."""
        with self.explaining():
            self.system.invalidate_cache()
            if part in ("runs", "failed"):
                return [found.rsplit("/", 2)[1] for found in self.system.glob(self.path(f"{part}/*/{ROW}"))]
            try:
                found = self.system.ls(self.path(part), detail=False)
            except FileNotFoundError:
                return []
        return [name.rstrip("/").rsplit("/", 1)[-1] for name in found]

    def draft(self, key: str, attempt: str) -> Path:
        """A local folder in which a run is made."""
        return Path(tempfile.mkdtemp(prefix=f"fusionlab-{key}-"))

    def commit(self, key: str, draft: Path, *, attempt: str, failed: bool, replace: bool = False) -> bool:
        """Upload a run made in `draft`, its row last; False where it had been finished before. Raises OutputError.

        replace: the finished one is removed just before, so a network that fails in between leaves none of them.
        """
        place = f"failed/{key}.{attempt}" if failed else f"runs/{key}"
        if replace and not failed:
            with self.explaining(), contextlib.suppress(FileNotFoundError):
                self.system.rm(self.path(place), recursive=True)
            self.remove("runs.parquet")  # gathered rows are known by their key
        elif not failed and self.exists(f"{place}/{ROW}"):
            shutil.rmtree(draft, ignore_errors=True)
            return False
        files = sorted((path for path in draft.rglob("*") if path.is_file()), key=lambda path: path.name == ROW)
        for path in files:
            self.write_bytes(f"{place}/{path.relative_to(draft).as_posix()}", path.read_bytes())
        for name in self.names("failed"):
            if name.partition(".")[0] == key and not (failed and name == f"{key}.{attempt}"):
                with contextlib.suppress(Exception):
                    self.system.rm(self.path(f"failed/{name}"), recursive=True)
        shutil.rmtree(draft, ignore_errors=True)
        return True

    def sweep_partial(self, keys: set[str]) -> None:
        """Drafts are local and belong to whoever made them."""

    def claim(self, key: str) -> Any:
        """Take a run, or None where somebody is at it."""
        if self.is_claimed(key):
            return None
        self.write_bytes(f"claims/{key}", json.dumps(describe_process() | {"time": time.time()}).encode())
        return RemoteClaim(self, key)

    def is_claimed(self, key: str) -> bool:
        """Whether somebody is at a run; a claim of another machine holds for an hour."""
        try:
            holder = json.loads(self.read_bytes(f"claims/{key}"))
        except (FileNotFoundError, ValueError):
            return False
        if holder.get("place") == describe_process()["place"]:
            return is_running(holder.get("pid"), holder.get("started"))
        return bool(time.time() - float(holder.get("time", 0)) < 60 * STALE_SECONDS)  # no beat here: an hour

    def read_bytes(self, name: str) -> bytes:
        """A file by its name in the store. Raises FileNotFoundError."""
        return bytes(self.system.cat_file(self.path(name)))

    def exists(self, name: str) -> bool:
        """Whether a file is there."""
        return bool(self.system.exists(self.path(name)))

    def list_files(self, name: str) -> list[str]:
        """Names of the files directly in a folder of the store."""
        try:
            found = self.system.ls(self.path(name), detail=True)
        except FileNotFoundError:
            return []
        return sorted(entry["name"].rsplit("/", 1)[-1] for entry in found if entry["type"] == "file")

    def remove(self, name: str) -> None:
        """Remove a file."""
        with contextlib.suppress(FileNotFoundError):
            self.system.rm_file(self.path(name))

    def write_bytes(self, name: str, content: bytes) -> None:
        """Write a file. Raises OutputError."""
        with self.explaining():
            self.system.makedirs(self.path(name).rsplit("/", 1)[0], exist_ok=True)
            self.system.pipe_file(self.path(name), content)


def open_store(place: str | Path) -> Store:
    """The store at a folder or an fsspec URL. Raises SweepError, MissingPackageError for a protocol that is not known."""
    text = str(place)
    if text.startswith("file://"):
        return Store(Path(text.removeprefix("file://")))
    return RemoteStore(text) if "://" in text else Store(Path(text))

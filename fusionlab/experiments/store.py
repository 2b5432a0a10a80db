"""The folder of a sweep: one folder per finished run, whole or not there, and what is known of each invocation.

    runs/<key>/       finished: row.parquet, notebook.ipynb, notebook.html, log.txt, items.parquet, traces/*.parquet
    failed/<key>.<attempt>/      the same of a run that failed, with error.json; gone once the run succeeds
    manifests/<session>.json     versions, git state, hardware, models of each invocation
    claims/<key>                 who is at which run right now
    partial/          what is being made; nothing reads it
    runs.parquet      the rows of runs/, gathered; made again whenever it is wanted

A run is made under `partial/` and appears under `runs/` by one rename, so it is there with everything or not at all. The
key is a hash, so no parameter's value is ever part of a path. `remote_store` holds the same layout behind a URL.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fusionlab.atomic_file import flush_to_disk, write_atomically
from fusionlab.errors import OutputError
from fusionlab.experiments.claims import Claim, is_claimed, take_claim

ROW = "row.parquet"
FOLDERS = ("runs", "failed", "manifests", "claims", "partial")


class Store:
    """A sweep's folder on a disk (of this machine, or shared by all workers).

    >>> store = Store(Path("runs/kl"))                                           # doctest: +SKIP
    >>> store.finished()                                                         # doctest: +SKIP
    {'0f3a...'}
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @property
    def url(self) -> str:
        """What opens it again, from another process on this machine."""
        return str(self.folder.resolve())

    def __str__(self) -> str:
        return str(self.folder)

    def create(self) -> None:
        """Make the folders and try to write there. Raises OutputError."""
        with self.explaining():
            for name in FOLDERS:
                (self.folder / name).mkdir(parents=True, exist_ok=True)
            trial = self.folder / "partial" / f".trial-{secrets.token_hex(4)}"  # to root everything looks writable
            trial.write_bytes(b"\0")
            trial.unlink()

    @contextlib.contextmanager
    def explaining(self) -> Iterator[None]:
        """Turn an OSError into an OutputError that says what is safe."""
        try:
            yield
        except OSError as error:
            full = error.errno in (28, 122)  # no space left; over quota
            raise OutputError(
                f"cannot write to {error.filename or self.folder}: {error.strerror or error}",
                remedy="make room and give the same command again; finished runs are kept" if full
                else "choose a folder you may write to; finished runs are kept",
            ) from error  # fmt: skip

    # -- runs ------------------------------------------------------------------------------------

    def finished(self) -> set[str]:
        """Keys of the runs that succeeded."""
        return set(self.names("runs"))

    def is_finished(self, key: str) -> bool:
        """Whether a run has succeeded."""
        return self.exists(f"runs/{key}/{ROW}")

    def failed(self) -> dict[str, str]:
        """Key -> name under failed/ of the latest failure of each run that did not succeed."""
        done = self.finished()
        latest: dict[str, str] = {}
        for name in sorted(self.names("failed")):  # attempts begin with the time
            key = name.partition(".")[0]
            if key not in done:
                latest[key] = name
        return latest

    def names(self, part: str) -> list[str]:
        """What stands in one of the folders."""
        try:
            return [name for name in os.listdir(self.folder / part) if not name.startswith(".")]
        except FileNotFoundError:
            return []

    def draft(self, key: str, attempt: str) -> Path:
        """A fresh folder in which a run is made. Raises OutputError."""
        with self.explaining():
            path = self.folder / "partial" / f"{key}.{attempt}"
            path.mkdir(parents=True)
            return path

    def commit(self, key: str, draft: Path, *, attempt: str, failed: bool, replace: bool = False) -> bool:
        """Put a run that was made in `draft` in its place; False where another finished it first. Raises OutputError.

        replace: one that succeeded takes the place of the one that had finished before.
        """
        with self.explaining():
            flush_folder(draft)
            target = self.folder / ("failed" if failed else "runs") / (f"{key}.{attempt}" if failed else key)
            target.parent.mkdir(parents=True, exist_ok=True)
            if replace and target.is_dir():
                self._exchange(draft, target)
            elif not self._place(draft, target):
                return False
        for name in self.names("failed"):  # older failures of this run
            if name.partition(".")[0] == key and not (failed and name == target.name):
                shutil.rmtree(self.folder / "failed" / name, ignore_errors=True)
        return True

    def _place(self, draft: Path, target: Path) -> bool:
        """Put a draft in its place; False, and no draft, where another was first."""
        try:
            os.rename(draft, target)
        except OSError:
            if not target.is_dir():
                raise
            shutil.rmtree(draft, ignore_errors=True)
            return False
        return True

    def _exchange(self, draft: Path, target: Path) -> None:
        """Put a draft in the place of a finished run; the old one stands aside until the new one is there."""
        aside = draft.with_name(f"{draft.name}.old")
        os.rename(target, aside)
        try:
            self.remove("runs.parquet")  # gathered rows are known by their key
            os.rename(draft, target)
        except BaseException:
            if not target.exists():
                os.rename(aside, target)
            raise
        shutil.rmtree(aside, ignore_errors=True)

    def discard(self, draft: Path) -> None:
        """Remove what will not be kept."""
        shutil.rmtree(draft, ignore_errors=True)

    def sweep_partial(self, keys: set[str]) -> None:
        """Remove what killed attempts at these runs left, where nobody is at them."""
        for name in self.names("partial"):
            key = name.partition(".")[0]
            if key in keys and not is_claimed(self.claim_path(key)):
                shutil.rmtree(self.folder / "partial" / name, ignore_errors=True)

    # -- who does what ---------------------------------------------------------------------------

    def claim_path(self, key: str) -> Path:
        """The file that says who is at a run."""
        return self.folder / "claims" / key

    def claim(self, key: str) -> Claim | None:
        """Take a run, or None where somebody is at it. Raises OutputError."""
        with self.explaining():
            return take_claim(self.claim_path(key))

    def is_claimed(self, key: str) -> bool:
        """Whether somebody is at a run."""
        return is_claimed(self.claim_path(key))

    # -- files -----------------------------------------------------------------------------------

    def read_bytes(self, name: str) -> bytes:
        """A file by its name in the store ("runs/<key>/items.parquet"). Raises FileNotFoundError."""
        return (self.folder / name).read_bytes()

    def exists(self, name: str) -> bool:
        """Whether a file is there."""
        return (self.folder / name).is_file()

    def list_files(self, name: str) -> list[str]:
        """Names of the files directly in a folder of the store, [] where it is not there."""
        with contextlib.suppress(OSError):
            return sorted(path.name for path in (self.folder / name).iterdir() if path.is_file())
        return []

    def write_bytes(self, name: str, content: bytes) -> None:
        """Write a file, all or nothing. Raises OutputError."""
        path = self.folder / name
        with self.explaining():
            path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, content)

    def remove(self, name: str) -> None:
        """Remove a file."""
        (self.folder / name).unlink(missing_ok=True)

    def write_manifest(self, session: str, manifest: dict[str, Any]) -> None:
        """Keep what is known of an invocation. Raises OutputError."""
        text = json.dumps(manifest, indent=1, ensure_ascii=False, default=str) + "\n"
        self.write_bytes(f"manifests/{session}.json", text.encode())

    def manifests(self) -> list[dict[str, Any]]:
        """The manifests of all invocations, oldest first."""
        return [json.loads(self.read_bytes(f"manifests/{name}")) for name in sorted(self.names("manifests"))
                if name.endswith(".json")]  # fmt: skip


def flush_folder(folder: Path) -> None:
    """Make the system write a folder's files to the disk, so that the rename is not there before what it names."""
    for path in [*folder.rglob("*"), folder]:
        flush_to_disk(path)

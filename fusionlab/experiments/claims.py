"""Who is doing a run right now: one file per run in progress, so that two sweeps in one folder do not do it twice.

A claim is a file that only one process can create. Its holder touches it every few seconds; one that was not touched for
long, or whose process is known to be gone, is taken over.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
import time
from pathlib import Path
from types import TracebackType
from typing import Any

BEAT_SECONDS = 5.0
STALE_SECONDS = 60.0


class Claim:
    """A claim that is held; a thread keeps it fresh until `release`.

    >>> claim = take_claim(Path("claims/ab12"))                                  # doctest: +SKIP
    >>> claim.release()                                                          # doctest: +SKIP
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._done = threading.Event()
        self._beat = threading.Thread(target=self._keep_fresh, daemon=True, name=f"claim-{path.name}")
        self._beat.start()

    def _keep_fresh(self) -> None:
        while not self._done.wait(BEAT_SECONDS):
            with contextlib.suppress(OSError):
                os.utime(self.path)

    def release(self) -> None:
        """Give it up."""
        self._done.set()
        self._beat.join()
        with contextlib.suppress(OSError):
            self.path.unlink()

    def __enter__(self) -> Claim:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.release()


def take_claim(path: Path) -> Claim | None:
    """Claim a run, or None where somebody else is at it. Raises OSError where the file cannot be written."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}")
    draft.write_text(json.dumps(describe_process()), encoding="utf-8")
    try:
        for _ in range(3):
            try:
                os.link(draft, path)  # fails where the name is taken, and the file is whole from its first moment
                return Claim(path)
            except FileExistsError:
                if not is_stale(path):
                    return None
                # Renamed first: of two that find it stale only one removes it, and never the other's new claim.
                aside = path.with_name(f".{path.name}.stale.{os.getpid()}.{threading.get_ident()}")
                with contextlib.suppress(FileNotFoundError):
                    os.rename(path, aside)
                    if not is_stale(aside):  # somebody took it over in between
                        with contextlib.suppress(FileExistsError):
                            os.link(aside, path)
                        aside.unlink()
                        return None
                    aside.unlink()
        return None
    finally:
        draft.unlink(missing_ok=True)


def is_claimed(path: Path) -> bool:
    """Whether somebody is at a run."""
    return path.is_file() and not is_stale(path)


def is_stale(path: Path) -> bool:
    """Whether a claim's holder is gone: its process ended (if it ran here), or it has not been touched for long."""
    try:
        age = time.time() - path.stat().st_mtime
        holder = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return False  # released meanwhile: the next try decides
    except (OSError, ValueError):
        return False
    if age > STALE_SECONDS:
        return True
    here = describe_process()
    return bool(holder.get("place") == here["place"] and not is_running(holder.get("pid"), holder.get("started")))


def describe_process() -> dict[str, Any]:
    """This process, told apart from a later one that gets its number, and from those of other machines."""
    import psutil

    return {"place": this_place(), "pid": os.getpid(), "started": round(psutil.Process().create_time(), 2)}


def this_place() -> str:
    """The machine (and container) in which process numbers mean the same."""
    parts = [socket.gethostname()]
    for name in ("/proc/sys/kernel/random/boot_id", "/proc/self/ns/pid"):
        with contextlib.suppress(OSError):
            parts.append(os.readlink(name) if name.endswith("/pid") else Path(name).read_text().strip())
    return " ".join(parts)


def is_running(pid: Any, started: Any) -> bool:
    """Whether a process that was described by `describe_process` still runs."""
    import psutil

    try:
        process = psutil.Process(int(pid))
        return process.status() != psutil.STATUS_ZOMBIE and abs(process.create_time() - float(started)) < 1
    except psutil.NoSuchProcess:
        return False
    except (psutil.Error, TypeError, ValueError):
        return True

"""How much memory a few process trees hold together, sampled while they run, and held to a limit where the system can."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import psutil

GROUPS = Path("/sys/fs/cgroup/memory")  # of control groups, version 1
SECONDS_BETWEEN_SAMPLES = 0.05


@dataclass
class MemoryWatch:
    """Samples the proportional set sizes of all processes below some roots; what is shared counts once."""

    roots: list[int] = field(default_factory=list)  # process ids
    peak_bytes: int = 0
    samples: int = 0
    seconds: float = 0.0

    def add(self, process_id: int) -> None:
        """Watch this process too, and all that it starts."""
        self.roots.append(process_id)

    def sample(self) -> None:
        """Look once."""
        processes: dict[int, psutil.Process] = {}
        for root in self.roots:
            with contextlib.suppress(psutil.NoSuchProcess):
                parent = psutil.Process(root)
                processes |= {process.pid: process for process in (parent, *parent.children(recursive=True))}
        held = 0
        for process in processes.values():
            with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
                held += process.memory_full_info().pss
        self.peak_bytes = max(self.peak_bytes, held)
        self.samples += 1

    @property
    def samples_per_second(self) -> float:
        """How often it looked."""
        return self.samples / self.seconds if self.seconds else 0.0

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        """Sample in a thread while this lasts."""
        done, started = threading.Event(), time.perf_counter()

        def look() -> None:
            while not done.wait(SECONDS_BETWEEN_SAMPLES):
                self.sample()

        thread = threading.Thread(target=look, daemon=True)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()
            self.seconds += time.perf_counter() - started


@contextlib.contextmanager
def memory_group(limit_bytes: int) -> Iterator[Path | None]:
    """A control group whose processes the kernel ends when they need more; None where none can be made."""
    group = GROUPS / f"fusionlab-{os.getpid()}"
    try:
        group.mkdir()
        (group / "memory.limit_in_bytes").write_text(str(limit_bytes))
    except OSError:
        yield None
        return
    try:
        yield group
    finally:
        with contextlib.suppress(OSError):
            group.rmdir()


def within(group: Path | None, command: list[str]) -> list[str]:
    """A command that runs `command` in the group, or `command` itself."""
    if group is None:
        return command
    return ["sh", "-c", 'echo $$ > "$0" && exec "$@"', str(group / "cgroup.procs"), *command]

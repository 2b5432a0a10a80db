"""Commands of fusionlab as processes of their own, and the killing of all that belongs to one."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil


def _as_at_a_terminal() -> None:
    """A test that was itself started in the background ignores Ctrl-C, and would hand that down."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


def start_fusionlab(*arguments: str, cwd: Path, **options: Any) -> subprocess.Popen[str]:
    """`fusionlab ARGUMENTS` in a session of its own."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "fusionlab.cli", *arguments]
    return subprocess.Popen(command, cwd=cwd, env=environment, text=True, start_new_session=True,
                            preexec_fn=_as_at_a_terminal, stdout=subprocess.PIPE,
                            stderr=subprocess.STDOUT, **options)  # fmt: skip


def tree_of(pid: int) -> list[psutil.Process]:
    """A process and all that it started, kernels included."""
    try:
        root = psutil.Process(pid)
        return [root, *root.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def kill_tree(process: subprocess.Popen[str]) -> None:
    """kill -9 a process and everything below it, at once."""
    doomed = tree_of(process.pid)
    for member in doomed:
        with contextlib.suppress(psutil.NoSuchProcess):
            member.kill()
    process.communicate()
    psutil.wait_procs(doomed, timeout=10)

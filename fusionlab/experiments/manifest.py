"""What an invocation ran on: versions, git state, hardware, command; kept beside the results."""

from __future__ import annotations

import os
import platform
import socket
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

PACKAGES = ("fusionlab", "torch", "transformers", "peft", "bitsandbytes", "numpy", "pandas", "pyarrow", "papermill",
            "distributed", "duckdb")  # fmt: skip


def make_manifest(*, session: str, started: str, code: str, models: dict[str, str], notebook: Path,
                  sweep_file: Path | None = None, **more: Any) -> dict[str, Any]:  # fmt: skip
    """Everything that is worth knowing when figures are asked about later, JSON-able."""
    return {
        "session": session, "started": started, "command": " ".join(map(quote, ["fusionlab", *sys.argv[1:]])), "code": code,
        "models": models, "notebook": str(notebook), "sweep_file": str(sweep_file or ""),
        "sweep_text": sweep_file.read_text(encoding="utf-8") if sweep_file else "",
        "versions": versions(), "git": git_state(notebook.resolve().parent), "hardware": hardware(), **more,
    }  # fmt: skip


def quote(argument: str) -> str:
    """An argument as a shell takes it."""
    import shlex

    return shlex.quote(argument)


def versions() -> dict[str, str]:
    """Of Python and of the packages that results may depend on."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def git_state(folder: Path) -> dict[str, Any] | None:
    """Commit, branch and whether anything is changed, None outside of a checkout."""

    def ask(*arguments: str) -> str | None:
        try:
            done = subprocess.run(["git", *arguments], cwd=folder, capture_output=True, text=True, timeout=10)
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    commit = ask("rev-parse", "HEAD")
    if commit is None:
        return None
    return {"commit": commit, "branch": ask("rev-parse", "--abbrev-ref", "HEAD"),
            "changed": bool(ask("status", "--porcelain", "--untracked-files=no"))}  # fmt: skip


def hardware() -> dict[str, Any]:
    """Of the machine that gives the command; workers' hosts are in the rows."""
    import psutil

    found: dict[str, Any] = {
        "host": socket.gethostname(), "system": platform.platform(), "processor": processor_name(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_bytes": psutil.virtual_memory().total,
    }  # fmt: skip
    try:
        done = subprocess.run(["nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader"],
                              capture_output=True, text=True, timeout=10)  # fmt: skip
        found["gpus"] = done.stdout.strip().splitlines() if done.returncode == 0 else []
    except (OSError, subprocess.TimeoutExpired):
        found["gpus"] = []
    return found


def processor_name() -> str:
    """The processor's name as the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor()

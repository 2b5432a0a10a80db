"""Runs inside a warm kernel, between two notebooks: everything that a run leaves in the way of the next one is put back.

Put back are the notebook's names, IPython's history and last results, environment variables, working directory, sys.path
and the random generators. Imported modules stay (that is what makes the kernel warm), and with them what `teams` keeps;
a notebook that changes a module's own state wants `--fresh`.
"""

from __future__ import annotations

import gc
import os
import sys
from contextlib import suppress
from typing import Any

_first: dict[str, Any] = {}  # how the kernel was when it had just started


def prepare_kernel(shell: Any, environment: dict[str, str]) -> None:
    """Make a kernel as good as new for the next run.

    shell: what get_ipython() gives. environment: variables of this run, over those that the kernel started with.
    """
    if not _first:
        _first.update(environ=dict(os.environ), folder=os.getcwd(), path=list(sys.path))
    shell.reset(new_session=True)
    for name in ("last_type", "last_value", "last_traceback", "last_exc"):  # they hold the frames of a failed cell
        if hasattr(sys, name):
            delattr(sys, name)
    for name in set(os.environ) - set(_first["environ"]) - set(environment):
        del os.environ[name]
    os.environ.update(_first["environ"] | environment)
    sys.path[:] = _first["path"]
    with suppress(OSError):  # the folder may have been removed meanwhile
        os.chdir(_first["folder"])
    reseed()
    gc.collect()
    release_memory()


def reseed() -> None:
    """Random generators as a new process has them: seeded by the system, not by what ran before."""
    import random

    random.seed()
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed()
    if "torch" in sys.modules:
        sys.modules["torch"].seed()


def release_memory() -> None:
    """Freed memory goes back to the system, and to the GPU's other users."""
    from fusionlab.allocator import release_freed_memory

    release_freed_memory()
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        torch.cuda.empty_cache()


def team_loads() -> tuple[int, float]:
    """Loads of teams in this kernel so far, and the seconds that they took."""
    teams = sys.modules.get("fusionlab.experiments.teams")
    return (0, 0.0) if teams is None else (teams.counter.loads, teams.counter.seconds)

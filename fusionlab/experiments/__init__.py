"""Notebooks as experiments: `record` and its kin for use in notebooks; sweeps, their store and their reports.

The names below are imported when they are first used, so that a kernel loads no more than it needs.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fusionlab.experiments.recording import record, record_items, record_traces, run_folder
    from fusionlab.experiments.teams import warm_team

__all__ = ["record", "record_items", "record_traces", "run_folder", "warm_team"]

_HOMES = dict.fromkeys(__all__, "fusionlab.experiments.recording") | {"warm_team": "fusionlab.experiments.teams"}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'fusionlab.experiments' has no attribute {name!r}; it offers {', '.join(_HOMES)}")
    return getattr(import_module(_HOMES[name]), name)

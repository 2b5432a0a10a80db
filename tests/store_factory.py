"""Stores filled without running anything: rows, items and traces as runs would leave them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fusionlab.experiments.execution import new_attempt
from fusionlab.experiments.rows import build_row, write_row
from fusionlab.experiments.run_key import Run, key_of
from fusionlab.experiments.store import Store


def write_run(store: Store, run: Run, *, seconds: float = 1.0, fields: Mapping[str, Any] | None = None,
              items: Mapping[str, float] | None = None, outputs: Mapping[str, str] | None = None,
              traces: Mapping[str, Any] | None = None, error: Mapping[str, Any] | None = None,
              started: str = "2026-11-24T10:00:00.000+00:00", replace: bool = False) -> str:  # fmt: skip
    """Put a run into a store. items: id -> score. error: what error.json holds; the run has failed then."""
    attempt = new_attempt()
    draft = store.draft(run.key, attempt)
    columns = {
        "key": run.key, "index": run.index, "notebook": run.notebook, "status": "ok" if error is None else "failed",
        "seconds": seconds, "machinery_seconds": 0.0, "started": started, "attempt": attempt, "session": "s", "tries": 1,
        "team": run.team, "team_loads": 0, "team_load_seconds": 0.0, "host": "h", "code": str(run.identity.get("code", "")),
        "error": None if error is None else f"{error['kind']}: {error['message']}",
    }  # fmt: skip
    write_row(build_row(columns, run.values, fields or {}, given=tuple(run.given)), draft)
    if items is not None:
        write_items(draft, items, outputs or {})
    if traces is not None:
        write_traces(draft, traces)
    if error is not None:
        (draft / "error.json").write_text(json.dumps(error))
    store.commit(run.key, draft, attempt=attempt, failed=error is not None, replace=replace)
    return run.key


def write_items(folder: Path, scores: Mapping[str, float], outputs: Mapping[str, str]) -> None:
    """items.parquet."""
    import pandas as pd

    rows = [{"item": item, "score": score, "output": outputs.get(item, "")} for item, score in scores.items()]
    pd.DataFrame(rows).to_parquet(folder / "items.parquet", index=False)


def write_traces(folder: Path, traces: Mapping[str, Any]) -> None:
    """traces/traces.parquet and the ids beside it."""
    from fusionlab.trace import save_traces

    (folder / "traces").mkdir()
    save_traces(list(traces.values()), folder / "traces" / "traces.parquet")
    (folder / "traces" / "traces.json").write_text(json.dumps(list(traces)))


def make_runs(points: Sequence[Mapping[str, Any]], *, notebook: str = "stub", code: str = "test") -> list[Run]:
    """Runs of a notebook that is not there."""
    runs = []
    for index, values in enumerate(points):
        identity = {"notebook": notebook, "parameters": dict(values), "models": {}, "code": code}
        runs.append(Run(key_of(identity), index, notebook, "", given=values, values=values, identity=identity))
    return runs


def fill(store: Store, *, methods: tuple[str, ...] = ("static", "exact"), items: int = 12, shift: float = 0.0) -> None:
    """Two tasks, two scales, some methods, two seeds; on every second item the second method is better by a whole."""
    points = [{"task": task, "method": method, "kl_scale": scale, "seed": seed, "budget": None}
              for task in ("math", "trivia") for method in methods for scale in (0.5, 1.0) for seed in (0, 1)]  # fmt: skip
    for run in make_runs(points):
        values = run.values
        scores = {f"i{n}": min(1.0, float(values["method"] == "exact" and n % 2 == 0) + shift) for n in range(items)}
        write_run(store, run, seconds=3 + values["kl_scale"], items=scores,
                  fields={"score": sum(scores.values()) / items,
                          "seconds_per_item": 0.1 * values["kl_scale"]})  # fmt: skip

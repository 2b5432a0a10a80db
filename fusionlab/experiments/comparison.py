"""Large, expert, proxy tuning and dynamic fusion side by side on the same items, with traces.

Used by the demo notebook; the same functions serve any notebook that compares methods.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from fusionlab.atomic_file import write_atomically
from fusionlab.baselines import generate_alone
from fusionlab.solvers import KLConstraint

if TYPE_CHECKING:
    import pandas as pd

    from fusionlab.tasks import Item, Task
    from fusionlab.team import Team
    from fusionlab.trace import Trace

LABELS = {
    "large": "large model alone",
    "expert": "expert alone",
    "proxy": "proxy tuning (a = 1)",
    "dynamic": "dynamic fusion",
}


@dataclass(frozen=True)
class Comparison:
    """scores: one row per item and method; traces: the dynamic run's, one per item in item order."""

    scores: pd.DataFrame
    traces: list[Trace]


def pick_items(task: Task, count: int, *, seed: int) -> list[Item]:
    """`count` test items, drawn without replacement under `seed`."""
    import numpy as np

    order = np.random.default_rng(seed).permutation(len(task.test))
    return [task.test[index] for index in order[:count]]


def compare(
    team: Team, task: Task, items: Sequence[Item], *, experts: Sequence[str], method: str,
    constraint: KLConstraint, seed: int = 0, batch_size: int = 8,
    progress: Callable[[str], object] = lambda label: None,
) -> Comparison:  # fmt: skip
    """Answer `items` by every method of `LABELS`; the expert alone and proxy tuning use the task's own expert."""
    import pandas as pd

    prompts = [task.prompt(item) for item in items]
    batches = max(1, math.ceil(len(items) / batch_size))
    even = max(1, math.ceil(len(items) / batches))  # 12 items as 6 + 6 rather than 8 + 4: as fast, and a lower peak
    limits = {"max_new_tokens": task.max_new_tokens, "stop": task.stop, "batch_size": even}
    traces: list[Trace] = []

    def fuse(names: Sequence[str], solver: str, wanted: KLConstraint, level: str | None) -> list[str]:
        result = team.generate(prompts, method=solver, constraint=wanted, experts=names, seed=seed, trace=level,
                               **limits)  # type: ignore[arg-type]  # fmt: skip
        traces.extend(result.traces)
        return result.texts

    runs: dict[str, Callable[[], list[str]]] = {
        "large": lambda: generate_alone(team, "large", prompts, **limits).texts,  # type: ignore[arg-type]
        "expert": lambda: generate_alone(team, task.name, prompts, **limits).texts,  # type: ignore[arg-type]
        "proxy": lambda: fuse([task.name], "static", KLConstraint(), None),
        "dynamic": lambda: fuse(experts, method, constraint, "full"),
    }
    rows = []
    for name, run in runs.items():
        progress(f"{task.name}: {LABELS[name]}")
        started = time.perf_counter()
        outputs = run()
        seconds = (time.perf_counter() - started) / len(items)
        rows += [
            {"task": task.name, "item": item.id, "method": name, "output": output, "gold": item.answer,
             "extracted": task.extract(output, item), "score": task.score(output, item), "seconds": seconds}
            for item, output in zip(items, outputs, strict=True)
        ]  # fmt: skip
    return Comparison(pd.DataFrame(rows), traces)


def score_table(scores: pd.DataFrame) -> pd.DataFrame:
    """Exact match in percent, methods down, tasks across (with n)."""
    counts = scores.groupby("task")["item"].nunique()
    table = 100 * scores.pivot_table(index="method", columns="task", values="score", aggfunc="mean", sort=False)
    table = table.rename(index=LABELS, columns={task: f"{task} (n = {n})" for task, n in counts.items()}).round(1)
    return table.rename_axis(index="exact match, %", columns=None)


def moved_table(traces: dict[str, Sequence[Trace]]) -> pd.DataFrame:
    """Per task: share of tokens that each expert flipped away from the large model's choice, and mean weights."""
    import pandas as pd

    rows = {}
    for task, some in traces.items():
        tokens = sum(len(trace) for trace in some)
        row: dict[str, float] = {"tokens": tokens}
        for index, expert in enumerate(some[0].experts if some else ()):
            flipped = sum(int((trace.flipped_by == index).sum()) for trace in some)
            weight = sum(float(trace.alpha[:, index].sum()) for trace in some)
            row[f"moved by {expert}, %"] = round(100 * flipped / max(tokens, 1), 1)
            row[f"mean weight of {expert}"] = round(weight / max(tokens, 1), 2)
        rows[task] = row
    return pd.DataFrame.from_dict(rows, orient="index").astype({"tokens": int})


def most_moved(traces: Sequence[Trace]) -> Trace:
    """The trace in which experts changed the most tokens: the one worth looking at."""
    return max(traces, key=lambda trace: int(trace.flipped.sum()))


def save_run(folder: Path, scores: pd.DataFrame, traces: dict[str, Sequence[Trace]]) -> None:
    """Write results.parquet, and per task its traces as Parquet and as one HTML page."""
    from fusionlab.trace import save_traces
    from fusionlab.trace_html import traces_to_html

    write_atomically(folder / "results.parquet", lambda draft: scores.to_parquet(draft, index=False))
    for task, some in traces.items():
        save_traces(some, folder / f"traces-{task}.parquet")
        traces_to_html(list(some), folder / f"traces-{task}.html")

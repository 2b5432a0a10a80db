"""Score methods on tasks: every item's output is kept, and the table says n, value and standard error.

A `Method` is a row of the table: one member alone, or the team with a solver. Items are decoded in batches,
shortest prompts first so that little is padded, and written in the task's own order.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fusionlab.baselines import generate_alone
from fusionlab.errors import UnknownNameError
from fusionlab.solvers import KLConstraint

if TYPE_CHECKING:
    import pandas as pd

    from fusionlab.tasks import Item, Task
    from fusionlab.team import Team

OWN_EXPERT, ALL_EXPERTS = "own", "all"


@dataclass(frozen=True)
class Method:
    """How answers are made. `solver` None: `member` writes alone ("own": the task's expert)."""

    label: str
    solver: str | None = None
    member: str = "large"
    experts: str = OWN_EXPERT
    scale: float = 1.0
    shots: int = 0


METHODS: dict[str, Method] = {
    "large": Method("large, 0-shot"),
    "large-5-shot": Method("large, 5-shot", shots=5),
    "small": Method("small", member="small"),
    "expert": Method("expert alone", member=OWN_EXPERT),
    "proxy-0.5": Method("proxy tuning, a = 0.5", solver="static", scale=0.5),
    "proxy-1": Method("proxy tuning, a = 1", solver="static", scale=1.0),
    "proxy-1.5": Method("proxy tuning, a = 1.5", solver="static", scale=1.5),
    "dynamic": Method("dynamic, single expert (exact)", solver="exact"),
    "dynamic-grid": Method("dynamic, single expert (paper's grid)", solver="grid"),
    "paper-multi": Method("dynamic, all experts (paper's search)", solver="grid", experts=ALL_EXPERTS),
    "joint": Method("dynamic, all experts (joint)", solver="joint", experts=ALL_EXPERTS),
    "evidence": Method("dynamic, all experts (evidence)", solver="evidence", experts=ALL_EXPERTS),
}


@dataclass(frozen=True)
class ScoredItem:
    """One item's answer by one method."""

    task: str
    method: str
    item: str
    prompt: str
    output: str
    extracted: str | None
    gold: str
    score: float
    seconds: float  # the batch's time, shared evenly


def choose_methods(names: Sequence[str]) -> list[str]:
    """The names, checked. Raises `UnknownNameError` with the known ones."""
    for name in names:
        if name not in METHODS:
            raise UnknownNameError(f"unknown method {name!r}", remedy=f"known: {', '.join(METHODS)}")
    return list(names)


def evaluate_method(
    team: Team, task: Task, name: str, *, items: Sequence[Item] | None = None, batch_size: int = 16, seed: int = 0,
    progress: Callable[[int], object] = lambda done: None,
) -> list[ScoredItem]:  # fmt: skip
    """Answer and score a task's test items (or `items`) by one method of `METHODS`."""
    method = METHODS[name]
    chosen = list(task.test if items is None else items)
    prompts = {item.id: task.prompt(item, shots=method.shots, seed=seed) for item in chosen}
    scored: dict[str, ScoredItem] = {}
    by_length = sorted(chosen, key=lambda item: len(prompts[item.id]))
    for start in range(0, len(by_length), batch_size):
        batch = by_length[start : start + batch_size]
        started = time.perf_counter()
        outputs = answer(team, task, method, [prompts[item.id] for item in batch])
        seconds = (time.perf_counter() - started) / len(batch)
        for item, output in zip(batch, outputs, strict=True):
            scored[item.id] = ScoredItem(
                task.name, name, item.id, prompts[item.id], output, task.extract(output, item), item.answer,
                task.score(output, item), seconds,
            )  # fmt: skip
        progress(len(batch))
    return [scored[item.id] for item in chosen]


def answer(team: Team, task: Task, method: Method, prompts: list[str]) -> list[str]:
    """One method's answers to a batch of prompts."""
    if method.solver is None:
        member = task.name if method.member == OWN_EXPERT else method.member
        return generate_alone(team, member, prompts, max_new_tokens=task.max_new_tokens, stop=task.stop,
                              batch_size=len(prompts))  # fmt: skip
    result = team.generate(
        prompts, method=method.solver, constraint=KLConstraint(scale=method.scale),
        experts=[task.name] if method.experts == OWN_EXPERT else None,
        max_new_tokens=task.max_new_tokens, stop=task.stop, trace=None, batch_size=len(prompts),
    )  # fmt: skip
    return result.texts


def summarise(scored: pd.DataFrame) -> pd.DataFrame:
    """One row per task and method: n, value and its standard error in percent, seconds per 1,000 items.

    scored: one row per item, as `ScoredItem` has them. The standard error of a mean of n scores is their sample
    standard deviation over sqrt(n).
    """
    rows = []
    for (task, method), group in scored.groupby(["task", "method"], sort=False):
        n = len(group)
        spread = group["score"].std(ddof=1) if n > 1 else math.nan
        rows.append({
            "task": task, "method": method, "label": METHODS[method].label, "n": n,
            "value": 100 * group["score"].mean(), "standard_error": 100 * spread / math.sqrt(n),
            "seconds_per_1000": 1000 * group["seconds"].mean(),
            "no_answer": int(group["extracted"].isna().sum()),
        })  # fmt: skip
    import pandas

    return pandas.DataFrame(rows)


def to_markdown(summary: pd.DataFrame) -> str:
    """The README's table: methods down, tasks across, value ± standard error in percent."""
    tasks = list(dict.fromkeys(summary["task"]))
    counts = {task: int(summary.loc[summary["task"] == task, "n"].max()) for task in tasks}
    lines = ["| exact match, % | " + " | ".join(f"{task} (n = {counts[task]})" for task in tasks) + " |",
             "|---|" + "---|" * len(tasks)]  # fmt: skip
    known = {method.label: place for place, method in enumerate(METHODS.values())}
    for label in sorted(summary["label"].unique(), key=known.__getitem__):
        group = summary[summary["label"] == label]
        cells = []
        for task in tasks:
            row = group[group["task"] == task]
            cells.append("" if row.empty else write_cell(row.iloc[0], usual=counts[task]))
        lines.append(f"| {label} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def write_cell(row: pd.Series, *, usual: int) -> str:
    """Value ± standard error, and n where it is not the column's."""
    note = "" if row["n"] == usual else f" (n = {row['n']})"
    return f"{row['value']:.1f} ± {row['standard_error']:.1f}{note}"

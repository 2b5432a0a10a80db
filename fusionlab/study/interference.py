"""How alike the experts' changes are, and what adding or removing an expert does to every task.

A change is d_t = log R_t - log Q at one position. Constants cancel in the fused distribution, so changes are compared by
their covariance under the large model: cos(s, t) = Cov_P(d_s, d_t) / sqrt(Var_P(d_s) Var_P(d_t)), with
Cov_P(d_s, d_t) = E_P[d_s d_t] - E_P[d_s] E_P[d_t], which is also the Hessian of A at zero weights. 1: the same change, 0:
they do not touch each other, negative: they work against each other.

A frame of likeness has one row per task (whose text gives the contexts) and pair of experts: task, first, second,
covariance, variance_first, variance_second (nats², sums over positions), cosine (mean over positions), positions.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from fusionlab.study.measure import Answers, Difference, Way
from fusionlab.study.table import Table, make_table, number

if TYPE_CHECKING:
    import pandas as pd

ADAPTERS = "adapters"  # the "task" of rows that compare the adapters' weight changes, over all modules


def pooled_cosine(row: Any) -> float:
    """The sums' covariance over the root of their variances; NaN where a change is zero everywhere."""
    scale = math.sqrt(row["variance_first"] * row["variance_second"])
    return row["covariance"] / scale if scale > 0 else math.nan


def likeness_table(likeness: pd.DataFrame | None) -> Table:
    """Cosines of the changes by pair and task, and of the adapters' weight changes.

    data: task, first, second, pooled (cosine of the sums, so that positions with large changes count more), cosine (mean
    over positions), size_first, size_second (root of the mean variance, nats), positions.
    """
    data: list[dict[str, Any]] = []
    for row in [] if likeness is None else likeness.to_dict("records"):
        count = max(row["positions"], 1)
        data.append({"task": row["task"], "first": row["first"], "second": row["second"], "pooled": pooled_cosine(row),
                     "cosine": row["cosine"], "size_first": math.sqrt(row["variance_first"] / count),
                     "size_second": math.sqrt(row["variance_second"] / count), "positions": row["positions"]})  # fmt: skip
    pairs = dict.fromkeys((row["first"], row["second"]) for row in data if row["first"] != row["second"])
    tasks = list(dict.fromkeys(row["task"] for row in data))
    cells = {(row["task"], row["first"], row["second"]): row for row in data}
    shown = []
    for first, second in pairs:
        line = {"experts": f"{first}, {second}"}
        for task in tasks:
            row = cells.get((task, first, second))
            line[head(task)] = "" if row is None else number(row["pooled"], "+.2f")
        shown.append(line)
    note = ("Cosine of two experts' changes on the same text, by the task that the text is from (1: the same change, 0: "
            "none in common), and of their weight changes. Positions with large changes count more.")  # fmt: skip
    return make_table("likeness", "How alike the experts' changes are", note, data, shown)


def head(task: str) -> str:
    """The column of a task in the likeness table."""
    return "weight changes" if task == ADAPTERS else f"on {task}"


def size_table(likeness: pd.DataFrame | None) -> Table:
    """How large every expert's change is on the text of every task: sqrt of the mean Var_P(d_t), in nats."""
    rows = [] if likeness is None else [row for row in likeness.to_dict("records")
                                        if row["first"] == row["second"] and row["task"] != ADAPTERS]  # fmt: skip
    data = [{"task": row["task"], "expert": row["first"], "positions": row["positions"],
             "size": math.sqrt(row["variance_first"] / max(row["positions"], 1))} for row in rows]  # fmt: skip
    shown = []
    for expert in dict.fromkeys(row["expert"] for row in data):
        shown.append({"expert": expert} | {head(row["task"]): number(row["size"], ".2f") for row in data
                                           if row["expert"] == expert})  # fmt: skip
    return make_table("sizes", "How large the experts' changes are",
                      "Root of the mean variance of the change under the large model, in nats, by the task that the text "
                      "is from.", data, shown)  # fmt: skip


def subsets_table(answers: Answers) -> Table:
    """What removing and adding an expert does to every task, for each method of several experts.

    data: method, task, change ("without x": all but x, against all; "own + x": the task's expert and x, against dynamic
    fusion with the own expert alone), expert (x), n, value (of the changed set), difference, low, high in points.
    """
    everyone = answers.team.split("+") if answers.team else []
    data = []
    for method in dict.fromkeys(answers.rows["method"]):
        for task, way in answers.cells(method):
            names = (way.experts or "").split("+")
            if (way.shots, way.phrasing, way.seed, way.order) != (0, 0, 0, 0) or way.experts in ("", task, answers.team):
                continue
            gone = [name for name in everyone if name not in names]
            if len(gone) == 1 and len(everyone) > 2:
                data += changed_set(answers, task, way, f"without {gone[0]}", gone[0], Way(method))
            if len(names) == 2 and task in names:
                other = next(name for name in names if name != task)
                data += changed_set(answers, task, way, f"own + {other}", other, Way("dynamic"))
    shown = []
    order = [f"{change} {name}" for change in ("without", "own +") for name in everyone]
    lines = dict.fromkeys((row["method"], row["change"]) for row in data)
    methods = list(dict.fromkeys(method for method, _ in lines))
    for method, change in sorted(lines, key=lambda line: (methods.index(line[0]), order.index(line[1]))):
        group = {row["task"]: row for row in data if (row["method"], row["change"]) == (method, change)}
        line = {"method": Way(method).label, "experts": change}
        for task in answers.tasks:
            row = group.get(task)
            line[task] = "" if row is None else changed_text(row, answers.count_items(task))
        shown.append(line)
    note = ("Difference in points [95 % interval]. `without x`: all experts but x, against all of them. `own + x`: the "
            "task's own expert and x, against dynamic fusion with the own expert alone. n: items, where they are fewer "
            "than other lines have.")  # fmt: skip
    return make_table("subsets", "Adding and removing experts", note, data, shown)


def changed_text(row: Mapping[str, Any], items: int) -> str:
    """A difference with its interval, and its n where it rests on fewer than `items`."""
    gap = Difference(row["difference"], row["low"], row["high"], row["n"])
    return f"{gap} (n = {gap.n})" if gap.n < items else str(gap)


def changed_set(answers: Answers, task: str, way: Way, change: str, expert: str, reference: Way) -> list[dict[str, Any]]:
    """One row of the subsets' data, none where the reference was not answered."""
    found, gap = answers.estimate([task], way), answers.difference([task], way, reference)
    if found is None or gap is None:
        return []
    return [{"method": way.method, "task": task, "change": change, "expert": expert, "n": gap.n, "value": found.value,
             "difference": gap.value, "low": gap.low, "high": gap.high}]  # fmt: skip

"""Weight by position in the answer, for the task's own expert alone and for all experts together.

A frame of weights has one row per token and expert: task, loaded ("own" or "all"), method, item, position (0-based),
tokens (of the answer), expert, alpha (weight, no unit), flipped (whether this expert flipped the token).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from fusionlab.study.table import Table, make_table, number

if TYPE_CHECKING:
    import pandas as pd

    from fusionlab.trace import Trace

LOADED = {"own": "own expert alone", "all": "all experts loaded"}
PARTS = {
    "first token": (None, None),
    "first third": (0.0, 1 / 3),
    "second third": (1 / 3, 2 / 3),
    "last third": (2 / 3, 1.01),
}
FEWEST = 4  # answers that a position must hold to be drawn


def weight_rows(traces: Sequence[Trace], items: Sequence[str], *, task: str, loaded: str) -> pd.DataFrame:
    """The frame of weights of some traces, one per item id."""
    import numpy as np
    import pandas

    parts = []
    for trace, item in zip(traces, items, strict=True):
        for index, expert in enumerate(trace.experts):
            parts.append(pandas.DataFrame({
                "task": task, "loaded": loaded, "method": trace.method, "item": item,
                "position": np.arange(len(trace), dtype=np.int32), "tokens": np.int32(len(trace)), "expert": expert,
                "alpha": np.asarray(trace.alpha)[:, index], "flipped": np.asarray(trace.flipped_by) == index,
            }))  # fmt: skip
    return pandas.concat(parts, ignore_index=True) if parts else pandas.DataFrame()


def mean_by_position(weights: pd.DataFrame) -> pd.DataFrame:
    """Mean weight at every position: task, loaded, expert, position, alpha (mean), deviation, answers (how many go so far).

    Positions that fewer than FEWEST answers (or, with fewer answers in all, half of them) reach are left out.
    """
    keys = ["task", "loaded", "expert"]
    grouped = weights.groupby([*keys, "position"], sort=False)["alpha"].agg(["mean", "std", "count"]).reset_index()
    grouped = grouped.rename(columns={"mean": "alpha", "std": "deviation", "count": "answers"})
    most = grouped.groupby(keys)["answers"].transform("max")
    return grouped[grouped["answers"] >= most.floordiv(2).clip(lower=1, upper=FEWEST)].reset_index(drop=True)


def trajectory_table(weights: pd.DataFrame | None) -> Table:
    """Mean weight in the parts of the answer, its spread within an answer, and the tokens that the expert flipped.

    data: task, loaded, expert, answers, mean, first_token, first_third, second_third, last_third (mean weights),
    within (mean over answers of the standard deviation of the weight within the answer), flipped (percent of tokens).
    """
    data: list[dict[str, Any]] = []
    if weights is not None and len(weights):
        for (task, loaded, expert), group in weights.groupby(["task", "loaded", "expert"], sort=False):
            data.append({"task": task, "loaded": loaded, "expert": expert, "answers": group["item"].nunique(),
                         "mean": float(group["alpha"].mean()), **mean_by_part(group),
                         "within": float(group.groupby("item")["alpha"].std(ddof=0).mean()),
                         "flipped": 100 * float(group["flipped"].mean())})  # fmt: skip
    shown = [
        {"task": row["task"], "loaded": LOADED.get(row["loaded"], row["loaded"]), "expert": row["expert"],
         "answers": str(row["answers"]), "mean weight": number(row["mean"], ".2f"),
         **{part: number(row[part.replace(" ", "_")], ".2f") for part in PARTS},
         "spread within": number(row["within"], ".2f"), "flipped, %": number(row["flipped"])} for row in data
    ]  # fmt: skip
    note = ("Mean weight per token (1: the whole change of the expert), in parts of the answer; spread within an answer is "
            "the standard deviation of its weights; flipped: tokens moved off the large model's choice. Answers are "
            "written here, also of tasks that are scored by comparing options.")  # fmt: skip
    return make_table("trajectories", "Weights in the course of an answer", note, data, shown)


def mean_by_part(group: pd.DataFrame) -> dict[str, float]:
    """Mean weight of the first token and of each third of the answer, token i of n lying at i / n; NaN for none."""
    place = group["position"] / group["tokens"]
    means = {}
    for part, (low, high) in PARTS.items():
        chosen = group["position"] == 0 if low is None or high is None else (place >= low) & (place < high)
        means[part.replace(" ", "_")] = float(group.loc[chosen, "alpha"].mean())
    return means

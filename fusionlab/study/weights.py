"""Fixed weights: how a task's score depends on the weight, and what the best weight of every single item would give.

The best fixed weight per item is no method (it looks at the answers); it bounds what choosing a weight per answer can give:
headroom = best per item - dynamic, and a method's share of it = (method - dynamic) / headroom.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any

from fusionlab.scores import AVERAGE, standard_error
from fusionlab.study.measure import Answers, Estimate, Way
from fusionlab.study.table import Table, make_table, number

DYNAMIC = Way("dynamic")
BEST_PER_ITEM = "best fixed weight per item"
OTHERS = ("dynamic-grid", "predicted", "evidence")  # besides fixed weights and dynamic itself


def fixed_weight(method: str) -> float | None:
    """The weight that a method holds at every token: proxy-<a> gives a, the large model 0, others None.

    >>> fixed_weight("proxy-1.5"), fixed_weight("large"), fixed_weight("dynamic")
    (1.5, 0.0, None)
    """
    if method == "large":
        return 0.0
    found = re.fullmatch(r"proxy-(\d+(?:\.\d+)?)", method)
    return float(found[1]) if found else None


def fixed_ways(answers: Answers) -> dict[float, Way]:
    """Weight -> way, ascending, of every fixed weight that was tried plainly."""
    methods = dict.fromkeys(answers.rows["method"])
    known = {weight: Way(method) for method in methods if (weight := fixed_weight(method)) is not None}
    return dict(sorted(known.items()))


def best_per_item(answers: Answers, task: str) -> Any:
    """Series item -> best score over all fixed weights tried (0 included), over the items that all answered; or None.

    None where fewer than two weights were tried.
    """
    import pandas

    frames = [frame["score"] for way in fixed_ways(answers).values() if (frame := answers.cell(task, way)) is not None]
    if len(frames) < 2:
        return None
    return pandas.concat(frames, axis=1, join="inner").max(axis=1)


def weight_table(answers: Answers) -> Table:
    """The ablation: fixed weights, methods that choose one, and the best fixed weight per item, per seen task.

    data: label, task (or "average"), weight (NaN where it is chosen), n, value, standard_error in points, headroom in
    points, share_of_headroom in percent (NaN where there is no headroom, i.e. dynamic is not below the best per item).
    """
    scaled = [method for method in dict.fromkeys(answers.rows["method"]) if method.startswith("dynamic:")]
    fixed = fixed_ways(answers)
    ways = [*fixed.values(), DYNAMIC, *map(Way, scaled), *map(Way, OTHERS)]
    weights = {way: weight for weight, way in fixed.items()}
    data, shown = [], []
    for way in [*ways, None]:
        label = BEST_PER_ITEM if way is None else way.label
        row = {"": label}
        facts: list[dict[str, Any]] = []
        for name, tasks in [*((task, [task]) for task in answers.seen), (AVERAGE, answers.seen)]:
            found = best_estimate(answers, tasks) if way is None else answers.estimate(tasks, way)
            row[name] = "" if found is None else str(found)
            if found is not None and answers.lacks_items(tasks, found):
                row[name] += f" (n = {found.n})"
            if found is not None:
                facts.append({"label": label, "task": name, "weight": weights.get(way, math.nan) if way else math.nan,
                              "n": found.n, "value": found.value, "standard_error": found.standard_error,
                              **headroom(answers, tasks, way)})  # fmt: skip
        if facts:
            whole = facts[-1] if facts[-1]["task"] == AVERAGE else {}
            alone = way is not None and weights.get(way) == 0  # what the large model lacks is no share
            share = None if alone else whole.get("share_of_headroom")
            row["of headroom, %"] = number(share, ".0f")
            data += facts
            shown.append(row)
    note = ("Per cent ± standard error. The best fixed weight per item looks at the answers, so it is a bound, no method. "
            "Share of headroom: (method - dynamic) / (best per item - dynamic), of the averages, on common items; "
            "fixed weights tried: "
            + (", ".join(f"{weight:g}" for weight in fixed) or "none") + ".")  # fmt: skip
    return make_table("weights", "Fixed weights, and the headroom above dynamic", note, data, shown)


def best_estimate(answers: Answers, tasks: Sequence[str]) -> Estimate | None:
    """The best fixed weight per item, averaged over tasks; None where one of them lacks it."""
    series = [best_per_item(answers, task) for task in tasks]
    if not series or any(scores is None or len(scores) == 0 for scores in series):
        return None
    values = [100 * float(scores.mean()) for scores in series]
    errors = [100 * standard_error(scores) for scores in series]
    return Estimate(sum(values) / len(values), math.hypot(*errors) / len(errors), sum(map(len, series)))


def headroom(answers: Answers, tasks: Sequence[str], way: Way | None) -> dict[str, float]:
    """headroom (points) and share_of_headroom (percent) of a way (None: the best per item) on some tasks.

    Per task over the items that the way, dynamic and every fixed weight answered, then averaged over tasks.
    """
    rooms, gains = [], []
    for task in tasks:
        base, best = answers.cell(task, DYNAMIC), best_per_item(answers, task)
        mine = None if way is None else answers.cell(task, way)
        if base is None or best is None or (way is not None and mine is None):
            return {"headroom": math.nan, "share_of_headroom": math.nan}
        scores = best if mine is None else mine["score"]
        shared = best.index.intersection(base.index).intersection(scores.index)
        rooms.append(float((best.loc[shared] - base.loc[shared, "score"]).mean()))
        gains.append(float((scores.loc[shared] - base.loc[shared, "score"]).mean()))
    room, gain = 100 * sum(rooms) / max(len(rooms), 1), 100 * sum(gains) / max(len(gains), 1)
    return {"headroom": room, "share_of_headroom": 100 * gain / room if room > 1e-9 else math.nan}


def best_weights(answers: Answers) -> dict[str, float]:
    """Seen task -> the fixed weight above 0 with the best score there on common items (the smaller of equals)."""
    import pandas

    best = {}
    for task in answers.seen:
        scores = {weight: frame["score"] for weight, way in fixed_ways(answers).items()
                  if weight > 0 and (frame := answers.cell(task, way)) is not None}  # fmt: skip
        if len(scores) > 1:
            means = pandas.concat(scores, axis=1, join="inner").mean()
            best[task] = max(scores, key=lambda weight: (means[weight], -weight))
    return best

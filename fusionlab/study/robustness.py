"""How much a score depends on what should not matter: number, choice and order of examples, and phrasing.

One of the four is varied while the others stay plain (no examples where phrasing varies; examples as drawn where their
number does). Spreads are over settings, on the items that all settings answered.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from fusionlab.scores import AVERAGE
from fusionlab.study.measure import Answers, Way
from fusionlab.study.table import Table, make_table, number

DIMENSIONS = {"shots": "number of examples", "seed": "choice of examples", "order": "order of examples",
              "phrasing": "phrasing"}  # fmt: skip


def settings_of(answers: Answers, task: str, method: str, dimension: str) -> dict[int, list[Way]]:
    """Fixed number of shots -> the ways in which only `dimension` varies, two or more, in its order.

    For "shots" itself the key is -1, for "phrasing" 0.
    """
    plain = {"phrasing": 0, "seed": 0, "order": 0}
    groups: dict[int, list[Way]] = {}
    for name, way in answers.cells(method):
        whole = answers.cell(task, replace(way, experts=None))
        if name != task or whole is None or whole is not answers.cell(task, way):
            continue  # another task, or a part of the experts
        if any(getattr(way, other) != value for other, value in plain.items() if other != dimension):
            continue
        if (dimension == "phrasing" and way.shots) or (dimension in ("seed", "order") and not way.shots):
            continue
        groups.setdefault(-1 if dimension == "shots" else way.shots, []).append(way)
    return {shots: sorted(ways, key=lambda way: getattr(way, dimension)) for shots, ways in groups.items() if len(ways) > 1}


def spread_cells(answers: Answers) -> list[dict[str, Any]]:
    """One row per dimension, number of shots, task and method with two or more settings.

    dimension, shots, task, method, settings (how many), n (items in common), mean, deviation (sample standard deviation
    over settings), lowest, highest in points, values ("0: 41.2, 5: 46.0").
    """
    import pandas

    rows = []
    for dimension in DIMENSIONS:
        for task in answers.tasks:
            for method in dict.fromkeys(answers.rows["method"]):
                for shots, ways in settings_of(answers, task, method, dimension).items():
                    frames = [frame["score"] for way in ways if (frame := answers.cell(task, way)) is not None]
                    common = pandas.concat(frames, axis=1, join="inner")
                    values = [100 * float(value) for value in common.mean(axis=0)]
                    if not len(common):
                        continue
                    levels = [getattr(way, dimension) for way in ways]
                    rows.append({"dimension": dimension, "shots": shots, "task": task, "method": method,
                                 "n": len(common), **spread(values),
                                 "values": ", ".join(f"{level}: {value:.1f}"
                                                     for level, value in zip(levels, values, strict=True))})  # fmt: skip
    return rows


def spread(values: Sequence[float]) -> dict[str, float]:
    """settings, mean, deviation, lowest and highest of some values.

    >>> spread([40.0, 44.0])["deviation"].__round__(3)
    2.828
    """
    mean = sum(values) / len(values)
    deviation = math.sqrt(sum((value - mean) ** 2 for value in values) / (len(values) - 1)) if len(values) > 1 else math.nan
    return {"settings": len(values), "mean": mean, "deviation": deviation, "lowest": min(values), "highest": max(values)}


def robustness_table(answers: Answers) -> Table:
    """Mean and spread per dimension and method; data: `spread_cells`, and "average" rows over the tasks.

    An average row is there where a method has the dimension on several tasks: means of the tasks' means and deviations.
    """
    data = spread_cells(answers)
    keys = dict.fromkeys((row["dimension"], row["shots"], row["method"]) for row in data)
    shown = []
    for dimension, shots, method in keys:
        group = [row for row in data if (row["dimension"], row["shots"], row["method"]) == (dimension, shots, method)]
        line = {"varied": DIMENSIONS[dimension] + (f" ({shots} examples)" if dimension in ("seed", "order") else ""),
                "method": Way(method).label}  # fmt: skip
        line |= {row["task"]: f"{row['mean']:.1f} ({row['lowest']:.1f} to {row['highest']:.1f})" for row in group}
        if len(group) > 1:
            fields = ("mean", "deviation", "lowest", "highest")
            average = {name: sum(row[name] for row in group) / len(group) for name in fields}
            data.append({"dimension": dimension, "shots": shots, "task": AVERAGE, "method": method,
                         "settings": min(row["settings"] for row in group), "n": sum(row["n"] for row in group),
                         **average})  # fmt: skip
            line |= {"mean spread": number(average["deviation"])}
        shown.append(line)
    columns = ["varied", "method", *answers.tasks, "mean spread"]
    shown = [{column: line.get(column, "") for column in columns} for line in shown]
    note = ("Mean over settings (lowest to highest), per cent; the spread is the standard deviation over settings, in "
            "points, averaged over tasks.")  # fmt: skip
    return make_table("robustness", "Robustness to how a question is asked", note, data, shown)

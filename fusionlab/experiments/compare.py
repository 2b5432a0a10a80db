"""`fusionlab compare A B`: is B better or worse than A, by how much, and on which items.

Runs are paired by their parameters, items by their ids within a pair of runs. Several pairs of runs may answer the same
items, which makes them no further evidence: an item's difference is its mean over the pairs of one notebook and task, a
task's the mean over its items, and the result the mean over tasks. Its 95 % interval is the report's, over items within
tasks. Runs without items, or judged by another metric than `score`, are paired as they are and taken as independent of each
other. As in the report, of several versions of one run only the newest counts.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fusionlab.atomic_file import write_atomically
from fusionlab.errors import SweepError, UnknownNameError
from fusionlab.experiments.execution import OK
from fusionlab.experiments.parameters import show
from fusionlab.experiments.report_data import (
    FEW,
    TASK,
    Interval,
    choose_metric,
    interval_of,
    is_missing,
    is_number,
    newest_runs,
    plain,
    read_items,
    same,
)
from fusionlab.experiments.results import RunTable, query_tables, read_runs
from fusionlab.experiments.store import Store

if TYPE_CHECKING:
    import pandas as pd

BETTER, WORSE, OPEN = "B is better", "B is worse", "no difference is shown"


@dataclass(frozen=True)
class Change:
    """An item that A and B answered with different scores. run: the parameters of the pair."""

    run: str
    item: str
    score_a: float
    score_b: float
    output_a: str = ""
    output_b: str = ""


@dataclass(frozen=True)
class AbTest:
    """What came of a comparison.

    value_a, value_b, difference, interval: of the metric, times 100 where it is `score` as a share; over the paired items
    where there are any. item_pairs: answers of A that have one of B beside them; items: how many items these answer, each
    counted once per notebook and task. few: the interval is Student's t. lone: runs of A and of B that have no partner.
    unmeasured: pairs of runs that are left out since one has no value of the metric. outdated: runs of A and of B that are
    left out since a newer version is there. apart: parameters that are one value in A and another in B.
    """

    metric: str
    value_a: float
    value_b: float
    difference: float
    interval: Interval | None
    run_pairs: int
    item_pairs: int
    items: int
    changed: Sequence[Change]
    percent: bool
    lower: bool = False
    few: bool = False
    lone: tuple[int, int] = (0, 0)
    unmeasured: int = 0
    outdated: tuple[int, int] = (0, 0)
    apart: Mapping[str, tuple[Any, Any]] = field(default_factory=dict)

    @property
    def verdict(self) -> str:
        """Better or worse only where the interval does not hold 0."""
        low, high = self.gain()
        return BETTER if low > 0 else WORSE if high < 0 else OPEN

    def gain(self) -> tuple[float, float]:
        """The interval of the improvement: its signs turned where smaller is better; everything where there is none."""
        low, high = self.interval or (-math.inf, math.inf)
        return (-high, -low) if self.lower else (low, high)

    def passes(self, *, max_drop: float = 0.0, strict: bool = False) -> bool:
        """Whether B may replace A.

        max_drop: points that it may be worse by. By default it fails where the whole interval lies below that; strict:
        unless the whole interval lies above it, which needs enough items. Without an interval nothing is shown: it passes,
        and fails where strict.
        """
        low, high = self.gain()
        return low >= -max_drop if strict else high >= -max_drop

    def describe(self, *, max_drop: float = 0.0, strict: bool = False, most_listed: int = 20) -> str:
        """The verdict and what it rests on, for a terminal."""
        unit = " %" if self.percent else ""
        bounds = ""
        if self.interval is not None:
            kind = "Student's t" if self.few else "bootstrap"
            count = f"{self.items} items" if self.items else f"{self.run_pairs} pairs of runs"
            bounds = f", 95 % interval {self.interval[0]:+.4g} to {self.interval[1]:+.4g} ({kind} over {count})"
        answers = f", {self.item_pairs} pairs of answers to {self.items} items" if self.items else ""
        lines = [
            f"{self.metric}: A {self.value_a:.4g}{unit}, B {self.value_b:.4g}{unit}, B - A {self.difference:+.4g}{bounds}",
            f"{self.run_pairs} pairs of runs{answers}; without a partner: {self.lone[0]} runs of A, {self.lone[1]} of B",
        ]
        if self.interval is None:
            alone = "item per task" if self.items else "pair of runs"
            lines.append(f"a single {alone} shows nothing: there is no interval")
        if self.unmeasured:
            lines.append(f"left out: {self.unmeasured} pairs of runs where one has no {self.metric}")
        if any(self.outdated):
            lines.append(f"left out: {sum(self.outdated)} runs of earlier versions of the code, "
                         f"{self.outdated[0]} of A and {self.outdated[1]} of B")  # fmt: skip
        if self.apart:
            told = (f"{name} {show(a)} | {show(b)}" for name, (a, b) in self.apart.items())
            lines.append(f"A and B differ in: {', '.join(told)}")
        gained = sum((change.score_b > change.score_a) != self.lower for change in self.changed)
        lines.append(f"{len(self.changed)} answers changed: {gained} better in B, {len(self.changed) - gained} worse")
        for change in self.changed[:most_listed]:
            line = f"  {change.score_a:g} -> {change.score_b:g}  {change.item}  [{change.run}]"
            if change.output_a or change.output_b:
                line += f"  {shorten(change.output_a)} | {shorten(change.output_b)}"
            lines.append(line)
        if len(self.changed) > most_listed:
            lines.append(f"  and {len(self.changed) - most_listed} more")
        state = "passes" if self.passes(max_drop=max_drop, strict=strict) else "FAILS"
        rule = f"shown not to drop by more than {max_drop:g}" if strict else f"not shown to drop by more than {max_drop:g}"
        lines.append(f"{self.verdict}; {state} (rule: {rule})")
        return "\n".join(lines)


def shorten(text: str) -> str:
    """An output in a few characters, in one line."""
    line = " ".join(text.split())
    return repr(line if len(line) <= 40 else line[:39] + "…")


def compare_stores(a: Store, b: Store, *, where_a: str | None = None, where_b: str | None = None, metric: str | None = None,
                   lower: bool = False) -> AbTest:  # fmt: skip
    """Compare the runs of two stores, or two parts of one.

    where_a, where_b: SQL conditions on `runs`. Raises SweepError where nothing can be paired, MissingFileError.
    """
    (table_a, outdated_a), (table_b, outdated_b) = chosen_runs(a, where_a, "A"), chosen_runs(b, where_b, "B")
    frame_a, frame_b = table_a.to_frame(), table_b.to_frame()
    chosen = choose_metric(table_a, frame_a, metric)
    if chosen is None or chosen not in frame_b.columns or not is_number(frame_b[chosen]):
        raise UnknownNameError(f"B recorded no {chosen!r}" if chosen else "A recorded no number",
                               remedy="name a field that both recorded with --metric")  # fmt: skip
    names, apart = matching_parameters(table_a, frame_a, table_b, frame_b)
    partners, lone = pair_rows(frame_a, frame_b, names)
    if not partners:
        raise SweepError("no run of A has a partner in B", remedy=f"runs are paired by {', '.join(names) or 'nothing'}; "
                         "choose runs with --where-a and --where-b")  # fmt: skip
    pairs = [pair for pair in partners if not any(is_missing(row[chosen]) for row in pair)]
    if not pairs:
        raise SweepError(f"no pair of runs has {chosen} on both sides", remedy="name another field with --metric")
    return replace(judge(a, b, pairs, names, metric=chosen, lower=lower), lone=lone, apart=apart,
                   unmeasured=len(partners) - len(pairs), outdated=(outdated_a, outdated_b))  # fmt: skip


def chosen_runs(store: Store, condition: str | None, side: str) -> tuple[RunTable, int]:
    """The finished runs that meet a condition, of several versions the newest, and how many older ones meet it too.

    A run whose newest version failed is none of them, as in the report. Raises SweepError where there is none.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    table = read_runs(store)
    keys = query_tables({"runs": table.rows}, "SELECT key FROM runs" + (f" WHERE {condition}" if condition else ""))["key"]
    frame = table.to_frame()
    frame = frame[frame["key"].isin(keys)]
    newest = newest_runs(frame, table)
    finished = newest.loc[newest["status"] == OK, "key"].tolist()
    if not finished:
        raise SweepError(f"{side} ({store}) has no finished run" + (f" where {condition}" if condition else ""),
                         remedy="check the folder and the condition")  # fmt: skip
    rows = table.rows.filter(pc.is_in(table.rows["key"], value_set=pa.array(finished, pa.string())))
    return RunTable(rows, table.parameters, table.fields, table.given), len(frame) - len(newest)


def matching_parameters(table_a: RunTable, a: pd.DataFrame, table_b: RunTable,
                        b: pd.DataFrame) -> tuple[list[str], dict[str, tuple[Any, Any]]]:  # fmt: skip
    """Parameters to pair runs by, and those that are one value in A and another in B, which are what is compared."""
    shared = [name for name in table_a.parameters if name in table_b.parameters]
    names, apart = [], {}
    for name in shared:
        values_a, values_b = list(a[name].unique()), list(b[name].unique())
        if len(values_a) == len(values_b) == 1 and not same(plain(values_a[0]), plain(values_b[0])):
            apart[name] = (plain(values_a[0]), plain(values_b[0]))
        else:
            names.append(name)
    return names, apart


def pair_rows(a: pd.DataFrame, b: pd.DataFrame, names: Sequence[str]) -> tuple[list[tuple[dict, dict]], tuple[int, int]]:
    """Rows of equal parameters, and how many on each side have no partner."""

    def whole(value: Any) -> Any:
        return int(value) if isinstance(value, float) and value.is_integer() else value  # 3.0 where others have no value

    def keyed(frame: pd.DataFrame) -> dict[str, dict[str, Any]]:
        return {json.dumps([whole(plain(row[name])) for name in ("notebook", *names)], default=str): row
                for row in frame.to_dict("records")}  # fmt: skip

    rows_a, rows_b = keyed(a), keyed(b)
    pairs = [(row, rows_b[key]) for key, row in rows_a.items() if key in rows_b]
    return pairs, (len(a) - len(pairs), len(b) - len(pairs))


def judge(a: Store, b: Store, pairs: Sequence[tuple[dict, dict]], names: Sequence[str], *, metric: str,
          lower: bool) -> AbTest:  # fmt: skip
    """Differences, interval and changed items of paired runs that all have the metric."""
    import numpy as np
    import pandas as pd

    percent = metric == "score" and all(0 <= row[metric] <= 1 for pair in pairs for row in pair)
    varied = [name for name in names if len({str(plain(row[name])) for row, _ in pairs}) > 1]
    by_task: dict[tuple[Any, Any], list[pd.DataFrame]] = {}
    without_items: list[tuple[float, float]] = []
    changed: list[Change] = []
    for row_a, row_b in pairs:
        label = ", ".join(f"{name} = {show(plain(row_a[name]))}" for name in varied)
        merged = merged_items(a, row_a["key"], b, row_b["key"]) if metric == "score" else None
        if merged is None or merged.empty:
            without_items.append((row_a[metric], row_b[metric]))
            continue
        by_task.setdefault((row_a["notebook"], plain(row_a.get(TASK))), []).append(merged[["item", "score_a", "score_b"]])
        changed += [Change(label, row["item"], row["score_a"], row["score_b"], str(row.get("output_a", "")),
                           str(row.get("output_b", "")))
                    for row in merged[merged["score_a"] != merged["score_b"]].to_dict("records")]  # fmt: skip
    if by_task and without_items:
        raise SweepError(f"{len(without_items)} of {len(pairs)} pairs of runs recorded no common items, the others did",
                         remedy="compare these apart, with --where-a and --where-b")  # fmt: skip
    answered = [pd.concat(parts) for parts in by_task.values()]
    scores = [part.groupby("item").mean().to_numpy() for part in answered] or [np.asarray(without_items, float)]
    scores = [part * (100.0 if percent else 1.0) for part in scores]  # per task (items, 2): A and B
    differences = [part[:, 1] - part[:, 0] for part in scores]
    value_a, value_b = np.mean([part.mean(axis=0) for part in scores], axis=0).tolist()
    return AbTest(metric, value_a, value_b, value_b - value_a, interval_of(differences), len(pairs),
                  sum(map(len, answered)), sum(map(len, differences)) if by_task else 0, changed, percent, lower,
                  few=min(map(len, differences)) < FEW)  # fmt: skip


def merged_items(a: Store, key_a: str, b: Store, key_b: str) -> pd.DataFrame | None:
    """The items of two runs side by side, columns with _a and _b; None where one recorded none."""
    items_a, items_b = read_items(a, f"runs/{key_a}"), read_items(b, f"runs/{key_b}")
    if items_a is None or items_b is None:
        return None
    return items_a.merge(items_b, on="item", suffixes=("_a", "_b"))


def write_changes(found: AbTest, path: Path) -> None:
    """The changed items as CSV. Raises OutputError."""
    import pandas as pd

    frame = pd.DataFrame([vars(change) for change in found.changed], columns=list(Change.__annotations__))
    write_atomically(path, lambda draft: frame.to_csv(draft, index=False))

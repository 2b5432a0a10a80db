"""`fusionlab compare A B`: is B better or worse than A, by how much, and on which items.

Runs are paired by their parameters, items by their ids within a pair of runs. The difference is the mean over pairs of runs
of the mean item difference, its interval the 95 % percentile bootstrap over items within pairs (scipy, as in
`fusionlab.scores`). Runs without items are paired as they are.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fusionlab.atomic_file import write_atomically
from fusionlab.errors import SweepError, UnknownNameError
from fusionlab.experiments.execution import OK
from fusionlab.experiments.parameters import show
from fusionlab.experiments.report_data import Interval, choose_metric, plain, read_items, same
from fusionlab.experiments.results import RunTable, query_tables, read_runs
from fusionlab.experiments.store import Store

if TYPE_CHECKING:
    import numpy as np
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

    value_a, value_b, difference, interval: of the metric, times 100 where it is `score` as a share. lone: runs of A and of
    B that have no partner. apart: parameters that are one value in A and another in B.
    """

    metric: str
    value_a: float
    value_b: float
    difference: float
    interval: Interval | None
    run_pairs: int
    item_pairs: int
    lone: tuple[int, int]
    apart: Mapping[str, tuple[Any, Any]]
    changed: Sequence[Change]
    percent: bool
    lower: bool = False

    @property
    def verdict(self) -> str:
        """Better or worse only where the interval does not hold 0."""
        if self.interval is None or (self.interval[0] <= 0 <= self.interval[1]):
            return OPEN
        return BETTER if (self.interval[0] > 0) != self.lower else WORSE

    def gain(self) -> tuple[float, float, float]:
        """Low, middle and high of the improvement: the difference, its sign turned where smaller is better."""
        low, high = self.interval or (self.difference, self.difference)
        return (-high, -self.difference, -low) if self.lower else (low, self.difference, high)

    def passes(self, *, max_drop: float = 0.0, strict: bool = False) -> bool:
        """Whether B may replace A.

        max_drop: points that it may be worse by. By default it fails where the whole interval lies below that; strict:
        unless the whole interval lies above it, which needs enough items.
        """
        low, _, high = self.gain()
        return low >= -max_drop if strict else high >= -max_drop

    def describe(self, *, max_drop: float = 0.0, strict: bool = False, most_listed: int = 20) -> str:
        """The verdict and what it rests on, for a terminal."""
        unit = " %" if self.percent else ""
        bounds = "" if self.interval is None else f", 95 % interval {self.interval[0]:+.4g} to {self.interval[1]:+.4g}"
        lines = [
            f"{self.metric}: A {self.value_a:.4g}{unit}, B {self.value_b:.4g}{unit}, B - A {self.difference:+.4g}{bounds}",
            f"{self.run_pairs} pairs of runs, {self.item_pairs} pairs of items; without a partner: "
            f"{self.lone[0]} runs of A, {self.lone[1]} of B",
        ]
        if self.apart:
            told = (f"{name} {show(a)} | {show(b)}" for name, (a, b) in self.apart.items())
            lines.append(f"A and B differ in: {', '.join(told)}")
        gained = sum((change.score_b > change.score_a) != self.lower for change in self.changed)
        lines.append(f"{len(self.changed)} items changed: {gained} better in B, {len(self.changed) - gained} worse")
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
    table_a, table_b = chosen_runs(a, where_a, "A"), chosen_runs(b, where_b, "B")
    frame_a, frame_b = table_a.to_frame(), table_b.to_frame()
    chosen = choose_metric(table_a, frame_a, metric)
    if chosen is None or chosen not in frame_b.columns:
        raise UnknownNameError(f"B recorded no {chosen!r}" if chosen else "A recorded no number",
                               remedy="name a field that both recorded with --metric")  # fmt: skip
    names, apart = matching_parameters(table_a, frame_a, table_b, frame_b)
    pairs, lone = pair_rows(frame_a, frame_b, names)
    if not pairs:
        raise SweepError("no run of A has a partner in B", remedy=f"runs are paired by {', '.join(names) or 'nothing'}; "
                         "choose runs with --where-a and --where-b")  # fmt: skip
    percent = chosen == "score" and all(0 <= row[chosen] <= 1 for pair in pairs for row in pair)
    return judge(a, b, pairs, names, metric=chosen, lone=lone, apart=apart, percent=percent, lower=lower)


def chosen_runs(store: Store, condition: str | None, side: str) -> RunTable:
    """The finished runs that meet a condition. Raises SweepError where there is none."""
    import pyarrow as pa
    import pyarrow.compute as pc

    table = read_runs(store)
    sql = f"SELECT key FROM runs WHERE status = '{OK}'" + (f" AND ({condition})" if condition else "")
    keys = query_tables({"runs": table.rows}, sql)["key"].tolist()
    if not keys:
        raise SweepError(f"{side} ({store}) has no finished run" + (f" where {condition}" if condition else ""),
                         remedy="check the folder and the condition")  # fmt: skip
    rows = table.rows.filter(pc.is_in(table.rows["key"], value_set=pa.array(keys, pa.string())))
    return RunTable(rows, table.parameters, table.fields, table.given)


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

    def keyed(frame: pd.DataFrame) -> dict[str, dict[str, Any]]:
        return {json.dumps([plain(row[name]) for name in ("notebook", *names)], default=str): row
                for row in frame.to_dict("records")}  # fmt: skip

    rows_a, rows_b = keyed(a), keyed(b)
    pairs = [(row, rows_b[key]) for key, row in rows_a.items() if key in rows_b]
    return pairs, (len(a) - len(pairs), len(b) - len(pairs))


def judge(a: Store, b: Store, pairs: Sequence[tuple[dict, dict]], names: Sequence[str], *, metric: str,
          lone: tuple[int, int], apart: Mapping[str, tuple[Any, Any]], percent: bool, lower: bool) -> AbTest:  # fmt: skip
    """Differences, interval and changed items of paired runs."""
    import numpy as np

    from fusionlab.scores import bootstrap_mean

    factor = 100.0 if percent else 1.0
    varied = [name for name in names if len({str(plain(row[name])) for row, _ in pairs}) > 1]
    strata: list[np.ndarray] = []
    plain_pairs: list[float] = []
    changed: list[Change] = []
    for row_a, row_b in pairs:
        label = ", ".join(f"{name} = {show(plain(row_a[name]))}" for name in varied)
        merged = merged_items(a, row_a["key"], b, row_b["key"]) if metric == "score" else None
        if merged is None or merged.empty:
            plain_pairs.append(factor * (float(row_b[metric]) - float(row_a[metric])))
            continue
        strata.append(factor * (merged["score_b"] - merged["score_a"]).to_numpy())
        changed += [Change(label, row["item"], row["score_a"], row["score_b"], str(row.get("output_a", "")),
                           str(row.get("output_b", "")))
                    for row in merged[merged["score_a"] != merged["score_b"]].to_dict("records")]  # fmt: skip
    if strata and plain_pairs:
        raise SweepError(f"{len(plain_pairs)} of {len(pairs)} pairs of runs recorded no common items, the others did",
                         remedy="compare these apart, with --where-a and --where-b")  # fmt: skip
    values = strata or [np.asarray(plain_pairs)]
    interval = bootstrap_mean(values) if sum(map(len, values)) > 1 else None
    return AbTest(
        metric, factor * float(np.mean([row[metric] for row, _ in pairs])),
        factor * float(np.mean([row[metric] for _, row in pairs])), float(np.mean([part.mean() for part in values])),
        interval, len(pairs), sum(map(len, strata)), lone, apart, changed, percent, lower)  # fmt: skip


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

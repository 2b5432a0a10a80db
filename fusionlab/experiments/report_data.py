"""What a report says, as numbers: runs grouped by what varies, values and paired differences with intervals.

Runs that differ in repeated parameters only (a sweep file's `repeat`, or `seed`) are one group. A group's value is the mean
over its runs; where runs recorded items, its interval and its difference to the baseline come from the items, paired by
their ids, each averaged over the group's runs. Where they recorded none, pairs are formed by the repeated parameters.
Intervals are 95 % percentile bootstrap intervals as in `fusionlab.scores`, of fewer than ten values Student's t intervals.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from io import BytesIO
from typing import TYPE_CHECKING, Any

from fusionlab.errors import CorruptFileError, UnknownNameError
from fusionlab.experiments.execution import ERROR, FAILED, OK
from fusionlab.experiments.parameters import show
from fusionlab.experiments.recording import ITEMS
from fusionlab.experiments.results import RunTable, read_runs
from fusionlab.experiments.store import Store

if TYPE_CHECKING:
    import pandas as pd

TASK, SEED = "task", "seed"
FEW = 10  # values, below which an interval is Student's t
Interval = tuple[float, float]


@dataclass(frozen=True)
class ReportOptions:
    """What to show.

    metric, cost: recorded fields. baseline: "name=value,..." of the parameters that set the baseline apart. items: whose
    weights are drawn. lower: smaller values of the metric are better.
    """

    metric: str | None = None
    cost: str | None = None
    baseline: str | None = None
    items: tuple[str, ...] = ()
    lower: bool = False


@dataclass(frozen=True)
class Group:
    """Runs that differ in repeats only.

    values: of the varied parameters. observations: how many values the interval is of, items or else runs; pairs: how many
    the difference is of. scores: item -> mean score, None where no items were recorded.
    """

    values: Mapping[str, Any]
    keys: Sequence[str]
    value: float
    cost: float
    interval: Interval | None = None
    observations: int = 0
    difference: float | None = None  # to the baseline
    difference_interval: Interval | None = None
    pairs: int = 0
    is_baseline: bool = False
    by_repeat: Mapping[str, float] = field(default_factory=dict)
    scores: Any = None

    def label(self, names: Sequence[str] | None = None) -> str:
        """Its values, of some parameters only."""
        shown = self.values if names is None else names
        return ", ".join(f"{name} = {show(self.values[name])}" for name in shown) or "all"


@dataclass(frozen=True)
class Failed:
    """A run that failed, with its error cell."""

    key: str
    label: str
    kind: str
    message: str
    cell: str
    cell_number: int | None
    traceback: str
    notebook: str  # its page, relative to the store


@dataclass(frozen=True)
class ReportData:
    """Everything that the page shows.

    frame: of several versions of one run only the latest; outdated: how many were left out. percent: the metric is a share
    and shown times 100.
    """

    frame: pd.DataFrame
    table: RunTable
    metric: str | None
    cost: str
    varied: Sequence[str]
    repeated: Sequence[str]
    groups: Sequence[Group]
    failures: Sequence[Failed]
    manifests: Sequence[Mapping[str, Any]]
    baseline: Mapping[str, Any]
    percent: bool = False
    lower: bool = False
    outdated: int = 0


def gather_report(store: Store, options: ReportOptions) -> ReportData:
    """Read a store and compute what its report says. Raises MissingFileError, UnknownNameError, SweepError."""
    table = read_runs(store)
    whole = table.to_frame()
    frame = newest_runs(whole, table)
    manifests = store.manifests()
    good = frame[frame["status"] == OK]
    metric = choose_metric(table, good, options.metric)
    cost = choose_cost(table, good, options.cost)
    repeated = repeated_parameters(table, manifests)
    varied = [name for name in table.parameters if name not in repeated and distinct(good[name]) > 1]
    groups = make_groups(store, good, varied, repeated, metric=metric, cost=cost) if len(good) and metric else []
    baseline = choose_baseline(groups, varied, options.baseline)
    groups = [compare_to(group, find_baseline(group, groups, baseline)) for group in groups]
    percent = metric == "score" and bool(good[metric].dropna().between(0, 1).all())
    return ReportData(frame, table, metric, cost, varied, [name for name in repeated if name in table.parameters], groups,
                      read_failures(store, frame, table), manifests, baseline, percent, options.lower,
                      len(whole) - len(frame))  # fmt: skip


def newest_runs(frame: pd.DataFrame, table: RunTable) -> pd.DataFrame:
    """One run per notebook and parameters: the latest, where a folder holds runs of several versions of the code."""
    columns = frame[["notebook", *table.parameters]].to_dict("records")
    same_work = [json.dumps([plain(value) for value in row.values()], default=str) for row in columns]
    latest = frame.assign(work=same_work).sort_values("started").drop_duplicates("work", keep="last")
    return frame.loc[latest.index.sort_values()]


# -- choose --------------------------------------------------------------------------------------


def choose_metric(table: RunTable, good: pd.DataFrame, wanted: str | None) -> str | None:
    """The field to judge by: the one named, else `score`, else the first number that runs recorded, else None."""
    numbers = [column for column in table.fields if is_number(good[column])]
    if wanted is not None:
        if wanted not in numbers:
            raise UnknownNameError(f"no run recorded a number {wanted!r}", remedy=f"known: {', '.join(numbers) or 'none'}")
        return wanted
    return "score" if "score" in numbers else next(iter(numbers), None)


def choose_cost(table: RunTable, good: pd.DataFrame, wanted: str | None) -> str:
    """The field for time: the one named, else seconds_per_item, else the run's seconds."""
    numbers = ["seconds", *(column for column in table.fields if is_number(good[column]))]
    if wanted is not None and wanted not in numbers:
        raise UnknownNameError(f"no run recorded a number {wanted!r}", remedy=f"known: {', '.join(numbers)}")
    return wanted or ("seconds_per_item" if "seconds_per_item" in numbers else "seconds")


def is_number(column: pd.Series) -> bool:
    """Whether a column holds numbers, at least one of them finite."""
    return column.dtype.kind in "if" and bool(column.notna().any())


def distinct(column: pd.Series) -> int:
    """How many different values, a missing one counted."""
    return int(column.nunique(dropna=False))


def repeated_parameters(table: RunTable, manifests: Sequence[Mapping[str, Any]]) -> list[str]:
    """Parameters that only repeat a run: what sweep files list under `repeat`, and `seed`."""
    named = [name for manifest in manifests for name in manifest.get("repeat") or []]
    return [column for column, name in table.parameters.items() if name in {*named, SEED}]


def choose_baseline(groups: Sequence[Group], varied: Sequence[str], wanted: str | None) -> dict[str, Any]:
    """Which values set the baseline apart: those named, else the first value of the first parameter besides the task."""
    if wanted is None:
        name = next((name for name in varied if name != TASK), None)
        return {} if name is None or not groups else {name: groups[0].values[name]}
    chosen: dict[str, Any] = {}
    for part in re.split(r",(?=\s*\w+\s*=)", wanted):  # a value may have commas of its own
        name, equals, text = (piece.strip() for piece in part.partition("="))
        known = {show(group.values[name]): group.values[name] for group in groups if name in group.values}
        if not equals or text not in known:
            what = f"values of {name}: {', '.join(known)}" if known else f"varied parameters: {', '.join(varied)}"
            raise UnknownNameError(f"baseline {part!r} is no varied parameter's value", remedy=what)
        chosen[name] = known[text]
    return chosen


def find_baseline(group: Group, groups: Sequence[Group], baseline: Mapping[str, Any]) -> Group | None:
    """The group that is equal but for the baseline's values; None where it is missing: any other differs in more."""
    if not baseline:
        return None
    wanted = {**group.values, **baseline}
    return next((candidate for candidate in groups
                 if all(same(candidate.values[name], value) for name, value in wanted.items())), None)  # fmt: skip


def same(a: Any, b: Any) -> bool:
    """Equal, where a missing value equals another missing one."""
    return bool(a == b) or (is_missing(a) and is_missing(b))


def is_missing(value: Any) -> bool:
    """None or NaN."""
    return value is None or (isinstance(value, float) and math.isnan(value))


# -- groups --------------------------------------------------------------------------------------


def make_groups(store: Store, good: pd.DataFrame, varied: Sequence[str], repeated: Sequence[str], *, metric: str,
                cost: str) -> list[Group]:  # fmt: skip
    """Groups in the sweep's order, without differences yet."""
    made: dict[str, list[dict[str, Any]]] = {}
    for row in good.to_dict("records"):
        made.setdefault(json.dumps([plain(row[name]) for name in varied], default=str), []).append(row)
    groups = []
    for rows in made.values():
        scores = pooled_items(store, [row["key"] for row in rows])
        values = [float(row[metric]) for row in rows if not is_missing(row[metric])]
        if not values:
            continue
        if scores is not None and metric != "score":
            scores = None  # items hold scores; another metric is not theirs
        groups.append(Group(
            {name: plain(rows[0][name]) for name in varied}, [row["key"] for row in rows], mean(values),
            mean([float(row[cost]) for row in rows if not is_missing(row[cost])]),
            interval_of([values if scores is None else scores.to_numpy()]),
            observations=len(values if scores is None else scores),
            by_repeat={json.dumps([plain(row[name]) for name in repeated], default=str): float(row[metric]) for row in rows
                       if not is_missing(row[metric])}, scores=scores))  # fmt: skip
    return groups


def plain(value: Any) -> Any:
    """A value of a frame as Python's own; NaN as None, 3.0 of a column that holds missing ones stays 3.0."""
    value = value.item() if hasattr(value, "item") else value
    return None if is_missing(value) else value


def mean(values: Sequence[float]) -> float:
    """The mean, NaN of nothing."""
    return sum(values) / len(values) if values else math.nan


def pooled_items(store: Store, keys: Sequence[str]) -> pd.Series | None:
    """Item -> score, averaged over runs; None where a run recorded none. Raises CorruptFileError."""
    import pandas as pd

    frames = [read_items(store, f"runs/{key}") for key in keys]
    if not frames or any(frame is None for frame in frames):
        return None
    whole = pd.concat([frame[["item", "score"]] for frame in frames if frame is not None])
    return whole.groupby("item", sort=False)["score"].mean()


def read_items(store: Store, place: str) -> pd.DataFrame | None:
    """A run's items that have a score, None where it recorded none. Raises CorruptFileError."""
    import pandas as pd
    import pyarrow as pa

    try:
        content = store.read_bytes(f"{place}/{ITEMS}")
    except FileNotFoundError:
        return None
    try:
        return pd.read_parquet(BytesIO(content)).dropna(subset=["score"])
    except (OSError, pa.ArrowException, ValueError) as error:
        raise CorruptFileError(f"{store}/{place}/{ITEMS} is damaged: {str(error).splitlines()[0]:.100}",
                               remedy="remove that run's folder and give the sweep's command again") from error  # fmt: skip


def interval_of(strata: Sequence[Any]) -> Interval | None:
    """95 % interval of the mean over strata of their means, None where no stratum has two values."""
    import numpy as np

    from fusionlab.scores import bootstrap_mean, student_mean

    values = [np.asarray(stratum, float) for stratum in strata]
    return student_mean(values) if min(map(len, values)) < FEW else bootstrap_mean(values)


def compare_to(group: Group, baseline: Group | None) -> Group:
    """The group with its difference to the baseline, paired by item, else by repeat."""
    if baseline is None:
        return group
    if baseline is group:
        return replace(group, is_baseline=True)
    differences = paired_differences(group, baseline)
    if not len(differences):
        return group
    return replace(group, difference=float(sum(differences) / len(differences)), pairs=len(differences),
                   difference_interval=interval_of([differences]))  # fmt: skip


def paired_differences(group: Group, baseline: Group) -> Any:
    """One number per pair: by item where both recorded items, else by repeat."""
    if group.scores is not None and baseline.scores is not None:
        shared = group.scores.index.intersection(baseline.scores.index)
        return (group.scores.loc[shared] - baseline.scores.loc[shared]).to_numpy()
    return [value - baseline.by_repeat[again] for again, value in group.by_repeat.items() if again in baseline.by_repeat]


# -- failures ------------------------------------------------------------------------------------


def read_failures(store: Store, frame: pd.DataFrame, table: RunTable) -> list[Failed]:
    """The runs that failed, with what their error.json says."""
    names = store.failed()
    found = []
    for row in frame[frame["status"] == FAILED].to_dict("records"):
        place = f"failed/{names.get(row['key'], '')}"
        try:
            error = json.loads(store.read_bytes(f"{place}/{ERROR}"))
        except (OSError, ValueError):
            error = {}
        given = {name: plain(row[column]) for column, name in table.parameters.items() if name in table.given}
        found.append(Failed(
            row["key"], ", ".join(f"{name} = {show(value)}" for name, value in given.items()), error.get("kind", "unknown"),
            error.get("message", row["error"] or ""), error.get("cell", ""), error.get("cell_number"),
            error.get("traceback", ""), f"{place}/notebook.html"))  # fmt: skip
    return found

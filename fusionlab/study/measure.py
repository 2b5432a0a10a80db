"""Pick cells from the rows of an evaluation, and compare them pair by pair.

Values, standard errors and differences are in points (hundredths of the metric). Intervals are those of
`scores.bootstrap_mean`: 95 %, over the items that both cells answered, resampled within each task.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

from fusionlab.methods import EXPERT_CHOICES, OWN_EXPERT, find_method
from fusionlab.scores import bootstrap_mean, seen_tasks, standard_error
from fusionlab.tasks import TASKS
from fusionlab.tasks.task import WRITING

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Way:
    """How a line of a table was answered.

    experts: names joined by +; None: the task's own expert for methods of one, all of the team for methods of several.
    """

    method: str
    shots: int = 0
    phrasing: int = 0
    seed: int = 0
    order: int = 0
    experts: str | None = None

    @property
    def label(self) -> str:
        """The method's words, and what was asked otherwise than plainly."""
        asked = [f"{self.shots} examples"] if self.shots else []
        asked += [f"{name} {value}" for name, value in (("phrasing", self.phrasing), ("seed", self.seed),
                                                        ("order", self.order)) if value]  # fmt: skip
        experts = [f"[{self.experts.replace('+', ' + ')}]"] if self.experts else []
        name = find_method(self.method).label
        if self.method.endswith(":experts=all"):
            name = name.replace("own expert", "all experts").removesuffix(", experts = all")
        return ", ".join([name, *asked]) + "".join(f" {part}" for part in experts)


@dataclass(frozen=True)
class Estimate:
    """A mean in points with its standard error in points, over n items."""

    value: float
    standard_error: float
    n: int

    def __str__(self) -> str:
        error = "" if math.isnan(self.standard_error) else f" ± {self.standard_error:.1f}"
        return f"{self.value:.1f}{error}"


@dataclass(frozen=True)
class Difference:
    """A mean difference in points with its 95 % interval, over n items in common."""

    value: float
    low: float
    high: float
    n: int

    def __str__(self) -> str:
        return f"{self.value:+.1f} [{self.low:+.1f}, {self.high:+.1f}]"


@dataclass(frozen=True)
class Answers:
    """Every answer of a study, and the recorded scores of models that are not kept.

    rows: `cells.AnswerRow`s. recorded: what `scores.read_records` gives.

    >>> answers = Answers(read_shipped_rows(), read_records())               # doctest: +SKIP
    >>> str(answers.estimate(["math"], Way("dynamic")))                      # doctest: +SKIP
    '98.2 ± 0.7'
    """

    rows: pd.DataFrame
    recorded: Mapping[str, Any] = field(default_factory=dict)

    @cached_property
    def tasks(self) -> list[str]:
        """Every task that was answered: bundled ones in the order of their table, then others in order of appearance."""
        found = dict.fromkeys(self.rows["task"])
        return [*(name for name in TASKS if name in found), *(name for name in found if name not in TASKS)]

    @cached_property
    def seen(self) -> list[str]:
        """The tasks that an expert of the team was trained on."""
        known = seen_tasks(self.rows)
        return [task for task in self.tasks if task in known]

    @cached_property
    def unseen(self) -> list[str]:
        """The tasks that no expert was trained on."""
        return [task for task in self.tasks if task not in self.seen]

    @cached_property
    def team(self) -> str:
        """All experts of the team joined by +: the largest set that any cell used."""
        return max(dict.fromkeys(self.rows["experts"]), key=lambda names: len(names.split("+")) if names else 0, default="")

    @cached_property
    def _groups(self) -> dict[tuple[Any, ...], pd.DataFrame]:
        keys = ["task", "method", "shots", "phrasing", "seed", "order", "experts"]
        return {tuple(key): group.set_index("item") for key, group in self.rows.groupby(keys, sort=False)}

    def cells(self, method: str | None = None) -> list[tuple[str, Way]]:
        """(task, way) of every cell, with its experts by name; of one method where that is given."""
        return [(key[0], Way(*key[1:])) for key in self._groups if method in (None, key[1])]

    def cell(self, task: str, way: Way) -> pd.DataFrame | None:
        """The rows of one cell by item, or None where it was not answered."""
        experts = way.experts
        if experts is None:
            kind = find_method(way.method).experts
            experts = task if kind == OWN_EXPERT else self.team if kind in EXPERT_CHOICES else ""
        return self._groups.get((task, way.method, way.shots, way.phrasing, way.seed, way.order, experts))

    def frames(self, tasks: Sequence[str], way: Way) -> list[pd.DataFrame] | None:
        """The cells of a way on all of `tasks`; None where one is missing, or there is no task."""
        found = [self.cell(task, way) for task in tasks]
        present = [frame for frame in found if frame is not None]
        return present if present and len(present) == len(found) else None

    def count_items(self, task: str) -> int:
        """The most items that any cell of a task holds."""
        return max((len(group) for key, group in self._groups.items() if key[0] == task), default=0)

    def estimate(self, tasks: Sequence[str], way: Way) -> Estimate | None:
        """Mean over the tasks of the mean within each."""
        frames = self.frames(tasks, way)
        if frames is None:
            return None
        values = [100 * float(frame["score"].mean()) for frame in frames]
        errors = [100 * standard_error(frame["score"]) for frame in frames]
        return Estimate(sum(values) / len(values), math.hypot(*errors) / len(errors), sum(map(len, frames)))

    def difference(self, tasks: Sequence[str], way: Way, other: Way) -> Difference | None:
        """`way` minus `other`, averaged over the tasks; None where either was not answered on all of them."""
        own, others = self.frames(tasks, way), self.frames(tasks, other)
        if own is None or others is None:
            return None
        strata = []
        for mine, theirs in zip(own, others, strict=True):
            shared = mine.index.intersection(theirs.index)
            strata.append((mine.loc[shared, "score"] - theirs.loc[shared, "score"]).to_numpy())
        if any(len(values) == 0 for values in strata):
            return None
        low, high = bootstrap_mean(strata)
        centre = sum(float(values.mean()) for values in strata) / len(strata)
        return Difference(100 * centre, 100 * low, 100 * high, sum(map(len, strata)))

    def bound(self, tasks: Sequence[str], kind: str) -> Estimate | None:
        """The recorded mean over the tasks of a model that is not kept, e.g. "large-full"; None where one is missing."""
        scores = [self.recorded.get(kind, {}).get(task) for task in tasks]
        known = [score for score in scores if score is not None]
        if not known or len(known) < len(scores):
            return None
        errors = [float(score.get("standard_error", math.nan)) for score in known]
        return Estimate(sum(float(score["value"]) for score in known) / len(known), math.hypot(*errors) / len(known),
                        sum(int(score.get("n") or 0) for score in known))  # fmt: skip

    def bounded(self, tasks: Sequence[str], kind: str) -> list[str]:
        """Those of the tasks that a recorded bound has a score for."""
        return [task for task in tasks if task in self.recorded.get(kind, {})]

    def trained_alike(self, tasks: Sequence[str], kind: str, other: str) -> list[str]:
        """Those of the tasks that two recorded bounds saw equally often."""
        kinds = [self.recorded.get(name, {}) for name in (kind, other)]
        return [task for task in tasks if all(task in scores for scores in kinds)
                and passes_of(kinds[0][task]) == passes_of(kinds[1][task])]  # fmt: skip

    def measure(self, tasks: Sequence[str], line: Way | str) -> Estimate | None:
        """`estimate` of a way, or `bound` of a kind."""
        return self.estimate(tasks, line) if isinstance(line, Way) else self.bound(tasks, line)

    def share(self, tasks: Sequence[str], line: Way | str, kind: str = "large-full") -> float | None:
        """Percent of a recorded bound's mean that a line's mean reaches, over the tasks that have one; None for none.

        None too where a way answered fewer items than others: the bound is a mean over all.
        """
        recorded = self.bounded(tasks, kind)
        mine, bound = self.measure(recorded, line), self.bound(recorded, kind)
        if mine is None or bound is None or bound.value <= 0:
            return None
        return None if isinstance(line, Way) and self.lacks_items(recorded, mine) else 100 * mine.value / bound.value

    def lacks_items(self, tasks: Sequence[str], found: Estimate) -> bool:
        """Whether an estimate over some tasks holds fewer items than other cells of them."""
        return found.n < sum(self.count_items(task) for task in tasks)


def is_written(cell: pd.DataFrame) -> bool:
    """Whether every answer of a cell was written, none chosen by comparing options."""
    return bool((cell["answering"] == WRITING).all())


def count_steps(cell: pd.DataFrame) -> int:
    """Decoding steps of a cell of written answers: its batches' longest answers, in tokens, added up.

    A batch takes as long as its longest answer, so time per token would fall with the length of the others. The rows of
    one batch share its time evenly, to the last digit.
    """
    return int(cell.groupby(["device", "seconds"])["tokens"].max().sum())


def passes_of(score: Mapping[str, Any]) -> float:
    """How often a recorded bound saw its task's training data; NaN where that is not recorded."""
    return float(score.get("passes", math.nan))


def compare_estimates(mine: Estimate, other: Estimate) -> Difference:
    """`mine` minus `other` where items cannot be paired: 1.96 standard errors of the difference to either side."""
    centre = mine.value - other.value
    spread = 1.96 * math.hypot(mine.standard_error, other.standard_error)
    return Difference(centre, centre - spread, centre + spread, min(mine.n, other.n))

"""What the study answers, as plain data: groups of cells, each with methods and ways of asking.

`QUICK` is for two CPU cores (minutes), `FULL` for a GPU. Comparing options costs a forward an answer, not one a token, so
`QUICK` too asks those tasks by every method of the tables. Groups share cells where they overlap, and the evaluation is
resumed cell by cell, so a stopped study goes on where it was.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from fusionlab.cells import Cell
from fusionlab.evaluate import PLAINLY, Asking, find_fault, plan_cells
from fusionlab.methods import ALL_EXPERTS, find_method
from fusionlab.tasks import Task
from fusionlab.tasks.task import LIKELIHOOD, Answering


@dataclass(frozen=True)
class Group:
    """methods x tasks x ways of asking.

    subsets: "leave-one-out", "pairs", both, or none for all experts. tasks: names, none for all of the study.
    answering: only tasks that are answered in this way.
    """

    methods: tuple[str, ...]
    asking: Asking = PLAINLY
    subsets: tuple[str, ...] = ()
    tasks: tuple[str, ...] = ()
    answering: Answering | None = None

    def choose(self, tasks: Mapping[str, Task]) -> list[Task]:
        """Those of the study's tasks that it asks."""
        return [task for name, task in tasks.items() if (not self.tasks or name in self.tasks)
                and self.answering in (None, task.spec.answering)]  # fmt: skip


MAIN = ("large", "expert", "proxy-1", "dynamic", "evidence")  # what is asked in every way
QUICK: Mapping[str, Group] = {
    "one expert": Group(("large", "expert", "proxy-1", "dynamic")),
    "several experts": Group(("paper-multi", "evidence", "merged-dynamic")),
    "several experts, options": Group(("joint", "average", "merged", "merged-static"), answering=LIKELIHOOD),
    "fixed weights": Group(("proxy-0.5", "proxy-1.5")),
    "examples": Group(("large", "dynamic"), Asking(shots=(1,)), tasks=("trivia",)),
    "phrasing": Group(("large", "dynamic"), Asking(phrasings=(1,)), tasks=("trivia",)),
}
FULL: Mapping[str, Group] = {
    "one expert": Group(("large", "small", "expert", "proxy-1", "dynamic", "dynamic-grid", "predicted")),
    "several experts": Group(
        ("paper-multi", "joint", "average", "evidence", "predicted:experts=all", "merged", "merged-static",
         "merged-dynamic")
    ),
    "fixed weights": Group(("proxy-0.5", "proxy-1.5", "dynamic:scale=0.75", "dynamic:scale=1.25")),
    "number of examples": Group(MAIN, Asking(shots=(1, 3, 5))),
    "choice of examples": Group(MAIN, Asking(shots=(3,), seeds=(1, 2))),
    "order of examples": Group(MAIN, Asking(shots=(3,), orders=(1, 2))),
    "phrasing": Group(MAIN, Asking(phrasings=(1, 2, 3))),
    "adding and removing experts": Group(("evidence",), subsets=("leave-one-out", "pairs")),
    "removing experts": Group(("paper-multi",), subsets=("leave-one-out",)),
}  # fmt: skip


def expert_sets(kinds: Sequence[str], experts: Sequence[str]) -> list[tuple[str, ...]]:
    """The sets that the kinds stand for, each once.

    >>> expert_sets(["leave-one-out", "pairs"], ["a", "b", "c"])
    [('b', 'c'), ('a', 'c'), ('a', 'b')]
    """
    found: dict[tuple[str, ...], None] = {}
    for kind in kinds:
        if kind == "leave-one-out":
            sets = [tuple(other for other in experts if other != name) for name in experts]
        else:
            sets = list(itertools.combinations(experts, 2))
        found |= dict.fromkeys(some for some in sets if 0 < len(some) < len(experts))
    return list(found)


def plan_study(
    tasks: Mapping[str, Task], experts: Sequence[str], groups: Mapping[str, Group], *, left_out: Sequence[str] = ()
) -> tuple[list[Cell], list[str]]:
    """Every cell of the groups, each once, and a note for each that does not apply.

    left_out: solvers that cannot run here; their methods are left out with a note.
    """
    cells: dict[Cell, None] = {}
    notes: dict[str, None] = {}
    for group in groups.values():
        chosen = group.choose(tasks)
        missing = [name for name in group.methods if find_method(name).solver in left_out]
        notes |= {f"{name} is left out, as it cannot run here": None for name in missing}
        names = [name for name in group.methods if name not in missing]
        subsets = expert_sets(group.subsets, experts)
        if not chosen or (group.subsets and not subsets):
            continue
        if group.subsets:
            names = [name for name in names if find_method(name).experts == ALL_EXPERTS]
        asking = what_some_know(group.asking, chosen)
        said = [f"no task can be asked with {asked}; left out" for asked in unknown(group.asking, asking)]
        notes |= dict.fromkeys(said)
        if not (asking.shots and asking.phrasings):
            continue
        planned, said = plan_cells(chosen, names, experts=experts, subsets=subsets, asking=asking)
        cells |= dict.fromkeys(planned)
        notes |= dict.fromkeys(said)
    return list(cells), list(notes)


def what_some_know(asking: Asking, tasks: Sequence[Task]) -> Asking:
    """The ways of asking without the numbers of shots and the phrasings that none of the tasks has."""

    def known(**asked: int) -> bool:
        return any(find_fault(task, **asked) is None for task in tasks)

    return replace(asking, shots=tuple(count for count in asking.shots if known(shots=count)),
                   phrasings=tuple(form for form in asking.phrasings if known(phrasing=form)))  # fmt: skip


def unknown(asking: Asking, kept: Asking) -> list[str]:
    """What was left out of a way of asking, in words."""
    return [*(f"{count} examples" for count in asking.shots if count not in kept.shots),
            *(f"phrasing {form}" for form in asking.phrasings if form not in kept.phrasings)]  # fmt: skip

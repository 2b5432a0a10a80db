"""How answers are made: every method that `fusionlab evaluate` knows, as one plain table.

A method is written as a name of `METHODS`, as `proxy-<a>` for any fixed weight a, or as either of them with fields
changed: `dynamic:scale=1.2`, `merged-dynamic:lambda=0.5`, `evidence:budget=3:direction=forward`. Proxy tuning is
arXiv 2401.08565, task arithmetic arXiv 2212.04089. This module knows names and fields; it runs nothing.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from fusionlab.constraint import KLConstraint
from fusionlab.errors import ConstraintError, FusionError, UnknownNameError

NO_EXPERT, OWN_EXPERT, ALL_EXPERTS, MERGED_EXPERT = "none", "own", "all", "merged"
EXPERT_CHOICES = (OWN_EXPERT, ALL_EXPERTS, MERGED_EXPERT)


@dataclass(frozen=True)
class Method:
    """A row of the table: one model alone, or the large model with a solver.

    solver: a key of SOLVERS; None: the chosen expert writes alone, or `member` where there is none.
    experts: "none"; "own": the task's expert; "all": every one that is loaded; "merged": one expert made of all by
    task arithmetic, small + merge_weight * sum_t (expert_t - small).
    """

    label: str
    solver: str | None = None
    member: str = "large"
    experts: str = NO_EXPERT
    constraint: KLConstraint = KLConstraint()
    merge_weight: float = 0.3

    def describe(self) -> dict[str, Any]:
        """What decides the answers, JSON-able; the label does not."""
        fields = asdict(self) | {"constraint": self.constraint.to_dict()}
        del fields["label"]
        return fields


METHODS: dict[str, Method] = {
    "large": Method("large alone"),
    "small": Method("small alone", member="small"),
    "expert": Method("expert alone", experts=OWN_EXPERT),
    "proxy-0.5": Method("proxy tuning, a = 0.5", "static", experts=OWN_EXPERT, constraint=KLConstraint(scale=0.5)),
    "proxy-1": Method("proxy tuning, a = 1", "static", experts=OWN_EXPERT),
    "proxy-1.5": Method("proxy tuning, a = 1.5", "static", experts=OWN_EXPERT, constraint=KLConstraint(scale=1.5)),
    "dynamic": Method("dynamic, own expert (exact)", "exact", experts=OWN_EXPERT),
    "dynamic-grid": Method("dynamic, own expert (paper's grid)", "grid", experts=OWN_EXPERT),
    "predicted": Method("dynamic, own expert (predicted)", "predicted", experts=OWN_EXPERT),
    "paper-multi": Method("dynamic, all experts (paper's search)", "grid", experts=ALL_EXPERTS),
    "joint": Method("dynamic, all experts (joint)", "joint", experts=ALL_EXPERTS),
    "average": Method("all experts, mean change", "average", experts=ALL_EXPERTS),
    "evidence": Method("dynamic, all experts (evidence)", "evidence", experts=ALL_EXPERTS),
    "merged": Method("task arithmetic alone", experts=MERGED_EXPERT),
    "merged-static": Method("task arithmetic, fused with a = 1", "static", experts=MERGED_EXPERT),
    "merged-dynamic": Method("task arithmetic, fused (exact)", "exact", experts=MERGED_EXPERT),
}
LARGE, EXPERT, PROXY = "large", "expert", "proxy-1"  # what every method is compared with

_CONSTRAINT_FIELDS: dict[str, Callable[[str], Any]] = {
    "scale": float, "alpha_max": float, "budget": float, "direction": str,
}  # fmt: skip
_FIELDS = (*_CONSTRAINT_FIELDS, "lambda", "experts")


def find_method(name: str) -> Method:
    """The method that a name stands for.

    >>> find_method("proxy-0.75").constraint.scale
    0.75
    >>> find_method("dynamic:scale=1.2").label
    'dynamic, own expert (exact), scale = 1.2'

    Raises UnknownNameError with the known names or fields, ConstraintError for a field out of range.
    """
    base, *changes = name.split(":")
    weight = re.fullmatch(r"proxy-(\d+(?:\.\d+)?)", base)
    if base in METHODS:
        method = METHODS[base]
    elif weight is not None:
        method = replace(METHODS["proxy-1"], label=f"proxy tuning, a = {float(weight[1]):g}",
                         constraint=KLConstraint(scale=float(weight[1]), alpha_max=max(2.0, float(weight[1]))))  # fmt: skip
    else:
        near = difflib.get_close_matches(base, METHODS, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise UnknownNameError(f"unknown method {base!r}", remedy=f"{hint}known: {', '.join(METHODS)}, proxy-<a>")
    for change in changes:
        method = change_field(method, change, name=name)
    return method


def change_field(method: Method, change: str, *, name: str) -> Method:
    """`method` with one "field=value" applied. Raises UnknownNameError, ConstraintError."""
    field, found, text = change.partition("=")
    if not found or field not in _FIELDS:
        raise UnknownNameError(f"method {name!r} changes {change!r}", remedy=f"write field=value, field one of {_FIELDS}")
    label = f"{method.label}, {field} = {text}"
    if field == "experts":
        if text not in EXPERT_CHOICES:
            raise UnknownNameError(f"method {name!r} names experts {text!r}", remedy=f"known: {', '.join(EXPERT_CHOICES)}")
        return replace(method, label=label, experts=text)
    try:
        value = _CONSTRAINT_FIELDS.get(field, float)(text)
    except ValueError:
        raise ConstraintError(f"method {name!r}: {field} is {text!r}", remedy="pass a number") from None
    if field == "lambda":
        if not math.isfinite(value):
            raise ConstraintError(f"method {name!r}: lambda is {text}", remedy="pass a finite number")
        return replace(method, label=label, merge_weight=value)
    return replace(method, label=label, constraint=replace(method.constraint, **{field: value}))


def choose_methods(names: Sequence[str]) -> list[str]:
    """The names, each once and checked; ["all"] is every method of the table that can run here.

    Raises UnknownNameError for a name that is not known, or whose solver is not; MissingFileError for a solver whose
    data is not there.
    """
    faults = {solver: find_fault(solver) for solver in {method.solver for method in METHODS.values()}}
    runnable = [name for name, method in METHODS.items() if faults[method.solver] is None]
    if list(names) == ["all"]:
        return runnable
    for name in names:
        fault = faults[find_method(name).solver]
        if isinstance(fault, UnknownNameError):
            raise UnknownNameError(f"method {name!r}: {fault.message}", remedy=f"known: {', '.join(runnable)}")
        if fault is not None:
            raise fault
    return list(dict.fromkeys(names))


def find_fault(solver: str | None) -> FusionError | None:
    """Why a solver cannot run here, tried on one token of two, or None."""
    import torch

    from fusionlab.solvers import solve

    if solver is None:
        return None
    even = torch.full((1, 2), 0.5).log()
    try:
        solve(even, even, even[None], method=solver)
    except FusionError as error:
        return error
    return None

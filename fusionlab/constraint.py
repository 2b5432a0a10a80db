"""What the user asks of the solve: how far to move, in which sense, and never further than where.

Knows nothing of tensors or solvers: a `KLConstraint` is a validated, frozen value that travels
through JSON.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from numbers import Integral, Real
from typing import Any

from fusionlab.errors import ConstraintError

DIRECTIONS = ("both", "forward", "reverse")

Force = Mapping[str | int, float | Mapping[str, float]]


@dataclass(frozen=True)
class KLConstraint:
    """How far each token may move from the large model, in the words of the objective J.

    >>> KLConstraint(scale=1.2, budget=3).to_dict()["scale"]
    1.2

    scale: factor kappa on both targets; 1 is the paper, 0 leaves the large model untouched. The fixed-weight methods
        `static` and `average` have no targets and read it as the weight itself.
    direction: which terms of J count: "both", "forward" (KL(P~||P) against KL(R||Q)) or "reverse".
    alpha_max: largest weight that a method may choose (2, as in the paper).
    budget: nats; no token moves further than KL(P~||P) = budget. None: no such bound.
    force: what-if weights, which override everything else, alpha_max and budget included.
        {"math": 0.5} fixes one expert at every token; {3: 0.0} fixes all experts at generated token 3 (0-based);
        {3: {"math": 1.0}} fixes one expert there. At a token named by number, that entry wins.

    Raises ConstraintError for a value of the wrong type or out of range.
    """

    scale: float = 1.0
    direction: str = "both"
    alpha_max: float = 2.0
    budget: float | None = None
    force: Force | None = field(default=None, hash=False)

    def __post_init__(self) -> None:
        set_field = object.__setattr__
        set_field(self, "scale", _finite_number("scale", self.scale))
        set_field(self, "alpha_max", _finite_number("alpha_max", self.alpha_max))
        if self.alpha_max == 0:
            raise ConstraintError("KLConstraint.alpha_max is 0", remedy="pass a number > 0, or scale=0 for no fusion")
        if self.budget is not None:
            set_field(self, "budget", _finite_number("budget", self.budget, or_none=True))
        if self.direction not in DIRECTIONS:
            raise ConstraintError(
                f"KLConstraint.direction is {self.direction!r}", remedy=f"pass one of {', '.join(DIRECTIONS)}"
            )
        if self.force is not None:
            set_field(self, "force", _checked_force(self.force))

    def to_dict(self) -> dict[str, Any]:
        """The constraint as JSON-able values; `from_dict` gives an equal constraint back."""
        force: dict[str, Any] | None = None
        if self.force is not None:  # JSON has no integer keys, and an expert may be called "3": two tables
            force = {
                "experts": {key: value for key, value in self.force.items() if isinstance(key, str)},
                "tokens": {str(key): value for key, value in self.force.items() if not isinstance(key, str)},
            }
        return {
            "scale": self.scale,
            "direction": self.direction,
            "alpha_max": self.alpha_max,
            "budget": self.budget,
            "force": force,
        }

    def forced_before(self, index: int) -> KLConstraint:
        """The constraint without what it forces at token `index` and later ones; experts that are forced everywhere stay.

        >>> KLConstraint(force={"math": 0.5, 1: 1.0, 4: 0.0}).forced_before(4).force
        {'math': 0.5, 1: 1.0}
        """
        kept = {key: value for key, value in (self.force or {}).items() if isinstance(key, str) or key < index}
        return replace(self, force=kept or None)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> KLConstraint:
        """The constraint that `to_dict` wrote; ConstraintError names an unknown field."""
        known = ("scale", "direction", "alpha_max", "budget", "force")
        if unknown := sorted(set(values) - set(known)):
            raise ConstraintError(f"unknown constraint field {unknown[0]!r}", remedy=f"known: {', '.join(known)}")
        fields = dict(values)
        if fields.get("force") is not None:
            tables = fields["force"]
            if not isinstance(tables, Mapping) or set(tables) - {"experts", "tokens"}:
                raise ConstraintError(f"a stored force is {tables!r}", remedy='pass {"experts": {...}, "tokens": {...}}')
            try:
                tokens = {int(key): value for key, value in tables.get("tokens", {}).items()}
            except ValueError as error:
                raise ConstraintError(f"a stored force names token {error}", remedy="use token numbers") from error
            fields["force"] = {**tables.get("experts", {}), **tokens}
        return cls(**fields)


def _finite_number(name: str, value: object, *, or_none: bool = False) -> float:
    wanted = "pass a finite number >= 0" + (", or None" if or_none else "")
    if isinstance(value, str):
        raise ConstraintError(f"KLConstraint.{name} is the text {value!r}", remedy=f"{wanted}, without quotes")
    if isinstance(value, bool) or not isinstance(value, Real):
        raise ConstraintError(f"KLConstraint.{name} is {value!r} ({type(value).__name__})", remedy=wanted)
    number = float(value)
    if not math.isfinite(number) or number < 0:
        raise ConstraintError(f"KLConstraint.{name} is {number}", remedy=wanted)
    return number


def _checked_force(force: object) -> dict[str | int, float | dict[str, float]]:
    if not isinstance(force, Mapping):
        raise ConstraintError(
            f"KLConstraint.force is {force!r} ({type(force).__name__})",
            remedy='pass a mapping such as {"math": 0.5} or {3: {"math": 1.0}}',
        )
    checked: dict[str | int, float | dict[str, float]] = {}
    for key, value in force.items():
        if isinstance(key, str):
            checked[key] = _finite_number(f"force[{key!r}]", value)
        elif isinstance(key, Integral) and not isinstance(key, bool) and int(key) >= 0:
            if isinstance(value, Mapping):
                checked[int(key)] = {
                    str(name): _finite_number(f"force[{key}][{name!r}]", weight) for name, weight in value.items()
                }
            else:
                checked[int(key)] = _finite_number(f"force[{key}]", value)
        else:
            raise ConstraintError(
                f"KLConstraint.force has the key {key!r}", remedy="use expert names, or token numbers >= 0"
            )
    return checked

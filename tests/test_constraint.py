"""KLConstraint: what it refuses, and that it survives JSON."""

from __future__ import annotations

import json
import pickle

import pytest

from fusionlab.errors import ConstraintError
from fusionlab.solvers import KLConstraint


@pytest.mark.parametrize(
    ("field", "value", "received"),
    [
        ("scale", -1, "-1"),
        ("scale", float("nan"), "nan"),
        ("scale", float("inf"), "inf"),
        ("scale", "1e-4", "the text '1e-4'"),
        ("scale", True, "True"),
        ("scale", None, "None"),
        ("alpha_max", 0, "is 0"),
        ("alpha_max", -2.0, "-2"),
        ("budget", -0.5, "-0.5"),
        ("budget", "3", "the text '3'"),
        ("direction", "backward", "'backward'"),
        ("direction", ["both"], "both"),
        ("force", 0.5, "0.5"),
        ("force", {1.5: 1.0}, "1.5"),
        ("force", {-1: 1.0}, "-1"),
        ("force", {"math": -1.0}, "-1"),
        ("force", {3: {"math": "1"}}, "the text '1'"),
    ],
)
def test_a_bad_field_is_refused_with_its_name_and_what_was_received(field: str, value: object, received: str) -> None:
    """A slider bound to the wrong type must not become a silent default."""
    with pytest.raises(ConstraintError) as caught:
        KLConstraint(**{field: value})  # type: ignore[arg-type]
    assert field in str(caught.value)
    assert received in str(caught.value)
    assert caught.value.remedy


@pytest.mark.parametrize(
    "constraint",
    [
        KLConstraint(),
        KLConstraint(scale=1.25, direction="reverse", alpha_max=1.5, budget=0.25),
        KLConstraint(force={"math": 0.5, 3: 1.0, 4: {"math": 0.0, "3": 2.0}, "3": 0.25}),
    ],
)
def test_a_constraint_survives_json_and_pickle(constraint: KLConstraint) -> None:
    """Traces store constraints as JSON, whose keys are text: token 3 and an expert called "3" must stay apart."""
    assert KLConstraint.from_dict(json.loads(json.dumps(constraint.to_dict()))) == constraint
    assert pickle.loads(pickle.dumps(constraint)) == constraint


def test_integers_become_floats_so_that_equal_constraints_hash_equally() -> None:
    """Runs are keyed by their constraint."""
    assert hash(KLConstraint(scale=1, budget=2)) == hash(KLConstraint(scale=1.0, budget=2.0))
    assert isinstance(KLConstraint(scale=1).scale, float)


def test_force_is_copied_so_that_later_changes_do_not_reach_the_constraint() -> None:
    """A frozen value must not change because a dictionary did."""
    force: dict[str | int, float] = {"math": 0.5}
    constraint = KLConstraint(force=force)
    force["math"] = 2.0
    assert constraint.force == {"math": 0.5}


def test_an_unknown_stored_field_is_refused_with_the_known_ones() -> None:
    """A trace of a later version must not be read as something else."""
    with pytest.raises(ConstraintError, match=r"'kappa'.*scale, direction"):
        KLConstraint.from_dict({"kappa": 1.0})


@pytest.mark.parametrize("stored", [[1], {"math": 1.0}, {"tokens": {"three": 1.0}}])
def test_a_malformed_stored_force_is_refused(stored: object) -> None:
    """The two tables of `to_dict` are the only stored form."""
    with pytest.raises(ConstraintError, match="force"):
        KLConstraint.from_dict({"force": stored})

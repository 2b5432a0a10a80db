"""The browser's solve against Python's: resolve.js reads tables where solvers.py reads distributions."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from page_node import NodeResolver, open_resolver
from step_traces import record_steps

from fusionlab.constraint import DIRECTIONS, KLConstraint
from fusionlab.kl import kl_at, prepare_step
from fusionlab.solvers import posterior, solve
from fusionlab.trace_payload import trace_payload

CLOSE = 1e-3  # in the weight
METHODS = ("exact", "grid", "static", "average", "evidence")


@pytest.fixture(scope="module")
def resolver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NodeResolver]:
    with open_resolver(tmp_path_factory.mktemp("resolve")) as opened:
        yield opened


@dataclass(frozen=True)
class Steps:
    """Distributions of N steps, and the evidence before each."""

    log_p: torch.Tensor  # (N, V)
    log_q: torch.Tensor
    log_r: torch.Tensor  # (E, N, V)
    evidence: torch.Tensor  # (N, E)


def make_steps(
    seed: int, *, rows: int = 4, experts: int = 2, tokens: int = 60, spread: float = 3.0, change: float = 1.5
) -> Steps:
    """Steps like those of a language: small and large agree in part, experts change some tokens much and most little."""
    rng = np.random.default_rng(seed)
    base = spread * rng.normal(size=(rows, tokens))
    large = base + rng.normal(size=(rows, tokens))
    small = base + 1.5 * rng.normal(size=(rows, tokens))
    push = rng.standard_t(4, size=(experts, rows, tokens)) * change * rng.uniform(0.02, 1, size=(experts, rows, 1))
    evidence = rng.normal(size=(rows, experts)) * rng.choice([0.5, 20.0], size=(rows, 1))

    def logs(scores: np.ndarray) -> torch.Tensor:
        return torch.log_softmax(torch.from_numpy(scores).float(), -1)

    return Steps(logs(large), logs(small), logs(small + push), torch.from_numpy(evidence).float())


def as_dict(constraint: KLConstraint, method: str) -> dict[str, Any]:
    return constraint.to_dict() | {"method": method}


def python_weights(steps: Steps, constraint: KLConstraint, method: str) -> Any:
    return solve(
        steps.log_p, steps.log_q, steps.log_r, method=method, constraint=constraint, evidence=steps.evidence,
        experts="abcdefgh"[: len(steps.log_r)], steps=range(len(steps.log_p)),
    )  # fmt: skip


def is_as_low(steps: Steps, row: int, ours: np.ndarray, theirs: np.ndarray, constraint: KLConstraint, method: str) -> bool:
    """Whether weights that differ are equally low ends of the search: J is flat there, or has two minima alike."""
    step = prepare_step(steps.log_p[[row]], steps.log_q[[row]], steps.log_r[:, [row]])
    terms = np.array([constraint.direction != "reverse", constraint.direction != "forward"])

    def objective(alpha: np.ndarray, aims: np.ndarray) -> float:
        reached = np.array(kl_at(step, alpha[None].astype(float)))[:, 0]
        return float((terms * (reached - constraint.scale * aims) ** 2).sum())

    targets = np.stack([step.target_forward[:, 0], step.target_reverse[:, 0]])  # (2, E)
    pairs = [(ours, theirs, targets.mean(-1))]
    if method == "evidence":  # each expert by itself, for its own targets
        share = np.asarray(posterior(steps.evidence))[row]
        pairs = [(ours * unit / share, theirs * unit / share, targets[:, e])
                 for e, unit in enumerate(np.eye(len(ours))) if share[e] >= 1e-6]  # fmt: skip
    return all(
        abs(mine - its).max() <= CLOSE
        or objective(mine, aims)
        <= 1.001 * objective(its, aims) + 1e-7 * (terms * (constraint.scale * aims) ** 2).sum() + 1e-13
        for mine, its, aims in pairs
    )


def is_cut_alike(steps: Steps, row: int, whole: np.ndarray, cut: np.ndarray, budget: float) -> bool:
    """Whether `cut` is `whole`, shortened to where KL(P~||P) meets the budget."""
    step = prepare_step(steps.log_p[[row]], steps.log_q[[row]], steps.log_r[:, [row]])
    low, high = 0.0, 1.0
    for _ in range(40):
        middle = (low + high) / 2
        if kl_at(step, middle * whole[None].astype(float))[0][0] <= budget:
            low = middle
        else:
            high = middle
    return bool(abs(cut - high * whole).max() <= CLOSE)


def compare(resolver: NodeResolver, steps: Steps, cases: list[tuple[KLConstraint, str]]) -> tuple[float, int, int]:
    """Greatest difference of weights, ends that differ and are as low, and rows compared. Asserts the rest is close."""
    payload = trace_payload(record_steps(steps.log_p, steps.log_q, steps.log_r, steps.evidence))
    unbound = [(dataclasses.replace(constraint, budget=None), method) for constraint, method in cases]
    solved = resolver.solve(payload, [as_dict(*case) for case in [*cases, *unbound]])
    greatest, ties, count = 0.0, 0, 0
    shape = steps.evidence.shape
    for (constraint, method), found, free in zip(cases, solved, solved[len(cases) :], strict=False):
        theirs = np.asarray(python_weights(steps, constraint, method).alpha)
        ours = np.array(found["alpha"]).reshape(shape)
        for row, difference in enumerate(abs(ours - theirs).max(-1)):
            count += 1
            if difference <= CLOSE:
                greatest = max(greatest, float(difference))
                continue
            ties += 1
            case = f"{constraint}, {method}, row {row}: {ours[row]} here, {theirs[row]} in Python"
            whole = np.array(free["alpha"]).reshape(shape)[row]
            if constraint.budget is not None:
                assert is_cut_alike(steps, row, whole, ours[row], constraint.budget), case
            apart = np.asarray(python_weights(steps, dataclasses.replace(constraint, budget=None), method).alpha)[row]
            assert is_as_low(steps, row, whole, apart, constraint, method), case
    return greatest, ties, count


constraints = st.builds(
    KLConstraint,
    scale=st.floats(0, 2),
    direction=st.sampled_from(DIRECTIONS),
    alpha_max=st.floats(0.1, 2) | st.just(2.0),
    budget=st.none() | st.floats(0, 3) | st.floats(0, 0.05),
)


@given(
    seed=st.integers(0, 2**32 - 1),
    experts=st.integers(1, 4),
    spread=st.sampled_from([0.5, 3.0, 6.0]),
    change=st.sampled_from([0.3, 1.5, 3.0]),
    cases=st.lists(st.tuples(constraints, st.sampled_from(METHODS)), min_size=1, max_size=4),
)
def test_weights_agree_with_python_for_any_constraint(
    resolver: NodeResolver, seed: int, experts: int, spread: float, change: float, cases: list[tuple[KLConstraint, str]]
) -> None:
    """A slider that shows other weights than the solver would choose teaches wrong things."""
    compare(resolver, make_steps(seed, experts=experts, spread=spread, change=change), cases)

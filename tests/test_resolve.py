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
from scipy.optimize import minimize_scalar
from step_traces import record_steps

from fusionlab.constraint import DIRECTIONS, KLConstraint
from fusionlab.errors import TraceError
from fusionlab.kl import fuse, kl_at, prepare_step
from fusionlab.solvers import posterior, solve
from fusionlab.trace import TABLE_ARRAYS
from fusionlab.trace_payload import trace_payload

CLOSE = 1e-3  # in the weight
GREATEST_PUSH = 20.0  # nats; beyond, a likelihood grows e^2 times and more from one weight of the tables to the next
KL_NOISE = 1e-6  # nats; what rounding does to a divergence of single-precision distributions
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
    push = push.clip(-GREATEST_PUSH, GREATEST_PUSH)
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
    """Whether weights that differ are equally low ends of the search: J is flat there, or has two minima alike.

    J of ours is the lowest within CLOSE of it: where J reaches 0, the tables' error in the weight is all that remains.
    """
    step = prepare_step(steps.log_p[[row]], steps.log_q[[row]], steps.log_r[:, [row]])
    terms = np.array([constraint.direction != "reverse", constraint.direction != "forward"])

    def objective(alpha: np.ndarray, aims: np.ndarray) -> float:
        reached = np.array(kl_at(step, alpha[None].astype(float)))[:, 0]
        return float((terms * (reached - constraint.scale * aims) ** 2).sum())

    def lowest_near(alpha: np.ndarray, aims: np.ndarray) -> float:
        moves = (alpha > 0).astype(float)
        found = minimize_scalar(
            lambda shift: objective(alpha + shift * moves, aims), bounds=(-CLOSE, CLOSE), options={"xatol": 1e-9}
        )
        return min(float(found.fun), objective(alpha, aims))

    targets = np.stack([step.target_forward[:, 0], step.target_reverse[:, 0]])  # (2, E)
    pairs = [(ours, theirs, targets.mean(-1))]
    if method == "evidence":  # each expert by itself, for its own targets
        share = np.asarray(posterior(steps.evidence))[row]
        pairs = [(ours * unit / share[e], theirs * unit / share[e], targets[:, e])
                 for e, unit in enumerate(np.eye(len(ours))) if share[e] >= 1e-6]  # fmt: skip
    return all(
        abs(mine - its).max() <= CLOSE
        or lowest_near(mine, aims)
        <= 1.001 * objective(its, aims) + 1e-7 * (terms * (constraint.scale * aims) ** 2).sum() + 1e-13
        for mine, its, aims in pairs
    )


def is_cut_alike(steps: Steps, row: int, whole: np.ndarray, cut: np.ndarray, budget: float) -> bool:
    """Whether `cut` is `whole`, shortened to where KL(P~||P) meets the budget as far as single precision can tell."""
    step = prepare_step(steps.log_p[[row]], steps.log_q[[row]], steps.log_r[:, [row]])
    length = float(cut @ whole / (whole @ whole))
    if abs(cut - length * whole).max() <= CLOSE and abs(kl_at(step, cut[None].astype(float))[0][0] - budget) <= KL_NOISE:
        return True
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


def test_a_budget_too_small_to_tell_from_none_moves_nothing_that_could_be_told(resolver: NodeResolver) -> None:
    """Below a millionth of a nat rounding decides how far weights are cut, here and there."""
    steps = make_steps(0, experts=1, spread=0.5, change=0.3)
    for budget in (0.0, 1e-132, 1e-9, 1e-7):
        compare(resolver, steps, [(KLConstraint(budget=budget), "exact")])


@given(seed=st.integers(0, 2**32 - 1), experts=st.integers(1, 3), scale=st.floats(0, 2))
def test_likeliest_tokens_and_divergences_are_those_of_the_fused_distribution(
    resolver: NodeResolver, seed: int, experts: int, scale: float
) -> None:
    """What would change is told from candidates; here against all tokens, more than are kept as candidates."""
    steps = make_steps(seed, experts=experts, tokens=300)
    trace = record_steps(steps.log_p, steps.log_q, steps.log_r, steps.evidence, method="exact")
    constraint = KLConstraint(scale=scale)
    (found,) = resolver.solve(trace_payload(trace), [as_dict(constraint, "exact")])
    alpha = torch.tensor(found["alpha"]).reshape(len(steps.log_p), -1).float()
    log_fused = fuse(steps.log_p, steps.log_q, steps.log_r, alpha)
    for row, choice in enumerate(found["choice"]):
        likeliest = log_fused[row].topk(4)
        if row not in found["uncertain"] and float(likeliest.values[0] - likeliest.values[1]) > 1e-5:
            assert choice == int(likeliest.indices[0])
        for token, logprob in found["top"][row][:1]:
            assert logprob == pytest.approx(float(log_fused[row, token]), abs=2e-3)
        step = prepare_step(steps.log_p[[row]], steps.log_q[[row]], steps.log_r[:, [row]])
        forward, reverse = (float(kl[0]) for kl in kl_at(step, np.asarray(alpha[[row]].double())))
        assert found["forward"][row] == pytest.approx(forward, rel=2e-3, abs=1e-4)
        assert found["reverse"][row] == pytest.approx(reverse, rel=2e-3, abs=1e-4)


def test_the_recorded_constraint_gives_the_recorded_trace_back(resolver: NodeResolver) -> None:
    """Weights, choices, flips and who pushed: the views switch between both, and may not jump."""
    steps = make_steps(5, rows=24, experts=3, tokens=200)
    for method in METHODS:
        trace = record_steps(steps.log_p, steps.log_q, steps.log_r, steps.evidence, method=method)
        (found,) = resolver.solve(trace_payload(trace), [trace.constraint | {"method": method}])
        np.testing.assert_allclose(found["alpha"], trace.alpha.ravel(), atol=CLOSE)
        assert found["choice"] == trace.topk_ids_fused[:, 0].tolist()
        assert found["flippedBy"] == trace.flipped_by.tolist()
        assert found["changed"] == []


@pytest.mark.parametrize("method", ["exact", "evidence"])
def test_forced_weights_override_everything_as_in_python(resolver: NodeResolver, method: str) -> None:
    """What-ifs: an expert at every token, all experts at one token, one expert at one token."""
    steps = make_steps(1, experts=2)
    trace = record_steps(steps.log_p, steps.log_q, steps.log_r, steps.evidence)
    forces: list[Any] = [{"a": 0.5}, {2: 0.0}, {1: {"b": 1.25}}, {"a": 0.3, 1: {"a": 1.0}, 3: 2.0}]
    for force in forces:
        constraint = KLConstraint(budget=0.1, force=force)
        (found,) = resolver.solve(trace_payload(trace), [as_dict(constraint, method)])
        expected = np.asarray(python_weights(steps, constraint, method).alpha).ravel()
        np.testing.assert_allclose(found["alpha"], expected, atol=CLOSE)


def test_joint_and_predicted_are_solved_as_their_nearest_and_the_payload_says_so(resolver: NodeResolver) -> None:
    """They need more than tables; a silent stand-in would be a lie."""
    steps = make_steps(2, experts=2)
    for method, stand_in in (("joint", "exact"), ("predicted", "evidence")):
        trace = record_steps(steps.log_p, steps.log_q, steps.log_r, steps.evidence, method=method)
        payload = trace_payload(trace)
        assert method in payload["resolve"]["note"] and "shown as" in payload["resolve"]["note"]
        assert method not in payload["resolve"]["methods"]
        one, other = resolver.solve(payload, [KLConstraint().to_dict() | {"method": name} for name in (method, stand_in)])
        assert one["alpha"] == other["alpha"]


def test_a_method_that_reads_what_the_trace_has_not_is_shown_as_exact(resolver: NodeResolver) -> None:
    """Without evidence every posterior is even: weights that the kernel would never choose."""
    steps = make_steps(4, experts=2)
    trace = record_steps(steps.log_p, steps.log_q, steps.log_r, torch.zeros_like(steps.evidence), method="exact")
    payload = trace_payload(trace)
    exact, *others = resolver.solve(payload, [as_dict(KLConstraint(), name) for name in ("exact", "evidence", "predicted")])
    assert [other["alpha"] for other in others] == [exact["alpha"]] * 2


def test_a_trace_of_version_1_is_solved_from_its_two_tables(resolver: NodeResolver) -> None:
    """Without A'' and candidates: weights within a hundredth, and what would change is told from the top-k lists."""
    steps = make_steps(3, rows=12, experts=2, tokens=120)
    whole = record_steps(steps.log_p, steps.log_q, steps.log_r, steps.evidence)
    without: dict[str, Any] = dict.fromkeys(TABLE_ARRAYS)
    trace = dataclasses.replace(whole, **without)
    payload = trace_payload(trace)
    assert "version 1" in payload["resolve"]["note"]
    constraint = KLConstraint(scale=1.3)
    (found,) = resolver.solve(payload, [as_dict(constraint, "evidence")])
    expected = python_weights(steps, constraint, "evidence")
    np.testing.assert_allclose(found["alpha"], np.asarray(expected.alpha).ravel(), atol=0.01)
    log_fused = fuse(steps.log_p, steps.log_q, steps.log_r, expected.alpha)
    told = [row for row in range(12) if row not in found["uncertain"]]
    assert told, "every token is uncertain"
    assert [found["choice"][row] for row in told] == [int(log_fused[row].argmax()) for row in told]


def test_a_growing_trace_equals_the_whole_one(resolver: NodeResolver) -> None:
    """The explorer sends tokens as they are written; vocabularies and atoms are renumbered on the way."""
    steps = make_steps(4, rows=9, experts=2)
    trace = record_steps(steps.log_p, steps.log_q, steps.log_r, steps.evidence)
    parts = [record_steps(steps.log_p[:n], steps.log_q[:n], steps.log_r[:, :n], steps.evidence[:n]) for n in (0, 2, 3, 9)]
    first, *more = [trace_payload(part, start=sent) for part, sent in zip(parts, (0, 0, 2, 3), strict=True)]
    cases = [as_dict(KLConstraint(scale=scale, budget=0.2), "evidence") for scale in (0.5, 1.7)]
    assert resolver.solve(first, cases, more=more) == resolver.solve(trace_payload(trace), cases)


def test_a_payload_starts_within_its_trace() -> None:
    """A start beyond the end would be an empty update that looks like success."""
    steps = make_steps(0, rows=2)
    trace = record_steps(steps.log_p, steps.log_q, steps.log_r, steps.evidence)
    assert trace_payload(trace, start=2)["tokens"] == 0
    with pytest.raises(TraceError, match="start is 3 of a trace of 2 tokens"):
        trace_payload(trace, start=3)


@pytest.mark.slow
def test_weights_agree_on_the_embedded_team(resolver: NodeResolver) -> None:
    """Real distributions of 49,152 tokens, whose tails no random vocabulary has."""
    from fusionlab.decode import TeamReader, fuse_one_token
    from fusionlab.team import Team

    team = Team.from_pretrained("embedded", experts=["math", "trivia"])
    rows = []
    with torch.inference_mode():
        for prompt in (
            "Question: What is the capital of Peru?\nAnswer:",
            "Question: Tom has 12 pens at 3 dollars.\nAnswer:",
        ):
            reader = TeamReader(team, ("math", "trivia"), track_evidence=True)
            latest = reader.read_prompts({seat[0]: team.encode([prompt], seat[0]) for seat in reader.seats})
            for step in range(8):
                assert reader.evidence is not None
                fused = fuse_one_token(latest, method="evidence", constraint=KLConstraint(), experts=("math", "trivia"),
                                       evidence=reader.evidence, step=step)  # fmt: skip
                rows.append((latest, reader.evidence.clone()))
                latest = reader.read_tokens(fused.log_fused.argmax(-1))
    found = [(d.log_p, d.log_q, d.log_r, evidence) for d, evidence in rows if d.log_q is not None and d.log_r is not None]
    log_p, log_q, log_r, evidence = (list(parts) for parts in zip(*found, strict=True))
    steps = Steps(torch.cat(log_p), torch.cat(log_q), torch.cat(log_r, dim=1), torch.cat(evidence).float())
    cases = [
        (KLConstraint(scale=scale, direction=direction, alpha_max=top, budget=budget), method)
        for method in METHODS
        for scale, direction, top, budget in (
            (1.0, "both", 2.0, None),
            (0.4, "forward", 2.0, 0.3),
            (1.5, "forward", 2.0, None),  # beyond what a distribution on one token is away
            (1.7, "reverse", 1.3, 1.0),
        )
    ]
    greatest, ties, count = compare(resolver, steps, cases)
    print(f"greatest difference {greatest:.1e} of {count} weights, {ties} ends as low elsewhere")
    assert ties <= count // 100

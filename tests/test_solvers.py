"""Every method against the paper's objective, calculated literally in tests/reference.py."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import reference
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

from fusionlab.errors import ConstraintError, DistributionError, UnknownNameError
from fusionlab.predictor import FEATURES, Predictor
from fusionlab.solvers import SOLVERS, KLConstraint, Solution, fuse, posterior, solve

FEW = settings(max_examples=25, deadline=None)
MORE = settings(max_examples=60, deadline=None)
seeds = st.integers(0, 2**32 - 1)
kinds = st.sampled_from(reference.KINDS)
masks = st.sampled_from(reference.MASKS)
scales = st.sampled_from([0.3, 1.0, 1.5])
directions = st.sampled_from(["both", "forward", "reverse"])
methods = st.sampled_from(list(SOLVERS))
FINE = np.arange(2001) / 1000

Tensors = tuple[Tensor, Tensor, Tensor]


@pytest.fixture(autouse=True, scope="module")
def any_predictor() -> Iterator[None]:
    """What every method owes, `predicted` owes with any network at all; a good one is tested in test_predictor.py."""
    rng = np.random.default_rng(0)
    layers = (rng.normal(size=(8, len(FEATURES))), rng.normal(size=8)), (rng.normal(size=(1, 8)), rng.normal(size=1))
    predictor = Predictor(np.zeros(len(FEATURES)), np.full(len(FEATURES), 2.0), layers)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fusionlab.solvers.load_predictor", lambda: predictor)
        yield


def make(seed: int, dtype: torch.dtype = torch.float64, **options: int | str) -> Tensors:
    return tuple(torch.from_numpy(values).to(dtype) for values in reference.make_rows(seed, **options))  # type: ignore[arg-type,return-value]


def row_arrays(tensors: Tensors, row: int = 0) -> tuple[reference.Array, reference.Array, reference.Array]:
    p, q, r = (values.double().numpy() for values in tensors)
    return p[row], q[row], r[:, row]


def objective(tensors: Tensors, solution: Solution, *, scale: float = 1.0, direction: str = "both") -> float:
    alpha = solution.alpha[0].double().numpy()
    return reference.objective(*row_arrays(tensors), alpha, scale=scale, direction=direction)


def slack(tensors: Tensors, scale: float, row: int = 0) -> float:
    """1e-7 (f^2 + g^2): what `exact` may miss beside a thousandth of the best J.

    Plus (1e-15 nats)^2: a float64 sum of probabilities near 1 cannot tell a smaller KL from rounding.
    """
    _, q, r = row_arrays(tensors, row)
    return 1e-30 + 1e-7 * scale**2 * sum(float(np.sum(target**2)) for target in reference.targets(q, r))


def resolvable(tensors: Tensors) -> bool:
    """Divergences of 1e-12 nats and below are rounding errors of float64 sums near 1, here and in the reference."""
    return slack(tensors, 1.0) > 1e-7 * 1e-11**2


# --- exact ---------------------------------------------------------------------------------------------------


@MORE
@given(
    seed=seeds,
    kind=kinds,
    mask=masks,
    tokens=st.integers(2, 300),
    experts=st.sampled_from([1, 1, 2]),
    scale=scales,
    direction=directions,
    dtype=st.sampled_from([torch.float32, torch.float64]),
)
def test_exact_is_never_worse_than_a_search_in_steps_of_a_thousandth(
    seed: int,
    kind: str,
    mask: str,
    tokens: int,
    experts: int,
    scale: float,
    direction: str,
    dtype: torch.dtype,
) -> None:
    """The promise of `exact`: at least as good as the paper's search made a hundred times finer."""
    tensors = make(seed, dtype, tokens=tokens, experts=experts, kind=kind, mask=mask)
    assume(resolvable(tensors))
    solution = solve(*tensors, method="exact", constraint=KLConstraint(scale=scale, direction=direction))
    assert 0 <= float(solution.alpha.min()) <= float(solution.alpha.max()) <= 2
    assert int((solution.alpha > 0).sum()) <= 1
    *_, best, _ = reference.search(*row_arrays(tensors), FINE, scale=scale, direction=direction)
    found = objective(tensors, solution, scale=scale, direction=direction)
    assert found <= best * (1 + 1e-3) + slack(tensors, scale)


@pytest.mark.parametrize(
    ("tokens", "kind", "mask"),
    [
        (32_000, "random", "none"),
        (49_152, "heavy tails", "everywhere"),
        (150_000, "nearly one-hot", "none"),
        (150_000, "random", "large"),
    ],
)
def test_exact_holds_its_promise_on_vocabularies_of_real_size(tokens: int, kind: str, mask: str) -> None:
    """Rounding grows with the number of terms; the search is coarse first, then fine around its three best."""
    tensors = make(7, torch.float32, tokens=tokens, kind=kind, mask=mask)
    arrays = row_arrays(tensors)
    coarse = np.arange(0, 2001, 40) / 1000
    *_, table = reference.search(*arrays, coarse)
    around = {k for best in table[0].argsort()[:2] for k in range(40 * best - 30, 40 * best + 31, 2) if 0 <= k <= 2000}
    *_, best, _ = reference.search(*arrays, np.array(sorted(around)) / 1000)
    assert objective(tensors, solve(*tensors)) <= best * (1 + 1e-3) + slack(tensors, 1.0)


def test_exact_finds_the_weight_that_reproduces_the_expert_to_1e_4() -> None:
    """Where small equals large, weight 1 makes the fused distribution the expert's own: there alone J is 0."""
    for seed in range(20):
        p, _, r = make(seed, torch.float32, tokens=200)
        solution = solve(p, p, r)
        assert float(solution.alpha) == pytest.approx(1.0, abs=1e-4)
        np.testing.assert_allclose(fuse(p, p, r, solution.alpha), r[0], rtol=1e-3, atol=2e-3)


def test_exact_places_the_minimum_to_1e_4() -> None:
    """J rises on both sides of the weight within that distance, also where the minimum is not 0."""
    inner = 0
    for seed in range(40):
        tensors = make(seed, tokens=150)
        alpha = float(solve(*tensors).alpha)
        if 0 < alpha < 2:
            inner += 1
            sides = [reference.objective(*row_arrays(tensors), np.array([alpha + side])) for side in (-1e-4, 1e-4)]
            assert objective(tensors, solve(*tensors)) < min(sides)
    assert inner > 20


def test_exact_takes_the_lower_of_two_local_minima() -> None:
    """J of this row falls, rises and falls again between the two roots; the first valley is the higher one."""
    tensors = two_valleys()
    *_, table = reference.search(*row_arrays(tensors), FINE)
    values = table[0]
    valleys = [k for k in range(1, 2000) if values[k] < values[k - 1] and values[k] < values[k + 1]]
    assert len(valleys) == 2
    best = int(values.argmin())
    assert float(solve(*tensors).alpha) == pytest.approx(FINE[best], abs=2e-3)


def two_valleys() -> Tensors:
    for seed in range(10_000):
        rng = np.random.default_rng(seed)
        scores = rng.normal(size=(3, 4)) * 4
        tensors = tuple(torch.log_softmax(torch.from_numpy(values), -1) for values in scores)
        found = tensors[0][None], tensors[1][None], tensors[2][None, None]
        log_p, log_q, log_r = row_arrays(found)
        delta = log_r[0] - log_q
        coarse = FINE[::10, None]
        fused = np.exp(log_p + coarse * delta)
        log_total, mean = np.log(fused.sum(1)), fused @ delta / fused.sum(1)
        f, g = (values[0] for values in reference.targets(log_q, log_r))
        j = (coarse[:, 0] * mean - log_total - f) ** 2 + (log_total - coarse[:, 0] * (np.exp(log_p) @ delta) - g) ** 2
        inner = (j[1:-1] < j[:-2]) & (j[1:-1] < j[2:])
        if inner.sum() == 2 and abs(np.diff(j[1:-1][inner])[0]) > 0.01 * j.min() > 0:
            return found
    raise AssertionError("no row with two valleys found")


def test_identical_small_and_expert_leave_the_large_model_alone() -> None:
    """Every weight gives the same J = 0; the smallest is taken."""
    p, q, _ = make(3, torch.float32, tokens=300, rows=2)
    for method in ("grid", "exact", "joint", "evidence"):
        assert solve(p, q, torch.stack([q, q]), method=method).alpha.tolist() == [[0.0, 0.0]] * 2


# --- grid ----------------------------------------------------------------------------------------------------


@MORE
@given(
    seed=seeds,
    kind=kinds,
    mask=masks,
    tokens=st.integers(2, 400),
    experts=st.integers(1, 3),
    scale=scales,
    direction=directions,
    alpha_max=st.sampled_from([0.05, 0.35, 2.0, 2.5]),
)
def test_grid_picks_the_weight_of_the_papers_search(
    seed: int, kind: str, mask: str, tokens: int, experts: int, scale: float, direction: str, alpha_max: float
) -> None:
    """Single and multi-expert search as the paper writes them, up to ties that rounding decides."""
    tensors = make(seed, tokens=tokens, experts=experts, kind=kind, mask=mask)
    constraint = KLConstraint(scale=scale, direction=direction, alpha_max=alpha_max)
    solution = solve(*tensors, method="grid", constraint=constraint)
    grid = np.arange(int(alpha_max * 10 + 1e-9) + 1) / 10
    expert, weight, best, _ = reference.search(*row_arrays(tensors), grid, scale=scale, direction=direction)
    expected = np.float32(weight) * np.eye(experts, dtype=np.float32)[expert]
    if not np.array_equal(solution.alpha[0].numpy(), expected):
        on_grid = np.round(solution.alpha[0].double().numpy(), 6)  # not 0.1 rounded to float32
        chosen = reference.objective(*row_arrays(tensors), on_grid, scale=scale, direction=direction)
        assert chosen == pytest.approx(best, rel=1e-9, abs=1e-9 * slack(tensors, scale))


def test_grid_breaks_ties_by_the_smallest_weight_then_the_first_expert() -> None:
    """Exchangeable experts must not make the choice depend on rounding."""
    p, q, r = make(5, tokens=100)
    alpha = solve(p, q, torch.cat([r, r, r]), method="grid").alpha
    assert alpha[0, 0] > 0
    assert alpha[0, 1:].tolist() == [0.0, 0.0]


# --- joint ---------------------------------------------------------------------------------------------------


@FEW
@given(
    seed=seeds,
    kind=kinds,
    mask=masks,
    tokens=st.integers(2, 200),
    experts=st.integers(1, 3),
    direction=directions,
)
def test_joint_is_never_worse_than_exact(
    seed: int, kind: str, mask: str, tokens: int, experts: int, direction: str
) -> None:
    """It minimises the same objective with more freedom."""
    tensors = make(seed, tokens=tokens, experts=experts, kind=kind, mask=mask)
    constraint = KLConstraint(direction=direction)
    joint, exact = (
        objective(tensors, solve(*tensors, method=method, constraint=constraint), direction=direction)
        for method in ("joint", "exact")
    )
    assert joint <= exact * (1 + 1e-6) + slack(tensors, 1.0)


@pytest.mark.parametrize("seed", range(12))
def test_joint_beats_a_random_search_over_all_weights(seed: int) -> None:
    """Descent could stop early or in a poor valley; 1,000 random points in the box may not find a better one."""
    tensors = make(seed, tokens=60, experts=2 + seed % 2)
    rng = np.random.default_rng(seed)
    points = rng.uniform(0, 2, size=(1000, tensors[2].shape[0])) * rng.random((1000, 1))
    best = min(reference.objective(*row_arrays(tensors), point) for point in points)
    assert objective(tensors, solve(*tensors, method="joint")) <= best * (1 + 1e-3) + 10 * slack(tensors, 1.0)


def test_joint_gives_equal_weights_to_exchangeable_experts() -> None:
    """Two copies of one expert deserve the same weight, half of what one alone gets."""
    p, q, r = make(9, tokens=100)
    alone = float(solve(p, q, r, method="exact").alpha)
    alpha = solve(p, q, torch.cat([r, r]), method="joint").alpha[0]
    assert alpha.tolist() == pytest.approx([alone / 2] * 2, abs=1e-4)


# --- evidence and the fixed weights ----------------------------------------------------------------------------


def test_posterior_weighs_experts_against_no_expert() -> None:
    """exp(e_t) / (1 + sum exp(e_s)), also where the exponentials would overflow."""
    evidence = torch.tensor([[0.0, 0.0], [2.0, -1.0], [5000.0, 0.0], [-torch.inf, -3.0]])
    e = torch.tensor([2.0, -1.0]).exp()
    expected = [
        [1 / 3, 1 / 3],
        (e / (1 + e.sum())).tolist(),
        [1.0, 0.0],
        [0.0, float(np.exp(-3) / (1 + np.exp(-3)))],
    ]
    np.testing.assert_allclose(posterior(evidence).numpy(), expected, rtol=1e-6)


@FEW
@given(seed=seeds, kind=kinds, experts=st.integers(1, 3))
def test_evidence_scales_each_experts_own_exact_weight(seed: int, kind: str, experts: int) -> None:
    """Each expert is solved for its own targets, as if alone; without evidence all count the same."""
    tensors = make(seed, tokens=80, rows=2, experts=experts, kind=kind)
    p, q, r = tensors
    ratios = torch.from_numpy(np.random.default_rng(seed).normal(size=(2, experts)) * 3)
    alone = torch.cat([solve(p, q, r[e : e + 1]).alpha for e in range(experts)], dim=1)
    torch.testing.assert_close(
        solve(*tensors, method="evidence", evidence=ratios).alpha,
        posterior(ratios) * alone,
        rtol=1e-6,
        atol=1e-7,
    )
    torch.testing.assert_close(solve(*tensors, method="evidence").alpha, alone / (experts + 1), rtol=1e-6, atol=1e-7)


def test_static_is_proxy_tuning() -> None:
    """large + (expert - small) in log-probabilities: Liu et al. 2024, written independently here."""
    p, q, r = make(2, torch.float32, tokens=100, rows=3)
    solution = solve(p, q, r, method="static")
    assert solution.alpha.tolist() == [[1.0]] * 3
    torch.testing.assert_close(fuse(p, q, r, solution.alpha), torch.log_softmax(p + r[0] - q, -1))


def test_average_adds_the_mean_of_the_deltas() -> None:
    """Three experts together move the large model as far as one would."""
    p, q, r = make(2, torch.float32, tokens=100, experts=3)
    solution = solve(p, q, r, method="average", constraint=KLConstraint(scale=1.5))
    torch.testing.assert_close(fuse(p, q, r, solution.alpha), torch.log_softmax(p + 1.5 * (r - q).mean(0), -1))


# --- what every method owes ------------------------------------------------------------------------------------


@MORE
@given(
    seed=seeds,
    kind=kinds,
    mask=masks,
    tokens=st.integers(2, 200),
    experts=st.integers(1, 3),
    method=methods,
    dtype=st.sampled_from([torch.float32, torch.float64, torch.bfloat16, torch.float16]),
    alpha_max=st.sampled_from([0.5, 2.0]),
)
def test_a_solution_reports_its_own_divergences_and_targets(
    seed: int,
    kind: str,
    mask: str,
    tokens: int,
    experts: int,
    method: str,
    dtype: torch.dtype,
    alpha_max: float,
) -> None:
    """What the trace stores is true of the weights as returned, whatever the method and the float type."""
    tensors = make(seed, dtype, tokens=tokens, rows=2, experts=experts, kind=kind, mask=mask)
    solution = solve(*tensors, method=method, constraint=KLConstraint(alpha_max=alpha_max))
    for values, width in (
        (solution.alpha, (2, experts)),
        (solution.kl_forward, (2,)),
        (solution.kl_reverse, (2,)),
        (solution.target_forward, (2, experts)),
        (solution.target_reverse, (2, experts)),
    ):
        assert (values.dtype, tuple(values.shape)) == (torch.float32, width)
    assert 0 <= float(solution.alpha.min()) <= float(solution.alpha.max()) <= alpha_max
    assert solution.clamped.dtype == torch.int64
    for row in range(2):
        arrays = row_arrays(tensors, row)
        alpha = solution.alpha[row].double().numpy()
        expected = np.maximum(reference.divergences(*arrays, alpha), 0.0) if alpha.any() else (0.0, 0.0)
        got = float(solution.kl_forward[row]), float(solution.kl_reverse[row])
        assert got == pytest.approx(tuple(expected), rel=1e-6, abs=1e-10)
        f, g = reference.targets(*arrays[1:])
        np.testing.assert_allclose(solution.target_forward[row].numpy(), f, rtol=1e-6, atol=1e-10)
        np.testing.assert_allclose(solution.target_reverse[row].numpy(), g, rtol=1e-6, atol=1e-10)


@FEW
@given(seed=seeds, kind=kinds, mask=masks, method=methods, dtype=st.sampled_from([torch.float32, torch.bfloat16]))
def test_scale_0_returns_exactly_the_large_model(seed: int, kind: str, mask: str, method: str, dtype: torch.dtype) -> None:
    """kappa = 0 is the user's off switch: weights of exactly 0, P bit for bit."""
    tensors = make(seed, dtype, tokens=90, rows=2, experts=2, kind=kind, mask=mask)
    solution = solve(*tensors, method=method, constraint=KLConstraint(scale=0))
    assert not solution.alpha.any()
    assert not solution.kl_forward.any()
    assert not solution.kl_reverse.any()
    assert torch.equal(fuse(*tensors, solution.alpha), tensors[0].float())


@FEW
@given(seed=seeds, kind=st.sampled_from(["random", "nearly equal", "heavy tails"]), method=methods)
def test_permuting_experts_permutes_weights(seed: int, kind: str, method: str) -> None:
    """No method may prefer an expert for its place in the list."""
    p, q, r = make(seed, tokens=100, rows=2, experts=3, kind=kind)
    order = np.random.default_rng(seed).permutation(3)
    ratios = torch.from_numpy(np.random.default_rng(seed).normal(size=(2, 3)))
    straight = solve(p, q, r, method=method, evidence=ratios).alpha
    permuted = solve(p, q, r[order], method=method, evidence=ratios[:, order]).alpha
    torch.testing.assert_close(permuted, straight[:, order], rtol=1e-3, atol=1e-3)


@FEW
@given(
    seed=seeds,
    kind=kinds,
    mask=masks,
    method=methods,
    experts=st.integers(1, 3),
    budget=st.sampled_from([0.0, 1e-6, 0.01, 0.3, 2.0, 50.0]),
)
def test_the_budget_holds_and_is_used_up(seed: int, kind: str, mask: str, method: str, experts: int, budget: float) -> None:
    """A hard trust region: never exceeded by 1e-4 nats, and where it bites the weights are as large as it allows."""
    tensors = make(seed, tokens=90, rows=2, experts=experts, kind=kind, mask=mask)
    free = solve(*tensors, method=method)
    bound = solve(*tensors, method=method, constraint=KLConstraint(budget=budget))
    for row in range(2):
        arrays = row_arrays(tensors, row)
        spent = reference.divergences(*arrays, bound.alpha[row].double().numpy())[0]
        assert spent <= budget + 1e-6
        if float(free.kl_forward[row]) <= budget:
            assert torch.equal(bound.alpha[row], free.alpha[row])
        else:
            ray = float(bound.alpha[row].sum() / free.alpha[row].sum())
            torch.testing.assert_close(bound.alpha[row], free.alpha[row] * ray, rtol=1e-5, atol=1e-9)
            further = reference.divergences(*arrays, free.alpha[row].double().numpy() * min(1.0, ray * 1.001 + 1e-6))[0]
            assert spent >= 0.99 * budget or further > budget


@FEW
@given(
    seed=seeds,
    kind=kinds,
    mask=masks,
    method=methods,
    experts=st.integers(1, 3),
    direction=directions,
    scale=scales,
)
def test_a_batch_is_solved_as_its_rows_are(
    seed: int, kind: str, mask: str, method: str, experts: int, direction: str, scale: float
) -> None:
    """Batched decoding must equal one-by-one decoding, whatever else is in the batch."""
    parts = [
        make(seed, tokens=120, experts=experts, kind=kind, mask=mask),
        make(seed + 1, tokens=120, experts=experts, kind="nearly one-hot"),
        make(seed + 2, tokens=120, rows=2, experts=experts, kind="nearly equal", mask="experts"),
    ]
    p, q, r = (torch.cat(values, dim=axis) for values, axis in zip(zip(*parts, strict=True), (0, 0, 1), strict=True))
    direction = "both" if method == "predicted" else direction  # the only one that it knows
    constraint = KLConstraint(scale=scale, direction=direction, budget=1.0)
    whole = solve(p, q, r, method=method, constraint=constraint)
    for row in range(4):
        part = slice(row, row + 1)
        one = solve(p[part], q[part], r[:, part], method=method, constraint=constraint)
        torch.testing.assert_close(one.alpha[0], whole.alpha[row], rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(one.kl_forward[0], whole.kl_forward[row], rtol=1e-4, atol=1e-6)


def test_inputs_are_left_as_they_were() -> None:
    """Sums are made in place for speed; never in what the caller passed."""
    for mask in ("none", "everywhere"):
        tensors = make(1, torch.float64, tokens=50, experts=2, mask=mask)
        copies = [values.clone() for values in tensors]
        for method in SOLVERS:
            fuse(*tensors, solve(*tensors, method=method, constraint=KLConstraint(budget=0.1)).alpha)
        assert all(torch.equal(values, copy) for values, copy in zip(tensors, copies, strict=True))


def test_a_row_with_one_possible_token_cannot_be_moved() -> None:
    """Constrained decoding often leaves a single token; every distribution over it is the same."""
    p, q, r = make(1, tokens=20, experts=2)
    p = torch.full_like(p, -torch.inf)
    p[0, 4] = 0.0
    for method in SOLVERS:
        solution = solve(p, q, r, method=method)
        assert (float(solution.kl_forward), float(solution.kl_reverse)) == pytest.approx((0.0, 0.0), abs=1e-12)
        assert torch.equal(fuse(p, q, r, solution.alpha).exp(), p.float().exp())


# --- top_k -----------------------------------------------------------------------------------------------------


@FEW
@given(seed=seeds, kind=kinds, method=methods)
def test_top_k_of_the_whole_vocabulary_changes_nothing(seed: int, kind: str, method: str) -> None:
    """Truncation that leaves nothing out is no truncation."""
    tensors = make(seed, tokens=40, rows=2, experts=2, kind=kind)
    assert torch.equal(solve(*tensors, method=method, top_k=40).alpha, solve(*tensors, method=method).alpha)


def test_top_k_looks_for_weights_in_the_truncated_problem_and_reports_the_whole_one() -> None:
    """An honest approximation: the weight is the bucketed problem's, the divergences are those of what gets sampled."""
    tensors = make(3, tokens=400, rows=2)
    solution = solve(*tensors, top_k=20)
    for row in range(2):
        log_p, log_q, log_r = row_arrays(tensors, row)
        kept = np.argsort(-log_p)[:20]
        small = [np.append(v[kept], np.log(np.exp(np.delete(v, kept)).sum())) for v in (log_p, log_q, log_r[0])]
        problem = tuple(torch.from_numpy(values)[None] for values in small)
        expected = solve(problem[0], problem[1], problem[2][None])
        assert float(solution.alpha[row]) == pytest.approx(float(expected.alpha), abs=1e-5)
        whole = reference.divergences(log_p, log_q, log_r, solution.alpha[row].double().numpy())
        assert float(solution.kl_forward[row]) == pytest.approx(whole[0], rel=1e-6)


# --- force -----------------------------------------------------------------------------------------------------


def test_force_overrides_experts_tokens_and_bounds_and_leaves_the_rest_as_solved() -> None:
    """The what-if of the explorer: token 3 without experts, token 5 with one of them at 4, trivia at 0.5 elsewhere."""
    tensors = make(4, tokens=80, rows=3, experts=2)
    plain = solve(*tensors, method="static", constraint=KLConstraint(budget=0.1))
    constraint = KLConstraint(budget=0.1, force={"trivia": 0.5, 3: 0.0, 5: {"math": 4.0}})
    names = {"experts": ["math", "trivia"], "steps": [3, 5, 6]}
    solution = solve(*tensors, method="static", constraint=constraint, **names)  # type: ignore[arg-type]
    assert solution.alpha.tolist() == [[0.0, 0.0], [4.0, 0.5], [pytest.approx(float(plain.alpha[2, 0])), 0.5]]
    expected = reference.divergences(*row_arrays(tensors, 1), np.array([4.0, 0.5]))
    assert float(solution.kl_forward[1]) == pytest.approx(expected[0], rel=1e-6)


def test_force_takes_steps_as_a_tensor_and_default_names() -> None:
    """The decode keeps step numbers in a tensor; experts without names are "0", "1", ..."""
    tensors = make(4, tokens=80, rows=2, experts=2)
    constraint = KLConstraint(force={"1": 0.25, 7: 1.0})
    solution = solve(*tensors, method="static", constraint=constraint, steps=torch.tensor([7, 8]))
    assert solution.alpha.tolist() == [[1.0, 1.0], [1.0, 0.25]]


@pytest.mark.parametrize("force", [{"maths": 1.0}, {2: {"maths": 1.0}}])
def test_an_unknown_forced_expert_is_refused_with_the_known_ones(force: dict) -> None:
    """Even for a token that is not at hand, so that a slip shows at the first token."""
    tensors = make(4, tokens=80, experts=2)
    with pytest.raises(UnknownNameError, match=r"'maths'.*math, trivia"):
        solve(*tensors, constraint=KLConstraint(force=force), experts=["math", "trivia"], steps=[0])


@pytest.mark.parametrize("steps", [None, [1, 2, 3]])
def test_forced_tokens_need_one_step_number_a_row(steps: list[int] | None) -> None:
    """Otherwise a what-if would be dropped without a word."""
    tensors = make(4, tokens=80, rows=2)
    with pytest.raises(ConstraintError, match="pass"):
        solve(*tensors, constraint=KLConstraint(force={3: 0.0}), steps=steps)


# --- bad input -------------------------------------------------------------------------------------------------


def test_an_unknown_method_lists_the_known_ones() -> None:
    """The list is what the user needs next."""
    tensors = make(1, tokens=10)
    with pytest.raises(UnknownNameError) as caught:
        solve(*tensors, method="newton")
    assert all(name in str(caught.value) for name in ("newton", *SOLVERS))


def test_nan_names_the_expert_by_the_name_the_user_gave_it() -> None:
    """ "expert 1" would send the user counting."""
    p, q, r = make(1, tokens=10, experts=2)
    r[1, 0, 3] = torch.nan
    with pytest.raises(DistributionError, match=r"expert 'trivia'.*token 3 in row 0 is nan"):
        solve(p, q, r, experts=["math", "trivia"])


@pytest.mark.parametrize("top_k", [0, -3, 2.5, "50", True])
def test_a_top_k_that_is_no_positive_whole_number_is_refused(top_k: object) -> None:
    """0 would mean everything to some and nothing to others."""
    with pytest.raises(ConstraintError, match="top_k"):
        solve(*make(1, tokens=10), top_k=top_k)  # type: ignore[arg-type]


@pytest.mark.parametrize("names", [["math"], ["math", "math"], ["a", "b", "c"]])
def test_names_that_do_not_match_the_experts_are_refused(names: list[str]) -> None:
    """One name an expert, each once: traces and force rely on it."""
    with pytest.raises(ConstraintError, match="experts"):
        solve(*make(1, tokens=10, experts=2), experts=names)


@pytest.mark.parametrize(
    "evidence",
    [torch.zeros(2), torch.zeros(1, 3), torch.tensor([[0.0, torch.nan]]), torch.tensor([[torch.inf, 0.0]])],
)
def test_evidence_of_another_shape_or_without_a_value_is_refused(evidence: Tensor) -> None:
    """NaN evidence would reach the weights through the posterior."""
    with pytest.raises(DistributionError, match="evidence"):
        solve(*make(1, tokens=10, experts=2), method="evidence", evidence=evidence)

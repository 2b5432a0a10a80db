"""The sums behind both divergences agree with distributions written out in full; bad input is named."""

from __future__ import annotations

import numpy as np
import pytest
import reference
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fusionlab import kl
from fusionlab.errors import DistributionError
from fusionlab.kl import fuse, kl_table

FEW = settings(max_examples=40, deadline=None)
seeds = st.integers(0, 2**32 - 1)
kinds = st.sampled_from(reference.KINDS)
masks = st.sampled_from(reference.MASKS)


def tensors(
    seed: int, dtype: torch.dtype = torch.float64, **options: int | str
) -> tuple[tuple[Tensor, Tensor, Tensor], tuple[reference.Array, reference.Array, reference.Array]]:
    """The same rows as tensors of a dtype, and as the float64 arrays that these hold."""
    made = tuple(torch.from_numpy(values).to(dtype) for values in reference.make_rows(seed, **options))  # type: ignore[arg-type]
    return made, tuple(values.double().numpy() for values in made)  # type: ignore[return-value]


@FEW
@given(seed=seeds, kind=kinds, mask=masks, tokens=st.integers(2, 400), experts=st.integers(1, 3))
def test_divergences_of_any_weights_equal_those_of_the_written_out_distribution(
    seed: int, kind: str, mask: str, tokens: int, experts: int
) -> None:
    """a A' - A and sum(P) A - a (P @ d) are the paper's divergences, to float64 rounding."""
    (p, q, r), (log_p, log_q, log_r) = tensors(seed, tokens=tokens, rows=2, experts=experts, kind=kind, mask=mask)
    alpha = np.random.default_rng(seed).uniform(0, 2, size=(2, experts))
    forward, reverse = kl.kl_at(kl.prepare_step(p, q, r), alpha)
    for row in range(2):
        expected = reference.divergences(log_p[row], log_q[row], log_r[:, row], alpha[row])
        assert (forward[row], reverse[row]) == pytest.approx(expected, rel=1e-9, abs=2e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_divergences_of_1e_8_nats_keep_six_digits(dtype: torch.dtype) -> None:
    """The reason for float64: where small and expert nearly agree, float32 sums would return noise."""
    rng = np.random.default_rng(0)
    scores = rng.normal(size=5000)
    p, q, r = (
        torch.log_softmax(torch.from_numpy(values), -1).to(dtype)[None]
        for values in (scores, scores, scores + 1e-4 * rng.normal(size=5000))
    )
    step = kl.prepare_step(p, q, r[None])
    f, g = reference.targets(q[0].double().numpy(), r.double().numpy())
    assert 1e-9 < f[0] < 1e-7
    assert step.target_forward[0, 0] == pytest.approx(f[0], rel=1e-6)
    assert step.target_reverse[0, 0] == pytest.approx(g[0], rel=1e-6)
    expected = reference.divergences(p[0].double().numpy(), q[0].double().numpy(), r.double().numpy(), np.array([0.7]))
    assert np.ravel(kl.kl_at(step, np.array([[0.7]]))) == pytest.approx(expected, rel=1e-6)


@FEW
@given(seed=seeds, kind=kinds, mask=masks, tokens=st.integers(2, 300))
def test_the_batched_organisation_gives_the_same_sums(seed: int, kind: str, mask: str, tokens: int) -> None:
    """GPUs run other code than CPUs; this is the only place where both can be compared anywhere."""
    (p, q, r), _ = tensors(seed, tokens=tokens, rows=3, experts=2, kind=kind, mask=mask)
    step = kl.prepare_step(p, q, r)
    flat = step.deltas.flatten(0, 1)
    problems, weights = np.array([0, 5, 3, 3]), np.array([0.0, 0.4, 1.0, 2.0])
    one_by_one = kl.cumulants(step.log_p, flat, problems, weights)
    batched = kl._cumulants_batched(step.log_p, flat, problems, weights)
    np.testing.assert_allclose(batched[:, :2], one_by_one[:, :2], rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(batched[:, 2], one_by_one[:, 2], rtol=1e-6, atol=1e-9)


def test_weights_that_overflow_an_exponential_are_still_exact() -> None:
    """log-probabilities of -1,000 are legal float32 values, and exp(2,000) is not a float64."""
    p = torch.tensor([[0.0, -1000.0, -1000.0]])
    q = torch.tensor([[0.0, -1000.0, -500.0]])
    r = torch.tensor([[[-1000.0, 0.0, -1000.0]]])
    forward, reverse = kl.kl_at(kl.prepare_step(p, q, r), np.array([[2.0]]))
    log_p, log_q, log_r = (values.double().numpy() for values in (p[0], q[0], r[:, 0]))
    expected = reference.divergences(log_p, log_q, log_r, np.array([2.0]))
    assert (forward[0], reverse[0]) == pytest.approx(expected, rel=1e-12)
    assert forward[0] > 900


@FEW
@given(seed=seeds, kind=kinds, mask=masks, tokens=st.integers(2, 300), even=st.booleans())
def test_the_table_over_a_grid_equals_single_evaluations(seed: int, kind: str, mask: str, tokens: int, even: bool) -> None:
    """An evenly spaced grid takes a shortcut through products of exponentials."""
    (p, q, r), (log_p, log_q, log_r) = tensors(seed, tokens=tokens, rows=2, experts=2, kind=kind, mask=mask)
    grid = [0.0, 0.25, 0.5, 0.75, 1.0] if even else [0.1, 0.2, 1.7]
    forward, reverse = kl_table(p, q, r, grid)
    assert forward.shape == reverse.shape == (2, 2, len(grid))
    for row, expert, place in np.ndindex(2, 2, len(grid)):
        alpha = grid[place] * np.eye(2)[expert]
        expected = reference.divergences(log_p[row], log_q[row], log_r[:, row], alpha)
        got = float(forward[row, expert, place]), float(reverse[row, expert, place])
        assert got == pytest.approx(expected, rel=2e-7, abs=1e-9)


def test_the_table_does_not_lose_tokens_that_underflow_at_weight_0() -> None:
    """exp(-800) is 0 in float64, and no product brings it back; at weight 2 that token has all the mass."""
    p, q = torch.tensor([[0.0, -800.0]]), torch.tensor([[0.0, -800.0]])
    r = torch.tensor([[[-800.0, 0.0]]])
    forward, _ = kl_table(p, q, r, [0.0, 0.5, 1.0, 1.5, 2.0])
    assert float(forward[0, 0, -1]) == pytest.approx(800.0)


@FEW
@given(seed=seeds, kind=kinds, mask=masks, tokens=st.integers(2, 300), experts=st.integers(1, 3))
def test_fuse_writes_out_the_fused_distribution(seed: int, kind: str, mask: str, tokens: int, experts: int) -> None:
    """fuse is what decoding samples from: normalised, and impossible where P is."""
    (p, q, r), (log_p, log_q, log_r) = tensors(seed, tokens=tokens, rows=2, experts=experts, kind=kind, mask=mask)
    alpha = torch.from_numpy(np.random.default_rng(seed).uniform(0.1, 2, size=(2, experts)))
    result = fuse(p, q, r, alpha)
    assert result.dtype == torch.float32
    for row in range(2):
        expected = reference.fused(log_p[row], log_q[row], log_r[:, row], alpha[row].numpy())
        np.testing.assert_allclose(result[row].numpy(), expected, rtol=1e-6, atol=1e-6)
    assert torch.equal(result == -torch.inf, p == -torch.inf)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_zero_weights_return_the_large_log_probs_untouched(dtype: torch.dtype) -> None:
    """Fusion is the identity, bit for bit, when no expert is trusted; other rows of the batch do not matter."""
    (p, q, r), _ = tensors(1, dtype, tokens=50, rows=2, experts=2, mask="small")
    result = fuse(p, q, r, torch.tensor([[0.0, 0.0], [0.5, 0.0]]))
    assert torch.equal(result[0], p[0].float())
    assert not torch.equal(result[1], p[1].float())


def test_entries_are_clamped_and_counted_only_where_the_large_model_can_go() -> None:
    """The trace reports how often the floor stood in for -inf; tokens masked in P never needed it."""
    inf = torch.inf
    p = torch.tensor([[0.5, 0.5, 0.0], [0.2, 0.3, 0.5]]).log()
    q = torch.tensor([[0.0, 0.5, 0.5], [0.2, 0.8, 0.0]]).log()
    r = torch.tensor([[[0.0, 1.0, 0.0], [0.1, 0.9, 0.0]], [[0.3, 0.3, 0.4], [1.0, 0.0, 0.0]]]).log()
    assert float(p[0, 2]) == -inf
    step = kl.prepare_step(p, q, r)
    assert step.clamped.tolist() == [2, 4]
    assert torch.isfinite(step.deltas).all()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize(
    ("place", "named"), [("p", "large"), ("q", "small"), ("r", "expert 'math'"), ("s", "expert 'trivia'")]
)
def test_a_value_that_is_no_log_probability_is_named_by_model_row_and_token(value: float, place: str, named: str) -> None:
    """One broken model among several, in one row of a batch, must be found from the message alone."""
    (p, q, r), _ = tensors(2, torch.float32, tokens=40, rows=3, experts=2)
    {"p": p, "q": q, "r": r[0], "s": r[1]}[place][1, 7] = value
    with pytest.raises(DistributionError) as caught:
        kl.prepare_step(p, q, r, experts=["math", "trivia"])
    assert named in str(caught.value)
    assert "token 7 in row 1" in str(caught.value)
    assert str(value) in str(caught.value)


def test_logits_instead_of_log_probabilities_are_refused() -> None:
    """Raw logits give plausible weights for the wrong problem."""
    (p, q, r), _ = tensors(3, tokens=40)
    with pytest.raises(DistributionError, match=r"small.*log_softmax"):
        kl.prepare_step(p, q + 30, r)


def test_a_row_without_a_possible_token_is_refused() -> None:
    """A mask that bans everything leaves nothing to normalise."""
    (p, q, r), _ = tensors(3, tokens=40, rows=2)
    p[1] = -torch.inf
    with pytest.raises(DistributionError, match=r"large: every token of row 1"):
        kl.prepare_step(p, q, r)


@pytest.mark.parametrize(
    ("shapes", "said"),
    [
        (((2, 5), (2, 5), (2, 5)), "shapes disagree"),  # no axis of experts
        (((2, 5), (2, 6), (1, 2, 5)), "shapes disagree"),
        (((2, 5), (2, 5), (1, 3, 5)), "shapes disagree"),
        (((5,), (5,), (1, 5)), "shapes disagree"),
        (((2, 5), (2, 5), (0, 2, 5)), "nothing to solve"),
        (((0, 5), (0, 5), (1, 0, 5)), "nothing to solve"),
        (((2, 0), (2, 0), (1, 2, 0)), "nothing to solve"),
    ],
)
def test_shapes_that_disagree_or_are_empty_are_refused_with_all_three(
    shapes: tuple[tuple[int, ...], ...], said: str
) -> None:
    """Broadcasting would otherwise turn a forgotten axis into a wrong answer."""
    with pytest.raises(DistributionError, match=said) as caught:
        kl.prepare_step(*(torch.zeros(shape) for shape in shapes))
    assert all(str(shape) in str(caught.value) for shape in shapes)


def test_whole_numbers_are_refused() -> None:
    """Token ids passed for log-probabilities are a common slip."""
    zeros = torch.zeros(1, 4, dtype=torch.int64)
    with pytest.raises(DistributionError, match=r"log_p has dtype torch.int64"):
        kl.prepare_step(zeros, zeros, zeros[None])


@pytest.mark.parametrize("shape", [(1, 2), (2,), (2, 3)])
def test_fuse_refuses_weights_of_another_shape(shape: tuple[int, ...]) -> None:
    """(1, E) would broadcast one row's weights to all rows."""
    (p, q, r), _ = tensors(3, tokens=40, rows=2, experts=2)
    with pytest.raises(DistributionError, match="alpha has shape"):
        fuse(p, q, r, torch.zeros(shape))


def test_fuse_names_nan_weights() -> None:
    """NaN must not be sampled from."""
    (p, q, r), _ = tensors(3, tokens=40)
    with pytest.raises(DistributionError, match="alpha holds NaN"):
        fuse(p, q, r, torch.full((1, 1), torch.nan))


@FEW
@given(seed=seeds, kind=kinds, mask=masks, k=st.integers(1, 30))
def test_the_tail_token_has_the_exact_mass_of_what_was_left_out(seed: int, kind: str, mask: str, k: int) -> None:
    """A tail computed as one minus the rest would be noise below 1e-16."""
    (p, q, r), arrays = tensors(seed, tokens=40, rows=2, kind=kind, mask=mask)
    kept = kl.keep_top_k(p, q, r, k)
    for row in range(2):
        left_out = np.argsort(-arrays[0][row], kind="stable")[k:]
        if len(np.unique(arrays[0][row])) < 40 and mask != "none":
            continue  # tied -inf: which of the masked tokens are left out is not determined
        for values, full in zip((kept[0], kept[1], kept[2][0]), (*arrays[:2], arrays[2][0]), strict=True):
            assert values.shape[-1] == k + 1
            expected = np.exp(full[row][left_out]).sum()
            assert float(values[row, -1].exp()) == pytest.approx(expected, rel=1e-12, abs=1e-300)


def test_a_vocabulary_no_larger_than_k_is_returned_as_it_is() -> None:
    """No tail token of mass zero is made up."""
    (p, q, r), _ = tensors(4, tokens=10)
    assert all(kept is given for kept, given in zip(kl.keep_top_k(p, q, r, 10), (p, q, r), strict=True))

"""The tables of a full trace against every token of the vocabulary."""

from __future__ import annotations

import numpy as np
import pytest
import reference
import torch
from hypothesis import given
from hypothesis import strategies as st

from fusionlab.constraint import KLConstraint
from fusionlab.record import weight_grid
from fusionlab.tables import ATOMS, CANDIDATES, empty_tables, tabulate_step
from fusionlab.trace_fields import GRID_ARRAYS, REST_WEIGHTS, TABLE_ARRAYS, even_grid

SEEDS = st.integers(0, 2**32 - 1)
GRID = weight_grid(2.0)


def tables_of(
    seed: int, *, tokens: int, experts: int, evidence: float = 0.0, mask: str = "none"
) -> tuple[tuple[np.ndarray, ...], dict[str, np.ndarray]]:
    """Distributions (V,), (V,), (E, V) of one row, and its tables. evidence: of the first expert, in nats."""
    rows = reference.make_rows(seed, tokens=tokens, experts=experts, mask=mask)
    ratios = torch.zeros(1, experts)
    ratios[0, 0] = evidence
    p, q, r = rows
    found = tabulate_step(torch.from_numpy(p), torch.from_numpy(q), torch.from_numpy(r), GRID, ratios, mixes=True)
    return (p[0], q[0], r[:, 0]), {name: values[0] for name, values in found.items()}


@given(seed=SEEDS, experts=st.integers(1, 3), place=st.integers(0, 20))
def test_tables_are_the_divergences_and_the_variance_at_each_weight(seed: int, experts: int, place: int) -> None:
    """Alone, and with all experts at one weight: written out over the whole vocabulary."""
    (p, q, r), found = tables_of(seed, tokens=40, experts=experts)
    deltas = r - q
    weight = float(GRID[place])
    for e in range(experts):
        alpha = weight * np.eye(experts)[e]
        forward, reverse = reference.divergences(p, q, r, alpha)
        assert found["grid_kl_forward"][e, place] == pytest.approx(forward, rel=1e-6, abs=1e-9)
        assert found["grid_kl_reverse"][e, place] == pytest.approx(reverse, rel=1e-6, abs=1e-9)
        share = np.exp(reference.fused(p, q, r, alpha))
        variance = (share * (deltas[e] - (share * deltas[e]).sum()) ** 2).sum()
        assert found["grid_variance"][e, place] == pytest.approx(variance, rel=1e-5, abs=1e-9)
    weights = even_grid(GRID, experts)
    assert len(weights) == len(found["even_kl_forward"])
    for place in (1, len(weights) // 2, len(weights) - 1):
        forward, reverse = reference.divergences(p, q, r, np.full(experts, weights[place]))
        assert found["even_kl_forward"][place] == pytest.approx(forward, rel=1e-6, abs=1e-9)
        assert found["even_kl_reverse"][place] == pytest.approx(reverse, rel=1e-6, abs=1e-9)


@given(seed=SEEDS, experts=st.integers(1, 3), data=st.data())
def test_no_other_token_scores_above_the_bound(seed: int, experts: int, data: st.DataObject) -> None:
    """The page says "this token would win" only on the strength of this bound."""
    (p, q, r), found = tables_of(seed, tokens=80, experts=experts)
    alpha = np.array(data.draw(st.lists(st.floats(0, 2), min_size=experts, max_size=experts)))
    total = float(alpha.sum())
    if not 0 < total <= REST_WEIGHTS[-1]:
        return
    scores = p + alpha @ (r - q)
    rest = np.delete(scores, found["candidate_ids"])
    peaks = [np.interp(total, REST_WEIGHTS, found["rest_peaks"][e]) for e in range(experts)]
    assert rest.max() <= (alpha / total) @ np.array(peaks) + 1e-9


@given(seed=SEEDS, experts=st.integers(2, 3))
def test_atoms_stand_for_the_vocabulary_where_experts_mix(seed: int, experts: int) -> None:
    """A from 512 of 3,000 tokens of an unusually flat vocabulary; along each axis what is missing is known exactly."""
    (p, q, r), found = tables_of(seed, tokens=3000, experts=experts)
    for alpha in (np.zeros(experts), np.full(experts, 0.5), np.eye(experts)[0] * 1.5):
        whole = np.logaddexp.reduce(p + alpha @ (r - q))
        sample = np.logaddexp.reduce(found["atom_logprobs"] + alpha @ found["atom_deltas"])
        assert sample == pytest.approx(whole, abs=0.15 + 0.02 * abs(whole))


def test_atoms_are_kept_only_where_two_experts_are_in_doubt() -> None:
    """They are the largest part of a trace, and nothing reads them where one expert decides."""
    _, decided = tables_of(0, tokens=60, experts=2, evidence=40.0)
    assert not np.isfinite(decided["atom_logprobs"]).any()
    _, doubtful = tables_of(0, tokens=60, experts=2)
    assert np.isfinite(doubtful["atom_logprobs"]).sum() == 60


@pytest.mark.parametrize("mask", ["everywhere", "large", "small", "experts"])
@pytest.mark.parametrize("tokens", [3, 40])
def test_masked_and_tiny_vocabularies_are_padded_not_invented(mask: str, tokens: int) -> None:
    """-inf is a legal log-probability; what is not there has the id -1."""
    (p, _, _), found = tables_of(7, tokens=tokens, experts=2, mask=mask)
    kept = found["candidate_ids"] >= 0
    assert kept.sum() == min(tokens, CANDIDATES)
    np.testing.assert_allclose(found["candidate_logprobs"][kept], p[found["candidate_ids"][kept]])
    assert not any(np.isnan(values).any() for values in found.values())


def test_the_grid_reaches_beyond_2_only_if_it_must() -> None:
    """A trace made with a small bound can be solved again with a larger one."""
    np.testing.assert_allclose(weight_grid(KLConstraint(alpha_max=0.5).alpha_max), np.arange(21) / 10)
    assert weight_grid(3.0)[-1] >= 3.0 and len(weight_grid(3.0)) == 23


def test_empty_tables_have_the_shapes_of_full_ones() -> None:
    """A run without experts records them, so that traces of one file are alike."""
    empty = empty_tables(2, GRID)
    assert empty.keys() == (GRID_ARRAYS | TABLE_ARRAYS).keys() - {"grid"}
    assert empty["atom_deltas"].shape == (2, 0, ATOMS)

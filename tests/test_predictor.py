"""The predictor: its numbers against slow formulae, its file, its fit, and its place among the methods."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import reference
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_team import make_team
from torch import Tensor

from fusionlab import embedded, solvers
from fusionlab import predictor as module
from fusionlab.errors import ConstraintError, CorruptFileError, MissingFileError
from fusionlab.kl import Array, cumulants, prepare_step
from fusionlab.predictor import (
    FEATURES,
    LARGEST_WEIGHT,
    Predictor,
    fit_predictor,
    load_predictor,
    read_features,
    rescale_features,
)
from fusionlab.solvers import KLConstraint, posterior, solve, solve_each
from fusionlab.train.predict import SCALES, collect

Tensors = tuple[Tensor, Tensor, Tensor]


def make(seed: int, *, dtype: torch.dtype = torch.float64, **options: int | str) -> Tensors:
    p, q, r = (torch.from_numpy(values).to(dtype) for values in reference.make_rows(seed, **options))  # type: ignore[arg-type]
    return p, q, r


def examples(seeds: range) -> tuple[Array, Array]:
    """Features (n, F) and exact weights (n,) of random rows with two experts."""
    features, weights = [], []
    for seed in seeds:
        kind = reference.KINDS[seed % len(reference.KINDS)]
        step = prepare_step(*make(seed, tokens=60, rows=8, experts=2, kind=kind))
        for scale in (0.5, 1.0, 1.5):
            features.append(read_features(step, scale=scale).reshape(-1, len(FEATURES)))
            weights.append(solve_each(step, KLConstraint(scale=scale)).ravel())
    return np.concatenate(features), np.concatenate(weights)


@pytest.fixture(scope="module")
def fitted() -> Predictor:
    """A small network fitted for a second or two."""
    return fit_predictor(*examples(range(80)), hidden=(16,), steps=600, batch=256)


@pytest.fixture
def in_use(fitted: Predictor, monkeypatch: pytest.MonkeyPatch) -> Predictor:
    """The fitted network as the one that method `predicted` reads."""
    monkeypatch.setattr("fusionlab.solvers.load_predictor", lambda: fitted)
    return fitted


# --- the numbers ---------------------------------------------------------------------------------------------


def test_rescaled_features_are_those_of_the_other_scale() -> None:
    """Fitting reads a step once and asks for several scales."""
    step = prepare_step(*make(3, tokens=60, rows=4, experts=2))
    np.testing.assert_allclose(
        rescale_features(read_features(step, scale=1.0), 0.6), read_features(step, scale=0.6), rtol=1e-9, atol=1e-7
    )


def features_of_row(log_p: Array, log_q: Array, log_r: Array, scale: float) -> dict[str, float]:
    """Each feature as its definition reads, for one row and one expert."""
    q, r = reference.floored(log_q), reference.floored(log_r)
    p, d = np.exp(log_p), r - q
    p = p / p.sum()
    mean = float(np.sum(p * d))
    possible = p > 0
    first, second = int(np.argmax(log_p)), int(np.argmax(log_p + d))
    return {
        "log_target_forward": float(np.log(scale * max(reference.divergence(r, q), 0) + 1e-9)),
        "log_target_reverse": float(np.log(scale * max(reference.divergence(q, r), 0) + 1e-9)),
        "log_scale": float(np.log(scale)),
        "mean": mean,
        "log_variance": float(np.log(np.sum(p * (d - mean) ** 2) + 1e-9)),
        "skewness": float(np.cbrt(np.sum(p * (d - mean) ** 3))),
        "entropy": -float(np.sum(p[possible] * np.log(p[possible]))),
        "log_top": float(log_p[first]),
        "log_changed_top": float(log_p[second]),
        "change_of_top": float(d[first]),
        "change_of_changed_top": float(d[second]),
    }


@settings(max_examples=60)
@given(
    seed=st.integers(0, 2**32 - 1),
    kind=st.sampled_from(reference.KINDS),
    mask=st.sampled_from(reference.MASKS),
    tokens=st.integers(2, 200),
    scale=st.sampled_from([0.3, 1.0, 1.5]),
)
def test_features_equal_their_definitions_row_by_row(seed: int, kind: str, mask: str, tokens: int, scale: float) -> None:
    """The network was fitted to these numbers; one of another meaning would make every weight wrong."""
    tensors = make(seed, tokens=tokens, rows=2, experts=2, kind=kind, mask=mask)
    found = read_features(prepare_step(*tensors), scale=scale)
    assert found.shape == (2, 2, len(FEATURES))
    log_p, log_q, log_r = (values.numpy() for values in tensors)
    for expert in range(2):
        for row in range(2):
            expected = features_of_row(log_p[row], log_q[row], log_r[expert, row], scale)
            got = dict(zip(FEATURES, found[expert, row].tolist(), strict=True))
            assert list(expected) == list(FEATURES)
            # cube roots and logarithms of what is nearly 0 turn rounding into 1e-4
            assert got == pytest.approx(expected, rel=1e-5, abs=1e-4)


def test_features_are_numbers_where_rounding_leaves_a_target_below_0() -> None:
    """float32 log-probabilities sum to 1 only nearly; the logarithm of such a target is not a number."""
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(8, 20_000, generator=generator)
    near = logits + 1e-4 * torch.randn(1, 8, 20_000, generator=generator)
    step = prepare_step(logits.log_softmax(-1), logits.log_softmax(-1), near.log_softmax(-1))
    assert (step.target_forward < -1e-9).any(), "the case is not met"
    assert np.isfinite(read_features(step, scale=1.0)).all()


def test_reading_features_leaves_the_step_as_it_was() -> None:
    """Moments are taken in place for speed; the solver reads the same step afterwards."""
    step = prepare_step(*make(3, tokens=50, rows=2, experts=2))
    log_p, deltas = step.log_p.clone(), step.deltas.clone()
    read_features(step, scale=1.0)
    assert torch.equal(step.log_p, log_p) and torch.equal(step.deltas, deltas)


# --- the file ------------------------------------------------------------------------------------------------


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty folder in the place of the shipped data."""
    monkeypatch.setattr("fusionlab.predictor.resources.files", lambda package: tmp_path)
    load_predictor.cache_clear()
    yield tmp_path
    load_predictor.cache_clear()


def test_a_predictor_read_from_its_file_gives_the_same_weights(fitted: Predictor, data: Path) -> None:
    """Six digits are enough, and numbers survive the way through JSON."""
    (data / module.FILE).write_text(json.dumps({"command": "fusionlab train predictor", **fitted.to_dict()}))
    features, _ = examples(range(100, 104))
    np.testing.assert_allclose(load_predictor()(features), fitted(features), atol=1e-4)
    assert load_predictor().to_dict() == fitted.to_dict()


@pytest.mark.parametrize("fault", ["truncated", "empty", "list", "other features", "no layers", "text for a number"])
def test_a_damaged_file_is_refused_with_its_path(fault: str, fitted: Predictor, data: Path) -> None:
    """Whatever is wrong with it, the user learns which file to restore."""
    record = fitted.to_dict()
    whole = json.dumps(record)
    contents = {
        "truncated": whole[: len(whole) // 2],
        "empty": "",
        "list": "[]",
        "other features": json.dumps({**record, "features": ["entropy"]}),
        "no layers": json.dumps({key: value for key, value in record.items() if key != "layers"}),
        "text for a number": json.dumps({**record, "centre": ["x"] * len(FEATURES)}),
    }
    path = data / module.FILE
    path.write_text(contents[fault])
    with pytest.raises(CorruptFileError, match=r"is not a predictor.*restore it") as refused:
        load_predictor()
    assert str(path) in str(refused.value)


def test_the_shipped_predictor_reads_and_says_how_wrong_it_is() -> None:
    """Its error on held-out prompts stands in the file, and is worth having only below the spread of the weights."""
    record = json.loads((embedded.data_folder() / module.FILE).read_text())
    assert 0 < record["error"]["mean_absolute_error"] < record["error"]["spread_of_weights"]
    assert record["command"] and record["date"] and set(record["tasks"]) <= set(embedded.shipped_experts())
    weights = load_predictor()(examples(range(2))[0])
    assert ((weights >= 0) & (weights <= LARGEST_WEIGHT)).all() and weights.std() > 0


def test_a_missing_file_is_said_to_be_missing(data: Path) -> None:
    """Not a traceback of open()."""
    with pytest.raises(MissingFileError, match="predictor.json is missing"):
        load_predictor()


# --- the fit -------------------------------------------------------------------------------------------------


def test_a_fitted_predictor_beats_the_best_constant_on_new_rows(fitted: Predictor) -> None:
    """Otherwise a fixed weight, which costs nothing, would do as well."""
    features, weights = examples(range(200, 240))
    error = float(np.abs(fitted(features) - weights).mean())
    constant = float(np.abs(np.median(weights) - weights).mean())
    assert error < 0.75 * constant


def test_fitting_is_repeatable() -> None:
    """The shipped file can only be made again if its numbers can."""
    features, weights = examples(range(4))
    first, again, other = (fit_predictor(features, weights, hidden=(4,), steps=20, seed=seed) for seed in (1, 1, 2))
    assert first.to_dict() == again.to_dict() != other.to_dict()


@given(seed=st.integers(0, 1000))
def test_weights_stay_within_their_bounds_far_from_what_was_fitted(fitted: Predictor, seed: int) -> None:
    """A network may be wrong, but never by more than the range of weights."""
    features = np.random.default_rng(seed).normal(size=(20, len(FEATURES))) * 10.0 ** np.arange(20)[:, None]
    weights = fitted(features)
    assert ((weights >= 0) & (weights <= LARGEST_WEIGHT)).all()


def test_collecting_writes_down_every_expert_at_every_scale_and_token() -> None:
    """What is fitted must be what the decode meets: finite numbers, and a weight for each expert alone."""
    team = make_team(experts={"a": 0.5, "b": 0.5})
    steps = list(collect(team, ["w1 w2 w3", "w4"], stop=[], longest=3))
    assert len(steps) == 3 * len(SCALES)  # nothing ends before the third token
    for (features, weights), scale in zip(steps, SCALES * 3, strict=True):
        assert features.shape == (4, len(FEATURES)) and weights.shape == (4,)  # 2 experts, 2 prompts
        assert np.isfinite(features).all() and ((weights >= 0) & (weights <= LARGEST_WEIGHT)).all()
        np.testing.assert_allclose(features[:, FEATURES.index("log_scale")], np.log(scale), atol=1e-12)


# --- the method ----------------------------------------------------------------------------------------------


def test_one_correction_brings_the_guess_to_the_exact_weight(in_use: Predictor) -> None:
    """Alone there is nothing to route, whatever the evidence says; and the one evaluation must be worth it."""
    guessed, used = [], []
    for seed in range(20):
        tensors = make(seed, tokens=80, rows=3)
        for scale in (0.5, 1.0, 1.5):
            step, constraint = prepare_step(*tensors), KLConstraint(scale=scale)
            exact, guess = solve_each(step, constraint)[0], in_use(read_features(step, scale=scale))[0]
            alpha = solve(*tensors, method="predicted", constraint=constraint, evidence=torch.full((3, 1), -20.0)).alpha
            torch.testing.assert_close(alpha, solve(*tensors, method="predicted", constraint=constraint).alpha)
            guessed.append(np.abs(guess - exact))
            used.append(np.abs(alpha.numpy()[:, 0] - exact))
    assert np.mean(used) < 0.6 * np.mean(guessed)


@pytest.mark.usefixtures("in_use")
def test_several_experts_are_routed_as_by_evidence() -> None:
    """Each expert's weight alone, times the posterior that its task is at hand."""
    p, q, r = make(6, tokens=80, rows=4, experts=3)
    evidence = torch.randn(4, 3, generator=torch.Generator().manual_seed(0)) * 3
    alone = torch.cat([solve(p, q, r[index : index + 1], method="predicted").alpha for index in range(3)], dim=1)
    routed = solve(p, q, r, method="predicted", evidence=evidence).alpha
    torch.testing.assert_close(routed, alone * posterior(evidence), rtol=1e-5, atol=1e-6)


@pytest.mark.usefixtures("in_use")
@pytest.mark.parametrize("unlikely", [0, 1, 3])
def test_improbable_experts_are_not_looked_at(unlikely: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three of four loaded experts mostly are; what is left keeps its weight to the last bit."""
    p, q, r = make(8, tokens=80, rows=2, experts=3)
    evidence = torch.tensor([[4.0, 3.0, 2.0], [1.0, 2.0, 0.5]])
    evidence[:, :unlikely] = -60.0
    with monkeypatch.context() as patch:
        patch.setattr(solvers, "_IMPROBABLE", 0.0)
        whole = solve(p, q, r, method="predicted", evidence=evidence).alpha
    evaluated: list[int] = []

    def counting(log_p: torch.Tensor, deltas: torch.Tensor, problems: Any, weights: Any) -> Any:
        evaluated.append(len(problems))
        return cumulants(log_p, deltas, problems, weights)

    monkeypatch.setattr(solvers, "cumulants", counting)
    alpha = solve(p, q, r, method="predicted", evidence=evidence).alpha
    assert sum(evaluated) == 2 * (3 - unlikely)
    assert torch.equal(alpha[:, unlikely:], whole[:, unlikely:])
    assert not alpha[:, :unlikely].any() and float(whole[:, :unlikely].sum()) < 1e-5


@pytest.mark.usefixtures("in_use")
def test_the_largest_weight_is_respected() -> None:
    """The network knows nothing of the constraint's alpha_max."""
    tensors = make(7, tokens=80, rows=6)
    free = solve(*tensors, method="predicted").alpha
    held = solve(*tensors, method="predicted", constraint=KLConstraint(alpha_max=0.3)).alpha
    assert (free > 0.3).any()
    torch.testing.assert_close(held, free.clamp(max=0.3))


@pytest.mark.usefixtures("in_use")
@pytest.mark.parametrize("direction", ["forward", "reverse"])
def test_a_direction_it_was_not_fitted_to_is_refused(direction: str) -> None:
    """It would answer with the weights of another objective."""
    with pytest.raises(ConstraintError, match=rf"'both', got '{direction}'; use method 'exact'"):
        solve(*make(1, tokens=20), method="predicted", constraint=KLConstraint(direction=direction))

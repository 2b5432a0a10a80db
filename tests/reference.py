"""The paper's formulas, literally, slowly and in float64: every fused distribution is written out in full.

Symbols as in fusionlab/kl.py. One row at a time: log_p, log_q (V,), log_r (E, V). Nothing here is shared with the
package except the floor, which is a stated constant of it.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fusionlab.kl import LOG_FLOOR

Array = NDArray[np.float64]


def divergence(log_a: Array, log_b: Array) -> float:
    """KL(a||b) = sum a (log a - log b) over the tokens that a can emit."""
    possible = log_a > -np.inf
    return float(np.sum(np.exp(log_a[possible]) * (log_a[possible] - log_b[possible])))


def floored(log_a: Array) -> Array:
    return np.where(log_a == -np.inf, LOG_FLOOR, log_a)


def fused(log_p: Array, log_q: Array, log_r: Array, alpha: Array) -> Array:
    """log P~ for the weights alpha (E,)."""
    scores = log_p + np.asarray(alpha, dtype=np.float64) @ (floored(log_r) - floored(log_q))
    top = scores.max()
    return scores - (top + np.log(np.sum(np.exp(scores - top))))


def divergences(log_p: Array, log_q: Array, log_r: Array, alpha: Array) -> tuple[float, float]:
    """KL(P~||P) and KL(P||P~)."""
    log_fused = fused(log_p, log_q, log_r, alpha)
    return divergence(log_fused, log_p), divergence(log_p, log_fused)


def targets(log_q: Array, log_r: Array) -> tuple[Array, Array]:
    """f = KL(R_t||Q) and g = KL(Q||R_t), (E,) each."""
    q = floored(log_q)
    return (
        np.array([divergence(floored(r), q) for r in log_r]),
        np.array([divergence(q, floored(r)) for r in log_r]),
    )


def objective(
    log_p: Array, log_q: Array, log_r: Array, alpha: Array, *, scale: float = 1.0, direction: str = "both"
) -> float:
    """J of the weights alpha (E,), summed over all experts' targets."""
    return _distance(divergences(log_p, log_q, log_r, alpha), targets(log_q, log_r), scale, direction)


def search(
    log_p: Array, log_q: Array, log_r: Array, candidates: Array, *, scale: float = 1.0, direction: str = "both"
) -> tuple[int, float, float, Array]:
    """The paper's search: one expert at a time, every candidate. Expert, weight and J of the best; all J (E, G).

    Equal J: the smallest weight, then the first expert.
    """
    aims = targets(log_q, log_r)
    alone = np.eye(len(log_r))
    table = np.array(
        [
            [_distance(divergences(log_p, log_q, log_r, a * expert), aims, scale, direction) for a in candidates]
            for expert in alone
        ]
    )
    place = int(table.T.argmin())
    return place % len(alone), float(candidates[place // len(alone)]), float(table.min()), table


def _distance(reached: tuple[float, float], aims: tuple[Array, Array], scale: float, direction: str) -> float:
    forward, reverse = (float(np.sum((kl - scale * aim) ** 2)) for kl, aim in zip(reached, aims, strict=True))
    return forward * (direction != "reverse") + reverse * (direction != "forward")


KINDS = ("random", "nearly one-hot", "nearly equal", "heavy tails")
MASKS = ("none", "everywhere", "large", "small", "experts")


def make_rows(
    seed: int, *, tokens: int, rows: int = 1, experts: int = 1, kind: str = "random", mask: str = "none"
) -> tuple[Array, Array, Array]:
    """log_p, log_q (B, V) and log_r (E, B, V) of a stated kind, float64; with some tokens masked where asked."""
    rng = np.random.default_rng(seed)
    large = _scores(rng, kind, (rows, tokens))
    small = large + rng.normal(size=(rows, tokens)) * rng.choice([0.1, 1.0, 4.0])
    change = 10.0 ** (rng.uniform(-4.5, -3) if kind == "nearly equal" else rng.uniform(-1, 0.7))
    expert = small + rng.normal(size=(experts, rows, tokens)) * change
    if kind == "nearly one-hot":
        expert[0] = _scores(rng, kind, (rows, tokens))
    if mask != "none" and tokens > 2:
        banned = rng.random((rows, tokens)) < 0.3
        banned[np.arange(rows), rng.integers(tokens, size=rows)] = False  # leave one
        if mask in ("everywhere", "large"):
            large = np.where(banned, -np.inf, large)
        if mask in ("everywhere", "small"):
            small = np.where(banned, -np.inf, small)
        if mask in ("everywhere", "experts"):
            expert = np.where(banned, -np.inf, expert)
    return _normalised(large), _normalised(small), _normalised(expert)


def _scores(rng: np.random.Generator, kind: str, shape: tuple[int, int]) -> Array:
    if kind == "heavy tails":
        return np.clip(rng.standard_cauchy(shape) * 2, -200, 200)
    scores = rng.normal(size=shape) * rng.choice([0.3, 1.0, 3.0])
    if kind == "nearly one-hot":
        hot = rng.integers(shape[1], size=shape[0])
        scores[np.arange(shape[0]), hot] += rng.choice([8.0, 16.0, 30.0])
    return scores


def _normalised(scores: Array) -> Array:
    top = scores.max(-1, keepdims=True)
    return scores - top - np.log(np.exp(scores - top).sum(-1, keepdims=True))

"""Several weights at once: descent of J inside the box [0, alpha_max]^E.

With both divergences as residuals, H_f = alpha . A' - A - f and H_g = m A - alpha . (P @ d) - g, and with
C = A'' = Cov_P~(d):

    grad H_f = C alpha          grad H_g = m A' - P @ d          J = H_f^2 + H_g^2

so a Gauss-Newton step needs a system of rank two, completed by the curvature H_g m C where that is positive and damped
as Levenberg and Marquardt do (SIAM J. Appl. Math. 11, 431, 1963). With more experts than residuals many weights reach
the same J; the damped step is the shortest, so that the result stays close to where it started and treats all experts
alike. What is found is a local minimum.

This module is numpy on E numbers per row. It knows nothing of tensors or vocabularies.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
EvaluateJoint = Callable[[NDArray[np.integer], Array], tuple[Array, Array, Array]]
"""(k,) problem indices, (k, E) weights -> A (k,), A' (k, E), A'' (k, E, E)."""

_MAX_ROUNDS = 60
_STEP_TOLERANCE = 1e-6


def descend_jointly(
    evaluate: EvaluateJoint,
    alpha: Array,
    target: tuple[Array, Array],
    mass: Array,
    slope: Array,
    *,
    alpha_max: float,
    terms: tuple[bool, bool] = (True, True),
) -> tuple[Array, Array]:
    """Weights (n, E) with J no larger than at the given ones, and that J (n,).

    alpha: (n, E) where to start; target: f and g, (n,) each; mass: (n,) sum(P); slope: (n, E) P @ d.
    """
    count, _experts = alpha.shape
    size = target[0] ** 2 * terms[0] + target[1] ** 2 * terms[1]

    def model(index: NDArray[np.integer], weights: Array) -> tuple[Array, Array, Array]:
        """J, half its gradient and half its (positive) curvature."""
        log_total, mean, covariance = evaluate(index, weights)
        forward = ((weights * mean).sum(-1) - log_total - target[0][index]) * terms[0]
        reverse = (mass[index] * log_total - (weights * slope[index]).sum(-1) - target[1][index]) * terms[1]
        by_forward = np.einsum("nef,nf->ne", covariance, weights) * terms[0]
        by_reverse = (mass[index, None] * mean - slope[index]) * terms[1]
        gradient = by_forward * forward[:, None] + by_reverse * reverse[:, None]
        curvature = by_forward[:, :, None] * by_forward[:, None] + by_reverse[:, :, None] * by_reverse[:, None]
        curvature += np.maximum(reverse * mass[index], 0.0)[:, None, None] * covariance
        return forward**2 + reverse**2, gradient, curvature

    alpha = alpha.copy()
    active = np.arange(count)
    objective, gradient, curvature = model(active, alpha)
    damping = np.full(count, 1e-3)
    for _ in range(_MAX_ROUNDS):
        active = active[objective[active] > 1e-12 * size[active]]
        if not len(active):
            break
        step = _projected_step(alpha[active], gradient[active], curvature[active], damping[active], alpha_max)
        trial = np.clip(alpha[active] + step, 0.0, alpha_max)
        found, *derivatives = model(active, trial)
        better = found < objective[active]
        moved = np.abs(trial - alpha[active]).max(-1) > _STEP_TOLERANCE
        accepted = active[better]
        gained = objective[accepted] - found[better] > 1e-8 * objective[accepted]
        alpha[accepted], objective[accepted] = trial[better], found[better]
        gradient[accepted], curvature[accepted] = (values[better] for values in derivatives)
        damping[active] = np.where(better, damping[active] * 0.1, np.maximum(damping[active], 1e-6) * 8)
        keep = moved.copy()
        keep[better] &= gained
        active = active[keep & (damping[active] < 1e9)]
    return alpha, objective


def _projected_step(alpha: Array, gradient: Array, curvature: Array, damping: Array, alpha_max: float) -> Array:
    """The damped Newton step among the weights that are not held at a bound by the gradient; (n, E)."""
    held = ((alpha <= 0) & (gradient > 0)) | ((alpha >= alpha_max) & (gradient < 0))
    free = ~held
    system = curvature * (free[:, :, None] & free[:, None])
    largest = np.einsum("nee->ne", curvature).max(-1)
    level = damping * np.where(largest > 0, largest, 1.0)
    system += np.eye(alpha.shape[1]) * np.where(free, level[:, None], 1.0)[:, :, None]
    step = -np.linalg.solve(system, (gradient * free)[:, :, None])[:, :, 0]
    return step.astype(np.float64)

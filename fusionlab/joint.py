"""Several weights at once: descent of J inside the box [0, alpha_max]^E.

With both divergences as residuals, H_f = alpha . A' - A - f and H_g = m A - alpha . (P @ d) - g, with C = A'' = Cov_P~(d)
and T = sum_t alpha_t dC/d alpha_t:

    grad H_f = C alpha        grad H_g = m A' - P @ d        J = H_f^2 + H_g^2
    hess H_f = C + T          hess H_g = m C

The steps are Newton's, damped as by Levenberg and Marquardt (SIAM J. Appl. Math. 11, 431, 1963) and shifted where the
Hessian is not positive. The valleys of J are long and curved: Gauss-Newton steps, without T, had not arrived after 60
rounds where these took 20. Experts are treated alike; what is found is a local minimum.

This module is numpy on E numbers per row. It knows nothing of tensors or vocabularies.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
EvaluateJoint = Callable[[NDArray[np.integer], Array], tuple[Array, Array, Array, Array]]
"""(k,) problem indices, (k, E) weights -> A (k,), A' (k, E), C (k, E, E), T (k, E, E)."""

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
    count = len(alpha)
    size = target[0] ** 2 * terms[0] + target[1] ** 2 * terms[1]

    def model(index: NDArray[np.integer], weights: Array) -> tuple[Array, Array, Array]:
        """J, half its gradient and half its Hessian."""
        log_total, mean, covariance, twist = evaluate(index, weights)
        forward = ((weights * mean).sum(-1) - log_total - target[0][index]) * terms[0]
        reverse = (mass[index] * log_total - (weights * slope[index]).sum(-1) - target[1][index]) * terms[1]
        by_forward = np.einsum("nef,nf->ne", covariance, weights) * terms[0]
        by_reverse = (mass[index, None] * mean - slope[index]) * terms[1]
        gradient = by_forward * forward[:, None] + by_reverse * reverse[:, None]
        hessian = by_forward[:, :, None] * by_forward[:, None] + by_reverse[:, :, None] * by_reverse[:, None]
        hessian += forward[:, None, None] * (covariance + twist) + (reverse * mass[index])[:, None, None] * covariance
        return forward**2 + reverse**2, gradient, hessian

    alpha = alpha.copy()
    active = np.arange(count)
    objective, gradient, hessian = model(active, alpha)
    damping = np.full(count, 1e-3)
    for _ in range(_MAX_ROUNDS):
        active = active[objective[active] > 1e-12 * size[active]]
        if not len(active):
            break
        step = _projected_step(alpha[active], gradient[active], hessian[active], damping[active], alpha_max)
        trial = np.clip(alpha[active] + step, 0.0, alpha_max)
        found, *derivatives = model(active, trial)
        better = found < objective[active]
        moved = np.abs(trial - alpha[active]).max(-1) > _STEP_TOLERANCE
        accepted = active[better]
        gained = objective[accepted] - found[better] > 1e-8 * objective[accepted]
        alpha[accepted], objective[accepted] = trial[better], found[better]
        gradient[accepted], hessian[accepted] = (values[better] for values in derivatives)
        damping[active] = np.where(better, np.maximum(damping[active] * 0.1, 1e-9), np.maximum(damping[active], 1e-5) * 8)
        keep = moved.copy()
        keep[better] &= gained
        active = active[keep & (damping[active] < 1e9)]
    return alpha, objective


def _projected_step(alpha: Array, gradient: Array, hessian: Array, damping: Array, alpha_max: float) -> Array:
    """The damped Newton step among the weights that are not held at a bound by the gradient; (n, E)."""
    free = ~(((alpha <= 0) & (gradient > 0)) | ((alpha >= alpha_max) & (gradient < 0)))
    system = hessian * (free[:, :, None] & free[:, None])
    values = np.linalg.eigvalsh(system)  # ascending
    largest = np.maximum(np.abs(values[:, 0]), np.abs(values[:, -1]))
    level = damping * np.where(largest > 0, largest, 1.0) + 1.5 * np.maximum(-values[:, 0], 0.0)
    system += np.eye(alpha.shape[1]) * np.where(free, level[:, None], 1.0)[:, :, None]
    step = np.linalg.solve(system, -(gradient * free)[:, :, None])[:, :, 0]
    return step.astype(np.float64, copy=False)

"""The weight of every expert at every token: one plain dict of methods, and `solve` around them.

Symbols are those of kl.py. The objective, for one expert (arXiv 2406.15480, equation 8; kappa = KLConstraint.scale):

    J(a) = (KL(P~||P) - kappa f)^2 + (KL(P||P~) - kappa g)^2,   f = KL(R||Q),  g = KL(Q||R)

For several experts the paper sums J over all experts' targets. As sum_t (h - f_t)^2 = E (h - mean f)^2 + const, the
search asks for the *mean* target, and knows nothing of which expert is relevant to the text; `evidence` does.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fusionlab.constraint import KLConstraint
from fusionlab.errors import ConstraintError, DistributionError, UnknownNameError
from fusionlab.joint import descend_jointly
from fusionlab.kl import (
    Array,
    Step,
    cumulants,
    fuse,
    joint_cumulants,
    keep_top_k,
    kl_at,
    kl_on_grid,
    kl_table,
    mix_deltas,
    prepare_step,
)
from fusionlab.predictor import load_predictor, read_features
from fusionlab.search import Targets, largest_scale_within, search_weights

__all__ = ["SOLVERS", "KLConstraint", "Solution", "fuse", "kl_table", "posterior", "solve"]

_PAPER = KLConstraint()
_GRID_STEP = 0.1  # the paper's
_IMPROBABLE = 1e-6  # a posterior below this moves no log-probability by more than 1e-4 nats
_TIE = (1e-6, 1e-9)  # ends of a search that differ by less, as a share of J and of f^2 + g^2, are equally low


@dataclass(frozen=True)
class Solution:
    """What was decided for B rows, and how far it moves them.

    alpha: (B, E) float32 weights. kl_forward, kl_reverse: (B,) float32 nats, KL(P~||P) and KL(P||P~) of these weights.
    target_forward, target_reverse: (B, E) float32 nats, f_t and g_t without the constraint's scale.
    clamped: (B,) int64, how many entries of Q and R were -inf where P is not (kl.LOG_FLOOR stood in for them).
    """

    alpha: Tensor
    kl_forward: Tensor
    kl_reverse: Tensor
    target_forward: Tensor
    target_reverse: Tensor
    clamped: Tensor


@torch.no_grad()
def solve(
    log_p: Tensor,
    log_q: Tensor,
    log_r: Tensor,
    *,
    method: str = "exact",
    constraint: KLConstraint = _PAPER,
    evidence: Tensor | None = None,
    experts: Sequence[str] | None = None,
    steps: Sequence[int] | Tensor | None = None,
    top_k: int | None = None,
) -> Solution:
    """Choose the experts' weights for each row of one decoding step.

    >>> p, q, r = torch.log_softmax(torch.tensor([[2.0, 0.0], [2.0, 0.0], [0.0, 2.0]]), -1)
    >>> round(float(solve(p[None], q[None], r[None, None]).alpha), 3)  # the small model agrees with the large one
    1.0

    log_p, log_q: (B, V); log_r: (E, B, V): natural-log probabilities of any float dtype; -inf is a masked token.
    method: a key of SOLVERS. evidence: (B, E) log-likelihood ratios in nats, read by "evidence" and, with several
    experts, by "predicted" (None: zeros).
    experts: E names, for messages and `constraint.force` (default "0", "1", ...). steps: (B,) number of the generated
    token of each row, needed when `constraint.force` names tokens. top_k: look for weights among the k likeliest tokens
    of P and one tail token of exact mass; targets, divergences and budget of the result are those of all tokens.

    Order: the method chooses within [0, alpha_max]; the budget shortens; force overrides. scale=0 gives weights of
    exactly 0 with every method.

    Raises DistributionError (NaN, +inf, shapes), UnknownNameError (method, forced expert), ConstraintError (options).
    """
    if method not in SOLVERS:
        raise UnknownNameError(f"unknown method {method!r}", remedy=f"known methods: {', '.join(SOLVERS)}")
    if top_k is not None and (isinstance(top_k, bool) or not isinstance(top_k, int) or top_k < 1):
        raise ConstraintError(f"top_k is {top_k!r}", remedy="pass a whole number >= 1, or None for every token")
    names = _expert_names(experts, log_r)
    step = prepare_step(log_p, log_q, log_r, experts=names)
    count, rows, _ = step.shape
    ratios = _checked_evidence(evidence, rows, count)
    if constraint.scale == 0:
        alpha = np.zeros((rows, count))
    else:
        searched = step if top_k is None else prepare_step(*keep_top_k(log_p, log_q, log_r, top_k), experts=names)
        alpha = SOLVERS[method](searched, constraint, ratios)
    alpha = alpha.astype(np.float32).astype(np.float64)  # every figure belongs to the weights as they are returned
    if constraint.budget is not None:
        alpha = _cut_to_budget(step, alpha, constraint.budget)
    if constraint.force:
        alpha = _force_weights(alpha, constraint.force, names, steps)
    forward, reverse = kl_at(step, alpha)

    def result(values: Array) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(values, dtype=np.float32)).to(log_p.device)

    return Solution(
        alpha=result(alpha),
        kl_forward=result(forward),
        kl_reverse=result(reverse),
        target_forward=result(step.target_forward.T),
        target_reverse=result(step.target_reverse.T),
        clamped=step.clamped,
    )


def posterior(evidence: Tensor) -> Tensor:
    """Probability that each expert's task is at hand, against a null "no expert" of log-evidence 0.

    >>> posterior(torch.zeros(1, 3))
    tensor([[0.2500, 0.2500, 0.2500]])

    evidence: (B, E) running sums of log R_t(x_i) - log Q(x_i) over the prefix, nats. Returns (B, E) float32.
    """
    ratios = evidence.detach().double() if evidence.device.type != "mps" else evidence.detach().float()
    null = torch.zeros_like(ratios[:, :1])
    return torch.softmax(torch.cat([null, ratios], dim=-1), dim=-1)[:, 1:].float()


Solver = Callable[[Step, KLConstraint, Tensor], Array]
"""(step, constraint, evidence (B, E)) -> weights (B, E) within [0, constraint.alpha_max]."""


def solve_static(step: Step, constraint: KLConstraint, evidence: Tensor) -> Array:
    """The same weight, `scale`, for every expert at every token; with one expert and scale 1: proxy tuning."""
    experts, rows, _ = step.shape
    return np.full((rows, experts), min(constraint.scale, constraint.alpha_max))


def solve_average(step: Step, constraint: KLConstraint, evidence: Tensor) -> Array:
    """`scale` times the mean of the experts' deltas: scale / E for each."""
    experts, rows, _ = step.shape
    return np.full((rows, experts), min(constraint.scale / experts, constraint.alpha_max))


def solve_grid(step: Step, constraint: KLConstraint, evidence: Tensor) -> Array:
    """The paper: each expert alone at 0, 0.1, ..., alpha_max; the smallest J over all experts' targets wins.

    Equal J: the smallest weight, then the first expert.
    """
    experts, rows, _ = step.shape
    weights = np.arange(int(constraint.alpha_max / _GRID_STEP + 1e-9) + 1) / round(1 / _GRID_STEP)
    forward, reverse = kl_on_grid(step, weights)  # (E, B, G)
    aim_forward, aim_reverse = (values[:, :, None] for values in _mean_targets(step, constraint))
    keep_forward, keep_reverse = _terms(constraint)
    objective = keep_forward * (forward - aim_forward) ** 2 + keep_reverse * (reverse - aim_reverse) ** 2
    winner = objective.transpose(1, 2, 0).reshape(rows, -1).argmin(-1)  # the first in order of weight, then expert
    return _only(winner % experts, weights[winner // experts], experts)


def solve_exact(step: Step, constraint: KLConstraint, evidence: Tensor) -> Array:
    """The objective of `grid` over all weights in [0, alpha_max], to 1e-4.

    Experts whose J is equally low (with one direction all that reach the target have 0): the smallest weight wins.
    """
    aims = _mean_targets(step, constraint)
    weights, objective = _search_each(step, constraint, *aims)
    winner = np.where(_lowest(objective, aims, constraint), weights, np.inf).argmin(0)
    return _only(winner, weights[winner, np.arange(len(winner))], len(weights))


def solve_joint(step: Step, constraint: KLConstraint, evidence: Tensor) -> Array:
    """The objective of `grid` over all experts' weights at once.

    Descends from the best equal weights and from the best weight of each expert alone, so J is never above that of
    `exact`. Of equally low ends the one nearest to 0 is taken: experts that can be exchanged get equal weights.
    """
    experts, rows, _ = step.shape
    aims = _mean_targets(step, constraint)
    single, _ = _search_each(step, constraint, *aims)
    if experts == 1:
        return single.T
    even = np.ones((rows, experts))
    mixed = mix_deltas(step.deltas, even)  # as if there were one expert: the sum of all deltas
    together = replace(step, deltas=mixed[None], start=cumulants(step.log_p, mixed, np.arange(rows), np.zeros(rows))[None])
    shared, _ = _search_each(together, constraint, aims[0][:1], aims[1][:1])
    starts = [shared[0, :, None] * even, *(single[e][:, None] * np.eye(experts)[e] for e in range(experts))]
    row = np.tile(np.arange(rows), len(starts))
    alpha, objective = descend_jointly(
        lambda index, weights: joint_cumulants(step, row[index], weights),
        np.concatenate(starts),
        (aims[0][0][row], aims[1][0][row]),
        step.mass[row],
        step.slope.T[row],
        alpha_max=constraint.alpha_max,
        terms=_terms(constraint),
    )
    ends, reached = alpha.reshape(-1, rows, experts), objective.reshape(-1, rows)
    winner = np.where(_lowest(reached, aims, constraint), (ends**2).sum(-1), np.inf).argmin(0)
    return ends[winner, np.arange(rows)]


def solve_evidence(step: Step, constraint: KLConstraint, evidence: Tensor) -> Array:
    """Each expert's own exact weight, for its own targets, times the posterior that its task is at hand (ours).

    An expert whose posterior is below a millionth gets 0 and is not searched: with four experts loaded, mostly three.
    """
    probable = np.asarray(posterior(evidence).double())
    return probable * solve_each(step, constraint, wanted=probable.T >= _IMPROBABLE).T


def solve_each(step: Step, constraint: KLConstraint, *, wanted: NDArray[np.bool_] | None = None) -> Array:
    """Each expert's exact weight for its own targets, as if it were the only one: (E, B); 0 where not `wanted` (E, B)."""
    own_forward, own_reverse = step.target_forward * constraint.scale, step.target_reverse * constraint.scale
    return _search_each(step, constraint, own_forward, own_reverse, wanted=wanted)[0]


def solve_predicted(step: Step, constraint: KLConstraint, evidence: Tensor) -> Array:
    """Weights by regression, corrected once, in place of a search (ours); several experts are routed as by `evidence`.

    Experts that `evidence` would not search are not looked at here either.
    """
    if constraint.direction != "both":
        raise ConstraintError(
            f"method 'predicted' was fitted to direction 'both', got {constraint.direction!r}", remedy="use method 'exact'"
        )
    experts, rows, _ = step.shape
    probable = np.ones((rows, 1)) if experts == 1 else np.asarray(posterior(evidence).double())
    wanted = probable.T >= _IMPROBABLE
    weights = np.zeros((experts, rows))
    features = read_features(step, scale=constraint.scale, wanted=wanted)[wanted]
    weights[wanted] = np.minimum(load_predictor()(features), constraint.alpha_max)
    return probable * _correct_once(step, constraint, weights, wanted).T


def _correct_once(step: Step, constraint: KLConstraint, guess: Array, wanted: NDArray[np.bool_]) -> Array:
    """One Gauss-Newton step on J from guessed weights (E, B), at the price of one evaluation; at most halved or doubled.

    0 where not `wanted` (E, B).
    """
    _, rows, _ = step.shape
    chosen = np.flatnonzero(wanted)
    corrected = np.zeros_like(guess)
    if not len(chosen):
        return corrected
    log_total, mean, variance = np.moveaxis(cumulants(step.log_p, step.deltas.flatten(0, 1), chosen, guess[wanted]), -1, 0)
    weight, slope, mass = guess[wanted], step.start[:, :, 1][wanted], step.mass[chosen % rows]
    too_far = (
        weight * mean - log_total - constraint.scale * step.target_forward[wanted],
        mass * (log_total - weight * slope) - constraint.scale * step.target_reverse[wanted],
    )
    growth = (weight * variance, mass * (mean - slope))  # of both divergences along the weight
    curvature = growth[0] ** 2 + growth[1] ** 2
    gradient = too_far[0] * growth[0] + too_far[1] * growth[1]
    moved = weight - gradient / np.where(curvature > 0, curvature, np.inf)
    corrected[wanted] = np.clip(moved, weight / 2, np.minimum(2 * weight, constraint.alpha_max))
    return corrected


SOLVERS: dict[str, Solver] = {
    "static": solve_static,
    "average": solve_average,
    "grid": solve_grid,
    "exact": solve_exact,
    "joint": solve_joint,
    "evidence": solve_evidence,
    "predicted": solve_predicted,
}


def _search_each(
    step: Step, constraint: KLConstraint, forward: Array, reverse: Array, *, wanted: NDArray[np.bool_] | None = None
) -> tuple[Array, Array]:
    """Each expert searched alone against its targets (E, B): weights (E, B) and J (E, B), both 0 where not `wanted`."""
    experts, rows, _ = step.shape
    flat = step.deltas.flatten(0, 1)
    chosen = np.arange(experts * rows) if wanted is None else np.flatnonzero(wanted)
    weights, objective = np.zeros(experts * rows), np.zeros(experts * rows)
    if len(chosen):
        targets = Targets(
            forward=forward.ravel(),
            reverse=reverse.ravel(),
            mass=np.tile(step.mass, experts),
            slope=step.start[:, :, 1].ravel(),
            terms=_terms(constraint),
        )
        weights[chosen], objective[chosen] = search_weights(
            lambda problems, candidates: cumulants(step.log_p, flat, chosen[problems], candidates),
            step.start.reshape(-1, 3)[chosen],
            targets.take(chosen),
            alpha_max=constraint.alpha_max,
        )
    return weights.reshape(experts, rows), objective.reshape(experts, rows)


def _mean_targets(step: Step, constraint: KLConstraint) -> tuple[Array, Array]:
    """kappa times the experts' mean f and g, repeated for each expert: (E, B) both."""
    return tuple(  # type: ignore[return-value]
        np.broadcast_to(constraint.scale * target.mean(0), target.shape)
        for target in (step.target_forward, step.target_reverse)
    )


def _lowest(objective: Array, aims: tuple[Array, Array], constraint: KLConstraint) -> NDArray[np.bool_]:
    """Which of the J (..., B) of each row are equally low, up to what a search can tell apart."""
    terms = _terms(constraint)
    size = aims[0][0] ** 2 * terms[0] + aims[1][0] ** 2 * terms[1]
    return np.asarray(objective <= objective.min(0) * (1 + _TIE[0]) + _TIE[1] * size)


def _terms(constraint: KLConstraint) -> tuple[bool, bool]:
    return constraint.direction != "reverse", constraint.direction != "forward"


def _only(expert: np.ndarray, weight: Array, experts: int) -> Array:
    """(B, E) weights of which one a row is not 0."""
    return np.where(np.arange(experts) == expert[:, None], weight[:, None], 0.0)


def _cut_to_budget(step: Step, alpha: Array, budget: float) -> Array:
    """The weights scaled back along their ray to the largest that keep KL(P~||P) <= budget; (B, E)."""
    forward, _ = kl_at(step, alpha)
    over = np.flatnonzero(forward > budget)
    if not len(over):
        return alpha
    mixed = mix_deltas(step.deltas, alpha)
    scale = largest_scale_within(
        lambda problems, scales: cumulants(step.log_p, mixed, over[problems], scales), len(over), budget
    )
    cut = alpha.copy()
    cut[over] *= scale[:, None]
    rounded = cut[over].astype(np.float32)
    toward_zero = np.nextafter(rounded, np.float32(0))
    cut[over] = np.where(rounded.astype(np.float64) > cut[over], toward_zero, rounded)
    return cut


def _force_weights(alpha: Array, force: Mapping, names: Sequence[str], steps: Sequence[int] | Tensor | None) -> Array:
    """Weights with the user's what-ifs in place; those at a token named by number come last, so they win."""
    alpha = alpha.copy()
    column = {name: index for index, name in enumerate(names)}
    by_token = {key: value for key, value in force.items() if not isinstance(key, str)}
    by_expert = {key: value for key, value in force.items() if isinstance(key, str)}
    for name in [
        *by_expert,
        *(name for value in by_token.values() if isinstance(value, Mapping) for name in value),
    ]:
        if name not in column:
            raise UnknownNameError(f"force names the expert {name!r}", remedy=f"known experts: {', '.join(names)}")
    for name, weight in by_expert.items():
        alpha[:, column[name]] = weight
    if not by_token:
        return alpha
    numbers = _checked_steps(steps, len(alpha), next(iter(by_token)))
    for row, number in enumerate(numbers):
        chosen = by_token.get(number, {})
        for name, weight in (chosen if isinstance(chosen, Mapping) else dict.fromkeys(names, chosen)).items():
            alpha[row, column[name]] = weight
    return alpha.astype(np.float32).astype(np.float64)


def _checked_steps(steps: Sequence[int] | Tensor | None, rows: int, named: int) -> list[int]:
    if steps is None:
        raise ConstraintError(
            f"force names token {named}, but solve was not told which token each row is at",
            remedy="pass steps=, one number a row",
        )
    numbers = [int(number) for number in steps]
    if len(numbers) != rows:
        raise ConstraintError(f"steps holds {len(numbers)} numbers for {rows} rows", remedy="pass one number a row")
    return numbers


def _expert_names(experts: Sequence[str] | None, log_r: Tensor) -> list[str]:
    count = log_r.shape[0] if log_r.ndim == 3 else 0
    if experts is None:
        return [str(index) for index in range(count)]
    names = [str(name) for name in experts]
    if count and (len(names) != count or len(set(names)) != count):
        raise ConstraintError(
            f"experts names {names}, log_r holds {count} experts", remedy="pass one name an expert, each once"
        )
    return names


def _checked_evidence(evidence: Tensor | None, rows: int, experts: int) -> Tensor:
    if evidence is None:
        return torch.zeros(rows, experts)
    if evidence.shape != (rows, experts):
        raise DistributionError(f"evidence has shape {tuple(evidence.shape)}", remedy=f"pass (B, E) = {(rows, experts)}")
    ratios = evidence.detach().cpu()
    bad = (ratios.isnan() | (ratios == torch.inf)).nonzero()
    if len(bad):
        row, expert = bad[0].tolist()
        raise DistributionError(
            f"evidence of expert {expert} in row {row} is {float(ratios[row, expert])}",
            remedy="sum finite log-likelihood ratios",
        )
    return ratios

"""The weight along one ray that minimises J, from a handful of evaluations of A, A', A''.

For one direction d and weight a >= 0, with targets f, g and m = sum(P):

    J(a) = (h_f(a) - f)^2 + (h_g(a) - g)^2,   h_f = a A'(a) - A(a),   h_g = m (A(a) - a A'(0))

Both h grow with a. So between two evaluated weights J is at least the squared distance of (f, g) to the box of the
values of h at both ends: a bound that discards most of the range, and everything outside the two roots, for good.
Inside what is left J may have several minima. There A is interpolated by the quintic that matches A, A', A'' at both
ends, and J is scanned on the interpolant, which costs nothing beside a sum over 50,000 tokens. How wrong the
interpolant turns out at the next evaluated weight says how wrong it may be elsewhere in the cell. Evaluations go where
J may still be lower; the search ends when nowhere it can be, by more than 1e-4 J + 1e-8 (f^2 + g^2). The bound is
rigorous, the error of an interpolant is an estimate; h that should grow and does not is never trusted.

This module is numpy on a few numbers per row. It knows nothing of tensors or vocabularies.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Index = NDArray[np.intp]
Evaluate = Callable[[Index, Array], Array]
"""(k,) problem indices, (k,) weights -> (k, 3) A, A', A''."""

_MAX_ROUNDS = 100
_GAP = (1e-4, 1e-8)  # what may be missed: a share of J, and a share of f^2 + g^2
_SMALLEST_CELL = 1e-7  # relative; float32 weights are no denser
_UNKNOWN = 1e30  # roughness of a cell whose interpolant was never checked

# Quintic Hermite basis on t in [0, 1]: coefficients of t^0..t^5 for y0, y0', y0'', y1, y1', y1''.
_HERMITE = np.array(
    [
        [1, 0, 0, -10, 15, -6],
        [0, 1, 0, -6, 8, -3],
        [0, 0, 0.5, -1.5, 1.5, -0.5],
        [0, 0, 0, 10, -15, 6],
        [0, 0, 0, -4, 7, -3],
        [0, 0, 0, 0.5, -1, 0.5],
    ]
)
_POWERS = np.arange(6)
_DIFFERENTIATE = np.diag(_POWERS[1:], -1).astype(float)  # row vector of coefficients -> those of the derivative
_BASES = [_HERMITE @ np.linalg.matrix_power(_DIFFERENTIATE, order) for order in range(4)]
_BASIS = np.concatenate(_BASES, axis=1)  # (6, 4 * 6): value and three derivatives
_ORDERS = np.array([0, 1, 2, 0, 1, 2])  # of the six numbers that fix a quintic

# Scanned points crowd towards both ends, because the minimum is soon close to an evaluated weight.
_SCAN = (1 - np.cos(np.linspace(0, np.pi, 65))) / 2
_POINTS = len(_SCAN)
_AT_SCAN = np.stack([basis @ _SCAN ** _POWERS[:, None] for basis in _BASES[:3]])  # (3, 6, T)
_VALUE_AND_SLOPE = np.concatenate([_AT_SCAN[0], _AT_SCAN[1]], axis=1)  # (6, 2 T)
_INNER = (12, 52)  # of the scan: a first look into a cell keeps away from what is known

# The error of a quintic is c (t (1 - t))^3: that shape and its first two derivatives, as sizes; (3, T).
_U, _DU = _SCAN * (1 - _SCAN), 1 - 2 * _SCAN
_ERROR = np.abs(np.stack([_U**3, 3 * _U**2 * _DU, 6 * _U * (_DU**2 - _U)]))
_ERROR_PEAK = np.array([1 / 64, 0.0537, 0.375])
_ERROR_SEEN = (_ERROR / _ERROR_PEAK[:, None]).sum(0)  # (T,) how much of an error with c = 1 shows at that point


@dataclass(frozen=True)
class Targets:
    """What n problems aim at: f, g (n,) in nats, sum(P) (n,), A'(0) (n,), and which of both terms count."""

    forward: Array
    reverse: Array
    mass: Array
    slope: Array
    terms: tuple[bool, bool] = (True, True)

    def take(self, index: Index | NDArray[np.bool_]) -> Targets:
        """The targets of some of the problems."""
        return Targets(self.forward[index], self.reverse[index], self.mass[index], self.slope[index], self.terms)

    @property
    def size(self) -> Array:
        """(n,) f^2 + g^2 of the terms that count."""
        return self.forward**2 * self.terms[0] + self.reverse**2 * self.terms[1]


def search_weights(evaluate: Evaluate, start: Array, targets: Targets, *, alpha_max: float) -> tuple[Array, Array]:
    """The minimiser of J on [0, alpha_max] and its J, for n problems at once: (n,), (n,).

    start: (n, 3) A, A', A'' at weight 0. Weights are float32 numbers. Each problem's result depends on nothing but
    itself; solved ones are no longer evaluated.
    """
    cells = _first_cells(evaluate, start, targets, alpha_max)
    best = np.empty((len(start), 10))  # the cell with the smallest J, and the scanned point of it
    active, aim = np.arange(len(start)), targets
    for round_ in range(_MAX_ROUNDS):
        scan = _scan_cells(cells, aim)
        cell, place, unsolved = _most_promising(scan, cells)
        row = np.flatnonzero(unsolved)
        if len(row) < len(active) or round_ == _MAX_ROUNDS - 1:
            best[active] = _best_cells(scan, cells)  # of the unsolved too; theirs is replaced later
            active, aim, cells = active[row], aim.take(row), cells[row]
        if not len(active):
            break
        cell, place = cell[row], place[row]
        data, weight = scan.data[row, cell], scan.weight[row, cell, place]
        cells = _split_cells(cells, cell, place, data, np.column_stack([weight, evaluate(active, weight)]))
    return _polish(best, targets, alpha_max)


def _first_cells(evaluate: Evaluate, start: Array, aim: Targets, alpha_max: float) -> Array:
    """[0, 1] and [1, alpha_max], the latter evaluated only where a root of either h lies beyond 1.

    Returns (n, 2, 9): left weight, A, A', A'' there; the same at the right; roughness, the c of the error above.
    """
    count = len(start)
    middle = min(1.0, alpha_max / 2)
    cells = np.empty((count, 2, 9))
    cells[:, 0, 0], cells[:, 0, 1:4], cells[:, :, 8] = 0.0, start, _UNKNOWN
    cells[:, 0, 4] = cells[:, 1, 0] = middle
    cells[:, 1, 4] = alpha_max
    found = evaluate(np.arange(count), np.full(count, middle))
    # Where both h are past their targets, J only grows from here: a cell whose ends agree says just that.
    cells[:, 0, 5:8] = cells[:, 1, 1:4] = cells[:, 1, 5:8] = found
    forward = (middle * found[:, 1] - found[:, 0] < aim.forward) & aim.terms[0]
    reverse = (aim.mass * (found[:, 0] - middle * aim.slope) < aim.reverse) & aim.terms[1]
    beyond = np.flatnonzero(forward | reverse)
    if len(beyond):
        cells[beyond, 1, 5:8] = evaluate(beyond, np.full(len(beyond), alpha_max))
    past = ~(forward | reverse)
    cells[past, 1, 4] = middle * (1 + 1e-12)
    return cells


@dataclass(frozen=True)
class _Scan:
    """J on the interpolants of all cells, (n, C, T) each."""

    weight: Array
    expected: Array
    lower: Array  # the least that the errors of the interpolant and monotone h allow
    upper: Array  # and the most
    data: Array  # (n, C, 6): the scaled numbers that fix each quintic
    trusted: NDArray[np.bool_]  # (n, C): the interpolant's h grow as they must
    goal: Array  # (n,): what a better weight would have to beat


def _scan_cells(cells: Array, aim: Targets) -> _Scan:
    left, roughness = cells[:, :, :1], cells[:, :, 8:]
    width = cells[:, :, 4:5] - left
    data = cells[:, :, [1, 2, 3, 5, 6, 7]] * width**_ORDERS
    weight = left + width * _SCAN
    curve = data @ _VALUE_AND_SLOPE
    value = curve[:, :, :_POINTS]
    forward, reverse, mass, slope = (v[:, None, None] for v in (aim.forward, aim.reverse, aim.mass, aim.slope))
    residual, error = np.empty((2, 2, *weight.shape))
    residual[0] = weight / width * curve[:, :, _POINTS:] - value - forward
    residual[1] = mass * (value - weight * slope) - reverse
    if not all(aim.terms):
        residual[aim.terms.index(False)] = 0.0
    first, last = residual[..., :1], residual[..., -1:]
    falls = (residual[..., 1:] - residual[..., :-1]).min(-1)
    trusted = (falls >= -1e-4 * (last - first)[..., 0]).all(0)
    roughness = np.where(trusted[:, :, None], roughness, _UNKNOWN)
    error[1] = roughness * _ERROR[0]
    error[0] = error[1] + roughness / width * weight * _ERROR[1]
    error[1] *= mass
    least, most = np.maximum(residual - error, first), np.minimum(residual + error, last)
    lower = (np.maximum(np.maximum(least, -most), 0.0) ** 2).sum(0)
    upper = (np.maximum(most, -least) ** 2).sum(0)
    expected = (np.minimum(np.maximum(residual, first), last) ** 2).sum(0)
    goal = upper.min((1, 2)) * (1 - _GAP[0]) - _GAP[1] * aim.size
    return _Scan(weight, expected, lower, upper, data, trusted, goal)


def _most_promising(scan: _Scan, cells: Array) -> tuple[Index, Index, NDArray[np.bool_]]:
    """Where J may still be lower: cell (n,), point of its scan (n,), and whether there is such a place."""
    each = np.arange(len(cells))
    wide = cells[:, :, 4] - cells[:, :, 0] > _SMALLEST_CELL * cells[:, :, 4]
    is_open = (scan.lower < scan.goal[:, None, None]) & wide[:, :, None]
    merit = np.where(is_open, scan.lower + scan.expected, np.inf).reshape(len(cells), -1)
    place = merit.argmin(1)
    unsolved = merit[each, place] < np.inf
    cell, place = place // _POINTS, place % _POINTS
    # Only where even the worst case is a gain is the place taken as it is. Otherwise a first look keeps away from what
    # is known, and a cell whose interpolant proved of no use is halved.
    known = np.minimum(scan.upper[:, :, 0], scan.upper[:, :, -1]).min(1)
    gains = scan.upper[each, cell, place] <= known
    unseen = scan.trusted[each, cell] & (cells[each, cell, 8] >= _UNKNOWN)
    inner = np.where(unseen, np.minimum(np.maximum(place, _INNER[0]), _INNER[1]), _POINTS // 2)
    return cell, np.where(gains, place, inner), unsolved


def _best_cells(scan: _Scan, cells: Array) -> Array:
    """(n, 10): the cell that holds the smallest J and the scanned point of it; equal J goes to the smallest weight."""
    each = np.arange(len(cells))
    upper = scan.upper.reshape(len(cells), -1)
    least = upper.min(1)
    ties = upper <= (least + 1e-6 * (least - scan.goal))[:, None]  # rounding decides nothing where J is flat
    flat = np.where(ties, scan.weight.reshape(len(cells), -1), np.inf).argmin(1)
    return np.column_stack([cells[each, flat // _POINTS], flat % _POINTS])


def _split_cells(cells: Array, cell: Index, place: Index, data: Array, node: Array) -> Array:
    """Split one cell a row at an evaluated weight, and note how wrong its interpolant was there.

    cells: (n, C, 9); cell, place: (n,); data: (n, 6) of the cell; node: (n, 4) weight, A, A', A''.
    Returns (n, C + 1, 9).
    """
    each = np.arange(len(cells))
    parent = cells[each, cell]
    width = (parent[:, 4] - parent[:, 0])[:, None]
    predicted = (data[:, None, :] @ _AT_SCAN[:, :, place].transpose(2, 1, 0))[:, 0]  # (n, 3), scaled
    error = np.abs(predicted - node[:, 1:] * width ** _POWERS[:3]) @ (1 / _ERROR_PEAK)
    roughness = 2 * error / _ERROR_SEEN[place]
    t = _SCAN[place]
    grown = np.concatenate([cells, parent[:, None]], axis=1)
    grown[each, cell, 4:8] = grown[:, -1, :4] = node
    # Errors fall with the sixth power of the width where A is smooth, with the first where it has a kink; the third was
    # as safe as the first over 10,000 random cases, and saves an evaluation in most steps.
    grown[each, cell, 8], grown[:, -1, 8] = roughness * t**3, roughness * (1 - t) ** 3
    return grown


def _polish(best: Array, aim: Targets, alpha_max: float) -> tuple[Array, Array]:
    """From the best scanned weights (n, 10) by Newton's method to the minimum of the interpolants; and J there."""
    left, width, place = best[:, 0], best[:, 4] - best[:, 0], best[:, 9].astype(np.intp)
    data = best[:, [1, 2, 3, 5, 6, 7]] * width[:, None] ** _ORDERS
    polynomials = (data @ _BASIS).reshape(-1, 4, 6) / (width[:, None] ** _POWERS[:4])[:, :, None]
    weight = left + width * _SCAN[place]
    reach = width * (_SCAN[np.minimum(place + 1, _POINTS - 1)] - _SCAN[np.maximum(place - 1, 0)])
    low, high = np.maximum(weight - reach, 0.0), np.minimum(weight + reach, alpha_max)
    found, value = weight, np.full(len(best), np.inf)
    for _ in range(3):
        t = (weight - left) / width
        log_total, mean, variance, third = (polynomials @ (t[:, None] ** _POWERS)[:, :, None])[:, :, 0].T
        forward = (weight * mean - log_total - aim.forward) * aim.terms[0]
        reverse = (aim.mass * (log_total - weight * aim.slope) - aim.reverse) * aim.terms[1]
        objective = forward**2 + reverse**2
        better = objective < value
        found, value = np.where(better, weight, found), np.where(better, objective, value)
        by_forward, by_reverse = (
            weight * variance * aim.terms[0],
            aim.mass * (mean - aim.slope) * aim.terms[1],
        )
        gradient = forward * by_forward + reverse * by_reverse
        curvature = by_forward**2 + by_reverse**2 + forward * (variance + weight * third)
        curvature += reverse * aim.mass * variance
        move = gradient / np.where(curvature > 0, curvature, np.inf)
        weight = np.minimum(np.maximum(weight - move, low), high)
    return found.astype(np.float32).astype(np.float64), value


def largest_scale_within(evaluate: Evaluate, count: int, budget: float) -> Array:
    """The largest s in [0, 1] with s A'(s) - A(s) <= budget, for n problems that exceed it at s = 1; (n,).

    Safeguarded Newton on the divergence, which grows with s; never above the budget, below it by at most 1e-5 nats
    (or a thousandth of the budget, if that is less).
    """
    low, high = np.zeros(count), np.ones(count)
    slack = min(1e-5, 1e-3 * budget)
    scale, active = np.ones(count), np.arange(count)
    for _ in range(_MAX_ROUNDS if budget > 0 else 0):
        log_total, mean, variance = evaluate(active, scale).T
        excess = scale * mean - log_total - budget
        within = excess <= 0
        low[active] = np.where(within, scale, low[active])
        high[active] = np.where(within, high[active], scale)
        unsolved = ~(within & (excess >= -slack)) & (high[active] - low[active] > 1e-9)
        with np.errstate(divide="ignore", invalid="ignore"):
            newton = scale - (excess + slack / 2) / (scale * variance)
        middle = (low[active] + high[active]) / 2
        inside = (newton > low[active]) & (newton < high[active])
        scale = np.where(inside, newton, middle)[unsolved]
        active = active[unsolved]
        if not len(active):
            break
    return low

"""Both KL divergences of a fused distribution, from sums over the vocabulary and without the distribution.

Symbols (arXiv 2406.15480, equations 6 to 9; B rows, V tokens, E experts, natural logs):

    P, Q, R_t    large, small and expert t, as log_p (B, V), log_q (B, V), log_r (E, B, V)
    d_t          log R_t - log Q: what fine-tuning changed in the small model
    P~           fused: log P~ = log P + sum_t alpha_t d_t - A(alpha)
    A(alpha)     logsumexp(log P + sum_t alpha_t d_t), the cumulant function of d under P

With A' = E_P~[d] and A'' = Cov_P~(d):

    KL(P~||P) = alpha . A'(alpha) - A(alpha)              derivative along a ray s alpha: s alpha' A'' alpha >= 0
    KL(P||P~) = sum(P) A(alpha) - alpha . (P @ d)         derivative along a ray: sum(P) alpha . (A'(s) - A'(0)) >= 0

so a candidate weight costs three sums over the vocabulary, and both divergences grow along every ray.

Why float64: the formulas subtract numbers of the size of d (up to 100 nats) to leave divergences that may be 1e-8 where
two distributions nearly agree; float32 sums keep 1e-6. exp is the cost, and on a CPU float64 doubles it. Devices
without float64 (mps) use float32. The log-probabilities are taken as given and never normalised again.

This module knows the formulas; it does not know what to look for (search.py) or how to choose (solvers.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fusionlab.errors import DistributionError

Array = NDArray[np.float64]

LOG_FLOOR = -100.0
"""What log Q or log R is taken to be where it is -inf (exp(-100) = 4e-44, the smallest float32).

A token with R = 0 adds nothing to f = KL(R||Q); one with Q = 0 < R adds R (log R + 100) instead of infinity, and
likewise for g. Finite values are never raised to the floor.
"""

_SAFE_SUM = (1e-250, 1e250)  # a sum of exponentials in here lost nothing to under- or overflow
_SAFE_LOG_P = -600.0  # exp of it is a normal float64, so products of exponentials keep every token
_ROUNDING = 0.01  # a log-probability above 0 by more than rounding is not one
_BLOCK_ENTRIES = 1 << 26  # entries of one batched evaluation on a GPU: 0.5 GB in float64


@dataclass(frozen=True)
class Step:
    """One decoding step of B rows, checked and ready to solve. Big tensors stay on the device, sums are on the host."""

    log_p: Tensor  # (B, V) working dtype, -inf where impossible
    deltas: Tensor  # (E, B, V) working dtype, finite
    start: Array  # (E, B, 3) A, A', A'' of each expert at weight 0
    target_forward: Array  # (E, B) f_t = KL(R_t||Q), nats
    target_reverse: Array  # (E, B) g_t = KL(Q||R_t), nats
    clamped: Tensor  # (B,) int64: how many entries of Q and R were raised to LOG_FLOOR

    @property
    def shape(self) -> tuple[int, int, int]:
        """(experts, rows, tokens)."""
        experts, rows, tokens = self.deltas.shape
        return experts, rows, tokens

    @property
    def mass(self) -> Array:
        """(B,) sum of P over the vocabulary: 1 up to rounding, less where tokens were masked."""
        return np.exp(self.start[0, :, 0])

    @property
    def slope(self) -> Array:
        """(E, B) P @ d."""
        return self.start[:, :, 1] * self.mass


@torch.no_grad()
def prepare_step(log_p: Tensor, log_q: Tensor, log_r: Tensor, *, experts: Sequence[str] | None = None) -> Step:
    """Check three sets of log-probabilities and reduce them to what every solver needs.

    log_p, log_q: (B, V) nats; log_r: (E, B, V) nats; any float dtype, one device. experts: E names, for messages.
    Raises DistributionError when shapes disagree, or for NaN, +inf or a row without a possible token.
    """
    _check_shapes(log_p, log_q, log_r)
    names = ["large", "small", *(f"expert {name!r}" for name in experts or range(log_r.shape[0]))]
    has_masked = _check_values(log_p, log_q, log_r, names)
    dtype = working_dtype(log_p.device)
    p, q = log_p.to(dtype), log_q.to(dtype, copy=True)
    r = log_r.to(dtype, copy=True)
    clamped = torch.zeros(p.shape[0], dtype=torch.int64, device=p.device)
    if has_masked:
        possible = p > -torch.inf
        clamped = ((q == -torch.inf) & possible).sum(-1) + ((r == -torch.inf) & possible).sum((0, 2))
        q.masked_fill_(q == -torch.inf, LOG_FLOOR)
        r.masked_fill_(r == -torch.inf, LOG_FLOOR)
    deltas = r - q
    forward = (r.exp_().mul_(deltas)).sum(-1)  # sum R (log R - log Q)
    reverse = -torch.mul(q.exp_(), deltas, out=r).sum(-1)  # sum Q (log Q - log R)
    rows = np.arange(deltas.shape[0] * p.shape[0])
    start = cumulants(p, deltas.flatten(0, 1), rows, np.zeros(len(rows)))
    return Step(
        log_p=p,
        deltas=deltas,
        start=start.reshape(*deltas.shape[:2], 3),
        target_forward=_to_host(forward),
        target_reverse=_to_host(reverse),
        clamped=clamped,
    )


def cumulants(log_p: Tensor, deltas: Tensor, problems: NDArray[np.integer], weights: Array) -> Array:
    """A, A', A'' of one-dimensional problems: log P + weight * delta.

    log_p: (B, V); deltas: (N, V) with N a multiple of B, problem i belonging to row i % B;
    problems: (n,) indices below N; weights: (n,). Returns (n, 3) on the host.
    """
    if log_p.device.type != "cpu":
        return _cumulants_batched(log_p, deltas, problems, weights)
    buffer = torch.empty_like(log_p[0])
    rows = log_p.shape[0]
    sums = [
        _tilted_sums(log_p[problem % rows], deltas[problem], weight, buffer)
        for problem, weight in zip(problems.tolist(), weights.tolist(), strict=True)
    ]
    return _cumulants_of_sums(np.array(sums))


def _tilted_sums(log_p: Tensor, delta: Tensor, weight: float, buffer: Tensor) -> tuple[float, ...]:
    """log scale, then sums of w, w d and w d^2 for w = exp(log P + weight d - scale); (V,) each, buffer is overwritten.

    Nearly always no scale is needed, so overflow is found afterwards rather than prevented by a maximum.
    """
    scale = 0.0
    torch.add(log_p, delta, alpha=weight, out=buffer)
    for attempt in range(2):
        buffer.exp_()
        total = float(buffer.sum())
        first = float(torch.dot(buffer, delta))
        second = float(torch.dot(buffer.mul_(delta), delta))
        if attempt or (_SAFE_SUM[0] < total < _SAFE_SUM[1] and np.isfinite(first) and np.isfinite(second)):
            break
        torch.add(log_p, delta, alpha=weight, out=buffer)
        scale = float(buffer.max())
        buffer.sub_(scale)
    return scale, total, first, second


def _cumulants_batched(log_p: Tensor, deltas: Tensor, problems: NDArray[np.integer], weights: Array) -> Array:
    """`cumulants` as few large kernels: the organisation for GPUs, where launches cost more than arithmetic."""
    parts = []
    size = max(1, _BLOCK_ENTRIES // log_p.shape[-1])
    for first in range(0, len(problems), size):
        index = torch.from_numpy(problems[first : first + size]).to(log_p.device)
        weight = torch.from_numpy(weights[first : first + size]).to(log_p.device, log_p.dtype)
        delta = deltas[index]
        tilted = torch.addcmul(log_p[index % log_p.shape[0]], delta, weight[:, None])
        scale = tilted.amax(-1)
        tilted.sub_(scale[:, None]).exp_()
        total, moment = tilted.sum(-1), tilted.mul_(delta)
        parts.append(torch.stack([scale, total, moment.sum(-1), (moment * delta).sum(-1)], dim=-1))
    return _cumulants_of_sums(_to_host(torch.cat(parts)))


def _cumulants_of_sums(sums: Array) -> Array:
    """(n, 4) log scale and sums of w, w d, w d^2 -> (n, 3) A, A', A''."""
    scale, total, first, second = sums.T
    mean = first / total
    return np.stack([scale + np.log(total), mean, np.maximum(second / total - mean**2, 0.0)], axis=-1)


def joint_cumulants(step: Step, rows: NDArray[np.integer], weights: Array) -> tuple[Array, Array, Array, Array]:
    """A and its derivatives for several experts at once.

    rows: (n,) indices of rows; weights: (n, E). Returns on the host A (n,), E_P~[d] (n, E), C = Cov_P~(d) (n, E, E) and
    how fast C changes along the weights, T = E_P~[c c' (c . weights)] with c = d - E_P~[d], (n, E, E).
    """
    experts = step.deltas.shape[0]
    first, second = np.triu_indices(experts)
    pairs = list(zip(first.tolist(), second.tolist(), strict=True))
    log_total, means, products = [], [], []
    for row, weight in zip(rows.tolist(), torch.from_numpy(weights).to(step.deltas), strict=True):
        delta = step.deltas[:, row]  # (E, V)
        fused = torch.addmv(step.log_p[row], delta.T, weight)
        scale = fused.max()
        total = fused.sub_(scale).exp_().sum()
        fused.div_(total)
        log_total.append(total.log() + scale)
        means.append((delta * fused).sum(-1))
        centred = delta - means[-1][:, None]
        weighted = centred * fused
        along = torch.mv(centred.T, weight)
        # One dot product a pair: the threads of a matrix product this thin wait milliseconds for each other on busy cores.
        covariance = [torch.dot(weighted[s], centred[t]) for s, t in pairs]
        weighted.mul_(along)
        products.append(torch.stack(covariance + [torch.dot(weighted[s], centred[t]) for s, t in pairs]))
    both = np.empty((len(rows), 2, experts, experts))
    both[:, :, first, second] = both[:, :, second, first] = _to_host(torch.stack(products)).reshape(len(rows), 2, -1)
    return _to_host(torch.stack(log_total)), _to_host(torch.stack(means)), both[:, 0], both[:, 1]


def kl_at(step: Step, alpha: Array) -> tuple[Array, Array]:
    """KL(P~||P) and KL(P||P~), (B,) each in nats, of the weights alpha (B, E); exactly 0 where all weights are 0."""
    log_total, mean, _ = mixed_cumulants(step, alpha, np.ones(len(alpha))).T
    forward = mean - log_total
    reverse = step.mass * log_total - (alpha.T * step.slope).sum(0)
    moved = alpha.any(-1)
    return np.where(moved, np.maximum(forward, 0.0), 0.0), np.where(moved, np.maximum(reverse, 0.0), 0.0)


def mixed_cumulants(step: Step, alpha: Array, scales: Array) -> Array:
    """(B, 3) A, A', A'' along the rays scales * alpha; alpha: (B, E), scales: (B,)."""
    return cumulants(step.log_p, mix_deltas(step.deltas, alpha), np.arange(len(scales)), scales)


def mix_deltas(deltas: Tensor, alpha: Array) -> Tensor:
    """sum_t alpha_t d_t: deltas (E, B, V), alpha (B, E) -> (B, V)."""
    weight = torch.from_numpy(alpha).to(deltas)
    mixed = deltas[0] * weight[:, :1]
    for expert in range(1, deltas.shape[0]):
        mixed.addcmul_(deltas[expert], weight[:, expert, None])
    return mixed


@torch.no_grad()
def fuse(log_p: Tensor, log_q: Tensor, log_r: Tensor, alpha: Tensor) -> Tensor:
    """log P~ = log P + sum_t alpha_t (log R_t - log Q) - A(alpha), float32.

    >>> p = torch.log_softmax(torch.tensor([[1.0, 2.0]]), -1)
    >>> fuse(p, p, p[None], torch.zeros(1, 1)).equal(p)
    True

    log_p, log_q: (B, V); log_r: (E, B, V); alpha: (B, E). Returns (B, V). A token impossible under P stays impossible;
    -inf in Q or R counts as LOG_FLOOR. Rows whose weights are all 0 are returned as they came.
    Raises DistributionError when shapes disagree or the result would hold NaN.
    """
    _check_shapes(log_p, log_q, log_r)
    if alpha.shape != (log_p.shape[0], log_r.shape[0]):
        raise DistributionError(
            f"fuse: alpha has shape {tuple(alpha.shape)}",
            remedy=f"pass (B, E) = {(log_p.shape[0], log_r.shape[0])}",
        )
    dtype = working_dtype(log_p.device)
    weight = alpha.to(log_p.device, dtype)
    base = _floored(log_q.to(dtype))
    fused = log_p.to(dtype, copy=True)
    for expert, log_expert in enumerate(log_r):
        fused.addcmul_(_floored(log_expert.to(dtype)).sub(base), weight[:, expert, None])
    log_total = torch.logsumexp(fused, -1, keepdim=True)
    if not bool(torch.isfinite(log_total).all()):
        _check_values(log_p, log_q, log_r, ["large", "small", *(f"expert '{e}'" for e in range(len(log_r)))])
        raise DistributionError("fuse: alpha holds NaN or infinity", remedy="pass finite weights")
    moved = (alpha != 0).any(-1, keepdim=True).to(log_p.device)
    return torch.where(moved, fused.sub_(log_total), log_p.to(dtype)).float()


@torch.no_grad()
def kl_table(log_p: Tensor, log_q: Tensor, log_r: Tensor, grid: Sequence[float] | Tensor) -> tuple[Tensor, Tensor]:
    """Both divergences when one expert alone has each weight of a grid, for re-solving from a trace.

    log_p, log_q: (B, V); log_r: (E, B, V); grid: (G,). Returns KL(P~||P) and KL(P||P~), each (B, E, G) float32 nats.
    """
    weights = np.asarray(torch.as_tensor(grid, dtype=torch.float64).cpu())
    forward, reverse = (
        torch.from_numpy(np.ascontiguousarray(kl.swapaxes(0, 1), dtype=np.float32)).to(log_p.device)
        for kl in kl_on_grid(prepare_step(log_p, log_q, log_r), weights)
    )
    return forward, reverse


def kl_on_grid(step: Step, weights: Array) -> tuple[Array, Array]:
    """KL(P~||P) and KL(P||P~), (E, B, G) each in nats, with one expert alone at each of the weights (G,)."""
    log_total, mean = np.moveaxis(cumulants_on_grid(step, weights, orders=2), -1, 0)
    return weights * mean - log_total, step.mass[:, None] * log_total - step.slope[:, :, None] * weights


def cumulants_on_grid(step: Step, weights: Array, *, orders: int = 3) -> Array:
    """A, A' and, with 3 orders, A'' of one expert alone at each of the weights (G,): (E, B, G, orders)."""
    experts, rows, _ = step.shape
    flat = step.deltas.flatten(0, 1)
    steps = np.diff(weights)
    if step.log_p.device.type == "cpu" and len(steps) and np.allclose(steps, steps[0], rtol=1e-9, atol=1e-12):
        table = np.stack([_uniform_grid(step.log_p[i % rows], flat[i], weights, orders) for i in range(len(flat))])
    else:
        problems = np.repeat(np.arange(len(flat)), len(weights))
        table = cumulants(step.log_p, flat, problems, np.tile(weights, len(flat)))[:, :orders]
    return table.reshape(experts, rows, len(weights), orders)


def _uniform_grid(log_p: Tensor, delta: Tensor, weights: Array, orders: int) -> Array:
    """A, A' and perhaps A'' at evenly spaced weights, (G, orders): one exp for the step, then products. (V,) both."""
    buffer, product = torch.empty_like(log_p), torch.empty_like(log_p)
    table = np.full((len(weights), orders), np.nan)
    if float(log_p.min()) > _SAFE_LOG_P:  # a token that underflows at the first weight could never come back
        factor = torch.exp(delta * float(weights[1] - weights[0]))
        torch.add(log_p, delta, alpha=float(weights[0]), out=buffer).exp_()
        for index in range(len(weights)):
            total, first = float(buffer.sum()), float(torch.dot(buffer, delta))
            if not (_SAFE_SUM[0] < total < _SAFE_SUM[1] and np.isfinite(first)):
                break
            table[index, :2] = np.log(total), first / total
            if orders == 3:
                second = float(torch.dot(torch.mul(buffer, delta, out=product), delta))
                table[index, 2] = max(second / total - (first / total) ** 2, 0.0)
            buffer.mul_(factor)
    for index in np.flatnonzero(np.isnan(table[:, 0])).tolist():
        sums = _tilted_sums(log_p, delta, float(weights[index]), buffer)
        table[index] = _cumulants_of_sums(np.array([sums]))[0, :orders]
    return table


@torch.no_grad()
def keep_top_k(log_p: Tensor, log_q: Tensor, log_r: Tensor, k: int) -> tuple[Tensor, Tensor, Tensor]:
    """The k likeliest tokens of P, and everything else as one token whose mass is exact under P, Q and each R.

    Returns log-probabilities of k + 1 tokens; the inputs themselves where V <= k.
    """
    if log_p.shape[-1] <= k:
        return log_p, log_q, log_r
    dtype = working_dtype(log_p.device)
    kept = torch.topk(log_p, k, dim=-1).indices

    def reduce(values: Tensor) -> Tensor:
        index = kept.expand(*values.shape[:-1], k)
        values = values.to(dtype)
        tail = values.exp().scatter_(-1, index, 0.0).sum(-1, keepdim=True).log()
        return torch.cat([values.gather(-1, index), tail], dim=-1)

    return reduce(log_p), reduce(log_q), reduce(log_r)


def working_dtype(device: torch.device) -> torch.dtype:
    """float64 wherever the device has it."""
    return torch.float32 if device.type == "mps" else torch.float64


def _to_host(values: Tensor) -> Array:
    return np.asarray(values.cpu().double())


def _floored(values: Tensor) -> Tensor:
    return values if float(values.min()) > -torch.inf else values.masked_fill(values == -torch.inf, LOG_FLOOR)


def _check_shapes(log_p: Tensor, log_q: Tensor, log_r: Tensor) -> None:
    shapes = f"log_p {tuple(log_p.shape)}, log_q {tuple(log_q.shape)}, log_r {tuple(log_r.shape)}"
    if log_p.ndim != 2 or log_q.shape != log_p.shape or log_r.ndim != 3 or log_r.shape[1:] != log_p.shape:
        remedy = "pass log_p and log_q as (B, V) and log_r as (E, B, V), with the same B and V"
        raise DistributionError(f"shapes disagree: {shapes}", remedy=remedy)
    if 0 in log_r.shape:
        raise DistributionError(f"nothing to solve: {shapes}", remedy="pass at least one expert, one row and one token")
    for name, values in (("log_p", log_p), ("log_q", log_q), ("log_r", log_r)):
        if not values.is_floating_point():
            raise DistributionError(f"{name} has dtype {values.dtype}", remedy="pass floating-point log-probabilities")
        if values.device != log_p.device:
            raise DistributionError(f"{name} is on {values.device}, log_p on {log_p.device}", remedy="use one device")


def _check_values(log_p: Tensor, log_q: Tensor, log_r: Tensor, names: Sequence[str]) -> bool:
    """Raise for values that no log-probability has; True if -inf occurs. One pass a tensor, details only on failure."""
    tensors = (log_p, log_q, log_r)
    extremes = torch.stack([end.float() for values in tensors for end in torch.aminmax(values)]).tolist()
    lowest, highest = min(extremes[::2]), max(extremes[1::2])
    if any(end != end for end in extremes) or highest > _ROUNDING:
        for name, values in zip(names, (log_p, log_q, *log_r), strict=True):
            _name_bad_entry(name, values)
    if lowest == -torch.inf:
        for name, values in zip(names, (log_p, log_q, *log_r), strict=True):
            empty = (values == -torch.inf).all(-1).nonzero()
            if len(empty):
                raise DistributionError(
                    f"{name}: every token of row {int(empty[0])} is impossible (-inf)",
                    remedy="leave one token unmasked",
                )
    return lowest == -torch.inf


def _name_bad_entry(name: str, values: Tensor) -> None:
    bad = (values.isnan() | (values > _ROUNDING)).nonzero()
    if len(bad):
        row, token = bad[0].tolist()
        value = float(values[row, token])
        remedy = "check that model's logits" if not np.isfinite(value) else "pass log_softmax of the logits"
        raise DistributionError(
            f"{name}: the log-probability of token {token} in row {row} is {value} ({len(bad)} such entries)",
            remedy=remedy,
        )

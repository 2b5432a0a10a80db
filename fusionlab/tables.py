"""What a full trace keeps of one step, so that any constraint can be solved again without a model.

Symbols as in kl.py. Over the vocabulary, three things matter later, and each is kept as small as its use allows:

    J of an expert        needs A, A', A'' along its own axis: kept at the weights of a grid, between which a quintic
                          through A, A', A'' is good to 2e-4 in the weight (70 tokens of the embedded team, four experts)
    all at one weight     needs the same along the ray (a, a, ..., a), where `static` and `average` live
    other mixtures        `evidence` in doubt between experts: a sample of the vocabulary, kept for these rows alone
    the likeliest token   is among the tokens that are likely at some weights: log P and every d_t of these, and for all
                          others a bound

The bound: log P + a d_t is linear in a, so its greatest value over the other tokens is convex in a, lies below its chord
between two weights, and for several experts below the mean of the single ones, weighted by their shares of sum_t alpha_t.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fusionlab.kl import Array, Step, cumulants, cumulants_on_grid, prepare_step
from fusionlab.solvers import posterior
from fusionlab.trace_fields import GRID_ARRAYS, REST_WEIGHTS, TABLE_ARRAYS, even_grid

CANDIDATES = 32  # tokens kept of each step
ATOMS = 512  # tokens that stand for the vocabulary where experts mix: the likeliest half, and a sample of the rest
MIXED = 1e-4  # two experts mix if the posterior of both is at least this; weights below it matter to no figure


def tabulate_step(
    log_p: Tensor, log_q: Tensor, log_r: Tensor, grid: Array, evidence: Tensor, *, mixes: bool
) -> dict[str, NDArray]:
    """Name -> array with one leading entry per row, for the two grid tables and `TABLE_ARRAYS` of a trace.

    log_p, log_q: (B, V); log_r: (E, B, V); grid: (G,); evidence: (B, E) nats. mixes: keep atoms where experts mix.
    """
    step = prepare_step(log_p, log_q, log_r)
    experts, rows, _ = step.shape
    summed = step.deltas.sum(0, keepdim=True)
    start = cumulants(step.log_p, summed[0], np.arange(rows), np.zeros(rows))[None]
    even = replace(step, deltas=summed, start=start)
    fine, coarse = _divergences(even, grid[grid <= 2 + 1e-6] / experts), _divergences(even, grid)
    wide = (
        coarse[0].shape[-1] + fine[0].shape[-1] - len(even_grid(grid, experts))
    )  # of the coarse ones, how many are left out
    together = tuple(np.concatenate([near, far[:, :, wide:]], axis=-1)[0] for near, far in zip(fine, coarse, strict=True))
    tables = {"grid": _divergences(step, grid), "even": together}
    columns: dict[str, NDArray] = {"mean_deltas": step.start[:, :, 1].T}
    for name, (forward, reverse, variance) in tables.items():
        axes = (1, 0, 2) if name == "grid" else (0, 1)
        columns[f"{name}_kl_forward"] = forward.transpose(axes)
        columns[f"{name}_kl_reverse"] = reverse.transpose(axes)
        columns[f"{name}_variance"] = variance.transpose(axes)
    share = np.asarray(posterior(evidence))
    mixed = ((share >= MIXED).sum(-1) >= 2) & mixes
    kept = [_keep_tokens(step, row, atoms=bool(mixed[row])) for row in range(rows)]
    return columns | {name: np.stack([row[name] for row in kept]) for name in kept[0]}


def empty_tables(rows: int, grid: Array, experts: int = 0) -> dict[str, NDArray]:
    """The columns of `tabulate_step` where no expert was run."""
    sizes = {"N": rows, "E": experts, "G": len(grid), "H": len(even_grid(grid, experts))}
    sizes |= {"C": CANDIDATES, "S": len(REST_WEIGHTS), "M": ATOMS}
    wanted = {name: spec for name, spec in (GRID_ARRAYS | TABLE_ARRAYS).items() if name != "grid"}
    absent = {"candidate_ids": -1, "candidate_logprobs": -np.inf, "atom_logprobs": -np.inf}
    return {name: np.full([sizes[d] for d in dims], absent.get(name, 0), dtype) for name, (dims, dtype) in wanted.items()}


def _divergences(step: Step, grid: Array) -> tuple[Array, Array, Array]:
    """KL(P~||P), KL(P||P~) and Var_P~(d) at every weight of the grid, (E, B, G) each."""
    log_total, mean, variance = np.moveaxis(cumulants_on_grid(step, grid), -1, 0)
    reverse = step.mass[:, None] * log_total - step.slope[:, :, None] * grid
    return grid * mean - log_total, reverse, variance


def _keep_tokens(step: Step, row: int, *, atoms: bool) -> dict[str, NDArray]:
    """Candidates, the bound on all others, and perhaps a sample of the vocabulary, of one row."""
    log_p, deltas = step.log_p[row], step.deltas[:, row]
    reach = _greatest_probability(log_p, deltas)
    order = reach.topk(min(len(reach), max(CANDIDATES, ATOMS // 2 if atoms else 0))).indices
    chosen = order[:CANDIDATES]
    rest = log_p.clone()
    rest[chosen] = -torch.inf
    peaks = torch.stack([torch.add(rest, deltas, alpha=weight).amax(-1) for weight in REST_WEIGHTS], dim=-1)
    kept = {
        "candidate_ids": _padded(chosen, CANDIDATES, -1),
        "candidate_logprobs": _padded(log_p[chosen], CANDIDATES, -np.inf),
        "candidate_deltas": _padded(deltas[:, chosen], CANDIDATES, 0.0),
        "rest_peaks": _host(peaks),
        "atom_logprobs": np.full(ATOMS, -np.inf),
        "atom_deltas": np.zeros((len(deltas), ATOMS)),
    }
    if atoms:
        index, log_share = _sample_tokens(reach, order)
        kept["atom_logprobs"] = _padded(log_p[index] - log_share, ATOMS, -np.inf)
        kept["atom_deltas"] = _padded(deltas[:, index], ATOMS, 0.0)
    return kept


def _greatest_probability(log_p: Tensor, deltas: Tensor) -> Tensor:
    """(V,) the greatest log P~ that each token has over a few weights that span those in use."""
    experts = len(deltas)
    single = [weight * unit for unit in torch.eye(experts) for weight in (1.0, 2.0)]
    weights = [
        torch.zeros(experts),
        *single,
        *([torch.ones(experts) * w / experts for w in (1.0, 2.0)] if experts > 1 else []),
    ]
    greatest = torch.full_like(log_p, -torch.inf)
    for weight in weights:
        fused = torch.addmv(log_p, deltas.T, weight.to(log_p))
        torch.maximum(greatest, fused - fused.logsumexp(-1), out=greatest)
    return greatest


def _sample_tokens(reach: Tensor, likeliest: Tensor) -> tuple[Tensor, Tensor]:
    """Tokens that stand for the vocabulary, and the log of the share of itself that each should count for.

    The likeliest count once. The others are drawn in proportion to their greatest probability, at even steps through
    their sum in order of it: no chance, and close to a quadrature. What is drawn counts for what was not.
    """
    order = reach.argsort(descending=True, stable=True)[len(likeliest) :]
    chance = reach[order].exp()
    total = chance.cumsum(0)
    ones = torch.zeros(len(likeliest), dtype=reach.dtype, device=reach.device)
    if not len(order) or float(total[-1]) <= 0:
        return likeliest, ones
    count = ATOMS - len(likeliest)
    places = (torch.arange(count, dtype=reach.dtype, device=reach.device) + 0.5) / count * total[-1]
    drawn = torch.searchsorted(total, places).clamp(max=len(order) - 1)
    log_share = torch.log(chance[drawn] / total[-1] * count)
    return torch.cat([likeliest, order[drawn]]), torch.cat([ones, log_share])


def _padded(values: Tensor, size: int, filler: float) -> NDArray:
    array = _host(values)
    missing = size - array.shape[-1]
    return np.pad(array, [(0, 0)] * (array.ndim - 1) + [(0, missing)], constant_values=filler) if missing else array


def _host(values: Tensor) -> NDArray:
    return np.asarray(values.cpu())

"""Collect what the decode decides, step by step, and hand out one frozen `Trace` per prompt.

Symbols as in `decode`. Only summaries leave the device (weights, KLs, entropies, top-k lists, and in a full trace the
tables of `tables.py`); full-vocabulary logits are never kept.
"""

from __future__ import annotations

import datetime
import functools
import platform
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from fusionlab.decode import READS_EVIDENCE
from fusionlab.errors import UnknownNameError
from fusionlab.solvers import KLConstraint
from fusionlab.tables import ATOMS, CANDIDATES, empty_tables, tabulate_step
from fusionlab.trace import ARRAYS, GRID_ARRAYS, REST_WEIGHTS, TABLE_ARRAYS, Trace
from fusionlab.trace_fields import IDS, even_grid

if TYPE_CHECKING:
    from fusionlab.decode import FusedStep

TOP_K = 8  # candidates kept of each distribution
GRID = np.round(np.arange(0.0, 2.0001, 0.1), 6)  # the paper's weights, for the table of a full trace
LEVELS = ("full", "light", None)
_STEPS = 64  # steps that the first arrays have room for
_FULL = ARRAYS | GRID_ARRAYS | TABLE_ARRAYS
_DTYPES = {name: dtype for name, (_, dtype) in _FULL.items()}


class TraceRecorder:
    """One numpy array per trace field, (steps, prompts, ...), filled in place once per step.

    The arrays are made for `_STEPS` steps and doubled when full. Small arrays kept from every step would lie scattered
    between the large ones that a step frees, and keep the allocator from giving those back: measured with 8 prompts of
    `math` on the embedded team, half a gigabyte after 150 steps.
    """

    def __init__(
        self,
        *,
        prompts: Sequence[str],
        experts: Sequence[str],
        method: str,
        constraint: KLConstraint,
        level: str,
        piece_of: Callable[[int], str],
        meta: Mapping[str, Any],
    ) -> None:
        if level not in LEVELS:
            raise UnknownNameError(f"unknown trace level {level!r}", remedy="known: full, light, or None")
        self.prompts, self.experts, self.method = list(prompts), tuple(experts), method
        self.constraint, self.level, self.piece_of, self.meta = constraint, level, piece_of, dict(meta)
        self.grid = weight_grid(constraint.alpha_max)
        self.columns: dict[str, np.ndarray] = {}
        self.lengths = [0] * len(self.prompts)  # tokens recorded of each prompt
        self.steps = 0

    def add_step(self, step: FusedStep, tokens: torch.Tensor, live: Sequence[int]) -> None:
        """Record one token of every live row. tokens: (B,); live: index of each row's prompt."""
        columns = summarise_step(step, tokens, len(self.experts))
        if self.level == "full":
            columns |= self._tabulate(step)
        for name, values in columns.items():
            self._room_for(name, values.shape[1:], 1)[self.steps, list(live)] = values
        self.steps += 1
        for prompt in live:
            self.lengths[prompt] = self.steps

    def add_tokens(self, step: FusedStep, tokens: torch.Tensor, *, earlier: TraceRecorder | None = None) -> None:
        """Record several tokens of the only prompt: the rows of `step` are its next tokens, in order.

        earlier: a recorder of the same tokens under another constraint; its tables are copied where they are the same.
        """
        stop = self.steps + len(tokens)
        columns = summarise_step(step, tokens, len(self.experts))
        if self.level == "full":
            same = earlier is not None and self._tabulates_like(earlier) and earlier.steps >= stop
            columns |= earlier._tables(self.steps, stop) if same and earlier is not None else self._tabulate(step)
        for name, values in columns.items():
            self._room_for(name, values.shape[1:], len(tokens))[self.steps : stop, 0] = values
        self.steps, self.lengths = stop, [stop]

    def forget_after(self, steps: int) -> None:
        """Go on after the first `steps` tokens of the only prompt, as if the others had not been recorded."""
        self.steps, self.lengths = steps, [steps]

    def _tabulates_like(self, other: TraceRecorder) -> bool:
        mixes = [recorder.method in READS_EVIDENCE for recorder in (self, other)]
        return other.level == "full" and np.array_equal(self.grid, other.grid) and mixes[0] == mixes[1]

    def _tables(self, start: int, stop: int) -> dict[str, Any]:
        tables = {*GRID_ARRAYS, *TABLE_ARRAYS} & self.columns.keys()
        return {name: self.columns[name][start:stop, 0] for name in tables}

    def _room_for(self, name: str, shape: tuple[int, ...], steps: int) -> np.ndarray:
        """The array of a field, with room for more steps."""
        held = self.columns.get(name)
        if held is None or len(held) < self.steps + steps:
            size = max(_STEPS, steps) if held is None else max(len(held), self.steps + steps - len(held))
            more = np.zeros((size, len(self.prompts), *shape), _DTYPES[name])
            self.columns[name] = held = more if held is None else np.concatenate([held, more])
        return held

    def _tabulate(self, step: FusedStep) -> dict[str, Any]:
        dist = step.distributions
        if dist.log_q is None or dist.log_r is None:
            return empty_tables(len(dist.log_p), self.grid)
        mixes = self.method in READS_EVIDENCE
        return tabulate_step(dist.log_p, dist.log_q, dist.log_r, self.grid, step.evidence, mixes=mixes)

    def finish(self, texts: Sequence[str]) -> list[Trace]:
        """One trace per prompt. texts: what each prompt was answered with."""
        meta = self.meta | {"created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
                            "versions": versions()}  # fmt: skip
        return [
            self._build(index, prompt, text, meta)
            for index, (prompt, text) in enumerate(zip(self.prompts, texts, strict=True))
        ]

    def _build(self, index: int, prompt: str, text: str, meta: dict[str, Any]) -> Trace:
        length = self.lengths[index]
        sizes = {"N": length, "E": len(self.experts), "K": TOP_K, "G": len(self.grid)}
        sizes |= {"H": len(even_grid(self.grid, len(self.experts))), "C": CANDIDATES, "S": len(REST_WEIGHTS), "M": ATOMS}
        arrays: dict[str, Any] = {}
        wanted = _FULL if self.level == "full" else ARRAYS
        for name, (dims, dtype) in wanted.items():
            if name == "grid":
                arrays[name] = self.grid
            elif length:
                arrays[name] = self.columns[name][:length, index]
            else:
                arrays[name] = np.zeros([sizes[dim] for dim in dims], dtype=dtype)
        if self.level == "full" and not np.isfinite(arrays["atom_logprobs"]).any():  # at no token did experts mix
            arrays |= {name: arrays[name][..., :0] for name in ("atom_logprobs", "atom_deltas")}
        seen = [arrays[name].ravel() for name in arrays if name in IDS] + [arrays["large_choice"]]
        held = [int(token) for token in np.unique(np.concatenate(seen)) if token >= 0]
        return Trace(
            prompt=prompt, text=text, experts=self.experts, method=self.method,
            constraint=self.constraint.to_dict(), level=self.level,
            pieces=tuple(self.piece_of(int(token)) for token in arrays["token_ids"]),
            topk_pieces={token: self.piece_of(token) for token in held},
            meta=meta, **arrays,
        )  # fmt: skip


def weight_grid(alpha_max: float) -> np.ndarray:
    """(G,) the weights of a full trace's tables: the paper's from 0 to 2, so that every smaller bound can be tried later.

    Beyond 2, steps grow by a quarter until alpha_max is reached.
    """
    grid = list(GRID)
    while grid[-1] < alpha_max:
        grid.append(grid[-1] * 1.25)
    return np.array(grid)


def summarise_step(step: FusedStep, tokens: torch.Tensor, experts: int) -> dict[str, Any]:
    """Name -> numpy array with one leading entry per row, for every non-grid field of a trace."""
    dist, rows = step.distributions, len(tokens)
    stacked = [dist.log_p, step.log_fused]
    if dist.log_q is not None and dist.log_r is not None:
        stacked += [dist.log_q, *dist.log_r]
    logs = torch.stack(stacked, dim=1)  # (B, 2 or 3+E, V)
    top = logs.topk(min(TOP_K, logs.shape[-1]), dim=-1)
    entropy = -(logs.exp() * logs.clamp(min=-1e4)).sum(-1)  # an impossible token adds 0, not NaN
    chosen = logs.gather(-1, tokens.to(logs.device)[:, None, None].expand(-1, logs.shape[1], 1)).squeeze(-1)

    ids = pad_last(top.indices.cpu().numpy(), TOP_K, -1).astype(np.int32)
    nats = pad_last(top.values.cpu().numpy(), TOP_K, -np.inf).astype(np.float32)
    entropies, logprobs = entropy.cpu().numpy(), chosen.cpu().numpy()
    if dist.log_q is None:  # the small model was not run: say so with NaN and id -1
        ids, nats = widen(ids, -1), widen(nats, np.nan)
        entropies, logprobs = widen(entropies, np.nan), widen(logprobs, np.nan)

    columns: dict[str, Any] = {"token_ids": tokens.cpu().numpy(), "evidence": step.evidence.cpu().numpy()}
    for name, at in (("large", 0), ("fused", 1), ("small", 2), ("experts", slice(3, 3 + experts))):
        columns[f"topk_ids_{name}"] = ids[:, at]
        columns[f"topk_logprobs_{name}"] = nats[:, at]
        columns[f"entropy_{name}"] = entropies[:, at]
        columns[f"logprob_{name}"] = logprobs[:, at]
    large_choice, fused_choice = ids[:, 0, 0], ids[:, 1, 0]
    columns |= {"large_choice": large_choice, "flipped": large_choice != fused_choice}
    columns["flipped_by"] = find_movers(step, large_choice, fused_choice)
    columns |= {"drafted": np.zeros(rows, bool), "accepted": np.zeros(rows, bool)}
    return columns | summarise_solution(step, rows, experts)


def summarise_solution(step: FusedStep, rows: int, experts: int) -> dict[str, Any]:
    """Weights, targets, achieved KLs and clamped entries of a step; zeros when there was nothing to solve."""
    names = ("alpha", "target_forward", "target_reverse", "kl_forward", "kl_reverse", "clamped")
    if step.solution is None:
        return {name: np.zeros((rows, experts) if at < 3 else rows) for at, name in enumerate(names)}
    return {name: getattr(step.solution, name).cpu().numpy() for name in names}


def find_movers(step: FusedStep, large_choice: np.ndarray, fused_choice: np.ndarray) -> np.ndarray:
    """Which expert pushed each flipped token most: argmax_t alpha_t (d_t[fused choice] - d_t[large choice]).

    Returns (B,) expert indices, -1 where the choice did not change.
    """
    dist = step.distributions
    if step.solution is None or dist.log_q is None or dist.log_r is None:
        return np.full(len(large_choice), -1)
    device = dist.log_p.device
    pair = torch.from_numpy(np.stack([fused_choice, large_choice], 1).astype(np.int64)).to(device)  # (B, 2)
    log_q = dist.log_q.gather(-1, pair)
    log_r = dist.log_r.gather(-1, pair.expand(len(dist.log_r), -1, -1))  # (E, B, 2)
    push = step.solution.alpha.T * (log_r - log_q).nan_to_num(0.0).diff(dim=-1).squeeze(-1).neg()
    movers: np.ndarray = push.argmax(0).cpu().numpy()
    return np.where(large_choice != fused_choice, movers, -1)


def pad_last(array: np.ndarray, size: int, value: float) -> np.ndarray:
    """Fill the last axis up to `size` (tiny vocabularies have fewer candidates than are kept)."""
    missing = size - array.shape[-1]
    widths = [(0, 0)] * (array.ndim - 1) + [(0, missing)]
    return np.pad(array, widths, constant_values=value) if missing else array


def widen(array: np.ndarray, value: float) -> np.ndarray:
    """Append one distribution (axis 1) that holds `value` everywhere."""
    shape = (array.shape[0], 1, *array.shape[2:])
    return np.concatenate([array, np.full(shape, value, dtype=array.dtype)], axis=1)


@functools.cache  # looking them up takes 20 ms, and a trace is made for every view of a growing answer
def versions() -> dict[str, str]:
    """What ran: fusionlab, torch, transformers and Python."""
    found = {"python": platform.python_version()}
    for package in ("fusionlab", "torch", "transformers", "bitsandbytes"):
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found

"""Healing: six layers of the large model, trained until their distributions follow the large model's.

Minimised: the mean over positions of KL(P || Q) on text from the large model (P large, Q small), full
distributions. Master weights are fp32, products bf16; from `quantize_from` on, the forward sees the weights
as NF4 storage will return them. The embedding matrix is the large model's own and stays as it is.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fusionlab.embedded import SMALL_LAYERS
from fusionlab.nf4 import load_tensors, save_tensors
from fusionlab.train.compiled import Compute
from fusionlab.train.corpus import Corpus, finish
from fusionlab.train.llama import Llama, hidden_states, logits_from_states, with_parameters
from fusionlab.train.losses import mean_kl
from fusionlab.train.optimizers import flatten_states, make_optimizers, rate_share, restore_states, set_rate
from fusionlab.train.settings import HealSettings, settings_hash


@dataclass(frozen=True)
class Healed:
    """The trained student; `steps` is short of the settings' when the time limit came first."""

    student: Llama
    steps: int
    seconds: float
    curve: list[dict[str, float]]


def start_student(teacher: Llama, *, chosen: Sequence[int] = SMALL_LAYERS) -> Llama:
    """The chosen layers of `teacher` as fp32 master weights that require gradients."""
    weights = {name: stack[list(chosen)] for name, stack in teacher.layers.items()} | {"norm": teacher.norm}
    masters = {name: tensor.detach().float().clone().requires_grad_() for name, tensor in weights.items()}
    return with_parameters(teacher, masters)


def heal_one_batch(
    teacher: Llama, student: Llama, ids: Tensor, *, compute: Compute, quantized: bool, known: Tensor | None = None
) -> Tensor:
    """The loss of one batch. ids: (B, T) int64 -> mean KL in nats, with gradients to the student.

    known: (B, T, H), the teacher's final states at these positions where sampling kept them; else they are computed.
    """
    with torch.no_grad():
        if known is None:
            known = hidden_states(teacher, ids, kernels=compute.layers)
        target = logits_from_states(teacher, known)
    matrix = compute.fake_nf4 if quantized else _as_is
    states = hidden_states(student, ids, kernels=compute.layers, matrix=matrix)
    logits = logits_from_states(student, states)
    return mean_kl(target.flatten(0, 1), logits.flatten(0, 1), kernels=compute.kl)


def heal(
    teacher: Llama, read_shard: Callable[[int], Corpus], settings: HealSettings,
    *, chosen: Sequence[int] = SMALL_LAYERS, compute: Compute | None = None,
    checkpoint: Path | None = None, checkpoint_every: int = 1000,
    seconds_limit: float = float("inf"), log_every: int = 50,
    say: Callable[[str], None] = print, on_checkpoint: Callable[[Llama, int], None] | None = None,
) -> Healed:  # fmt: skip
    """Train a student on the corpus, shard by shard. Goes on from `checkpoint` if that file is of the same settings.

    read_shard: number of a shard -> its text; called when training gets there, and the shard before is dropped, so
    that fresh text costs no memory. Its time is not counted. Trained on are all positions but a sequence's last,
    whose next token nobody drew.
    """
    compute = compute or Compute()
    student = start_student(teacher, chosen=chosen)
    parameters = student.parameters
    optimizers = make_optimizers(
        parameters, kind=settings.optimizer, lr=settings.learning_rate, weight_decay=settings.weight_decay,
        fused=teacher.embedding.is_cuda,
    )  # fmt: skip
    identity = settings_hash(settings)
    first, spent, curve = resume_heal(checkpoint, parameters, optimizers, identity=identity)
    quantize_step = int(settings.quantize_from * settings.steps)
    running = torch.zeros((), device=teacher.embedding.device)
    done, logged, tokens = first, first, 0
    late = False
    for shard, steps in shard_steps(settings, first=first):
        batches = read_batches(read_shard(shard), steps, batch=settings.batch, seed=settings.seed + shard)
        begun = mark = time.perf_counter()
        already = spent
        for step, (ids, known) in zip(steps, batches, strict=False):  # an early end leaves batches behind
            share = rate_share(step, steps=settings.steps, warmup=settings.warmup_steps, final_share=settings.final_share)
            set_rate(optimizers, settings.learning_rate * share)
            quantized = step >= quantize_step
            loss = heal_one_batch(teacher, student, ids, compute=compute, quantized=quantized, known=known)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(parameters.values(), settings.clip)
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
            running += loss.detach()
            done, tokens = step + 1, tokens + ids.numel()
            spent = already + time.perf_counter() - begun
            if done % log_every == 0 or done == settings.steps or done == first + 1:
                mean = float(running) / (done - logged)  # waits for the device
                now = time.perf_counter()
                spent = already + now - begun
                curve.append({"step": done, "kl_nats": round(mean, 4), "seconds": round(spent, 1)})
                rate = tokens / (now - mark)
                say(f"heal {done}/{settings.steps}{' nf4' if quantized else ''}: kl {mean:.4f}, "
                    f"lr {settings.learning_rate * share:.2e}, {rate:,.0f} tokens/s, {spent:.0f} s")  # fmt: skip
                running.zero_()
                logged, mark, tokens = done, now, 0
            late = spent > seconds_limit
            if done < settings.steps and (done % checkpoint_every == 0 or late):
                finish(running)
                if checkpoint is not None:
                    record = {"settings": identity, "step": done, "seconds": spent, "curve": curve}
                    weights = {f"weight.{name}": tensor.detach() for name, tensor in parameters.items()}
                    save_tensors({**weights, **flatten_states(optimizers)}, checkpoint, metadata=record)
                if on_checkpoint is not None:
                    on_checkpoint(student, done)
            if late:
                break
        finish(running)
        spent = already + time.perf_counter() - begun
        batches.close()
        if late:
            break
    return Healed(student, done, spent, curve)


def shard_steps(settings: HealSettings, *, first: int = 0) -> Iterator[tuple[int, range]]:
    """Each shard's number and its steps, as even as can be, from step `first` on."""
    shards = settings.corpus.shards
    for shard in range(shards):
        start, stop = (round(settings.steps * bound / shards) for bound in (shard, shard + 1))
        if stop > first:
            yield shard, range(max(start, first), stop)


def resume_heal(
    checkpoint: Path | None, parameters: dict[str, Tensor], optimizers: list[torch.optim.Optimizer],
    *, identity: str,
) -> tuple[int, float, list[Any]]:  # fmt: skip
    """Load a checkpoint in place; returns (steps done, seconds spent, curve), zeros without a fitting one."""
    if checkpoint is None or not checkpoint.is_file():
        return 0, 0.0, []
    tensors, record = load_tensors(checkpoint)
    if record.get("settings") != identity:
        return 0, 0.0, []
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(tensors[f"weight.{name}"])
    restore_states(optimizers, tensors)
    known: dict[str, Any] = record
    return int(known["step"]), float(known["seconds"]), list(known["curve"])


def read_batches(
    corpus: Corpus, steps: range, *, batch: int, seed: int
) -> Generator[tuple[Tensor, Tensor | None], None, None]:
    """Tokens (batch, T - 1) int64 and the teacher's states (batch, T - 1, H), or None, of each step in turn.

    States on the host are gathered and sent while the step before is being computed.
    """
    device = corpus.ids.device

    def read(step: int) -> tuple[Tensor, Tensor | None]:
        rows = rows_of_step(len(corpus.ids), step, batch=batch, seed=seed)
        ids = corpus.ids[rows.to(device), :-1].long()
        states = corpus.states
        if states is None or states.device == device:
            return ids, None if states is None else states[rows.to(device)]
        gathered = torch.empty(batch, *states.shape[1:], dtype=states.dtype, pin_memory=True)
        torch.index_select(states, 0, rows, out=gathered)
        return ids, gathered.to(device, non_blocking=True)

    if corpus.states is None or corpus.states.device == device:
        yield from map(read, steps)
        return
    with ThreadPoolExecutor(1) as ahead:
        coming = [ahead.submit(read, step) for step in steps[:2]]
        for step in steps:
            yield coming.pop(0).result()
            if step + 2 in steps:
                coming.append(ahead.submit(read, step + 2))


def rows_of_step(sequences: int, step: int, *, batch: int, seed: int) -> Tensor:
    """The rows of one step: every sequence once per epoch, in an order of that epoch. -> (batch,) int64."""
    epoch, index = divmod(step, sequences // batch)
    return _order_of_epoch(sequences, seed, epoch)[index * batch : (index + 1) * batch]


@lru_cache(maxsize=1)
def _order_of_epoch(sequences: int, seed: int, epoch: int) -> Tensor:
    return torch.randperm(sequences, generator=torch.Generator().manual_seed(seed * 10_007 + epoch))


@torch.no_grad()
def fresh_kl(
    log_probabilities: Callable[[Tensor], tuple[Tensor, Tensor]], fresh: dict[str, Corpus],
    *, shares: dict[str, float], rows: int = 16,
) -> dict[str, float]:  # fmt: skip
    """Mean KL(large || small) in nats per position on text never trained on, by kind of start and overall.

    log_probabilities: ids (B, T) -> logits of (large, small), each (B, T, V). Positions before the last
    given token are left out: the start is the same for all and would flatter the figure. `overall` weighs
    the kinds by `shares`, with its standard error over sequences.
    """
    means, variance = {}, 0.0
    for kind, corpus in fresh.items():
        per_row = []
        for ids, given in zip(corpus.ids.split(rows), corpus.given.split(rows), strict=True):
            large, small = log_probabilities(ids.long())
            p, q = torch.log_softmax(large.float(), -1), torch.log_softmax(small.float(), -1)
            kl = (p.exp() * (p - q)).sum(-1)  # (B, T)
            free = torch.arange(ids.shape[1], device=ids.device) >= given[:, None] - 1
            per_row.append((kl * free).sum(1) / free.sum(1))
        values = torch.cat(per_row)
        means[kind] = float(values.mean())
        variance += shares[kind] ** 2 * float(values.var(correction=1)) / len(values)
    overall = sum(shares[kind] * mean for kind, mean in means.items())
    return {**means, "overall": overall, "standard_error": variance**0.5}


def _as_is(weight: Tensor) -> Tensor:
    return weight

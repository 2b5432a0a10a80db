"""Fine-tuning on tasks, whole or low-rank, of the small model and of the large one: one loop for all.

What is trained is a `Tunable`: master weights in fp32, and a function that makes of them the model to run. Low
rank is a way to write a matrix (W + s U D, LoRA, arXiv 2106.09685), so a LoRA step is a full step with other
masters. Minimised: the weighted mean of -log r(token), answers at weight 1 and prompts at `prompt_weight`; that
little attention to prompts is what lets `evidence` tell the experts' texts apart.

An expert is used as a change of another model's logits, so part of its answers' loss can be taken where it is used:
on softmax(log P + log R - log Q) with P the large and Q the small model, both frozen (consistent proxy tuning,
arXiv 2407.01155). What P already knows then need not be learnt, and what only Q got wrong is not "corrected" in P.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fusionlab.train.corpus import finish
from fusionlab.train.documents import Document, pad_batch
from fusionlab.train.llama import MATRIX_NAMES, Llama, hidden_states, logits_from_states, with_parameters
from fusionlab.train.optimizers import rate_share, set_rate
from fusionlab.train.quantize import fake_nf4
from fusionlab.train.settings import TuneSettings


@dataclass(frozen=True)
class Tunable:
    """Trainable masters by name (fp32, requiring gradients), and how a model is made of them.

    build(quantized) -> the model to run; quantized: with the masters as NF4 storage will return them.
    """

    masters: dict[str, Tensor]
    build: Callable[[bool], Llama]


@dataclass(frozen=True)
class Partners:
    """The frozen models that an expert's change is used with; `share` of the answers' loss is taken on their fusion.

    weights: that of the change in the fusion, "one" as in proxy tuning, or "random": drawn per token from 0.75..1.75,
    where the solve's weights lie, so that the expert is of use at any of them.
    """

    large: Llama
    small: Llama
    share: float
    weights: str = "one"

    def fuse(self, logits: Tensor, ids: Tensor, wanted: Tensor) -> Tensor:
        """Fused logits (N, V) fp32 of the expert's `logits` at the N wanted positions. ids, wanted: (B, T)."""
        with torch.no_grad():
            large, small = (
                logits_from_states(model, hidden_states(model, ids)[wanted]).float() for model in (self.large, self.small)
            )
        weights = torch.ones(len(large), 1, device=large.device)
        if self.weights == "random":
            weights = 0.75 + torch.rand_like(weights)
        return large + weights * (logits - small)


@dataclass(frozen=True)
class Tuned:
    """How a fine-tuning went: steps, tokens (padding included), seconds, peak memory on a GPU, and the loss."""

    steps: int
    tokens: int
    seconds: float
    peak_bytes: int | None
    curve: list[dict[str, float]]


def tune_whole(model: Llama) -> Tunable:
    """Every weight of `model`, embedding included."""
    masters = {name: _master(tensor) for name, tensor in {**model.parameters, "embedding": model.embedding}.items()}

    def build(quantized: bool) -> Llama:
        layers = with_parameters(model, {name: masters[name] for name in model.parameters})
        return replace(layers, embedding=masters["embedding"].to(model.dtype))

    return Tunable(masters, build)


def tune_low_rank(model: Llama, *, rank: int, alpha: float, seed: int) -> Tunable:
    """Low-rank changes of all seven matrices of every layer; masters are `<matrix>.down` and `<matrix>.up`.

    Initialised as PEFT does: down uniform in +-1/sqrt(in), up zero.
    """
    masters: dict[str, Tensor] = {}
    generator = torch.Generator().manual_seed(seed)
    for name in MATRIX_NAMES:
        layers, outputs, inputs = model.layers[name].shape
        down = (torch.rand(layers, rank, inputs, generator=generator) * 2 - 1) / math.sqrt(inputs)
        masters[f"{name}.down"] = _master(down.to(model.embedding.device))
        masters[f"{name}.up"] = _master(torch.zeros(layers, outputs, rank, device=model.embedding.device))

    def build(quantized: bool) -> Llama:
        stored = {name: fake_nf4(master) if quantized else master for name, master in masters.items()}
        changed = {
            name: model.layers[name] + alpha / rank * torch.bmm(stored[f"{name}.up"], stored[f"{name}.down"])
            for name in MATRIX_NAMES
        }
        return replace(model, layers={**model.layers, **changed})

    return Tunable(masters, build)


def tune(
    tunable: Tunable, batches: Sequence[list[Document]], settings: TuneSettings,
    *, label: str, partners: Partners | None = None, log_every: int = 50, say: Callable[[str], None] = print,
) -> Tuned:  # fmt: skip
    """Train the masters in place on `batches`, in their order."""
    torch.manual_seed(settings.seed)  # for what Partners draw
    parameters = list(tunable.masters.values())
    device = parameters[0].device
    cuda = device.type == "cuda"
    optimizer = torch.optim.AdamW(
        parameters, lr=settings.learning_rate, betas=(0.9, 0.95), weight_decay=settings.weight_decay, fused=cuda
    )
    if cuda:
        torch.cuda.reset_peak_memory_stats(device)
    steps = len(batches)
    begun, tokens, logged = time.perf_counter(), 0, 0
    running = torch.zeros((), device=device)
    curve: list[dict[str, float]] = []
    for step, documents in enumerate(batches):
        share = rate_share(step, steps=steps, warmup=min(settings.warmup_steps, steps), final_share=settings.final_share)
        set_rate([optimizer], settings.learning_rate * share)
        ids, weights = pad_batch(documents, device=device)
        model = tunable.build(step >= int(settings.quantize_from * steps))
        loss = token_loss(model, ids, weights, partners=partners)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, settings.clip)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        running += loss.detach()
        tokens += ids.numel()
        if (step + 1) % log_every == 0 or step + 1 == steps or step == 0:
            mean, seconds = float(running) / (step + 1 - logged), time.perf_counter() - begun
            curve.append({"step": step + 1, "loss_nats": round(mean, 4), "seconds": round(seconds, 1)})
            say(f"{label} {step + 1}/{steps}: loss {mean:.4f}, {tokens / seconds:,.0f} tokens/s, {seconds:.0f} s")
            running.zero_()
            logged = step + 1
    finish(running)
    peak = int(torch.cuda.max_memory_allocated(device)) if cuda else None
    return Tuned(steps, tokens, time.perf_counter() - begun, peak, curve)


def token_loss(model: Llama, ids: Tensor, weights: Tensor, *, partners: Partners | None = None) -> Tensor:
    """Weighted mean over tokens of -log p(token | what is before it), nats; logits are made where a weight is not 0.

    ids: (B, T); weights: (B, T), the weight of each token as a target. The first token has nothing before it. With
    partners the loss of an answer's token (weight 1) is (1 - share) of its own plus `share` of that under the fusion.
    """
    inputs, targets, weights = ids[:, :-1], ids[:, 1:], weights[:, 1:]
    counted = weights > 0
    logits = logits_from_states(model, hidden_states(model, inputs)[counted]).float()
    target, weight = targets[counted], weights[counted]
    nll = F.cross_entropy(logits, target, reduction="none")
    if partners is not None and partners.share > 0:
        answers = (weight == 1).nonzero().squeeze(-1)
        fused = partners.fuse(logits[answers], inputs, weights == 1)
        together = F.cross_entropy(fused, target[answers], reduction="none")
        nll = nll.index_add(0, answers, partners.share * (together - nll[answers]))
    return (nll * weight).sum() / weight.sum()


def _master(tensor: Any) -> Tensor:
    return tensor.detach().float().clone().requires_grad_()

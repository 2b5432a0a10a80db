"""A short measurement before a long run: sampling and training speed, and which optimizer learns faster."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, cast

import torch
from torch import Tensor

from fusionlab.train.corpus import KINDS, finish, sample_fresh, sample_shard
from fusionlab.train.heal import fresh_kl, heal
from fusionlab.train.llama import Llama, hidden_states, logits_from_states, read_llama, with_parameters
from fusionlab.train.run import Run, load_teacher
from fusionlab.train.settings import HealSettings
from fusionlab.train.stages import pick_compute


@dataclass(frozen=True)
class Trial:
    """One way to train: `adamw:1.5e-3:64` is optimizer, learning rate, batch."""

    optimizer: str
    learning_rate: float
    batch: int

    @classmethod
    def parse(cls, text: str) -> Trial:
        """Read `optimizer:rate:batch`."""
        optimizer, rate, batch = text.split(":")
        return cls(optimizer, float(rate), int(batch))


DEFAULT_TRIALS = ("adamw:1.5e-3:64", "adamw:3e-3:64", "muon:1.5e-3:64", "muon:4e-3:64", "muon:4e-3:128")


def probe(run: Run, settings: HealSettings, *, steps: int, trials: Sequence[Trial]) -> list[dict[str, Any]]:
    """Time sampling, then run every trial for `steps` (fewer for larger batches: the same tokens)."""
    large, tokenizer = load_teacher(run)
    teacher = read_llama(large, dtype=run.dtype)
    compute = pick_compute(run, teacher, settings)
    corpus = sample_shard(teacher, tokenizer, settings.corpus, kernels=compute.layers, draw=compute.draw, say=run.say)
    rows = min(64, settings.evaluation_rows)
    fresh = sample_fresh(teacher, tokenizer, rows=rows, length=settings.corpus.length, seed=77_000_000)
    results = []
    for trial in trials:
        some = replace(
            settings, steps=max(1, steps * 64 // trial.batch), batch=trial.batch,
            optimizer=cast(Literal["adamw", "muon"], trial.optimizer), learning_rate=trial.learning_rate,
        )  # fmt: skip
        begun = time.perf_counter()
        healed = heal(teacher, lambda shard: corpus, some, compute=compute, say=run.say, log_every=max(1, some.steps // 4))
        finish(corpus.ids)
        seconds = time.perf_counter() - begun
        student = with_parameters(teacher, {name: t.detach() for name, t in healed.student.parameters.items()})

        def both(ids: Tensor, student: Llama = student) -> tuple[Tensor, Tensor]:
            first, second = (logits_from_states(model, hidden_states(model, ids)) for model in (teacher, student))
            return first, second

        kl = fresh_kl(both, fresh, shares=dict.fromkeys(KINDS, 1 / len(KINDS)))
        results.append({"trial": trial, "kl": kl, "steps_per_second": some.steps / seconds})
        rate = some.steps / seconds
        tokens_rate = rate * some.batch * settings.corpus.length
        run.say(
            f"PROBE {trial.optimizer} lr {trial.learning_rate:g} batch {trial.batch}: {some.steps} steps in "
            f"{seconds:.1f} s ({rate:.1f} steps/s, {tokens_rate:,.0f} tokens/s), "
            f"fresh KL {kl['overall']:.4f} (raw {kl['raw']:.4f})"
        )
    if run.device.startswith("cuda"):
        run.say(f"peak GPU memory {torch.cuda.max_memory_allocated() / 2**30:.1f} GiB")
    return results

"""Compiled kernels with a way back: if this machine cannot compile, training runs plain and says so."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from fusionlab.train.attention import attend_one_token_triton
from fusionlab.train.corpus import Draw, draw_tokens
from fusionlab.train.llama import Kernels, after_attention, before_attention
from fusionlab.train.losses import KlKernels, kl_gradient, kl_rows
from fusionlab.train.quantize import fake_nf4


@dataclass(frozen=True)
class Compute:
    """What the loops call for their heavy parts."""

    layers: Kernels = field(default_factory=Kernels)
    kl: KlKernels = field(default_factory=KlKernels)
    fake_nf4: Callable[[Tensor], Tensor] = fake_nf4
    draw: Draw = draw_tokens
    compiled: bool = False


def compile_compute() -> Compute:
    """All heavy functions through torch.compile with static shapes; nothing is compiled before first use."""
    import torch._dynamo

    # Few functions, each met in a handful of fixed shapes: past the limit they would silently run plain.
    for name in ("recompile_limit", "cache_size_limit"):
        if hasattr(torch._dynamo.config, name):
            setattr(torch._dynamo.config, name, 64)
    compiled: list[Any] = [
        torch.compile(function, dynamic=False)
        for function in (before_attention, after_attention, kl_rows, kl_gradient, fake_nf4, draw_tokens)
    ]
    before, after, rows, gradient, fake, draw = compiled
    layers = Kernels(before, after, attend_one_token_triton) if torch.cuda.is_available() else Kernels(before, after)
    return Compute(layers, KlKernels(rows, gradient, chunk=1 << 30), fake, draw, compiled=True)


def choose_compute(*, compile: bool, trial: Callable[[Compute], object], say: Callable[[str], None] = print) -> Compute:
    """Compiled kernels if `trial` runs with them, else plain ones (with a line that says why)."""
    if not compile:
        return Compute()
    compute = compile_compute()
    try:
        trial(compute)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:
        reason = str(error).strip().splitlines() or [""]
        say(f"compile failed, going on without: {type(error).__name__}: {reason[0][:300]}")
        return Compute()
    return compute

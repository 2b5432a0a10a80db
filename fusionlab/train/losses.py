"""The loss of healing: KL of whole distributions.

KL(P || Q) over a vocabulary of 49,152 moves gigabytes per step, so its gradient is written out
(softmax(q) - softmax(p), over the number of rows) and each direction is one function that compiles into a
few passes. Plain mode works in row chunks to bound memory. Knows nothing of models.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

CHUNK_ROWS = 2048  # rows per piece when not compiled: 49,152 x 2,048 in fp32 is 400 MB


def kl_rows(teacher: Tensor, student: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Per row KL(softmax(teacher) || softmax(student)) in nats and both log-normalisers.

    teacher, student: (N, V) logits -> three (N,) fp32.
    """
    t, s = teacher.float(), student.float()
    log_z_t, log_z_s = torch.logsumexp(t, dim=-1), torch.logsumexp(s, dim=-1)
    expected = (torch.exp(t - log_z_t[:, None]) * (t - s)).sum(-1)
    return expected - log_z_t + log_z_s, log_z_t, log_z_s


def kl_gradient(teacher: Tensor, student: Tensor, log_z_t: Tensor, log_z_s: Tensor, scale: Tensor) -> Tensor:
    """d(scale * sum of rows)/d(student): (N, V) in the student's dtype."""
    q = torch.exp(student.float() - log_z_s[:, None])
    p = torch.exp(teacher.float() - log_z_t[:, None])
    return ((q - p) * scale).to(student.dtype)


@dataclass(frozen=True)
class KlKernels:
    """Both directions of the loss, plain or compiled; `chunk` rows at a time."""

    rows: Callable[..., tuple[Tensor, Tensor, Tensor]] = kl_rows
    gradient: Callable[..., Tensor] = kl_gradient
    chunk: int = CHUNK_ROWS


class _MeanKl(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, teacher: Tensor, student: Tensor, kernels: KlKernels) -> Tensor:
        pieces = [
            kernels.rows(t, s) for t, s in zip(teacher.split(kernels.chunk), student.split(kernels.chunk), strict=True)
        ]
        kl, log_z_t, log_z_s = (torch.cat(parts) for parts in zip(*pieces, strict=True))
        ctx.save_for_backward(teacher, student, log_z_t, log_z_s)
        ctx.kernels = kernels
        return kl.mean()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[None, Tensor, None]:
        saved, kernels = ctx.saved_tensors, ctx.kernels
        scale = gradients[0] / len(saved[0])
        pieces = zip(*(tensor.split(kernels.chunk) for tensor in saved), strict=True)
        return None, torch.cat([kernels.gradient(*piece, scale) for piece in pieces]), None


def mean_kl(teacher: Tensor, student: Tensor, *, kernels: KlKernels | None = None) -> Tensor:
    """Mean over rows of KL(softmax(teacher) || softmax(student)), nats; gradient to `student` only.

    teacher, student: (N, V) logits.
    """
    return _MeanKl.apply(teacher, student, kernels or KlKernels())

"""Fake NF4: a weight as 4-bit storage will return it, with gradients that pass straight through.

Source: QLoRA (arXiv 2305.14314) for the levels; the straight-through estimator (arXiv 1308.3432) for the
gradient. Double quantisation of the scales, which storage adds, is left out here: it moves a weight by a
tenth of what the 4 bits do. Pure torch, so that it compiles; storage itself is `fusionlab.nf4`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fusionlab.nf4 import BLOCK_SIZE

# Quantiles of a normal distribution scaled to [-1, 1], as QLoRA's appendix E lists them.
NF4_LEVELS = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635,
    -0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725,
    0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941, 0.7229568362236023,
    1.0,
)  # fmt: skip


def round_to_nf4(weight: Tensor) -> Tensor:
    """`weight` after NF4 storage and back: blocks of 64 in row-major order share one absmax scale.

    weight: any shape whose number of elements is a multiple of 64. Returns the same shape and dtype.
    """
    levels = torch.tensor(NF4_LEVELS, device=weight.device)
    middles = (levels[1:] + levels[:-1]) / 2
    blocks = weight.float().reshape(-1, BLOCK_SIZE)
    scale = blocks.abs().amax(dim=1, keepdim=True)
    unit = blocks / torch.where(scale > 0, scale, 1.0)
    rounded = levels[torch.bucketize(unit, middles, out_int32=True)] * scale
    return rounded.reshape(weight.shape).to(weight.dtype)


def fake_nf4(weight: Tensor) -> Tensor:
    """`round_to_nf4(weight)` whose gradient with respect to `weight` is the identity."""
    return weight + (round_to_nf4(weight.detach()) - weight.detach())

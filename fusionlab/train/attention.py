"""Attention of one new token over a cache: plain, and as a Triton kernel for sampling on a GPU.

With the queries of a key-value head folded into one small matrix, attention at one position reads every key
and value once and computes almost nothing. General attention kernels pad the few queries to a tile of 64 or
more; measured on one H100 at B = 8,192 and 80 positions that was 17 of the 23 ms of a sampling step.

Symbols: B rows, K key-value heads, G queries per key-value head, D head size, T positions of the cache.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

_TILE = 32  # cached positions read at a time
_QUERIES = 16  # rows of the smallest matrix product of a tensor core


def attend_one_token(queries: Tensor, keys: Tensor, values: Tensor, length: int) -> Tensor:
    """softmax(q k / sqrt(D)) v over the first `length` positions.

    queries: (B, K, G, D); keys, values: (B, K, T, D) -> (B, K, G, D).
    """
    return F.scaled_dot_product_attention(queries, keys[:, :, :length], values[:, :, :length])


def attend_one_token_triton(queries: Tensor, keys: Tensor, values: Tensor, length: int) -> Tensor:
    """`attend_one_token` as one program per row and key-value head, for G <= 16 on a GPU with Triton."""
    rows, heads, group, size = queries.shape
    queries = queries.contiguous()
    attended = torch.empty_like(queries)
    _decode_kernel()[(rows, heads)](
        queries, keys, values, attended, length, size**-0.5, group,
        keys.stride(0), keys.stride(1), keys.stride(2), values.stride(0), values.stride(1), values.stride(2),
        heads=heads, size=size, tile=_TILE, padded=_QUERIES, num_warps=2,
    )  # fmt: skip
    return attended


@cache
def _decode_kernel() -> Any:
    """The kernel, made on first use: Triton exists only where there is a GPU for it."""
    import triton
    import triton.language as tl

    @triton.jit
    def decode(  # type: ignore[no-untyped-def]  # Triton reads annotations as its own
        queries, keys, values, attended, length, scale, group,
        key_row, key_head, key_position, value_row, value_head, value_position,
        heads: tl.constexpr, size: tl.constexpr, tile: tl.constexpr, padded: tl.constexpr,
    ):  # fmt: skip
        row, head = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64)
        g, d, t = tl.arange(0, padded), tl.arange(0, size), tl.arange(0, tile)
        places = (row * heads + head) * group * size + g[:, None] * size + d[None, :]
        q = tl.load(queries + places, mask=g[:, None] < group, other=0.0)
        largest = tl.full((padded,), -float("inf"), tl.float32)
        total = tl.zeros((padded,), tl.float32)
        result = tl.zeros((padded, size), tl.float32)
        for first in range(0, length, tile):
            there = first + t < length
            at = keys + row * key_row + head * key_head + (first + t)[None, :] * key_position + d[:, None]
            scores = tl.dot(q, tl.load(at, mask=there[None, :], other=0.0)) * scale
            scores = tl.where(there[None, :], scores, -float("inf"))
            newest = tl.maximum(largest, tl.max(scores, 1))
            shrink, weight = tl.exp(largest - newest), tl.exp(scores - newest[:, None])
            at = values + row * value_row + head * value_head + (first + t)[:, None] * value_position + d[None, :]
            v = tl.load(at, mask=there[:, None], other=0.0)
            result = result * shrink[:, None] + tl.dot(weight.to(v.dtype), v)
            total = total * shrink + tl.sum(weight, 1)
            largest = newest
        result = result / total[:, None]
        tl.store(attended + places, result.to(attended.dtype.element_ty), mask=g[:, None] < group)

    return decode

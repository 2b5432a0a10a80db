"""A key-value cache that grows in place, block by block, for `cached.CachedModel`.

transformers' own dynamic layer makes a new tensor of the whole past at every token: the past is copied each time, and
the blocks that are freed are each a little too small for the next, so memory fills with holes (measured with 8 prompts of
`math` on the embedded team: a hundred megabytes).
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

BLOCK = 32  # tokens that a layer gets room for at a time


class GrowingLayer(DynamicLayer):
    """Keys and values (N, heads, tokens, width) as views of tensors with room for more tokens.

    What `update` returned before stays valid until the layer is cropped and written again.
    """

    keys: torch.Tensor
    values: torch.Tensor

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Add the states of new tokens, (N, heads, T, width) each; returns those of all tokens so far."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            self.rooms: list[torch.Tensor | None] = [None, None]
        self.rooms[0], self.keys = append_tokens(self.rooms[0], self.keys, key_states)
        self.rooms[1], self.values = append_tokens(self.rooms[1], self.values, value_states)
        return self.keys, self.values


def append_tokens(room: torch.Tensor | None, held: torch.Tensor, new: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Write `new` behind `held`, in place where `held` lies in `room` and the room is large enough.

    Returns the room and the view of all its tokens. Rows that were picked or repeated lie elsewhere: they get a new room.
    """
    start = held.shape[-2] if held.numel() else 0
    stop = start + new.shape[-2]
    if room is None or held.data_ptr() != room.data_ptr() or len(held) != len(room) or stop > room.shape[-2]:
        size = -(-stop // BLOCK) * BLOCK
        room = new.new_empty(*new.shape[:-2], size, new.shape[-1])
        if start:
            room[..., :start, :] = held
    room[..., start:stop, :] = new
    return room, room[..., :stop, :]


def make_cache(config: Any) -> DynamicCache:
    """transformers' cache for a model of this configuration, its plain layers replaced by growing ones."""
    cache = DynamicCache(config=config)
    cache.layers = [GrowingLayer() if type(layer) is DynamicLayer else layer for layer in cache.layers]
    return cache

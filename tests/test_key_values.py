"""The cache that grows in place against transformers' own, which makes a new one each time."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_team import make_model
from transformers import DynamicCache

from fusionlab.key_values import BLOCK, GrowingLayer, make_cache

STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("read"), st.integers(1, BLOCK + 5)),
        st.tuples(st.just("crop"), st.integers(1, 9)),
        st.tuples(st.just("keep"), st.integers(1, 3)),
        st.tuples(st.just("repeat"), st.integers(1, 2)),
    ),
    max_size=12,
)


@given(steps=STEPS)
def test_any_use_leaves_the_same_keys_and_values_as_transformers_own(steps: list[tuple[str, int]]) -> None:
    """Reading, cropping after a rejected draft, rows that finish, rows that multiply: in any order."""
    generator = torch.Generator().manual_seed(0)
    ours, theirs = make_cache(make_model(0).config), DynamicCache(config=make_model(0).config)
    rows = 3
    for step, size in [("read", 4), *steps]:
        if step == "read":
            for layer in range(2):
                new = torch.randn(2, rows, 2, size, 8, generator=generator)
                got = ours.update(new[0], new[1], layer)
                for mine, reference in zip(got, theirs.update(new[0], new[1], layer), strict=True):
                    assert torch.equal(mine, reference)
        elif step == "crop":
            if size < theirs.get_seq_length():
                ours.crop(-size)
                theirs.crop(-size)
        elif step == "keep":
            kept = torch.arange(rows)[-size:]
            rows = len(kept)
            ours.batch_select_indices(kept)
            theirs.batch_select_indices(kept)
        else:
            rows *= size
            ours.batch_repeat_interleave(size)
            theirs.batch_repeat_interleave(size)
        assert ours.get_seq_length() == theirs.get_seq_length()
    for mine, reference in zip(ours.layers, theirs.layers, strict=True):
        assert torch.equal(mine.keys, reference.keys) and torch.equal(mine.values, reference.values)


def test_a_token_is_written_without_moving_the_past() -> None:
    """That is what the cache is for: a new tensor per token copies the past, and leaves memory full of holes."""
    layer = GrowingLayer()
    places = []
    for _ in range(BLOCK):
        keys, _ = layer.update(torch.zeros(1, 1, 1, 4), torch.zeros(1, 1, 1, 4))
        places.append(keys.data_ptr())
    assert len(set(places)) == 1

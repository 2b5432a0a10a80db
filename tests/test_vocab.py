"""Which token ids a team shares, and which teams are refused."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny_team import WORDS, make_model, make_tokenizer

from fusionlab.errors import VocabMismatchError
from fusionlab.models import LoadedModel, ModelSource
from fusionlab.team import Expert, Team
from fusionlab.vocab import check_special_tokens, id_to_token, shared_width

TOKENS = dict(enumerate("abcdef"))


def make_member(seed: int, *, words: list[str] | None = None, vocab: int = 64) -> LoadedModel:
    """A tiny model with a tokenizer of its own."""
    return LoadedModel(make_model(seed, layers=1, vocab=vocab), make_tokenizer(words), ModelSource("x"), "local")


def build_team(small: LoadedModel, **experts: LoadedModel) -> Team:
    """A team of checkpoints around the usual tiny large model."""
    loaded = {name: Expert(name, "x", "local", member) for name, member in experts.items()}
    return Team(large=make_member(0), small=small, experts=loaded)


@given(st.integers(0, 300), st.integers(0, 300))
def test_padded_heads_are_allowed(large_padding: int, small_padding: int) -> None:
    """Llama pads its head to 32,256 rows and Qwen to 152,064; the padding means nothing."""
    heads = {"large": 6 + large_padding, "small": 6 + small_padding}
    assert shared_width(TOKENS, {"small": TOKENS}, heads=heads) == 6


def test_ids_that_one_model_lacks_are_cut() -> None:
    """A token that the small model does not know cannot be moved by it."""
    assert shared_width(TOKENS, {"small": dict(enumerate("abcd"))}, heads={"large": 6, "small": 6}) == 4
    assert shared_width(TOKENS, {"small": TOKENS}, heads={"large": 6, "small": 5}) == 5


def test_differing_ids_are_named() -> None:
    """The first differing ids show at once whether it is a padding token or another tokenizer."""
    other = TOKENS | {2: "X", 4: "Y", 5: "Z", 0: "W"}
    with pytest.raises(VocabMismatchError, match="math and the large model disagree on 4 token ids") as caught:
        shared_width(TOKENS, {"small": TOKENS, "math": other}, heads={"large": 6, "math": 6})
    assert "id 0 is 'W', the large model's is 'a'; id 2 is 'X', the large model's is 'c'" in str(caught.value)
    assert "id 5" not in str(caught.value)  # three are enough
    assert "share the large model's tokenizer" in str(caught.value)


def test_an_end_token_beyond_the_width_is_refused() -> None:
    """Cut off, it could never be written, and every answer would run to its limit."""
    with pytest.raises(VocabMismatchError, match=r"'f' \(id 5\) lies beyond the 5 ids"):
        check_special_tokens(5, {2, 5}, TOKENS)
    check_special_tokens(6, {2, 5}, TOKENS)


def test_added_tokens_are_compared_too() -> None:
    """Chat tokens are added after training the vocabulary, and differ between fine-tunes."""
    tokenizer = make_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_end|>"]})
    assert id_to_token(tokenizer)[64] == "<|im_end|>"


@pytest.mark.parametrize("member", ["small", "expert"])
def test_a_team_of_different_tokenizers_is_refused(member: str) -> None:
    """Adding logits of unrelated tokens gives fluent nonsense and no error."""
    swapped = [WORDS[1], WORDS[0], *WORDS[2:]]
    other, same = make_member(1, words=swapped), make_member(2)
    named = "small" if member == "small" else "expert 'math'"
    with pytest.raises(VocabMismatchError, match=rf"{named} .* 2 token ids: id 3 is 'w1', .* is 'w0'"):
        build_team(other if member == "small" else same, math=other if member == "expert" else same)


def test_a_team_with_a_padded_large_head_writes_shared_ids_only() -> None:
    """An id in the padding has no text; the fused choice must not be able to reach it."""
    large = make_member(0, vocab=80)
    large.model.get_output_embeddings().weight.data[64:] = 5.0  # the padding rows shout
    team = Team(large=large, small=make_member(1), experts={"a": Expert("a", "x", "local", make_member(2))})
    assert team.width == 64
    written: list[Any] = team.generate(["w1 w2", "w3"], max_new_tokens=12).token_ids
    assert max(max(ids) for ids in written) < 64


def test_a_team_that_could_not_end_is_refused() -> None:
    """The large model's own end token lies in the part that the small model's head lacks."""
    large = make_member(0)
    large.model.generation_config.eos_token_id = [2, 63]
    with pytest.raises(VocabMismatchError, match="id 63"):
        Team(large=large, small=make_member(1, vocab=60), experts={})

"""Do two tokenizers give the same meaning to the same token ids?

Logits of different models are added id by id, so the maps themselves are compared and not their lengths:
heads are padded differently (Llama 32,000 / 32,256; Qwen 151,936 / 152,064) while the maps agree.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fusionlab.errors import VocabMismatchError

_SHOWN = 3  # differing ids named in the error


def id_to_token(tokenizer: Any) -> dict[int, str]:
    """Token id -> token as the vocabulary spells it, added tokens included."""
    return {index: token for token, index in tokenizer.get_vocab().items()}


def shared_width(large: Mapping[int, str], others: Mapping[str, Mapping[int, str]], *, heads: Mapping[str, int]) -> int:
    """How many leading ids all models share; logits are cut to this width V.

    large, others: id -> token maps, by member name; heads: rows of each model's output head.
    Raises `VocabMismatchError` if two maps give different tokens to one id, naming the first such ids.

    >>> shared_width({0: "a", 1: "b"}, {"math": {0: "a", 1: "b"}}, heads={"large": 4, "math": 2})
    2
    """
    for name, other in others.items():
        differing = sorted(index for index in large.keys() & other.keys() if large[index] != other[index])
        if differing:
            shown = "; ".join(
                f"id {index} is {other[index]!r}, the large model's is {large[index]!r}" for index in differing[:_SHOWN]
            )
            raise VocabMismatchError(
                f"{name} and the large model disagree on {len(differing):,} token ids: {shown}",
                remedy="pass a small model and experts that share the large model's tokenizer",
            )
    widths = [max(mapping, default=-1) + 1 for mapping in (large, *others.values())]
    return min(*widths, *heads.values())


def check_special_tokens(width: int, eos_ids: set[int], tokens: Mapping[int, str]) -> None:
    """Raise `VocabMismatchError` if cutting to `width` would remove an end-of-sequence token of the team."""
    lost = sorted(index for index in eos_ids if index >= width)
    if lost:
        raise VocabMismatchError(
            f"end-of-sequence token {tokens.get(lost[0], '?')!r} (id {lost[0]}) lies beyond the {width:,} ids "
            "that all models share, so no answer could end",
            remedy="use models whose tokenizers hold the same special tokens",
        )

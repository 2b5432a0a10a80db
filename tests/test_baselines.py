"""One model alone: the batched loop against Hugging Face's own generate, and stop strings against decoding everything."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_team import make_team
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from fusionlab.baselines import generate_alone
from fusionlab.errors import DistributionError, UnknownNameError
from fusionlab.prompts import PieceReader, StopFinder, cut_at_stop

PROMPTS = ["w1 w2 w3", "w4", "w5 w6 w7 w8 w9 w10 w11", "w12 w13"]


@pytest.mark.parametrize("name", ["large", "small", "a"])
def test_a_member_alone_writes_what_its_own_generate_writes(name: str) -> None:
    """Rows leave the batch at different steps; each must still be its model's greedy answer."""
    team = make_team()
    for model in (team.large.model, team.small.model):
        model.generation_config.eos_token_id = [2, *range(20, 26)]  # so that rows end, and not together
    result = generate_alone(team, name, PROMPTS, max_new_tokens=24, batch_size=3)
    assert team.backbone is not None
    for prompt, written in zip(PROMPTS, result.token_ids, strict=True):
        if name != "large":
            team.backbone.select(["a"] if name == "a" else [], with_small=name != "a")
        ids = team.large.tokenizer(prompt, return_tensors="pt").input_ids
        with torch.no_grad():
            own = team.model_of(name).generate(ids, do_sample=False, max_new_tokens=24)
        assert written == own[0, ids.shape[1] :].tolist()
    assert len({len(ids) for ids in result.token_ids}) > 1, "no row ended early, so nothing was tested"


def test_an_answer_alone_ends_at_a_stop_string() -> None:
    """Tokens after the end of an answer cost time and are thrown away."""
    team = make_team()
    whole = generate_alone(team, "large", PROMPTS, max_new_tokens=24)
    word = team.large.tokenizer.decode(whole.token_ids[0][3])
    stopped = generate_alone(team, "large", PROMPTS, max_new_tokens=24, stop=[word])
    assert len(stopped.token_ids[0]) <= 4 and word not in stopped.texts[0]
    assert stopped.texts == [cut_at_stop(text, [word]) for text in whole.texts]


def test_faults_of_a_member_alone_name_it() -> None:
    """NaN weights and typos, as in fusion."""
    team = make_team()
    team.small.model.model.norm.weight.data[:] = float("nan")
    with pytest.raises(DistributionError, match="expert 'a'"):
        generate_alone(team, "a", PROMPTS)
    with pytest.raises(UnknownNameError, match="known: a, b"):
        generate_alone(team, "c", PROMPTS)


def byte_tokenizer() -> Any:
    """One token a byte: characters beyond ASCII are spread over tokens."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    inner = Tokenizer(models.BPE(vocab={sign: index for index, sign in enumerate(alphabet)}, merges=[]))
    inner.pre_tokenizer, inner.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=inner)


BYTES = byte_tokenizer()


@given(text=st.text("a é\n#.:", max_size=30), stop=st.lists(st.text("a é\n#:", min_size=1, max_size=3), max_size=2))
def test_looking_only_where_a_stop_can_end_finds_the_same_end(text: str, stop: list[str]) -> None:
    """The slow reference decodes the whole answer after every token."""
    holds_stop = StopFinder(BYTES, stop, PieceReader(BYTES))
    ids = BYTES(text).input_ids
    for end in range(1, len(ids) + 1):
        decoded = BYTES.decode(ids[:end])
        finished = cut_at_stop(decoded, stop) != decoded
        assert holds_stop(ids[:end]) == finished
        if finished:
            break

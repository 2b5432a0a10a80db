"""Likelihoods of given continuations against the decode itself, fed token by token."""

from __future__ import annotations

import re
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from tiny_team import make_model, make_team, make_tokenizer

from fusionlab import likelihood
from fusionlab.baselines import score_continuations_alone
from fusionlab.decode import READS_EVIDENCE, TeamReader, fuse_one_token
from fusionlab.errors import PromptError, UnknownNameError
from fusionlab.likelihood import batch_prompts
from fusionlab.models import LoadedModel, ModelSource
from fusionlab.prompts import encode_continuations
from fusionlab.solvers import SOLVERS, KLConstraint
from fusionlab.team import Expert, Team

PROMPTS = ["w1 w2 w3", "w4", "w5 w6 w7 w8 w9 w10 w11", "w12 w13"]
CONTINUATIONS = [[" w20", " w21 w22 w23"], [" w24 w25"], [" w26 w27 w28 w29 w30", " w31", " w26 w27"], [" w32", " w33"]]
CLOSE = 2e-5  # nats, under the same weights
STEEPEST = 10.0  # nats by which a token's log-probability moves, at most, where a weight moves by 1


def score_one_by_one(
    team: Team, prompt: str, tokens: list[int], *, method: str, constraint: KLConstraint, experts: tuple[str, ...]
) -> tuple[list[float], list[list[float]]]:
    """The decode as it is, made to write `tokens`: one row, one token a forward. Nats and weights of each token."""
    reader = TeamReader(team, experts, track_evidence=method in READS_EVIDENCE)
    nats, weights = [], []
    with torch.inference_mode():
        reader.read_prompts({seat[0]: team.encode([prompt], seat[0]) for seat in reader.seats})
        for step, token in enumerate(tokens):
            assert reader.latest is not None and reader.evidence is not None
            fused = fuse_one_token(reader.latest, method=method, constraint=constraint, experts=experts,
                                   evidence=reader.evidence, step=step)  # fmt: skip
            nats.append(float(fused.log_fused[0, token]))
            weights.append([] if fused.solution is None else fused.solution.alpha[0].tolist())
            reader.read_tokens(torch.tensor([token]))
    return nats, weights


def check_against_decode(team: Team, *, method: str, constraint: KLConstraint, experts: tuple[str, ...]) -> None:
    """Every token of every continuation of PROMPTS."""
    found = team.score(PROMPTS, CONTINUATIONS, method=method, constraint=constraint, experts=experts, batch_size=5)
    for prompt, texts, group in zip(PROMPTS, CONTINUATIONS, found, strict=True):
        assert len(texts) == len(group)
        for text, mine in zip(texts, group, strict=True):
            tokens = team.large.tokenizer(text, add_special_tokens=False).input_ids
            nats, weights = score_one_by_one(team, prompt, tokens, method=method, constraint=constraint, experts=experts)
            assert mine.token_ids == tuple(tokens) and mine.tokens == len(tokens)
            apart = np.abs(mine.alpha - np.array(weights).reshape(len(tokens), -1))
            assert apart.max(initial=0.0) <= 5e-4
            assert (np.abs(mine.token_nats - nats) <= CLOSE + STEEPEST * apart.sum(-1)).all()
            assert mine.nats == pytest.approx(sum(nats), abs=1e-4)


@pytest.mark.parametrize("method", sorted(SOLVERS))
@pytest.mark.parametrize("positions", [2, 16])
def test_every_token_has_the_likelihood_that_the_decode_gives_it(
    method: str, positions: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Reading all tokens at once must change neither weights nor evidence, wherever the chunks of positions end."""
    monkeypatch.setitem(likelihood._POSITIONS, "cpu", positions)
    check_against_decode(make_team(), method=method, constraint=KLConstraint(), experts=("a", "b"))


@pytest.mark.parametrize(
    "constraint",
    [KLConstraint(force={1: {"a": 1.7}}), KLConstraint(scale=0.6, budget=0.05), KLConstraint(direction="forward")],
    ids=["force", "budget", "direction"],
)
def test_constraints_hold_as_in_the_decode(constraint: KLConstraint) -> None:
    """A forced weight names the token of the continuation, not of the prompt."""
    check_against_decode(make_team(), method="exact", constraint=constraint, experts=("a",))


def test_a_team_without_experts_gives_the_large_models_likelihood() -> None:
    """No expert, no weights: the same as the large model asked alone."""
    team = make_team()
    check_against_decode(team, method="exact", constraint=KLConstraint(), experts=())
    fused = team.score(PROMPTS, CONTINUATIONS, experts=[])
    alone = score_continuations_alone(team, "large", PROMPTS, CONTINUATIONS)
    for group, other in zip(fused, alone, strict=True):
        for mine, theirs in zip(group, other, strict=True):
            np.testing.assert_allclose(mine.token_nats, theirs.token_nats, atol=CLOSE, rtol=0)
            assert mine.alpha.shape == theirs.alpha.shape == (mine.tokens, 0)


def test_an_expert_with_a_model_of_its_own_is_scored_too() -> None:
    """Checkpoints run beside the backbone, in a seat of their own."""
    team, tokenizer = make_team(), make_tokenizer()
    checkpoint = LoadedModel(make_model(7), tokenizer, ModelSource("test/c"), "local")
    experts = team.experts | {"c": Expert("c", "test/c", "local", loaded=checkpoint)}
    mixed = Team(large=team.large, small=team.small, experts=experts, backbone=team.backbone)
    check_against_decode(mixed, method="evidence", constraint=KLConstraint(), experts=("a", "c"))


def test_logits_that_the_head_alone_does_not_make_are_scored_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """Models that scale or cap their logits hand out logits in place of features."""
    monkeypatch.setattr(Team, "has_plain_head", lambda team, name: False)
    check_against_decode(make_team(), method="exact", constraint=KLConstraint(), experts=("a", "b"))


@pytest.mark.parametrize("name", ["large", "small", "a"])
def test_a_member_alone_gives_what_its_whole_forward_gives(name: str) -> None:
    """The slow reference reads prompt and continuation in one row, without a cache."""
    team = make_team()
    assert team.backbone is not None
    found = score_continuations_alone(team, name, PROMPTS, CONTINUATIONS, batch_size=3)
    team.backbone.select(["a"] if name == "a" else [], with_small=name != "a")
    for prompt, texts, group in zip(PROMPTS, CONTINUATIONS, found, strict=True):
        start = len(team.large.tokenizer(prompt).input_ids)
        for text, mine in zip(texts, group, strict=True):
            ids = team.large.tokenizer(prompt + text, return_tensors="pt").input_ids
            with torch.no_grad():
                log_p = team.model_of(name)(ids).logits[0].log_softmax(-1)
            expected = [float(log_p[at - 1, ids[0, at]]) for at in range(start, ids.shape[1])]
            np.testing.assert_allclose(mine.token_nats, expected, atol=CLOSE, rtol=0)


def test_the_most_probable_first_token_is_what_greedy_decoding_writes() -> None:
    """Scoring every word of the vocabulary and writing are the same question."""
    team = make_team()
    written = team.generate(PROMPTS, method="exact", max_new_tokens=1, trace=None)
    words = team.large.tokenizer.convert_ids_to_tokens(range(3, 64))
    groups = team.score(PROMPTS, [words] * len(PROMPTS), method="exact")
    for ids, group in zip(written.token_ids, groups, strict=True):
        assert max(group, key=lambda one: one.nats).token_ids == tuple(ids)


def test_a_prompt_longer_than_the_context_with_its_continuation_is_refused() -> None:
    """Silently cut text would be another text's likelihood."""
    team = make_team()
    long = " ".join(["w1"] * 126)
    assert team.score([long], [[" w2 w3"]])[0][0].tokens == 2
    for score in (team.score, lambda *asked: score_continuations_alone(team, "large", *asked)):
        with pytest.raises(PromptError, match="prompt 0 has 126 tokens; with 3 new ones it exceeds the context of 128"):
            score([long], [[" w2", " w2 w3 w4"]])


@pytest.mark.parametrize(
    ("continuations", "fault"),
    [([[" w1"]], "2 prompts, and continuations of 1"), ("w1", "2 prompts, and one text"),
     ([[" w1"], []], r"continuations of prompt 1 are \[\]"), ([[" w1"], "w2"], "continuations of prompt 1 are 'w2'"),
     ([[" w1", ""], [" w2"]], "continuation 1 of prompt 0 is ''"), ([[" w1"], [" "]], "' ' of prompt 1 has no token")],
)  # fmt: skip
def test_continuations_that_cannot_be_scored_are_named(continuations: Any, fault: str) -> None:
    """A text by mistake in place of a list would be scored letter by letter."""
    with pytest.raises(PromptError, match=fault):
        make_team().score(["w1", "w2"], continuations)


def test_unknown_names_are_refused() -> None:
    """As in generate."""
    with pytest.raises(UnknownNameError, match="unknown method 'dynamo'"):
        make_team().score(["w1"], [["w2"]], method="dynamo")
    with pytest.raises(UnknownNameError, match="unknown expert 'c'"):
        score_continuations_alone(make_team(), "c", ["w1"], [["w2"]])


class Merging:
    """A tokenizer that writes "ab" as one token and any other letter as its own; begins every text with a mark."""

    def __call__(self, texts: list[str], add_special_tokens: bool = True) -> Any:
        pieces = [re.findall("ab|.", text) for text in texts]
        return SimpleNamespace(input_ids=[[0] * add_special_tokens + [len(piece) * ord(piece[0]) for piece in some]
                                          for some in pieces])  # fmt: skip


def test_tokens_of_a_continuation_are_those_behind_the_prompts_own() -> None:
    """A merge across the border would change the prompt, which is read once for all; the text then has its own tokens."""
    tokenizer = Merging()
    ids = encode_continuations(["xa", "ab"], [["b", "c"], ["c"]], tokenizer, fallback=tokenizer)
    assert ids == [[[ord("b")], [ord("c")]], [[ord("c")]]]


def test_batches_hold_whole_prompts() -> None:
    """A prompt is read once, however many continuations it has."""
    assert [list(range(9))[part] for part in batch_prompts([2, 2, 1, 9, 1], 4)] == [[0, 1], [2], [3], [4]]

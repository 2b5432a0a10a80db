"""A session that goes on from the middle against `Team.generate` from the start: same tokens, same trace, fewer passes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from same_traces import assert_same_trace
from tiny_team import make_model, make_team, make_tokenizer
from transformers import MistralConfig, MistralForCausalLM

from fusionlab import cached
from fusionlab.errors import ConstraintError, DistributionError, FusionError, PromptError, TraceError, UnknownNameError
from fusionlab.models import LoadedModel, ModelSource
from fusionlab.sampling import Sampling
from fusionlab.session import FusionSession
from fusionlab.solvers import KLConstraint
from fusionlab.team import Expert, Team
from fusionlab.trace import Trace

PROMPT = "w1 w2 w3"
PAPER, STRONG, WEAK = KLConstraint(), KLConstraint(scale=1.6), KLConstraint(scale=0.3)


def team_of_checkpoints(seed: int = 0) -> Team:
    """Two experts that are models of their own, so that every member has a cache of its own."""
    tokenizer = make_tokenizer()

    def loaded(name: str, at: int, layers: int) -> LoadedModel:
        return LoadedModel(make_model(seed + at, layers=layers), tokenizer, ModelSource(f"test/{name}"), "local")

    experts = {name: Expert(name, f"test/{name}", "local", loaded(name, at, 1)) for at, name in enumerate("ab", start=2)}
    return Team(large=loaded("large", 0, 2), small=loaded("small", 1, 1), experts=experts)


TEAMS: dict[str, Callable[[], Team]] = {"adapters": make_team, "checkpoints": team_of_checkpoints}


def fresh(team: Team, **options: Any) -> Trace:
    """What the same settings write from the start."""
    settings = {"experts": None, "method": "exact", "max_new_tokens": 24} | options
    (trace,) = team.generate([PROMPT], trace="full", **settings).traces
    return trace


@pytest.mark.parametrize("kind", TEAMS)
@pytest.mark.parametrize("method", ["exact", "grid", "joint", "evidence", "predicted", "static", "average"])
def test_a_new_session_writes_what_the_team_writes(kind: str, method: str) -> None:
    """There is one decode; a session only adds the means to go back."""
    team = TEAMS[kind]()
    trace = FusionSession(team, PROMPT, method=method).generate(24)
    assert_same_trace(trace, fresh(team, method=method))


@pytest.mark.parametrize("kind", TEAMS)
@pytest.mark.parametrize("experts", [["a"], ["b", "a"], []])
def test_another_constraint_gives_what_it_gives_from_the_start(kind: str, experts: list[str]) -> None:
    """The kept beginning is solved again, so the trace must not show that it was ever written otherwise."""
    team = TEAMS[kind]()
    session = FusionSession(team, PROMPT, experts=experts)
    session.generate(24)
    for constraint in (STRONG, WEAK, KLConstraint(scale=0), KLConstraint(budget=0.05), KLConstraint(alpha_max=3), PAPER):
        trace = session.regenerate_from(constraint=constraint)
        assert_same_trace(trace, fresh(team, experts=experts, constraint=constraint))


@pytest.mark.parametrize("kind", TEAMS)
def test_another_method_gives_what_it_gives_from_the_start(kind: str) -> None:
    """Evidence comes and goes with the method, and belongs to each token."""
    team = TEAMS[kind]()
    session = FusionSession(team, PROMPT, method="exact")
    session.generate(24)
    for method in ("evidence", "static", "evidence", "joint", "exact"):
        assert_same_trace(session.regenerate_from(method=method), fresh(team, method=method))


def test_a_single_expert_can_turn_to_evidence() -> None:
    """With one expert the prompt's evidence is not read before it is asked for."""
    team = make_team()
    session = FusionSession(team, PROMPT, experts=["a"], method="exact")
    session.generate(12)
    trace = session.regenerate_from(method="evidence")
    assert_same_trace(trace, fresh(team, experts=["a"], method="evidence", max_new_tokens=12))


def test_tokens_that_stay_cost_no_forward_pass() -> None:
    """That is what the caches are for: only what is written anew is read."""
    team = make_team()
    session = FusionSession(team, PROMPT)
    session.generate(24)
    first = fresh(team).token_ids.tolist()
    second = fresh(team, constraint=STRONG).token_ids.tolist()
    shared = next(i for i, (a, b) in enumerate(zip(first, second, strict=False)) if a != b)
    assert 0 < shared < len(second) - 1, "the constraints must differ in the middle for this test to say anything"
    before = session.forward_passes
    session.regenerate_from(constraint=STRONG)
    rewritten = len(second) - shared
    assert session.forward_passes - before == 2 * (rewritten - 1), "two seats, and the first token is known"


def test_nothing_that_changes_no_token_runs_a_model() -> None:
    """A finished answer is solved again for nothing."""
    team = make_team(experts={"same": 0.0})
    session = FusionSession(team, PROMPT)
    session.generate(16)
    before = session.forward_passes
    assert_same_trace(session.regenerate_from(constraint=STRONG), fresh(team, constraint=STRONG, max_new_tokens=16))
    assert session.forward_passes == before


def test_every_forward_of_every_model_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """The counter is shown as proof, so it must count what really runs."""
    team = team_of_checkpoints()
    session = FusionSession(team, PROMPT, experts=["a", "b"])
    session.generate(1)  # so that heads were probed
    calls = []
    for name in ("large", "small", "a", "b"):
        team.model_of(name).register_forward_hook(lambda *_: calls.append("head"))
        team.model_of(name).base_model.register_forward_hook(lambda *_: calls.append("body"))
    before = session.forward_passes
    session.generate(9)
    assert session.forward_passes - before == calls.count("body") == 4 * 8


@pytest.mark.parametrize("stop_after", [0, 1, 7, 23])
def test_a_stopped_answer_goes_on_as_if_it_had_not_been(stop_after: int) -> None:
    """Stop and continue is what people do with a long text."""
    team = make_team()
    session = FusionSession(team, PROMPT, method="evidence")
    written: list[int] = []
    trace = session.generate(24, on_token=lambda token: written.append(token.id),
                             should_stop=lambda: len(written) >= stop_after)  # fmt: skip
    assert session.stopped and len(trace) == stop_after
    assert_same_trace(session.generate(24), fresh(team, method="evidence"))
    assert not session.stopped


def test_a_callback_that_returns_false_ends_after_its_token() -> None:
    """The same promise as `Team.generate`'s."""
    session = FusionSession(make_team(), PROMPT)
    assert len(session.generate(24, on_token=lambda token: token.step < 4)) == 5
    assert session.stopped


def test_more_and_fewer_tokens_can_be_asked_for() -> None:
    """The limit is of the whole answer, whichever way it goes."""
    team = make_team()
    session = FusionSession(team, PROMPT)
    for limit in (5, 24, 9, 10):
        assert_same_trace(session.generate(limit), fresh(team, max_new_tokens=limit))
    assert_same_trace(session.regenerate_from(constraint=STRONG, max_new_tokens=6),
                      fresh(team, constraint=STRONG, max_new_tokens=6))  # fmt: skip


@pytest.mark.parametrize("kind", TEAMS)
@pytest.mark.parametrize("index", [0, 1, 9])
def test_forced_weights_equal_a_forced_constraint_from_the_start(kind: str, index: int) -> None:
    """What-if weights are the constraint's `force`, and nothing else."""
    team = TEAMS[kind]()
    session = FusionSession(team, PROMPT)
    session.generate(24)
    trace = session.force(index, {"a": 2.0})
    assert_same_trace(trace, fresh(team, constraint=KLConstraint(force={index: {"a": 2.0}})))
    assert trace.alpha[index, 0] == 2.0


@pytest.mark.parametrize("kind", TEAMS)
@pytest.mark.parametrize("index", [0, 1, 9])
def test_a_chosen_token_equals_the_same_choice_from_the_start(kind: str, index: int) -> None:
    """What-if tokens are `choices`, so the call that reproduces a state can name them."""
    team = TEAMS[kind]()
    session = FusionSession(team, PROMPT)
    session.generate(24)
    token = (session.token_ids[index] + 7) % 50 + 5
    trace = session.choose(index, token)
    assert trace.token_ids[index] == token
    assert_same_trace(trace, fresh(team, choices={index: token}))


def test_what_ifs_add_up_in_the_order_of_the_text() -> None:
    """A later what-if keeps the earlier ones; an earlier one drops the later ones with their text."""
    team = make_team()
    session = FusionSession(team, PROMPT)
    session.generate(24)
    session.choose(3, 30)
    session.force(6, 0.5)
    kept = session.choose(8, 31)
    both = {"choices": {3: 30, 8: 31}, "constraint": KLConstraint(force={6: 0.5})}
    assert_same_trace(kept, fresh(team, **both))
    assert_same_trace(session.choose(5, 32), fresh(team, choices={3: 30, 5: 32}))
    assert_same_trace(session.force(2, {"b": 1.0}), fresh(team, constraint=KLConstraint(force={2: {"b": 1.0}})))


def test_a_chosen_token_stays_while_its_text_stays() -> None:
    """Another constraint keeps a what-if token as long as what comes before it is the same."""
    team = make_team()
    session = FusionSession(team, PROMPT)
    session.generate(24)
    session.choose(1, 30)
    constraint = KLConstraint(scale=1.05)
    kept = session.regenerate_from(constraint=constraint)
    assert kept.token_ids[1] == 30, "the constraint must be close for this test to say anything"
    assert_same_trace(kept, fresh(team, choices={1: 30}, constraint=constraint))


def test_a_choice_that_ends_the_answer_ends_it() -> None:
    """An end token is a token like any other."""
    session = FusionSession(make_team(), PROMPT)
    session.generate(12)
    trace = session.choose(4, 2)
    assert len(trace) == 5 and session.finished
    assert trace.text == session.text


@pytest.mark.parametrize("seed", [0, 3])
def test_drawn_answers_go_on_with_the_draws_of_their_place(seed: int) -> None:
    """Token i is drawn with the i-th random number, whether or not it is written for the second time."""
    team = make_team()
    sampling = Sampling(do_sample=True, temperature=1.3)
    session = FusionSession(team, PROMPT, sampling=sampling, seed=seed)
    session.generate(20)
    for constraint in (STRONG, WEAK):
        trace = session.regenerate_from(constraint=constraint)
        reference = fresh(team, constraint=constraint, sampling=sampling, seed=seed, max_new_tokens=20)
        assert_same_trace(trace, reference)


def test_stop_strings_end_and_reopen_an_answer() -> None:
    """Whether an answer is at its end depends on its text, and that may change."""
    team = make_team()
    word = fresh(team).pieces[5].strip()
    session = FusionSession(team, PROMPT, stop=[word])
    assert_same_trace(session.generate(24), fresh(team, stop=[word]))
    assert session.finished
    assert_same_trace(session.regenerate_from(constraint=STRONG), fresh(team, stop=[word], constraint=STRONG))


def test_a_stop_while_solving_again_changes_nothing() -> None:
    """Half of an answer under one constraint and half under another would be a lie."""
    team = make_team()
    session = FusionSession(team, PROMPT)
    before = session.generate(24)
    trace = session.regenerate_from(constraint=STRONG, should_stop=lambda: True)
    assert session.stopped and session.settings.constraint == PAPER
    assert_same_trace(trace, before)
    assert_same_trace(session.regenerate_from(constraint=STRONG), fresh(team, constraint=STRONG))


def test_a_read_that_breaks_off_leaves_a_session_that_works(monkeypatch: pytest.MonkeyPatch) -> None:
    """An interrupt falls between two models' reads: one cache would be a token ahead of the other."""
    team = make_team()
    session = FusionSession(team, PROMPT, method="evidence")
    session.generate(6)
    reads = iter([True, False])
    read = cached.CachedModel.read

    def interrupted(self: cached.CachedModel, *args: Any) -> torch.Tensor:
        if not next(reads, True):
            raise KeyboardInterrupt
        return read(self, *args)

    monkeypatch.setattr(cached.CachedModel, "read", interrupted)
    with pytest.raises(KeyboardInterrupt):
        session.generate(24)
    assert_same_trace(session.generate(24), fresh(team, method="evidence"))
    assert_same_trace(session.regenerate_from(constraint=STRONG), fresh(team, method="evidence", constraint=STRONG))


def test_nan_logits_are_an_error_and_not_an_answer() -> None:
    """A model that overflows must not leave a session that believes it has read."""
    team = make_team()
    session = FusionSession(team, PROMPT)
    session.generate(3)
    with torch.no_grad():
        team.small.model.model.norm.weight.fill_(torch.nan)
    with pytest.raises(DistributionError, match="small"):
        session.generate(24)
    assert len(session.token_ids) == 3


def test_a_cache_that_cannot_go_back_is_read_again() -> None:
    """A sliding window forgets what it would have to go back to."""
    tokenizer = make_tokenizer()
    torch.manual_seed(5)
    config = MistralConfig(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=128, initializer_range=0.3, sliding_window=6, eos_token_id=2,
        pad_token_id=1, bos_token_id=None,
    )  # fmt: skip
    parts = team_of_checkpoints()
    large = LoadedModel(MistralForCausalLM(config).eval(), tokenizer, ModelSource("test/mistral"), "local")
    team = Team(large=large, small=parts.small, experts=parts.experts)
    session = FusionSession(team, PROMPT)
    session.generate(20)
    trace = session.choose(4, 40)
    assert_same_trace(trace, fresh(team, choices={4: 40}, max_new_tokens=20))


def test_bad_input_is_named() -> None:
    """Errors come from the same checks as `Team.generate`'s, before a model runs."""
    team = make_team()
    with pytest.raises(PromptError, match="empty"):
        FusionSession(team, "  ")
    with pytest.raises(UnknownNameError, match="did you mean 'a'"):
        FusionSession(team, PROMPT, experts=["aa"])
    with pytest.raises(UnknownNameError, match="known: static"):
        FusionSession(team, PROMPT, method="exakt")
    with pytest.raises(ConstraintError, match="id from 0 to 63"):
        FusionSession(team, PROMPT, choices={0: 64})
    session = FusionSession(team, PROMPT)
    with pytest.raises(PromptError, match="exceeds the context"):
        session.generate(1000)
    with pytest.raises(TraceError, match="no token 1 in an answer of 0"):
        session.choose(1, 4)
    assert session.forward_passes == 0


def test_a_refused_change_leaves_the_session_as_it_was() -> None:
    """A typing slip in the panel must not cost the answer."""
    team = make_team()
    session = FusionSession(team, PROMPT)
    session.generate(8)
    with pytest.raises(UnknownNameError):
        session.force(2, {"zz": 1.0})
    with pytest.raises(ConstraintError):
        session.choose(2, 99)
    with pytest.raises(UnknownNameError):
        session.regenerate_from(method="exakt")
    assert_same_trace(session.regenerate_from(), fresh(team, max_new_tokens=8))


def test_a_closed_session_says_so_and_keeps_its_trace() -> None:
    """Its memory is the caches; the trace is what was wanted."""
    session = FusionSession(make_team(), PROMPT)
    trace = session.generate(5)
    session.close()
    assert_same_trace(session.trace(), trace)
    with pytest.raises(FusionError, match="closed"):
        session.generate(6)


def test_two_sessions_and_a_generate_do_not_disturb_each_other() -> None:
    """One backbone serves whoever reads next; the explorer's answer must survive a cell that runs meanwhile."""
    team = make_team()
    first, second = FusionSession(team, PROMPT, experts=["a"]), FusionSession(team, PROMPT, experts=["b", "a"])
    for limit in range(1, 13):
        first.generate(limit)
        second.generate(limit)
        team.generate([PROMPT], experts=["b"], max_new_tokens=2)
    assert_same_trace(first.trace(), fresh(team, experts=["a"], max_new_tokens=12))
    assert_same_trace(second.trace(), fresh(team, experts=["b", "a"], max_new_tokens=12))


def test_an_answer_of_an_earlier_session_is_taken_up() -> None:
    """Caches are dropped with old runs; what was written can still be gone on from."""
    team = make_team()
    written = fresh(team, method="evidence", choices={2: 30}, max_new_tokens=12)
    for go_on in (lambda session: session.generate(), lambda session: session.force(5, 0.5)):
        session = FusionSession(team, PROMPT, method="evidence", max_new_tokens=20,
                                choices={2: 30}, token_ids=written.token_ids.tolist())  # fmt: skip
        with pytest.raises(TraceError, match="not read yet"):
            session.trace()
        trace = go_on(session)
        assert_same_trace(trace, fresh(team, method="evidence", choices={2: 30}, max_new_tokens=20,
                                       constraint=session.settings.constraint))  # fmt: skip

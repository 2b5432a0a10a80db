"""The decode against slow references: caches, batches, rows, evidence and the Hugging Face way."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from tiny_team import make_adapter, make_model, make_team, make_tokenizer

from fusionlab import record
from fusionlab.adapters import SharedBackbone
from fusionlab.decode import TeamReader, fusion_generate
from fusionlab.errors import ConstraintError, DistributionError, FusionError, PromptError, UnknownNameError
from fusionlab.models import LoadedModel, ModelSource
from fusionlab.sampling import Sampling
from fusionlab.solvers import KLConstraint
from fusionlab.team import Expert, Team
from fusionlab.trace import ARRAYS, GRID_ARRAYS

PROMPTS = ["w1 w2 w3", "w4", "w5 w6 w7 w8 w9 w10 w11", "w12 w13"]


def large_alone(team: Team, prompt: str, new_tokens: int) -> list[int]:
    """The large model's own greedy generate, one prompt at a time."""
    inputs = team.large.tokenizer(prompt, return_tensors="pt")
    written = team.large.model.generate(
        input_ids=inputs.input_ids,
        attention_mask=inputs.attention_mask,
        do_sample=False,
        max_new_tokens=new_tokens,
    )
    ids: list[int] = written[0, inputs.input_ids.shape[1] :].tolist()
    return ids


def merged_expert(team: Team, name: str) -> Any:
    """The expert as a dense model of its own: W + s B A written into copied weights."""
    assert team.backbone is not None
    import copy

    team.backbone.select(())
    dense = make_model(1, layers=1)
    state = {key.replace(".base.", "."): value for key, value in team.small.model.state_dict().items()}
    dense.load_state_dict(copy.deepcopy(state), strict=True)
    index = team.backbone.names.index(name)
    for module, stack in team.backbone._layers.items():
        pair = stack.factors[index]
        if pair is not None:
            dense.get_submodule(module).weight.data += (pair[0] @ pair[1]).T
    return dense


def proxy_tuning_by_hand(team: Team, expert: Any, prompt: str, weight: float, new_tokens: int) -> list[int]:
    """Proxy tuning written from its definition: no caches, no log-softmax, whole forwards, one row."""
    ids = team.large.tokenizer(prompt, return_tensors="pt").input_ids
    assert team.backbone is not None
    for _ in range(new_tokens):
        with torch.no_grad():
            team.backbone.select(())
            logits = team.large.model(ids).logits[0, -1, : team.width] + weight * (
                expert(ids).logits[0, -1, : team.width] - team.small.model(ids).logits[0, -1, : team.width]
            )
        ids = torch.cat([ids, logits.argmax().view(1, 1)], dim=1)
        if ids[0, -1] == 2:
            break
    length = len(team.large.tokenizer(prompt).input_ids)
    written: list[int] = ids[0, length:].tolist()
    return written


@pytest.mark.parametrize("method", ["exact", "grid", "joint", "evidence", "static", "average"])
def test_scale_zero_reproduces_the_large_models_generate(method: str) -> None:
    """kappa = 0 promises the untouched large model, whatever the method."""
    team = make_team()
    result = team.generate(PROMPTS, method=method, constraint=KLConstraint(scale=0.0), max_new_tokens=24)
    assert result.token_ids == [large_alone(team, prompt, 24) for prompt in PROMPTS]


@pytest.mark.parametrize("method", ["exact", "grid", "joint", "static"])
def test_an_expert_equal_to_small_leaves_the_large_model_untouched(method: str) -> None:
    """Where fine-tuning changed nothing there is nothing to add."""
    team = make_team(experts={"same": 0.0})
    result = team.generate(PROMPTS, method=method, max_new_tokens=24)
    assert result.token_ids == [large_alone(team, prompt, 24) for prompt in PROMPTS]


def test_no_experts_is_the_large_model_alone() -> None:
    """experts=[] must run and record the large model, and nothing else."""
    team = make_team()
    result = team.generate(PROMPTS, experts=[], max_new_tokens=16, trace="full")
    assert result.token_ids == [large_alone(team, prompt, 16) for prompt in PROMPTS]
    assert result.traces[0].alpha.shape == (len(result.token_ids[0]), 0)


@pytest.mark.parametrize("method", ["exact", "grid", "joint", "evidence"])
def test_a_batch_equals_its_prompts_one_by_one(method: str) -> None:
    """Padding, row order and rows that finish early must not change any answer (fp32)."""
    team = make_team()
    together = team.generate(PROMPTS, method=method, max_new_tokens=40)
    apart = [team.generate([prompt], method=method, max_new_tokens=40) for prompt in PROMPTS]
    assert together.token_ids == [single.token_ids[0] for single in apart]
    for trace, single in zip(together.traces, apart, strict=True):
        torch.testing.assert_close(torch.tensor(trace.alpha), torch.tensor(single.traces[0].alpha), atol=5e-3, rtol=0)


@pytest.mark.parametrize("weight", [0.5, 1.0, 1.5])
def test_static_equals_an_independent_proxy_tuning(weight: float) -> None:
    """Proxy tuning adds weight x (expert - small) to the logits; ours must be that, token for token."""
    team = make_team()
    result = team.generate(
        PROMPTS, method="static", constraint=KLConstraint(scale=weight), experts=["a"], max_new_tokens=20
    )
    expert = merged_expert(team, "a")
    by_hand = [proxy_tuning_by_hand(team, expert, prompt, weight, 20) for prompt in PROMPTS]
    assert result.token_ids == by_hand


def test_adapter_rows_equal_merged_models() -> None:
    """Small and experts in one batched forward give what separate dense models give."""
    team = make_team()
    ids = team.encode(["w1 w2 w3 w4"], "small")
    with torch.no_grad():
        reader = TeamReader(team, ["b", "a"])
        dist = reader.read_prompts({seat[0]: ids for seat in reader.seats})
        assert dist.log_r is not None and dist.log_q is not None
        for index, name in enumerate(["b", "a"]):
            dense = merged_expert(team, name)(torch.tensor(ids)).logits[0, -1, : team.width].log_softmax(-1)
            torch.testing.assert_close(dist.log_r[index, 0], dense, atol=2e-5, rtol=1e-4)


def test_full_checkpoints_and_adapters_of_the_same_expert_agree() -> None:
    """An expert may be a checkpoint or an adapter; the answer must not depend on which."""
    team = make_team()
    dense = LoadedModel(merged_expert(team, "a"), team.large.tokenizer, ModelSource("test/dense"), "local")
    apart = Team(large=team.large, small=team.small, experts={"a": Expert("a", "test/dense", "local", dense)},
                 backbone=team.backbone)  # fmt: skip
    one = team.generate(PROMPTS, experts=["a"], max_new_tokens=20)
    other = apart.generate(PROMPTS, experts=["a"], max_new_tokens=20)
    assert one.token_ids == other.token_ids


def test_running_evidence_equals_the_likelihood_of_the_whole_text() -> None:
    """The evidence is sum log R(x_i) - log Q(x_i) over prompt and answer, however it was gathered."""
    team = make_team()
    result = team.generate(PROMPTS, method="evidence", max_new_tokens=12)
    for prompt, trace in zip(PROMPTS, result.traces, strict=True):
        prompt_ids = team.large.tokenizer(prompt).input_ids
        whole = torch.tensor([prompt_ids + trace.token_ids.tolist()])
        assert team.backbone is not None
        team.backbone.select(())
        with torch.no_grad():
            small = team.small.model(whole).logits[0, :-1, : team.width].double().log_softmax(-1)
            for column, name in enumerate(trace.experts):
                expert = merged_expert(team, name)(whole).logits[0, :-1, : team.width].double().log_softmax(-1)
                gain = (expert - small).gather(-1, whole[0, 1:, None]).squeeze(-1).cumsum(0)
                before = gain[len(prompt_ids) - 2] if len(prompt_ids) > 1 else torch.tensor(0.0)
                assert trace.evidence[0, column] == pytest.approx(float(before), abs=1e-3)
                if len(trace) > 1:
                    last = float(gain[len(prompt_ids) + len(trace) - 3])
                    assert trace.evidence[-1, column] == pytest.approx(last, abs=1e-3)


def test_hugging_face_generate_with_fusion_equals_team_generate() -> None:
    """Both doors lead to the same decode; padded rows go on being padded after their end."""
    team = make_team()
    direct = team.generate(PROMPTS, method="exact", max_new_tokens=24)
    inputs = team.large.tokenizer(PROMPTS, return_tensors="pt", padding=True)
    written = team.large.model.generate(
        input_ids=inputs.input_ids, attention_mask=inputs.attention_mask, do_sample=False, max_new_tokens=24,
        custom_generate=fusion_generate, team=team, method="exact",
    )  # fmt: skip
    for row, expected in zip(written[:, inputs.input_ids.shape[1] :].tolist(), direct.token_ids, strict=True):
        assert row[: len(expected)] == expected
        assert set(row[len(expected) :]) <= {team.large.tokenizer.pad_token_id}


def test_fusion_generate_honours_logits_processors() -> None:
    """A processor of the user's (here: a forbidden token) must act on the fused distribution."""
    team = make_team()
    inputs = team.large.tokenizer(PROMPTS[0], return_tensors="pt")
    first = team.generate([PROMPTS[0]], max_new_tokens=1).token_ids[0][0]
    written = team.large.model.generate(
        input_ids=inputs.input_ids, attention_mask=inputs.attention_mask, do_sample=False, max_new_tokens=4,
        bad_words_ids=[[first]], custom_generate=fusion_generate, team=team,
    )  # fmt: skip
    assert first not in written[0, inputs.input_ids.shape[1] :].tolist()


def test_fusion_generate_refuses_another_model() -> None:
    """Fusing onto a model that is not the team's large one would silently mix two teams."""
    team, other = make_team(), make_model(7)
    with pytest.raises(FusionError, match="not the team's large model"):
        other.generate(input_ids=torch.tensor([[5]]), max_new_tokens=2, custom_generate=fusion_generate, team=team)


def test_sampling_repeats_under_its_seed_and_only_then() -> None:
    """An experiment must be repeatable, and two seeds must be two samples."""
    team = make_team()
    warm = Sampling(do_sample=True, temperature=1.5)
    runs = [team.generate(PROMPTS, sampling=warm, seed=seed, max_new_tokens=16).token_ids for seed in (3, 3, 4)]
    assert runs[0] == runs[1]
    assert runs[0] != runs[2]


def test_sampled_tokens_follow_the_fused_distribution() -> None:
    """Chi-square of 4,000 first tokens against the fused probabilities (p > 0.001 under a fixed seed)."""
    from scipy.stats import chisquare

    from fusionlab.sampling import choose_tokens, row_generators

    torch.manual_seed(0)
    log_fused = torch.randn(1, 40).log_softmax(-1).expand(4000, -1)
    sampling = Sampling(do_sample=True)
    drawn = choose_tokens(log_fused, sampling, row_generators(sampling, 5, 4000))
    counts = torch.bincount(drawn, minlength=40).numpy()
    expected = log_fused[0].double().exp().numpy()
    assert chisquare(counts, expected / expected.sum() * 4000).pvalue > 0.001


def test_top_p_keeps_the_nucleus_only() -> None:
    """A nucleus smaller than the best token's probability leaves that token alone."""
    from fusionlab.sampling import choose_tokens, row_generators

    log_fused = torch.tensor([[0.5, 0.3, 0.2]]).log().expand(200, -1)
    sampling = Sampling(do_sample=True, top_p=0.4)
    assert set(choose_tokens(log_fused, sampling, row_generators(sampling, 0, 200)).tolist()) == {0}


def test_streamed_tokens_are_the_answer_and_false_stops() -> None:
    """What on_token sees is what is returned, and returning False ends within that token."""
    team = make_team()
    seen: list[Any] = []
    result = team.generate([PROMPTS[0]], max_new_tokens=8, on_token=seen.append)
    assert [token.id for token in seen] == result.token_ids[0]
    assert set(seen[0].alpha) == {"a", "b"}
    halted = team.generate([PROMPTS[0]], max_new_tokens=8, on_token=lambda token: token.step < 2)
    assert len(halted.token_ids[0]) == 3
    assert len(halted.traces[0]) == 3


def test_stop_strings_end_a_row_and_are_cut() -> None:
    """Few-shot prompts make models go on with the next question; a stop string ends that."""
    team = make_team()
    whole = team.generate([PROMPTS[0]], max_new_tokens=8, min_new_tokens=8)
    third = team.piece(whole.token_ids[0][2]).strip()
    stopped = team.generate([PROMPTS[0]], max_new_tokens=8, min_new_tokens=8, stop=[third])
    assert third not in stopped.texts[0]
    assert whole.texts[0].startswith(stopped.texts[0])
    assert len(stopped.token_ids[0]) <= 3


def test_min_new_tokens_forbids_an_early_end() -> None:
    """Benchmarks compare equal numbers of tokens."""
    team = make_team()
    result = team.generate(PROMPTS, max_new_tokens=30, min_new_tokens=30)
    assert [len(ids) for ids in result.token_ids] == [30] * len(PROMPTS)
    assert all(2 not in ids for ids in result.token_ids)


def test_traces_agree_with_what_was_written() -> None:
    """A trace that misreports its own decode is worse than none."""
    team = make_team()
    result = team.generate(PROMPTS, experts=["a"], max_new_tokens=16, trace="full")
    for ids, trace in zip(result.token_ids, result.traces, strict=True):
        assert trace.token_ids.tolist() == ids
        assert trace.topk_ids_fused[:, 0].tolist() == ids  # greedy
        assert (trace.flipped == (trace.topk_ids_large[:, 0] != trace.topk_ids_fused[:, 0])).all()
        assert trace.grid is not None and trace.grid_kl_forward is not None
        at = abs(trace.grid[None, :] - trace.alpha).argmin(1)
        for token, index in enumerate(at):
            gap = abs(trace.grid[index] - trace.alpha[token, 0])
            table = trace.grid_kl_forward[token, 0]
            low, high = table[max(index - 1, 0)], table[min(index + 1, len(table) - 1)]
            assert low - 1e-5 <= trace.kl_forward[token] <= high + 1e-5 or gap > 0.1


def test_traces_know_which_tokens_end_the_answer() -> None:
    """Pages and terminals show the end as a mark; only the decode knows the models' own ids of it."""
    team = make_team()
    for trace in team.generate(PROMPTS, experts=["a"], max_new_tokens=100).traces:
        assert trace.ends_turn.tolist() == [token == 2 for token in trace.token_ids.tolist()]
        assert trace.meta["end_ids"] == [2]


def test_a_trace_is_the_same_however_often_its_arrays_grew(monkeypatch: pytest.MonkeyPatch) -> None:
    """Columns are filled in place and doubled when full; rows leave the batch at different steps."""
    team = make_team()

    def columns() -> list[dict[str, Any]]:
        result = team.generate(PROMPTS, experts=["a", "b"], max_new_tokens=40, stop=["w7"], trace="full")
        return [{name: getattr(trace, name) for name in (*ARRAYS, *GRID_ARRAYS)} for trace in result.traces]

    usual = columns()
    assert len({len(trace["token_ids"]) for trace in usual}) > 1
    monkeypatch.setattr(record, "_STEPS", 1)
    for mine, theirs in zip(columns(), usual, strict=True):
        for name, array in theirs.items():
            np.testing.assert_array_equal(mine[name], array, err_msg=name)


def test_adapter_factors_are_held_once_whatever_is_selected() -> None:
    """Each expert's 17 MB would otherwise be there twice: as read, and in the batch that runs."""
    team = make_team()
    assert team.backbone is not None
    for names in (["a", "b"], ["b"], ["b", "a"], ["a"]):
        team.backbone.select(names)
        team.small.model(torch.tensor([[3, 4]]).expand(1 + len(names), -1))
        for stack in team.backbone._layers.values():
            batch = stack._stacked[1]
            assert batch is not None
            for name in names:
                pair = stack.factors[team.backbone.names.index(name)]
                assert pair is not None
                for factor, whole in zip(pair, batch, strict=True):
                    assert factor.untyped_storage().data_ptr() == whole.untyped_storage().data_ptr()


@pytest.mark.parametrize(
    ("prompts", "fault"),
    [([""], "prompt 0 is empty"), (["w1", "  "], "prompt 1 is empty"), ([], "no prompt"), ([7], "prompt 0 is int"),
     (["w1 " * 200], "exceeds the context of 128")],
)  # fmt: skip
def test_bad_prompts_are_refused_by_index(prompts: list[Any], fault: str) -> None:
    """The user must learn which prompt is at fault."""
    with pytest.raises(PromptError, match=fault):
        make_team().generate(prompts, max_new_tokens=8)


def test_unknown_names_list_the_known() -> None:
    """A typo costs one look, not a search in the docs."""
    team = make_team(experts={"math": 0.5, "trivia": 0.5})
    with pytest.raises(UnknownNameError, match="did you mean 'math'.*known: math, trivia"):
        team.generate(["w1"], experts=["maths"])
    with pytest.raises(UnknownNameError, match="known:.*exact"):
        team.generate(["w1"], method="exakt")
    with pytest.raises(UnknownNameError, match="known: full, light"):
        team.generate(["w1"], trace="heavy")


@pytest.mark.parametrize("field", [{"temperature": -1.0}, {"top_p": 0.0}, {"top_k": -1}])
def test_impossible_sampling_is_refused(field: dict[str, float]) -> None:
    """A negative temperature would silently invert the model's preferences."""
    with pytest.raises(ConstraintError, match=next(iter(field))):
        Sampling(do_sample=True, **field)  # type: ignore[arg-type]


@pytest.mark.parametrize(("member", "name"), [("large", "large"), ("small", "small")])
def test_nan_weights_name_the_model(member: str, name: str) -> None:
    """NaN logits come from broken weights; the message says whose."""
    team = make_team()
    model = getattr(team, member).model
    model.model.norm.weight.data[:] = float("nan")
    with pytest.raises(DistributionError, match=name):
        team.generate(["w1 w2"], max_new_tokens=4)
    if member == "large":
        with pytest.raises(DistributionError, match="large"):
            team.generate(["w1 w2"], experts=[], max_new_tokens=4)


def test_chat_messages_use_each_models_own_template() -> None:
    """Models of one team may expect different chat formats; tokens that follow are shared."""
    team = make_team()
    other = make_tokenizer()
    team.large.tokenizer.chat_template = "{% for m in messages %}w1 {{ m.content }} w2{% endfor %}"
    other.chat_template = "{% for m in messages %}w3 {{ m.content }}{% endfor %}"
    team.small = LoadedModel(team.small.model, other, team.small.source, "local")
    messages = [{"role": "user", "content": "w9"}]
    assert team.encode([messages], "large") == [team.large.tokenizer("w1 w9 w2").input_ids]
    assert team.encode([messages], "small") == [other("w3 w9").input_ids]
    assert len(team.generate([messages], max_new_tokens=4, method="evidence").texts) == 1


def test_adapters_of_different_ranks_and_layers_share_one_forward() -> None:
    """Experts come from different people: ranks and target modules differ."""
    team = make_team(experts={"a": 0.5})
    assert team.backbone is not None
    wide = make_adapter(make_model(1, layers=1), "wide", 99, rank=5)
    only_down = {module: change for module, change in wide.changes.items() if module.endswith("down_proj")}
    team.backbone.add(type(wide)("wide", only_down))
    team.experts["wide"] = Expert("wide", "test/wide", "local")
    ids = team.encode(["w1 w2 w3"], "small")
    with torch.no_grad():
        reader = TeamReader(team, ["wide", "a"])
        dist = reader.read_prompts({seat[0]: ids for seat in reader.seats})
        assert dist.log_r is not None
        for index, name in enumerate(["wide", "a"]):
            dense = merged_expert(team, name)(torch.tensor(ids)).logits[0, -1, : team.width].log_softmax(-1)
            torch.testing.assert_close(dist.log_r[index, 0], dense, atol=2e-5, rtol=1e-4)


def test_a_misshapen_adapter_is_refused_before_anything_changes() -> None:
    """An adapter of another model must not be half applied."""
    from fusionlab.errors import ModelError

    small = make_model(1, layers=1)
    backbone = SharedBackbone(small)
    foreign = make_adapter(make_model(2, layers=1, hidden=64), "foreign", 0)
    with pytest.raises(ModelError, match="foreign.*the small model has"):
        backbone.add(foreign)
    assert not backbone.names
    assert not backbone._layers

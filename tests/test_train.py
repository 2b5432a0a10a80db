"""Training: the fast paths against slow obvious ones, storage, and determinism by seed."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_llama import VOCABULARY, Letters, tiny_llama

from fusionlab.errors import ConstraintError, UnknownNameError
from fusionlab.train.__main__ import parse, settings_from
from fusionlab.train.corpus import (
    FREE,
    KINDS,
    Corpus,
    draw_starts,
    draw_tokens,
    sample_fresh,
    sample_sequences,
    sample_shard,
)
from fusionlab.train.heal import fresh_kl, heal, heal_one_batch, read_batches, rows_of_step, shard_steps, start_student
from fusionlab.train.llama import (
    empty_cache,
    hidden_states,
    logits_from_states,
    next_token_states,
    read_llama,
    state_from_llama,
)
from fusionlab.train.losses import KlKernels, mean_kl
from fusionlab.train.optimizers import StackedMuon, make_optimizers, rate_share
from fusionlab.train.quantize import fake_nf4, round_to_nf4
from fusionlab.train.settings import CorpusSettings, HealSettings, settings_hash

pytestmark = pytest.mark.usefixtures("one_thread")


# -- quantisation ------------------------------------------------------------------------------------


@given(
    seed=st.integers(0, 10_000),
    shape=st.sampled_from([(64, 64), (3, 128), (32, 34)]),
    scale=st.sampled_from([1e-3, 1.0]),
)
def test_rounding_to_nf4_equals_what_bitsandbytes_stores(seed: int, shape: tuple[int, int], scale: float) -> None:
    """Training must see exactly the weights that will be loaded (double quantisation aside)."""
    from bitsandbytes import functional

    weight = torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * scale
    data, state = functional.quantize_4bit(weight, blocksize=64, compress_statistics=False, quant_type="nf4")
    torch.testing.assert_close(round_to_nf4(weight), functional.dequantize_4bit(data, state), rtol=1e-6, atol=0)


def test_rounding_a_block_of_zeros_gives_zeros() -> None:
    """An untrained LoRA factor is all zeros; its absmax must not divide by zero."""
    assert torch.equal(round_to_nf4(torch.zeros(2, 64)), torch.zeros(2, 64))


def test_the_gradient_passes_straight_through_fake_nf4() -> None:
    """Rounding has no useful gradient of its own; the master weight gets the rounded weight's."""
    weight, factor = torch.randn(4, 64, requires_grad=True), torch.randn(4, 64)
    (fake_nf4(weight) * factor).sum().backward()
    torch.testing.assert_close(weight.grad, factor)


# -- losses --------------------------------------------------------------------------------------------


@given(seed=st.integers(0, 10_000), rows=st.integers(1, 9), chunk=st.integers(1, 10))
def test_mean_kl_and_its_gradient_equal_autograd_of_the_definition(seed: int, rows: int, chunk: int) -> None:
    """The hand-written backward is the one that trains; autograd in float64 is the obvious one."""
    generator = torch.Generator().manual_seed(seed)
    teacher, student = (5 * torch.randn(rows, 50, generator=generator) for _ in range(2))
    student.requires_grad_()
    loss = 3 * mean_kl(teacher, student, kernels=KlKernels(chunk=chunk))
    loss.backward()
    slow = student.detach().double().requires_grad_()
    p, log_q = torch.softmax(teacher.double(), -1), torch.log_softmax(slow, -1)
    expected = 3 * (p * (p.log() - log_q)).sum(-1).mean()
    expected.backward()
    torch.testing.assert_close(loss.detach().double(), expected.detach(), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(student.grad, slow.grad.float(), rtol=1e-4, atol=1e-6)  # type: ignore[union-attr]


# -- the functional Llama --------------------------------------------------------------------------


def test_functional_llama_equals_transformers_on_whole_sequences() -> None:
    """Training runs on our forward and the product on transformers': they must be one function."""
    model = tiny_llama()
    ids = torch.randint(0, VOCABULARY, (3, 17))
    ours = read_llama(model, dtype=torch.float32)
    with torch.no_grad():
        torch.testing.assert_close(
            logits_from_states(ours, hidden_states(ours, ids)),
            model(input_ids=ids).logits,
            rtol=1e-4,
            atol=1e-4,
        )


def test_cached_tokens_equal_whole_sequences() -> None:
    """A wrong position or cache row would only show as slightly strange training text."""
    ours = read_llama(tiny_llama(), dtype=torch.float32)
    ids = torch.randint(0, VOCABULARY, (3, 9))
    whole = logits_from_states(ours, hidden_states(ours, ids))
    cache, weights = empty_cache(ours, rows=3, positions=9), ours.layer_weights()
    for position in range(9):
        logits = logits_from_states(ours, next_token_states(ours, weights, ids[:, position], cache, position))
        torch.testing.assert_close(logits, whole[:, position], rtol=1e-4, atol=1e-4)


def test_a_student_goes_back_into_transformers_unchanged() -> None:
    """What is stored after training must be what was trained."""
    model = tiny_llama()
    student = start_student(read_llama(model, dtype=torch.float32), chosen=(0, 2))
    state = state_from_llama(student)
    assert torch.equal(state["model.layers.1.mlp.up_proj.weight"], model.state_dict()["model.layers.2.mlp.up_proj.weight"])
    other = tiny_llama(layers=2, seed=5)
    other.load_state_dict({**state, "model.embed_tokens.weight": model.model.embed_tokens.weight}, strict=False)
    ids = torch.randint(0, VOCABULARY, (2, 8))
    with torch.no_grad():
        torch.testing.assert_close(
            logits_from_states(student, hidden_states(student, ids)),
            other(input_ids=ids).logits,
            rtol=1e-4,
            atol=1e-4,
        )


# -- corpus ------------------------------------------------------------------------------------------


def test_a_corpus_is_the_same_for_a_seed_and_another_for_another() -> None:
    """Weights can only be reproduced if their text can."""
    model = read_llama(tiny_llama(), dtype=torch.float32)
    settings = CorpusSettings(shards=1, chunks=2, rows=6, length=12, seed=3)
    first, again, other = (
        sample_shard(model, Letters(), chosen, say=lambda line: None).ids
        for chosen in (settings, settings, replace(settings, seed=4))
    )
    assert first.shape == (12, 12)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert not torch.equal(first[:6], first[6:])  # chunks differ


def test_sequences_keep_their_start_and_write_the_rest() -> None:
    """Forced tokens are forced, and nothing after them is."""
    model = read_llama(tiny_llama(), dtype=torch.float32)
    starts, kinds, given_tokens = draw_starts(Letters(), rows=64, length=60, shares=(0.4, 0.3, 0.3), seed=1)
    ids = sample_sequences(model, starts[:, :40], length=44, seed=0)
    known = starts[:, :40] != FREE
    assert torch.equal(ids[:, :40][known].long(), starts[:, :40][known])
    assert set(kinds.tolist()) == {0, 1, 2}
    assert given_tokens.tolist() == (starts != FREE).sum(1).tolist()
    assert (given_tokens[kinds == 0] == 1).all()


def test_draws_follow_the_models_distribution() -> None:
    """A chi-square over 20,000 draws: p-value under 1e-4 for a wrong sampler, fixed seed for a right one."""
    from scipy.stats import chisquare

    logits = torch.tensor([2.0, 1.0, 0.0, -1.0, -torch.inf])
    torch.manual_seed(0)
    drawn = draw_tokens(logits.expand(20_000, 5))
    counts = torch.bincount(drawn, minlength=5)
    assert counts[4] == 0
    assert chisquare(counts[:4].numpy(), (torch.softmax(logits.double(), 0) * 20_000)[:4].numpy()).pvalue > 0.01


# -- healing -----------------------------------------------------------------------------------------


def tiny_settings(**changes: Any) -> HealSettings:
    """A heal of seconds."""
    corpus = CorpusSettings(shards=1, chunks=1, rows=16, length=12, seed=1)
    return replace(HealSettings(corpus=corpus, steps=30, batch=8, learning_rate=5e-3, warmup_steps=3), **changes)


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_healing_lowers_kl_on_its_own_text(optimizer: str) -> None:
    """The loop, its schedule and the switch to fake NF4 work together."""
    teacher = read_llama(tiny_llama(), dtype=torch.float32)
    settings = tiny_settings(optimizer=optimizer)
    corpus = sample_shard(teacher, Letters(), settings.corpus, say=lambda line: None)
    lines: list[str] = []
    healed = heal(teacher, lambda shard: corpus, settings, chosen=(0, 2), log_every=5, say=lines.append)
    assert healed.steps == 30
    assert healed.curve[-1]["kl_nats"] < 0.7 * healed.curve[0]["kl_nats"]
    assert "nf4" in lines[-1]
    assert "nf4" not in lines[0]


def test_healing_goes_on_from_a_checkpoint_as_if_never_stopped(tmp_path: Path) -> None:
    """A run longer than one lease must end in the same weights."""
    teacher = read_llama(tiny_llama(), dtype=torch.float32)
    settings = tiny_settings(steps=12)
    corpus = sample_shard(teacher, Letters(), settings.corpus, say=lambda line: None)
    quiet: dict[str, Any] = {"chosen": (0, 2), "say": lambda line: None}
    whole = heal(teacher, lambda shard: corpus, settings, **quiet)
    checkpoint = tmp_path / "heal.safetensors"
    cut = heal(teacher, lambda shard: corpus, settings, checkpoint=checkpoint, seconds_limit=0.0, **quiet)
    assert cut.steps == 1
    resumed = heal(teacher, lambda shard: corpus, settings, checkpoint=checkpoint, **quiet)
    for name, weight in whole.student.parameters.items():
        torch.testing.assert_close(resumed.student.parameters[name], weight, rtol=1e-5, atol=1e-6)


def test_healing_step_by_step_over_shards_ends_where_one_run_ends(tmp_path: Path) -> None:
    """A stop may fall anywhere in a shard; what follows must read the same rows of the same shard."""
    teacher = read_llama(tiny_llama(), dtype=torch.float32)
    settings = tiny_settings(steps=5, corpus=CorpusSettings(shards=2, chunks=1, rows=16, length=12, seed=1))
    shards = [sample_shard(teacher, Letters(), settings.corpus, shard, say=lambda line: None) for shard in range(2)]
    assert not torch.equal(shards[0].ids, shards[1].ids)
    quiet: dict[str, Any] = {"chosen": (0, 2), "say": lambda line: None}
    whole = heal(teacher, shards.__getitem__, settings, **quiet)
    checkpoint = tmp_path / "heal.safetensors"
    for done in range(1, 6):
        parts = heal(teacher, shards.__getitem__, settings, checkpoint=checkpoint, seconds_limit=0.0, **quiet)
        assert parts.steps == done
    for name, weight in whole.student.parameters.items():
        torch.testing.assert_close(parts.student.parameters[name], weight, rtol=1e-5, atol=1e-6)


def test_every_sequence_is_met_once_per_epoch() -> None:
    """Reuse is by epochs, not by chance."""
    steps = [rows_of_step(20, step, batch=4, seed=0) for step in range(10)]
    epochs = [torch.cat(some) for some in (steps[:5], steps[5:])]
    assert [sorted(epoch.tolist()) for epoch in epochs] == [list(range(20))] * 2
    assert not torch.equal(*epochs)


def test_shards_share_the_steps_and_a_resumed_run_skips_what_is_done() -> None:
    """Every step has one shard, in order, wherever training starts."""
    settings = HealSettings(corpus=CorpusSettings(shards=3), steps=10)
    assert list(shard_steps(settings)) == [(0, range(3)), (1, range(3, 7)), (2, range(7, 10))]
    assert list(shard_steps(settings, first=4)) == [(1, range(4, 7)), (2, range(7, 10))]


def test_states_kept_while_sampling_are_those_of_the_sequences() -> None:
    """Training on kept states must be training on the teacher, position by position."""
    teacher = read_llama(tiny_llama(), dtype=torch.float32)
    kept = torch.full((6, 11, 64), torch.nan)
    starts, kinds, given_tokens = draw_starts(Letters(), rows=6, length=12, shares=(1.0, 0.0, 0.0), seed=1)
    ids = sample_sequences(teacher, starts, length=12, seed=0, states=kept)
    torch.testing.assert_close(kept, hidden_states(teacher, ids[:, :-1].long()), rtol=1e-4, atol=1e-4)
    corpus = Corpus(ids, kinds, given_tokens, kept)
    for step, (batch, states) in enumerate(read_batches(corpus, range(4), batch=2, seed=3)):
        rows = rows_of_step(6, step, batch=2, seed=3)
        assert torch.equal(batch, ids[rows, :-1].long())
        assert states is not None
        assert torch.equal(states, kept[rows])


def test_bf16_healing_has_finite_gradients_for_every_weight() -> None:
    """On a GPU products are bf16 over fp32 masters; every master must still learn."""
    teacher = read_llama(tiny_llama(), dtype=torch.bfloat16)
    student = start_student(teacher, chosen=(0, 2))
    from fusionlab.train.compiled import Compute

    heal_one_batch(teacher, student, torch.randint(0, VOCABULARY, (2, 9)), compute=Compute(), quantized=True).backward()
    for name, weight in student.parameters.items():
        assert weight.dtype == torch.float32
        assert weight.grad is not None, name
        assert torch.isfinite(weight.grad).all(), name
        assert (weight.grad != 0).any(), name


def test_fresh_kl_skips_given_tokens_and_weighs_kinds() -> None:
    """A start that all sequences share would flatter the figure."""
    model = read_llama(tiny_llama(), dtype=torch.float32)
    fresh = sample_fresh(model, Letters(), rows=3, length=40, seed=9)

    def logits(ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        large = torch.zeros(*ids.shape, 4)
        small = torch.zeros(*ids.shape, 4)
        small[..., 0] = torch.arange(ids.shape[1]).float() / 10
        return large, small

    shares = {"raw": 0.5, "chat": 0.25, "question": 0.25}
    found = fresh_kl(logits, fresh, shares=shares, rows=2)
    x = torch.arange(40).double() / 10
    per_position = torch.log(3 + x.exp()) - x / 4 - torch.log(torch.tensor(4.0).double())
    for kind in KINDS:
        expected = torch.stack([per_position[int(n) - 1 :].mean() for n in fresh[kind].given]).mean()
        assert found[kind] == pytest.approx(float(expected), rel=1e-4)
    assert found["overall"] == pytest.approx(sum(shares[kind] * found[kind] for kind in KINDS))


# -- optimizers and settings ---------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(2, 8, 24), (3, 24, 8)])
def test_stacked_muon_equals_torch_muon_layer_by_layer(shape: tuple[int, int, int]) -> None:
    """The batched iteration is only a faster way to do the same update."""
    torch.manual_seed(0)
    stacked = torch.randn(shape).requires_grad_()
    singles = [layer.detach().clone().requires_grad_() for layer in stacked]
    ours = StackedMuon([stacked], lr=0.02, weight_decay=0.1)
    theirs = torch.optim.Muon(singles, lr=0.02, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    for _ in range(3):
        gradient = torch.randn(shape)
        stacked.grad = gradient
        for single, part in zip(singles, gradient, strict=True):
            single.grad = part.clone()
        ours.step()
        theirs.step()
    torch.testing.assert_close(stacked.detach(), torch.stack([s.detach() for s in singles]), rtol=2e-2, atol=2e-3)


def test_muon_leaves_norms_to_adamw() -> None:
    """A norm vector has no singular values to level."""
    parameters = {"norm": torch.ones(4).requires_grad_(), "query": torch.ones(2, 4, 4).requires_grad_(),
                  "norm_mlp": torch.ones(2, 4).requires_grad_()}  # fmt: skip
    muon, adamw = make_optimizers(parameters, kind="muon", lr=1.0, weight_decay=0.0, fused=False)
    assert [p.ndim for group in muon.param_groups for p in group["params"]] == [3]
    assert sorted(p.ndim for group in adamw.param_groups for p in group["params"]) == [1, 2]


def test_the_rate_rises_then_falls_to_its_final_share() -> None:
    """Warm-up, peak, and the end where it was asked to be."""
    shares = [rate_share(step, steps=100, warmup=10, final_share=0.02) for step in range(100)]
    assert shares[:10] == pytest.approx([0.1 * n for n in range(1, 11)])
    assert shares[10] == pytest.approx(1.0)
    assert all(a > b for a, b in itertools.pairwise(shares[10:]))
    assert shares[-1] == pytest.approx(0.02, abs=1e-3)


def test_settings_hash_changes_with_any_field() -> None:
    """A stage may only be skipped if nothing it depends on changed."""
    base = HealSettings()
    changed = [
        base,
        replace(base, steps=1),
        replace(base, corpus=replace(base.corpus, seed=0)),
        replace(base, clip=2.0),
    ]
    assert len({settings_hash(some) for some in changed}) == 4
    assert settings_hash(base) == settings_hash(HealSettings())


def test_set_changes_settings_and_refuses_unknown_names() -> None:
    """A mistyped setting must not silently train with the default."""
    some, experts, bounds = settings_from(
        parse(["all", "--set", "heal.steps=7", "corpus.chunks=3", "expert.rank=32", "math.epochs=2", "bounds.seed=5"])
    )
    assert (some.steps, some.corpus.chunks) == (7, 3)
    assert {expert.task: expert.rank for expert in experts} == dict.fromkeys(("math", "summary", "trivia", "truth"), 32)
    assert {expert.task: expert.epochs for expert in experts}["math"] == 2
    assert (bounds, experts[0].seed) == ({"seed": 5}, 1)
    for wrong in ("heal.stepz=7", "poetry.epochs=1"):
        with pytest.raises(UnknownNameError, match=r"known|one of"):
            settings_from(parse(["all", "--set", wrong]))
    with pytest.raises(ConstraintError, match="unknown optimizer"):
        HealSettings(optimizer="sgd")  # type: ignore[arg-type]

"""Fine-tuning: documents, the loss and its masters, experts as files, upper bounds; each against a plain way."""

from __future__ import annotations

import json
import string
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_llama import VOCABULARY, HfLetters, Letters, tiny_llama
from tiny_tasks import copying
from torch.nn import functional as F

from fusionlab.errors import ModelError
from fusionlab.nf4 import load_tensors, pack_nf4, save_tensors, unpack_nf4
from fusionlab.tasks.task import Item, Phrasing, Task, TaskSpec
from fusionlab.train.bounds import settings_of, train_bounds
from fusionlab.train.documents import Document, Writer, pad_batch, plan_batches
from fusionlab.train.expert import attach_adapter, plain_config, prompt_log_likelihoods, score_alone, train_expert
from fusionlab.train.llama import hidden_states, logits_from_states, read_llama
from fusionlab.train.run import Run
from fusionlab.train.settings import BOUND_EPOCHS, ExpertSettings, TuneSettings
from fusionlab.train.tune import Partners, token_loss, tune, tune_low_rank, tune_whole

pytestmark = pytest.mark.usefixtures("one_thread")


# -- documents ---------------------------------------------------------------------------------------


def test_every_item_is_met_once_per_epoch_as_a_target() -> None:
    """Packing questions into documents and documents into batches must not drop or repeat anything."""
    settings = TuneSettings(epochs=2, batch_tokens=40, document_tokens=20, prompt_weight=0.25)
    batches = plan_batches([Writer(copying(), Letters(), settings)], settings)
    targets = [
        chr(token)
        for batch in batches for document in batch
        for token, weight in zip(document.ids[:-1], document.weights[:-1], strict=True)
        if weight == 1.0 and token != ord(" ")
    ]  # fmt: skip
    assert sorted(targets) == sorted(string.ascii_lowercase[:24] * 2)
    assert all(len(batch) * max(len(document.ids) for document in batch) <= 40 for batch in batches)
    assert len({len(document.ids) for batch in batches for document in batch}) > 1  # with and without solved examples


def test_a_document_reads_like_a_prompt_with_shots_and_ends_once() -> None:
    """What is trained must be what is met in use: the task's own prompt, character by character."""
    task = copying(phrasings=(Phrasing("{question}:", instruction="Repeat."),))
    document, used = Writer(task, Letters(), TuneSettings(prompt_weight=0.5)).write(task.train[:3], 0)
    assert used == 3
    text = "".join(map(chr, document.ids[:-1]))
    assert text == "Repeat.\n\na: a\n\nb: b\n\nc: c"
    assert document.ids[-1] == 2
    marked = "".join("^" if weight == 1.0 else "." for weight in document.weights[:-1])
    assert marked == ".........." + "." + "^^" + "...." + "^^" + "...." + "^^"


def test_options_are_shuffled_between_epochs_and_the_answer_stays() -> None:
    """An expert must not learn that the right option is the second one."""
    item = Item("x", "Which?", "left", fields={"choices": ["left", "right", "up", "down"]})
    spec = TaskSpec("sides", "", extractor="choice", metric="accuracy", phrasings=(Phrasing("{question}:"),))
    writer = Writer(Task(spec, [item], [item]), Letters(), TuneSettings(share_plain=1.0))
    texts = {"".join(map(chr, document.ids)) for number in range(8) for document in writer.epoch(number)}
    assert len(texts) > 3
    assert all(text.endswith(": left\x02") for text in texts)


# -- the loss and its masters ------------------------------------------------------------------------


@given(seed=st.integers(0, 1000), prompt_weight=st.sampled_from([0.0, 0.03, 1.0]))
def test_the_token_loss_equals_a_loop_over_tokens(seed: int, prompt_weight: float) -> None:
    """Padding counts nothing, prompts little, and the mean is over weights, not over tokens."""
    generator = torch.Generator().manual_seed(seed)
    model = read_llama(tiny_llama(layers=1), dtype=torch.float32)
    lengths = torch.randint(3, 9, (4,), generator=generator).tolist()
    documents = [
        Document(
            torch.randint(0, 20, (n,), generator=generator).tolist(), [prompt_weight] * (n // 2) + [1.0] * (n - n // 2)
        )
        for n in lengths
    ]
    ids, weights = pad_batch(documents, device="cpu")
    total, norm = 0.0, 0.0
    for document in documents:
        whole = torch.tensor([document.ids])
        log_p = torch.log_softmax(logits_from_states(model, hidden_states(model, whole))[0].double(), -1)
        for position in range(1, len(document.ids)):
            total -= document.weights[position] * float(log_p[position - 1, document.ids[position]])
            norm += document.weights[position]
    assert float(token_loss(model, ids, weights)) == pytest.approx(total / norm, rel=1e-4)


def test_with_partners_the_answers_loss_is_mixed_with_that_of_the_fused_distribution() -> None:
    """An expert is trained where it is used: on softmax(log P + log R - log Q), and its prompts on its own."""
    large, small, expert = (read_llama(tiny_llama(layers=layers, seed=layers), dtype=torch.float32) for layers in (3, 1, 2))
    documents = [Document([5, 6, 7, 8, 9], [0.1, 0.1, 1.0, 1.0, 1.0]), Document([3, 2, 1], [0.1, 1.0, 1.0])]
    ids, weights = pad_batch(documents, device="cpu")
    total, norm = 0.0, 0.0
    for document in documents:
        whole = torch.tensor([document.ids])
        log_p, log_q, log_r = (
            torch.log_softmax(logits_from_states(model, hidden_states(model, whole))[0].double(), -1)
            for model in (large, small, expert)
        )
        log_fused = torch.log_softmax(log_p + log_r - log_q, -1)
        for position in range(1, len(document.ids)):
            weight, token = document.weights[position], document.ids[position]
            alone, fused = -float(log_r[position - 1, token]), -float(log_fused[position - 1, token])
            total += weight * (0.25 * alone + 0.75 * fused if weight == 1 else alone)
            norm += weight
    loss = token_loss(expert, ids, weights, partners=Partners(large, small, 0.75))
    assert float(loss) == pytest.approx(total / norm, rel=1e-4)


def test_an_expert_for_fusion_without_a_large_model_is_an_error() -> None:
    """Falling back to the plain loss would give another expert than the one asked for."""
    with pytest.raises(ModelError, match="no large model"):
        train_expert(tiny_llama(), copying(), Letters(), ExpertSettings(task="copying"), say=lambda line: None)


def test_untrained_masters_are_the_model_itself() -> None:
    """Low rank starts from no change at all, whole from the very weights."""
    model = read_llama(tiny_llama(), dtype=torch.float32)
    ids = torch.randint(0, VOCABULARY, (2, 7))
    expected = hidden_states(model, ids)
    for tunable in (tune_whole(model), tune_low_rank(model, rank=8, alpha=16, seed=0)):
        torch.testing.assert_close(hidden_states(tunable.build(False), ids), expected)


def test_every_master_learns() -> None:
    """A weight that never gets a gradient would silently stay as it was."""
    model = read_llama(tiny_llama(), dtype=torch.float32)
    settings = TuneSettings(epochs=2, batch_tokens=64, learning_rate=1e-2, warmup_steps=1)
    for tunable in (tune_whole(model), tune_low_rank(model, rank=64, alpha=128, seed=0)):
        before = {name: master.detach().clone() for name, master in tunable.masters.items()}
        batches = plan_batches([Writer(copying(), Letters(), settings)], settings)
        tuned = tune(tunable, batches, settings, label="", say=lambda line: None)
        assert all(not torch.equal(before[name], master) for name, master in tunable.masters.items())
        assert tuned.curve[-1]["loss_nats"] < tuned.curve[0]["loss_nats"]


# -- upper bounds ------------------------------------------------------------------------------------


def test_bounds_record_scores_and_are_not_trained_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A second run with the same settings must only read."""
    from fusionlab import tasks

    monkeypatch.setattr(tasks, "load_task", lambda name: replace_name(copying(), name))
    lines: list[str] = []
    run = Run(out=tmp_path, work=tmp_path, device="cpu", dtype=torch.float32, say=lines.append)
    settings = {"epochs": 2, "batch_tokens": 64, "test_items": 3}
    large = tiny_llama()
    for _ in range(2):
        train_bounds(run, settings, ["a", "b"], large=large, tokenizer=HfLetters())
    scores = json.loads((tmp_path / "scores.json").read_text())
    assert sorted(scores) == ["large-full", "large-lora", "large-multi"]
    assert all(sorted(found) == ["a", "b"] for found in scores.values())
    assert all(0 <= scores[kind][name]["value"] <= 100 and scores[kind][name]["n"] == 3 for kind in scores for name in "ab")
    assert scores["large-multi"]["a"]["trained_on"] == ["a", "b"]
    assert sum("already there" in line for line in lines) == 5


def test_a_bound_that_was_scored_in_another_way_is_scored_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A score of written answers is no bound for chosen options."""
    from fusionlab import tasks

    monkeypatch.setattr(tasks, "load_task", lambda name: replace_name(copying(), name))
    lines: list[str] = []
    run = Run(out=tmp_path, work=tmp_path, device="cpu", dtype=torch.float32, say=lines.append)

    def train() -> int:
        train_bounds(run, {"epochs": 1, "batch_tokens": 64, "test_items": 2}, ["a"], large=tiny_llama(),
                     tokenizer=HfLetters(), kinds=["large-full"])  # fmt: skip
        return sum("already there" in line for line in lines)

    train()
    assert train() == 1
    path = tmp_path / "scores.json"
    path.write_text(path.read_text().replace('"writing"', '"likelihood"'))
    assert train() == 1 and '"writing"' in path.read_text()


def test_a_change_of_the_bounds_settings_is_taken_whatever_its_value() -> None:
    """A value that happens to be another record's default must not read as "not set"."""
    assert settings_of("large-full", ["math"], {}).epochs == BOUND_EPOCHS["math"]
    assert settings_of("large-full", ["math"], {"epochs": 8}).epochs == 8
    assert settings_of("large-lora", ["math"], {"learning_rate": 3e-4}).learning_rate == 3e-4
    assert settings_of("large-multi", ["math", "trivia"], {}).epochs == BOUND_EPOCHS["trivia"]


def replace_name(task: Task, name: str) -> Task:
    """The same task under another name."""
    return replace(task, spec=replace(task.spec, name=name))


# -- choice ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("adapted", [False, True])
def test_a_model_alone_chooses_the_option_that_its_whole_forward_finds_most_probable(adapted: bool) -> None:
    """Scores at training time must be those that evaluation gives; the slow reference reads one option at a time."""
    options = [["x", "yes it", "no"], ["a bc", "b", "cdef"], ["q", "r", "it is"]]
    spec = TaskSpec("choosing", "options", extractor="choice", metric="accuracy", answering="likelihood")
    task = Task(spec, [], [Item(f"{i}", "why" * (3 - i), some[i], fields={"choices": some})
                           for i, some in enumerate(options)])  # fmt: skip
    model, letters = tiny_llama(), HfLetters()
    if adapted:
        settings = ExpertSettings(task="a", epochs=3, batch_tokens=64, learning_rate=1e-2, warmup_steps=1, fused_share=0)
        trained = train_expert(model, copying(), letters, settings, dtype=torch.float32, say=lambda line: None)
        model = attach_adapter(model, trained.tensors, trained.config)
    right = []
    for item in task.test:
        nats = []
        for option in item.choices:
            prompt, text = letters.encode(task.prompt(item)), letters.encode(f" {option}")
            with torch.no_grad():
                log_p = model(torch.tensor([prompt + text])).logits[0].log_softmax(-1)
            nats.append(sum(float(log_p[len(prompt) - 1 + at, token]) for at, token in enumerate(text)))
        right.append(item.choices[nats.index(max(nats))] == item.answer)
    found = score_alone(model, task, letters, batch=7)
    assert found["percent"] == pytest.approx(100 * sum(right) / 3, abs=0.01) and found["n"] == 3


# -- experts -----------------------------------------------------------------------------------------


def test_a_stored_expert_gives_the_same_logits_in_peft_and_in_the_shared_backbone(tmp_path: Path) -> None:
    """Training, its evaluation and the product read one file; they must agree on what it says."""
    from fusionlab.adapters import SharedBackbone, read_adapter

    model = tiny_llama()
    settings = ExpertSettings(
        task="copying", rank=64, alpha=128, epochs=2, batch_tokens=64, learning_rate=1e-2, warmup_steps=2, fused_share=0.0
    )
    trained = train_expert(model, copying(), Letters(), settings, dtype=torch.float32, say=lambda line: None)
    path = tmp_path / "copying.safetensors"
    save_tensors(pack_nf4(trained.tensors), path, metadata={"lora_config": trained.config})
    packed, metadata = load_tensors(path)
    stored = unpack_nf4(packed)
    ids = torch.randint(0, VOCABULARY, (2, 9))
    with torch.no_grad():
        base = model(input_ids=ids).logits
        wrapped = attach_adapter(model, stored, metadata["lora_config"])  # type: ignore[arg-type]
        in_peft = wrapped(input_ids=ids).logits
        wrapped.unload()
        torch.testing.assert_close(model(input_ids=ids).logits, base)  # unload leaves the small model as it was
        backbone = SharedBackbone(model)
        backbone.add(read_adapter(path, name="copying"))
        backbone.select(["copying"])
        both = model(input_ids=ids.repeat(2, 1)).logits
    assert not torch.allclose(in_peft, base)
    torch.testing.assert_close(both[:2], base, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(both[2:], in_peft, rtol=1e-4, atol=1e-4)


def test_training_an_expert_is_repeatable_and_lowers_its_loss() -> None:
    """Fixed seeds: same adapter twice; and it learns, with examples in the prompt too."""
    settings = ExpertSettings(task="copying", rank=8, alpha=16, epochs=6, batch_tokens=64, learning_rate=1e-2,
                              warmup_steps=2, max_shots=2)  # fmt: skip
    first, again = (
        train_expert(
            tiny_llama(),
            copying(),
            Letters(),
            settings,
            large=tiny_llama(layers=3, seed=5),
            dtype=torch.float32,
            log_every=3,
            say=lambda line: None,
        )
        for _ in range(2)
    )
    assert first.tuned.curve[-1]["loss_nats"] < 0.8 * first.tuned.curve[0]["loss_nats"]
    for name, tensor in first.tensors.items():
        assert torch.equal(tensor, again.tensors[name])


def test_prompt_log_likelihoods_equal_one_prompt_at_a_time() -> None:
    """Padding must not leak into the evidence."""
    model = tiny_llama()
    prompts = ["abc", "a longer prompt", "zz"]
    found = prompt_log_likelihoods(model, prompts, Letters())
    for value, prompt in zip(found, prompts, strict=True):
        ids = torch.tensor([Letters().encode(prompt)])
        with torch.no_grad():
            loss = F.cross_entropy(model(input_ids=ids).logits[0, :-1], ids[0, 1:], reduction="sum")
        assert float(value) == pytest.approx(-float(loss), rel=1e-4)


def test_the_stored_lora_configuration_is_small_and_names_what_readers_need() -> None:
    """It travels in every expert file's header."""
    from fusionlab.train.expert import lora_config

    plain = plain_config(lora_config(ExpertSettings(task="math")))
    assert plain["peft_type"] == "LORA"
    assert (plain["r"], plain["lora_alpha"]) == (64, 128)
    assert len(plain["target_modules"]) == 7
    assert len(plain) < 10

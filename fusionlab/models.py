"""Load any Hugging Face causal language model, in 16 or 32 bits or in NF4, after checking that it fits.

A model is named by a hub id or a local folder. Before anything is loaded its memory is estimated from the
configuration and compared with what the machine has. Weights come from safetensors only, code from the
hub never runs unless asked for. This module loads single models; `hub` finds them, `loading` puts them together.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fusionlab.allocator import release_freed_memory
from fusionlab.embedded import quiet_transformers
from fusionlab.errors import ModelError, NotEnoughMemoryError, UnknownNameError
from fusionlab.hub import find_model, revision_of

if TYPE_CHECKING:
    import torch

QUANTIZATIONS = (None, "nf4")
DTYPES = ("float32", "bfloat16", "float16")
_OVERHEAD = 1.1  # activations, allocator slack and the cache of a short prompt
_NF4_BYTES_PER_WEIGHT = 0.5 + (1 + 4 / 256) / 64  # nibble + 8-bit scale per 64 + its own fp32 scale per 256


@dataclass(frozen=True)
class ModelSource:
    """Where a model comes from and how it is to be held in memory."""

    id: str  # hub id or folder
    dtype: str = "float32"
    quantization: str | None = None
    device_map: str | dict[str, Any] | None = None
    revision: str | None = None
    trust_remote_code: bool = False

    def __post_init__(self) -> None:
        if self.quantization not in QUANTIZATIONS:
            raise UnknownNameError(f"unknown quantization {self.quantization!r}", remedy="known: nf4, or None")
        if self.dtype not in DTYPES:
            raise UnknownNameError(f"unknown dtype {self.dtype!r}", remedy=f"known: {', '.join(DTYPES)}")


@dataclass(frozen=True)
class LoadedModel:
    """A model ready to run, its tokenizer, and what the trace will say of it."""

    model: Any
    tokenizer: Any
    source: ModelSource
    revision: str

    @property
    def parameters(self) -> int:
        """Parameters of the architecture, shared ones counted once."""
        return count_parameters(self.model.config)[0]

    def describe(self) -> dict[str, Any]:
        """JSON-able identity: id, revision, dtype, quantization."""
        return {
            "id": self.source.id,
            "revision": self.revision,
            "dtype": self.source.dtype,
            "quantization": self.source.quantization,
        }


def default_dtype(device_map: Any) -> str:
    """fp32 on the CPU (16-bit arithmetic is slow there), bfloat16 on an accelerator."""
    import torch

    wants_cpu = device_map in (None, "cpu") or not torch.cuda.is_available()
    return "float32" if wants_cpu else "bfloat16"


def device_name(device: torch.device | str) -> str:
    """What timings should be told apart by: a GPU's own name ("NVIDIA H100 80GB HBM3"), else the device's kind ("cpu")."""
    import torch

    kind = torch.device(device).type
    return torch.cuda.get_device_name(device) if kind == "cuda" else kind


# -- estimate ------------------------------------------------------------------------------------


def count_parameters(config: Any) -> tuple[int, int]:
    """(all parameters, those in linear layers that NF4 would quantise), without allocating any."""
    import torch
    from accelerate import init_empty_weights
    from transformers import AutoModelForCausalLM

    with init_empty_weights(), quiet_transformers():
        model = AutoModelForCausalLM.from_config(config)
    model.tie_weights()
    head = model.get_output_embeddings()
    linear = sum(
        module.weight.numel() for module in model.modules() if isinstance(module, torch.nn.Linear) and module is not head
    )
    total = sum({id(parameter): parameter.numel() for parameter in model.parameters()}.values())
    return total, linear


def estimate_bytes(config: Any, source: ModelSource, *, dequantized: bool = False) -> int:
    """Memory that a model will take once loaded, in bytes, with a tenth on top for running it."""
    import torch

    total, linear = count_parameters(config)
    width = getattr(torch, source.dtype).itemsize
    if source.quantization == "nf4" and not dequantized:
        return int(_OVERHEAD * ((total - linear) * width + linear * _NF4_BYTES_PER_WEIGHT))
    return int(_OVERHEAD * total * width)


def available_bytes(device_map: Any) -> tuple[int, str]:
    """(memory free for models, its name): all GPUs for an automatic device map, else the machine's RAM."""
    import psutil
    import torch

    if device_map not in (None, "cpu") and torch.cuda.is_available():
        free = sum(torch.cuda.mem_get_info(index)[0] for index in range(torch.cuda.device_count()))
        return free, "GPU memory"
    return min(psutil.virtual_memory().available, memory_limit_bytes()), "memory"


def memory_limit_bytes() -> int:
    """The container's memory limit (cgroup v2), or a very large number where there is none."""
    try:
        limit = Path("/sys/fs/cgroup/memory.max").read_text().strip()
        used = int(Path("/sys/fs/cgroup/memory.current").read_text())
        return int(limit) - used if limit != "max" else 1 << 62
    except (OSError, ValueError):
        return 1 << 62


def check_memory(estimates: dict[str, int], device_map: Any, *, say: Callable[[str], None]) -> None:
    """Say how much each model will take; raise `NotEnoughMemoryError` if together they cannot fit."""
    free, where = available_bytes(device_map)
    needed = sum(estimates.values())
    parts = ", ".join(f"{name} {gib(size)}" for name, size in estimates.items())
    say(f"memory estimate: {gib(needed)} of {gib(free)} free {where} ({parts})")
    if needed > free:
        raise NotEnoughMemoryError(
            f"the team needs about {gib(needed)} and {gib(free)} of {where} is free ({parts})",
            remedy="use quantization='nf4', smaller models, or a machine with more memory",
        )


def gib(size: int) -> str:
    """Bytes as GiB with two digits."""
    return f"{size / 2**30:.2f} GiB"


# -- load ----------------------------------------------------------------------------------------


def dequantizes_at_load(source: ModelSource) -> bool:
    """Whether NF4 weights are expanded once at load: on CPUs whose 4-bit products are slower than fp32.

    Measured without AVX-512, a 4-bit product took 8 times as long as fp32 at batch 1, so the storage stays
    in 4 bits and the arithmetic does not.
    """
    import torch

    on_gpu = source.device_map not in (None, "cpu") and torch.cuda.is_available()
    return source.quantization == "nf4" and not on_gpu and not cpu_has_avx512()


def cpu_has_avx512() -> bool:
    """Whether this CPU multiplies 16-bit floats in 512-bit registers."""
    import torch

    return "avx512" in torch.backends.cpu.get_cpu_capability().lower()


def read_config(source: ModelSource) -> Any:
    """The model's configuration, from its folder or the hub."""
    from transformers import AutoConfig

    folder = find_model(source)
    try:
        return AutoConfig.from_pretrained(folder, trust_remote_code=source.trust_remote_code)
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(f"model {source.id!r} has no usable config: {error}", remedy="check the folder") from error


def load_model(source: ModelSource, *, say: Callable[[str], None] = lambda line: None) -> LoadedModel:
    """Load one model and its tokenizer. Raises `ModelError` with the cause in one line."""
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = find_model(source)
    options: dict[str, Any] = {"dtype": source.dtype, "trust_remote_code": source.trust_remote_code}
    if source.quantization == "nf4":
        options["quantization_config"] = nf4_config(source.dtype)
    if source.device_map is not None:
        options["device_map"] = source.device_map
    try:
        with quiet_transformers():
            tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=source.trust_remote_code)
            model, found = AutoModelForCausalLM.from_pretrained(
                folder, use_safetensors=True, output_loading_info=True, **options
            )
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise ModelError(
            f"model {source.id!r} cannot be loaded: {lines[0]}",
            remedy="check that its weights are whole safetensors files (pickled weights are never loaded)",
        ) from error
    if missing := sorted(found["missing_keys"]):  # transformers would leave them random
        raise ModelError(
            f"model {source.id!r} lacks {len(missing):,} of its weights, {missing[0]!r} first",
            remedy="pass a whole checkpoint of this architecture",
        )
    if source.quantization == "nf4" and model.device.type == "cpu":
        slow, misfit = dequantizes_at_load(source), not fits_packed_blocks(model)
        if slow or misfit:
            why = "this CPU has no fast 4-bit product" if slow else "the fast 4-bit product takes layers of 64 x 32 only"
            say(f"{source.id}: 4-bit weights expanded once to {source.dtype}: {why}")
            model = expand_nf4(model, model_dtype(source))
    release_freed_memory()  # of the weights as they were read
    tokenizer.padding_side = "left"
    return LoadedModel(model.eval(), tokenizer, source, revision_of(folder))


def fits_packed_blocks(model: Any) -> bool:
    """Whether every 4-bit layer has the multiples of inputs and outputs that bitsandbytes' CPU kernels take.

    On CPUs with AVX512-BF16 they repack at the first forward, and fail on other shapes.
    """
    return all(layer.in_features % 64 == 0 and layer.out_features % 32 == 0 for _, layer in layers_in_4_bits(model))


def layers_in_4_bits(model: Any) -> list[tuple[str, Any]]:
    """Names and modules of bitsandbytes' 4-bit linear layers."""
    return [(name, module) for name, module in model.named_modules() if type(module).__name__ == "Linear4bit"]


def expand_nf4(model: Any, dtype: torch.dtype) -> Any:
    """The model with plain layers of the very weights that its 4 bits stand for.

    The arithmetic is our own: with AVX-512, bitsandbytes 0.50.2 expands rows shorter than a block of 64 to wrong
    values (a test shows it); transformers only swaps the layers.
    """
    import torch

    from fusionlab.nf4 import unpack_nf4

    weights = {}
    for name, layer in layers_in_4_bits(model):
        parts = {f"weight.{part}": value for part, value in layer.weight.quant_state.as_dict(packed=True).items()}
        weights[name] = unpack_nf4({"weight": layer.weight.data, **parts})["weight"].to(dtype)
    model = model.dequantize(dtype=dtype)
    with torch.no_grad():
        for name, weight in weights.items():
            model.get_submodule(name).weight.copy_(weight)
    return model


def model_dtype(source: ModelSource) -> torch.dtype:
    """The torch dtype that a source names."""
    import torch

    dtype: torch.dtype = getattr(torch, source.dtype)
    return dtype


def nf4_config(dtype: str) -> Any:
    """bitsandbytes' NF4 with double quantisation (QLoRA, arXiv 2305.14314)."""
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
    )


def share_embeddings(model: Any, large: Any) -> int:
    """Point `model` to the large model's embedding matrices where they are equal; returns bytes saved."""
    import torch

    saved = 0
    for get, put in (("get_input_embeddings", "set_input_embeddings"),
                     ("get_output_embeddings", "set_output_embeddings")):  # fmt: skip
        mine, theirs = getattr(model, get)(), getattr(large, get)()
        if mine is None or theirs is None or mine is theirs or type(mine) is not type(theirs):
            continue
        same = mine.weight.shape == theirs.weight.shape and mine.weight.device == theirs.weight.device
        if same and mine.weight.data_ptr() != theirs.weight.data_ptr() and torch.equal(mine.weight, theirs.weight):
            saved += mine.weight.nbytes
            getattr(model, put)(theirs)
    return saved


def with_id(source: ModelSource, model_id: str) -> ModelSource:
    """The same loading options for another model."""
    return replace(source, id=model_id, revision=None)

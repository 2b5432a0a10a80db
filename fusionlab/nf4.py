"""NF4 storage: 4-bit normal-float weights with double quantisation, as bitsandbytes defines them.

Source of the format: QLoRA (arXiv 2305.14314, section 3), implemented by bitsandbytes. A stored file is
a safetensors file in bitsandbytes' own prequantised layout: for a weight `w` the entries `w` (packed
nibbles, uint8), `w.absmax`, `w.quant_map`, `w.nested_absmax`, `w.nested_quant_map` and
`w.quant_state.bitsandbytes__nf4`. Tensors that are not quantised (norms) are stored as they are.
This module knows nothing of models; it maps names to tensors and back.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from fusionlab.atomic_file import write_atomically
from fusionlab.errors import CorruptFileError

if TYPE_CHECKING:
    import torch

BLOCK_SIZE = 64  # weights that share one scale
_STATE_SUFFIX = ".quant_state.bitsandbytes__nf4"
_PART_SUFFIXES = (".absmax", ".quant_map", ".nested_absmax", ".nested_quant_map", _STATE_SUFFIX)


def quiet_bitsandbytes() -> None:
    """Keep bitsandbytes, when it is first imported, from advising a kernel of the hub that fusionlab has no use for.

    On CPUs with AVX512-BF16 it looks for one (0.50) and warns that the package `kernels` is missing. Every other
    message goes through. Call it before anything that may import bitsandbytes.
    """
    logging.getLogger("bitsandbytes.backends.cpu.ops").addFilter(_is_not_kernel_advice)  # the same filter is added once


def _is_not_kernel_advice(record: logging.LogRecord) -> bool:
    return not record.getMessage().startswith("Failed to load CPU gemm_4bit_forward from kernels-community")


def pack_nf4(tensors: Mapping[str, torch.Tensor], *, keep: Iterable[str] = ()) -> dict[str, torch.Tensor]:
    """Quantise every matrix to NF4 with double quantisation; leave vectors and `keep` as they are.

    tensors: name -> (rows, columns) or (n,), any float dtype. Returns name -> stored tensor on the CPU.
    """
    quiet_bitsandbytes()
    from bitsandbytes import functional

    kept = set(keep)
    packed: dict[str, torch.Tensor] = {}
    for name, tensor in tensors.items():
        if tensor.ndim != 2 or name in kept:
            packed[name] = tensor.detach().cpu().contiguous().clone()
            continue
        data, state = functional.quantize_4bit(
            tensor.detach().float().contiguous(),
            blocksize=BLOCK_SIZE,
            compress_statistics=True,
            quant_type="nf4",
        )
        packed[name] = data.cpu()
        for part, value in state.as_dict(packed=True).items():
            packed[f"{name}.{part}"] = value.cpu()
    return packed


def unpack_nf4(packed: Mapping[str, torch.Tensor], *, device: str = "cpu") -> dict[str, torch.Tensor]:
    """The weights that `pack_nf4` stored: quantised ones dequantised to fp32, the others unchanged.

    Bit for bit what bitsandbytes gives (a test holds this), without importing it: that costs a second and 50 MB.
    """
    tensors: dict[str, torch.Tensor] = {}
    for name, tensor in packed.items():
        if name.endswith(_PART_SUFFIXES):
            continue
        if name + _STATE_SUFFIX in packed:
            parts = {part: value.to(device) for part, value in quant_parts(packed, name).items()}
            tensors[name] = dequantize_nf4(tensor.to(device), parts)
        else:
            tensors[name] = tensor.to(device)
    return tensors


def dequantize_nf4(data: torch.Tensor, parts: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """One weight from its nibbles: w = code[nibble] * scale, one scale per block (QLoRA, section 3).

    data: (n / 2, 1) uint8, the high nibble first. parts: as `quant_parts` gives them. The scales are 8-bit codes
    themselves: scale = nested_code[absmax] * nested_scale + offset. Returns fp32, in the weight's own shape.
    """
    import torch

    state = json.loads(bytes(parts[_STATE_SUFFIX[1:]].tolist()))
    scales = parts["nested_quant_map"][parts["absmax"].int()]  # (blocks,)
    nested = parts["nested_absmax"].repeat_interleave(state["nested_blocksize"])[: len(scales)]
    scales = scales * nested + state["nested_offset"]
    nibbles = torch.stack([data.view(-1) >> 4, data.view(-1) & 0xF], dim=-1).view(-1)  # (n,)
    weights = parts["quant_map"][nibbles.int()].view(len(scales), -1) * scales[:, None]
    stored: torch.dtype = getattr(torch, state["dtype"])  # what the weight was before it was quantised
    return weights.to(stored).float().view(state["shape"])


def quant_parts(packed: Mapping[str, torch.Tensor], name: str) -> dict[str, torch.Tensor]:
    """The statistics stored beside the weight `name`, keyed as `Params4bit.from_prequantized` takes them."""
    return {suffix[1:]: packed[name + suffix] for suffix in _PART_SUFFIXES if name + suffix in packed}


def save_tensors(tensors: Mapping[str, torch.Tensor], path: Path, *, metadata: Mapping[str, object]) -> str:
    """Write a safetensors file, all or nothing; returns its sha256. Raises `OutputError`."""
    from safetensors.torch import save_file

    def write(draft: Path) -> None:
        save_file(dict(tensors), draft, metadata={"fusionlab": json.dumps(dict(metadata))})
        draft.chmod(0o644)  # safetensors makes it 0600, which an installed package must not be

    return sha256_of_file(write_atomically(path, write))


def load_tensors(path: Path, *, sha256: str | None = None) -> tuple[dict[str, torch.Tensor], dict[str, object]]:
    """Read a file that `save_tensors` wrote, after checking its sha256 when one is given.

    Returns the tensors and the metadata. Raises `CorruptFileError` for a wrong hash or an unreadable file.
    """
    from safetensors import SafetensorError, safe_open

    if sha256 is not None:
        check_sha256(path, sha256)
    try:
        with safe_open(path, framework="pt") as stored:
            metadata = json.loads((stored.metadata() or {}).get("fusionlab", "{}"))
            return {name: stored.get_tensor(name) for name in stored.keys()}, metadata  # noqa: SIM118
    except (SafetensorError, ValueError, OSError) as error:
        raise CorruptFileError(
            f"weight file {path} cannot be read as safetensors: {error}",
            remedy="restore it (git checkout, or fetch it again)",
        ) from error


def check_sha256(path: Path, expected: str) -> None:
    """Raise `CorruptFileError` unless the file's sha256 is `expected` (hex)."""
    received = sha256_of_file(path)
    if received != expected:
        raise CorruptFileError(
            f"{path} is corrupted or truncated: {path.stat().st_size:,} bytes with sha256 {received}, expected {expected}",
            remedy="delete it and fetch it again (shipped weights: reinstall, or git checkout)",
        )


def sha256_of_file(path: Path) -> str:
    """Hex sha256 of a file's content."""
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def sha256_of_tensors(tensors: Mapping[str, torch.Tensor]) -> str:
    """Hex sha256 of names, types, shapes and bytes, in the order of the names."""
    import torch

    content = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        content.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        content.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return content.hexdigest()

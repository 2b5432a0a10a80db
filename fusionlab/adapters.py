"""LoRA experts that share one small backbone, so that small and every expert run as one batched forward.

Symbols: M members (member 0 is the untuned small model, 1..E the experts), B prompts, T tokens, r rank.
Rows are laid out member by member: rows [m*B, (m+1)*B) belong to member m. For a linear layer W and the
low-rank change of member m (LoRA, arXiv 2106.09685): y_m = W x_m + s_m * U_m (D_m x_m), with the E
products done as one `bmm`. This module reads PEFT's adapter files and puts the changes on the layers; it
does not train them.
"""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from fusionlab.errors import CorruptFileError, ModelError, UnknownNameError
from fusionlab.nf4 import load_tensors, unpack_nf4

if TYPE_CHECKING:
    from torch import Tensor

_PEFT_PREFIX = "base_model.model."


@dataclass(frozen=True)
class Adapter:
    """The low-rank changes of one expert: module name -> (down (r, in), up (out, r), scaling).

    small_sha256: of the stored small model that it was trained on, where its file says so.
    """

    name: str
    changes: Mapping[str, tuple[Tensor, Tensor, float]]
    small_sha256: str | None = None

    @property
    def bytes(self) -> int:
        """Memory of the two factors as they are held now."""
        return sum(down.nbytes + up.nbytes for down, up, _ in self.changes.values())


def read_adapter(source: Path, *, name: str, sha256: str | None = None) -> Adapter:
    """Read an expert from a PEFT folder (`adapter_config.json`) or from a shipped NF4 file.

    Raises `ModelError` for adapters that are not plain LoRA on linear layers, and for pickled ones;
    `CorruptFileError` if the file is damaged.
    """
    small_sha256 = None
    if source.is_file():
        packed, metadata = load_tensors(source, sha256=sha256)
        config = metadata.get("lora_config")
        small_sha256 = str(metadata["small_sha256"]) if metadata.get("small_sha256") else None
        tensors = unpack_nf4(packed)
    else:
        weights = source / "adapter_model.safetensors"
        if not weights.is_file():
            raise ModelError(
                f"expert {name!r}: {source} holds no adapter_model.safetensors",
                remedy="save the adapter with safe_serialization=True; pickled weights are never loaded",
            )
        tensors, _ = load_tensors(weights)
        config = read_adapter_config(source / "adapter_config.json", name=name)
    if not isinstance(config, dict):
        raise ModelError(f"expert {name!r}: {source} has no LoRA configuration", remedy="save it with PEFT")
    return Adapter(name, pair_factors(tensors, config, name=name), small_sha256)


def check_small_model(adapter: Adapter, sha256: str) -> None:
    """Raise `ModelError` if the adapter says that it was trained on another small model than the one of `sha256`."""
    if adapter.small_sha256 not in (None, sha256):
        raise ModelError(
            f"expert {adapter.name!r} was trained on another small model: one of sha256 {adapter.small_sha256}, "
            f"this one has {sha256}",
            remedy="train it again on this one (fusionlab train expert), or restore the files that belong together",
        )


def read_adapter_config(path: Path, *, name: str) -> Any:
    """PEFT's configuration. Raises `ModelError` where there is none, `CorruptFileError` where it is not JSON."""
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        raise ModelError(f"expert {name!r}: {path} is missing", remedy="save the adapter with PEFT") from None
    except ValueError as error:
        raise CorruptFileError(f"expert {name!r}: {path} is not JSON: {error}", remedy="save it again") from error


def pair_factors(
    tensors: Mapping[str, Tensor], config: Mapping[str, Any], *, name: str
) -> dict[str, tuple[Tensor, Tensor, float]]:
    """Match lora_A with lora_B by module and work out each module's scaling from PEFT's configuration."""
    refuse_unsupported(config, name=name)
    changes = {}
    for key, down in tensors.items():
        if ".lora_A." not in key:
            if ".lora_B." not in key:
                raise ModelError(
                    f"expert {name!r}: tensor {key!r} is not part of a plain LoRA on linear layers",
                    remedy="merge the adapter into a full checkpoint and pass that path",
                )
            continue
        up = tensors.get(key.replace(".lora_A.", ".lora_B."))
        if up is None:
            raise ModelError(f"expert {name!r}: {key!r} has no lora_B beside it", remedy="save the adapter again")
        module = key.split(".lora_A.")[0].removeprefix(_PEFT_PREFIX)
        rank = down.shape[0]
        alpha = pattern_value(config.get("alpha_pattern"), module, config["lora_alpha"])
        scaling = alpha / rank**0.5 if config.get("use_rslora") else alpha / rank
        changes[module] = (down, up, float(scaling))
    return changes


def pattern_value(pattern: Mapping[str, float] | None, module: str, default: float) -> float:
    """PEFT's per-module override: the first key, a regular expression, that the module name ends with."""
    for key, value in (pattern or {}).items():
        if re.match(rf"(.*\.)?({key})$", module):
            return value
    return default


def refuse_unsupported(config: Mapping[str, Any], *, name: str) -> None:
    """Raise `ModelError` for what the batched forward cannot represent."""
    faults = [f"peft_type {config.get('peft_type')}"] if config.get("peft_type") != "LORA" else []
    faults += [key for key in ("use_dora", "modules_to_save", "trainable_token_indices") if config.get(key)]
    if config.get("bias", "none") != "none":
        faults.append(f"bias {config['bias']!r}")
    if faults:
        raise ModelError(
            f"expert {name!r}: the adapter uses {', '.join(faults)}, and only plain LoRA can share a backbone",
            remedy="merge it with PEFT's merge_and_unload and pass the merged checkpoint",
        )


def merge_adapters(adapters: Sequence[Adapter], weights: Sequence[float], name: str) -> Adapter:
    """One adapter whose change is the weighted sum of several: task arithmetic (arXiv 2212.04089).

    sum_t w_t s_t U_t D_t is again low rank: the factors side by side, down (sum r_t, in) and up (out, sum r_t).
    Raises ModelError where the adapters and weights are not as many, or none.
    """
    if not adapters or len(adapters) != len(weights):
        raise ModelError(
            f"{len(adapters)} adapters and {len(weights)} weights cannot be merged", remedy="pass one weight an adapter"
        )
    changes = {}
    for module in dict.fromkeys(module for adapter in adapters for module in adapter.changes):
        parts = [(*adapter.changes[module], weight) for adapter, weight in zip(adapters, weights, strict=True)
                 if module in adapter.changes]  # fmt: skip
        down = torch.cat([down.float() for down, _, _, _ in parts])
        up = torch.cat([up.float() * (scaling * weight) for _, up, scaling, weight in parts], dim=1)
        changes[module] = (down, up, 1.0)
    return Adapter(name, changes)


@dataclass
class Selection:
    """Which members the rows of the current forward belong to; shared by all layers of one backbone."""

    experts: tuple[int, ...] = ()  # indices of the selected experts, in row order
    with_small: bool = True  # whether the untuned small model's rows come first
    version: int = 0


class StackedLora(nn.Module):
    """A linear layer whose row blocks belong to the small model and to the selected experts."""

    def __init__(self, base: nn.Module, selection: Selection) -> None:
        super().__init__()
        self.base = base
        self.selection = selection
        self.factors: list[tuple[Tensor, Tensor] | None] = []  # (in, r), (r, out) per expert; None: no change here
        self._stacked: tuple[int, tuple[Tensor, Tensor] | None] = (-1, None)

    def forward(self, x: Tensor) -> Tensor:
        """x: (M*B, T, in) -> (M*B, T, out)."""
        y = self.base(x)
        stacked = self.stacked_factors(x)
        if stacked is None:
            return y
        down, up = stacked  # (E, in, r), (E, r, out); scaling is folded into `up`
        experts = len(down)
        rows = y.shape[0] // (experts + self.selection.with_small)
        first = rows if self.selection.with_small else 0
        flat = x[first:].reshape(experts, -1, x.shape[-1])  # (E, B*T, in)
        y[first:] += torch.bmm(torch.bmm(flat, down), up).view(experts * rows, *y.shape[1:])
        return y

    def stacked_factors(self, like: Tensor) -> tuple[Tensor, Tensor] | None:
        """The selected experts' factors as two batches, rebuilt only when the selection changes."""
        version, stacked = self._stacked
        if version != self.selection.version:
            stacked = self._stack(like)
            self._stacked = (self.selection.version, stacked)
        return stacked

    def _stack(self, like: Tensor) -> tuple[Tensor, Tensor] | None:
        """(E, in, r) and (E, r, out). Factors are held once: afterwards `factors` are views of these batches."""
        experts = self.selection.experts
        present = [pair for index in experts if (pair := self.factors[index]) is not None]
        if not present:
            return None
        if len(experts) == 1:
            down, up = (factor.to(like.device, like.dtype)[None] for factor in present[0])
        else:
            rank = max(down.shape[1] for down, _ in present)
            inputs, outputs = present[0][0].shape[0], present[0][1].shape[1]
            down = torch.zeros(len(experts), inputs, rank, dtype=like.dtype, device=like.device)
            up = torch.zeros(len(experts), rank, outputs, dtype=like.dtype, device=like.device)
        for row, index in enumerate(experts):
            pair = self.factors[index]
            if pair is not None:
                own = pair[0].shape[1]
                views = down[row, :, :own], up[row, :own]
                if len(experts) > 1:
                    views[0].copy_(pair[0])
                    views[1].copy_(pair[1])
                self.factors[index] = views
        return down, up


class SharedBackbone:
    """The small model with its adapters: one model object, many members.

    Whoever selects rows and reads them holds `lock` meanwhile: a notebook's cell may run while the explorer writes.
    """

    def __init__(self, model: Any) -> None:
        self.model = model
        self.lock = threading.RLock()
        self.selection = Selection()
        self.names: list[str] = []
        self._layers: dict[str, StackedLora] = {}

    def add(self, adapter: Adapter) -> None:
        """Put one more expert on the backbone. Raises `ModelError` for a taken name, a missing or a misshapen module."""
        if adapter.name in self.names:
            raise ModelError(f"the backbone holds an expert {adapter.name!r}", remedy="give this one another name")
        modules = dict(self.model.named_modules())
        for module, (down, up, _) in adapter.changes.items():
            layer = self._layers.get(module) or modules.get(module)
            base = layer.base if isinstance(layer, StackedLora) else layer
            expected = (getattr(base, "in_features", None), getattr(base, "out_features", None))
            if expected != (down.shape[1], up.shape[0]):
                raise ModelError(
                    f"expert {adapter.name!r}: {module} changes a {up.shape[0]} x {down.shape[1]} layer, "
                    f"the small model has {expected[1]} x {expected[0]} there",
                    remedy="pass an adapter that was trained on this small model",
                )
        for module, (down, up, scaling) in adapter.changes.items():
            stack = self._layer(module)
            stack.factors += [None] * (len(self.names) - len(stack.factors))
            stack.factors.append((down.T.contiguous(), (up * scaling).T.contiguous()))
        self.names.append(adapter.name)
        for stack in self._layers.values():
            stack.factors += [None] * (len(self.names) - len(stack.factors))

    def adapter(self, name: str) -> Adapter:
        """The changes of an expert as the backbone runs them: in its dtype, the scaling folded into `up`.

        Raises `UnknownNameError`.
        """
        if name not in self.names:
            raise UnknownNameError(
                f"no adapter {name!r} on the backbone", remedy=f"known: {', '.join(self.names) or 'none'}"
            )
        dtype = self.model.dtype  # factors keep their own until the first forward
        pairs = ((module, stack.factors[self.names.index(name)]) for module, stack in self._layers.items())
        return Adapter(name, {module: (pair[0].T.to(dtype), pair[1].T.to(dtype), 1.0)
                              for module, pair in pairs if pair is not None})  # fmt: skip

    def select(self, names: Sequence[str], *, with_small: bool = True) -> None:
        """Declare whose row blocks the coming forwards hold, the small model's first unless told otherwise."""
        chosen = tuple(self.names.index(name) for name in names)
        self.selection.with_small = with_small
        if chosen != self.selection.experts:
            self.selection.experts = chosen
            self.selection.version += 1

    def _layer(self, module: str) -> StackedLora:
        if module not in self._layers:
            parent = self.model.get_submodule(module.rpartition(".")[0])
            child = module.rpartition(".")[2]
            self._layers[module] = StackedLora(getattr(parent, child), self.selection)
            setattr(parent, child, self._layers[module])
        return self._layers[module]

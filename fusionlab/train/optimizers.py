"""Optimizers on stacked matrices, the learning-rate schedule, and optimizer states as flat tensors.

Muon (Jordan 2024; scale to AdamW's update size from "Muon is Scalable", arXiv 2502.16982): momentum, then
five Newton-Schulz steps that bring every singular value of the update near one. All layers of a stack
(L, out, in) go through the iteration as one batch. A test holds it equal to torch.optim.Muon per layer.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

_NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)


def orthogonalise(update: Tensor, *, steps: int = 5) -> Tensor:
    """Newton-Schulz on a batch of matrices. update: (L, out, in) -> same shape; bf16 on a GPU, else fp32."""
    a, b, c = _NEWTON_SCHULZ
    x = update.bfloat16() if update.is_cuda else update.float()
    tall = x.shape[1] > x.shape[2]
    if tall:
        x = x.transpose(1, 2)
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)
    for _ in range(steps):
        gram = x @ x.transpose(1, 2)
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.transpose(1, 2) if tall else x


class StackedMuon(torch.optim.Optimizer):
    """Muon for parameters of shape (L, out, in), each of the L matrices on its own."""

    def __init__(
        self, parameters: Iterable[Tensor], *, lr: float, momentum: float = 0.95, weight_decay: float = 0.01
    ) -> None:
        super().__init__(parameters, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """One update; `closure` is not supported."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                if not state:
                    state["momentum"] = torch.zeros_like(parameter)
                state["momentum"].lerp_(parameter.grad, 1 - group["momentum"])
                nesterov = parameter.grad.lerp(state["momentum"], group["momentum"])
                size = 0.2 * math.sqrt(max(parameter.shape[1:]))  # AdamW's usual root mean square per entry
                parameter.mul_(1 - group["lr"] * group["weight_decay"])
                parameter.add_(orthogonalise(nesterov).to(parameter.dtype), alpha=-group["lr"] * size)


def make_optimizers(
    parameters: dict[str, Tensor], *, kind: str, lr: float, weight_decay: float, fused: bool
) -> list[torch.optim.Optimizer]:
    """AdamW for everything, or Muon for stacked matrices and AdamW for the norms."""
    options: dict[str, Any] = {"lr": lr, "betas": (0.9, 0.95), "weight_decay": weight_decay, "fused": fused}
    if kind == "adamw":
        return [torch.optim.AdamW(list(parameters.values()), **options)]
    matrices = [tensor for tensor in parameters.values() if tensor.ndim == 3]
    vectors = [tensor for tensor in parameters.values() if tensor.ndim < 3]
    return [
        StackedMuon(matrices, lr=lr, weight_decay=weight_decay),
        torch.optim.AdamW(vectors, **(options | {"weight_decay": 0.0})),
    ]


def rate_share(step: int, *, steps: int, warmup: int, final_share: float) -> float:
    """Share of the learning rate at `step` (from 0): linear warm-up, then a cosine down to `final_share`."""
    if step < warmup:
        return (step + 1) / warmup
    progress = min(1.0, (step - warmup) / max(1, steps - warmup))
    return final_share + (1 - final_share) * 0.5 * (1 + math.cos(math.pi * progress))


def set_rate(optimizers: Iterable[torch.optim.Optimizer], rate: float) -> None:
    """Give every parameter group the learning rate `rate`."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = rate


def flatten_states(optimizers: list[torch.optim.Optimizer]) -> dict[str, Tensor]:
    """All optimizer states as named tensors, fit for safetensors."""
    return {
        f"optimizer.{number}.{index}.{key}": value.detach().clone()
        for number, optimizer in enumerate(optimizers)
        for index, state in optimizer.state_dict()["state"].items()
        for key, value in state.items()
    }


def restore_states(optimizers: list[torch.optim.Optimizer], tensors: dict[str, Tensor]) -> None:
    """Undo `flatten_states`."""
    for number, optimizer in enumerate(optimizers):
        whole = optimizer.state_dict()
        states: dict[int, dict[str, Tensor]] = {}
        for name, value in tensors.items():
            if name.startswith(f"optimizer.{number}."):
                _, _, index, key = name.split(".")
                states.setdefault(int(index), {})[key] = value
        optimizer.load_state_dict({**whole, "state": states})

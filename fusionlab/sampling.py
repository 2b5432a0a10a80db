"""Choose the next token from fused log-probabilities: greedily, or warped and drawn under a seed.

The solve sees untempered distributions; temperature, top-k and top-p act afterwards, on the fused one.
Warpers are transformers' own. Every row has its own generator, so that a row's draws depend on its seed
alone and not on which other rows share its batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from fusionlab.errors import ConstraintError

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn. `do_sample=False` is greedy and ignores the rest."""

    do_sample: bool = False
    temperature: float = 1.0
    top_k: int = 0  # 0: all tokens
    top_p: float = 1.0

    def __post_init__(self) -> None:
        checks = (
            ("temperature", self.temperature > 0, "pass a temperature > 0, or do_sample=False for greedy"),
            ("top_k", self.top_k >= 0, "pass top_k >= 0 (0 keeps every token)"),
            ("top_p", 0 < self.top_p <= 1, "pass 0 < top_p <= 1"),
        )
        for field, valid, remedy in checks:
            if not valid:
                raise ConstraintError(f"{field} is {getattr(self, field)!r}", remedy=remedy)

    @cached_property
    def warpers(self) -> Any:
        """Transformers' warpers in its own order: temperature, top-k, top-p."""
        from transformers import (
            LogitsProcessorList,
            TemperatureLogitsWarper,
            TopKLogitsWarper,
            TopPLogitsWarper,
        )

        warpers = LogitsProcessorList()
        if self.temperature != 1.0:
            warpers.append(TemperatureLogitsWarper(float(self.temperature)))
        if self.top_k:
            warpers.append(TopKLogitsWarper(self.top_k))
        if self.top_p < 1.0:
            warpers.append(TopPLogitsWarper(self.top_p))
        return warpers


def row_generators(sampling: Sampling, seed: int, rows: int) -> list[torch.Generator | None]:
    """One CPU generator per row, seeded seed + row: the same draws on every device. None where greedy."""
    import torch

    if not sampling.do_sample:
        return [None] * rows
    return [torch.Generator().manual_seed(seed + row) for row in range(rows)]


def choose_tokens(
    log_fused: torch.Tensor, sampling: Sampling, generators: Sequence[torch.Generator | None]
) -> torch.Tensor:
    """Next token of every row: (B, V) log-probabilities -> (B,) ids.

    A draw inverts the cumulative distribution at one uniform number, in float64, so it needs one random
    number a row whatever the device.
    """
    import torch

    if not sampling.do_sample:
        return log_fused.argmax(-1)
    warped = sampling.warpers(None, log_fused)
    cumulative = warped.double().softmax(-1).cumsum(-1)  # (B, V)
    uniform = torch.stack([torch.rand(1, generator=generator, dtype=torch.float64) for generator in generators])
    threshold = uniform.to(cumulative.device) * cumulative[:, -1:]
    drawn = torch.searchsorted(cumulative, threshold, right=True).squeeze(-1)
    return drawn.clamp(max=log_fused.shape[-1] - 1)

"""Full traces of steps whose distributions are at hand, through the recorder of the decode."""

from __future__ import annotations

from typing import Any

import torch

from fusionlab.constraint import KLConstraint
from fusionlab.decode import Distributions, fuse_one_token
from fusionlab.record import TraceRecorder
from fusionlab.trace import Trace


def record_steps(
    log_p: torch.Tensor,
    log_q: torch.Tensor,
    log_r: torch.Tensor,
    evidence: torch.Tensor,
    *,
    method: str = "evidence",
    constraint: KLConstraint | None = None,
    tokens: Any = None,
) -> Trace:
    """A trace whose token i was decided by row i. log_p, log_q: (N, V); log_r: (E, N, V); evidence: (N, E).

    tokens: (N,) what was written; the likeliest fused tokens by default.
    """
    constraint = constraint or KLConstraint()
    experts = tuple("abcdefgh"[: len(log_r)])
    recorder = TraceRecorder(
        prompts=["prompt"], experts=experts, method=method, constraint=constraint, level="full",
        piece_of=lambda token: f" {token}", meta={},
    )  # fmt: skip
    for i in range(len(log_p)):
        step = fuse_one_token(
            Distributions(log_p[i : i + 1], log_q[i : i + 1], log_r[:, i : i + 1]),
            method=method, constraint=constraint, experts=experts, evidence=evidence[i : i + 1].double(), step=i,
        )  # fmt: skip
        written = step.log_fused.argmax(-1) if tokens is None else torch.tensor([int(tokens[i])])
        recorder.add_step(step, written, [0])
    return recorder.finish(["".join(f" {i}" for i in range(len(log_p)))])[0]

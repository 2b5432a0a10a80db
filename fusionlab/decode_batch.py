"""Write the answers of one batch of prompts: the loop around `decode`, with streaming, traces and early stop.

Rows that are finished leave the batch at once (their caches too), so a batch costs what its live rows cost.
B is the number of live rows.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from fusionlab.allocator import release_freed_memory
from fusionlab.decode import READS_EVIDENCE, FusedStep, TeamReader, fuse_one_token
from fusionlab.prompts import Prompt, StopFinder, check_lengths, cut_at_stop, prompt_text
from fusionlab.record import TraceRecorder
from fusionlab.sampling import Sampling, choose_tokens, row_generators
from fusionlab.solvers import KLConstraint

if TYPE_CHECKING:
    from fusionlab.team import Team
    from fusionlab.trace import Trace

RELEASE_STEPS = 16  # steps after which freed memory is handed back; it takes under a hundredth of their time


@dataclass(frozen=True)
class DecodeSettings:
    """What stays the same over the batches of one `generate` call."""

    method: str
    constraint: KLConstraint
    experts: tuple[str, ...]
    max_new_tokens: int
    min_new_tokens: int
    stop: tuple[str, ...]
    sampling: Sampling
    trace: str | None
    choices: Mapping[int, int] = field(default_factory=dict)  # token of the answer -> the id that is written there


@dataclass(frozen=True)
class Token:
    """One token as it is written, for streaming."""

    row: int  # index of the prompt
    step: int  # index of the token in the answer
    id: int
    piece: str
    alpha: Mapping[str, float]  # expert -> weight
    large_choice: int  # what the large model alone would have written here


@dataclass(frozen=True)
class DecodedBatch:
    """The answers of one batch, and whether a callback ended it early."""

    texts: list[str]
    token_ids: list[list[int]]
    traces: list[Trace]
    stopped: bool


OnToken = Callable[[Token], bool | None]


@torch.inference_mode()
def decode_batch(
    team: Team,
    prompts: Sequence[Prompt],
    settings: DecodeSettings,
    *,
    seed: int,
    on_token: OnToken | None = None,
    first_row: int = 0,
) -> DecodedBatch:
    """Answer all `prompts` together. first_row: index of the first one in the caller's list."""
    reader = TeamReader(team, settings.experts, track_evidence=settings.method in READS_EVIDENCE)
    encoded = {seat[0]: team.encode(prompts, seat[0]) for seat in reader.seats}
    longest = [max(map(len, rows)) for rows in zip(*encoded.values(), strict=True)]
    check_lengths(longest, settings.max_new_tokens, team.context_length(settings.experts))
    recorder = make_recorder(team, prompts, settings, seed=seed)
    generators = row_generators(settings.sampling, seed, len(prompts))
    eos_ids = torch.tensor(sorted(team.eos_ids(settings.experts)))
    holds_stop = StopFinder(team.large.tokenizer, settings.stop, team.piece)

    answers: list[list[int]] = [[] for _ in prompts]
    live = list(range(len(prompts)))
    stopped = False
    reader.read_prompts(encoded)
    for step in range(settings.max_new_tokens):
        if step % RELEASE_STEPS == 0:
            release_freed_memory()
        fused = fuse_live_rows(reader, settings, step)
        tokens = choose_next(fused.log_fused, settings, step, [generators[row] for row in live], eos_ids)
        if recorder is not None:
            recorder.add_step(fused, tokens, live)
        for row, token in zip(live, tokens.tolist(), strict=True):
            answers[row].append(token)
        stopped = on_token is not None and not stream(team, fused, tokens, live, step, on_token, settings, first_row)
        finished = torch.isin(tokens, eos_ids) | torch.tensor([holds_stop(answers[row]) for row in live])
        going = (~finished).nonzero().squeeze(-1)
        if stopped or len(going) == 0 or step == settings.max_new_tokens - 1:
            break
        if len(going) < len(live):
            reader.keep_rows(going)
            live, tokens = [live[row] for row in going.tolist()], tokens[going]
        reader.read_tokens(tokens)
    whole = team.large.tokenizer.batch_decode(answers, skip_special_tokens=True)
    texts = [cut_at_stop(text, settings.stop) for text in whole]
    traces = [] if recorder is None else recorder.finish(texts)
    del reader  # frees its caches
    release_freed_memory()
    return DecodedBatch(texts, answers, traces, stopped)


def choose_next(
    log_fused: torch.Tensor,
    settings: DecodeSettings,
    step: int,
    generators: Sequence[torch.Generator | None],
    eos_ids: torch.Tensor,
) -> torch.Tensor:
    """The token that every live row writes at a step, on the CPU: (B, V) log-probabilities -> (B,) ids."""
    if step < settings.min_new_tokens:
        log_fused = log_fused.index_fill(-1, eos_ids.to(log_fused.device), -torch.inf)
    tokens = choose_tokens(
        log_fused, settings.sampling, generators
    ).cpu()  # drawn even where it is not used: equal draws after
    return torch.full_like(tokens, settings.choices[step]) if step in settings.choices else tokens


def fuse_live_rows(reader: TeamReader, settings: DecodeSettings, step: int) -> FusedStep:
    """The fused distributions of all live rows at one step."""
    assert reader.latest is not None and reader.evidence is not None
    return fuse_one_token(reader.latest, method=settings.method, constraint=settings.constraint,
                          experts=settings.experts, evidence=reader.evidence, step=step)  # fmt: skip


def stream(
    team: Team,
    fused: FusedStep,
    tokens: torch.Tensor,
    live: Sequence[int],
    step: int,
    on_token: OnToken,
    settings: DecodeSettings,
    first_row: int,
) -> bool:
    """Hand every new token to the callback; false once it returned False."""
    choices = fused.distributions.log_p.argmax(-1).tolist()
    alphas = [[]] * len(live) if fused.solution is None else fused.solution.alpha.tolist()
    wanted = True
    for row, token, choice, alpha in zip(live, tokens.tolist(), choices, alphas, strict=True):
        weights = dict(zip(settings.experts, alpha, strict=False))
        written = Token(first_row + row, step, token, team.piece(token), weights, choice)
        wanted = on_token(written) is not False and wanted
    return wanted


def make_recorder(team: Team, prompts: Sequence[Prompt], settings: DecodeSettings, *, seed: int) -> TraceRecorder | None:
    """The recorder that a trace level asks for, or None."""
    if settings.trace is None:
        return None
    return TraceRecorder(
        prompts=[prompt_text(prompt) for prompt in prompts], experts=settings.experts, method=settings.method,
        constraint=settings.constraint, level=settings.trace, piece_of=team.piece,
        meta=trace_meta(team, settings, seed=seed),
    )  # fmt: skip


def trace_meta(team: Team, settings: DecodeSettings, *, seed: int) -> dict[str, Any]:
    """What a trace says of how it came about, beside method and constraint."""
    sampling: dict[str, Any] = {"do_sample": settings.sampling.do_sample}
    if settings.sampling.do_sample:
        sampling |= {"temperature": settings.sampling.temperature, "top_k": settings.sampling.top_k,
                     "top_p": settings.sampling.top_p}  # fmt: skip
    meta = {"models": team.describe(), "seed": seed, "sampling": sampling,
            "end_ids": sorted(team.eos_ids(settings.experts))}  # fmt: skip
    choices = {str(step): token for step, token in settings.choices.items()}
    return meta | ({"choices": choices} if choices else {})

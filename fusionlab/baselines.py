"""What fusion is compared with: one model of the team writing, or judging, alone, by the same batched loop as fusion.

Proxy tuning (arXiv 2401.08565) is the fusion method "static" and needs nothing here; nor does task arithmetic
(`adapters.merge_adapters`), whose result is one more expert.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch

from fusionlab.allocator import release_freed_memory
from fusionlab.cached import CachedModel, apply_heads
from fusionlab.decode import check_no_nan, pad_left
from fusionlab.likelihood import Likelihood, batch_prompts, check_context, score_with_one_model
from fusionlab.prompts import (
    PieceReader,
    Prompt,
    StopFinder,
    check_continuations,
    check_lengths,
    check_prompts,
    cut_at_stop,
    encode_continuations,
)
from fusionlab.team import GenerationResult

if TYPE_CHECKING:
    from fusionlab.team import Team


@torch.inference_mode()
def generate_alone(
    team: Team, name: str, prompts: Prompt | Sequence[Prompt], *, max_new_tokens: int = 64,
    stop: Sequence[str] = (), batch_size: int = 16, should_stop: Callable[[], bool] | None = None,
) -> GenerationResult:  # fmt: skip
    """Greedy answers of one member alone: "large", "small" or an expert's name; no traces.

    stop: strings that end an answer (see `prompts.cut_at_stop`). should_stop: asked before every token; True ends the
    generation there. Raises `PromptError`, `UnknownNameError`.
    """
    started = time.perf_counter()
    batch = check_prompts(prompts)
    if name not in ("large", "small"):
        team.choose_experts([name])
    encoded = team.encode(batch, name)
    check_lengths([len(ids) for ids in encoded], max_new_tokens, team.context_length())
    answers: list[list[int]] = []
    for start in range(0, len(batch), batch_size):
        part = encoded[start : start + batch_size]
        answers += write_alone(team, name, part, max_new_tokens, stop, should_stop=should_stop)
        release_freed_memory()
    texts = team.tokenizer_of(name).batch_decode(answers, skip_special_tokens=True)
    texts = [cut_at_stop(text, stop) for text in texts]
    return GenerationResult(texts, answers, [], time.perf_counter() - started)


def write_alone(
    team: Team, name: str, prompts: Sequence[Sequence[int]], max_new_tokens: int, stop: Sequence[str], *,
    should_stop: Callable[[], bool] | None = None,
) -> list[list[int]]:  # fmt: skip
    """The token ids that one member writes after each prompt, together; finished rows leave the batch."""
    tokenizer = team.tokenizer_of(name)
    holds_stop = StopFinder(tokenizer, stop, team.piece if tokenizer is team.large.tokenizer else PieceReader(tokenizer))
    eos_ids = torch.tensor(sorted(team.eos_ids()))
    plain = team.has_plain_head(name)  # probes the backbone, so before it is told whose rows come
    reader = CachedModel(team.model_of(name), plain_head=plain)
    answers: list[list[int]] = [[] for _ in prompts]
    live = list(range(len(prompts)))
    with selected_alone(team, name):
        features = reader.read(*pad_left(prompts, device=reader.device))
    for step in range(max_new_tokens):
        if should_stop is not None and should_stop():
            break
        (logits,) = apply_heads([reader], [features[:, -1]], team.width)
        if step == 0:
            check_no_nan(logits, name)
        tokens = logits.argmax(-1).cpu()
        for row, token in zip(live, tokens.tolist(), strict=True):
            answers[row].append(token)
        going = (~(torch.isin(tokens, eos_ids) | torch.tensor([holds_stop(answers[row]) for row in live]))).nonzero()[:, 0]
        if len(going) == 0 or step == max_new_tokens - 1:
            break
        if len(going) < len(live):
            reader.keep_rows(going)
            live, tokens = [live[row] for row in going.tolist()], tokens[going]
        with selected_alone(team, name):
            features = reader.read(tokens.to(reader.device)[:, None])
    return answers


@torch.inference_mode()
def score_continuations_alone(
    team: Team, name: str, prompts: Prompt | Sequence[Prompt], continuations: Sequence[Sequence[str]], *,
    batch_size: int = 16,
) -> list[list[Likelihood]]:  # fmt: skip
    """How probable each continuation of every prompt is for one member alone; as `Team.score` otherwise."""
    batch = check_prompts(prompts)
    texts = check_continuations(batch, continuations)
    if name not in ("large", "small"):
        team.choose_experts([name])
    encoded = team.encode(batch, name)
    groups = encode_continuations(batch, texts, team.tokenizer_of(name), fallback=team.large.tokenizer)
    check_context([len(ids) for ids in encoded], groups, team.context_length())
    plain = team.has_plain_head(name)
    found: list[list[Likelihood]] = []
    for part in batch_prompts([len(group) for group in groups], batch_size):
        with selected_alone(team, name):
            reader = CachedModel(team.model_of(name), plain_head=plain)
            found += score_with_one_model(reader, encoded[part], groups[part], width=team.width, name=name)
            del reader
        release_freed_memory()
    return found


@contextmanager
def selected_alone(team: Team, name: str) -> Iterator[None]:
    """While this lasts, every row of the shared backbone is one member's, where that is the model that runs."""
    if team.backbone is None or team.model_of(name) is not team.backbone.model:
        yield
        return
    with team.backbone.lock:
        alone = name != "small" and team.is_adapter(name)
        team.backbone.select([name] if alone else [], with_small=not alone)
        yield

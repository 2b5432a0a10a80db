"""Training text without a corpus: sequences that the large model writes itself at temperature 1.

Three kinds of start, so that the small model is good where it will be used: `raw` (one random token),
`chat` (the chat template up to the user's turn, which the model then writes, with all that follows) and
`question` ("Question:" and the like, where the tasks live). After an end-of-turn token a sequence simply
goes on, as the model does. One token is drawn per step as argmax p_i / Exp(1)_i, the same as Gumbel-max.
Knows nothing of students or losses.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fusionlab.train.llama import Kernels, Llama, empty_cache, next_token_logits
from fusionlab.train.settings import CorpusSettings

KINDS = ("raw", "chat", "question")
FREE = -1  # in `starts`: a token that the model writes
RANDOM_IDS = (100, 20_000)  # tokens a start is drawn from: no specials, no rarities

SYSTEM = "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
CHAT_STARTS = (SYSTEM + "<|im_start|>user\n", SYSTEM + "<|im_start|>user\n", "<|im_start|>user\n")
QUESTION_STARTS = (
    "Question:", "Question: What is", "Question: Which", "Question: How many", "Question: Who", "Question: A",
    "Question: In", "Q:", "Question: If", "Question: The", "Question: What is the capital of",
)  # fmt: skip


@dataclass(frozen=True)
class Corpus:
    """ids: (N, T) int32 tokens; kinds: (N,) int8 index into KINDS; given: (N,) int16 tokens of the start."""

    ids: Tensor
    kinds: Tensor
    given: Tensor


def draw_starts(
    tokenizer: Any, *, rows: int, length: int, shares: tuple[float, float, float], seed: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Starts of `rows` sequences on the CPU: tokens (rows, longest start), FREE where the model writes on.

    shares: of raw, chat and question starts. Half of the chat and question starts end in one random token.
    Also returns kinds and given as in `Corpus`.
    """
    generator = torch.Generator().manual_seed(seed)
    prefixes = {1: [tokenizer.encode(text) for text in CHAT_STARTS]}
    prefixes[2] = [tokenizer.encode(text) for text in QUESTION_STARTS]
    longest = min(length - 1, 1 + max(len(prefix) for some in prefixes.values() for prefix in some))
    kinds = torch.multinomial(torch.tensor(shares), rows, replacement=True, generator=generator)
    picks = torch.randint(1_000_000, (rows,), generator=generator)
    with_token = torch.rand(rows, generator=generator) < 0.5
    low, high = RANDOM_IDS
    randoms = torch.randint(low, min(high, len(tokenizer)), (rows,), generator=generator)
    lists: list[list[int]] = []
    for kind, pick, token, extended in zip(*map(Tensor.tolist, (kinds, picks, randoms, with_token)), strict=True):
        start = [token] if kind == 0 else prefixes[kind][pick % len(prefixes[kind])] + [token] * extended
        lists.append(start[:longest])
    starts = torch.tensor([start + [FREE] * (longest - len(start)) for start in lists])
    given = torch.tensor([len(start) for start in lists], dtype=torch.int16)
    return starts, kinds.to(torch.int8), given


@torch.no_grad()
def sample_sequences(model: Llama, starts: Tensor, *, length: int, seed: int, kernels: Kernels | None = None) -> Tensor:
    """Continue every start to `length` tokens at temperature 1. starts: (B, S) -> (B, length) int32."""
    device = model.embedding.device
    generator = torch.Generator(device).manual_seed(seed)
    starts = starts.to(device)
    ids = torch.empty(len(starts), length, dtype=torch.int32, device=device)
    cache = empty_cache(model, rows=len(starts), positions=length)
    weights = model.layer_weights()
    current = starts[:, 0]
    ids[:, 0] = current
    for position in range(length - 1):
        logits = next_token_logits(model, weights, current, cache, position, kernels=kernels)
        current = draw_tokens(logits, generator)
        if position + 1 < starts.shape[1]:
            given = starts[:, position + 1]
            current = torch.where(given == FREE, current, given)
        ids[:, position + 1] = current
    return ids


def draw_tokens(logits: Tensor, generator: torch.Generator) -> Tensor:
    """One token per row from softmax(logits). logits: (B, V) -> (B,) int64."""
    weights = torch.softmax(logits.float(), dim=-1)
    noise = torch.empty_like(weights).exponential_(generator=generator)
    return weights.div_(noise).argmax(dim=-1)


def sample_corpus(
    model: Llama, tokenizer: Any, settings: CorpusSettings,
    *, kernels: Kernels | None = None, say: Callable[[str], None] = print,
) -> Corpus:  # fmt: skip
    """All chunks of `settings`, on the model's device."""
    shares = (1 - settings.share_chat - settings.share_question, settings.share_chat, settings.share_question)
    parts: list[tuple[Tensor, Tensor, Tensor]] = []
    begun = time.perf_counter()
    for chunk in range(settings.chunks):
        seed = settings.seed + chunk
        starts, kinds, given = draw_starts(tokenizer, rows=settings.rows, length=settings.length, shares=shares, seed=seed)
        ids = sample_sequences(model, starts, length=settings.length, seed=seed, kernels=kernels)
        parts.append((ids, kinds.to(ids.device), given.to(ids.device)))
        tokens = (chunk + 1) * settings.rows * settings.length
        finish(ids)
        seconds = time.perf_counter() - begun
        rate = tokens / seconds
        say(f"corpus {chunk + 1}/{settings.chunks}: {tokens:,} tokens, {rate:,.0f}/s, {seconds:.0f} s")
    return Corpus(*(torch.cat(some) for some in zip(*parts, strict=True)))


def sample_fresh(
    model: Llama, tokenizer: Any, *, rows: int, length: int, seed: int, kernels: Kernels | None = None
) -> dict[str, Corpus]:
    """`rows` new sequences of each kind, for evaluation; `seed` must not be one of the corpus's."""
    fresh = {}
    for index, kind in enumerate(KINDS):
        shares = tuple(float(index == other) for other in range(len(KINDS)))
        starts, kinds, given = draw_starts(
            tokenizer, rows=rows, length=length, shares=shares, seed=seed + index  # type: ignore[arg-type]
        )  # fmt: skip
        ids = sample_sequences(model, starts, length=length, seed=seed + index, kernels=kernels)
        fresh[kind] = Corpus(ids, kinds.to(ids.device), given.to(ids.device))
    return fresh


def finish(tensor: Tensor) -> None:
    """Wait until the device has computed what was asked of it, so that a clock read afterwards is true."""
    if tensor.device.type == "cuda":
        torch.cuda.synchronize(tensor.device)

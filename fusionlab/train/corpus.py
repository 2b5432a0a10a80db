"""Training text without a corpus: sequences that the large model writes itself at temperature 1.

Three kinds of start, so that the small model is good where it will be used: `raw` (one random token),
`chat` (the chat template up to the user's turn, which the model then writes, with all that follows) and
`question` ("Question:" and the like, where the tasks live). After an end-of-turn token a sequence simply
goes on, as the model does. The teacher's final states are kept when asked for: training then needs only its
head, not its 30 layers again. Knows nothing of students or losses.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fusionlab.train.llama import Kernels, Llama, empty_cache, logits_from_states, next_token_states
from fusionlab.train.settings import CorpusSettings

KINDS = ("raw", "chat", "question")
_TRAINING_BYTES = 10 * 2**30  # weights, activations and logits of a training step
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
    """ids: (N, T) int32 tokens; kinds: (N,) int8 index into KINDS; given: (N,) int16 tokens of the start.

    states: (N, T - 1, H), the teacher's final states at every position but the last, where they were kept.
    """

    ids: Tensor
    kinds: Tensor
    given: Tensor
    states: Tensor | None = None


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
def sample_sequences(
    model: Llama, starts: Tensor, *, length: int, seed: int, kernels: Kernels | None = None,
    draw: Draw | None = None, states: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """Continue every start to `length` tokens at temperature 1. starts: (B, S) -> (B, length) int32.

    states: (B, length - 1, H), filled with the final states that each following token was drawn from.
    """
    device = model.embedding.device
    draw = draw or draw_tokens
    torch.manual_seed(seed)
    starts = starts.to(device)
    ids = torch.empty(len(starts), length, dtype=torch.int32, device=device)
    cache = empty_cache(model, rows=len(starts), positions=length)
    weights = model.layer_weights()
    current = starts[:, 0]
    ids[:, 0] = current
    for position in range(length - 1):
        last = next_token_states(model, weights, current, cache, position, kernels=kernels)
        if states is not None:
            states[:, position] = last
        current = draw(logits_from_states(model, last))
        if position + 1 < starts.shape[1]:
            given = starts[:, position + 1]
            current = torch.where(given == FREE, current, given)
        ids[:, position + 1] = current
    return ids


Draw = Callable[[Tensor], Tensor]
"""(B, V) logits -> (B,) int64, one token per row from softmax(logits)."""


def draw_tokens(logits: Tensor) -> Tensor:
    """One token per row from softmax(logits), as the largest of logits plus Gumbel noise. (B, V) -> (B,) int64.

    Written as one expression so that, compiled, it reads the logits once.
    """
    uniform = torch.rand_like(logits, dtype=torch.float32)
    return (logits.float() - torch.log(-torch.log(uniform))).argmax(-1)


def sample_shard(
    model: Llama, tokenizer: Any, settings: CorpusSettings, shard: int = 0,
    *, kernels: Kernels | None = None, draw: Draw | None = None, host_bytes: int = 0,
    say: Callable[[str], None] = print,
) -> Corpus:  # fmt: skip
    """All chunks of one shard; tokens on the model's device, states where there is room (see `room_for_states`)."""
    shares = (1 - settings.share_chat - settings.share_question, settings.share_chat, settings.share_question)
    parts: list[tuple[Tensor, Tensor, Tensor]] = []
    states = room_for_states(model, settings, host_bytes=host_bytes, say=say)
    begun = time.perf_counter()
    for chunk in range(settings.chunks):
        seed = settings.seed + shard * settings.chunks + chunk
        starts, kinds, given = draw_starts(tokenizer, rows=settings.rows, length=settings.length, shares=shares, seed=seed)
        kept = None if states is None else states[chunk * settings.rows : (chunk + 1) * settings.rows]
        here = None if kept is None else kept if kept.device == model.embedding.device else kept.to(model.embedding.device)
        ids = sample_sequences(model, starts, length=settings.length, seed=seed, kernels=kernels, draw=draw, states=here)
        if kept is not None and kept is not here:
            kept.copy_(here)  # type: ignore[arg-type]
        parts.append((ids, kinds.to(ids.device), given.to(ids.device)))
        finish(ids)
        tokens, seconds = (chunk + 1) * settings.rows * settings.length, time.perf_counter() - begun
        say(f"shard {shard + 1}/{settings.shards}, chunk {chunk + 1}/{settings.chunks}: {tokens:,} tokens, "
            f"{tokens / seconds:,.0f}/s, {seconds:.0f} s")  # fmt: skip
    ids, kinds, given = (torch.cat(some) for some in zip(*parts, strict=True))
    return Corpus(ids, kinds, given, states)


def room_for_states(
    model: Llama, settings: CorpusSettings, *, host_bytes: int, say: Callable[[str], None]
) -> Tensor | None:
    """An empty (N, length - 1, H) tensor for the teacher's states of a shard, or None where it would not fit.

    On a GPU it goes there if that leaves room for the cache of one chunk and for training; else on the host, within
    `host_bytes`. A CPU keeps none: its teacher is small enough to run again.
    """
    rows, positions, width = settings.chunks * settings.rows, settings.length - 1, model.embedding.shape[1]
    device = model.embedding.device
    if device.type != "cuda":
        return None
    keys, _, size = model.heads
    wanted = rows * positions * width * model.dtype.itemsize
    cache_bytes = 2 * model.dtype.itemsize * len(model.layers["key"]) * settings.rows * keys * settings.length * size
    if wanted + cache_bytes + _TRAINING_BYTES > torch.cuda.mem_get_info(device)[0]:
        device = torch.device("cpu")
    kept = device.type == "cuda" or wanted <= host_bytes
    place = "on the GPU" if device.type == "cuda" else "on the host" if kept else "nowhere: training computes them again"
    say(f"the teacher's states ({wanted / 2**30:.0f} GiB) are kept {place}")
    return torch.empty(rows, positions, width, dtype=model.dtype, device=device) if kept else None


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

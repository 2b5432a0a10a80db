"""How probable given continuations of prompts are: one forward over each, weights solved at all their tokens together.

Where `decode` chooses the next token, here it is given: the fused distribution of token i is that of a decode which
wrote tokens 1 to i-1 of the continuation, with the same weights, the same evidence and the same steps. A prompt is read
once for all its continuations. Symbols as in `decode`; N continuations of B prompts, T tokens each at most.

Multiple choice by the most probable option is MC1 of TruthfulQA (arXiv 2109.07958) where nothing is divided by length.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.functional import pad

from fusionlab.allocator import release_freed_memory
from fusionlab.cached import CachedModel, apply_heads
from fusionlab.decode import (
    READS_EVIDENCE,
    TeamReader,
    check_no_nan,
    fuse_one_token,
    log_likelihood,
    log_ratios,
    pad_left,
)
from fusionlab.prompts import Prompt, check_lengths, encode_continuations
from fusionlab.solvers import KLConstraint

if TYPE_CHECKING:
    from fusionlab.team import Team

_POSITIONS = {"cpu": 16}  # whose full distributions are held at once, besides those that end a prompt (as in the decode)
_POSITIONS_GPU = 512

TokenIds = list[int]


@dataclass(frozen=True, eq=False)
class Likelihood:
    """One continuation: log P~(token | prompt and the tokens before it) of every token, and the weights that made it.

    token_nats: (T,) float64, natural logarithms. alpha: (T, E) float32; E = 0 where one model was asked alone.
    """

    token_ids: tuple[int, ...]
    token_nats: NDArray[np.float64] = field(repr=False)
    alpha: NDArray[np.float32] = field(repr=False)

    @property
    def nats(self) -> float:
        """log P~(continuation | prompt): the sum over its tokens."""
        return float(self.token_nats.sum())

    @property
    def tokens(self) -> int:
        """How many tokens it has."""
        return len(self.token_ids)


@torch.inference_mode()
def score_batch(
    team: Team, prompts: Sequence[Prompt], continuations: Sequence[Sequence[str]], *, method: str,
    constraint: KLConstraint, experts: tuple[str, ...],
) -> list[list[Likelihood]]:  # fmt: skip
    """The likelihood of every continuation of every prompt under the fused distribution, all read together."""
    reader = TeamReader(team, experts, track_evidence=method in READS_EVIDENCE)
    encoded = {seat[0]: team.encode(prompts, seat[0]) for seat in reader.seats}
    groups = encode_continuations(prompts, continuations, team.large.tokenizer, fallback=team.large.tokenizer)
    longest = [max(map(len, rows)) for rows in zip(*encoded.values(), strict=True)]
    check_context(longest, groups, team.context_length(experts))
    texts, rows = flatten(groups)
    kept = _Kept(texts, len(experts))

    latest = reader.read_prompts(encoded)
    assert reader.evidence is not None
    fused = fuse_one_token(latest, method=method, constraint=constraint, experts=experts, evidence=reader.evidence, step=0)
    first = torch.tensor([ids[0] for ids in texts])
    kept.put([(text, 0) for text in range(len(texts))], fused.log_fused[rows, first],
             None if fused.solution is None else fused.solution.alpha[rows])  # fmt: skip
    evidence = reader.evidence[rows.cpu()] + log_ratios(latest, rows, first)  # (N, E), before the second token
    ahead = pad_right([ids[:-1] for ids in texts])
    if not ahead.shape[1]:
        return kept.by_prompt(groups)
    features = [block.flatten(1, 2) for block in reader.read_ahead(rows, ahead)]  # (members, N * T, H) of each seat
    for places in positions_after_first(texts, reader.readers[0].device):
        at = torch.tensor([text * ahead.shape[1] + step - 1 for text, step in places])
        tokens = torch.tensor([texts[text][step] for text, step in places])
        here = reader.distributions_at([block[:, at].flatten(0, 1) for block in features])
        ratios = log_ratios(here, torch.arange(len(places)), tokens)
        before = torch.empty_like(ratios)
        for place, (text, _) in enumerate(places):
            before[place] = evidence[text]
            evidence[text] += ratios[place]
        fused = fuse_one_token(here, method=method, constraint=constraint, experts=experts, evidence=before,
                               step=[step for _, step in places])  # fmt: skip
        kept.put(places, fused.log_fused[torch.arange(len(places)), tokens],
                 None if fused.solution is None else fused.solution.alpha)  # fmt: skip
    del reader, features  # its caches
    release_freed_memory()
    return kept.by_prompt(groups)


@torch.inference_mode()
def score_with_one_model(
    reader: CachedModel, prompts: Sequence[TokenIds], groups: Sequence[Sequence[TokenIds]], *, width: int,
    name: str = "large",
) -> list[list[Likelihood]]:  # fmt: skip
    """The same under one model alone: token ids of the prompts, and of each prompt's continuations.

    reader: fresh, it reads these and is of no use afterwards. width: of the vocabulary. name: for messages.
    """
    texts, rows = flatten(groups)
    kept = _Kept(texts, 0)
    (logits,) = apply_heads([reader], [reader.read(*pad_left(prompts, device=reader.device))[:, -1]], width)
    check_no_nan(logits, name)
    first = torch.tensor([ids[0] for ids in texts])
    kept.put([(text, 0) for text in range(len(texts))], logits.log_softmax(-1)[rows, first])
    del logits
    ahead = pad_right([ids[:-1] for ids in texts])
    if not ahead.shape[1]:
        return kept.by_prompt(groups)
    reader.keep_rows(rows)
    features = reader.read(ahead.to(reader.device)).flatten(0, 1)
    for places in positions_after_first(texts, reader.device):
        at = torch.tensor([text * ahead.shape[1] + step - 1 for text, step in places])
        tokens = torch.tensor([texts[text][step] for text, step in places], device=reader.device)
        heads = apply_heads([reader], [features[at]], width)
        kept.put(places, log_likelihood(heads.pop(), tokens[:, None]))
    return kept.by_prompt(groups)


def most_probable(found: Sequence[Likelihood]) -> int:
    """The place of the continuation with the highest sum of log-probabilities, the first of equals."""
    return max(range(len(found)), key=lambda place: found[place].nats)


def batch_prompts(counts: Sequence[int], batch_size: int) -> Iterator[slice]:
    """Runs of prompts with at most `batch_size` continuations together; counts: how many each prompt has.

    >>> list(batch_prompts([4, 4, 4, 20], 8))
    [slice(0, 2, None), slice(2, 3, None), slice(3, 4, None)]
    """
    start = held = 0
    for index, count in enumerate(counts):
        if index > start and held + count > batch_size:
            yield slice(start, index)
            start, held = index, 0
        held += count
    yield slice(start, len(counts))


def check_context(lengths: Sequence[int], groups: Sequence[Sequence[TokenIds]], context: int) -> None:
    """Raise `PromptError` if a prompt and a continuation do not fit into the shortest context."""
    for length, group in zip(lengths, groups, strict=True):
        check_lengths([length], max(map(len, group)), context)


def flatten(groups: Sequence[Sequence[TokenIds]]) -> tuple[list[TokenIds], torch.Tensor]:
    """All continuations, and for each the index of its prompt (N,)."""
    rows = [row for row, group in enumerate(groups) for _ in group]
    return [ids for group in groups for ids in group], torch.tensor(rows)


def pad_right(texts: Sequence[TokenIds]) -> torch.Tensor:
    """(N, T) ids, zeros on the right of shorter texts; T may be 0."""
    length = max(map(len, texts))
    return torch.stack([pad(torch.tensor(ids, dtype=torch.long), (0, length - len(ids))) for ids in texts])


def positions_after_first(texts: Sequence[TokenIds], device: torch.device) -> Iterator[list[tuple[int, int]]]:
    """(index of the text, token in it) from token 1 on, a text's tokens in order, as many at a time as memory allows."""
    places = [(text, step) for text, ids in enumerate(texts) for step in range(1, len(ids))]
    size = _POSITIONS.get(device.type, _POSITIONS_GPU)
    for start in range(0, len(places), size):
        yield places[start : start + size]


class _Kept:
    """What was found so far, token by token of every continuation."""

    def __init__(self, texts: Sequence[TokenIds], experts: int) -> None:
        self.texts = texts
        self.nats = [np.zeros(len(ids)) for ids in texts]
        self.alpha = [np.zeros((len(ids), experts), dtype=np.float32) for ids in texts]

    def put(self, places: Sequence[tuple[int, int]], nats: torch.Tensor, alpha: torch.Tensor | None = None) -> None:
        """nats: (n,), alpha: (n, E), of the tokens at n places."""
        for (text, step), value in zip(places, nats.tolist(), strict=True):
            self.nats[text][step] = value
        if alpha is not None:
            for (text, step), weights in zip(places, alpha.cpu().numpy(), strict=True):
                self.alpha[text][step] = weights

    def by_prompt(self, groups: Sequence[Sequence[TokenIds]]) -> list[list[Likelihood]]:
        """Grouped as the continuations were given."""
        found = iter([Likelihood(tuple(ids), nats, alpha)
                      for ids, nats, alpha in zip(self.texts, self.nats, self.alpha, strict=True)])  # fmt: skip
        return [[next(found) for _ in group] for group in groups]

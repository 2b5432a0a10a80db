"""Dynamic logits fusion, one token at a time: read, solve, fuse, choose.

Method: arXiv 2406.15480 ("the paper"). Symbols: B prompts, E experts, V shared vocabulary; P, Q, R_t the
next-token distributions of large, small and expert t; alpha (B, E) the weights that `solve` finds; fused
log P~ = log P + sum_t alpha_t (log R_t - log Q) - A.

`TeamReader` owns the caches, `fuse_one_token` the mathematics, `fusion_generate` is the loop in Hugging
Face's own shape; `Team.generate` is the loop with streaming and traces. Nothing here loads a model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch.nn.functional import pad

from fusionlab.cached import CachedModel, apply_heads
from fusionlab.errors import DistributionError, FusionError
from fusionlab.solvers import KLConstraint, Solution, fuse, solve

if TYPE_CHECKING:
    from fusionlab.adapters import SharedBackbone

READS_EVIDENCE = frozenset({"evidence", "predicted"})  # methods that weigh experts by how well they predicted the text
_EVIDENCE_LOGITS = {"cpu": 64}  # prompt positions, over all rows, whose full logits are held at once (13 MB, V = 49,152)
_EVIDENCE_LOGITS_GPU = 8192  # there, as many as launches are worth: 1.6 GB


class TeamMembers(Protocol):
    """What the decode needs of a team: models by name, one shared vocabulary, one backbone for adapters."""

    width: int
    backbone: SharedBackbone | None

    def model_of(self, name: str) -> Any:
        """The model object that runs `name`'s rows."""

    def has_plain_head(self, name: str) -> bool:
        """Whether `name`'s head can be applied outside its model."""

    def is_adapter(self, expert: str) -> bool:
        """Whether an expert runs on the shared backbone."""


@dataclass(frozen=True)
class Distributions:
    """Next-token log-probabilities of every member for the live rows, in nats."""

    log_p: torch.Tensor  # (B, V) large
    log_q: torch.Tensor | None  # (B, V) small; None without experts
    log_r: torch.Tensor | None  # (E, B, V) experts


@dataclass(frozen=True)
class FusedStep:
    """Everything that was decided for one token of every live row."""

    distributions: Distributions
    solution: Solution | None  # None without experts
    log_fused: torch.Tensor  # (B, V)
    evidence: torch.Tensor  # (B, E) nats, before this token


# -- read ----------------------------------------------------------------------------------------


class TeamReader:
    """The caches of one batch: every model of the team reads the same growing texts.

    Small and all adapter experts sit in one batched forward, member by member; each expert that is a
    checkpoint of its own has a forward of its own.
    """

    def __init__(self, team: TeamMembers, experts: Sequence[str], *, track_evidence: bool = False) -> None:
        self.team = team
        self.experts = tuple(experts)
        self.track_evidence = track_evidence
        self.seats = seat_members(team, self.experts)
        self.readers = [CachedModel(team.model_of(seat[0]), plain_head=team.has_plain_head(seat[0])) for seat in self.seats]
        self.evidence: torch.Tensor | None = None  # (B, E) float64 nats
        self.latest: Distributions | None = None
        self.features: list[torch.Tensor] = []  # what `latest` was made of: one (members x B, H) per seat

    @property
    def forward_passes(self) -> int:
        """How many times a model of the team was run, since this reader was made."""
        return sum(reader.forward_passes for reader in self.readers)

    def read_prompts(self, prompts: Mapping[str, Sequence[Sequence[int]]]) -> Distributions:
        """Read every member's prompts (lists of token ids; key: first name of each seat)."""
        features: list[torch.Tensor] = []
        sums: dict[str, torch.Tensor] = {}
        for seat, reader in zip(self.seats, self.readers, strict=True):
            ids, mask = pad_left(prompts[seat[0]], device=reader.device)
            ids, mask = ids.repeat(len(seat), 1), mask.repeat(len(seat), 1)
            with self._selected_adapters():
                hidden = reader.read(ids, mask)
            if self.track_evidence and seat != ("large",):
                likelihood = self._text_log_likelihood(reader, hidden, ids, mask)
                sums.update(zip(seat, likelihood.split(len(prompts[seat[0]])), strict=True))
            features.append(hidden[:, -1].clone())  # a view would keep the whole prompt's
        rows = len(prompts["large"])
        self.evidence = torch.zeros(rows, len(self.experts), dtype=torch.float64)
        if self.track_evidence:
            comparable = [prompts[self._seat_of(name)] == prompts["small"] for name in self.experts]
            for column, name in enumerate(self.experts):
                if comparable[column]:  # another chat template means another text: no ratio to take
                    self.evidence[:, column] = (sums[name] - sums["small"]).cpu()
        return self._take(features)

    def read_tokens(self, tokens: torch.Tensor) -> Distributions:
        """Read one more token of every row: (B,) ids."""
        self._weigh_evidence(tokens)
        features = []
        for seat, reader in zip(self.seats, self.readers, strict=True):
            ids = tokens.to(reader.device)[:, None].repeat(len(seat), 1)
            with self._selected_adapters():
                features.append(reader.read(ids)[:, -1])
        return self._take(features)

    def read_ahead(self, rows: torch.Tensor, ids: torch.Tensor) -> list[torch.Tensor]:
        """Read given tokens behind the texts read so far, all at once; features of each seat, (members, N, T, H).

        rows: (N,) indices into the live rows, one as often as it goes on in different ways. ids: (N, T), padded on the
        right. What stands before each of these tokens is known, so `latest` and `evidence` stay what they were.
        """
        assert self.latest is not None
        live, features = len(self.latest.log_p), []
        for seat, reader in zip(self.seats, self.readers, strict=True):
            reader.keep_rows(torch.cat([rows + member * live for member in range(len(seat))]))
            with self._selected_adapters():
                read = reader.read(ids.to(reader.device).repeat(len(seat), 1))
            features.append(read.unflatten(0, (len(seat), len(ids))))
        return features

    def crop(self, tokens: int) -> None:
        """Forget the last `tokens` tokens of every row, in every model's cache; say by `recall` what came before them.

        Raises `ModelError` where a cache cannot go back; this reader is of no more use then.
        """
        for reader in self.readers:
            reader.crop(tokens)

    def recall(self, features: Sequence[torch.Tensor], evidence: torch.Tensor) -> Distributions:
        """Go on from features that were read before, without running a model. evidence: (B, E) nats at that token."""
        self.evidence = evidence
        return self._take(self.to_devices(features))

    def to_devices(self, features: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """One block per seat, each where its model is."""
        return [block.to(reader.device) for block, reader in zip(features, self.readers, strict=True)]

    def keep_rows(self, rows: torch.Tensor) -> None:
        """Go on with the given rows only (indices into the live rows)."""
        if self.latest is None or self.evidence is None:
            raise DistributionError("no prompt was read yet", remedy="call read_prompts first")
        live = len(self.latest.log_p)
        kept = [torch.cat([rows + member * live for member in range(len(seat))]) for seat in self.seats]
        for reader, block in zip(self.readers, kept, strict=True):
            reader.keep_rows(block)
        self.features = [held[block.to(held.device)] for held, block in zip(self.features, kept, strict=True)]
        self.evidence = self.evidence[rows.cpu()]
        picked = rows.to(self.latest.log_p.device)
        self.latest = Distributions(
            self.latest.log_p[picked],
            None if self.latest.log_q is None else self.latest.log_q[picked],
            None if self.latest.log_r is None else self.latest.log_r[:, picked],
        )

    @contextmanager
    def _selected_adapters(self) -> Iterator[None]:
        """While this lasts, the backbone's rows are those of this reader's experts."""
        if self.team.backbone is None or len(self.seats) < 2:
            yield
            return
        with self.team.backbone.lock:
            self.team.backbone.select(self.seats[1][1:])
            yield

    def _seat_of(self, name: str) -> str:
        return next(seat[0] for seat in self.seats if name in seat)

    def _take(self, features: list[torch.Tensor]) -> Distributions:
        self.features, self.latest = features, self.distributions_at(features)
        return self.latest

    def distributions_at(self, features: Sequence[torch.Tensor]) -> Distributions:
        """What every member expects next at n positions; features: (members * n, H) of each seat."""
        device = self.readers[0].device
        logits = apply_heads(self.readers, features, self.team.width)
        by_name: dict[str, torch.Tensor] = {}
        for seat, block in zip(self.seats, logits, strict=True):
            normalised = block.to(device).log_softmax(-1)
            by_name.update(zip(seat, normalised.chunk(len(seat)), strict=True))
        if not self.experts:
            check_no_nan(by_name["large"])
            return Distributions(by_name["large"], None, None)
        experts = torch.stack([by_name[name] for name in self.experts])
        return Distributions(by_name["large"], by_name["small"], experts)

    def _weigh_evidence(self, tokens: torch.Tensor) -> None:
        """Add log R_t(token) - log Q(token) to every expert's running log-likelihood ratio."""
        if not self.track_evidence or self.latest is None or self.evidence is None:
            return
        self.evidence = self.evidence + log_ratios(self.latest, torch.arange(len(tokens)), tokens)

    def _text_log_likelihood(
        self, reader: CachedModel, features: torch.Tensor, ids: torch.Tensor, mask: torch.Tensor
    ) -> torch.Tensor:
        """sum_i log p(x_i | x_<i) over each row's prompt, (N,) nats; the first token predicts nothing."""
        total = torch.zeros(len(ids), dtype=torch.float64, device=ids.device)
        positions = max(1, _EVIDENCE_LOGITS.get(ids.device.type, _EVIDENCE_LOGITS_GPU) // len(ids))
        for start in range(0, ids.shape[1] - 1, positions):
            stop = min(start + positions, ids.shape[1] - 1)
            block = features[:, start:stop]
            target = ids[:, start + 1 : stop + 1].reshape(-1, 1)
            heads = apply_heads([reader], [block.reshape(-1, block.shape[-1])], self.team.width)
            value = log_likelihood(heads.pop(), target)  # popped: kept by a name, two blocks would be held at once
            seen = mask[:, start:stop].reshape(-1).bool()  # the context of each prediction
            total += torch.where(seen, value.double(), 0.0).view(len(ids), -1).sum(-1)
        return total


def log_ratios(distributions: Distributions, rows: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """log R_t(token) - log Q(token) of N tokens, each in the row (of B) that is named for it: (N, E) float64 nats, host."""
    log_q, log_r = distributions.log_q, distributions.log_r
    if log_q is None or log_r is None:
        return torch.zeros(len(tokens), 0, dtype=torch.float64)
    rows, tokens = rows.to(log_q.device), tokens.to(log_q.device)
    return (log_r[:, rows, tokens] - log_q[rows, tokens]).T.double().cpu()


def seat_members(team: TeamMembers, experts: Sequence[str]) -> list[tuple[str, ...]]:
    """Who is read together: one forward per seat, its members one below the other. A seat reads its first one's prompts."""
    if not experts:
        return [("large",)]
    adapters = [name for name in experts if team.is_adapter(name)]
    return [("large",), ("small", *adapters), *((name,) for name in experts if not team.is_adapter(name))]


def log_likelihood(logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """log p(target) of every row, nats: (N, V) logits, (N, 1) ids -> (N,). Overwrites the logits, to hold them once."""
    greatest = logits.amax(-1, keepdim=True)
    chosen = logits.gather(-1, target) - greatest
    return (chosen - logits.sub_(greatest).exp_().sum(-1, keepdim=True).log()).squeeze(-1)


def pad_left(prompts: Sequence[Sequence[int]], *, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """(B, T) ids and mask, zeros on the left of shorter prompts."""
    length = max(len(prompt) for prompt in prompts)
    ids = torch.stack([pad(torch.tensor(prompt, dtype=torch.long), (length - len(prompt), 0)) for prompt in prompts])
    mask = torch.stack([pad(torch.ones(len(prompt), dtype=torch.long), (length - len(prompt), 0)) for prompt in prompts])
    return ids.to(device), mask.to(device)


def check_no_nan(log_p: torch.Tensor, name: str = "large") -> None:
    """Raise `DistributionError` if a model, running alone, gives NaN logits."""
    if bool(log_p.isnan().any()):
        row = int(log_p.isnan().any(-1).nonzero()[0])
        who = f"the {name} model" if name in ("large", "small") else f"expert {name!r}"
        raise DistributionError(
            f"{who} gives NaN logits for row {row}",
            remedy="check its weights and dtype (float16 overflows in some models; try bfloat16 or float32)",
        )


# -- solve and fuse ------------------------------------------------------------------------------


def fuse_one_token(
    distributions: Distributions,
    *,
    method: str,
    constraint: KLConstraint,
    experts: Sequence[str],
    evidence: torch.Tensor,
    step: int | Sequence[int],
) -> FusedStep:
    """Find the weights of every live row's next token and fuse with them.

    evidence: (B, E) nats; step: index of the token that is being decided, from 0, or that of each row.
    """
    log_p, log_q, log_r = distributions.log_p, distributions.log_q, distributions.log_r
    if log_q is None or log_r is None:
        return FusedStep(distributions, None, log_p, evidence)
    solution = solve(
        log_p, log_q, log_r, method=method, constraint=constraint,
        evidence=evidence.to(log_p.device) if method in READS_EVIDENCE else None,
        experts=tuple(experts), steps=[step] * len(log_p) if isinstance(step, int) else list(step),
    )  # fmt: skip
    return FusedStep(distributions, solution, fuse(log_p, log_q, log_r, solution.alpha), evidence)


# -- the Hugging Face way ------------------------------------------------------------------------


def fusion_generate(
    model: Any,
    input_ids: torch.Tensor,
    logits_processor: Any,
    stopping_criteria: Any,
    generation_config: Any,
    team: TeamMembers | None = None,
    experts: Sequence[str] | None = None,
    method: str = "exact",
    constraint: KLConstraint | None = None,
    on_step: Callable[[FusedStep, torch.Tensor], None] | None = None,
    **model_kwargs: Any,
) -> Any:
    """Dynamic logits fusion as a decoding method of `generate`.

    >>> large.generate(**inputs, custom_generate=fusion_generate, team=team,
    ...                experts=["math"], max_new_tokens=64)            # doctest: +SKIP

    Everything that `generate` prepares is honoured: logits processors and warpers act on the fused
    log-probabilities, stopping criteria end rows, `return_dict_in_generate` and `output_scores` work.
    input_ids: (B, T), padded on the left. Returns (B, T + new) ids, or `GenerateDecoderOnlyOutput`.
    on_step receives each `FusedStep` and the chosen tokens (B,).
    """
    if team is None:
        raise FusionError("fusion_generate needs a team", remedy="pass generate(..., team=team)")
    if model is not team.model_of("large"):
        raise FusionError(
            "generate was called on a model that is not the team's large model",
            remedy="call team.large.model.generate(...)",
        )
    names = tuple(team.experts if experts is None else experts)  # type: ignore[attr-defined]
    constraint = constraint or KLConstraint()
    mask = model_kwargs.get("attention_mask")
    rows = [
        row[keep.bool()].tolist()
        for row, keep in zip(input_ids, torch.ones_like(input_ids) if mask is None else mask, strict=True)
    ]
    reader = TeamReader(team, names, track_evidence=method in READS_EVIDENCE)
    distributions = reader.read_prompts({seat[0]: rows for seat in reader.seats})

    unfinished = torch.ones(len(input_ids), dtype=torch.bool, device=input_ids.device)
    scores: list[torch.Tensor] = []
    step = 0
    while True:
        assert reader.evidence is not None
        fused = fuse_one_token(distributions, method=method, constraint=constraint, experts=names,
                               evidence=reader.evidence, step=step)  # fmt: skip
        step_scores = logits_processor(input_ids, fused.log_fused.to(input_ids.device))
        if generation_config.do_sample:
            tokens = torch.multinomial(step_scores.softmax(-1), num_samples=1).squeeze(1)
        else:
            tokens = step_scores.argmax(-1)
        if on_step is not None:
            on_step(fused, tokens)
        if generation_config._pad_token_tensor is not None:
            tokens = torch.where(unfinished, tokens, generation_config._pad_token_tensor.to(tokens.device))
        scores.append(step_scores)
        input_ids = torch.cat([input_ids, tokens[:, None]], dim=-1)
        unfinished = unfinished & ~stopping_criteria(input_ids, None)
        if not bool(unfinished.any()):
            break
        distributions = reader.read_tokens(tokens)
        step += 1
    if not generation_config.return_dict_in_generate:
        return input_ids
    from transformers.generation.utils import GenerateDecoderOnlyOutput

    return GenerateDecoderOnlyOutput(sequences=input_ids, scores=tuple(scores) if generation_config.output_scores else None)

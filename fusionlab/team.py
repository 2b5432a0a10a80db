"""A team: one large model, one small model, named experts, and the text that they write together.

Method: dynamic logits fusion, arXiv 2406.15480. This module puts loaded models together (`from_pretrained`)
and runs the decode over batches of prompts (`generate`); `decode` holds the step itself.
"""

from __future__ import annotations

import contextlib
import difflib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from fusionlab.errors import ConstraintError, UnknownNameError
from fusionlab.prompts import PieceReader, Prompt, check_continuations, check_prompts, encode_prompts
from fusionlab.sampling import Sampling
from fusionlab.solvers import SOLVERS, KLConstraint
from fusionlab.vocab import check_special_tokens, id_to_token, shared_width

if TYPE_CHECKING:
    from fusionlab.adapters import Adapter, SharedBackbone
    from fusionlab.decode_batch import Token
    from fusionlab.likelihood import Likelihood
    from fusionlab.models import LoadedModel
    from fusionlab.trace import Trace


@dataclass(frozen=True)
class Expert:
    """One expert of a team: an adapter on the shared small model, or a checkpoint of its own."""

    name: str
    source: str  # id, folder or file
    revision: str
    loaded: LoadedModel | None = None  # None: an adapter on the backbone

    @property
    def is_adapter(self) -> bool:
        """Whether this expert shares the small model's weights and forward."""
        return self.loaded is None

    def describe(self) -> dict[str, Any]:
        """JSON-able identity, as a trace records it."""
        kind = "adapter" if self.loaded is None else "model"
        return {"id": self.source, "revision": self.revision, "kind": kind}


@dataclass(frozen=True)
class GenerationResult:
    """What `Team.generate` returns: one entry per prompt."""

    texts: list[str]
    token_ids: list[list[int]]
    traces: list[Trace] = field(repr=False)
    seconds: float


class Team:
    """One large model, one small model and its experts, ready to write.

    >>> team = Team.from_pretrained("embedded")                              # doctest: +SKIP
    >>> result = team.generate(["Question: ..."], experts=["math"])          # doctest: +SKIP
    """

    def __init__(
        self,
        *,
        large: LoadedModel,
        small: LoadedModel,
        experts: Mapping[str, Expert],
        backbone: SharedBackbone | None = None,
        width: int | None = None,
    ) -> None:
        self.large, self.small, self.experts, self.backbone = large, small, dict(experts), backbone
        self.width = self._compare_vocabularies() if width is None else width
        self._plain_heads: dict[int, bool] = {}
        self._piece_of = PieceReader(large.tokenizer)

    @classmethod
    def from_pretrained(cls, name: str | None = None, **options: Any) -> Team:
        """Load a team: `"embedded"`, or `large=`, `small=` and `experts={name: id or folder}`.

        options: `experts` (embedded: a list of names, all by default), `quantization` ("nf4" or None), `dtype`
        ("float32", "bfloat16"), `device_map`, `say` (where progress lines go); see `loading.TeamOptions`.
        Raises `ModelError` and its kinds, `MissingFileError`, `CorruptFileError`, `UnknownNameError`.
        """
        from fusionlab.loading import load_team

        return load_team(name, **options)

    def with_expert(self, adapter: Adapter, *, source: str, revision: str = "local") -> Team:
        """This team and one expert more, an adapter on the shared small model; all models are shared with this one.

        >>> both = [team.backbone.adapter(name) for name in ("math", "trivia")]      # doctest: +SKIP
        >>> team.with_expert(merge_adapters(both, [0.5, 0.5], "both"), source="merged")  # doctest: +SKIP

        source, revision: where it comes from, for traces. Raises `ModelError` if it does not fit, or its name is taken.
        """
        from fusionlab.adapters import SharedBackbone

        backbone = SharedBackbone(self.small.model) if self.backbone is None else self.backbone
        backbone.add(adapter)
        experts = self.experts | {adapter.name: Expert(adapter.name, source, revision)}
        return Team(large=self.large, small=self.small, experts=experts, backbone=backbone, width=self.width)

    # -- what the decode asks of a team (decode.TeamMembers) --------------------------------------

    def model_of(self, name: str) -> Any:
        """The model object that runs `name`'s rows."""
        if name == "large":
            return self.large.model
        loaded = None if name == "small" else self.experts[name].loaded
        return self.small.model if loaded is None else loaded.model

    def tokenizer_of(self, name: str) -> Any:
        """The tokenizer that writes `name`'s prompts."""
        if name == "large":
            return self.large.tokenizer
        loaded = None if name == "small" else self.experts[name].loaded
        return self.small.tokenizer if loaded is None else loaded.tokenizer

    def is_adapter(self, expert: str) -> bool:
        """Whether an expert runs on the shared backbone."""
        return self.experts[expert].is_adapter

    def has_plain_head(self, name: str) -> bool:
        """Whether `name`'s head can be applied outside its model; probed once per model."""
        from fusionlab.cached import has_plain_head

        model = self.model_of(name)
        if id(model) not in self._plain_heads:
            with contextlib.nullcontext() if self.backbone is None else self.backbone.lock:
                if self.backbone is not None and model is self.backbone.model:
                    self.backbone.select(())  # the probe has one row, and it is the small model's
                self._plain_heads[id(model)] = has_plain_head(model)
        return self._plain_heads[id(model)]

    def eos_ids(self, experts: Sequence[str] = ()) -> set[int]:
        """Union of the models' end-of-sequence ids."""
        found: set[int] = set()
        for name in ("large", *(("small", *experts) if experts else ())):
            declared = self.model_of(name).generation_config.eos_token_id
            found |= set(declared if isinstance(declared, list) else [] if declared is None else [declared])
        return found

    def context_length(self, experts: Sequence[str] = ()) -> int:
        """Tokens that fit into the shortest context among the models that run."""
        names = ("large", *(("small", *experts) if experts else ()))
        return min(getattr(self.model_of(name).config, "max_position_embeddings", 1 << 30) for name in names)

    def describe(self) -> dict[str, Any]:
        """JSON-able identity of every model."""
        return {
            "large": self.large.describe(),
            "small": self.small.describe(),
            "experts": {name: expert.describe() for name, expert in self.experts.items()},
        }

    # -- write ------------------------------------------------------------------------------------

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        *,
        method: str = "exact",
        constraint: KLConstraint | None = None,
        experts: Sequence[str] | None = None,
        max_new_tokens: int = 64,
        min_new_tokens: int = 0,
        stop: Sequence[str] = (),
        sampling: Sampling | None = None,
        seed: int = 0,
        on_token: Callable[[Token], bool | None] | None = None,
        trace: str | None = "light",
        batch_size: int = 16,
        choices: Mapping[int, int] | None = None,
    ) -> GenerationResult:
        """Write an answer to every prompt.

        prompts: texts, or lists of chat messages. experts: names, all by default; [] is the large model alone.
        stop: strings that end an answer, once something other than white space was written; the text is cut there.
        sampling: greedy by default; else `Sampling(do_sample=True, temperature=0.8)`.
        on_token: called with every `Token`; returning False ends the generation after it.
        trace: "full" keeps the table of both KLs over the weight grid, "light" does not, None keeps no trace.
        batch_size: prompts that are decoded together. Row i draws under seed + i.
        choices: what-if tokens; {3: 42} writes id 42 as the fourth token of every answer, whatever was fused there.
        Raises `PromptError`, `UnknownNameError`, `ConstraintError`, `DistributionError`.
        """
        from fusionlab.decode_batch import DecodeSettings, decode_batch  # torch-heavy

        batch = check_prompts(prompts)
        names = self.choose_experts(experts)
        check_method(method)
        settings = DecodeSettings(
            method=method, constraint=constraint or KLConstraint(), experts=names,
            max_new_tokens=max_new_tokens, min_new_tokens=min_new_tokens, stop=tuple(stop),
            sampling=sampling or Sampling(), trace=trace, choices=check_choices(choices, self.width),
        )  # fmt: skip
        started = time.perf_counter()
        texts: list[str] = []
        token_ids: list[list[int]] = []
        traces: list[Trace] = []
        for start in range(0, len(batch), batch_size):
            part = decode_batch(self, batch[start : start + batch_size], settings,
                                seed=seed + start, on_token=on_token, first_row=start)  # fmt: skip
            texts += part.texts
            token_ids += part.token_ids
            traces += part.traces
            if part.stopped:
                break
        return GenerationResult(texts, token_ids, traces, time.perf_counter() - started)

    def score(
        self,
        prompts: Prompt | Sequence[Prompt],
        continuations: Sequence[Sequence[str]],
        *,
        method: str = "exact",
        constraint: KLConstraint | None = None,
        experts: Sequence[str] | None = None,
        batch_size: int = 16,
    ) -> list[list[Likelihood]]:
        """How probable each of some given continuations of every prompt is, in nats: multiple choice without writing.

        >>> options = [" Oslo", " Bergen"]                                                     # doctest: +SKIP
        >>> found = team.score([question], [options], experts=["trivia"])[0]                   # doctest: +SKIP
        >>> [round(option.nats, 1) for option in found]                                        # doctest: +SKIP
        [-0.9, -5.9]

        continuations: one list of texts a prompt, each with its leading space. method, constraint, experts: as in
        `generate`. batch_size: continuations that are read together, all those of a prompt at least.
        Raises `PromptError`, `UnknownNameError`, `ConstraintError`, `DistributionError`.
        """
        from fusionlab.likelihood import batch_prompts, score_batch  # torch-heavy

        batch = check_prompts(prompts)
        texts = check_continuations(batch, continuations)
        names = self.choose_experts(experts)
        check_method(method)
        found: list[list[Likelihood]] = []
        for part in batch_prompts([len(some) for some in texts], batch_size):
            found += score_batch(self, batch[part], texts[part], method=method,
                                 constraint=constraint or KLConstraint(), experts=names)  # fmt: skip
        return found

    def choose_experts(self, experts: Sequence[str] | None) -> tuple[str, ...]:
        """The named experts, or all. Raises `UnknownNameError` with the nearest known name."""
        if experts is None:
            return tuple(self.experts)
        for name in experts:
            if name not in self.experts:
                near = difflib.get_close_matches(str(name), self.experts, n=1)
                hint = f"did you mean {near[0]!r}? " if near else ""
                raise UnknownNameError(
                    f"unknown expert {name!r}", remedy=f"{hint}known: {', '.join(self.experts) or 'none'}"
                )
        return tuple(dict.fromkeys(experts))

    def encode(self, prompts: Sequence[Prompt], name: str) -> list[list[int]]:
        """Every prompt's token ids, as member `name` reads them."""
        tokenizer = self.tokenizer_of(name)
        return encode_prompts(prompts, tokenizer, fallback=self.large.tokenizer)

    def piece(self, token: int) -> str:
        """The text that a token id adds."""
        return self._piece_of(token)

    def _compare_vocabularies(self) -> int:
        maps = {"small": id_to_token(self.small.tokenizer)}
        heads = {name: self.model_of(name).get_output_embeddings().weight.shape[0] for name in ("large", "small")}
        for name, expert in self.experts.items():
            if expert.loaded is not None:
                maps[f"expert {name!r}"] = id_to_token(expert.loaded.tokenizer)
                heads[name] = expert.loaded.model.get_output_embeddings().weight.shape[0]
        large = id_to_token(self.large.tokenizer)
        width = shared_width(large, maps, heads=heads)
        check_special_tokens(width, self.eos_ids(), large)
        return width


def check_method(method: str) -> None:
    """Raise `UnknownNameError` with the known methods."""
    if method not in SOLVERS:
        raise UnknownNameError(f"unknown method {method!r}", remedy=f"known: {', '.join(SOLVERS)}")


def check_choices(choices: Mapping[int, int] | None, width: int) -> dict[int, int]:
    """What-if tokens as a dict; `ConstraintError` for a place before the answer or an id beyond the vocabulary."""
    for step, token in (choices or {}).items():
        whole = all(isinstance(number, int) and not isinstance(number, bool) for number in (step, token))
        if not whole or step < 0 or not 0 <= token < width:
            raise ConstraintError(
                f"choices has {step!r}: {token!r}",
                remedy=f"name a token of the answer, counted from 0, and an id from 0 to {width - 1}",
            )
    return dict(choices or {})

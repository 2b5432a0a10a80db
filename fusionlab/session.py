"""One prompt's answer in the making: it can stop, go on, and go on differently from any of its tokens.

A `FusionSession` holds the models' caches and, of every token, what the models said before it (their last hidden states,
a few kilobytes). So another constraint is solved for the tokens that are there without running a model, and writing
starts again only where a token would be another one. What results is what `Team.generate` writes under that constraint
from the start, token for token.

Symbols as in `decode`; here B = 1 while writing, and the rows of a batch that is solved again are consecutive tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from fusionlab.allocator import release_freed_memory
from fusionlab.decode import READS_EVIDENCE, Distributions, FusedStep, TeamReader, fuse_one_token, seat_members
from fusionlab.decode_batch import RELEASE_STEPS, DecodeSettings, OnToken, choose_next, make_recorder, stream, trace_meta
from fusionlab.errors import FusionError, ModelError, TraceError
from fusionlab.prompts import Prompt, StopFinder, check_lengths, check_prompts, cut_at_stop
from fusionlab.record import TraceRecorder
from fusionlab.sampling import Sampling, row_generators
from fusionlab.solvers import KLConstraint
from fusionlab.team import check_choices, check_method

if TYPE_CHECKING:
    from torch import Tensor

    from fusionlab.team import Team
    from fusionlab.trace import Trace

ShouldStop = Callable[[], bool]

_BLOCK = 8  # tokens that are solved again at once: the heads cost a third of what they cost one by one


class FusionSession:
    """The state of one answer, and the ways to go on from it. Not safe to use from two threads at once.

    >>> session = FusionSession(team, "Question: ...\\nAnswer:", experts=["math"])          # doctest: +SKIP
    >>> trace = session.generate(max_new_tokens=64)                                        # doctest: +SKIP
    >>> trace = session.regenerate_from(constraint=KLConstraint(scale=1.4))                # doctest: +SKIP
    >>> trace = session.force(3, alpha={"math": 0.0})                                      # doctest: +SKIP
    >>> trace = session.choose(3, token_id=345)                                            # doctest: +SKIP

    Arguments as for `Team.generate`; every trace is a full one. token_ids: an answer that was written under these settings
    before, a trace's for instance; it is read when it is gone on from.

    Every method that writes takes `on_token` (called with each new `Token`; False ends the writing after it) and
    `should_stop` (asked before each forward pass), and returns the trace of the whole answer as it then stands. Raises
    `PromptError`, `UnknownNameError`, `ConstraintError`, and, from a method called after `close`, `FusionError`.
    """

    def __init__(
        self,
        team: Team,
        prompt: Prompt,
        *,
        experts: Sequence[str] | None = None,
        method: str = "exact",
        constraint: KLConstraint | None = None,
        max_new_tokens: int = 64,
        stop: Sequence[str] = (),
        sampling: Sampling | None = None,
        seed: int = 0,
        choices: Mapping[int, int] | None = None,
        token_ids: Sequence[int] = (),
    ) -> None:
        check_method(method)
        (self.prompt,) = check_prompts([prompt])
        self.team, self.seed = team, seed
        self.settings = DecodeSettings(
            method=method, constraint=constraint or KLConstraint(), experts=team.choose_experts(experts),
            max_new_tokens=max_new_tokens, min_new_tokens=0, stop=tuple(stop), trace="full",
            sampling=sampling or Sampling(), choices=check_choices(choices, team.width),
        )  # fmt: skip
        self.token_ids = list(token_ids)
        self.stopped = False  # the last call was ended by its caller
        seats = seat_members(team, self.settings.experts)
        self._encoded = {seat[0]: team.encode([self.prompt], seat[0]) for seat in seats}
        self._eos_ids = torch.tensor(sorted(team.eos_ids(self.settings.experts)))
        self._holds_stop = StopFinder(team.large.tokenizer, stop, team.piece)
        self._recorder = self._new_recorder(self.settings)
        self._reader: TeamReader | None = None  # None: nothing was read, or a read broke off
        self._passes = 0  # forward passes of readers that are gone
        self._features: list[list[torch.Tensor]] = []  # before token i: one (members, H) per seat, on the CPU
        self._evidence: list[torch.Tensor] = []  # before token i: (1, E) float64 nats
        self._closed = False

    # -- what it is ------------------------------------------------------------------------------

    @property
    def forward_passes(self) -> int:
        """How many times any model of the team was run for this session: each read of each model counts one."""
        return self._passes + (0 if self._reader is None else self._reader.forward_passes)

    @property
    def finished(self) -> bool:
        """Whether the answer came to its end by itself: an end token, or a stop string."""
        ended = bool(self.token_ids) and self.token_ids[-1] in self._eos_ids.tolist()
        return ended or (bool(self.token_ids) and self._holds_stop(self.token_ids))

    @property
    def text(self) -> str:
        """The answer so far, without its end token, cut at the first stop string."""
        whole: str = self.team.large.tokenizer.decode(self.token_ids, skip_special_tokens=True)
        return cut_at_stop(whole, self.settings.stop)

    def trace(self) -> Trace:
        """The answer so far as a full trace. Raises `TraceError` for `token_ids` that were not gone on from yet."""
        if self._recorder.steps != len(self.token_ids):
            raise TraceError("the answer was not read yet", remedy="call generate or regenerate_from first")
        return self._recorder.finish([self.text])[0]

    def close(self) -> None:
        """Let go of the caches; the trace can still be had."""
        self._set_aside_reader()
        self._features, self._evidence, self._closed = [], [], True

    # -- ways to go on ---------------------------------------------------------------------------

    def generate(
        self, max_new_tokens: int | None = None, *, on_token: OnToken | None = None, should_stop: ShouldStop | None = None
    ) -> Trace:
        """Write until the answer ends, or has `max_new_tokens` tokens in all; an answer that was stopped goes on."""
        limit = self.settings.max_new_tokens if max_new_tokens is None else max_new_tokens
        return self._go_on(None, replace(self.settings, max_new_tokens=limit), on_token, should_stop)

    def regenerate_from(
        self,
        index: int | None = None,
        *,
        constraint: KLConstraint | None = None,
        method: str | None = None,
        max_new_tokens: int | None = None,
        on_token: OnToken | None = None,
        should_stop: ShouldStop | None = None,
    ) -> Trace:
        """Solve the tokens before `index` again, without a forward pass, and write on from it.

        index: None, all tokens that there are. Where a token before it would now be another one, writing starts there.
        constraint, method: None keeps them. max_new_tokens: of the whole answer; None keeps it. What-if tokens from
        `choose` are kept up to the place where writing starts. Stopped before the tokens are solved, nothing changes.
        Raises `TraceError` for an index beyond the answer.
        """
        kept = len(self.token_ids) if index is None else self._checked_index(index)
        if method is not None:
            check_method(method)
        changes = {"constraint": constraint, "method": method, "max_new_tokens": max_new_tokens}
        given = {name: value for name, value in changes.items() if value is not None}
        return self._go_on(kept, replace(self.settings, **given), on_token, should_stop)  # type: ignore[arg-type]

    def force(
        self,
        index: int,
        alpha: float | Mapping[str, float],
        *,
        on_token: OnToken | None = None,
        should_stop: ShouldStop | None = None,
    ) -> Trace:
        """What if token `index` had these weights: all experts' (a number) or some experts' (name -> weight).

        The constraint's `force` gets this entry and loses those of later tokens, which belonged to another text.
        """
        constraint = self.settings.constraint.forced_before(self._checked_index(index))
        forced = replace(constraint, force={**(constraint.force or {}), index: alpha})
        return self._go_on(index, replace(self.settings, constraint=forced), on_token, should_stop)

    def choose(
        self, index: int, token_id: int, *, on_token: OnToken | None = None, should_stop: ShouldStop | None = None
    ) -> Trace:
        """What if token `index` were this one; forced weights of later tokens are dropped with their text."""
        constraint = self.settings.constraint.forced_before(self._checked_index(index) + 1)
        earlier = {step: token for step, token in self.settings.choices.items() if step < index}
        choices = earlier | check_choices({index: token_id}, self.team.width)
        return self._go_on(index, replace(self.settings, constraint=constraint, choices=choices), on_token, should_stop)

    # -- how -------------------------------------------------------------------------------------

    def _checked_index(self, index: int) -> int:
        if not 0 <= index <= len(self.token_ids):
            raise TraceError(f"there is no token {index} in an answer of {len(self.token_ids)}", remedy="count from 0")
        return index

    def _new_recorder(self, settings: DecodeSettings) -> TraceRecorder:
        recorder = make_recorder(self.team, [self.prompt], settings, seed=self.seed)
        assert recorder is not None
        return recorder

    @torch.inference_mode()
    def _go_on(
        self, kept: int | None, settings: DecodeSettings, on_token: OnToken | None, should_stop: ShouldStop | None
    ) -> Trace:
        """Take these settings for the first `kept` tokens and all that follow. kept: None, they stay as they are."""
        if self._closed:
            raise FusionError("this session was closed and its caches are gone", remedy="make a new FusionSession")
        longest = max(len(rows[0]) for rows in self._encoded.values())
        check_lengths([longest], settings.max_new_tokens, self.team.context_length(settings.experts))
        tokens = min(len(self.token_ids), settings.max_new_tokens)
        self.stopped = False
        if kept is None and self._recorder.steps == len(self.token_ids):
            self.settings = settings
            self._cut(tokens)
        elif not self._solve_again(tokens if kept is None else min(kept, tokens), settings, should_stop):
            self.stopped = True
            return self.trace()
        self._write(on_token, should_stop)
        return self.trace()

    def _solve_again(self, kept: int, settings: DecodeSettings, should_stop: ShouldStop | None) -> bool:
        """Solve the first `kept` tokens under other settings and cut the answer where one changes; false if stopped."""
        if self._reader is not None and settings.method in READS_EVIDENCE and not self._reader.track_evidence:
            self._set_aside_reader()
        if kept and not self._read_up_to(kept - 1, settings, should_stop):
            return False
        recorder, first = self._new_recorder(settings), kept
        generator = self._generator(drawn=0)
        for start in range(0, kept, _BLOCK):
            if should_stop is not None and should_stop():
                return False
            steps = range(start, min(start + _BLOCK, kept))
            fused = self._fuse_known(steps, settings)
            tokens = [choose_next(fused.log_fused[row : row + 1], settings, step, [generator], self._eos_ids)
                      for row, step in enumerate(steps)]  # fmt: skip
            recorder.add_tokens(fused, torch.cat(tokens), earlier=self._recorder)
            changed = [step for step, token in zip(steps, tokens, strict=True) if int(token) != self.token_ids[step]]
            if changed:
                first = changed[0]
                break
        if first < len(self.token_ids):  # a what-if token belongs to the text before it
            settings = replace(settings, choices={at: token for at, token in settings.choices.items() if at <= first})
            recorder.meta = trace_meta(self.team, settings, seed=self.seed)
        self.settings, self._recorder = settings, recorder
        self._cut(first)
        return True

    def _fuse_known(self, steps: range, settings: DecodeSettings) -> FusedStep:
        """Fuse for tokens whose features are held: one row each."""
        assert self._reader is not None
        seats = zip(*(self._features[step] for step in steps), strict=True)
        blocks = [torch.stack(seat, dim=1).flatten(0, 1) for seat in seats]  # (members x tokens, H)
        distributions = self._reader.distributions_at(self._reader.to_devices(blocks))
        return self._fuse(distributions, torch.cat([self._evidence[step] for step in steps]), steps, settings)

    def _fuse(
        self, distributions: Distributions, evidence: Tensor, steps: Sequence[int], settings: DecodeSettings
    ) -> FusedStep:
        read = settings.method in READS_EVIDENCE
        return fuse_one_token(
            distributions, method=settings.method, constraint=settings.constraint, experts=settings.experts,
            evidence=evidence if read else torch.zeros_like(evidence), step=steps,
        )  # fmt: skip

    def _write(self, on_token: OnToken | None, should_stop: ShouldStop | None) -> None:
        """Go on from the last token until the end, the limit, or the caller's stop."""
        generator = self._generator(drawn=len(self.token_ids))
        while len(self.token_ids) < self.settings.max_new_tokens and not self.finished:
            step = len(self.token_ids)
            if not self._read_up_to(step, self.settings, should_stop):
                self.stopped = True
                return
            assert self._reader is not None and self._reader.latest is not None and self._reader.evidence is not None
            fused = self._fuse(self._reader.latest, self._reader.evidence, [step], self.settings)
            tokens = choose_next(fused.log_fused, self.settings, step, [generator], self._eos_ids)
            self._recorder.add_step(fused, tokens, [0])
            self.token_ids += tokens.tolist()
            if on_token is not None and not stream(self.team, fused, tokens, [0], step, on_token, self.settings, 0):
                self.stopped = True
                return

    def _generator(self, *, drawn: int) -> torch.Generator | None:
        """The row's source of chance after `drawn` tokens."""
        (generator,) = row_generators(self.settings.sampling, self.seed, 1)
        for _ in range(drawn if generator is not None else 0):
            torch.rand(1, generator=generator, dtype=torch.float64)
        return generator

    def _read_up_to(self, step: int, settings: DecodeSettings, should_stop: ShouldStop | None) -> bool:
        """Read until token `step` can be decided; false if stopped before that."""
        while self._reader is None or len(self._features) <= step:
            if should_stop is not None and should_stop():
                return False
            try:
                if self._reader is None:
                    self._read_prompt(settings)
                else:
                    self._reader.read_tokens(torch.tensor([self.token_ids[len(self._features) - 1]]))
            except BaseException:  # some caches may hold the token and others not
                self._set_aside_reader()
                raise
            self._hold_features()
            if len(self._features) % RELEASE_STEPS == 1:
                release_freed_memory()
        return True

    def _read_prompt(self, settings: DecodeSettings) -> None:
        self._features, self._evidence = [], []
        track = settings.method in READS_EVIDENCE or len(settings.experts) > 1  # then `evidence` may be tried later
        self._reader = TeamReader(self.team, settings.experts, track_evidence=track)
        self._reader.read_prompts(self._encoded)

    def _hold_features(self) -> None:
        assert self._reader is not None and self._reader.evidence is not None
        self._features.append([block.cpu() for block in self._reader.features])
        self._evidence.append(self._reader.evidence)

    def _cut(self, tokens: int) -> None:
        """Keep the first `tokens` tokens of the answer, and of the caches what was read before the next one."""
        self.token_ids = self.token_ids[:tokens]
        self._recorder.forget_after(tokens)
        unread = len(self._features) - 1 - tokens  # tokens that were read and are no longer there
        if self._reader is None or unread <= 0:
            return
        try:
            self._reader.crop(unread)
        except ModelError:  # read it all again
            self._set_aside_reader()
            return
        self._features, self._evidence = self._features[: tokens + 1], self._evidence[: tokens + 1]
        self._reader.recall(self._features[tokens], self._evidence[tokens])

    def _set_aside_reader(self) -> None:
        if self._reader is not None:
            self._passes += self._reader.forward_passes
        self._reader = None

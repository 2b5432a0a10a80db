"""What the explorer's worker does: load a team, write an answer and go on from it, have the models write alone.

A `Writer` holds the team and the session of the answer that was written last. It runs on one thread, tells a `Screen` what
there is to see, and knows nothing of widgets or messages. torch comes with the team.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from copy import copy
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Protocol

from fusionlab.errors import FusionError, TraceError
from fusionlab.trace import Trace
from fusionlab.trace_payload import trace_payload

from .runs import History, Run
from .settings import Settings
from .worker import Request

if TYPE_CHECKING:
    from fusionlab.session import FusionSession
    from fusionlab.team import Team

_SECONDS_BETWEEN_UPDATES = 0.05  # tokens are sent in batches, at most twenty a second
_MOST_TEXTS = 100  # answers of single models that are remembered


class Screen(Protocol):
    """Where a writer's progress is seen. Called on the worker's thread."""

    def say(self, stage: str, words: str, *, done: int = 0, total: int = 0, busy: bool = False) -> None:
        """What is being done, and how much of it."""

    def stream(self, payload: Mapping[str, Any], *, first: bool) -> None:
        """Tokens as they are written; first: of an answer that was not on the screen before."""

    def show(self, run: Run) -> None:
        """An answer, whole."""

    def show_others(self, run: Run) -> None:
        """The texts of single models beside a run."""

    def count(self, forward_passes: int) -> None:
        """How many times models were run so far."""


class Writer:
    """Does one request at a time, for as long as it is wanted.

    Every method raises `FusionError` for what cannot be done, before a model runs where that can be known.
    """

    def __init__(self, screen: Screen, history: History, team: Team | None) -> None:
        self.screen, self.history, self.team = screen, history, team
        self._not_loaded: FusionError | None = None  # why the team that was asked for last is not there
        self._session: FusionSession | None = None
        self._session_run: int | None = None  # the run whose answer the session holds
        self._settings = Settings()  # of the session
        self._passes = 0  # of sessions that are gone, and of models that wrote alone
        self._texts: dict[tuple[Any, ...], Mapping[str, Any]] = {}  # answers of single models

    @property
    def forward_passes(self) -> int:
        """How many times a model of any team was run."""
        return self._passes + (0 if self._session is None else self._session.forward_passes)

    # -- requests --------------------------------------------------------------------------------

    def load(self, name: str | None, options: Mapping[str, Any]) -> Team:
        """Another team in place of this one, whose memory is freed first. Raises what `Team.from_pretrained` raises."""

        def say(words: str) -> None:
            self.screen.say("loading", words, busy=True)

        say("Loading the team")
        self.free_caches()
        self.team = None
        self._texts = {}
        from fusionlab.team import Team

        self._not_loaded = None
        try:
            self.team = Team.from_pretrained(name, **{**options, "say": say})
        except FusionError as error:
            self._not_loaded = copy(error)  # without the traceback, whose frames hold what was loaded so far
            raise
        return self.team

    def run(self, request: Request, settings: Settings) -> None:
        """Write an answer from its beginning."""
        self.need_team()
        settings.check_runnable()
        session = self._new_session(settings)
        self.free_caches()
        self._session = session
        self._write(request, settings, "written", session.generate)

    def go_on(self, request: Request, number: int | None, max_new_tokens: int | None = None) -> None:
        """More tokens for an answer that was stopped, or that had reached its limit."""
        session = self._take_up(number)
        limit = max_new_tokens or self._settings.max_new_tokens
        if limit <= len(session.token_ids):
            raise FusionError(f"the answer has {len(session.token_ids)} tokens, and {limit} is the most that are asked for",
                              remedy="ask for more new tokens")  # fmt: skip

        def write(**options: Any) -> Trace:
            return session.generate(limit, **options)

        self._write(request, replace(self._settings, max_new_tokens=limit), self._origin("went on"), write)

    def resolve(self, request: Request, number: int | None, changes: Mapping[str, Any]) -> None:
        """Another constraint or method: write again from the first token that it changes."""
        session = self._take_up(number)
        settings = self._settings.updated(changes)

        def write(**options: Any) -> Trace:
            return session.regenerate_from(constraint=settings.constraint, method=settings.method, **options)

        self._write(request, settings, self._origin("changed"), write)

    def what_if(self, request: Request, number: int | None, what_if: Mapping[str, Any]) -> None:
        """Force a token's weights, {"index", "alpha"}, or the token itself, {"index", "token_id"}, and go on from there."""
        session = self._take_up(number)
        index = what_if.get("index")
        if not isinstance(index, int) or isinstance(index, bool):
            raise FusionError(f"a what-if names token {index!r}", remedy="click a token, then choose")

        def write(**options: Any) -> Trace:
            if "token_id" in what_if:
                return session.choose(index, what_if["token_id"], **options)
            return session.force(index, what_if.get("alpha", {}), **options)

        self._write(request, self._settings, self._origin(f"what if, token {index + 1}"), write)

    def empty_trace(self, settings: Settings) -> Trace:
        """A trace of no tokens, so that views and controls are there before anything is written."""
        session = self._new_session(replace(settings, prompt=settings.prompt.strip() or "(no prompt)"))
        return session.trace()

    def free_caches(self) -> None:
        """Forget the session; the next request that needs its answer reads it again."""
        if self._session is not None:
            self._passes += self._session.forward_passes
            self._session.close()
        self._session = self._session_run = None

    def close(self) -> None:
        """Let go of everything."""
        self.free_caches()
        self.team, self._texts = None, {}

    def need_team(self) -> Team:
        """The team, or a `FusionError`: why it could not be loaded, else how to get one."""
        if self.team is None and self._not_loaded is not None:
            raise copy(self._not_loaded)
        if self.team is None:
            raise FusionError(
                "no team is loaded, so nothing can be written",
                remedy="load one in the panel, or pass it: Explorer(Team.from_pretrained('embedded'))",
            )
        return self.team

    # -- how -------------------------------------------------------------------------------------

    def _take_up(self, number: int | None) -> FusionSession:
        """The session at a run's answer. number: None, at whatever was written last, be it half of an answer."""
        team = self.need_team()
        if self._session is not None and number in (None, self._session_run):
            return self._session
        if number is None:
            raise FusionError("nothing was written yet", remedy="press Run first")
        run = self.history.find(number)
        if not run.models:
            raise FusionError("this trace was opened, not written here", remedy="press Run to write anew")
        if run.models != team.describe():
            raise FusionError(f"run {number} was written by another team", remedy="press Run to write anew with this one")
        self.free_caches()
        self._session = self._new_session(run.settings, token_ids=run.trace.token_ids.tolist())
        self._session_run, self._settings = number, run.settings
        return self._session

    def _new_session(self, settings: Settings, *, token_ids: Sequence[int] = ()) -> FusionSession:
        from fusionlab.session import FusionSession

        return FusionSession(
            self.need_team(), settings.as_prompt(), experts=settings.experts, method=settings.method,
            constraint=settings.constraint, max_new_tokens=settings.max_new_tokens, choices=settings.choices,
            token_ids=token_ids,
        )  # fmt: skip

    def _origin(self, words: str) -> str:
        return words if self._session_run is None else f"run {self._session_run}, {words}"

    def _write(self, request: Request, settings: Settings, origin: str, write: Callable[..., Trace]) -> None:
        """Write, streaming tokens; then keep and show the run, and have the models write alone for comparison."""
        session = self._session
        assert session is not None
        limit = settings.max_new_tokens
        self.screen.say("prompt", "Reading the prompt", total=limit, busy=True)
        stream = _Stream(self, request, session, limit)
        number, before = self._session_run, (session.settings, session.token_ids)
        self._session_run = None
        trace = None
        try:
            trace = write(on_token=stream.on_token, should_stop=lambda: request.stopped)
        except TraceError:
            if not session.stopped:  # else it was stopped before an older answer was read again
                raise
        finally:
            after = session.settings  # it knows which what-ifs are left
            self._settings = replace(settings, method=after.method, constraint=after.constraint, choices=after.choices,
                                     max_new_tokens=after.max_new_tokens)  # fmt: skip
            if number is not None and (after, session.token_ids) == before:
                self._session_run = number  # refused, or stopped before anything changed
            self.screen.count(self.forward_passes)
        if request.superseded:
            return
        if session.stopped and self._session_run is not None:
            self.screen.say("stopped", "Stopped before anything changed.")
            return
        assert trace is not None
        run = self.history.add(self._settings, trace, origin, stopped=session.stopped, models=self.need_team().describe())
        self._session_run = run.number
        self.screen.show(run)
        if session.stopped:
            words = f"Stopped after {len(trace)} of {limit} tokens. Continue goes on from there."
            self.screen.say("stopped", words, done=len(trace), total=limit)
        else:
            self._write_others(request, run)

    def _write_others(self, request: Request, run: Run) -> None:
        names = ["large", *run.settings.experts]
        for done, name in enumerate(names):
            shown = "the large model" if name == "large" else f"expert {name}"
            self.screen.say("others", f"For comparison: {shown} alone", done=done, total=len(names), busy=True)
            text = self._text_alone(request, name, run.settings)
            self.screen.count(self.forward_passes)
            if request.superseded:
                return
            if text is None:
                break
            run = self.history.replace(run, others=(*run.others, text))
            self.screen.show_others(run)
        words = f"{len(run.trace)} tokens, {int(run.trace.flipped.sum())} of them moved by an expert."
        cut_short = "" if len(run.others) == len(names) else " The comparison was stopped."
        self.screen.say("idle", words + cut_short)

    def _text_alone(self, request: Request, name: str, settings: Settings) -> Mapping[str, Any] | None:
        """The greedy answer of one model, from memory where it was written before; None if stopped."""
        from fusionlab.baselines import generate_alone

        key = (name, settings.prompt, settings.chat, settings.max_new_tokens)
        if key not in self._texts:
            team = self.need_team()
            result = generate_alone(team, name, [settings.as_prompt()], max_new_tokens=settings.max_new_tokens,
                                    should_stop=lambda: request.stopped)  # fmt: skip
            (ids,) = result.token_ids
            self._passes += max(1, len(ids))  # the prompt's read gives the first token, and the last one is not read
            if request.stopped:
                return None
            label = "large model alone" if name == "large" else f"expert {name} alone"
            pieces = [team.piece(token) for token in ids]
            text = {"name": label, "token_ids": ids, "pieces": pieces, "text": result.texts[0]}
            self._texts = dict([*self._texts.items(), (key, text)][-_MOST_TEXTS:])
        return self._texts[key]


class _Stream:
    """Hands tokens to the screen while they are written, several at a time."""

    def __init__(self, writer: Writer, request: Request, session: FusionSession, limit: int) -> None:
        self.writer, self.request, self.session, self.limit = writer, request, session, limit
        self.sent: int | None = None  # tokens that are on the screen; None: another answer is
        self.last = 0.0

    def on_token(self, token: Any) -> bool:
        """Called by the session after each token; false ends the writing."""
        now = time.monotonic()
        if now - self.last >= _SECONDS_BETWEEN_UPDATES and not self.request.stopped:
            trace = self.session.trace()
            self.writer.screen.stream(trace_payload(trace, start=self.sent or 0), first=self.sent is None)
            self.writer.screen.count(self.writer.forward_passes)
            self.writer.screen.say("tokens", f"Token {token.step + 1} of at most {self.limit}", done=token.step + 1,
                                   total=self.limit, busy=True)  # fmt: skip
            self.sent, self.last = len(trace), now
        return not self.request.stopped


def describe_team(team: Team) -> dict[str, Any]:
    """JSON-able: what the panel says of a loaded team."""
    models = team.describe()
    experts = models["experts"]
    return {
        "loaded": True,
        "large": models["large"]["id"],
        "small": models["small"]["id"],
        "experts": [{"name": name, "id": expert["id"], "kind": expert["kind"]} for name, expert in experts.items()],
        "context": team.context_length(tuple(team.experts)),
        "chat": bool(team.large.tokenizer.chat_template),
    }

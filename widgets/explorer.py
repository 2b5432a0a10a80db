"""The explorer: write with a team, see which expert moved which token, change the constraint, go on from any token.

One widget per explorer, whatever it shows; its script lies in explorer.js. The kernel's part is here: it reads requests,
hands them to a worker, and keeps the widget's traits true. What can be seen without a kernel (solving again while a
slider moves, selecting, comparing texts) is the script's. Importing this module loads no torch.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anywidget
import traitlets

from fusionlab.constraint import KLConstraint
from fusionlab.errors import FusionError
from fusionlab.page_script import bundle
from fusionlab.trace import Trace
from fusionlab.trace_html import traces_to_html
from fusionlab.trace_payload import alternative_payload, trace_payload

from .cell_outputs import SavedView, close_earlier_ones
from .python_call import python_call
from .requests import find_request
from .runs import History, Run, compare_runs, trace_settings
from .settings import METHODS, Settings, default_method
from .worker import Request, Worker
from .writing import Writer, describe_team

if TYPE_CHECKING:
    from fusionlab.team import Team

_LOG = logging.getLogger("fusionlab_widgets.explorer")
_SCRIPT = Path(__file__).with_name("explorer.js")
_STYLE = Path(__file__).with_name("explorer.css")


class Explorer(anywidget.AnyWidget):
    """The live view of a team at work, for JupyterLab.

    >>> team = Team.from_pretrained("embedded")                                        # doctest: +SKIP
    >>> Explorer(team, prompt="Question: What is the capital of Norway?\\nAnswer:")      # doctest: +SKIP

    team: a `Team`; a name that `Team.from_pretrained` takes ("embedded"), loaded in the background; or None, to load one
    from the panel. trace: a `Trace`, or the path of a saved one, to look at before anything is written. experts: those that
    are ticked at first, all by default. method: "evidence" for several experts and "exact" for one, by default.

    A new explorer made by running a cell again closes the one that the cell made before. Errors appear in the panel, in
    words, and stay in `last_error`; faults of fusionlab's own are also logged with their traceback.
    Raises `FusionError` for a wrong argument.
    """

    team_info = traitlets.Dict().tag(sync=True)  # what is loaded, and its experts
    methods: Any = traitlets.List().tag(sync=True)  # names of the solvers
    settings = traitlets.Dict().tag(sync=True)  # what the controls say
    answer = traitlets.Dict().tag(sync=True)  # {"run", "settings", "payload", ...} of what is shown; run: None, nothing yet
    others = traitlets.Dict().tag(sync=True)  # {"run", "texts"}: the same prompt answered by the models alone
    runs: Any = traitlets.List().tag(sync=True)  # the history, one summary a run
    progress = traitlets.Dict().tag(sync=True)  # {"stage", "words", "done", "total", "busy"}
    error: Any = traitlets.Dict(allow_none=True, default_value=None).tag(sync=True)  # {"message", "remedy"}
    forward_passes = traitlets.Int(0).tag(sync=True)  # of all models, since the explorer was made

    def __init__(
        self,
        team: Team | str | None = None,
        *,
        trace: Trace | str | os.PathLike[str] | None = None,
        experts: Sequence[str] | None = None,
        prompt: str = "",
        method: str | None = None,
        constraint: KLConstraint | None = None,
        max_new_tokens: int = 64,
        chat: bool = False,
    ) -> None:
        given = None if isinstance(team, str) else team
        ticked = tuple(experts or ()) if given is None else given.choose_experts(experts)
        self._own_method = method is not None  # else it follows from the number of experts
        self._asked = Settings().updated({
            "experts": ticked, "prompt": prompt, "method": method or default_method(ticked),
            "constraint": constraint or KLConstraint(), "max_new_tokens": max_new_tokens, "chat": chat,
        })  # fmt: skip
        super().__init__(methods=list(METHODS))
        self.last_error: BaseException | None = None
        self.history = History()
        self.writer = Writer(self, self.history, given)
        self.worker = Worker(self._report)
        self.views: set[str] = set()
        self._saved = SavedView()
        self._shown: Run | None = None
        self._showings = 0  # so that an answer that is shown again is sent again
        self.on_msg(self._on_message)
        close_earlier_ones(self)
        self._show_team()
        self.say("idle", "")
        if trace is not None:
            self.attempt(lambda: self.open_trace(trace))
        if isinstance(team, str):
            self.load(team, **({} if experts is None else {"experts": list(experts)}))

    @property
    def _esm(self) -> str:
        return bundle(_SCRIPT, module=True)

    @property
    def _css(self) -> str:
        return _STYLE.read_text(encoding="utf-8")

    # -- from Python -----------------------------------------------------------------------------

    @property
    def team(self) -> Team | None:
        """The team that writes, if one is loaded."""
        return self.writer.team

    @property
    def trace(self) -> Trace | None:
        """The trace that is shown."""
        return None if self._shown is None else self._shown.trace

    def load(self, name: str | None = None, **options: Any) -> None:
        """Load a team in the background; arguments as for `Team.from_pretrained`."""
        self.submit(lambda request: self._load(name, options), needed=True)

    def run(self, prompt: str | None = None, *, wait: bool = False, **changes: Any) -> None:
        """Write an answer, in the background unless `wait`.

        changes: `experts`, `method`, `constraint`, `max_new_tokens`, `chat`; what is left out stays as it is. With
        wait=True an error is raised as well as shown.
        """
        if prompt is not None:
            changes["prompt"] = prompt
        self._own_method = self._own_method or "method" in changes
        settings = self.change(changes)
        self.last_error = None
        self.submit(lambda request: self.writer.run(request, self._completed(settings)))
        if wait:
            try:
                self.wait()
            except KeyboardInterrupt:  # the cell was interrupted, and with it what it asked for
                self.stop()
                raise
            if self.last_error is not None:
                raise self.last_error

    def stop(self) -> None:
        """End what is being written, at its next token; what is there stays."""
        self.worker.stop()

    def wait(self, seconds: float | None = None) -> bool:
        """Wait until nothing is being done; false if the time ran out before."""
        return self.worker.wait(seconds)

    def python_call(self, run: int | None = None) -> str:
        """Code that writes a run's text again: the one that is shown, or the run of a number."""
        found = self.run_of(run)
        return python_call(found.written_settings, found.models)

    def compare(self, first: int, second: int) -> dict[str, Any]:
        """How two runs differ: settings, first token, texts, figures (see `runs.compare_runs`)."""
        return compare_runs(self.history.find(first), self.history.find(second))

    def save(self, path: str | os.PathLike[str], run: int | None = None) -> None:
        """Write the trace that is shown, or a run's: `.html` gives a page, any other name Parquet. Raises `OutputError`."""
        found = self.run_of(run)
        if Path(path).suffix.lower() in (".html", ".htm"):
            traces_to_html([found.trace], path, others=[found.others])
        else:
            found.trace.save(path)

    def close(self) -> None:
        """Stop, and free caches, history and the widget. The team stays with whoever holds it."""
        if not hasattr(self, "worker"):  # a wrong argument ended the making; ipywidgets closes what is left
            return
        self.worker.close()
        self.on_msg(self._on_message, remove=True)
        self.writer.close()
        self.history.clear()
        self._shown = None
        self.layout.close()  # a widget of its own, which nobody else would close
        super().close()  # before what follows, so that it is sent nowhere
        self.answer, self.others, self.runs = {}, {}, []

    # -- from the browser ------------------------------------------------------------------------

    def _on_message(self, _: object, content: Any, buffers: Sequence[Any]) -> None:
        """Acknowledge a request and answer it; what goes wrong is shown."""
        if not isinstance(content, Mapping):
            return  # not from our script
        kind = str(content.get("type"))
        self.send({"type": "received", "serial": content.get("serial")})
        if kind not in ("come", "leave"):  # a page that opens shows what went wrong before
            self.error = None
        self.attempt(lambda: find_request(kind)(self, content, buffers))

    # -- what is shown (writing.Screen) ------------------------------------------------------------

    def say(self, stage: str, words: str, *, done: int = 0, total: int = 0, busy: bool = False) -> None:
        """What is being done, and how much of it."""
        self.progress = {"stage": stage, "done": done, "total": total, "words": words, "busy": busy}

    def stream(self, payload: Mapping[str, Any], *, first: bool) -> None:
        """Tokens as they are written; first: of an answer that was not on the screen before."""
        self.send({"type": "started" if first else "more", "payload": payload})

    def show(self, run: Run, *, looked_at: bool = False) -> None:
        """An answer, whole. looked_at: the panel's fields say what it was asked with, whatever is in them."""
        self._shown = run
        self.runs = [held.summary() for held in self.history]
        self._showings += 1
        self.answer = {"run": run.number, "settings": run.settings.to_dict(), "payload": trace_payload(run.trace),
                       "looked_at": looked_at, "showing": self._showings}  # fmt: skip
        self.show_others(run)

    def look_at(self, run: Run) -> None:
        """An earlier run, or an opened one: the next is asked as it was, but for experts that are not loaded."""
        known = [name for name in run.settings.experts if self.team is None or name in self.team.experts]
        self._asked = replace(run.settings.for_another_text(), experts=tuple(known) or self._asked.experts)
        self.settings = self._asked.to_dict()
        self.show(run, looked_at=True)

    def show_others(self, run: Run) -> None:
        """The texts of single models beside a run, and the saved view with all there is."""
        if self._shown is not None and self._shown.number == run.number:
            self._shown = run
            self.others = {"run": run.number, "texts": [alternative_payload(text) for text in run.others]}
            self._saved.update(run)

    def count(self, forward_passes: int) -> None:
        """How many times models were run so far."""
        self.forward_passes = forward_passes

    def _show_team(self) -> None:
        team = self.writer.team
        self.team_info = {"loaded": False} if team is None else describe_team(team)
        self.settings = self._asked.to_dict()
        if team is not None and self._shown is None:
            empty = trace_payload(self.writer.empty_trace(self._asked))
            self.answer = {"run": None, "settings": self.settings, "payload": empty}

    def open_trace(self, trace: Trace | str | os.PathLike[str], *, name: str | None = None) -> None:
        """Show a trace, or a saved one. Raises `MissingFileError`, `CorruptFileError`, `TraceError`."""
        read = trace if isinstance(trace, Trace) else Trace.load(trace)
        origin = name or ("a trace" if isinstance(trace, Trace) else Path(trace).name)
        self.look_at(self.history.add(trace_settings(read), read, f"opened: {origin}"))
        self.say("idle", "A recorded trace: every control works on it, without a model.")

    # -- how -------------------------------------------------------------------------------------

    def _load(self, name: str | None, options: Mapping[str, Any]) -> None:
        try:
            team = self.writer.load(name, options)
            known = tuple(expert for expert in self._asked.experts if expert in team.experts)
            self.change({"experts": known or tuple(team.experts)})
            self.say("idle", "The team is loaded.")
        finally:
            self._show_team()

    def change(self, changes: Mapping[str, Any], *, another_text: bool = False) -> Settings:
        """What the controls say from now on; another_text: without what-ifs. Raises `FusionError` for a wrong value."""
        settings = self._asked.updated(changes)
        if another_text:
            settings = settings.for_another_text()
        if self.team is not None and "experts" in changes:
            self.team.choose_experts(settings.experts)
        self._own_method = self._own_method or settings.method != self._asked.method
        if not self._own_method:
            settings = settings.updated({"method": default_method(settings.experts)})
        self._asked = settings
        self.settings = settings.to_dict()
        return settings

    def _completed(self, settings: Settings) -> Settings:
        """Settings that were made before the team was there, with the experts that came with it."""
        if settings.experts:
            return settings
        method = settings.method if self._own_method else default_method(self._asked.experts)
        return replace(settings, experts=self._asked.experts, method=method)

    def run_of(self, number: int | None) -> Run:
        """The run of a number; None, the one that is shown. Raises `FusionError`."""
        found = self._shown if number is None else self.history.find(number)
        if found is None:
            raise FusionError("nothing was written yet", remedy="press Run first")
        return found

    def submit(self, work: Callable[[Request], object], *, needed: bool = False) -> None:
        """Have the worker do something, in place of what it is doing. needed: what is asked next waits for it."""
        self.error = None
        self.worker.submit(work, needed=needed)

    def attempt(self, work: Callable[[], object]) -> None:
        """Do something quick; what goes wrong is shown."""
        try:
            work()
        except Exception as error:
            self._report(None, error)

    def _report(self, request: Request | None, error: BaseException) -> None:
        """Put an error into the panel, in words; a fault of our own also goes to the log, with its traceback."""
        if request is not None and request.superseded:
            _LOG.info("an older request failed: %s", error)
            return
        self.last_error = error
        self.error = in_words(error)
        known = isinstance(error, FusionError)
        _LOG.log(logging.INFO if known else logging.ERROR, "%s", error, exc_info=None if known else error)
        if request is not None:
            self.say("failed", "It did not work; see the message.")

    def _repr_mimebundle_(self, **kwargs: Any) -> Any:
        """The live widget, and for viewers without a kernel a page of the latest trace."""
        data, metadata = super()._repr_mimebundle_(**kwargs)  # type: ignore[misc]
        return data | {"text/html": self._saved.html(self._shown)}, metadata

    def _ipython_display_(self) -> None:
        """Show the live widget, and below it an output that is kept true for when there is no kernel."""
        from IPython.display import display

        data, metadata = super()._repr_mimebundle_()  # type: ignore[misc]  # without HTML: the second output has it
        display(data, metadata=metadata, raw=True)
        self._saved.display(self._shown)


def in_words(error: BaseException) -> dict[str, str | None]:
    """{"message", "remedy"} of any exception."""
    if isinstance(error, FusionError):
        return {"message": error.message.replace("prompt 0 ", "the prompt "), "remedy": error.remedy}
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        remedy = "ask for fewer new tokens, a shorter prompt or fewer experts, or load a smaller team"
        return {"message": f"memory ran out: {error}", "remedy": remedy}
    remedy = "try again; if it comes back, report it with the traceback that `raise explorer.last_error` shows"
    return {"message": f"a fault of fusionlab: {type(error).__name__}: {error}", "remedy": remedy}

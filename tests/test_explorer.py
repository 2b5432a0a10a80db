"""The explorer's kernel side: what is asked of it as the browser asks, and what it then shows."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from same_traces import assert_same_trace
from tiny_team import make_model, make_team, make_tokenizer, save_model
from trace_factory import make_trace

from fusionlab import trace_file
from fusionlab.cached import CachedModel
from fusionlab.errors import FusionError, TraceError, UnknownNameError
from fusionlab.solvers import SOLVERS, KLConstraint
from fusionlab.team import Team
from fusionlab.trace import Trace
from fusionlab_widgets import Explorer
from fusionlab_widgets.requests import REQUESTS
from fusionlab_widgets.runs import History, compare_runs, first_divergence
from fusionlab_widgets.settings import METHODS, Settings
from fusionlab_widgets.worker import Request, Worker

PROMPT = "w1 w2 w3"


class Panel:
    """An explorer, and a browser's end of it: requests go in, messages come out."""

    def __init__(self, *args: Any, **options: Any) -> None:
        self.explorer = Explorer(*args, **options)
        self.sent: list[tuple[dict[str, Any], list[bytes]]] = []
        self.explorer.send = lambda content, buffers=None: self.sent.append((content, buffers or []))
        self.serial = 0

    def ask(self, request: str, /, *, buffers: list[bytes] | None = None, wait: bool = True, **content: Any) -> None:
        self.serial += 1
        self.explorer._on_message(None, {"type": request, "serial": self.serial, **content}, buffers or [])
        if wait:
            assert self.explorer.wait(60)

    def run(self, *, wait: bool = True, **settings: Any) -> Trace:
        self.ask("run", settings={"prompt": PROMPT, "max_new_tokens": 20, **settings}, wait=wait)
        if wait:
            assert self.explorer.error is None, self.explorer.error
        return self.explorer.trace

    def messages(self, kind: str) -> list[dict[str, Any]]:
        return [content for content, _ in self.sent if content["type"] == kind]

    def words(self) -> str:
        error = self.explorer.error
        return "" if error is None else f"{error['message']}; {error['remedy']}"


@pytest.fixture
def panel() -> Iterator[Panel]:
    opened = Panel(make_team(), prompt=PROMPT, max_new_tokens=20)
    yield opened
    opened.explorer.close()


def fresh(team: Team, *, prompt: str = PROMPT, **options: Any) -> Trace:
    (trace,) = team.generate([prompt], trace="full", **({"max_new_tokens": 20} | options)).traces
    return trace


# -- writing -------------------------------------------------------------------------------------


def test_run_writes_what_the_team_writes(panel: Panel) -> None:
    """The panel adds nothing of its own to the decode."""
    trace = panel.run(method="exact")
    assert_same_trace(trace, fresh(panel.explorer.team, method="exact"))
    assert panel.explorer.answer["run"] == 1 and panel.explorer.answer["payload"]["tokens"] == len(trace)


def test_several_experts_are_routed_and_one_is_solved_exactly_unless_told_otherwise() -> None:
    """The default method follows the number of ticked experts until the user has chosen one."""
    panel = Panel(make_team(), prompt=PROMPT)
    assert panel.explorer.settings["method"] == "evidence"
    panel.ask("run", settings={"prompt": PROMPT, "experts": ["a"]})
    assert panel.explorer.trace.method == "exact"
    panel.ask("run", settings={"prompt": PROMPT, "experts": ["a"], "method": "static"})
    panel.ask("run", settings={"prompt": PROMPT, "experts": ["a", "b"]})
    assert panel.explorer.trace.method == "static"
    assert Explorer(make_team(), method="joint").settings["method"] == "joint"


def test_tokens_reach_the_views_while_they_are_written(panel: Panel, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first message carries a whole trace and the others only what is new, so that nothing is sent twice."""
    monkeypatch.setattr("fusionlab_widgets.writing._SECONDS_BETWEEN_UPDATES", 0.0)
    trace = panel.run()
    payloads = [message["payload"] for message in panel.messages("started") + panel.messages("more")]
    assert [payload["start"] for payload in payloads] == list(range(len(trace)))
    assert [payload["tokens"] for payload in payloads] == [1] * len(trace)
    assert len(panel.messages("started")) == 1


def test_tokens_are_sent_in_batches(panel: Panel, monkeypatch: pytest.MonkeyPatch) -> None:
    """A message a period is enough for eyes, whatever the models manage; here a long one."""
    monkeypatch.setattr("fusionlab_widgets.writing._SECONDS_BETWEEN_UPDATES", 1000.0)
    panel.run()
    assert len(panel.messages("started")) + len(panel.messages("more")) < len(panel.explorer.trace)


def test_others_write_the_same_prompt_alone_and_are_remembered(panel: Panel) -> None:
    """The comparison is with the large model's and each expert's own greedy text, written once."""
    panel.run()
    names = [text["name"] for text in panel.explorer.others["texts"]]
    assert names == ["large model alone", "expert a alone", "expert b alone"]
    large = panel.explorer.team.generate([PROMPT], experts=[], max_new_tokens=20).token_ids[0]
    assert panel.explorer.others["texts"][0]["token_ids"] == large
    before = panel.explorer.forward_passes
    panel.run(experts=["a"])
    alone = len(panel.explorer.others["texts"])
    assert alone == 2
    trace = panel.explorer.trace
    assert panel.explorer.forward_passes - before == 2 * len(trace), "no pass for texts that are known"


def test_every_forward_pass_of_the_explorer_is_counted(panel: Panel, monkeypatch: pytest.MonkeyPatch) -> None:
    """The counter proves that moving a slider runs none, so it must not miss any."""
    passes = []
    read = CachedModel.read

    def counted(self: CachedModel, *args: Any) -> Any:
        passes.append(1)
        return read(self, *args)

    monkeypatch.setattr(CachedModel, "read", counted)
    panel.run()
    panel.ask("resolve", run=1, constraint=KLConstraint(scale=1.6).to_dict())
    panel.ask("what_if", run=1, what_if={"index": 2, "token_id": 30})
    assert panel.explorer.forward_passes == len(passes)


def test_a_released_control_gives_what_its_constraint_gives(panel: Panel) -> None:
    """Release = regenerate from the first flip, with the caches."""
    panel.run(method="exact")
    constraint = KLConstraint(scale=1.6, budget=2.0)
    panel.ask("resolve", run=1, constraint=constraint.to_dict() | {"method": "exact"}, method="joint")
    assert_same_trace(panel.explorer.trace, fresh(panel.explorer.team, method="joint", constraint=constraint))
    assert panel.explorer.settings["method"] == "joint" and panel.explorer.settings["constraint"]["scale"] == 1.6
    assert [run["number"] for run in panel.explorer.runs] == [1, 2]


@pytest.mark.parametrize("what_if", [{"index": 3, "token_id": 30}, {"index": 3, "alpha": {"a": 0.0, "b": 2.0}}])
def test_a_what_if_goes_on_from_its_token(panel: Panel, what_if: dict[str, Any]) -> None:
    """A clicked token or weight is the same as naming it from the start."""
    panel.run(method="exact")
    panel.ask("what_if", run=1, what_if=what_if)
    if "alpha" in what_if:
        reference = fresh(panel.explorer.team, method="exact", constraint=KLConstraint(force={3: what_if["alpha"]}))
    else:
        reference = fresh(panel.explorer.team, method="exact", choices={3: 30})
    assert_same_trace(panel.explorer.trace, reference)


def test_an_older_run_is_gone_on_from_after_others_were_written(panel: Panel) -> None:
    """Only the last answer has caches; the others are read again and nothing shows it."""
    panel.run(method="exact")
    panel.run(prompt="w9 w8", method="static")
    panel.ask("select", run=1)
    panel.ask("what_if", run=1, what_if={"index": 4, "token_id": 31})
    assert_same_trace(panel.explorer.trace, fresh(panel.explorer.team, method="exact", choices={4: 31}))


def test_a_stop_before_an_older_run_was_read_again_changes_nothing(panel: Panel, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing was written yet, so there is nothing to report but the stop."""
    panel.run(method="exact")
    panel.run(prompt="w9 w8", method="exact")
    held, go = hold_reads(monkeypatch, after=2)
    panel.ask("resolve", run=1, constraint=KLConstraint(scale=1.6).to_dict(), wait=False)
    assert held.wait(30)
    panel.ask("stop", wait=False)
    go.set()
    assert panel.explorer.wait(30)
    assert panel.explorer.error is None, panel.words()
    assert panel.explorer.progress["words"] == "Stopped before anything changed."
    monkeypatch.undo()
    panel.ask("resolve", run=1, constraint=KLConstraint(scale=1.6).to_dict())
    assert_same_trace(panel.explorer.trace, fresh(panel.explorer.team, method="exact", constraint=KLConstraint(scale=1.6)))


def test_the_next_run_is_free_of_what_ifs(panel: Panel) -> None:
    """A weight that was forced at token 3 of one text means nothing at token 3 of another."""
    panel.run(method="exact")
    panel.ask("what_if", run=1, what_if={"index": 3, "alpha": {"a": 2.0, "b": 0.0}})
    constraint = panel.explorer.trace.constraint
    assert constraint["force"]["tokens"]
    panel.run(prompt="w9 w8", method="exact", constraint=constraint)
    assert panel.explorer.trace.constraint["force"] is None
    panel.run(method="exact", constraint=KLConstraint(force={"a": 0.5, 2: 1.0}).to_dict())
    assert panel.explorer.trace.constraint["force"] == {"experts": {"a": 0.5}, "tokens": {}}


def test_looking_at_an_older_run_chooses_no_method(panel: Panel) -> None:
    """One expert was solved exactly; two that are ticked afterwards are routed, as if nobody had looked."""
    panel.run(experts=["a"])
    panel.run(experts=["a", "b"])
    assert panel.explorer.trace.method == "evidence"
    panel.ask("select", run=1)
    assert panel.explorer.settings["experts"] == ["a"] and panel.explorer.settings["method"] == "exact"
    panel.run(experts=["a", "b"], method="exact")  # the page sends the method that it shows
    assert panel.explorer.trace.method == "evidence"


def test_looking_at_a_what_if_takes_none_of_it_into_the_next_text(panel: Panel) -> None:
    """Its forced token and weights are shown with it, and belong to it."""
    panel.run(method="exact")
    panel.ask("what_if", run=1, what_if={"index": 2, "token_id": 30})
    panel.ask("what_if", run=2, what_if={"index": 4, "alpha": {"a": 2.0, "b": 0.0}})
    panel.ask("select", run=3)
    assert panel.explorer.answer["settings"]["choices"] == {"2": 30} and panel.explorer.answer["looked_at"]
    panel.explorer.run("w9 w8", wait=True, method="exact")
    assert_same_trace(panel.explorer.trace, fresh(panel.explorer.team, method="exact", prompt="w9 w8"))
    assert not panel.explorer.answer["looked_at"]


def test_an_answer_that_is_asked_for_again_is_sent_again(panel: Panel) -> None:
    """A later one that failed half-way is on the screen; the trait has not changed, and must be sent all the same."""
    panel.run()
    sent: list[Any] = []
    panel.explorer.observe(lambda change: sent.append(change["new"].get("run")), "answer")
    panel.ask("select", run=1)
    assert sent == [1]


def test_continue_asks_for_more_than_there_is(panel: Panel) -> None:
    """A smaller number would cut what was written."""
    panel.run(method="exact")
    written = len(panel.explorer.trace)
    panel.ask("continue", run=1, settings={"max_new_tokens": 2})
    assert f"the answer has {written} tokens, and 2 is the most" in panel.words()
    assert len(panel.explorer.trace) == written


def test_stop_works_within_one_token_and_continue_goes_on(panel: Panel, monkeypatch: pytest.MonkeyPatch) -> None:
    """A long text must end when its reader has seen enough, and can be taken up again."""
    third, go = hold_reads(monkeypatch, after=3)
    panel.run(wait=False, method="exact")
    assert third.wait(30)
    panel.ask("stop", wait=False)
    go.set()
    assert panel.explorer.wait(30)
    assert len(panel.explorer.trace) == 3
    assert panel.explorer.progress["stage"] == "stopped" and "Stopped after 3 of 20" in panel.explorer.progress["words"]
    monkeypatch.undo()
    assert "max_new_tokens=3," in panel.explorer.python_call()  # which writes this text
    panel.ask("continue", run=1, settings={"max_new_tokens": 20})
    assert_same_trace(panel.explorer.trace, fresh(panel.explorer.team, method="exact"))


def test_interrupting_the_cell_ends_the_writing(panel: Panel, monkeypatch: pytest.MonkeyPatch) -> None:
    """The stop button of the notebook is the one that is known; a model that writes on unseen keeps the machine busy."""
    third, go = hold_reads(monkeypatch, after=3)

    def interrupt() -> None:
        assert third.wait(30)
        os.kill(os.getpid(), signal.SIGINT)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
    try:
        threading.Thread(target=interrupt).start()
        with pytest.raises(KeyboardInterrupt):
            panel.explorer.run(PROMPT, wait=True)
    finally:
        signal.signal(signal.SIGINT, before)
    go.set()
    assert panel.explorer.wait(30)
    assert panel.explorer.progress["stage"] == "stopped" and len(panel.explorer.trace) == 3


def hold_reads(monkeypatch: pytest.MonkeyPatch, *, after: int) -> tuple[threading.Event, threading.Event]:
    """Make the large model wait before its read number `after` + 1: (it waits there, let it go on)."""
    reached, go = threading.Event(), threading.Event()
    read, count = CachedModel.read, [0]

    def held(self: CachedModel, *args: Any) -> Any:
        count[0] += 1
        if count[0] == 2 * after:  # two seats: this one reads the last token before the wait
            reached.set()
            assert go.wait(30)
        return read(self, *args)

    monkeypatch.setattr(CachedModel, "read", held)
    return reached, go


def test_a_newer_request_takes_the_place_of_an_older_one(panel: Panel, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three releases in a row must end in the last one's text, and the first two leave no run behind."""
    panel.run(method="exact")
    reached, go = hold_reads(monkeypatch, after=1)
    panel.ask("what_if", run=1, what_if={"index": 1, "token_id": 30}, wait=False)
    assert reached.wait(30)
    for scale in (0.4, 1.2, 1.6):
        panel.ask("resolve", run=1, constraint=KLConstraint(scale=scale).to_dict(), wait=False)
    go.set()
    assert panel.explorer.wait(60)
    reference = fresh(panel.explorer.team, method="exact", constraint=KLConstraint(scale=1.6))
    assert_same_trace(panel.explorer.trace, reference)
    assert len(panel.explorer.runs) == 2


def test_the_kernel_answers_while_a_model_writes(panel: Panel, monkeypatch: pytest.MonkeyPatch) -> None:
    """Requests return at once: other cells, and Stop, must get their turn."""
    reached, go = hold_reads(monkeypatch, after=1)
    panel.run(wait=False)
    assert reached.wait(30)
    panel.ask("export", kind="python", wait=False)
    assert panel.messages("received")[-1]["serial"] == panel.serial
    assert panel.explorer.worker.busy
    go.set()


# -- what goes wrong -----------------------------------------------------------------------------


@pytest.mark.parametrize("slip", [{"experts": ["nope"]}, {"method": "exakt"}, {"max_new_tokens": 0}])
def test_a_refused_setting_is_not_kept(panel: Panel, slip: dict[str, Any]) -> None:
    """One slip of the keyboard must not make every later request fail."""
    explorer = panel.explorer
    before = dict(explorer.settings)
    with pytest.raises(FusionError, match="nope|exakt|0"):
        explorer.run(PROMPT, wait=True, **slip)
    assert dict(explorer.settings) == before
    explorer.run(PROMPT, wait=True, max_new_tokens=3)
    assert len(explorer.trace) == 3


def test_an_explorer_that_was_refused_leaves_no_second_error(capfd: pytest.CaptureFixture[str]) -> None:
    """What Python prints while it throws the half-made widget away buries the sentence that matters."""
    with pytest.raises(UnknownNameError, match="nope"):
        Explorer(make_team(), experts=["nope"])
    gc.collect()
    assert "Exception ignored" not in capfd.readouterr().err


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"prompt": "  "}, "the prompt is empty; write"),
        ({"experts": []}, "no expert is chosen, so there is nothing to fuse; tick"),
        ({"experts": ["aa"]}, "unknown expert 'aa'; did you mean 'a'?"),
        ({"prompt": "w1 " * 130}, "the prompt has 130 tokens; with 20 new ones it exceeds the context of 128"),
        ({"max_new_tokens": 0}, "the number of new tokens is 0; pass a whole number from 1"),
        ({"max_new_tokens": 500}, "the prompt has 3 tokens; with 500 new ones it exceeds"),
        ({"constraint": {"scale": -1}}, "KLConstraint.scale is -1.0; pass a finite number >= 0"),
        ({"method": "exakt"}, "unknown method 'exakt'; known: exact"),
        ({"speed": 3}, "unknown setting 'speed'; known: prompt"),
    ],
)
def test_bad_input_is_answered_in_words(panel: Panel, settings: dict[str, Any], words: str) -> None:
    """The panel is where its user looks; a traceback in a log is not an answer."""
    panel.run()
    panel.ask("run", settings={"prompt": PROMPT, **settings})
    assert panel.words().startswith(words), panel.words()
    assert isinstance(panel.explorer.last_error, FusionError)
    assert panel.explorer.trace is not None and not panel.explorer.progress["busy"]
    panel.run(experts=["a"], method="exact", constraint=KLConstraint().to_dict())
    assert panel.explorer.error is None


@pytest.mark.parametrize(
    ("kind", "content", "words"),
    [
        ("what_if", {"run": None, "what_if": {"index": 0, "token_id": 3}}, "nothing was written yet; press Run"),
        ("what_if", {"run": 9, "what_if": {"index": 0, "token_id": 3}}, "there is no run 9; the last 20 are kept: none"),
        ("select", {"run": 2}, "there is no run 2"),
        ("compare", {"runs": [1]}, "a comparison needs two different runs"),
        ("export", {"kind": "parquet"}, "nothing was written yet"),
        ("open", {}, "no file came with the request"),
        ("what_if", {"what_if": 3}, "the request holds 3"),
    ],
)
def test_requests_without_a_run_are_answered_in_words(panel: Panel, kind: str, content: dict[str, Any], words: str) -> None:
    """Buttons may be pressed in any order."""
    panel.ask(kind, **content)
    assert panel.words().startswith(words)


def test_a_what_if_that_is_refused_leaves_the_answer(panel: Panel) -> None:
    """A wrong click must not cost the text, nor its caches."""
    panel.run(method="exact")
    session = panel.explorer.writer._session
    for what_if in (
        {"index": 99, "token_id": 3},
        {"index": 1, "token_id": 640},
        {"index": "1"},
        {"index": 1, "alpha": {"z": 1}},
    ):
        panel.ask("what_if", run=1, what_if=what_if)
        assert panel.explorer.error is not None
    panel.ask("what_if", run=1, what_if={"index": 1, "token_id": 30})
    assert panel.explorer.writer._session is session
    assert_same_trace(panel.explorer.trace, fresh(panel.explorer.team, method="exact", choices={1: 30}))


def test_without_a_team_the_panel_says_how_to_get_one() -> None:
    """An explorer can be opened before there is anything to explore."""
    panel = Panel(prompt=PROMPT)
    panel.ask("run", settings={"prompt": PROMPT})
    assert "no team is loaded" in panel.words() and "load one in the panel" in panel.words()


@pytest.mark.parametrize(
    ("form", "words"),
    [
        ({"large": "", "small": "x"}, "no large model is named"),
        ({"large": "x", "small": " "}, "no small model is named"),
        ({"large": "x", "small": "y", "experts": {"a": ""}}, "an expert needs a name and a model id"),
        ({"name": "embeded"}, "unknown team 'embeded'; known: embedded"),
    ],
)
def test_a_form_that_is_not_filled_in_names_the_field(form: dict[str, Any], words: str) -> None:
    """Before any folder or hub is asked."""
    panel = Panel()
    panel.ask("load", **form)
    assert panel.words().startswith(words)


def test_what_went_wrong_before_a_page_opened_is_there_when_it_does(tmp_path: Path) -> None:
    """The cell ran, the view comes a moment later, and asks for the state."""
    panel = Panel("embeded")
    assert panel.explorer.wait(30)
    panel.ask("come", view="one")
    assert panel.words().startswith("unknown team 'embeded'")
    panel.ask("leave", view="one")
    assert panel.words().startswith("unknown team 'embeded'")
    opened = Panel(trace=tmp_path / "nowhere.parquet")
    opened.ask("come", view="one")
    assert "nowhere.parquet" in opened.words()


def test_a_run_waits_for_the_team_that_it_needs(tmp_path: Path) -> None:
    """`Explorer("...")` and `run` in one cell: the team is loaded first, and its experts write."""
    for name, seed, layers in (("large", 0, 2), ("small", 1, 1), ("a", 2, 1), ("b", 3, 1)):
        save_model(make_model(seed, layers=layers), make_tokenizer(), tmp_path / name)
    explorer = Explorer(prompt=PROMPT, max_new_tokens=4)
    explorer.load(
        large=str(tmp_path / "large"), small=str(tmp_path / "small"), experts={x: str(tmp_path / x) for x in "ab"}
    )
    explorer.run(wait=True)
    assert explorer.trace.experts == ("a", "b") and explorer.trace.method == "evidence" and len(explorer.trace) == 4
    explorer.load("embeded")
    with pytest.raises(UnknownNameError, match="embeded"):
        explorer.run(wait=True)
    assert explorer.wait(30)  # the load failed long before: its error is still the cause
    with pytest.raises(UnknownNameError, match="embeded"):
        explorer.run(wait=True)
    assert "unknown team" in explorer.error["message"]


def test_a_wrong_model_id_is_answered_in_words_and_a_right_one_then_works(tmp_path: Path) -> None:
    """The usual slip, and the usual way on."""
    for name, seed, layers in (("large", 0, 2), ("small", 1, 1), ("expert", 2, 1)):
        save_model(make_model(seed, layers=layers), make_tokenizer(), tmp_path / name)
    panel = Panel(prompt=PROMPT)
    right: dict[str, Any] = {
        "large": str(tmp_path / "large"),
        "small": str(tmp_path / "small"),
        "experts": {"a": str(tmp_path / "expert")},
    }
    panel.ask("load", **(right | {"large": str(tmp_path / "lagre")}))
    assert "lagre" in panel.words()
    assert panel.explorer.team_info == {"loaded": False}
    panel.ask("load", **right)
    assert panel.explorer.error is None
    assert [expert["name"] for expert in panel.explorer.team_info["experts"]] == ["a"]
    panel.run()
    namespace: dict[str, Any] = {}
    exec(panel.explorer.python_call(), namespace)
    assert namespace["result"].texts[0] == panel.explorer.trace.text


def test_a_fault_of_our_own_is_shown_logged_and_kept(
    panel: Panel, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """What nobody thought of must not vanish on a thread."""

    def broken(*_: Any) -> None:
        raise ZeroDivisionError("division by zero")

    monkeypatch.setattr(CachedModel, "read", broken)
    panel.ask("run", settings={"prompt": PROMPT})
    assert "a fault of fusionlab: ZeroDivisionError: division by zero" in panel.words()
    assert isinstance(panel.explorer.last_error, ZeroDivisionError)
    assert "Traceback" in caplog.text
    with pytest.raises(ZeroDivisionError):
        panel.explorer.run(wait=True)


def test_memory_that_runs_out_is_no_riddle(panel: Panel, monkeypatch: pytest.MonkeyPatch) -> None:
    """torch has a class of its own for it."""

    class OutOfMemoryError(RuntimeError):
        pass

    def greedy(*_: Any) -> None:
        raise OutOfMemoryError("tried to allocate 2 GiB")

    monkeypatch.setattr(CachedModel, "read", greedy)
    panel.ask("run", settings={"prompt": PROMPT})
    assert panel.words().startswith("memory ran out: tried to allocate 2 GiB; ask for fewer new tokens")


@pytest.mark.parametrize(
    "message", [None, 3, {}, {"type": "dance"}, {"type": ["run"]}, {"type": "run"}, {"type": "run", "settings": 1}]
)
def test_messages_that_make_no_sense_break_nothing(panel: Panel, message: Any) -> None:
    """Whatever arrives over the wire, the explorer goes on."""
    panel.explorer._on_message(None, message, [])
    assert panel.explorer.wait(30)
    assert len(panel.run(method="exact")) > 0


# -- traces, history, export ---------------------------------------------------------------------


def test_a_recorded_trace_is_shown_without_a_model(tmp_path: Path) -> None:
    """The first heatmap is there before any model is."""
    trace = make_trace()
    trace.save(tmp_path / "answer.parquet")
    for given_trace in (trace, tmp_path / "answer.parquet"):
        panel = Panel(trace=given_trace)
        assert panel.explorer.trace == trace
        assert panel.explorer.answer["payload"]["tokens"] == 3
        panel.ask("resolve", run=1, constraint=KLConstraint().to_dict())
        assert "no team is loaded" in panel.words()
    panel = Panel(make_team(), trace=trace)
    panel.ask("resolve", run=1, constraint=KLConstraint().to_dict())
    assert "this trace was opened, not written here" in panel.words()


def test_a_trace_of_another_version_is_named_in_the_panel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Old files outlive releases; whoever opens one must learn what to do."""
    monkeypatch.setattr(trace_file, "TRACE_VERSION", 7)
    make_trace().save(tmp_path / "future.parquet")
    monkeypatch.undo()
    panel = Panel(trace=tmp_path / "future.parquet")
    assert "is a trace of version 7" in panel.words() and "record the trace again" in panel.words()
    panel.ask("open", name="future.parquet", buffers=[(tmp_path / "future.parquet").read_bytes()])
    assert "is a trace of version 7" in panel.words()
    assert isinstance(panel.explorer.last_error, TraceError)


def test_a_file_from_the_users_machine_is_opened(tmp_path: Path) -> None:
    """A colleague's trace arrives as a file, and the kernel may be far away."""
    trace = make_trace()
    trace.save(tmp_path / "answer.parquet")
    panel = Panel()
    panel.ask("open", name="../../answer.parquet", buffers=[(tmp_path / "answer.parquet").read_bytes()])
    assert panel.explorer.trace == trace
    panel.ask("open", name="x.parquet", buffers=[b"no parquet"])
    assert "is not a whole Parquet file" in panel.words()


def test_history_is_bounded_and_shows_a_run_again(panel: Panel) -> None:
    """Memory stays flat however long someone plays."""
    for scale in range(23):
        panel.explorer.history.add(Settings(experts=("a", "b")), make_trace(seed=scale), "test")
    assert len(panel.explorer.history) == 20
    panel.ask("select", run=5)
    assert panel.explorer.trace == make_trace(seed=4)
    panel.ask("select", run=2)
    assert "there is no run 2" in panel.words()


def test_two_runs_are_compared_by_settings_texts_and_first_divergence(panel: Panel) -> None:
    """An A/B needs to say what was changed and where it shows."""
    first = panel.run(method="exact", experts=["a"])
    second = panel.run(method="static", experts=["a"], constraint={"scale": 1.5})
    panel.ask("compare", runs=[1, 2])
    (message,) = panel.messages("comparison")
    assert message["comparison"] == panel.explorer.compare(1, 2)
    assert message["comparison"]["settings"] == [
        {"name": "method", "values": ["exact", "static"]},
        {"name": "scale", "values": ["1.0", "1.5"]},
    ]
    expected = first_divergence(first.token_ids.tolist(), second.token_ids.tolist())
    assert message["comparison"]["divergence"] == expected is not None
    assert message["text"]["token_ids"] == second.token_ids.tolist()
    with pytest.raises(UnknownNameError, match="no run 8"):
        panel.explorer.compare(1, 8)


def test_a_run_compared_with_its_like_differs_nowhere() -> None:
    """No false alarm."""
    history = History()
    runs = [history.add(Settings(experts=("math", "trivia")), make_trace(), "test") for _ in range(2)]
    result = compare_runs(*runs)
    assert result["settings"] == [] and result["divergence"] is None


@given(st.lists(st.integers(0, 3)), st.lists(st.integers(0, 3)))
def test_the_first_divergence_is_where_common_beginnings_end(first: list[int], second: list[int]) -> None:
    """By the definition: everything before is equal, and there it is not."""
    place = first_divergence(first, second)
    if place is None:
        assert first == second
    else:
        assert first[:place] == second[:place] and first[place : place + 1] != second[place : place + 1]


@pytest.mark.parametrize("kind", ["parquet", "html"])
def test_exports_are_files_that_open_again(panel: Panel, kind: str, tmp_path: Path) -> None:
    """The browser saves them, so the kernel may run anywhere."""
    trace = panel.run()
    panel.ask("export", kind=kind, run=1)
    (content, buffers) = panel.sent[-1]
    assert content["name"] == f"fusion-run-1.{kind}"
    (tmp_path / "file").write_bytes(buffers[0])
    if kind == "parquet":
        assert Trace.load(tmp_path / "file") == trace
    else:
        assert "large model alone" in buffers[0].decode() and trace.prompt in buffers[0].decode()
    panel.explorer.save(tmp_path / f"again.{kind}")
    assert (tmp_path / f"again.{kind}").stat().st_size == len(buffers[0])


@pytest.mark.parametrize("prompt", ["w1 \"quoted\" 'and' \\n {x}\nw2", "w1\u2028w2"])
def test_the_python_call_gives_the_same_text_whatever_is_in_it(prompt: str, tmp_path: Path) -> None:
    """Every state that clicks can reach is a call that a script can make."""
    for name, seed, layers in (("large", 0, 2), ("small", 1, 1), ("expert", 2, 1)):
        save_model(make_model(seed, layers=layers), make_tokenizer(), tmp_path / name)
    team = Team.from_pretrained(large=str(tmp_path / "large"), small=str(tmp_path / "small"),
                                experts={"my 'own'": str(tmp_path / "expert")})  # fmt: skip
    panel = Panel(team, prompt=prompt)
    panel.ask("run", settings={"prompt": prompt, "max_new_tokens": 16})
    panel.ask("what_if", run=1, what_if={"index": 2, "token_id": 30})
    panel.ask("what_if", run=2, what_if={"index": 5, "alpha": {"my 'own'": 1.5}})
    panel.ask("resolve", run=3, constraint=panel.explorer.answer["settings"]["constraint"] | {"budget": 1.5})
    assert panel.explorer.error is None
    panel.ask("export", kind="python")
    namespace: dict[str, Any] = {}
    exec(panel.messages("code")[-1]["text"], namespace)
    assert_same_trace(panel.explorer.trace, namespace["result"].traces[0])


def test_methods_are_those_of_the_solvers() -> None:
    """The panel's list is written without torch, so it is held to the solvers here."""
    assert set(METHODS) == SOLVERS.keys()


@given(
    st.builds(
        Settings,
        prompt=st.text(),
        experts=st.lists(st.text(), unique=True).map(tuple),
        constraint=st.builds(KLConstraint, scale=st.floats(0, 9), force=st.none() | st.just({3: {"a": 1.0}, "b": 0.5})),
        choices=st.dictionaries(st.integers(0, 99), st.integers(0, 99)),
        chat=st.booleans(),
    )
)
def test_settings_survive_the_way_to_the_browser_and_back(settings: Settings) -> None:
    """What the panel shows is what is asked next."""
    assert Settings().updated(settings.to_dict()) == settings


# -- life ----------------------------------------------------------------------------------------


def test_importing_the_widgets_loads_no_torch() -> None:
    """A trace is looked at on machines where nothing could run."""
    code = "import sys; from fusionlab_widgets import Explorer; Explorer(); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "False", done.stderr


def test_closing_frees_caches_and_history(panel: Panel) -> None:
    """A cell that is run again must not add up."""
    import ipywidgets

    panel.run()
    session, model_id = panel.explorer.writer._session, panel.explorer.model_id
    panel.explorer.close()
    assert session._features == [] and session._reader is None
    assert len(panel.explorer.history) == 0 and panel.explorer.answer == {}
    assert model_id not in ipywidgets.widget._instances if hasattr(ipywidgets, "widget") else True
    with pytest.raises(FusionError):
        session.generate(3)


def test_caches_go_when_the_last_view_goes_and_the_answer_stays(panel: Panel) -> None:
    """A cleared output has no reader; whoever shows the explorer again can still go on."""
    panel.ask("come", view="one")
    panel.ask("come", view="two")
    panel.run(method="exact")
    panel.ask("leave", view="one")
    assert panel.explorer.writer._session is not None
    panel.ask("leave", view="two")
    assert panel.explorer.writer._session is None
    panel.ask("what_if", run=1, what_if={"index": 4, "token_id": 31})
    assert_same_trace(panel.explorer.trace, fresh(panel.explorer.team, method="exact", choices={4: 31}))


def test_a_cell_that_is_run_again_closes_what_it_made_before(monkeypatch: pytest.MonkeyPatch) -> None:
    """By the cell's id: several explorers of one execution live side by side, those of an earlier one do not."""
    from fusionlab_widgets import cell_outputs

    running = {"cell": ("cell-1", "run-1")}
    monkeypatch.setattr(cell_outputs, "running_cell", lambda: running["cell"])
    first, beside = Explorer(), Explorer()
    running["cell"] = ("cell-2", "run-2")
    elsewhere = Explorer()
    running["cell"] = ("cell-1", "run-3")
    again = Explorer()
    closed = [explorer.comm is None for explorer in (first, beside, elsewhere, again)]
    assert closed == [True, True, False, False]


def test_the_fallback_page_shows_the_latest_trace(panel: Panel) -> None:
    """Viewers without a kernel read HTML."""
    data, _ = panel.explorer._repr_mimebundle_()
    assert "written nothing yet" in data["text/html"]
    panel.run()
    data, _ = panel.explorer._repr_mimebundle_()
    assert "application/vnd.jupyter.widget-view+json" in data
    assert "data-fusion-payload" in data["text/html"] and "Saved view of run 1" in data["text/html"]


# -- the worker ----------------------------------------------------------------------------------


def test_the_worker_does_the_latest_of_many_requests() -> None:
    """A slider that is let go a hundred times must not queue a hundred answers."""
    done: list[int] = []
    worker = Worker(lambda request, error: None)
    started = threading.Event()

    def slow(request: Request) -> None:
        started.set()
        while not request.stopped:
            time.sleep(0.001)
        done.append(-1)

    worker.submit(slow)
    assert started.wait(10)
    for number in range(100):
        worker.submit(lambda request, number=number: done.append(number))
    assert worker.wait(10)
    assert done == [-1, 99]


def test_the_worker_waits_for_what_is_needed_and_gives_up_what_needed_it() -> None:
    """The load of a team is not replaced by the run that was asked for after it; a newer load is what is wanted."""
    done: list[str] = []
    errors: list[str] = []
    worker = Worker(lambda request, error: errors.append(f"{error} {request.superseded}"))
    go = threading.Event()

    def load(request: Request) -> None:
        assert go.wait(10)
        done.append("load")

    def fail(request: Request) -> None:
        assert go.wait(10)
        raise ZeroDivisionError("no such model")

    worker.submit(load, needed=True)
    worker.submit(lambda request: done.append("first"))
    worker.submit(lambda request: done.append("second"))
    go.set()
    assert worker.wait(10)
    assert done == ["load", "second"]
    go.clear()
    worker.submit(fail, needed=True)
    worker.submit(lambda request: done.append("third"))
    go.set()
    assert worker.wait(10)
    assert done == ["load", "second"] and errors == ["no such model False"]


def test_the_worker_survives_what_fails_and_ends_when_closed() -> None:
    """One broken request is no reason for silence; after close nothing starts."""
    errors: list[str] = []
    worker = Worker(lambda request, error: errors.append(str(error)))
    worker.submit(lambda request: 1 / 0)
    assert worker.wait(10)
    seen: list[bool] = []
    worker.submit(lambda request: seen.append(True))
    assert worker.wait(10)
    worker.close()
    worker.submit(lambda request: seen.append(False))
    assert worker.wait(10)
    assert errors == ["division by zero"] and seen == [True]


def test_every_request_is_one_that_the_panel_sends() -> None:
    """A request that no button sends is dead code, and one that is unknown here would be ignored."""
    folder = Path(sys.modules["fusionlab_widgets"].__file__ or "").parent
    script = "".join(path.read_text() for path in folder.glob("*.js"))
    assert {kind for kind in REQUESTS if f'"{kind}"' in script} == set(REQUESTS)

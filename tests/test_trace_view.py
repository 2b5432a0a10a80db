"""The trace view: alive beside a kernel, readable without one, and in words where there is nothing to show."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from browser_pages import Watch, open_browser, open_page
from trace_factory import HOSTILE, make_trace

from fusionlab.trace import Trace
from fusionlab.trace_file import VERSION_KEY
from fusionlab_widgets.trace_view import LIVE, SAVED, TraceView

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

RECORDED = Path(__file__).resolve().parents[1] / "data" / "traces" / "first_look.parquet"


def test_a_trace_and_the_path_of_its_file_show_the_same(tmp_path: Path) -> None:
    """A run's result and a file from a colleague are looked at in one way."""
    trace = make_trace()
    trace.save(tmp_path / "a.parquet")
    assert (
        TraceView(trace).payload
        == TraceView(tmp_path / "a.parquet").payload
        == TraceView(str(tmp_path / "a.parquet")).payload
    )
    assert TraceView(trace).problem == ""


def test_needs_no_torch(tmp_path: Path) -> None:
    """A trace is read on a small machine; loading the engine would take its memory and ten seconds."""
    make_trace().save(tmp_path / "a.parquet")
    code = f"""
import sys
from fusionlab_widgets.trace_view import TraceView
view = TraceView({str(tmp_path / "a.parquet")!r})
assert view.payload["tokens"] == 3 and view.to_output()
print({{"torch", "transformers", "plotly"}} & set(sys.modules))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "set()", done.stderr


def broken_files(folder: Path) -> dict[str, object]:
    """What people hand in, by what the view should say."""
    make_trace().save(folder / "whole.parquet")
    table = pq.read_table(folder / "whole.parquet")
    later = (table.schema.metadata or {}) | {VERSION_KEY: b"99"}
    pq.write_table(table.replace_schema_metadata(later), folder / "later.parquet")
    (folder / "cut.parquet").write_bytes((folder / "whole.parquet").read_bytes()[:300])
    pq.write_table(table.replace_schema_metadata({}), folder / "table.parquet")
    return {
        "version 99": folder / "later.parquet",
        "copy it again": folder / "cut.parquet",
        "not a trace": folder / "table.parquet",
        "there is no trace file": folder / "<img src=x onerror=alert(1)>.parquet",
        "given int": 3,
    }


def test_what_cannot_be_shown_is_said_in_the_view_and_does_not_raise(tmp_path: Path) -> None:
    """A traceback in place of a view explains nothing to whoever was sent the notebook."""
    for words, trace in broken_files(tmp_path).items():
        view = TraceView(trace)
        assert words in view.problem and view.payload == {} and view.trace is None
        assert words in view.to_output() and "<img" not in view.to_output()
        assert words in repr(view)


def test_the_output_is_the_widget_and_a_saved_view_after_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """JupyterLab shows "Loading widget..." where the kernel is gone, whatever else that output holds."""
    import IPython.display

    shown: list[dict[str, Any]] = []
    monkeypatch.setattr(IPython.display, "display", lambda data, **options: shown.append(data))
    view = TraceView(make_trace())
    view._ipython_display_()
    live, saved = shown
    assert "application/vnd.jupyter.widget-view+json" in live and "text/html" not in live
    assert "application/vnd.jupyter.widget-view+json" not in saved
    assert saved["text/html"].startswith(f'<div class="{SAVED}">') and view.to_output() in saved["text/html"]
    assert "Santiago" in saved["text/plain"]
    bundle, _ = view._repr_mimebundle_()
    assert {"application/vnd.jupyter.widget-view+json", "text/html", "text/plain"} <= bundle.keys()


def test_an_executed_notebook_with_64_tokens_and_two_experts_stays_below_a_megabyte() -> None:
    """Widget state and saved view each carry the trace and the script; the tutorials may not outgrow a mail."""
    rng = np.random.default_rng(0)
    pieces = [f" word{rng.integers(10_000)}" for _ in range(64)]
    view = TraceView(make_trace(pieces))
    state = len(json.dumps(view.get_state()))
    saved = len(json.dumps(f'<div class="{SAVED}">{view.to_output()}</div>'))
    print(f"widget state {state:,} bytes, saved view {saved:,} bytes")
    assert state + saved < 1_000_000


def test_nbconvert_shows_the_saved_view_without_a_kernel(tmp_path: Path) -> None:
    """What is published is nbconvert's page; it may ask no server for the scripts of widgets."""
    import nbformat
    from nbconvert import HTMLExporter

    view = TraceView(make_trace(HOSTILE))
    output = nbformat.v4.new_output("display_data", {"text/html": f'<div class="{SAVED}">{view.to_output()}</div>'})
    cell = nbformat.v4.new_code_cell("view", outputs=[output])
    page, _ = HTMLExporter(template_name="basic").from_notebook_node(nbformat.v4.new_notebook(cells=[cell]))
    path = tmp_path / "notebook.html"
    path.write_text(f"<!doctype html><meta charset=utf-8>{page}", encoding="utf-8")
    with open_browser() as browser:
        opened, watch = open_page(browser, path)
        assert HOSTILE[0] in opened.locator(".strip").inner_text()
        opened.locator("#control-scale").evaluate("node => { node.value = 0; node.dispatchEvent(new Event('change')); }")
        assert "As recorded" not in opened.locator(".summary").inner_text()
        assert watch.quiet, watch


# -- the widget's script, with a model made of a plain object ---------------------------------------

MODEL = """
window.state = STATE;
window.sent = [];
const listeners = {};
window.model = {
  get: (name) => window.state[name],
  set: (name, value) => { window.state[name] = value; },
  save_changes: () => window.sent.push(JSON.parse(JSON.stringify({ ...window.state, payload: null }))),
  on: (event, act) => { (listeners[event] ??= []).push(act); },
  off: (event, act) => { listeners[event] = (listeners[event] ?? []).filter((other) => other !== act); },
};
window.fromPython = (name, value) => {
  window.state[name] = value;
  for (const act of listeners[`change:${name}`] ?? []) act();
};
window.listening = () => Object.values(listeners).flat().length;
"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with open_browser() as opened:
        yield opened


def open_widget(browser: Browser, view: TraceView, folder: Path) -> tuple[Page, Watch]:
    """The widget's own script in a page, in place of JupyterLab."""
    state = {name: getattr(view, name) for name in ("payload", "constraint", "selection", "problem")}
    model = MODEL.replace("STATE", json.dumps(state).replace("<", "\\u003c"))
    script = str(view._esm).replace(
        "export default { render };", "window.stop = render({ model: window.model, el: document.body });"
    )
    path = folder / "widget.html"
    path.write_text(
        f"<!doctype html><meta charset=utf-8><body><script type=module>{model}\n{script}</script>", encoding="utf-8"
    )
    page, watch = open_page(browser, path)
    page.locator(".fusion").first.wait_for()
    return page, watch


@pytest.mark.browser
def test_selection_and_constraint_travel_both_ways(browser: Browser, tmp_path: Path) -> None:
    """Python reads what was clicked and moves the controls; neither answer makes an echo."""
    trace = make_trace([" Santiago", " is", " 42", "."] * 3, seed=2)
    page, watch = open_widget(browser, TraceView(trace), tmp_path)
    page.locator(".token").nth(4).click()
    assert page.evaluate("window.sent.map(state => state.selection)") == [4]
    page.locator("#control-scale").focus()
    page.keyboard.press("ArrowRight")
    (first, *_), last = (
        page.evaluate("window.sent.map(state => state.constraint)"),
        page.evaluate("window.sent.at(-1).constraint"),
    )
    assert first == {} and last["scale"] == 1.01 and last["method"] == trace.method
    count = page.evaluate("window.sent.length")
    page.evaluate("window.fromPython('selection', 7)")
    page.evaluate("window.fromPython('constraint', { scale: 0 })")
    assert page.locator(".token[aria-selected=true]").get_attribute("data-token") == "7"
    assert page.locator(".field-scale .value").inner_text() == "0.00"
    assert page.evaluate("window.sent.length") == count
    assert watch.quiet, watch


@pytest.mark.browser
def test_a_new_payload_replaces_the_view_and_closing_it_leaves_nothing(browser: Browser, tmp_path: Path) -> None:
    """A cell that is run fifty times must not keep fifty views alive."""
    page, watch = open_widget(browser, TraceView(make_trace()), tmp_path)
    other = TraceView(make_trace(HOSTILE)).payload
    page.evaluate("payload => window.fromPython('payload', payload)", other)
    assert page.locator(".fusion-host").count() == 1
    assert HOSTILE[0] in page.locator(".strip").inner_text()
    page.evaluate("window.fromPython('problem', 'the kernel <b>says</b> no')")
    assert page.locator("[role=alert]").inner_text() == "the kernel <b>says</b> no"
    page.evaluate("window.stop()")
    assert page.locator(".fusion-host").count() == 0
    assert page.evaluate("window.listening()") == 0
    assert watch.quiet, watch


@pytest.mark.browser
def test_the_live_view_hides_the_saved_one_and_the_saved_one_a_dead_widget(browser: Browser, tmp_path: Path) -> None:
    """In JupyterLab's outputs exactly one of both is seen, with a kernel and without."""
    view = TraceView(make_trace())
    saved = f'<div class="{SAVED}"><style>{view._css}</style>{view.to_output()}</div>'
    captured: list[dict[str, Any]] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("IPython.display.display", lambda data, **options: captured.append(data))
        view._ipython_display_()
    saved = captured[1]["text/html"]
    child = '<div class="jp-OutputArea-child">{}</div>'
    for first, seen in ((f'<p class="{LIVE}">alive</p>', [True, False]), ("<p>Loading widget...</p>", [False, True])):
        path = tmp_path / "outputs.html"
        outputs = child.format(first) + child.format(saved)
        path.write_text(f"<!doctype html><meta charset=utf-8><style>{view._css}</style>{outputs}", encoding="utf-8")
        page, _ = open_page(browser, path)
        visible = page.locator(".jp-OutputArea-child").evaluate_all(
            "nodes => nodes.map(n => getComputedStyle(n).display !== 'none')"
        )
        assert visible == seen


# -- the recorded trace ------------------------------------------------------------------------------


def test_the_recorded_trace_tells_the_story_of_the_first_notebook() -> None:
    """One expert carries the answer, flips tokens, and is right where the large model alone is wrong."""
    trace = Trace.load(RECORDED)
    assert trace.has_tables and set(trace.experts) == {"math", "trivia"}
    assert trace.text.strip().endswith("33") and trace.flipped.sum() >= 3
    assert trace.alpha[:, trace.experts.index("math")].mean() > 0.5
    assert trace.alpha[:, trace.experts.index("trivia")].mean() < 0.1
    others = {other["name"]: other for other in TraceView(trace).payload["alternatives"]}
    assert set(others) == {"large alone", "math alone", "trivia alone"}
    assert "33" not in "".join(others["large alone"]["pieces"])
    assert "large alone" in trace.to_html() and "large alone" in TraceView(trace).to_output()

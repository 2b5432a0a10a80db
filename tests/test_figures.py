"""Figures: every number where it belongs, every word as it was written, at any size."""

from __future__ import annotations

import html
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from browser_pages import open_browser, open_page
from hypothesis import given
from hypothesis import strategies as st
from trace_factory import make_trace

from fusionlab.errors import MissingPackageError, TraceError
from fusionlab_widgets.figures import kl_curves, literal_text, weight_distribution, weight_heatmap

if TYPE_CHECKING:
    from playwright.sync_api import Browser

HOSTILE = ["<img src=x onerror=alert(1)>", "<b>x</b>", "&lt;b&gt;", "$x^2$", "%{y}", "</script>", "a<br>b"]


def traces_of(kind: str, figure: Any) -> list[Any]:
    return [trace for trace in figure.data if trace.type == kind]


@given(text=st.text())
def test_literal_text_leaves_plotly_no_tag_no_entity_and_no_formula(text: str) -> None:
    """Plotly reads <b>, &lt; and $..$ in every label; what it reads back must be the text."""
    safe = literal_text(text)
    assert not set("<>$") & set(safe)
    assert html.unescape(safe) == html.unescape(html.escape(text, quote=False))


@pytest.mark.parametrize("experts", [1, 2, 8])
@pytest.mark.parametrize("tokens", [1, 40, 300])
def test_heatmap_has_a_cell_per_weight_and_labels_that_fit(experts: int, tokens: int) -> None:
    """From one token to three hundred: same width, all the weights, and never a pile of labels."""
    trace = make_trace([" word"] * tokens, experts=tuple(f"e{i}" for i in range(experts)))
    figure = weight_heatmap(trace)
    (cells,) = traces_of("heatmap", figure)
    np.testing.assert_array_equal(np.array(cells.z), trace.alpha.T)
    assert 1 <= len(figure.layout.xaxis.tickvals) <= min(tokens, 60)
    assert list(figure.layout.yaxis.ticktext) == list(trace.experts)
    assert figure.layout.width == 840
    assert figure.layout.height >= 26 * experts


def test_heatmap_names_every_token_of_a_short_answer() -> None:
    """Of fifty tokens every second one was named; a reader of a sum needs the digits between them."""
    axis = weight_heatmap(make_trace([" 4"] * 50)).layout.xaxis
    assert len(axis.tickvals) == 50
    assert axis.tickangle == -90
    assert weight_heatmap(make_trace([" 4"] * 20)).layout.xaxis.tickangle == -60


def test_heatmap_marks_each_flip_on_the_expert_that_caused_it() -> None:
    """The triangle is the claim of the figure."""
    trace = make_trace([" a", " b", " c"] * 20, seed=2)
    (marks,) = traces_of("scatter", weight_heatmap(trace))
    flips = np.flatnonzero(trace.flipped)
    assert len(flips) > 1
    assert list(marks.x) == flips.tolist()
    assert list(marks.y) == trace.flipped_by[flips].tolist()


def test_heatmap_of_several_traces_has_one_scale_and_one_legend() -> None:
    """Shades must mean the same in every row of a figure; traces without tokens are left out."""
    traces = [make_trace(seed=1), make_trace([]), make_trace([" a"] * 30, seed=2)]
    figure = weight_heatmap(traces)
    cells = traces_of("heatmap", figure)
    assert [trace.coloraxis for trace in cells] == ["coloraxis", "coloraxis"]
    assert figure.layout.coloraxis.cmax == max(trace.alpha.max(initial=0) for trace in traces)
    assert sum(bool(trace.showlegend) for trace in traces_of("scatter", figure)) == 1


def test_curves_are_the_table_and_j_is_least_at_the_grid_choice() -> None:
    """With the paper's search the vertical line stands at the minimum of J, by the formula itself."""
    trace = make_trace([" a", " b"] * 5, experts=("math",), seed=3)
    for step in range(len(trace)):
        figure = kl_curves(trace, step)
        by_name = {curve.name: curve for curve in figure.data}
        assert trace.grid_kl_forward is not None
        assert trace.grid is not None
        np.testing.assert_array_equal(by_name["KL(P̃‖P)"].y, trace.grid_kl_forward[step, 0])
        objective = np.array(by_name["J (right axis)"].y)
        assert trace.grid[objective.argmin()] == trace.alpha[step, 0]
        assert figure.layout.shapes[0].x0 == pytest.approx(float(trace.alpha[step, 0]))


@pytest.mark.parametrize("direction", ["both", "forward", "reverse"])
def test_targets_follow_the_scale_and_j_follows_the_direction(direction: str) -> None:
    """The figure explains the constraint, so it must obey it."""
    trace = make_trace(experts=("math",), constraint={"scale": 0.5, "direction": direction})
    by_name = {curve.name: np.array(curve.y) for curve in kl_curves(trace, 1).data}
    f, g = 0.5 * float(trace.target_forward[1, 0]), 0.5 * float(trace.target_reverse[1, 0])
    assert by_name["κ·KL(R‖Q)"] == pytest.approx([f, f])
    assert by_name["κ·KL(Q‖R)"] == pytest.approx([g, g])
    terms = {"forward": (by_name["KL(P̃‖P)"] - f) ** 2, "reverse": (by_name["KL(P‖P̃)"] - g) ** 2}
    expected = sum(terms.values()) if direction == "both" else terms[direction]
    assert by_name["J (right axis)"] == pytest.approx(expected, abs=1e-7)


@pytest.mark.parametrize("experts", [1, 4, 8])
def test_curves_draw_a_panel_per_expert(experts: int) -> None:
    """Five lines each, one shared legend, and panels can be chosen by name."""
    trace = make_trace(experts=tuple(f"e{i}" for i in range(experts)))
    figure = kl_curves(trace, 0)
    assert len(figure.data) == 5 * experts
    assert sum(bool(curve.showlegend) for curve in figure.data) == 5
    assert len(kl_curves(trace, 0, experts=["e0"]).data) == 5


@pytest.mark.parametrize(
    ("draw", "complaint"),
    [
        (lambda: kl_curves(make_trace(level="light"), 0), "trace='full'"),
        (lambda: kl_curves(make_trace(), 3), "step 3 of a trace of 3 tokens"),
        (lambda: kl_curves(make_trace(), -1), "step -1"),
        (lambda: kl_curves(make_trace(), 0, experts=["maths"]), "known: math, trivia"),
        (lambda: kl_curves(make_trace(experts=()), 0), "no experts"),
        (lambda: weight_heatmap([make_trace([]), make_trace(experts=())]), "no trace here has"),
        (lambda: weight_distribution([]), "no trace here has"),
    ],
)
def test_what_cannot_be_drawn_says_what_to_do(draw: Any, complaint: str) -> None:
    """A blank figure would leave the user guessing."""
    with pytest.raises(TraceError, match=complaint.replace("'", ".")):
        draw()


def test_distribution_pools_traces_and_every_token_is_in_one_bar() -> None:
    """Shares add up to one for each expert, flipped tokens included; experts are matched by name."""
    traces = [make_trace([" a"] * 30, seed=1), make_trace([" b"] * 50, experts=("trivia", "truth"), seed=2)]
    figure = weight_distribution(traces)
    bars = traces_of("bar", figure)
    assert len(bars) == 2 * 3  # flipped and not, for math, trivia and truth
    for flipped, other in zip(bars[::2], bars[1::2], strict=True):
        assert sum(flipped.y) + sum(other.y) == pytest.approx(1)
    trivia = np.concatenate([traces[0].flipped_by == 1, traces[1].flipped_by == 0])
    assert sum(bars[2].y) == pytest.approx(trivia.mean())
    assert "of 80 tokens" in figure.layout.annotations[1].text


@pytest.mark.parametrize("weight", [0.0, 1e-9, 2.0, 37.5])
def test_distribution_holds_any_greatest_weight(weight: float) -> None:
    """Forced weights can be zero everywhere or far beyond the paper's 2."""
    alpha = np.array([[0.0, 0.0], [weight, 0.0], [weight / 3, weight]])
    for flipped, other in zip(*[iter(traces_of("bar", weight_distribution(make_trace(alpha=alpha))))] * 2, strict=True):
        assert sum(flipped.y) + sum(other.y) == pytest.approx(1)


def test_figures_are_static_and_of_fixed_size() -> None:
    """A FigureWidget adds 5 MB to a notebook; without a size a figure exports as the window happens to be."""
    import plotly.graph_objects as graph

    for figure in (
        weight_heatmap(make_trace()),
        kl_curves(make_trace(), 0),
        weight_distribution(make_trace()),
    ):
        assert type(figure) is graph.Figure
        assert figure.layout.width
        assert figure.layout.height
        assert not figure.layout.autosize


def test_missing_plotly_names_the_install_command(monkeypatch: pytest.MonkeyPatch) -> None:
    """The engine installs without plotly, so the figures must say what they lack."""
    monkeypatch.setitem(sys.modules, "plotly.graph_objects", None)
    with pytest.raises(MissingPackageError, match="pip install"):
        weight_heatmap(make_trace())


# -- in a browser --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with open_browser() as opened:
        yield opened


@pytest.mark.browser
def test_model_text_is_drawn_literally_in_labels_titles_and_hover(browser: Browser, tmp_path: Path) -> None:
    """The check that escaping fits what plotly really does, in the plotly that ships with the package."""
    trace = make_trace(HOSTILE, experts=("<i>math</i>", "b&amp;"), prompt="<b>Why</b> $a$ and $b$?")
    path = tmp_path / "heatmap.html"
    figure = weight_heatmap(trace)
    figure.write_html(path, include_plotlyjs=True)
    page, watch = open_page(browser, path)
    page.wait_for_selector(".xtick text")
    ticks = page.locator(".xtick text").all_text_contents()
    assert ticks == [text if len(text) <= 12 else text[:11] + "…" for text in HOSTILE]
    assert page.locator(".ytick text").all_text_contents() == list(trace.experts)
    assert page.locator(".annotation-text").first.text_content() == trace.prompt
    assert page.locator("svg img, svg a, svg tspan[style*=bold]").count() == 0
    box = page.locator(".nsewdrag").bounding_box()
    assert box is not None
    start, stop = figure.layout.xaxis.range
    cell = box["width"] / (stop - start)
    for i, text in enumerate(HOSTILE):
        page.mouse.move(box["x"] + (i + 0.5) * cell, box["y"] + box["height"] / 4)
        page.wait_for_function(
            "start => document.querySelector('.hoverlayer')?.textContent.includes(start)",
            arg=f"token {i + 1}:",
        )
        assert text in str(page.locator(".hoverlayer").text_content())
    assert watch.quiet, watch


@pytest.mark.browser
def test_title_of_the_curves_shows_the_token_as_written(browser: Browser, tmp_path: Path) -> None:
    """The title is model text too."""
    path = tmp_path / "curves.html"
    kl_curves(make_trace(HOSTILE), 0).write_html(path, include_plotlyjs=True)
    page, watch = open_page(browser, path)
    title = page.locator(".gtitle")
    title.wait_for()
    assert title.text_content() == f"Token 1 of {len(HOSTILE)}: “{HOSTILE[0]}”"
    assert watch.quiet, watch

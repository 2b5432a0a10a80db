"""Static charts: they are well-formed pictures that show what they were given, and nothing else."""

from __future__ import annotations

from xml.etree import ElementTree

import pytest

from fusionlab.errors import TraceError
from fusionlab_widgets.charts import HEIGHT, WIDTH, Line, Scale, line_chart

SVG = "{http://www.w3.org/2000/svg}"
LABELS = {"title": "weights", "x_label": "token", "y_label": "α"}


def parsed(*lines: Line, **options: object) -> ElementTree.Element:
    """The chart as a tree; raises where it is not well-formed."""
    return ElementTree.fromstring(line_chart(lines, **(LABELS | options)).svg)


def dots_of(chart: ElementTree.Element) -> list[ElementTree.Element]:
    """The points of lines that are not joined, apart from the one in the legend."""
    return [dot for dot in chart.findall(f"{SVG}circle") if dot.get("class") != "key"]


def test_every_dot_lies_where_its_value_is() -> None:
    """A chart that misplaces points is worse than none; y grows upwards, and a linear scale keeps proportions."""
    dots = dots_of(parsed(Line("grid", [0, 1, 2], [0.0, 2.0, 1.0], joined=False)))
    across, up = ([float(dot.get(axis, "nan")) for dot in dots] for axis in ("cx", "cy"))
    assert across[1] - across[0] == pytest.approx(across[2] - across[1], abs=0.2)
    assert up[0] > up[2] > up[1]
    assert up[0] - up[2] == pytest.approx(up[2] - up[1], abs=0.2)


def test_all_points_are_inside_the_picture() -> None:
    """What lies outside is cut off without a word."""
    chart = parsed(Line("a", [-5, 1e6], [-3.0, 1e4], joined=False), marks={"far": 2e6})
    for dot in dots_of(chart):
        assert 0 <= float(dot.get("cx", "nan")) <= WIDTH
        assert 0 <= float(dot.get("cy", "nan")) <= HEIGHT


def test_points_that_are_not_finite_are_left_out() -> None:
    """A mean over nothing is NaN; it may not move the axes."""
    assert len(dots_of(parsed(Line("a", [0, 1, 2], [1.0, float("nan"), float("inf")], joined=False)))) == 1


@pytest.mark.parametrize("text", ["<img src=x onerror=alert(1)>", "</text><script>", "a & b", "\x00\x1b[31m", "\u202e"])
def test_model_text_stays_text(text: str) -> None:
    """Tokens of a model are untrusted, and control characters are not even legal in SVG."""
    chart = parsed(Line(text, [0, 1], [0, 1]), title=text, tokens=[text, "b"], marks={text: 0.5})
    assert {element.tag.removeprefix(SVG) for element in chart.iter()} == {"svg", "rect", "path", "text"}
    shown = "".join(letter if letter.isprintable() else "␣" for letter in text)
    assert shown in [element.text for element in chart.iter(f"{SVG}text")]


def test_long_texts_are_labelled_now_and_then() -> None:
    """Two hundred labels on one axis are a grey bar."""
    chart = parsed(Line("a", range(200), range(200)), tokens=[f"t{place}" for place in range(200)])
    labels = [element.text for element in chart.iter(f"{SVG}text") if (element.text or "").startswith("t")]
    assert labels[:2] == ["t0", "t5"]
    assert len(labels) <= 41  # "token", the name of the axis, begins with a t too


def test_a_flat_line_has_an_axis() -> None:
    """All weights may be equal, and a range of zero cannot be divided by."""
    assert Scale.around([1.0, 1.0], 0, 100).ticks()
    parsed(Line("a", [3, 3], [0.0, 0.0]))


def test_nothing_to_draw_is_an_error() -> None:
    """An empty picture looks like a result."""
    with pytest.raises(TraceError, match="no points"):
        parsed(Line("a", [], []))
    with pytest.raises(TraceError, match="2 x and 1 y"):
        parsed(Line("a", [0, 1], [0]))


def test_a_notebook_gets_the_picture_and_a_terminal_the_title() -> None:
    """The saved notebook must show the chart without a kernel."""
    shown = line_chart([Line("a", [0, 1], [0, 1])], **LABELS)._repr_mimebundle_()
    assert set(shown) == {"text/plain", "image/svg+xml"}
    assert shown["text/plain"] == "Chart: weights"

"""Charts as SVG text: lines with intervals, a Pareto scatter, weights by token. No script, no network, no font of its own.

Colours are Okabe-Ito's and each series has a mark of its own besides. Every text is escaped. Coordinates are pixels.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from html import escape
from typing import Any

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#7A5C00")
MARKS = ("circle", "square", "diamond", "triangle", "cross", "circle", "square", "diamond")
INK, GREY, GRID = "#1d2129", "#5f6772", "#e3e7ec"
WIDTH, HEIGHT = 440, 300
LEFT, RIGHT, TOP, BOTTOM = 58, 16, 30, 46
SHORT_NAME = 22  # characters of a legend's entry that leave room for another one beside it


@dataclass(frozen=True)
class Point:
    """One value with its interval; note: shown when the pointer rests on it."""

    x: float
    y: float
    low: float | None = None
    high: float | None = None
    note: str = ""


@dataclass(frozen=True)
class Series:
    """Points of one kind."""

    name: str
    points: Sequence[Point]


@dataclass(frozen=True)
class Axis:
    """A linear axis from `low` to `high` on pixels `start` to `stop`. labels: position -> text, else round numbers."""

    low: float
    high: float
    start: float
    stop: float
    labels: dict[float, str] = field(default_factory=dict)

    def at(self, value: float) -> float:
        """The pixel of a value."""
        return self.start + (value - self.low) / (self.high - self.low or 1) * (self.stop - self.start)

    def ticks(self) -> dict[float, str]:
        """Position -> text."""
        return self.labels or {tick: f"{tick:g}" for tick in round_ticks(self.low, self.high)}


def round_ticks(low: float, high: float, count: int = 5) -> list[float]:
    """About `count` round numbers between two values.

    >>> round_ticks(0, 1)
    [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]
    """
    span = high - low
    if not span > 0 or not math.isfinite(span):
        return [low]
    rough = span / count
    scale = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * scale for factor in (1, 2, 5, 10) if factor * scale >= rough * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [round(place * step, 12) for place in range(first, math.floor(high / step + 1e-9) + 1)]


def padded(values: Sequence[float], share: float = 0.06) -> tuple[float, float]:
    """Lowest and highest with some room."""
    finite = [value for value in values if math.isfinite(value)] or [0.0]
    low, high = min(finite), max(finite)
    room = (high - low) * share or abs(high) * share or 0.5
    return low - room, high + room


def line_chart(title: str, series: Sequence[Series], *, x_title: str, y_title: str,
               x_labels: dict[float, str] | None = None) -> str:  # fmt: skip
    """Lines with their intervals over a number."""
    return xy_chart(title, series, x_title=x_title, y_title=y_title, x_labels=x_labels, joined=True)


def pareto_chart(title: str, series: Sequence[Series], *, x_title: str, y_title: str, lower: bool = False) -> str:
    """Points of quality over cost; what nothing beats in both is joined by steps."""
    points = [point for one in series for point in one.points if math.isfinite(point.x) and math.isfinite(point.y)]
    front = pareto_front(points, lower=lower)

    def draw(x: Axis, y: Axis) -> str:
        steps = []
        for place, point in enumerate(front):
            if place:
                steps.append(f"L {x.at(point.x):.1f} {y.at(front[place - 1].y):.1f}")
            steps.append(f"{'L' if place else 'M'} {x.at(point.x):.1f} {y.at(point.y):.1f}")
        return f'<path d="{" ".join(steps)}" fill="none" stroke="{GREY}" stroke-width="1.5" stroke-dasharray="5 4"/>'

    return xy_chart(title, series, x_title=x_title, y_title=y_title, joined=False, behind=draw)


def pareto_front(points: Sequence[Point], *, lower: bool = False) -> list[Point]:
    """The points that no other beats in cost (x) and quality (y) at once, by cost.

    >>> [point.x for point in pareto_front([Point(1, 1), Point(2, 0), Point(3, 2)])]
    [1, 3]
    """
    sign = -1 if lower else 1
    front: list[Point] = []
    for point in sorted(points, key=lambda point: (point.x, -sign * point.y)):
        if not front or sign * point.y > sign * front[-1].y:
            front.append(point)
    return front


def xy_chart(title: str, series: Sequence[Series], *, x_title: str, y_title: str, x_labels: dict[float, str] | None = None,
             joined: bool, behind: Callable[[Axis, Axis], str] | None = None) -> str:  # fmt: skip
    """Axes, series and legend."""
    points = [point for one in series for point in one.points]
    xs, ys = [point.x for point in points], [point.y for point in points]
    ys += [bound for point in points for bound in (point.low, point.high) if bound is not None]
    legend = len(series) > 1
    height = HEIGHT + (18 * math.ceil(len(series) / legend_columns(series)) + 4 if legend else 0)
    x = Axis(*padded(xs), LEFT, WIDTH - RIGHT, dict(x_labels or {}))
    y = Axis(*padded(ys), HEIGHT - BOTTOM, TOP)
    parts = [frame(title, x, y, x_title=x_title, y_title=y_title)]
    if behind is not None:
        parts.append(behind(x, y))
    for place, one in enumerate(series):
        parts.append(draw_series(one, x, y, place, joined=joined))
    if legend:
        parts.append(draw_legend([one.name for one in series], legend_columns(series)))
    return svg(WIDTH, height, title, "".join(parts))


def frame(title: str, x: Axis, y: Axis, *, x_title: str, y_title: str) -> str:
    """Title, grid, ticks and axis titles."""
    parts = [text(LEFT, 17, title, size=13, weight=600)]
    for value, label in y.ticks().items():
        parts.append(f'<line x1="{x.start}" x2="{x.stop}" y1="{y.at(value):.1f}" y2="{y.at(value):.1f}" stroke="{GRID}"/>')
        parts.append(text(x.start - 6, y.at(value) + 4, label, anchor="end", colour=GREY))
    shown = -math.inf
    for value, label in sorted(x.ticks().items()):
        place = x.at(value)
        parts.append(f'<line x1="{place:.1f}" x2="{place:.1f}" y1="{y.start}" y2="{y.start + 4}" stroke="{GREY}"/>')
        if place - shown > 7 * len(label) / 2 + 8:  # a label that would lie on its neighbour is left out
            parts.append(text(place, y.start + 17, label, anchor="middle", colour=GREY))
            shown = place + 7 * len(label) / 2
    parts.append(f'<line x1="{x.start}" x2="{x.stop}" y1="{y.start}" y2="{y.start}" stroke="{GREY}"/>')
    parts.append(text((x.start + x.stop) / 2, y.start + 36, x_title, anchor="middle"))
    middle = (y.start + y.stop) / 2
    parts.append(f'<g transform="rotate(-90 14 {middle})">{text(14, middle, y_title, anchor="middle")}</g>')
    return "".join(parts)


def draw_series(series: Series, x: Axis, y: Axis, place: int, *, joined: bool) -> str:
    """Line, intervals and marks."""
    colour = COLOURS[place % len(COLOURS)]
    points = [point for point in series.points if math.isfinite(point.x) and math.isfinite(point.y)]
    parts = []
    if joined and len(points) > 1:
        path = " ".join(f"{x.at(point.x):.1f},{y.at(point.y):.1f}" for point in points)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
    for point in points:
        if point.low is not None and point.high is not None:
            parts.append(f'<line x1="{x.at(point.x):.1f}" x2="{x.at(point.x):.1f}" y1="{y.at(point.low):.1f}" '
                         f'y2="{y.at(point.high):.1f}" stroke="{colour}" stroke-width="1.3" opacity="0.6"/>')  # fmt: skip
        note = f"<title>{safe(point.note)}</title>" if point.note else ""
        parts.append(f"<g>{mark(x.at(point.x), y.at(point.y), place, colour)}{note}</g>")
    return "".join(parts)


def mark(x: float, y: float, place: int, colour: str) -> str:
    """The mark of a series."""
    shape = MARKS[place % len(MARKS)]
    hollow = place >= 5
    fill = f'fill="{"#ffffff" if hollow else colour}" stroke="{colour}" stroke-width="1.6"'
    if shape == "circle":
        return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4.5" {fill}/>'
    if shape == "square":
        return f'<rect x="{x - 4:.1f}" y="{y - 4:.1f}" width="8" height="8" {fill}/>'
    if shape == "diamond":
        return f'<path d="M {x:.1f} {y - 5.6:.1f} l 5.6 5.6 l -5.6 5.6 l -5.6 -5.6 z" {fill}/>'
    if shape == "triangle":
        return f'<path d="M {x:.1f} {y - 5:.1f} l 5.2 9 l -10.4 0 z" {fill}/>'
    return f'<path d="M {x - 4:.1f} {y - 4:.1f} l 8 8 m 0 -8 l -8 8" fill="none" stroke="{colour}" stroke-width="2.4"/>'


def legend_columns(series: Sequence[Series]) -> int:
    """Names side by side where they are short."""
    return 2 if all(len(one.name) <= SHORT_NAME for one in series) else 1


def draw_legend(names: Sequence[str], columns: int) -> str:
    """Names below the chart."""
    parts, room = [], SHORT_NAME if columns == 2 else 2 * SHORT_NAME + 6
    for place, name in enumerate(names):
        x, y = LEFT + (place % columns) * (WIDTH - LEFT) / 2, HEIGHT + 8 + 18 * (place // columns)
        shown = name if len(name) <= room else name[: room - 1] + "…"
        parts.append(mark(x, y - 4, place, COLOURS[place % len(COLOURS)]))
        parts.append(f"<g>{text(x + 10, y, shown, size=12)}<title>{safe(name)}</title></g>")
    return "".join(parts)


# -- weights by token ----------------------------------------------------------------------------

CELL_WIDTH, CELL_HEIGHT, LABEL_CHARS = 26, 20, 9
LETTER, SLANT = 8, 36  # width of a letter at its widest on the average; what a slanted label needs to the right


def weight_strip(rows: Sequence[tuple[str, Any]], *, most_tokens: int = 40) -> str:
    """Weights of experts by token, one block per trace: darker is a greater weight, ▲ where the expert flipped the token.

    rows: (name, trace). All blocks share one scale.
    """
    greatest = max((float(trace.alpha.max()) for _, trace in rows if trace.alpha.size), default=0.0) or 1.0
    shown = max((min(len(trace), most_tokens) for _, trace in rows), default=0)
    experts = max((len(name) for _, trace in rows for name in trace.experts), default=4)
    left = 14 + LETTER * min(experts, 16)
    parts, top = [], 0.0
    for name, trace in rows:
        parts.append(text(0, top + 14, name, size=12, weight=600))
        parts.append(weight_block(trace, left, top + 22, greatest, most_tokens))
        top += 22 + 58 + CELL_HEIGHT * max(len(trace.experts), 1) + 14
    titles = max((LETTER * len(name) for name, _ in rows), default=0)
    width = max(left + CELL_WIDTH * max(shown, 1) + SLANT, titles + 8)
    return svg(width, top, "weights by token", "".join(parts))


def weight_block(trace: Any, left: float, top: float, greatest: float, most_tokens: int) -> str:
    """One trace's cells, its tokens written above them."""
    parts = []
    labels = trace.labels()[:most_tokens]
    for place, label in enumerate(labels):
        x = left + CELL_WIDTH * (place + 0.5) + 3
        word = label.strip() or ("⏎" if "\n" in label else "␣")
        word = word if len(word) <= LABEL_CHARS else word[: LABEL_CHARS - 1] + "…"
        parts.append(f'<g transform="rotate(-60 {x:.1f} {top + 52:.1f})">{text(x, top + 52, word, size=11)}</g>')
    for row, expert in enumerate(trace.experts):
        y = top + 58 + CELL_HEIGHT * row
        parts.append(text(left - 6, y + 14, expert if len(expert) <= 16 else expert[:15] + "…", anchor="end", size=12))
        for place, label in enumerate(labels):
            weight = float(trace.alpha[place, row])
            flipped = bool(trace.flipped[place]) and int(trace.flipped_by[place]) == row
            note = f"token {place + 1}: {label!r}, weight {weight:.2f} of {expert}" + (", flipped by it" if flipped else "")
            x = left + CELL_WIDTH * place
            parts.append(f'<g><rect x="{x}" y="{y}" width="{CELL_WIDTH - 1}" height="{CELL_HEIGHT - 1}" '
                         f'fill="{shade(weight / greatest)}"/><title>{safe(note)}</title>')  # fmt: skip
            if flipped:
                colour = "#ffffff" if weight / greatest > 0.45 else INK
                parts.append(text(x + CELL_WIDTH / 2, y + 14, "▲", anchor="middle", size=10, colour=colour))
            parts.append("</g>")
    return "".join(parts)


def shade(share: float) -> str:
    """From near white to dark blue.

    >>> shade(0.0), shade(1.0)
    ('#f0f3f6', '#06304f')
    """
    light, dark = (240, 243, 246), (6, 48, 79)
    share = min(max(share, 0.0), 1.0)
    return "#" + "".join(f"{round(a + (b - a) * share):02x}" for a, b in zip(light, dark, strict=True))


# -- SVG -----------------------------------------------------------------------------------------


def text(x: float, y: float, words: str, *, anchor: str = "start", size: int = 12, weight: int = 400,
         colour: str = INK) -> str:  # fmt: skip
    """A line of text, escaped."""
    return (f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-size="{size}" font-weight="{weight}" '
            f'fill="{colour}">{safe(words)}</text>')  # fmt: skip


def safe(words: str) -> str:
    """Text that stands in markup as itself."""
    return escape(printable(words))


def printable(words: str) -> str:
    """Text without control characters, which XML does not allow, and without marks that turn its direction."""
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in words)


def svg(width: float, height: float, title: str, body: str) -> str:
    """A whole picture."""
    return (f'<svg xmlns="http://www.w3.org/2000/svg" role="img" aria-label="{safe(title)}" '
            f'width="{width:.0f}" height="{height:.0f}" viewBox="0 0 {width:.0f} {height:.0f}">{body}</svg>')  # fmt: skip

"""Small static charts of lines as SVG, for notebooks that are read without a kernel.

A chart is a picture that the saved notebook holds itself: no script, nothing fetched, some kilobytes. Texts are escaped,
colours are Okabe-Ito's, and each line has a dash of its own besides. Coordinates are pixels.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

from fusionlab.errors import TraceError

WIDTH, HEIGHT = 760, 324
LEFT, RIGHT, TOP, BOTTOM = 64, 20, 70, 78
INK, GREY, RULE = "#1d2129", "#5f6772", "#e3e7ec"
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#7A5C00", "#56B4E9")
DASHES = ("", "7 3", "2 3", "9 3 2 3", "4 2", "1 2")
MOST_LABELS, LABEL_CHARS, TITLE_CHARS = 40, 10, 64


@dataclass(frozen=True)
class Line:
    """Points (x, y) of one kind, joined by a line or shown as dots alone. Points that are not finite are left out."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    joined: bool = True

    def points(self) -> list[tuple[float, float]]:
        """The finite points, in their order."""
        pairs = [(float(x), float(y)) for x, y in zip(self.x, self.y, strict=True)]
        return [(x, y) for x, y in pairs if math.isfinite(x) and math.isfinite(y)]


@dataclass(frozen=True)
class Chart:
    """A drawn chart; notebooks show the picture, other places its title."""

    title: str
    svg: str

    def _repr_mimebundle_(self, include: object = None, exclude: object = None) -> dict[str, str]:
        return {"text/plain": f"Chart: {self.title}", "image/svg+xml": self.svg}


def line_chart(
    lines: Sequence[Line], *, title: str, x_label: str, y_label: str,
    tokens: Sequence[str] = (), marks: Mapping[str, float] | None = None,
) -> Chart:  # fmt: skip
    """A chart of one or more lines.

    >>> line_chart([Line("J", [0, 1, 2], [4, 1, 3])], title="J", x_label="weight", y_label="nats²").title
    'J'

    tokens: texts below x = 0, 1, 2, ..., in place of numbers. marks: name -> x of a vertical line.
    Raises `TraceError` where there is no point to draw, or a line's x and y are not as many.
    """
    for line in lines:
        if len(line.x) != len(line.y):
            raise TraceError(f"line {line.name!r} has {len(line.x)} x and {len(line.y)} y", remedy="pass as many of both")
    points = [point for line in lines for point in line.points()]
    if not points:
        raise TraceError(f"the chart {title!r} has no points", remedy="pass at least one line with a finite point")
    marked = dict(marks or {})
    x = Scale.around([x for x, _ in points] + list(marked.values()), LEFT, WIDTH - RIGHT)
    y = Scale.around([0.0, *(y for _, y in points)], HEIGHT - BOTTOM, TOP)
    body = [
        _text(LEFT, 20, _shortened(title, TITLE_CHARS), size=15, weight=600),
        _axes(x, y, tokens, x_label=x_label, y_label=y_label),
        *(_mark(x.at(place), name) for name, place in marked.items()),
        *(_line(line, x, y, place) for place, line in enumerate(lines)),
        _legend(lines),
    ]
    spoken = escape(_printable(title))
    attributes = f'viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}" role="img" aria-label="{spoken}"'
    style = "font-family=\"system-ui, 'Segoe UI', Roboto, 'DejaVu Sans', sans-serif\""
    ground = f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>'  # a dark theme would swallow the ink
    return Chart(title, f'<svg xmlns="http://www.w3.org/2000/svg" {attributes} {style}>{ground}{"".join(body)}</svg>')


@dataclass(frozen=True)
class Scale:
    """Values from `low` to `high` on the pixels from `start` to `stop`."""

    low: float
    high: float
    start: float
    stop: float

    @classmethod
    def around(cls, values: Sequence[float], start: float, stop: float) -> Scale:
        """A scale that holds all values."""
        low, high = min(values), max(values)
        return cls(low, high if high > low else low + 1, start, stop)

    def at(self, value: float) -> float:
        """The pixel of a value."""
        return round(self.start + (value - self.low) / (self.high - self.low) * (self.stop - self.start), 1)

    def ticks(self) -> list[float]:
        """About five round values.

        >>> Scale(0, 2, 0, 100).ticks()
        [0.0, 0.5, 1.0, 1.5, 2.0]
        """
        rough = (self.high - self.low) / 5
        power = 10.0 ** math.floor(math.log10(rough))
        step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * 0.999)
        first, last = math.ceil(self.low / step - 1e-9), math.floor(self.high / step + 1e-9)
        return [round(place * step, 12) for place in range(first, last + 1)]


def _axes(x: Scale, y: Scale, tokens: Sequence[str], *, x_label: str, y_label: str) -> str:
    parts = []
    for value in y.ticks():
        parts.append(f'<path d="M{LEFT} {y.at(value)}H{WIDTH - RIGHT}" stroke="{RULE}"/>')
        parts.append(_text(LEFT - 8, y.at(value) + 4, f"{value:g}", anchor="end", colour=GREY))
    foot = HEIGHT - BOTTOM
    if tokens:
        every = -(-len(tokens) // MOST_LABELS)
        for place in range(0, len(tokens), every):
            short = _shortened(tokens[place].strip() or "␣", LABEL_CHARS)
            turn = f' transform="rotate(-45 {x.at(place)} {foot + 14})"'
            parts.append(_text(x.at(place), foot + 14, short, anchor="end", size=10, colour=GREY, more=turn))
    else:
        for value in x.ticks():
            parts.append(f'<path d="M{x.at(value)} {foot}v5" stroke="{GREY}"/>')
            parts.append(_text(x.at(value), foot + 18, f"{value:g}", anchor="middle", colour=GREY))
    parts.append(f'<path d="M{LEFT} {foot}H{WIDTH - RIGHT}" stroke="{GREY}"/>')
    parts.append(_text(WIDTH - RIGHT, HEIGHT - 8, x_label, anchor="end"))
    parts.append(_text(8, 56, y_label))
    return "".join(parts)


def _line(line: Line, x: Scale, y: Scale, place: int) -> str:
    colour, dash = COLOURS[place % len(COLOURS)], DASHES[place % len(DASHES)]
    spots = [(x.at(across), y.at(up)) for across, up in line.points()]
    if line.joined:
        path = "M" + "L".join(f"{across} {up}" for across, up in spots)
        return f'<path d="{path}" fill="none" stroke="{colour}" stroke-width="2" stroke-dasharray="{dash}"/>'
    return "".join(f'<circle cx="{across}" cy="{up}" r="3.5" fill="{colour}"/>' for across, up in spots)


def _mark(place: float, name: str) -> str:
    rule = f'<path d="M{place} {TOP}V{HEIGHT - BOTTOM}" stroke="{INK}" stroke-width="1.2"/>'
    left = place > WIDTH - 140
    return rule + _text(place + (-5 if left else 5), TOP + 10, name, size=11, anchor="end" if left else "start")


def _legend(lines: Sequence[Line]) -> str:
    parts, place = [], float(LEFT)
    for index, line in enumerate(lines):
        colour, dash = COLOURS[index % len(COLOURS)], DASHES[index % len(DASHES)]
        if line.joined:
            parts.append(f'<path d="M{place:g} 37h22" stroke="{colour}" stroke-width="2.5" stroke-dasharray="{dash}"/>')
        else:
            parts.append(f'<circle class="key" cx="{place + 11:g}" cy="37" r="3.5" fill="{colour}"/>')
        parts.append(_text(place + 28, 41, line.name))
        place += 52 + 7 * len(line.name)
    return "".join(parts)


def _text(
    x: float, y: float, words: str, *, anchor: str = "start", size: int = 12, weight: int = 400, colour: str = INK,
    more: str = "",
) -> str:  # fmt: skip
    style = f'text-anchor="{anchor}" font-size="{size}" font-weight="{weight}" fill="{colour}"'
    return f'<text x="{x:g}" y="{y:g}" {style}{more}>{escape(_printable(words), quote=False)}</text>'


def _shortened(text: str, chars: int) -> str:
    return text if len(text) <= chars else text[: chars - 1] + "…"


def _printable(words: str) -> str:
    """Control characters, most of which XML forbids, as ␣."""
    return "".join(letter if letter.isprintable() else "␣" for letter in words)

"""A table of the study: figures to compute with, and the same as text to read."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Table:
    """data: one fact per row, numbers unrounded (the CSV). shown: the same, laid out and rounded, as text.

    key: its file name. note: one or two sentences: what a cell is, and by which formula.
    """

    key: str
    title: str
    note: str
    data: pd.DataFrame
    shown: pd.DataFrame

    def to_markdown(self) -> str:
        """Title, note and the table in Markdown; a sentence where nothing was measured."""
        return f"### {self.title}\n\n{self.note}\n\n{frame_to_markdown(self.shown)}"

    def _repr_html_(self) -> str:
        return f"<h4>{html.escape(self.title)}</h4><p>{html.escape(self.note)}</p>{frame_to_html(self.shown)}"


NOT_MEASURED = "Not measured yet."


def make_table(key: str, title: str, note: str, data: Sequence[dict[str, Any]], shown: Sequence[dict[str, str]]) -> Table:
    """A table from rows; columns in order of appearance, what a row lacks is empty."""
    import pandas

    return Table(key, title, note, pandas.DataFrame(list(data)), pandas.DataFrame(list(shown)).fillna(""))


def frame_to_markdown(frame: pd.DataFrame) -> str:
    """Text columns to the left, figures to the right."""
    if frame.empty:
        return NOT_MEASURED + "\n"
    head = [str(column) for column in frame.columns]
    marks = ["---:" if right else "---" for right in numeric_columns(frame)]
    rows = [[str(value).replace("|", "\\|") for value in row] for row in frame.to_numpy()]
    return "".join("| " + " | ".join(cells) + " |\n" for cells in [head, marks, *rows])


def frame_to_html(frame: pd.DataFrame) -> str:
    """The same as an HTML table; every text escaped."""
    if frame.empty:
        return f"<p>{NOT_MEASURED}</p>"
    kinds = ["figure" if right else "text" for right in numeric_columns(frame)]
    head = "".join(f'<th scope="col" class="{kind}">{html.escape(str(column))}</th>'
                   for kind, column in zip(kinds, frame.columns, strict=True))  # fmt: skip
    rows = "".join(
        "<tr>" + "".join(f'<td class="{kind}">{html.escape(str(value))}</td>'
                         for kind, value in zip(kinds, row, strict=True)) + "</tr>\n"
        for row in frame.to_numpy()
    )  # fmt: skip
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead>\n<tbody>{rows}</tbody></table></div>'


def numeric_columns(frame: pd.DataFrame) -> list[bool]:
    """Which columns hold figures: not the first, and every filled cell begins like a number."""
    return [
        place > 0 and all(not str(value) or str(value).lstrip("+−-")[:1].isdigit() for value in frame[column])
        for place, column in enumerate(frame.columns)
    ]


def number(value: float | None, form: str = ".1f") -> str:
    """A figure as text; empty for None and NaN."""
    return "" if value is None or math.isnan(value) else format(value, form)


def text(value: object | None) -> str:
    """str(value), empty for None."""
    return "" if value is None else str(value)

"""The study as files: tables in Markdown and CSV, figures and one page in self-contained HTML, study.md."""

from __future__ import annotations

import html
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fusionlab.atomic_file import write_atomically
from fusionlab.errors import OutputError
from fusionlab.study import figures
from fusionlab.study.claims import AIMS, CLAIMS, Measured, claims_table
from fusionlab.study.costs import PRICE, answer_seconds, bounds_table, break_even_table, ledger_table, on_gpu
from fusionlab.study.interference import likeness_table, size_table, subsets_table
from fusionlab.study.measure import Answers
from fusionlab.study.page import REPORT_STYLE, anchor, html_page
from fusionlab.study.robustness import robustness_table
from fusionlab.study.table import Table, frame_to_html, frame_to_markdown
from fusionlab.study.tables import bench_table, several_experts_table, single_expert_table, storage_table, time_table
from fusionlab.study.trajectories import trajectory_table
from fusionlab.study.weights import weight_table

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Inputs:
    """All that was measured.

    answers: see `measure`. weights, likeness: the frames of `trajectories` and `interference`, None where not made. bench:
    rows of `fusionlab bench` or None. training: data/training.json. about: facts at the head (date, device, command).
    """

    answers: Answers
    weights: pd.DataFrame | None = None
    likeness: pd.DataFrame | None = None
    bench: pd.DataFrame | None = None
    training: Mapping[str, Any] = field(default_factory=dict)
    about: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Study:
    """Tables and figures by key, in the order of the page, and the facts at its head."""

    tables: dict[str, Table]
    figures: dict[str, Any]
    about: dict[str, Any]


SECTIONS: tuple[tuple[str, tuple[str, ...], tuple[str, ...]], ...] = (  # heading, tables, figures
    ("Claims and aims", ("claims", "aims"), ()),
    ("One expert", ("table1",), ("table1",)),
    ("All experts loaded", ("table2",), ("table2",)),
    ("Time", ("table3", "bench"), ()),
    ("Weights", ("weights", "trajectories"), ("weights", "trajectories")),
    ("Robustness", ("robustness",), ("robustness",)),
    ("Interference and redundancy", ("likeness", "sizes", "subsets"), ("likeness",)),
    ("Storage and cost", ("storage", "costs", "bounds", "break-even"), ("costs",)),
)
CONFIG = {"displaylogo": False, "modeBarButtonsToRemove": ["select2d", "lasso2d", "autoScale2d"]}
ANALYSES = (
    "table1", "table2", "table3", "bench", "weights", "trajectories", "robustness", "likeness", "sizes",
    "subsets", "storage", "costs", "bounds", "break-even", "claims", "aims",
)  # fmt: skip


def analyse(inputs: Inputs, *, price: float = PRICE, progress: Callable[[str], object] = lambda name: None) -> Study:
    """Make every table, in the order of `ANALYSES`. price: of a GPU hour. progress: called with each table's key."""
    answers = inputs.answers
    measured = Measured(answers, inputs.weights)
    ledger = ledger_table(inputs.training, answers.recorded, answers.seen, price=price)
    makers: dict[str, Callable[[], Table]] = {
        "table1": lambda: single_expert_table(answers),
        "storage": lambda: storage_table(inputs.training, answers.seen),
        "table2": lambda: several_experts_table(answers),
        "table3": lambda: time_table(answers),
        "bench": lambda: bench_table(inputs.bench),
        "weights": lambda: weight_table(answers),
        "trajectories": lambda: trajectory_table(inputs.weights),
        "robustness": lambda: robustness_table(answers),
        "likeness": lambda: likeness_table(inputs.likeness),
        "sizes": lambda: size_table(inputs.likeness),
        "subsets": lambda: subsets_table(answers),
        "costs": lambda: ledger,
        "bounds": lambda: bounds_table(answers.recorded, answers.seen),
        "break-even": lambda: break_even_table(answers, ledger, price=price),
        "claims": lambda: claims_table(measured, CLAIMS, key="claims"),
        "aims": lambda: claims_table(measured, AIMS, key="aims"),
    }
    tables = {}
    for key in ANALYSES:
        progress(key)
        tables[key] = makers[key]()
    cells = len(answers.cells())
    about = {**inputs.about, "cells": cells, "answers": len(answers.rows), "experts": answers.team.replace("+", ", ")}
    drawn = draw(tables, inputs, price=price)
    return Study(tables, drawn, about)


def draw(tables: Mapping[str, Table], inputs: Inputs, *, price: float = PRICE) -> dict[str, Any]:
    """Key -> plotly figure of everything that has something to draw. Raises MissingPackageError."""
    made = {
        "table1": figures.score_figure(tables["table1"]),
        "table2": figures.score_figure(tables["table2"]),
        "weights": figures.weight_figure(tables["weights"]),
        "robustness": figures.robustness_figure(tables["robustness"]),
        "trajectories": figures.trajectory_figure(inputs.weights),
        "likeness": figures.likeness_figure(tables["likeness"]),
        "costs": figures.cost_figure(tables["costs"], answer_seconds(inputs.answers), price=price)
        if on_gpu(inputs.answers)
        else None,
    }
    return {key: figure for key, figure in made.items() if figure is not None}


# -- files ---------------------------------------------------------------------------------------


def write_study(study: Study, folder: Path) -> list[Path]:
    """Write tables/*.md and *.csv, figures/*.html, study.md and study.html; returns the two pages. Raises OutputError."""
    texts: dict[str, Callable[[], str]] = {"study.md": lambda: to_markdown(study), "study.html": lambda: to_html(study)}
    for key, table in study.tables.items():
        texts[f"tables/{key}.md"] = table.to_markdown
        texts[f"tables/{key}.csv"] = lambda table=table: table.data.to_csv(index=False)  # type: ignore[misc]
    for key, figure in study.figures.items():
        texts[f"figures/{key}.html"] = lambda figure=figure: figure.to_html(include_plotlyjs=True, config=CONFIG)  # type: ignore[misc]
    for name, text in texts.items():
        write_atomically(folder / name, text())
    return [folder / "study.html", folder / "study.md"]


LEAD = (
    "What dynamic logits fusion (arXiv 2406.15480) does on this project's team and tasks, measured. Scores are on the test "
    "splits, greedy decoding, multiple choice by the most probable option; a table that was not measured says so."
)


def facts_of(about: Mapping[str, Any]) -> list[str]:
    """The facts at the head of a page, one line each."""
    return [f"{name.replace('_', ' ')}: {json.dumps(value) if isinstance(value, dict | list) else value}"
            for name, value in about.items()]  # fmt: skip


MARKS = "<!-- study: written by fusionlab.experiments.study --readme -->", "<!-- end of study -->"


def main_table(study: Study, *, page: str | None = None) -> str:
    """Tables 1 and 2 as one, without differences, in Markdown: what a README shows. page: where all tables stand."""
    import pandas

    both = pandas.concat([study.tables["table1"].shown, study.tables["table2"].shown]).fillna("")
    if both.empty:
        return frame_to_markdown(both)
    kept = [name for name in both.columns if not name.startswith("Δ") and name not in ("average", "of full, %")]
    order = list(dict.fromkeys(both[""]))  # of Table 1; where both have a line, Table 2's holds more
    both = both.drop_duplicates("", keep="last").set_index("").loc[order].reset_index()[[*kept, "average", "of full, %"]]
    return frame_to_markdown(both) + "\n" + summary_of(study) + (f" Every table: [{page}]({page})." if page else "") + "\n"


def put_between_marks(path: Path, text: str) -> None:
    """Replace what stands between the two marks of a file. Raises OutputError where they are not there once each."""
    content = path.read_text(encoding="utf-8") if path.is_file() else ""
    if any(content.count(mark) != 1 for mark in MARKS):
        raise OutputError(f"{path} does not hold the marks once each", remedy=f"write {MARKS[0]} and {MARKS[1]} there")
    head, rest = content.split(MARKS[0])
    write_atomically(path, f"{head}{MARKS[0]}\n\n{text}\n{MARKS[1]}{rest.split(MARKS[1])[1]}")


def summary_of(study: Study) -> str:
    """How many claims hold, in a sentence."""
    verdicts = study.tables["claims"].data["here"].tolist()
    counts = [f"{verdicts.count(word)} {word}" for word in dict.fromkeys(verdicts)]
    return f"Of the paper's {len(verdicts)} claims: {', '.join(counts)}."


def to_markdown(study: Study) -> str:
    """study.md: every table in the order of the sections."""
    parts = ["# The study", LEAD, "\n".join(f"- {fact}" for fact in facts_of(study.about)), summary_of(study)]
    for heading, keys, _ in SECTIONS:
        parts.append(f"## {heading}")
        parts += [study.tables[key].to_markdown().strip() for key in keys]
    return "\n\n".join(parts) + "\n"


def to_html(study: Study) -> str:
    """study.html: tables and figures on one page that needs no network; plotly's script stands in it once."""
    script: bool | str = True
    body = []
    for heading, keys, drawn in SECTIONS:
        body.append(f'<h2 id="{anchor(heading)}">{html.escape(heading)}</h2>')
        for key in keys:
            table = study.tables[key]
            kind = ' class="verdicts"' if key in ("claims", "aims") else ""
            body.append(f"<section{kind}><h3>{html.escape(table.title)}</h3>\n<p>{html.escape(table.note)}</p>\n"
                        f"{frame_to_html(table.shown)}</section>")  # fmt: skip
        for key in drawn:
            if key in study.figures:
                drawing = study.figures[key].to_html(include_plotlyjs=script, full_html=False, config=CONFIG)
                body.append(f"<figure>{drawing}</figure>")
                script = False
    menu = " · ".join(f'<a href="#{anchor(heading)}">{html.escape(heading)}</a>' for heading, _, _ in SECTIONS)
    facts = "".join(f"<li>{html.escape(fact)}</li>" for fact in facts_of(study.about))
    head = (
        f'<h1>The study</h1>\n<p class="lead">{html.escape(LEAD)}</p>\n<ul class="facts">{facts}</ul>\n'
        f"<p><strong>{html.escape(summary_of(study))}</strong></p>\n<nav>{menu}</nav>\n"
    )
    return html_page("The study", head + "\n".join(body), style=STYLE)


def verdict_rows(tables: Sequence[Table]) -> list[str]:
    """Every verdict as "claim: word", for a terminal."""
    return [f"{row['here']:<20} {row['claim']}" for table in tables for row in table.data.to_dict("records")]


STYLE = (
    REPORT_STYLE
    + """
main { max-width: 1320px; margin: 0 auto; padding: 28px 24px 80px; }
h1 { font-size: 28px; margin: 0 0 8px; } h2 { font-size: 21px; margin: 44px 0 4px; border-bottom: 1px solid #d8dde3; }
h3 { font-size: 16px; margin: 22px 0 2px; } section p { margin: 2px 0 8px; color: #4c535d; max-width: 80ch; }
.lead { max-width: 80ch; } .facts { color: #4c535d; font-size: 13px; padding-left: 18px; }
nav { font-size: 14px; }
th { text-align: left; font-weight: 600; border-bottom: 2px solid #8a919c; vertical-align: bottom; }
th, td { padding: 4px 10px 4px 0; vertical-align: top; } td { border-bottom: 1px solid #e6e9ed; }
table:has(th:first-child:empty) td:first-child { min-width: 30ch; }
.figure { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
.verdicts td { min-width: 12ch; } .verdicts td:first-child { min-width: 28ch; white-space: normal; }
.verdicts td:nth-child(3) { font-weight: 600; }
figure { margin: 18px 0; overflow-x: auto; }
"""
)

"""`fusionlab report`: report.html, one file without script or network, and report.csv beside it.

`report_data` computes what is said here, `charts` draws it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape
from typing import Any

from fusionlab.experiments import charts
from fusionlab.experiments.execution import OK
from fusionlab.experiments.parameters import show
from fusionlab.experiments.report_data import (
    FEW,
    TASK,
    Failed,
    Group,
    Interval,
    ReportData,
    ReportOptions,
    gather_report,
    is_missing,
    plain,
)
from fusionlab.experiments.report_weights import weights_section
from fusionlab.experiments.store import Store
from fusionlab.study.page import NO_REQUESTS, REPORT_STYLE, anchor, html_page

PAGE, CSV = "report.html", "report.csv"
FIRST_CURVES = ("kl_scale", "budget")  # drawn before the other numbers
MOST_LINES, MOST_ROWS = 6, 2_000
NO_NUMBER = "none"  # where a numeric parameter has no value


def write_report(store: Store, options: ReportOptions | None = None) -> list[str]:
    """Write both files into the store; returns where they are.

    >>> write_report(open_store("runs/kl"))                                      # doctest: +SKIP
    ['runs/kl/report.html', 'runs/kl/report.csv']

    Raises MissingFileError where there is no run, UnknownNameError, CorruptFileError, OutputError.
    """
    options = options or ReportOptions()
    data = gather_report(store, options)
    store.write_bytes(CSV, data.frame.to_csv(index=False).encode())
    store.write_bytes(PAGE, make_page(store, data, options).encode())
    return [f"{store}/{PAGE}", f"{store}/{CSV}"]


def make_page(store: Store, data: ReportData, options: ReportOptions) -> str:
    """The page as text."""
    sections = {
        "Comparison": comparison_section(data),
        "Response curves": curves_section(data),
        "Quality and time": pareto_section(data),
        "Weights by token": weights_section(store, data, options),
        "Failures": failures_section(data.failures),
        "All runs": runs_section(data),
    }
    body = "\n".join(f'<section><h2 id="{anchor(name)}">{name}</h2>\n{content}</section>'
                     for name, content in sections.items() if content)  # fmt: skip
    menu = " · ".join(f'<a href="#{anchor(name)}">{name}</a>' for name, content in sections.items() if content)
    names = sorted(set(data.frame["notebook"]))
    title = ", ".join(names)
    head = f'<h1>{escape(title)}</h1>\n<ul class="facts">{facts(store, data)}</ul>\n<nav>{menu}</nav>\n'
    return html_page(title, head + body, style=STYLE, head=NO_REQUESTS)


def facts(store: Store, data: ReportData) -> str:
    """What ran, how much, where, on which code."""
    frame = data.frame
    counts = ", ".join(f"{count} {status}" for status, count in frame["status"].value_counts().items())
    lines = [f"{len(frame)} runs: {counts}", f"{frame['seconds'].sum() / 3600:.2f} hours in notebooks",
             f"code {', '.join(sorted(set(frame['code'])))}"]  # fmt: skip
    if data.outdated:
        lines.append(f"{data.outdated} runs of earlier versions of the code are left out; `fusionlab results` has them")
    loads = int(frame["team_loads"].fillna(0).sum())
    if loads:
        lines.append(f"teams loaded {loads} times ({frame['team_load_seconds'].sum():.0f} s)")
    for manifest in list(data.manifests)[-1:]:
        git, machine = manifest.get("git") or {}, manifest.get("hardware") or {}
        commit = f", git {git['commit'][:10]}{' and changes' if git.get('changed') else ''}" if git else ""
        lines.append(f"last started {manifest.get('started', '')} on {machine.get('host', '')}: "
                     f"{machine.get('processor', '')}, {machine.get('cores', '')} cores"
                     f"{', ' + ', '.join(machine['gpus']) if machine.get('gpus') else ''}{commit}")  # fmt: skip
        lines.append(f"made by {manifest.get('command', '')}")
    return "".join(f"<li>{escape(line)}</li>" for line in lines)


# -- comparison ----------------------------------------------------------------------------------


def comparison_section(data: ReportData) -> str:
    """A line per group: value, interval, paired difference to the baseline."""
    if data.metric is None:
        return "<p>No run recorded a number; call <code>record(score=...)</code> in the notebook.</p>"
    unit = ", %" if data.percent else ""
    against = ", ".join(f"{name} = {show(value)}" for name, value in data.baseline.items())
    paired = [f"Δ to {against}", "95 %", "pairs"] if against else []
    head = [*data.varied, "runs", f"{data.metric}{unit}", "95 %", *paired, data.cost]
    rows = []
    for group in data.groups:
        cells = [*(show(group.values[name]) for name in data.varied), str(len(group.keys)), figure(group.value, data),
                 interval(group.interval, data, group.observations)]  # fmt: skip
        if against:
            cells += ["baseline", "", ""] if group.is_baseline else [
                signed(group.difference, data), interval(group.difference_interval, data, group.pairs, signs=True),
                str(group.pairs or "")]  # fmt: skip
        rows.append(([*cells, number(group.cost)], verdict_class(group, data)))
    note = (
        f"{escape(data.metric)}: {'smaller' if data.lower else 'greater'} is better. Intervals are 95 % bootstrap "
        f"intervals of the mean; those marked (t) are of fewer than {FEW} values and Student's t intervals. Differences "
        "are paired, by item where the runs recorded items, else by repeat. A line is marked where the interval of its "
        "difference does not hold 0; of many comparisons one in twenty is so by chance."
    )
    lacking = sum(group.difference is None and not group.is_baseline for group in data.groups) if against else 0
    if lacking:
        note += (
            f" {lacking} line{'s have' if lacking > 1 else ' has'} no difference: no run is the same but for "
            f"{escape(against)}, or none that shares an item or a repeat with it. --baseline may name further parameters."
        )
    return f"<p>{note}</p>{table(head, rows, texts=len(data.varied))}"


def verdict_class(group: Group, data: ReportData) -> str:
    """better, worse, or nothing."""
    if group.difference_interval is None:
        return ""
    low, high = group.difference_interval
    if low > 0 or high < 0:
        return "better" if (low > 0) != data.lower else "worse"
    return ""


def figure(value: float, data: ReportData) -> str:
    """A value of the metric."""
    return f"{100 * value:.1f}" if data.percent else number(value)


def signed(value: float | None, data: ReportData) -> str:
    """A difference of the metric."""
    if value is None:
        return ""
    return f"{100 * value:+.1f}" if data.percent else f"{value:+.4g}"


def interval(bounds: Interval | None, data: ReportData, observations: int, *, signs: bool = False) -> str:
    """Two bounds, and which interval they are."""
    write = signed if signs else figure
    kind = " (t)" if observations < FEW else ""
    return "" if bounds is None else f"{write(bounds[0], data)} to {write(bounds[1], data)}{kind}"


def number(value: float | None) -> str:
    """Four digits; empty for a missing value."""
    return "" if value is None or math.isnan(value) else f"{value:.4g}"


def table(head: Sequence[str], rows: Sequence[tuple[Sequence[str], str]], *, texts: int = 1) -> str:
    """An HTML table; the first `texts` columns are text, the others figures."""
    top = "".join(f"<th{'' if place < texts else ' class=n'}>{escape(name)}</th>" for place, name in enumerate(head))
    body = "".join(f"<tr class='{kind}'>" + "".join(
        f"<td{'' if place < texts else ' class=n'}>{escape(cell)}</td>" for place, cell in enumerate(cells)) + "</tr>\n"
        for cells, kind in rows)  # fmt: skip
    return f'<div class="scroll"><table><thead><tr>{top}</tr></thead><tbody>\n{body}</tbody></table></div>'


# -- charts --------------------------------------------------------------------------------------


def curves_section(data: ReportData) -> str:
    """The metric over every number that varies, a line per combination of the rest, a chart per task."""
    numbers = [name for name in data.varied if len({value for value in values_of(data, name) if is_numeric(value)}) > 1]
    numbers.sort(key=lambda name: FIRST_CURVES.index(name) if name in FIRST_CURVES else len(FIRST_CURVES))
    drawn = [curve(data, name, task) for name in numbers for task in tasks_of(data)]
    return f'<div class="charts">{"".join(drawn)}</div>' if drawn else ""


def values_of(data: ReportData, name: str) -> list[Any]:
    """A parameter's values over the groups."""
    return [group.values[name] for group in data.groups]


def is_numeric(value: Any) -> bool:
    """A finite number, booleans excluded."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def tasks_of(data: ReportData) -> list[Any]:
    """The tasks, or [None] where the sweep has none to vary."""
    return list(dict.fromkeys(values_of(data, TASK))) if TASK in data.varied else [None]


def curve(data: ReportData, name: str, task: Any) -> str:
    """One chart: a parameter without a value ("no budget") stands to the right of the numbers."""
    groups = [group for group in data.groups if task is None or group.values[TASK] == task]
    known = sorted({float(group.values[name]) for group in groups if is_numeric(group.values[name])})
    if len(known) < 2:
        return ""
    apart = known[-1] + (known[-1] - known[0]) / max(len(known) - 1, 1)
    others = [other for other in data.varied if other not in (name, TASK)]
    factor = 100 if data.percent else 1
    lines: dict[str, list[charts.Point]] = {}
    for group in groups:
        value = group.values[name]
        x = float(value) if is_numeric(value) else apart
        low, high = group.interval or (None, None)
        bounds = interval(group.interval, data, group.observations)
        lines.setdefault(group.label(others), []).append(charts.Point(
            x, factor * group.value, None if low is None else factor * low, None if high is None else factor * high,
            f"{group.label()}: {figure(group.value, data)} ({bounds})"))  # fmt: skip
    kept = [charts.Series(label, sorted(points, key=lambda point: point.x)) for label, points in lines.items()]
    labels = {value: f"{value:g}" for value in known} if len(known) <= 8 else {}
    if any(not is_numeric(group.values[name]) for group in groups):
        labels = {value: f"{value:g}" for value in known} | {apart: NO_NUMBER}
    more = f" (first {MOST_LINES} of {len(kept)} lines)" if len(kept) > MOST_LINES else ""
    title = f"{data.metric} over {name}" + (f", {show(task)}" if task is not None else "") + more
    unit = f"{data.metric}{', %' if data.percent else ''}"
    return charts.line_chart(title, kept[:MOST_LINES], x_title=name, y_title=unit, x_labels=labels)


def pareto_section(data: ReportData) -> str:
    """Quality over time, a chart per task."""
    if len(data.groups) < 2:
        return ""
    first = next((name for name in data.varied if name != TASK and not is_numeric(data.groups[0].values[name])), None)
    factor = 100 if data.percent else 1
    drawn = []
    for task in tasks_of(data):
        series: dict[str, list[charts.Point]] = {}
        for group in (group for group in data.groups if task is None or group.values[TASK] == task):
            name = "runs" if first is None else f"{first} = {show(group.values[first])}"
            note = f"{group.label()}: {figure(group.value, data)}, {number(group.cost)} {data.cost}"
            series.setdefault(name, []).append(charts.Point(group.cost, factor * group.value, note=note))
        title = f"{data.metric} against {data.cost}" + (f", {show(task)}" if task is not None else "")
        unit = f"{data.metric}{', %' if data.percent else ''}"
        drawn.append(charts.pareto_chart(title, [charts.Series(name, points) for name, points in series.items()],
                                         x_title=data.cost, y_title=unit, lower=data.lower))  # fmt: skip
    note = "Dashed: what nothing beats in both at once. Rest the pointer on a mark to see its parameters."
    return f'<p>{note}</p><div class="charts">{"".join(drawn)}</div>'


# -- failures and runs ---------------------------------------------------------------------------


def failures_section(failures: Sequence[Failed]) -> str:
    """Each with its error cell and traceback."""
    parts = []
    for failure in failures[:MOST_ROWS]:
        place = f" in cell [{failure.cell_number}]" if failure.cell_number else ""
        parts.append(
            f"<article><h3>{escape(failure.label or 'defaults')}</h3>"
            f"<p class=error>{escape(failure.kind)}: {escape(failure.message[:500])}{place} "
            f'<a href="{escape(failure.notebook)}">the notebook</a></p>'
            + (f"<pre>{escape(failure.cell)}</pre>" if failure.cell else "")
            + (f"<details><summary>traceback</summary><pre>{escape(failure.traceback)}</pre></details>"
               if failure.traceback else "") + "</article>")  # fmt: skip
    return "".join(parts)


def runs_section(data: ReportData) -> str:
    """Every run, with a link to its notebook."""
    parameters = [name for name in data.table.parameters if name in (*data.varied, *data.repeated)]
    fields = list(data.table.fields)
    rows = []
    for row in data.frame.head(MOST_ROWS).to_dict("records"):
        cells = [show(plain(row[name])) for name in parameters]
        cells += ["" if is_missing(row[name]) else show(plain(row[name]))[:60] for name in fields]
        link = row["key"][:8]
        if row["status"] == OK:
            link = f'<a href="runs/{row["key"]}/notebook.html">{link}</a>'
        rows.append(f"<tr><td>{link}</td><td>{row['status']}</td><td class=n>{number(row['seconds'])}</td>"
                    + "".join(f"<td>{escape(cell)}</td>" for cell in cells) + "</tr>\n")  # fmt: skip
    head = "".join(f"<th>{escape(name)}</th>" for name in ["run", "status", "seconds", *parameters, *fields])
    more = f"<p>{len(data.frame) - MOST_ROWS:,} more in {CSV}.</p>" if len(data.frame) > MOST_ROWS else ""
    return (f'<details><summary>{len(data.frame)} runs</summary><div class="scroll"><table><thead><tr>{head}</tr></thead>'
            f"<tbody>\n{''.join(rows)}</tbody></table></div>{more}</details>")  # fmt: skip


STYLE = (
    REPORT_STYLE
    + """
main { max-width: 1360px; margin: 0 auto; padding: 28px 24px 80px; }
h1 { font-size: 27px; margin: 0 0 6px; } h2 { font-size: 20px; margin: 40px 0 6px; border-bottom: 1px solid #d8dde3; }
h3 { font-size: 15px; margin: 18px 0 2px; } p { margin: 4px 0 10px; color: #4c535d; max-width: 92ch; }
.facts { color: #4c535d; font-size: 13px; padding-left: 18px; overflow-wrap: anywhere; }
th { text-align: left; border-bottom: 2px solid #8a919c; vertical-align: bottom; }
th, td { padding: 4px 14px 4px 0; vertical-align: top; } td { border-bottom: 1px solid #e6e9ed; }
.n { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
tr.better td { background: #e8f4ec; } tr.worse td { background: #fbecea; }
.charts { display: flex; flex-wrap: wrap; gap: 18px 28px; }
svg text { font-family: system-ui, 'Segoe UI', Roboto, 'DejaVu Sans', sans-serif; }
figure { margin: 14px 0 22px; } figcaption { font-weight: 600; font-size: 13px; margin-bottom: 4px; }
pre { background: #f5f6f8; border-left: 3px solid #c3c9d1; padding: 8px 12px; overflow-x: auto;
  font-size: 12.5px; line-height: 1.45; }
.error { color: #b3261e; } summary { cursor: pointer; color: #0072B2; }
"""
)

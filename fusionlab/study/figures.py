"""The study's figures: plain plotly figures of a fixed size, made from the tables' data.

Colours are Okabe-Ito's; every series also has a symbol or a dash of its own. A function returns None where there is nothing
to draw.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from fusionlab.errors import MissingPackageError
from fusionlab.scores import AVERAGE
from fusionlab.study.costs import PRICE
from fusionlab.study.interference import ADAPTERS
from fusionlab.study.measure import Way
from fusionlab.study.robustness import DIMENSIONS
from fusionlab.study.table import Table
from fusionlab.study.trajectories import LOADED, mean_by_position
from fusionlab.study.weights import BEST_PER_ITEM, DYNAMIC

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go

WIDTH = 900  # pixels
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
SYMBOLS = ("circle", "square", "diamond", "triangle-up", "x", "star", "cross")
DASHES = ("solid", "dash", "dot", "dashdot", "longdash", "longdashdot", "solid")
INK, GREY = "#1d2129", "#8a919c"


def score_figure(table: Table) -> go.Figure | None:
    """Values of Table 1 or 2 by line, one panel a task, the average first; bars of one standard error."""
    graph, subplots = load_plotly()
    data = table.data
    if data.empty:
        return None
    tasks = [AVERAGE, *(task for task in dict.fromkeys(data["task"]) if task != AVERAGE)]
    tasks = [task for task in tasks if (data["task"] == task).any()]
    labels = list(dict.fromkeys(data["label"]))[::-1]
    figure = subplots.make_subplots(rows=1, cols=len(tasks), shared_yaxes=True, horizontal_spacing=0.03,
                                    subplot_titles=tasks)  # fmt: skip
    for column, task in enumerate(tasks, start=1):
        group = data[data["task"] == task].set_index("label").reindex(labels).dropna(subset="value")
        figure.add_trace(graph.Scatter(
            x=group["value"], y=group.index, mode="markers", showlegend=False,
            error_x={"type": "data", "array": group["standard_error"], "thickness": 1.5, "color": GREY},
            marker={"size": 9, "color": COLOURS[0] if task == AVERAGE else INK},
            hovertemplate="%{y}<br>" + task + " %{x:.1f} ± %{error_x.array:.1f}<extra></extra>"),
            row=1, col=column)  # fmt: skip
    figure.update_yaxes(categoryorder="array", categoryarray=labels, showgrid=True, automargin=True)
    figure.update_xaxes(title_text="%", title_standoff=4, nticks=4, tickangle=0, rangemode="tozero")
    return finish(figure, table.title, 130 + 24 * len(labels))


def weight_figure(table: Table) -> go.Figure | None:
    """Score against the fixed weight, one line a task; dotted: dynamic, dash-dotted: the best weight per item."""
    graph, _ = load_plotly()
    data = table.data
    if data.empty or data["weight"].notna().sum() < 2:
        return None
    figure = graph.Figure()
    right = float(data["weight"].max())
    for index, task in enumerate(dict.fromkeys(data["task"])):
        group = data[data["task"] == task]
        fixed = group.dropna(subset="weight").sort_values("weight")
        colour = COLOURS[index % len(COLOURS)]
        figure.add_trace(graph.Scatter(
            x=fixed["weight"], y=fixed["value"], name=task, legendgroup=task, mode="lines+markers",
            line={"color": colour, "width": 3 if task == AVERAGE else 2},
            marker={"symbol": SYMBOLS[index % len(SYMBOLS)], "size": 9},
            error_y={"type": "data", "array": fixed["standard_error"], "thickness": 1, "width": 3}))  # fmt: skip
        for label, dash in ((DYNAMIC.label, "dot"), (BEST_PER_ITEM, "dashdot")):
            value = group.loc[group["label"] == label, "value"]
            if len(value):
                figure.add_trace(graph.Scatter(
                    x=[0, right], y=[float(value.iloc[0])] * 2, mode="lines", legendgroup=task, showlegend=False,
                    line={"color": colour, "width": 1.5, "dash": dash}, name=f"{task}: {label}",
                    hovertemplate=f"{task}: {label} " + "%{y:.1f}<extra></extra>"))  # fmt: skip
    figure.update_xaxes(title_text="fixed weight", dtick=0.5)
    figure.update_yaxes(ticksuffix=" %", rangemode="tozero")
    return finish(figure, "Fixed weights (dotted: dynamic; dash-dotted: best per item)", 460)


def robustness_figure(table: Table) -> go.Figure | None:
    """Lowest, mean and highest score over settings, averaged over tasks (or of the one task), by what was varied."""
    graph, subplots = load_plotly()
    data = table.data
    if data.empty:
        return None
    varied = [name for name in DIMENSIONS if (data["dimension"] == name).any()]
    methods = list(dict.fromkeys(data["method"]))[::-1]
    figure = subplots.make_subplots(rows=1, cols=len(varied), shared_yaxes=True, horizontal_spacing=0.03,
                                    subplot_titles=[DIMENSIONS[name] for name in varied])  # fmt: skip
    for column, name in enumerate(varied, start=1):
        group = data[data["dimension"] == name]
        group = group[group["task"] == AVERAGE] if (group["task"] == AVERAGE).any() else group
        figure.add_trace(graph.Scatter(
            x=group["mean"], y=[Way(method).label for method in group["method"]], mode="markers", showlegend=False,
            marker={"size": 9, "color": COLOURS[0]},
            error_x={"type": "data", "symmetric": False, "array": group["highest"] - group["mean"],
                     "arrayminus": group["mean"] - group["lowest"], "color": GREY, "thickness": 2},
            hovertemplate="%{y}<br>mean %{x:.1f}<extra></extra>"),
            row=1, col=column)  # fmt: skip
    labels = [Way(method).label for method in methods]
    figure.update_yaxes(categoryorder="array", categoryarray=labels, automargin=True)
    figure.update_xaxes(ticksuffix=" %", dtick=20)
    return finish(figure, "Lowest, mean and highest score over settings", 150 + 32 * len(methods))


def trajectory_figure(weights: pd.DataFrame | None) -> go.Figure | None:
    """Mean weight by token of the answer: tasks down, own expert alone and all experts across, a line per expert."""
    graph, subplots = load_plotly()
    if weights is None or weights.empty:
        return None
    means = mean_by_position(weights)
    tasks = list(dict.fromkeys(means["task"]))
    columns = [name for name in LOADED if (means["loaded"] == name).any()]
    experts = sorted(dict.fromkeys(means["expert"]))
    held = set(zip(means["task"], means["loaded"], strict=True))
    figure = subplots.make_subplots(
        rows=len(tasks), cols=len(columns), horizontal_spacing=0.06, vertical_spacing=0.24 / max(len(tasks), 2),
        subplot_titles=[f"{task}: {LOADED[name] if (task, name) in held else 'no expert of its own'}"
                        for task in tasks for name in columns])  # fmt: skip
    shown: set[str] = set()
    for row, task in enumerate(tasks, start=1):
        for column, name in enumerate(columns, start=1):
            panel = means[(means["task"] == task) & (means["loaded"] == name)]
            if panel.empty:
                figure.update_xaxes(visible=False, row=row, col=column)
                figure.update_yaxes(visible=False, row=row, col=column)
            for expert in dict.fromkeys(panel["expert"]):
                line, index = panel[panel["expert"] == expert], experts.index(expert) % len(COLOURS)
                figure.add_trace(graph.Scatter(
                    x=line["position"] + 1, y=line["alpha"], name=expert, legendgroup=expert, mode="lines+markers",
                    showlegend=expert not in shown, marker={"symbol": SYMBOLS[index], "size": 5},
                    line={"color": COLOURS[index], "dash": DASHES[index], "width": 2}, customdata=line["answers"],
                    hovertemplate=expert + ": token %{x}, weight %{y:.2f}, %{customdata} answers<extra></extra>"),
                    row=row, col=column)  # fmt: skip
                shown.add(expert)
    figure.update_yaxes(range=[-0.05, max(1.05, 1.05 * float(means["alpha"].max()))], nticks=4)
    figure.update_yaxes(title_text="weight", col=1)
    figure.update_xaxes(title_text="token of the answer", row=len(tasks))
    return finish(figure, "Mean weight by position in the answer", 120 + 165 * len(tasks))


def likeness_figure(table: Table) -> go.Figure | None:
    """Cosines between experts' changes: one matrix for the text of each task, and one for the weight changes."""
    graph, subplots = load_plotly()
    data = table.data
    if data.empty or (data["first"] == data["second"]).all():
        return None
    tasks = list(dict.fromkeys(data["task"]))
    names = list(dict.fromkeys([*data["first"], *data["second"]]))
    columns = min(3, len(tasks))
    rows = math.ceil(len(tasks) / columns)
    figure = subplots.make_subplots(
        rows=rows, cols=columns, horizontal_spacing=0.1, vertical_spacing=0.3 / rows,
        subplot_titles=["weight changes" if task == ADAPTERS else f"on text of {task}" for task in tasks])  # fmt: skip
    for place, task in enumerate(tasks):
        group = data[data["task"] == task]
        cells = {(row["first"], row["second"]): row["pooled"] for row in group.to_dict("records")}
        matrix = [[1.0 if a == b else cells.get((a, b), cells.get((b, a), math.nan)) for b in names] for a in names]
        figure.add_trace(graph.Heatmap(
            z=matrix, x=names, y=names, zmin=-1, zmax=1, colorscale="RdBu", reversescale=True, showscale=place == 0,
            texttemplate="%{z:.2f}", hovertemplate="%{y}, %{x}: %{z:.3f}<extra></extra>",
            colorbar={"title": "cosine", "thickness": 12}), row=place // columns + 1, col=place % columns + 1)  # fmt: skip
    figure.update_yaxes(autorange="reversed")
    return finish(figure, "How alike the experts' changes are", 110 + rows * (90 + 46 * len(names)))


def cost_figure(ledger: Table, seconds: tuple[float, float], *, price: float = PRICE) -> go.Figure | None:
    """Price of training and answering together against the number of answers.

    seconds: (a, b) per answer of fusion and of a tuned large model (`costs.answer_seconds`).
    """
    graph, _ = load_plotly()
    totals: dict[str, float] = {}
    rows = ledger.data.to_dict("records")
    experts = sum(row["runs"] for row in rows if row["part"].startswith("experts"))
    for row in rows:
        if row["per"] == "task" and row["runs"] != experts:
            continue  # recorded on a part of the tasks only
        name = "fusion: small + experts" if row["per"] == "once" or row["part"].startswith("experts") else row["part"]
        totals[name] = totals.get(name, 0.0) + row["seconds"]
    if len(totals) < 2 or any(map(math.isnan, seconds)):
        return None
    counts = [10 ** (exponent / 8) for exponent in range(8 * 2, 8 * 7 + 1)]
    figure = graph.Figure()
    for index, (name, spent) in enumerate(totals.items()):
        each = seconds[0] if name.startswith("fusion") else seconds[1]
        figure.add_trace(graph.Scatter(
            x=counts, y=[(spent + count * each) / 3600 * price for count in counts], name=name, mode="lines",
            line={"color": COLOURS[index % len(COLOURS)], "dash": DASHES[index % len(DASHES)], "width": 2.5}))  # fmt: skip
    figure.update_xaxes(type="log", title_text="answers", exponentformat="power", dtick=1)
    figure.update_yaxes(type="log", dtick=1, title_text=f"price at {price:g} a GPU hour")
    return finish(figure, "Training and answering together", 440)


def load_plotly() -> tuple[Any, Any]:
    """plotly's graph_objects and subplots. Raises MissingPackageError."""
    try:
        import plotly.graph_objects as graph
        from plotly import subplots
    except ImportError as error:
        raise MissingPackageError("figures need plotly", remedy="pip install 'fusionlab[lab]'") from error
    return graph, subplots


def finish(figure: Any, title: str, height: int) -> Any:
    """The look that all figures share: title to the left, legend below it."""
    figure.update_layout(
        template="plotly_white", width=WIDTH, height=height + 20,
        title={"text": title, "x": 0, "xref": "paper", "xanchor": "left", "y": 1 - 22 / height, "yanchor": "middle"},
        font={"family": "system-ui, 'Segoe UI', Roboto, 'DejaVu Sans', sans-serif", "size": 12, "color": INK},
        title_font_size=16, margin={"l": 60, "r": 24, "t": 96, "b": 56}, hoverlabel={"align": "left"},
        legend={"orientation": "h", "x": 0, "xanchor": "left", "y": 1 - 42 / height, "yref": "container", "yanchor": "top"},
    )  # fmt: skip
    figure.update_annotations(font_size=12)
    return figure

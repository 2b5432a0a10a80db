"""Static plotly figures of traces, fit for a paper: weights by token, KL curves of a token, histograms.

Plain `graph_objects` figures of a fixed size, so that they export as they look. Model text is untrusted and
plotly reads a little HTML and TeX in every label, so all of it passes through `literal_text`. Colours are
Okabe-Ito's, and nothing is told by colour alone. Symbols as in `fusionlab.trace`.
"""

from __future__ import annotations

import html
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from fusionlab.errors import MissingPackageError, TraceError
from fusionlab.trace import Trace

if TYPE_CHECKING:
    import plotly.graph_objects as go

WIDTH = 840  # pixels, of every figure: JupyterLab on a laptop, with its file browser open
BLUE, VERMILION, GREY, INK = "#0072B2", "#D55E00", "#8a919c", "#1d2129"
# Plotly's mode bar without what a page like this has no use for: short, it leaves room for a legend beside it.
FEW_BUTTONS = ["zoom", "pan", "select", "lasso2d", "zoomIn2d", "zoomOut2d", "autoScale2d"]
WEIGHT_SCALE = [[0.0, "#f3f5f7"], [0.35, "#9cc9e8"], [0.7, "#2a86c4"], [1.0, "#06304f"]]
TICK_PIXELS = 13  # one upright token label needs this much of the axis
SLANTED_PIXELS = 20  # and a slanted one, which is easier to read, this much
WIDEST_CELL = 70  # pixels
LABEL_CHARS, PROMPT_CHARS = 12, 92


def literal_text(text: str) -> str:
    """Text that plotly shows as it is: no tags, no entities, no TeX between dollar signs.

    >>> literal_text("<b>$x$</b>")
    '&lt;b&gt;&#36;x&#36;&lt;/b&gt;'
    """
    return html.escape(text, quote=False).replace("$", "&#36;")


def weight_heatmap(traces: Trace | Sequence[Trace]) -> go.Figure:
    """Experts x tokens, darker for a greater weight, with a triangle on the expert that flipped a token.

    >>> weight_heatmap(result.traces[0]).write_html("weights.html")       # doctest: +SKIP

    Several traces are drawn one below the other on one scale. Labels are thinned where tokens are many.
    Raises `TraceError` where there is no token or no expert to draw.
    """
    graph, subplots = _plotly()
    shown = [trace for trace in _listed(traces) if len(trace) and trace.experts]
    if not shown:
        raise TraceError("no trace here has both tokens and experts", remedy="pass a trace of a fused decode")
    heights = [26 * len(trace.experts) for trace in shown]
    gap, top, bottom = 118, 84, 96
    height = sum(heights) + gap * (len(shown) - 1) + top + bottom
    figure = subplots.make_subplots(
        rows=len(shown),
        cols=1,
        row_heights=heights,
        vertical_spacing=gap / (height - top - bottom) if len(shown) > 1 else 0,
        subplot_titles=[_prompt_label(trace) for trace in shown],
    )
    greatest = max(float(trace.alpha.max()) for trace in shown)
    left = 24 + 7 * max(len(_shortened(name, 24)) for trace in shown for name in trace.experts)
    flips = [bool(trace.flipped.any()) for trace in shown]
    for row, trace in enumerate(shown, start=1):
        figure.add_trace(_weight_cells(graph, trace), row=row, col=1)
        legend = flips[row - 1] and not any(flips[: row - 1])
        figure.add_trace(_flip_marks(graph, trace, legend=legend, width=WIDTH - left), row=row, col=1)
        _label_tokens(figure, trace, row=row, width=WIDTH - left - 110)
    figure.update_annotations(x=0, xanchor="left")
    figure.update_yaxes(autorange="reversed", showgrid=False, zeroline=False, ticks="")
    bar = {"title": {"text": "weight α", "font": {"size": 13}}, "thickness": 12, "len": 1, "outlinewidth": 0, "x": 1.01}
    bar |= {"lenmode": "pixels", "len": max(110, min(height - top - bottom, 220)), "y": 1, "yanchor": "top"}
    figure.update_layout(
        modebar_remove=FEW_BUTTONS,
        coloraxis={"colorscale": WEIGHT_SCALE, "cmin": 0, "cmax": greatest or 1.0, "colorbar": bar},
        margin={"l": left, "r": 96, "t": top, "b": bottom},
        legend={
            "x": 0.95,  # the rest of the line is the mode bar's
            "xanchor": "right",
            "y": 1,
            "yref": "container",
            "yanchor": "top",
            "bgcolor": "rgba(0,0,0,0)",
        },
    )
    return _finished(figure, title="Weight of each expert, token by token", height=height)


def kl_curves(trace: Trace, step: int, *, experts: Sequence[str] | None = None) -> go.Figure:
    """Both KLs and the objective J against the weight of each expert alone, at token `step` (0-based).

    Dotted lines are the targets times the constraint's scale; the vertical line is the chosen weight.
    J = (KL(P~||P) - kappa f)^2 + (KL(P||P~) - kappa g)^2, with one term only if the direction says so
    (paper, section 3). Raises `TraceError` for a light trace, an unknown expert, or a step that is not
    there.
    """
    graph, subplots = _plotly()
    if trace.grid is None or trace.grid_kl_forward is None or trace.grid_kl_reverse is None:
        raise TraceError("this trace has no table of KLs over the weight", remedy="generate with trace='full'")
    if not 0 <= step < len(trace):
        raise TraceError(f"step {step} of a trace of {len(trace)} tokens", remedy="count tokens from 0")
    names = list(trace.experts if experts is None else experts)
    if unknown := [name for name in names if name not in trace.experts]:
        raise TraceError(f"unknown expert {unknown[0]!r}", remedy=f"known: {', '.join(trace.experts)}")
    if not names:
        raise TraceError("this trace has no experts", remedy="pass a trace of a fused decode")
    columns = min(len(names), 3)
    rows = -(-len(names) // columns)
    height = 178 + 260 * rows
    figure = subplots.make_subplots(
        rows=rows,
        cols=columns,
        specs=[[{"secondary_y": True}] * columns] * rows,
        subplot_titles=[_expert_label(trace, name, step) for name in names],
        horizontal_spacing=0.13 if columns > 1 else 0,
        vertical_spacing=0.42 / rows,
    )
    for place, name in enumerate(names):
        row, column = place // columns + 1, place % columns + 1
        _add_curves(graph, figure, trace, step, trace.experts.index(name), row=row, column=column, first=place == 0)
        figure.update_xaxes(title_text="weight α", title_standoff=4, row=row, col=column)
        if column == 1:
            figure.update_yaxes(title_text="KL (nats)", row=row, col=column, secondary_y=False)
        if column == columns or name == names[-1]:
            figure.update_yaxes(title_text="J (nats²)", row=row, col=column, secondary_y=True)
    right = {"tickmode": "auto", "nticks": 5, "exponentformat": "e", "color": GREY, "showgrid": False}
    figure.update_yaxes(rangemode="tozero", secondary_y=True, **right)
    figure.update_yaxes(rangemode="tozero", secondary_y=False)
    figure.update_layout(
        modebar_remove=FEW_BUTTONS,
        margin={"l": 70, "r": 70, "t": 118, "b": 60},
        legend={"orientation": "h", "x": 0, "y": 1 - 44 / height, "yref": "container", "xanchor": "left"},
        legend_yanchor="top",
    )
    piece = literal_text(_shortened(_spelled(trace.labels()[step]), 40))
    return _finished(figure, title=f"Token {step + 1} of {len(trace)}: “{piece}”", height=height)


def weight_distribution(traces: Trace | Sequence[Trace]) -> go.Figure:
    """Per expert, the share of tokens at each weight; tokens that it flipped are dark. A line marks the mean.

    Experts of the same name are pooled over all traces. Raises `TraceError` where there is nothing to count.
    """
    import numpy as np

    graph, subplots = _plotly()
    pooled: dict[str, list[Any]] = {}
    for trace in _listed(traces):
        for e, name in enumerate(trace.experts):
            pooled.setdefault(name, []).append(np.stack([trace.alpha[:, e], trace.flipped_by == e]))
    columns = {name: np.concatenate(parts, axis=1) for name, parts in pooled.items()}  # (2, tokens)
    columns = {name: values for name, values in columns.items() if values.shape[1]}
    if not columns:
        raise TraceError("no trace here has both tokens and experts", remedy="pass a trace of a fused decode")
    greatest = max(float(values[0].max()) for values in columns.values()) or 1.0
    width = 0.1 if greatest <= 4 else greatest / 40
    centres = width * np.arange(int(greatest / width + 0.5) + 1)  # a bin about each weight of the paper's grid
    edges = np.append(centres - width / 2, centres[-1] + width / 2 + 1e-6)
    figure = subplots.make_subplots(
        rows=len(columns),
        cols=1,
        shared_xaxes=True,
        vertical_spacing=0.2 / len(columns),
        subplot_titles=[
            f"{literal_text(_shortened(name, 40))}: mean {values[0].mean():.2f}, "
            f"{values[1].mean():.1%} of {values.shape[1]} tokens flipped"
            for name, values in columns.items()
        ],
    )
    for row, (weights, flipped) in enumerate(columns.values(), start=1):
        for label, color, chosen in (
            ("flipped", "#06304f", flipped > 0),
            ("not flipped", "#8fc1e3", flipped == 0),
        ):
            share = np.histogram(weights[chosen], edges)[0] / len(weights)
            bar = graph.Bar(
                x=centres,
                y=share,
                width=0.92 * width,
                name=f"tokens {label} by this expert" if label == "flipped" else "other tokens",
                marker={"color": color, "line": {"width": 0}},
                showlegend=row == 1,
                legendgroup=label,
                customdata=np.stack([edges[:-1].clip(0), edges[1:]], axis=1),
                hovertemplate="weight %{customdata[0]:.2f} to %{customdata[1]:.2f}<br>%{y:.1%} of tokens<extra></extra>",
            )
            figure.add_trace(bar, row=row, col=1)
        figure.add_vline(x=float(weights.mean()), line={"color": VERMILION, "width": 2, "dash": "dash"}, row=row, col=1)
    figure.update_annotations(x=0, xanchor="left")
    figure.update_yaxes(tickformat=".0%", nticks=4, rangemode="tozero")
    figure.update_xaxes(title_text="weight α", row=len(columns), col=1)
    height = 130 + 150 * len(columns)
    figure.update_layout(
        modebar_remove=FEW_BUTTONS,
        barmode="stack",
        margin={"l": 70, "r": 30, "t": 92, "b": 54},
        legend={
            "orientation": "h",
            "x": 1,
            "xanchor": "right",
            "y": 1,
            "yref": "container",
            "yanchor": "top",
        },
    )
    return _finished(figure, title="How the weights are spread", height=height)


def _plotly() -> tuple[Any, Any]:
    try:
        import plotly.graph_objects as graph
        from plotly import subplots
    except ImportError as error:
        raise MissingPackageError("figures need plotly", remedy="pip install 'fusionlab[lab]'") from error
    return graph, subplots


def _finished(figure: Any, *, title: str, height: int) -> Any:
    figure.update_layout(
        modebar_remove=FEW_BUTTONS,
        template="plotly_white",
        width=WIDTH,
        height=height,
        title={
            "text": title,
            "x": 0,
            "xref": "paper",
            "xanchor": "left",
            "y": 1 - 24 / height,
            "yanchor": "middle",
        },
        font={"family": "system-ui, 'Segoe UI', Roboto, 'DejaVu Sans', sans-serif", "size": 13, "color": INK},
        title_font_size=17,
        hoverlabel={"align": "left", "bgcolor": "white"},
    )
    figure.update_annotations(font_size=13)
    return figure


def _listed(traces: Trace | Sequence[Trace]) -> list[Trace]:
    return [traces] if isinstance(traces, Trace) else list(traces)


def _spelled(label: str) -> str:
    """Spaces at the edges, which would vanish in a figure, as ␣; an empty piece as ∅."""
    body = label.strip(" ")
    if not body:
        return "␣" * len(label) or "∅"
    return label.replace(body, f"\0{body}\0", 1).replace(" \0", "␣\0").replace("\0 ", "\0␣").replace("\0", "")


def _shortened(text: str, chars: int) -> str:
    return text if len(text) <= chars else text[: chars - 1] + "…"


def _tick(label: str) -> str:
    return literal_text(_shortened(label.strip(" "), LABEL_CHARS) or "␣")


def _prompt_label(trace: Trace) -> str:
    return literal_text(_shortened(trace.prompt.replace("\n", " ⏎ "), PROMPT_CHARS))


def _weight_cells(graph: Any, trace: Trace) -> Any:
    labels = [literal_text(_spelled(label)) for label in trace.labels()]
    texts = [
        [
            f"token {i + 1}: {labels[i]}<br>{literal_text(name)}: weight {trace.alpha[i, e]:.2f}"
            + ("<br>▲ flipped by this expert" if trace.flipped_by[i] == e else "")
            for i in range(len(trace))
        ]
        for e, name in enumerate(trace.experts)
    ]
    return graph.Heatmap(
        z=trace.alpha.T,
        x=list(range(len(trace))),
        y=list(range(len(trace.experts))),
        coloraxis="coloraxis",
        customdata=texts,
        hovertemplate="%{customdata}<extra></extra>",
        xgap=1 if len(trace) <= 150 else 0,
        ygap=2,
    )


def _flip_marks(graph: Any, trace: Trace, *, legend: bool, width: int) -> Any:
    rows = [i for i in range(len(trace)) if trace.flipped[i]]
    return graph.Scatter(
        x=rows,
        y=[int(trace.flipped_by[i]) for i in rows],
        mode="markers",
        marker={
            "symbol": "triangle-up",
            "size": max(7, min(12, 0.6 * width / len(trace))),
            "color": VERMILION,
            "line": {"color": "white", "width": 1},
        },
        name="flipped: not the large model’s choice",
        showlegend=legend,
        hoverinfo="skip",
    )


def _label_tokens(figure: Any, trace: Trace, *, row: int, width: int) -> None:
    every = max(1, -(-len(trace) * TICK_PIXELS // width))
    labels = trace.labels()
    places = list(range(0, len(trace), every))
    figure.update_xaxes(
        tickvals=places,
        ticktext=[_tick(labels[i]) for i in places],
        tickangle=-60 if width >= len(trace) * SLANTED_PIXELS else -90,
        tickfont_size=11,
        range=[-0.5, max(len(trace), width // WIDEST_CELL) - 0.5],
        showgrid=False,
        zeroline=False,
        row=row,
        col=1,
    )
    figure.update_yaxes(
        tickvals=list(range(len(trace.experts))),
        ticktext=[literal_text(_shortened(name, 24)) for name in trace.experts],
        row=row,
        col=1,
    )


def _expert_label(trace: Trace, name: str, step: int) -> str:
    chosen = float(trace.alpha[step, trace.experts.index(name)])
    return f"<b>{literal_text(_shortened(name, 24))}</b>  chosen α = {chosen:.2f}"


def _add_curves(
    graph: Any, figure: Any, trace: Trace, step: int, expert: int, *, row: int, column: int, first: bool
) -> None:
    import numpy as np

    assert trace.grid is not None  # kl_curves has looked
    scale, direction = float(trace.constraint.get("scale", 1.0)), trace.constraint.get("direction", "both")
    chosen = float(trace.alpha[step, expert])
    objective = np.zeros(len(trace.grid))
    sides = (
        ("forward", "KL(P̃‖P)", "κ·KL(R‖Q)", BLUE, "solid", trace.grid_kl_forward, trace.target_forward),
        ("reverse", "KL(P‖P̃)", "κ·KL(Q‖R)", VERMILION, "dash", trace.grid_kl_reverse, trace.target_reverse),
    )
    for side, name, target_name, color, dash, table, targets in sides:
        assert table is not None
        curve, target = table[step, expert], scale * float(targets[step, expert])
        if direction in ("both", side):
            objective = objective + (curve.astype("float64") - target) ** 2
        line = {"color": color, "width": 2.5, "dash": dash}
        goal = {"color": color, "width": 1.5, "dash": "dot"}
        ends = [float(trace.grid[0]), float(trace.grid[-1])]
        for curve_name, x, y, style in (
            (name, trace.grid, curve, line),
            (target_name, ends, [target] * 2, goal),
        ):
            scatter = graph.Scatter(
                x=x, y=y, mode="lines", name=curve_name, line=style, legendgroup=curve_name, showlegend=first
            )
            figure.add_trace(scatter, row=row, col=column, secondary_y=False)
    line = {"color": GREY, "width": 2, "dash": "dashdot"}
    scatter = graph.Scatter(x=trace.grid, y=objective, mode="lines", name="J (right axis)", line=line, showlegend=first)
    figure.add_trace(scatter, row=row, col=column, secondary_y=True)
    figure.add_vline(x=chosen, line={"color": INK, "width": 1.5}, row=row, col=column)

"""A saved trace in a notebook: strip, heatmap, KL curves, inspector and constraint controls, without a model.

The views run in the browser and solve the trace again there. JupyterLab shows "Loading widget..." where a widget's kernel
is gone, whatever else that output holds; so a second output follows, the same views as HTML, which the live widget hides
and which is what a saved notebook, its nbconvert page and a restarted kernel show.
"""

from __future__ import annotations

import html
from os import PathLike
from pathlib import Path
from typing import Any

from fusionlab.errors import FusionError, MissingPackageError, TraceError
from fusionlab.page_script import bundle
from fusionlab.trace import Trace
from fusionlab.trace_html import traces_to_output
from fusionlab.trace_payload import trace_payload
from fusionlab.trace_text import trace_to_text

try:
    import anywidget
    import traitlets
except ImportError as error:
    raise MissingPackageError("widgets need anywidget", remedy="pip install 'fusionlab[lab]'") from error

HTML, PLAIN = "text/html", "text/plain"
LIVE, SAVED = "fusionlab-live-trace", "fusionlab-saved-trace"  # classes of the two outputs
_OUTPUT = ".jp-OutputArea-child"
_HIDE_SAVED = f"{_OUTPUT}:has(.{LIVE}) + {_OUTPUT}:has(.{SAVED}) {{ display: none; }}"
_HIDE_DEAD = f"{_OUTPUT}:not(:has(.{LIVE})):has(+ {_OUTPUT} .{SAVED}) {{ display: none; }}"


class TraceView(anywidget.AnyWidget):
    """The linked views on one trace.

    >>> view = TraceView("data/traces/first_look.parquet")                     # doctest: +SKIP
    >>> view.constraint = {"scale": 1.5, "budget": 0.5}                        # move the controls    # doctest: +SKIP
    >>> view.selection                                                        # what was clicked     # doctest: +SKIP
    4

    trace: a `Trace`, or the path of a Parquet file that holds one.

    payload: what the browser shows. constraint: the controls, as `KLConstraint.to_dict()` plus "method"; set any of its
    keys; it is sent back when a control is let go. selection: index of the selected token, -1 before anyone selected.
    problem: why there is nothing to show, in words: a trace that cannot be read is reported in the view, and does not
    raise. `trace` is the trace, or None.
    """

    _esm = bundle(Path(__file__).with_name("trace_view.js"), module=True)
    _css = _HIDE_SAVED

    payload = traitlets.Dict().tag(sync=True)
    constraint = traitlets.Dict().tag(sync=True)
    selection = traitlets.Int(-1).tag(sync=True)
    problem = traitlets.Unicode("").tag(sync=True)

    def __init__(self, trace: Trace | str | PathLike[str], **traits: Any) -> None:
        self.trace: Trace | None = None
        try:
            self.trace = _read(trace)
            traits["payload"] = trace_payload(self.trace)
        except FusionError as error:
            traits["problem"] = str(error)
        super().__init__(**traits)

    def _repr_mimebundle_(self, **options: Any) -> Any:
        """The widget and the saved view in one bundle, for those who ask for one."""
        data, metadata = self._live(**options)
        return data | {HTML: self.to_output()}, metadata

    def _ipython_display_(self) -> None:
        from IPython.display import display

        data, metadata = self._live()
        display(data, metadata=metadata, raw=True)
        saved = f'<div class="{SAVED}"><style>{_HIDE_DEAD}</style>{self.to_output()}</div>'
        text = trace_to_text(self.trace) if self.trace is not None else self.problem
        display({HTML: saved, PLAIN: text}, raw=True)

    def to_output(self) -> str:
        """The views as HTML that needs no kernel; the trace as it was given, whatever the controls were moved to."""
        if self.trace is None:
            return f'<p role="alert">{html.escape(self.problem)}</p>'
        return traces_to_output([self.trace])

    def _live(self, **options: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        shown = super()._repr_mimebundle_(**options)
        data, metadata = shown if isinstance(shown, tuple) else (shown or {}, {})
        return dict(data) | {PLAIN: repr(self)}, metadata

    def __repr__(self) -> str:
        return f"TraceView({self.trace!r})" if self.trace is not None else f"TraceView: {self.problem}"


def _read(trace: object) -> Trace:
    if isinstance(trace, Trace):
        return trace
    if isinstance(trace, str | PathLike):
        return Trace.load(trace)
    raise TraceError(
        f"TraceView was given {type(trace).__name__}", remedy="pass a Trace, or the path of a file that Trace.save wrote"
    )

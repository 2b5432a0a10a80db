"""Traces as HTML: a self-contained page, and the output of a notebook cell. No network; model text is only ever text.

Both carry the script of fusionlab/page/, the traces as JSON (`trace_payload`) and, for readers without scripts, the text
of `trace_static`, which the script replaces. `<`, `>` and `&` are escaped inside the JSON; the page's content policy
admits nothing but this very script and style, by their hashes.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
import re
from collections.abc import Mapping, Sequence
from os import PathLike
from typing import Any

from fusionlab.page_script import bundle, page_folder
from fusionlab.trace import Trace
from fusionlab.trace_payload import trace_payload
from fusionlab.trace_static import static_html
from fusionlab.trace_text import trace_to_text, visible

Others = Sequence[Mapping[str, Any]]  # {"name", "token_ids", "pieces"} each

_LABEL_CHARS = 90  # of a prompt, in the list of a page with several


def traces_to_html(
    traces: Sequence[Trace],
    path: str | PathLike[str] | None = None,
    *,
    title: str | None = None,
    others: Sequence[Others] = (),
) -> str:
    """The page as text; also written to `path` if given, atomically.

    >>> page = traces_to_html(result.traces, "runs/demo/traces.html", title="Two tasks")   # doctest: +SKIP

    others: for each trace, the same prompt answered by others (`trace_payload`'s alternatives), or nothing.
        Not given: those that the traces keep.
    Raises `OutputError` where `path` cannot be written.
    """
    script, style = bundle("page.js"), _page_file("page.css") + _page_file("static.css")
    parts = {
        "TITLE": html.escape(title or "Fusion trace"),
        "POLICY": f"default-src 'none'; img-src data:; script-src '{_hash(script)}'; style-src '{_hash(style)}'",
        "STYLE": style,
        "SCRIPT": script,
        "NAVIGATION": _navigation(traces),
        "STATIC": static_html(traces),
        "DATA": _payloads(traces, others),
    }
    page = re.sub(r"\{\{([A-Z]+)\}\}", lambda match: parts[match[1]], _page_file("trace.html"))
    if path is not None:
        from fusionlab.atomic_file import write_atomically

        write_atomically(path, page, make_folders=False)
    return page


def traces_to_output(traces: Sequence[Trace], *, others: Sequence[Others] = ()) -> str:
    """The views as a fragment for a notebook's output: alive in JupyterLab and in nbconvert's pages, without a kernel.

    Where a viewer drops scripts (an untrusted notebook, a code host), the text and table of the trace are left.
    """
    data = _payloads(traces, others)
    name = hashlib.sha256(data.encode()).hexdigest()[:12]
    return (
        f"<style>{_page_file('static.css')}</style>"
        f'<div data-fusion="{name}">{static_html(traces)}</div>'
        f'<script type="application/json" data-fusion-payload="{name}">{data}</script>'
        f"<script>{bundle('page.js')}</script>"
    )


def show_trace(trace: Trace) -> None:
    """Display the views in a Jupyter kernel, or print the trace as text anywhere else."""
    if _in_notebook():
        from IPython.display import HTML, display

        display(HTML(traces_to_output([trace])))
    else:
        print(trace_to_text(trace))


def json_for_script(data: object) -> str:
    """JSON that cannot end its script element: ASCII only, with <, > and & written as escapes.

    >>> json_for_script("</script>")
    '"\\\\u003c/script\\\\u003e"'
    """
    text = json.dumps(data, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _payloads(traces: Sequence[Trace], others: Sequence[Others]) -> str:
    answers = [*others, *([None] * (len(traces) - len(others)))]  # None: what the trace itself keeps of them
    found = [trace_payload(trace, alternatives=given) for trace, given in zip(traces, answers, strict=True)]
    return json_for_script({"payloads": found})


def _navigation(traces: Sequence[Trace]) -> str:
    if len(traces) < 2:
        return ""
    entries = []
    for i, trace in enumerate(traces):
        prompt = visible(trace.prompt)
        label = prompt if len(prompt) <= _LABEL_CHARS else prompt[:_LABEL_CHARS] + "…"
        flips = f"{int(trace.flipped.sum())} of {len(trace)} tokens flipped"
        entries.append(f'<li><a href="#trace-{i}">{html.escape(label) or "∅"}</a> {flips}</li>')
    return f'<nav aria-label="Prompts"><ol>{"".join(entries)}</ol></nav>'


def _page_file(name: str) -> str:
    return (page_folder() / name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _in_notebook() -> bool:
    try:
        from IPython import get_ipython
    except ImportError:
        return False
    shell = get_ipython()
    return shell is not None and hasattr(shell, "kernel")

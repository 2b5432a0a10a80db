"""One self-contained HTML page for one or several traces: no network, model text only ever set as text.

The page is a fixed template, style and script (package data under fusionlab/page/) plus the traces as JSON.
The script writes every text with `textContent`; `<`, `>` and `&` are escaped inside the JSON, and a content
security policy admits nothing but this very script and style, by their hashes.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
import math
import re
from collections.abc import Mapping, Sequence
from importlib import resources
from os import PathLike
from typing import Any

from fusionlab.trace import Trace
from fusionlab.trace_text import expert_letter, group_pieces, trace_to_text, visible

TOP_SHOWN = 8  # entries of each top-k list that the page carries; the file keeps all


def traces_to_html(traces: Sequence[Trace], path: str | PathLike[str] | None = None, *, title: str | None = None) -> str:
    """The page as text; also written to `path` if given, atomically.

    >>> page = traces_to_html(result.traces, "runs/demo/traces.html", title="Two tasks")   # doctest: +SKIP

    Raises `OutputError` where `path` cannot be written.
    """
    script, style = _page_file("trace.js"), _page_file("trace.css")
    title = title or "Fusion trace"
    data = {"title": title, "traces": [_trace_record(trace) for trace in traces]}
    parts = {
        "TITLE": html.escape(title),
        "POLICY": f"default-src 'none'; script-src '{_hash(script)}'; style-src '{_hash(style)}'",
        "STYLE": style,
        "SCRIPT": script,
        "DATA": json_for_script(data),
    }
    page = re.sub(r"\{\{([A-Z]+)\}\}", lambda match: parts[match[1]], _page_file("trace.html"))
    if path is not None:
        from fusionlab.atomic_file import write_atomically

        write_atomically(path, page, make_folders=False)
    return page


def trace_to_frame_html(trace: Trace) -> str:
    """The page inside a sandboxed iframe, followed by a text version for viewers that drop frames."""
    page = html.escape(traces_to_html([trace]), quote=True)
    return (
        f'<iframe sandbox="allow-scripts" title="Fusion trace" '
        f'style="width:100%;height:{_frame_height(trace)}px;border:1px solid rgba(128,128,128,.35)" '
        f'srcdoc="{page}"></iframe>'
        f"<details><summary>Trace as text</summary><pre>{html.escape(trace_to_text(trace))}</pre></details>"
    )


def show_trace(trace: Trace) -> None:
    """Display the framed page in a Jupyter kernel, or print the trace as text anywhere else."""
    if _in_notebook():
        from IPython.display import HTML, display

        display(HTML(trace_to_frame_html(trace)))
    else:
        print(trace_to_text(trace))


def json_for_script(data: object) -> str:
    """JSON that cannot end its script element: ASCII only, with <, > and & written as escapes.

    >>> json_for_script("</script>")
    '"\\\\u003c/script\\\\u003e"'
    """
    text = json.dumps(data, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def constraint_in_words(constraint: Mapping[str, Any]) -> str:
    """A constraint's dict as one line, leaving out what is unset.

    >>> constraint_in_words({"scale": 1.0, "direction": "both", "alpha_max": 2.0, "budget": None})
    'scale κ = 1, direction = both, greatest weight = 2'
    """
    names = {"scale": "scale κ", "alpha_max": "greatest weight", "budget": "budget (nats)"}
    shown = [f"{names.get(key, key)} = {_in_words(value)}" for key, value in constraint.items() if value is not None]
    return ", ".join(shown) or "none"


def _page_file(name: str) -> str:
    return (resources.files("fusionlab") / "page" / name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _frame_height(trace: Trace) -> int:
    return max(620, min(900, 420 + 34 * (len(trace.text) // 70 + trace.text.count("\n"))))


def _in_notebook() -> bool:
    try:
        from IPython import get_ipython
    except ImportError:
        return False
    shell = get_ipython()
    return shell is not None and hasattr(shell, "kernel")


def _trace_record(trace: Trace) -> dict[str, Any]:
    """Everything the script needs, columnar; numbers rounded to what the page shows."""
    pieces = _Pieces(trace)
    n, e = len(trace), len(trace.experts)
    return {
        "prompt": visible(trace.prompt, newline="\n"),
        "experts": [{"name": visible(name), "letter": expert_letter(i)} for i, name in enumerate(trace.experts)],
        "facts": _facts(trace),
        "scale": trace.constraint.get("scale", 1.0),
        "direction": trace.constraint.get("direction", "both"),
        "ids": trace.token_ids.tolist(),
        "endIds": trace.meta.get("end_ids", []),
        "pieces": [visible(piece, newline="\n") for piece in trace.pieces],
        "groups": [
            [group.start, group.stop, visible(group.text, newline="\n")] for group in group_pieces(trace.pieces, trace.text)
        ],
        "alpha": _rounded(trace.alpha),
        "targetForward": _rounded(trace.target_forward),
        "targetReverse": _rounded(trace.target_reverse),
        "evidence": _rounded(trace.evidence),
        "klForward": _rounded(trace.kl_forward),
        "klReverse": _rounded(trace.kl_reverse),
        "choice": [pieces.index(i) for i in trace.large_choice.tolist()],
        "flippedBy": trace.flipped_by.tolist(),
        "clamped": trace.clamped.tolist(),
        "drafted": trace.drafted.astype(int).tolist(),
        "accepted": trace.accepted.astype(int).tolist(),
        "moved": list(trace.moved_share().values()),
        "distributions": [
            pieces.distribution("Fused", "P̃", trace.topk_ids_fused, trace.topk_logprobs_fused)
            | {"entropy": _rounded(trace.entropy_fused), "emitted": _rounded(trace.logprob_fused)},
            pieces.distribution("Large", "P", trace.topk_ids_large, trace.topk_logprobs_large)
            | {"entropy": _rounded(trace.entropy_large), "emitted": _rounded(trace.logprob_large)},
            pieces.distribution("Small", "Q", trace.topk_ids_small, trace.topk_logprobs_small)
            | {"entropy": _rounded(trace.entropy_small), "emitted": _rounded(trace.logprob_small)},
            *(
                pieces.distribution(
                    visible(trace.experts[i]),
                    "R",
                    trace.topk_ids_experts[:, i],
                    trace.topk_logprobs_experts[:, i],
                )
                | {
                    "entropy": _rounded(trace.entropy_experts[:, i]),
                    "emitted": _rounded(trace.logprob_experts[:, i]),
                    "expert": i,
                }
                for i in range(e)
            ),
        ],
        "vocabulary": pieces.texts,
        "vocabularyIds": pieces.ids,
        "tokens": n,
    }


class _Pieces:
    """Token ids of the top-k lists as indexes into one list of texts, in order of first use."""

    def __init__(self, trace: Trace) -> None:
        self.trace = trace
        self.ids: list[int] = []
        self.texts: list[str] = []
        self._index: dict[int, int] = {}

    def index(self, token_id: int) -> int:
        if token_id not in self._index:
            self._index[token_id] = len(self.ids)
            self.ids.append(token_id)
            self.texts.append(visible(self.trace.topk_pieces[token_id], newline="\n"))
        return self._index[token_id]

    def distribution(self, name: str, symbol: str, ids: Any, logprobs: Any) -> dict[str, Any]:
        return {
            "name": name,
            "symbol": symbol,
            "top": [[self.index(i) for i in row if i >= 0] for row in ids[:, :TOP_SHOWN].tolist()],
            "logprobs": _rounded(logprobs[:, :TOP_SHOWN]),
        }


def _rounded(array: Any) -> Any:
    """Nested lists with 3 decimals; what JSON cannot hold (NaN, infinities) becomes null."""
    if array.ndim > 1:
        return [_rounded(row) for row in array]
    return [round(x, 3) if math.isfinite(x) else None for x in array.tolist()]


def _facts(trace: Trace) -> list[list[str]]:
    facts = [["Method", trace.method], ["Constraint", constraint_in_words(trace.constraint)]]
    facts += [[role.replace("_", " ").capitalize(), words] for role, words in _models(trace.meta.get("models"))]
    if isinstance(sampling := trace.meta.get("sampling"), dict):
        facts.append(["Sampling", _sampling(sampling)])
    for key in ("seed", "versions", "created"):
        if trace.meta.get(key) is not None:
            facts.append([key.capitalize(), _in_words(trace.meta[key])])
    return [[visible(label), visible(words)] for label, words in facts]


def _sampling(sampling: Mapping[str, Any]) -> str:
    """How tokens were chosen; a limit that keeps every token is left out."""
    if not sampling.get("do_sample", True):
        return "greedy"
    idle = {"top_k": 0, "top_p": 1.0}
    return _in_words({k.replace("_", "-"): v for k, v in sampling.items() if k != "do_sample" and idle.get(k) != v})


def _short(value: str) -> str:
    """A commit or digest as its first 12 characters; anything else whole."""
    return value[:12] if re.fullmatch("[0-9a-f]{13,}", value) else value


def _models(models: object, prefix: str = "") -> list[tuple[str, str]]:
    if not isinstance(models, dict):
        return []
    found = []
    for role, entry in models.items():
        if isinstance(entry, dict) and not isinstance(entry.get("id"), str):
            found += _models(entry, "Expert " if role == "experts" else f"{role} ")
        elif isinstance(entry, dict):
            details = [_short(str(entry[k])) for k in ("revision", "dtype", "quantization") if entry.get(k)]
            found.append((prefix + role, " · ".join([entry["id"], *details])))
        else:
            found.append((prefix + role, _in_words(entry)))
    return found


def _in_words(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {_in_words(entry)}" for key, entry in value.items() if entry not in (None, {}))
    return f"{value:g}" if isinstance(value, float) else str(value)

"""A trace as HTML that needs no script: the emitted text with flips marked, and a table of its tokens.

It stands in every page and notebook output until the script takes its place, and stays where scripts do not run. All
model text passes through `visible` and `html.escape`.
"""

from __future__ import annotations

import html
from collections.abc import Sequence

from fusionlab.trace import Trace
from fusionlab.trace_text import END, expert_letter, groups_with_movers, visible

_HUES, _DEPTHS = 8, 4  # classes x0..x7 and s1..s4 of page/static.css


def static_html(traces: Sequence[Trace]) -> str:
    """Prompt, strip and table of each trace, as one fragment without scripts, styles or addresses."""
    return "".join(
        f'<section class="fusion-static" id="static-{i}">{_section(trace)}</section>' for i, trace in enumerate(traces)
    )


def _section(trace: Trace) -> str:
    return "".join([
        f"<pre>{_text(trace.prompt, newline=chr(10))}</pre>",
        f'<p class="strip">{_strip(trace)}</p>',
        f"<p>{_legend(trace)}</p>",
        f"<details><summary>{len(trace)} tokens as a table</summary>{_table(trace)}</details>",
    ])  # fmt: skip


def _strip(trace: Trace) -> str:
    greatest = max(0.05, float(trace.alpha.max(initial=0.0)))
    ends = trace.ends_turn
    parts = []
    for group, strong, flipper in groups_with_movers(trace):
        text = _text(END if ends[group.start] else group.text, newline="⏎\n")
        if flipper is not None:
            text = f"<u>{text}</u><sup>▲{expert_letter(flipper)}</sup>"
        share = float(trace.alpha[strong].max(initial=0.0)) / greatest
        depth = min(_DEPTHS, int(share * _DEPTHS + 0.999)) if share >= 0.005 else 0
        kind = f' class="x{int(trace.alpha[strong].argmax()) % _HUES} s{depth}"' if depth else ""
        parts.append(f"<b{kind}>{text}</b>")
    return "".join(parts) or "No token was emitted."


def _legend(trace: Trace) -> str:
    if not trace.experts:
        return "No experts: this is the large model alone."
    moved = [
        f"{expert_letter(e)} = {_text(name)}: mean weight {share['mean_alpha']:.2f}, {share['flipped']:.0%} flipped"
        for e, (name, share) in enumerate(trace.moved_share().items())
    ]
    return f"{'; '.join(moved)}. ▲ = flipped: the large model alone would choose otherwise."


def _table(trace: Trace) -> str:
    names = "".join(f"<th>{_text(name)}</th>" for name in trace.experts)
    head = f"<tr><th></th><th>token</th>{names}<th>KL(P̃‖P)</th><th>large model’s choice</th></tr>"
    rows = []
    for i, label in enumerate(trace.labels()):
        weights = "".join(f"<td>{weight:.2f}</td>" for weight in trace.alpha[i].tolist())
        choice = _text(trace.topk_pieces[int(trace.large_choice[i])]) if trace.flipped[i] else "the same"
        cells = f"<td>{i + 1}</td><td>{html.escape(label)}</td>{weights}<td>{trace.kl_forward[i]:.2f}</td><td>{choice}</td>"
        rows.append(f"<tr>{cells}</tr>")
    return f"<table>{head}{''.join(rows)}</table>"


def _text(text: str, *, newline: str = "⏎") -> str:
    return html.escape(visible(text, newline=newline))

"""The report's pictures of weights by token: which items, under which runs, read from the traces that runs kept."""

from __future__ import annotations

import json
from collections.abc import Sequence
from html import escape
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from fusionlab.errors import FusionError
from fusionlab.experiments import charts
from fusionlab.experiments.recording import TRACES
from fusionlab.experiments.report_data import Group, ReportData, ReportOptions
from fusionlab.experiments.store import Store

MOST_ITEMS, MOST_BLOCKS = 3, 6


def weights_section(store: Store, data: ReportData, options: ReportOptions) -> str:
    """Weights of a few items under several groups: those that were asked for, else those whose score differs most."""
    found = [(group, traces) for group in data.groups if (traces := read_traces(store, group.keys[0]))]
    if not found:
        return ""
    scores = {item for _, traces in found for item in traces}
    chosen = [item for item in options.items if item in scores] or telling_items(found)[:MOST_ITEMS]
    drawn = []
    for item in chosen:
        rows = [(group.label(), traces[item]) for group, traces in found if item in traces and traces[item].experts]
        if rows:
            prompt = rows[0][1].prompt.strip().splitlines()
            caption = f"{item}: {' '.join(prompt)[-200:]}" if prompt else item
            drawn.append(f'<figure><figcaption>{escape(charts.printable(caption))}</figcaption><div class="scroll">'
                         f"{charts.weight_strip(rows[:MOST_BLOCKS])}</div></figure>")  # fmt: skip
    note = (
        "Rows are experts, columns tokens; darker is a greater weight, ▲ marks a token that the expert turned away from "
        "the large model's choice."
    )
    if not options.items:
        note += " Shown are the items whose scores differ most between runs."
    return f"<p>{note}</p>{''.join(drawn)}" if drawn else ""


def read_traces(store: Store, key: str) -> dict[str, Any]:
    """Item -> trace of a run, {} where it kept none or they cannot be read any more."""
    from fusionlab.trace import load_traces

    found: dict[str, Any] = {}
    place = f"runs/{key}/{TRACES}"
    for name in [name for name in store.list_files(place) if name.endswith(".parquet")]:
        with TemporaryDirectory() as folder:
            copy = Path(folder) / "traces.parquet"
            copy.write_bytes(store.read_bytes(f"{place}/{name}"))
            try:
                traces = load_traces(copy)
            except FusionError:  # of another version: the rest of the report is worth having
                continue
        beside = f"{place}/{name.removesuffix('.parquet')}.json"
        items = [f"{name} {place}" for place in range(len(traces))]
        if store.exists(beside):
            items = json.loads(store.read_bytes(beside))
        found |= dict(zip(items, traces, strict=False))
    return found


def telling_items(found: Sequence[tuple[Group, dict[str, Any]]]) -> list[str]:
    """Items in the order of how much their score differs between groups; first come, first served where it does not."""
    spread: dict[str, float] = {}
    for item in dict.fromkeys(item for _, traces in found for item in traces):
        known = [group.scores for group, _ in found if group.scores is not None]
        scores = [float(some[item]) for some in known if item in some.index]
        spread[item] = max(scores) - min(scores) if scores else 0.0
    return sorted(spread, key=lambda item: -spread[item])

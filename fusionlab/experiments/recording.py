"""What a notebook calls to leave its results: fields, a table of items, traces.

    from fusionlab.experiments import record, record_items, record_traces
    record(score=0.43, items=40)

Fields travel as display data of the notebook itself, so an executed copy carries its results wherever it goes, to a worker
without a shared disk too, and in JupyterLab `record` just shows them. Tables and traces are files beside the notebook.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fusionlab.errors import NotebookError

if TYPE_CHECKING:
    import pandas as pd

    from fusionlab.trace import Trace

MIME = "application/vnd.fusionlab.record+json"
FOLDER_VARIABLE = "FUSIONLAB_RUN_FOLDER"
ITEMS, TRACES = "items.parquet", "traces"


def record(**fields: Any) -> None:
    """Record results of this run: each field becomes a column of the sweep's table. A later value replaces an earlier one.

    >>> record(score=0.43, method="exact")                                   # doctest: +SKIP

    fields: numbers (NumPy's too), text, booleans, None; lists and mappings are stored as JSON text. Raises NotebookError.
    """
    from IPython.display import display

    plain = {name: plain_value(name, value) for name, value in fields.items()}
    text = ", ".join(f"{name} = {value}" for name, value in plain.items())
    display({MIME: {name: to_json(value) for name, value in plain.items()}, "text/plain": f"recorded: {text}"}, raw=True)


def record_items(rows: pd.DataFrame | Sequence[Mapping[str, Any]]) -> Path:
    """Record one row per item of this run, with the columns `item` and `score`; what compares runs pairs them by `item`.

    Further columns (output, gold, seconds) are kept and shown where items changed. Returns the file. Raises NotebookError.
    """
    import pandas as pd

    frame = rows if isinstance(rows, pd.DataFrame) else pd.DataFrame(list(rows))
    missing = [name for name in ("item", "score") if name not in frame.columns]
    if missing:
        raise NotebookError(f"record_items received columns {list(frame.columns)}", remedy=f"add {', '.join(missing)}")
    if frame["item"].duplicated().any():
        twice = frame.loc[frame["item"].duplicated(), "item"].iloc[0]
        raise NotebookError(f"record_items received item {twice!r} twice", remedy="give one row per item")
    frame = frame.assign(item=frame["item"].astype(str), score=frame["score"].astype(float))
    path = run_folder() / ITEMS
    frame.to_parquet(path, index=False)
    return path


def record_traces(traces: Sequence[Trace], *, items: Sequence[str] | None = None, name: str = "traces") -> Path:
    """Keep traces of this run, for the heatmaps of the report and for the explorer. Returns the file.

    items: their item ids, in the same order. name: of the file, letters, digits, - and _. Raises NotebookError.
    """
    from fusionlab.trace import save_traces

    if not re.fullmatch(r"[A-Za-z0-9_-]{1,64}", name):
        raise NotebookError(f"record_traces received the name {name!r}", remedy="use letters, digits, - and _")
    if items is not None and len(items) != len(traces):
        raise NotebookError(f"record_traces received {len(traces)} traces and {len(items)} items", remedy="give one each")
    folder = run_folder() / TRACES
    folder.mkdir(exist_ok=True)
    path = folder / f"{name}.parquet"
    save_traces(traces, path)
    if items is not None:
        path.with_suffix(".json").write_text(json.dumps([str(item) for item in items]), encoding="utf-8")
    return path


def run_folder() -> Path:
    """Where files of this run go: the run's own folder in a sweep, `runs/interactive` elsewhere."""
    folder = Path(os.environ.get(FOLDER_VARIABLE) or "runs/interactive")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


# -- values --------------------------------------------------------------------------------------


def plain_value(name: str, value: Any) -> Any:
    """A value without NumPy or torch: numbers, text, booleans, None, and JSON text for lists and mappings."""
    if hasattr(value, "item") and getattr(value, "ndim", 0) == 0:
        value = value.item()
    if hasattr(value, "tolist"):
        value = value.tolist()
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, list | tuple | dict):
        try:
            return json.dumps(value, ensure_ascii=False)
        except (TypeError, ValueError):
            pass
    raise NotebookError(f"record received {name} = a {type(value).__name__}",
                        remedy="pass a number, text, a boolean, None, or a list or mapping of these")  # fmt: skip


def to_json(value: Any) -> Any:
    """JSON has no NaN and no infinity; those travel as {"float": "nan"}."""
    return {"float": repr(value)} if isinstance(value, float) and not math.isfinite(value) else value


def from_json(value: Any) -> Any:
    """The inverse of `to_json`."""
    return float(value["float"]) if isinstance(value, dict) and value.keys() == {"float"} else value


def recorded_fields(notebook: Any) -> dict[str, Any]:
    """The fields that an executed notebook (an nbformat node) recorded, in order, the last value of each."""
    fields: dict[str, Any] = {}
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            stored = output.get("data", {}).get(MIME)
            if isinstance(stored, dict):
                fields |= {str(name): from_json(value) for name, value in stored.items()}
    return fields

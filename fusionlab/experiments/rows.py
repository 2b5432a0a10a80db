"""One run as one row: base columns, a column per parameter, a column per recorded field, in a Parquet file of its own.

Names: base columns win. A parameter that is called like one becomes `parameter_<name>`, a recorded field that is called
like one of either becomes `result_<name>`. Values: numbers, text and booleans as they are, lists and mappings as JSON text,
so that a column has one type whatever the runs hold.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fusionlab.experiments.store import ROW

if TYPE_CHECKING:
    import pyarrow as pa

META = b"fusionlab.run"
BASE = {  # column -> its type
    "key": "string", "index": "int64", "notebook": "string", "status": "string", "seconds": "float64", "started": "string",
    "machinery_seconds": "float64", "host": "string", "worker": "string", "kernel": "string", "attempt": "string",
    "session": "string", "tries": "int64", "team": "string", "team_loads": "int64", "team_load_seconds": "float64",
    "error": "string", "code": "string", "models": "string",
}  # fmt: skip


def build_row(columns: Mapping[str, Any], values: Mapping[str, Any], fields: Mapping[str, Any], *,
              given: Sequence[str] = ()) -> pa.Table:  # fmt: skip
    """A table of one row; its schema's metadata says which column is what. given: the parameters that the sweep set."""
    import pyarrow as pa

    cells: dict[str, tuple[Any, str]] = {name: (columns.get(name), kind) for name, kind in BASE.items()}
    roles: dict[str, dict[str, str]] = {"parameters": {}, "fields": {}}
    for name, value in values.items():
        column = name if name not in cells else f"parameter_{name}"
        roles["parameters"][column] = name
        cells[column] = as_cell(value)
    for name, value in fields.items():
        column = name if name not in cells else f"result_{name}"
        roles["fields"][column] = name
        cells[column] = as_cell(value)
    about = {**roles, "given": list(given)}
    schema = pa.schema([(name, pa.type_for_alias(kind)) for name, (_, kind) in cells.items()],
                       metadata={META: json.dumps(about)})  # fmt: skip
    return pa.Table.from_pydict({name: [value] for name, (value, _) in cells.items()}, schema)


def as_cell(value: Any) -> tuple[Any, str]:
    """A value and its column type."""
    if isinstance(value, bool):
        return value, "bool"
    if isinstance(value, int):
        return (value, "int64") if -(2**63) <= value < 2**63 else (float(value), "float64")
    if isinstance(value, float):
        return value, "float64"
    if value is None or isinstance(value, str):
        return value, "string" if value is not None else "null"
    return json.dumps(value, ensure_ascii=False, sort_keys=True), "string"


def write_row(row: pa.Table, folder: Path) -> None:
    """Write row.parquet into a run's folder."""
    import pyarrow.parquet as pq

    pq.write_table(row, folder / ROW, compression="none", write_statistics=False)

"""Traces on disk: a Parquet file with one row per token, and run-level fields as JSON in the schema metadata.

Columns: `trace` and `position`, the fields of `ARRAYS`, the two grid tables and `TABLE_ARRAYS` (lists per row where a
field has more than one dimension), `piece`, and `topk_pieces`, a map from each id that occurs in the row to its
text, so that a row can be read by itself, in SQL for instance:
`SELECT piece, alpha, topk_pieces[large_choice] FROM 'answer.parquet' WHERE flipped`.
Pages and header carry checksums, so a damaged byte is noticed.
"""

from __future__ import annotations

import hashlib
import json
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fusionlab.atomic_file import write_atomically
from fusionlab.errors import CorruptFileError, MissingFileError, TraceError
from fusionlab.trace import ARRAYS, GRID_ARRAYS, REST_WEIGHTS, TABLE_ARRAYS, Trace
from fusionlab.trace_fields import even_grid, last_size

if TYPE_CHECKING:
    import pyarrow as pa

TRACE_VERSION = 2  # 1 had no TABLE_ARRAYS; it is still read
READABLE = (1, 2)
VERSION_KEY, RUNS_KEY, SUM_KEY = b"fusionlab.trace_version", b"fusionlab.traces", b"fusionlab.traces_sha256"
RUN_FIELDS = ("prompt", "text", "experts", "method", "constraint", "level", "meta")


def write_traces(traces: list[Trace], path: str | PathLike[str]) -> None:
    """Write `traces` to `path`; an existing file is replaced only once the new one is whole."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    runs = json.dumps([_run_record(trace) for trace in traces]).encode()
    table = pa.concat_tables([_token_table(i, trace) for i, trace in enumerate(traces)] or [_empty_table()])
    header = {VERSION_KEY: str(TRACE_VERSION).encode(), RUNS_KEY: runs, SUM_KEY: _sha256(runs)}
    table = table.replace_schema_metadata(header)
    write_atomically(
        path,
        lambda draft: pq.write_table(table, draft, compression="zstd", write_page_checksum=True),
        make_folders=False,
    )


def read_traces(path: str | PathLike[str]) -> list[Trace]:
    """Read every trace of `path`; see `fusionlab.trace.load_traces`."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    if not Path(path).is_file():
        raise MissingFileError(f"there is no trace file at {path}", remedy="check the path")
    try:
        file = pq.ParquetFile(path, page_checksum_verification=True)
        metadata = file.schema_arrow.metadata or {}
        version, runs = _version_and_runs(metadata, path)
        table = file.read()
        if not table.schema.equals(_schema(version)):
            raise ValueError("its columns are not those of a trace")
    except (pa.ArrowException, OSError, ValueError) as error:
        raise CorruptFileError(
            f"{path} is not a whole Parquet file: {error}", remedy="copy it again, or record the trace again"
        ) from error
    rows = [run["tokens"] for run in runs]
    if sum(rows) != table.num_rows:
        raise CorruptFileError(f"{path} should hold {sum(rows)} tokens, found {table.num_rows}")
    starts = [sum(rows[:i]) for i in range(len(rows))]
    return [_trace_of(run, table.slice(s, run["tokens"]), path) for run, s in zip(runs, starts, strict=True)]


def _version_and_runs(metadata: dict[bytes, bytes], path: str | PathLike[str]) -> tuple[int, list[dict[str, Any]]]:
    version = metadata.get(VERSION_KEY)
    if version is None or RUNS_KEY not in metadata:
        raise TraceError(f"{path} is a Parquet file, but not a trace", remedy="pass a file that Trace.save wrote")
    if version not in [str(known).encode() for known in READABLE]:
        raise TraceError(
            f"{path} is a trace of version {version.decode(errors='replace')}, this is a reader of version {TRACE_VERSION}",
            remedy="read it with the fusionlab release that wrote it, or record the trace again",
        )
    if metadata.get(SUM_KEY) != _sha256(metadata[RUNS_KEY]):
        raise CorruptFileError(f"{path} has a damaged header", remedy="copy it again, or record the trace again")
    return int(version), list(json.loads(metadata[RUNS_KEY]))


def _sha256(data: bytes) -> bytes:
    return hashlib.sha256(data).hexdigest().encode()


def _run_record(trace: Trace) -> dict[str, Any]:
    record: dict[str, Any] = {name: getattr(trace, name) for name in RUN_FIELDS}
    record["tokens"], record["top_k"] = len(trace), trace.topk_ids_large.shape[1]
    record["grid"] = None if trace.grid is None else [float(a) for a in trace.grid]  # float32 -> float64 is exact
    if trace.has_tables:
        record["candidates"], record["atoms"] = last_size(trace.candidate_ids), last_size(trace.atom_logprobs)
    return record


def _stored_arrays(version: int = TRACE_VERSION) -> dict[str, tuple[str, str]]:
    tables = {name: spec for name, spec in GRID_ARRAYS.items() if name != "grid"}
    return ARRAYS | tables | (TABLE_ARRAYS if version > 1 else {})


def _schema(version: int = TRACE_VERSION) -> pa.Schema:
    import pyarrow as pa

    columns = [("trace", pa.int32()), ("position", pa.int32()), ("piece", pa.string())]
    for name, (dims, dtype) in _stored_arrays(version).items():
        kind = pa.from_numpy_dtype(dtype)
        for _ in dims[1:]:
            kind = pa.list_(kind)
        columns.append((name, kind))
    columns.append(("topk_pieces", pa.map_(pa.int32(), pa.string())))
    return pa.schema(columns)


def _empty_table() -> pa.Table:
    return _schema().empty_table()


def _token_table(index: int, trace: Trace) -> pa.Table:
    import numpy as np
    import pyarrow as pa

    n = len(trace)
    columns: dict[str, Any] = {
        "trace": np.full(n, index, np.int32),
        "position": np.arange(n, dtype=np.int32),
        "piece": pa.array(trace.pieces, pa.string()),
    }
    for name in _stored_arrays():
        array = getattr(trace, name)
        columns[name] = pa.nulls(n, _schema().field(name).type) if array is None else _nested_lists(array)
    columns["topk_pieces"] = _row_pieces(trace)
    return pa.table(columns, schema=_schema())


def _nested_lists(array: Any) -> pa.Array:
    """(N, E, K) numbers -> N lists of E lists of K; exact, NaN stays NaN."""
    import numpy as np
    import pyarrow as pa

    nested = pa.array(array.ravel())
    for axis in range(array.ndim - 1, 0, -1):
        count = int(np.prod(array.shape[:axis]))
        offsets = np.arange(count + 1, dtype=np.int32) * array.shape[axis]
        nested = pa.ListArray.from_arrays(offsets, nested)
    return nested


def _row_pieces(trace: Trace) -> pa.Array:
    import numpy as np
    import pyarrow as pa

    n = len(trace)
    per_row = [ids.reshape(n, -1) if n else ids.reshape(0, 0) for ids in trace._topk_ids()]
    used: Any = np.concatenate([trace.large_choice[:, None], *per_row], axis=1) if n else []
    rows = [np.unique(row[row >= 0]) for row in used]
    keys = np.concatenate(rows) if rows else np.empty(0, np.int32)
    offsets = np.cumsum([0, *(len(row) for row in rows)]).astype(np.int32)
    texts = pa.array([trace.topk_pieces[int(i)] for i in keys], pa.string())
    return pa.MapArray.from_arrays(offsets, pa.array(keys, pa.int32()), texts)


def _trace_of(run: dict[str, Any], table: pa.Table, path: str | PathLike[str]) -> Trace:
    import numpy as np

    try:
        sizes = {"N": run["tokens"], "E": len(run["experts"]), "K": run["top_k"], "G": len(run["grid"] or [])}
        sizes["H"] = len(even_grid(run["grid"] or [], sizes["E"]))
        sizes |= {"C": run.get("candidates", 0), "S": len(REST_WEIGHTS), "M": run.get("atoms", 0)}
        arrays: dict[str, Any] = {}
        for name, (dims, dtype) in _stored_arrays().items():
            if (run["grid"] is None and name in GRID_ARRAYS) or ("candidates" not in run and name in TABLE_ARRAYS):
                arrays[name] = None
                continue
            column = table[name].combine_chunks()
            for _ in dims[1:]:
                column = column.flatten()
            numbers = column.to_numpy(zero_copy_only=False).astype(dtype, copy=False)
            arrays[name] = numbers.reshape(tuple(sizes[d] for d in dims))
        pieces = table["topk_pieces"].combine_chunks()
        flat = [] if len(pieces) == 0 else [pair for row in pieces.to_pylist() for pair in row]
        grid = None if run["grid"] is None else np.array(run["grid"], np.float32)
        return Trace(
            **{name: run[name] for name in RUN_FIELDS},
            **arrays,
            grid=grid,
            pieces=tuple(table["piece"].to_pylist()),
            topk_pieces=dict(flat),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise CorruptFileError(
            f"{path} has columns that do not fit its header: {error!r}", remedy="record the trace again"
        ) from error

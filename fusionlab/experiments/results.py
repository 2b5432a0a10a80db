"""All runs of a store as one table, and SQL over it.

Every finished run has a row file of its own, which never changes; they are gathered into `runs.parquet`, so that a
thousand runs are read as one file and only what is new is read singly. That file is a cache: without it everything is
read again.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from io import BytesIO
from typing import TYPE_CHECKING, Any

from fusionlab.errors import CorruptFileError, FusionError, MissingFileError, MissingPackageError, OutputError, SweepError
from fusionlab.experiments.rows import BASE, META
from fusionlab.experiments.store import ROW, Store

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

GATHERED = "runs.parquet"
GATHER_FROM = 20  # new rows that are worth writing the gathered file again


@dataclass(frozen=True)
class RunTable:
    """rows: base columns, parameters, fields; sorted by their place in the sweep. parameters, fields: column -> name.

    given: names of the parameters that a sweep set.
    """

    rows: pa.Table
    parameters: Mapping[str, str] = field(default_factory=dict)
    fields: Mapping[str, str] = field(default_factory=dict)
    given: Sequence[str] = ()

    def to_frame(self) -> pd.DataFrame:
        """As pandas, None where a run has no value."""
        return self.rows.to_pandas()


def read_runs(store: Store, keys: Iterable[str] | None = None) -> RunTable:
    """Every run of a store, finished or failed, one row each. keys: of some only.

    >>> read_runs(open_store("runs/kl")).to_frame()                              # doctest: +SKIP

    Raises MissingFileError where there is none, CorruptFileError.
    """
    wanted = None if keys is None else set(keys)
    finished = store.finished()
    gathered, unread = read_gathered(store, finished)
    new = read_rows(store, [f"runs/{key}" for key in sorted(unread)])
    if len(new) >= GATHER_FROM or (new and gathered is None):
        gathered, new = combine([*([gathered] if gathered is not None else []), *new]), []
        with suppress(OutputError):  # a folder that may only be read is no reason not to read it
            write_gathered(store, gathered)
    places = [f"failed/{name}" for _, name in sorted(store.failed().items())]
    failures = read_rows(store, places, gone=True)  # a failure is removed once its run succeeds, on a worker too
    parts = [*([gathered] if gathered is not None else []), *new, *failures]
    if not parts:
        raise MissingFileError(f"{store} holds no run", remedy="name the --out folder of a sweep")
    table = combine(parts)
    if wanted is not None:
        import pyarrow.compute as pc

        table = table.filter(pc.is_in(table["key"], value_set=_strings(wanted)))
    about = about_of(table)
    table = table.sort_by([("index", "ascending"), ("started", "ascending")])
    return RunTable(table, about["parameters"], about["fields"], about["given"])


def _strings(values: Iterable[str]) -> Any:
    import pyarrow as pa

    return pa.array(sorted(values), pa.string())


def read_rows(store: Store, places: Sequence[str], *, gone: bool = False) -> list[pa.Table]:
    """The rows of some runs, by their folders' names in the store. gone: leave out those that are no longer there.

    Raises CorruptFileError.
    """

    def read(place: str) -> pa.Table | None:
        try:
            return read_row(store, place)
        except CorruptFileError as error:
            if gone and isinstance(error.__cause__, FileNotFoundError):
                return None
            raise

    with ThreadPoolExecutor(8) as pool:
        return [row for row in pool.map(read, places) if row is not None]


def read_row(store: Store, place: str) -> pa.Table:
    """One run's row. Raises CorruptFileError."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(BytesIO(store.read_bytes(f"{place}/{ROW}")))
        about_of(table)
        return table
    except (OSError, pa.ArrowException, KeyError, ValueError) as error:
        raise CorruptFileError(f"{store}/{place}/{ROW} is damaged: {str(error).splitlines()[0]:.120}",
                               remedy="remove that run's folder and give the sweep's command again") from error  # fmt: skip


def read_gathered(store: Store, finished: set[str]) -> tuple[pa.Table | None, set[str]]:
    """The gathered rows that still stand for a run, and the keys of the runs that are not among them."""
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(BytesIO(store.read_bytes(GATHERED)), page_checksum_verification=True)
        about_of(table)
    except (OSError, pa.ArrowException, KeyError, ValueError):  # a cache: whatever is wrong with it, make it anew
        return None, finished
    table = table.filter(pc.is_in(table["key"], value_set=_strings(finished)))
    return table, finished - set(table["key"].to_pylist())


def write_gathered(store: Store, table: pa.Table) -> None:
    """Keep the gathered rows. Raises OutputError."""
    import pyarrow.parquet as pq

    buffer = BytesIO()
    pq.write_table(table, buffer, compression="zstd", write_page_checksum=True)
    store.write_bytes(GATHERED, buffer.getvalue())


def gather(store: Store) -> None:
    """Gather what is new now, e.g. every hundred runs, so that no later reader has to; what is amiss waits for a reader."""
    with suppress(FusionError):
        read_runs(store)


def about_of(table: pa.Table) -> dict[str, Any]:
    """Which columns are parameters and fields. Raises KeyError for a table that is none of runs."""
    about: dict[str, Any] = json.loads((table.schema.metadata or {})[META])
    return about


def combine(tables: Sequence[pa.Table]) -> pa.Table:
    """Tables of runs below each other; a column that some lack is null there, types that differ meet in float or text."""
    import pyarrow as pa

    kinds: dict[str, list[Any]] = {}
    about: dict[str, Any] = {"parameters": {}, "fields": {}, "given": []}
    for schema in {table.schema.serialize().to_pybytes(): table.schema for table in tables}.values():
        for column in schema:
            known = kinds.setdefault(column.name, [])
            if column.type not in known:
                known.append(column.type)
        stored = json.loads(schema.metadata[META])
        about["parameters"] |= stored["parameters"]
        about["fields"] |= stored["fields"]
        about["given"] += [name for name in stored["given"] if name not in about["given"]]
    order = [*BASE, *about["parameters"], *about["fields"]]
    names = [*dict.fromkeys(name for name in order if name in kinds), *(name for name in kinds if name not in order)]
    schema = pa.schema([(name, meeting_type(kinds[name])) for name in names], metadata={META: json.dumps(about)})
    return pa.concat_tables([fit(table, schema) for table in tables]).combine_chunks()


def meeting_type(kinds: Sequence[Any]) -> Any:
    """The type that values of all these types fit in."""
    import pyarrow as pa

    real = [kind for kind in kinds if not pa.types.is_null(kind)]
    if len(real) <= 1:
        return real[0] if real else pa.null()
    if all(pa.types.is_integer(kind) or pa.types.is_floating(kind) for kind in real):
        return pa.float64()
    return pa.string()


def fit(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """A table in another schema: columns added as nulls, types changed."""
    import pyarrow as pa

    columns = []
    for column in schema:
        if column.name not in table.column_names:
            columns.append(pa.nulls(table.num_rows, column.type))
            continue
        values = table[column.name]
        if values.type == column.type:
            columns.append(values)
        elif pa.types.is_string(column.type) and not pa.types.is_null(values.type):
            columns.append(pa.array([None if v is None else json.dumps(v) for v in values.to_pylist()], pa.string()))
        else:
            columns.append(values.cast(column.type))
    return pa.Table.from_arrays(columns, schema=schema)


# -- SQL -----------------------------------------------------------------------------------------


def query(store: Store, sql: str) -> pd.DataFrame:
    """What DuckDB answers over the tables `runs` and `sessions`.

    >>> query(open_store("runs/kl"), "SELECT kl_scale, avg(score) FROM runs GROUP BY ALL")           # doctest: +SKIP

    The query reads these tables and nothing else: neither files nor the network. Raises SweepError with DuckDB's words,
    MissingFileError, MissingPackageError.
    """
    return query_tables({"runs": read_runs(store).rows, "sessions": sessions_table(store)}, sql)


def query_tables(tables: Mapping[str, pa.Table], sql: str) -> pd.DataFrame:
    """What DuckDB answers over some tables; see `query`."""
    try:
        import duckdb
    except ImportError as error:
        raise MissingPackageError("SQL needs duckdb", remedy="pip install 'fusionlab[lab]'") from error
    with duckdb.connect() as connection:
        for name, table in tables.items():
            connection.register(f"given_{name}", without_null_columns(table))
            connection.execute(f"CREATE TABLE {name} AS SELECT * FROM given_{name}")
        connection.execute("SET enable_external_access = false")
        connection.execute("SET lock_configuration = true")
        try:
            answer = connection.execute(sql)
            if answer is None or answer.description is None:
                raise SweepError(f"{sql!r} asks nothing", remedy='write a query, e.g. "SELECT * FROM runs"')
            return answer.df()
        except duckdb.Error as error:
            raise SweepError(str(error).strip().replace("\n", " "), remedy="tables: runs, sessions") from None


def without_null_columns(table: pa.Table) -> pa.Table:
    """Columns that hold no value at all as text, since SQL has no type without one."""
    import pyarrow as pa

    for place, column in enumerate(table.schema):
        if pa.types.is_null(column.type):
            table = table.set_column(place, column.name, pa.nulls(table.num_rows, pa.string()))
    return table


def sessions_table(store: Store) -> pa.Table:
    """One row per invocation: session, started, command, code, git commit, host."""
    import pyarrow as pa

    rows = [{"session": manifest.get("session"), "started": manifest.get("started"), "command": manifest.get("command"),
             "code": manifest.get("code"), "commit": (manifest.get("git") or {}).get("commit"),
             "changed": (manifest.get("git") or {}).get("changed"), "host": (manifest.get("hardware") or {}).get("host")}
            for manifest in store.manifests()]  # fmt: skip
    schema = pa.schema([(name, pa.bool_() if name == "changed" else pa.string()) for name in
                        ("session", "started", "command", "code", "commit", "changed", "host")])  # fmt: skip
    return pa.Table.from_pylist(rows, schema)

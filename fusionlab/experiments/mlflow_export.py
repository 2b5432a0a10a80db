"""`fusionlab results DIR --mlflow ADDRESS`: the runs of a sweep in a store of MLflow's, for those who look at them there.

An experiment per sweep folder, a run per attempt: parameters, numbers that were recorded as metrics, everything else as
tags. Written again it adds what is new; a run whose export was cut short is replaced. Files stay in the sweep's folder,
whose place is a tag. Needs the extra `mlflow`.
"""

from __future__ import annotations

import datetime
import math
import os
from typing import TYPE_CHECKING, Any

from fusionlab.errors import MissingPackageError, SweepError
from fusionlab.experiments.execution import OK
from fusionlab.experiments.results import RunTable, read_runs
from fusionlab.experiments.rows import BASE

if TYPE_CHECKING:
    from fusionlab.experiments.store import Store

ATTEMPT = "fusionlab.attempt"  # the tag by which a run is known again
MOST_TEXT = 5000  # characters of a value; MLflow's databases take no more


def export_runs(store: Store, address: str) -> tuple[int, int]:
    """Write a store's runs into MLflow; how many were written, and how many were there before.

    address: of an MLflow store, e.g. "sqlite:///mlflow.db", or of a server. Raises MissingPackageError, SweepError where
    MLflow refuses, and what `read_runs` raises.
    """
    table = read_runs(store)
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    try:
        import alembic  # noqa: F401  # with SQLAlchemy what its databases need
        from mlflow import MlflowClient
        from mlflow.exceptions import MlflowException
    except ImportError as error:
        raise MissingPackageError(f"the export needs {error.name}", remedy="pip install 'fusionlab[mlflow]'") from error
    try:
        client = MlflowClient(tracking_uri=address)
        found = client.get_experiment_by_name(str(store))
        experiment = client.create_experiment(str(store)) if found is None else found.experiment_id
        known = known_attempts(client, experiment)
        rows = [row for row in table.rows.to_pylist() if row["attempt"] not in known]
        for row in rows:
            write_run(client, experiment, table, row, place=str(store))
    except MlflowException as error:
        raise SweepError(f"MLflow at {address}: {str(error).splitlines()[0]:.300}",
                         remedy="give e.g. --mlflow sqlite:///mlflow.db") from error  # fmt: skip
    return len(rows), len(table.rows) - len(rows)


def known_attempts(client: Any, experiment: str) -> set[str]:
    """The attempts that an experiment holds whole; the others are deleted."""
    known, token = set(), None
    while True:
        page = client.search_runs([experiment], page_token=token, max_results=1000)
        for run in page:
            if run.info.status == "RUNNING":
                client.delete_run(run.info.run_id)
            else:
                known.add(run.data.tags.get(ATTEMPT, ""))
        token = page.token
        if not token:
            return known


def write_run(client: Any, experiment: str, table: RunTable, row: dict[str, Any], *, place: str) -> None:
    """One row as one run of MLflow."""
    from mlflow.entities import Metric, Param, RunTag

    started = round(datetime.datetime.fromisoformat(row["started"]).timestamp() * 1000)
    ended = started + round(1000 * (row["seconds"] or 0))
    fields = {name: row[column] for column, name in table.fields.items() if row[column] is not None}
    numbers = {name: float(value) for name, value in fields.items()
               if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)}  # fmt: skip
    numbers |= {
        f"fusionlab.{name}": float(row[name]) for name in ("seconds", "tries", "team_loads") if row[name] is not None
    }
    texts = {name: value for name, value in fields.items() if name not in numbers}
    texts |= {f"fusionlab.{name}": row[name] for name in BASE
              if row[name] is not None and f"fusionlab.{name}" not in numbers}  # fmt: skip
    texts["fusionlab.place"] = place
    parameters = {name: row[column] for column, name in table.parameters.items() if row[column] is not None}
    run = client.create_run(experiment, start_time=started, run_name=f"{row['notebook']} {row['key'][:8]}")
    client.log_batch(
        run.info.run_id,
        metrics=[Metric(name, value, ended, 0) for name, value in numbers.items()],
        params=[Param(name, str(value)[:MOST_TEXT]) for name, value in parameters.items()],
        tags=[RunTag(name, str(value)[:MOST_TEXT]) for name, value in texts.items()],
    )
    client.set_terminated(run.info.run_id, "FINISHED" if row["status"] == OK else "FAILED", end_time=ended)

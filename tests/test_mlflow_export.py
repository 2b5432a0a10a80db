"""The runs of a sweep in a database of MLflow's: what is there, once, and what is said where it cannot be."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from store_factory import make_runs, write_run

from fusionlab.errors import MissingPackageError, SweepError
from fusionlab.experiments.mlflow_export import ATTEMPT, export_runs
from fusionlab.experiments.store import Store


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """Two runs that finished and one that failed."""
    made = Store(tmp_path / "sweep")
    made.create()
    first, second, third = make_runs([{"kl_scale": scale, "name": "a/'b\"", "budget": None} for scale in (0.5, 1.0, 2.0)])
    write_run(made, first, seconds=2.5, fields={"score": 0.25, "loss": float("nan"), "note": "<b>", "ok": True})
    write_run(made, second, fields={"score": 0.5, "note": "x" * 20_000})
    write_run(made, third, error={"kind": "ValueError", "message": "too large"})
    return made


def runs_in(address: str, store: Store) -> list[Any]:
    """What MLflow holds of a store, in the order of the sweep."""
    client = MlflowClient(tracking_uri=address)
    experiment = client.get_experiment_by_name(str(store))
    assert experiment is not None
    return sorted(client.search_runs([experiment.experiment_id]), key=lambda run: float(run.data.params["kl_scale"]))


def test_runs_are_written_once_with_what_was_set_and_what_came_out(store: Store, tmp_path: Path) -> None:
    """Parameters, numbers as metrics, words as tags; a second export adds what is new, and mends what was cut short."""
    address = f"sqlite:///{tmp_path / 'mlflow.db'}"
    assert export_runs(store, address) == (3, 0)
    first, second, third = runs_in(address, store)
    assert first.data.params == {"kl_scale": "0.5", "name": "a/'b\""}
    assert first.data.metrics["score"] == 0.25 and first.data.metrics["fusionlab.seconds"] == 2.5
    assert "loss" not in first.data.metrics and first.data.tags["loss"] == "nan"
    assert first.data.tags["note"] == "<b>" and first.data.tags["ok"] == "True"
    assert first.info.end_time - first.info.start_time == 2500
    assert len(second.data.tags["note"]) == 5000
    assert [run.info.status for run in (first, second, third)] == ["FINISHED", "FINISHED", "FAILED"]
    assert third.data.tags["fusionlab.error"] == "ValueError: too large"

    client = MlflowClient(tracking_uri=address)
    client.delete_run(second.info.run_id)
    client.create_run(first.info.experiment_id, tags={ATTEMPT: second.data.tags[ATTEMPT]})  # as a kill leaves it
    assert export_runs(store, address) == (1, 2)
    assert [run.data.metrics.get("score") for run in runs_in(address, store)] == [0.25, 0.5, None]


def test_an_address_that_mlflow_refuses_is_named(store: Store) -> None:
    """With what to give instead."""
    with pytest.raises(SweepError, match=r"nonsense://x.*give e\.g\. --mlflow sqlite:///mlflow\.db"):
        export_runs(store, "nonsense://x")


def test_without_the_extra_it_says_what_to_install(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """MLflow is large, and most never need it."""
    monkeypatch.setitem(sys.modules, "alembic", None)
    with pytest.raises(MissingPackageError, match=r"alembic; pip install 'fusionlab\[mlflow\]'"):
        export_runs(store, "sqlite://")

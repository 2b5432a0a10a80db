"""One run here and now, in a kernel of its own and without a cluster: `fusionlab run`. The store is as a sweep's."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from fusionlab.errors import SweepError
from fusionlab.experiments.execution import FAILED, execute_run, new_attempt
from fusionlab.experiments.kernel import WarmKernel
from fusionlab.experiments.manifest import make_manifest
from fusionlab.experiments.notebook import Notebook
from fusionlab.experiments.results import about_of, read_row
from fusionlab.experiments.run_key import Run
from fusionlab.experiments.store import Store
from fusionlab.experiments.sweep_file import make_run


@dataclass(frozen=True)
class SingleRun:
    """What `run_single` did. folder: where its files are, relative to the store. repeated: it had finished before."""

    run: Run
    failed: bool
    folder: str
    error: str | None
    fields: Mapping[str, Any]
    repeated: bool = False


def run_single(notebook: Notebook, given: Mapping[str, Any], store: Store, *, again: bool = False, progress: bool = False,
               say: Callable[[str], None] = lambda line: None) -> SingleRun:  # fmt: skip
    """Run a notebook once, or find that the same run has finished before. again: do it all the same.

    given: checked parameters. Raises OutputError, SweepError where somebody else is at the same run.
    """
    store.create()
    run = make_run(notebook, given)
    if run.key in store.finished() and not again:
        return describe_single(store, run, f"runs/{run.key}", repeated=True)
    claim = store.claim(run.key)
    if claim is None:
        raise SweepError(f"another process is doing this run in {store}", remedy="wait for it, or choose another --out")
    session, attempt = new_attempt(), new_attempt()
    store.write_manifest(session, make_manifest(
        session=session, started=session[:15], code=str(run.identity["code"]), models=run.identity["models"],
        notebook=notebook.path, runs=1, todo=1))  # fmt: skip
    kernel = WarmKernel(run.kernel, environment={"TQDM_DISABLE": "1"})
    draft = store.draft(run.key, attempt)
    try:
        say(f"running {notebook.path}: {run.label()}")
        with claim, store.explaining():
            failure = execute_run(run, draft, kernel, progress=progress,
                                  facts={"attempt": attempt, "session": session, "tries": 1})  # fmt: skip
            store.commit(run.key, draft, attempt=attempt, failed=failure is not None, replace=again)
    finally:
        kernel.close()
        if draft.exists():
            store.discard(draft)
    return describe_single(store, run, f"runs/{run.key}" if failure is None else f"failed/{run.key}.{attempt}")


def describe_single(store: Store, run: Run, folder: str, *, repeated: bool = False) -> SingleRun:
    """What a run recorded, by its folder in the store. Raises CorruptFileError."""
    table = read_row(store, folder)
    row = table.to_pylist()[0]
    fields = {name: row[column] for column, name in about_of(table)["fields"].items() if row[column] is not None}
    return SingleRun(run, row["status"] == FAILED, folder, row["error"], fields, repeated)

"""One run from beginning to end in this process: prepare the kernel, execute, write page, log and row into a folder.

Used by workers of a sweep, by `fusionlab run` and by `make demo`. Knows neither Dask nor the store.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import os
import socket
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fusionlab.experiments.kernel import KernelDied, WarmKernel
from fusionlab.experiments.pages import write_page
from fusionlab.experiments.recording import FOLDER_VARIABLE, recorded_fields
from fusionlab.experiments.rows import build_row, write_row
from fusionlab.experiments.run_key import Run

NOTEBOOK, PAGE, LOG, ERROR = "notebook.ipynb", "notebook.html", "log.txt", "error.json"
OK, FAILED = "ok", "failed"
LONGEST_MESSAGE = 2_000  # characters of an error in the table; the notebook holds all of it


@dataclass(frozen=True)
class Failure:
    """Why a run did not succeed. kind: the exception's name. cell: its source, "" where none was at work."""

    kind: str
    message: str
    cell: str = ""
    cell_number: int | None = None  # In [n]
    traceback: str = ""
    kernel_died: bool = False

    def to_dict(self) -> dict[str, Any]:
        """JSON-able."""
        return dict(vars(self))


def execute_run(run: Run, folder: Path, kernel: WarmKernel, *, facts: Mapping[str, Any], plotly: str | None = None,
                progress: bool = False) -> Failure | None:  # fmt: skip
    """Execute a run into `folder`, a fresh one; what it returns, and row.parquet there, say how it went.

    facts: columns that only the caller knows (session, worker, attempt). plotly: as `pages.write_page` takes it. A kernel
    that died is closed. Raises OutputError and OSError where the folder cannot be written.
    """
    started = datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds")
    clock = prepared = time.perf_counter()
    before: tuple[int, float] = (0, 0.0)
    after: tuple[int, float] | None = None
    with (folder / LOG).open("w", encoding="utf-8") as log:
        try:
            kernel.prepare({FOLDER_VARIABLE: str(folder.resolve())})
            before = kernel.team_loads()
        except KernelDied as error:
            failure: Failure | None = Failure("KernelDied", str(error), kernel_died=True)
        else:
            prepared = time.perf_counter()
            failure = execute_notebook(run, folder / NOTEBOOK, kernel, log=log, progress=progress)
        executed = time.perf_counter()
        if failure is None or not failure.kernel_died:
            with contextlib.suppress(KernelDied):  # the notebook is done; what the kernel does then changes nothing
                after = kernel.team_loads()
        if failure is not None:
            log.write(f"\n{failure.kind}: {failure.message}\n")
    columns = {
        "seconds": executed - prepared, "started": started, "kernel": f"{kernel.pid or ''}",
        "team_loads": 0 if after is None else after[0] - before[0],
        "team_load_seconds": 0.0 if after is None else after[1] - before[1], **facts,
    }  # fmt: skip
    if failure is not None and failure.kernel_died:
        kernel.close()
    return finish_run(run, folder, failure, columns=columns, plotly=plotly, waited=prepared - clock, since=executed)


def write_failure(run: Run, folder: Path, failure: Failure, *, facts: Mapping[str, Any]) -> None:
    """Make the folder of a run that was not executed at all: its notebook as it came, the reason, the row."""
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds")
    (folder / LOG).write_text(f"{failure.kind}: {failure.message}\n", encoding="utf-8")
    finish_run(run, folder, failure, columns={"seconds": 0.0, "started": now, **facts}, since=time.perf_counter())


def finish_run(run: Run, folder: Path, failure: Failure | None, *, columns: Mapping[str, Any], plotly: str | None = None,
               waited: float = 0.0, since: float = 0.0) -> Failure | None:  # fmt: skip
    """Write page, error and row. waited, since: seconds before and the clock after the notebook, for machinery_seconds."""
    node = read_or_make(folder / NOTEBOOK, run)
    write_page(node, folder / PAGE, plotly=plotly, plain=True)
    if failure is not None:
        (folder / ERROR).write_text(json.dumps(failure.to_dict(), indent=1, ensure_ascii=False), encoding="utf-8")
    row = {
        "key": run.key, "index": run.index, "notebook": run.notebook, "status": OK if failure is None else FAILED,
        "host": socket.gethostname(), "machinery_seconds": waited + time.perf_counter() - since,
        "error": None if failure is None else f"{failure.kind}: {failure.message}"[:LONGEST_MESSAGE],
        "code": str(run.identity.get("code", "")), "models": json.dumps(run.identity.get("models", {}), sort_keys=True),
        "team": run.team, **columns,
    }  # fmt: skip
    write_row(build_row(row, run.values, {} if failure else recorded_fields(node), given=tuple(run.given)), folder)
    return failure


def execute_notebook(
    run: Run, target: Path, kernel: WarmKernel, *, log: Any = None, progress: bool = False
) -> Failure | None:
    """Execute into a prepared kernel; a cell that raises, a time-out and a dead kernel come back as a Failure."""
    import nbformat
    from nbclient.exceptions import CellTimeoutError, DeadKernelError
    from papermill.exceptions import PapermillExecutionError, strip_color

    from fusionlab.experiments.engine import execute_in

    node = nbformat.reads(run.source, as_version=4)
    try:
        execute_in(kernel, node, target, dict(run.given), log=log, cell_timeout_seconds=run.cell_timeout_seconds,
                   progress=progress)  # fmt: skip
    except PapermillExecutionError as error:
        traceback = strip_color("\n".join(error.traceback))
        return Failure(error.ename, strip_color(error.evalue), error.source, error.exec_count, traceback)
    except CellTimeoutError:
        return Failure("CellTimeout", f"a cell took longer than {run.cell_timeout_seconds:g} s", running_cell(target),
                       kernel_died=True)  # fmt: skip
    except DeadKernelError:
        return Failure("KernelDied", "the kernel ended while it ran: out of memory, a crash, or killed",
                       running_cell(target), kernel_died=True)  # fmt: skip
    return None


def running_cell(target: Path) -> str:
    """The source of the cell that was at work when the notebook was saved last."""
    import nbformat

    if not target.is_file():
        return ""
    cells = nbformat.read(target, as_version=4).cells
    begun = [cell for cell in cells if cell.metadata.get("papermill", {}).get("start_time")]
    return str(begun[-1].source) if begun else ""


def read_or_make(path: Path, run: Run) -> Any:
    """The executed notebook; where nothing was executed yet, the notebook as it came, saved there."""
    import nbformat

    if path.is_file():
        return nbformat.read(path, as_version=4)
    node = nbformat.reads(run.source, as_version=4)
    nbformat.write(node, path)
    return node


def new_attempt() -> str:
    """A name for an attempt or a session: the time first, so that names sort by age."""
    now = datetime.datetime.now(datetime.UTC)
    return f"{now:%Y%m%dT%H%M%S}{now.microsecond // 1000:03d}-{os.urandom(3).hex()}"

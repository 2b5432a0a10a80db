"""A sweep from plan to table: what is to do, on which workers, with what to see meanwhile."""

from __future__ import annotations

import contextlib
import os
import signal
import statistics
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fusionlab.errors import FusionError
from fusionlab.experiments.cluster import CONNECT_SECONDS, find_gpus, local_client, remote_client
from fusionlab.experiments.dispatch import NO_WORKER_SECONDS, Account, Dispatcher, describe_outcome
from fusionlab.experiments.execution import FAILED, OK, new_attempt
from fusionlab.experiments.manifest import make_manifest
from fusionlab.experiments.pages import PLOTLY_FILE, write_plotly
from fusionlab.experiments.results import gather, read_runs
from fusionlab.experiments.run_key import Run
from fusionlab.experiments.store import Store
from fusionlab.experiments.worker import KernelPlugin, Outcome, WorkerSettings, plugin_name

Say = Callable[[str], None]
LINE_SECONDS = 5.0  # between two lines of progress where there is no terminal


@dataclass(frozen=True)
class SweepOptions:
    """How to run. scheduler: address of an existing one; else `workers` processes on this machine.

    limit: most runs to do now. retry_failed: do runs again that failed before. fresh: a kernel per run.
    connect_seconds: until an unreachable scheduler is an error.
    """

    workers: int = 2
    scheduler: str | None = None
    limit: int | None = None
    retry_failed: bool = False
    fresh: bool = False
    connect_seconds: float = CONNECT_SECONDS


@dataclass(frozen=True)
class Plan:
    """The runs of a sweep by what is to become of them now."""

    runs: Sequence[Run]
    finished: frozenset[str]  # keys
    failed: frozenset[str]
    todo: Sequence[Run]
    past_seconds: Sequence[float]  # of earlier runs of this notebook


def make_plan(runs: Sequence[Run], store: Store, options: SweepOptions) -> Plan:
    """What is missing in the store, in the sweep's order."""
    keys = {run.key for run in runs}
    finished, failed = frozenset(store.finished() & keys), frozenset(store.failed().keys() & keys)
    left_out = finished | (frozenset() if options.retry_failed else failed)
    todo = [run for run in runs if run.key not in left_out][: options.limit]
    return Plan(runs, finished, failed, todo, past_seconds(store, runs[0].notebook))


def past_seconds(store: Store, notebook: str) -> list[float]:
    """Seconds of the finished runs of a notebook in this store."""
    try:
        frame = read_runs(store).to_frame()
    except FusionError:
        return []
    past = frame[(frame["notebook"] == notebook) & (frame["status"] == OK)]
    return (past["seconds"] + past["machinery_seconds"]).tolist()


def describe_plan(plan: Plan, options: SweepOptions, *, most_lines: int = 200) -> str:
    """What --dry-run shows: the runs, and an estimate from past ones."""
    todo = {run.key for run in plan.todo}
    lines = []
    for run in plan.runs[:most_lines]:
        state = "finished" if run.key in plan.finished else "failed" if run.key in plan.failed else ""
        state = "to do" if run.key in todo else state or "later"
        lines.append(f"{run.key[:8]}  {state:<8}  {run.label()}")
    if len(plan.runs) > most_lines:
        lines.append(f"... and {len(plan.runs) - most_lines:,} more")
    counts = f"{len(plan.finished)} finished, {len(plan.failed)} failed, {len(plan.todo)} to do now"
    lines.append(f"{len(plan.runs)} runs: {counts}")
    if plan.past_seconds and plan.todo:
        each = statistics.median(plan.past_seconds)
        where = f"{options.workers} workers" if options.scheduler is None else "one worker"
        total = each * len(plan.todo) / (options.workers if options.scheduler is None else 1)
        lines.append(f"estimate: {duration(total)} with {where} ({each:.1f} s a run, median of {len(plan.past_seconds)})")
    elif plan.todo:
        lines.append("no estimate: no run of this notebook has finished here yet")
    return "\n".join(lines)


def duration(seconds: float) -> str:
    """Seconds for people.

    >>> duration(3700)
    '1 h 2 min'
    """
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def run_sweep(runs: Sequence[Run], store: Store, options: SweepOptions | None = None, *, notebook: Path,
              sweep_file: Path | None = None, repeat: Sequence[str] = (), check_code: bool = True,
              patience: float = NO_WORKER_SECONDS, say: Say = lambda line: None) -> Account:  # fmt: skip
    """Do what is missing of a sweep; returns what became of its runs.

    >>> sweep, runs = plan_sweep(Path("sweep.yaml"))                             # doctest: +SKIP
    >>> run_sweep(runs, open_store("runs/kl"), notebook=Path(sweep.notebook)).failed     # doctest: +SKIP
    {}

    repeat: parameters that only repeat a run, for the report. check_code: refuse workers with another fusionlab than the
    one that the runs' keys name. patience: seconds to wait where there is no worker. Raises OutputError, SchedulerError,
    and KeyboardInterrupt for Ctrl-C or SIGTERM, after the runs in progress were ended; finished ones are kept in any case.
    """
    options = options or SweepOptions()
    store.create()
    session = new_attempt()  # before the plan: what fails from here on failed in a sweep beside this one
    plan = make_plan(runs, store, options)
    store.sweep_partial({run.key for run in runs})
    kept = {} if options.retry_failed else failed_messages(store, plan)
    account = Account(len(runs), already=len(plan.finished), failed=kept)
    if not plan.todo:
        return account
    code = str(plan.todo[0].identity.get("code", ""))
    models = {name: revision for run in plan.todo for name, revision in run.identity.get("models", {}).items()}
    store.write_manifest(session, make_manifest(
        session=session, started=session[:15], code=code, models=models, notebook=notebook, sweep_file=sweep_file,
        runs=len(runs), todo=len(plan.todo), repeat=list(repeat)))  # fmt: skip
    settings = make_settings(store, session, options, code=code if check_code else None, kernel=plan.todo[0].kernel)
    opened = remote_client(options.scheduler, seconds=options.connect_seconds) if options.scheduler else \
        local_client(min(options.workers, len(plan.todo)), resources=plan.todo[0].resources)  # fmt: skip
    with interruptible(), opened as client, progress(len(plan.todo), say) as watch:
        client.register_plugin(KernelPlugin(settings))
        dispatcher = Dispatcher(client, store, session=session, account=account, watch=watch, say=say,
                                patience=patience)  # fmt: skip
        try:
            dispatcher.run(plan.todo)
        except BaseException:
            dispatcher.stop()
            raise
        finally:
            with contextlib.suppress(Exception):  # the scheduler may be gone; the results are not
                client.unregister_worker_plugin(plugin_name(session))
            with contextlib.suppress(Exception):
                store.remove(settings.token)
    gather(store)
    return account


def failed_messages(store: Store, plan: Plan) -> dict[str, str]:
    """Key -> error of the runs that failed before and stay so."""
    if not plan.failed:
        return {}
    frame = read_runs(store, plan.failed).to_frame()
    return dict(zip(frame["key"], frame["error"], strict=True))


def make_settings(store: Store, session: str, options: SweepOptions, *, code: str | None,
                  kernel: str = "python3") -> WorkerSettings:  # fmt: skip
    """What workers have to know; leaves the file by which they tell that they see the store."""
    token = f"partial/.token-{session}"
    store.write_bytes(token, b"\0")
    plotly = None
    if "://" not in store.url:
        with contextlib.suppress(ImportError):
            write_plotly(store.folder)
            plotly = f"../../{PLOTLY_FILE}"
    environment = {"TQDM_DISABLE": "1", "PYDEVD_DISABLE_FILE_VALIDATION": "1"}
    if options.scheduler is None and "OMP_NUM_THREADS" not in os.environ:
        environment["OMP_NUM_THREADS"] = str(max(1, cores() // options.workers))
    gpus = find_gpus() if options.scheduler is None else []
    return WorkerSettings(session, store.url, token, code, options.fresh, environment, plotly, kernel, tuple(gpus))


def cores() -> int:
    """Processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """SIGTERM, which batch systems send before they kill, ends a sweep as Ctrl-C does."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextlib.contextmanager
def progress(total: int, say: Say) -> Iterator[Callable[[Run, Outcome], None]]:
    """Counts, rate and time left: a bar on a terminal, else a line every few seconds and one per failure."""
    from tqdm.auto import tqdm

    counts: dict[str, int] = {}
    started = last = time.monotonic()
    with tqdm(total=total, unit="run", disable=not sys.stderr.isatty(), smoothing=0.1) as bar:

        def watch(run: Run, outcome: Outcome) -> None:
            nonlocal last
            counts[outcome.status] = counts.get(outcome.status, 0) + 1
            done = sum(counts.values())
            bar.update()
            bar.set_postfix(counts, refresh=False)
            if outcome.status == FAILED:
                (bar.write if not bar.disable else say)(describe_outcome(run, outcome))
            now = time.monotonic()
            if bar.disable and (now - last > LINE_SECONDS or done == total):
                last = now
                rate = done / (now - started)
                say(f"{done} of {total} runs ({', '.join(f'{n} {name}' for name, n in counts.items())}), "
                    f"{60 * rate:.1f} a minute, {duration((total - done) / rate)} left")  # fmt: skip

        yield watch

"""What runs on a Dask worker: a warm kernel of its own, and the task that takes a run from claim to commit.

Where the worker sees the store (a shared disk, a URL), it commits there itself, so a run that finished is kept whatever
becomes of the client. Where it does not, the run's files travel back as the task's result and the client commits them.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import signal
import sys
import tempfile
import threading
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from distributed import WorkerPlugin, get_worker

from fusionlab.errors import FusionError, OutputError
from fusionlab.experiments.execution import ERROR, FAILED, OK, Failure, execute_run, new_attempt
from fusionlab.experiments.kernel import KernelDied, WarmKernel
from fusionlab.experiments.run_key import Run, code_version
from fusionlab.experiments.store import Store

MOST_TRIES = 2  # of a run whose worker or kernel died
IDLE_SECONDS = 600.0  # until a kernel that nobody asks anything ends
CLAIMED, ALREADY, STOPPED, UNWRITABLE, MISMATCH = "claimed", "already", "stopped", "unwritable", "mismatch"


@dataclass(frozen=True)
class Outcome:
    """How a run on a worker went.

    status: ok, failed, or one of this module's words. files: name -> content, where the worker does not see the store.
    """

    key: str
    status: str
    worker: str = ""  # address
    message: str = ""
    files: Mapping[str, bytes] | None = field(default=None, repr=False)
    attempt: str = ""


@dataclass(frozen=True)
class WorkerSettings:
    """What all runs of a session share.

    token: a file in the store by which a worker tells that it sees the same place. code: what `code_version` must give;
    None: do not ask. fresh: a kernel per run. environment: of kernels. plotly: the link to its script from a run's page.
    """

    session: str
    store_url: str
    token: str
    code: str | None = None
    fresh: bool = False
    environment: Mapping[str, str] = field(default_factory=dict)
    plotly: str | None = None
    kernel: str = "python3"  # that most runs want
    gpus: tuple[str, ...] = ()  # local workers take one each, by their number


class KernelPlugin(WorkerPlugin):
    """Gives a worker a kernel for one sweep, and takes it away when worker or sweep ends, or when nothing came for long."""

    def __init__(self, settings: WorkerSettings) -> None:
        self.settings = settings
        self.name = plugin_name(settings.session)  # two sweeps on one cluster have a kernel each

    def setup(self, worker: Any) -> None:
        """Called on the worker when the plugin arrives there."""
        self.address, self.label = worker.address, str(worker.name)
        self.stopping = False
        self.kernel: WarmKernel | None = None
        self.scratch = Path(tempfile.mkdtemp(prefix="fusionlab-worker-"))
        self.thread = ThreadPoolExecutor(1, "fusionlab-kernel")  # a kernel's sockets belong to one thread
        self._code: str | None = None
        self.last: tuple[tuple[str, int], Outcome] | None = None  # asked, answered
        self.idle: threading.Timer | None = None
        self.thread.submit(self.warm_up)
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole terminal; the client decides

    def warm_up(self) -> None:
        """What every run needs, while the first one is still on its way: a kernel, papermill, templates."""
        self.kernel = self.new_kernel(self.settings.kernel)
        with contextlib.suppress(KernelDied):  # the run that wants it will say so
            self.kernel.launch()
        slow = "rfc3987_syntax"  # jsonschema, if it finds it, compiles a grammar for a second and a half
        if slow not in sys.modules:
            sys.modules[slow] = None  # type: ignore[assignment]
        import papermill  # noqa: F401

        if sys.modules[slow] is None:
            del sys.modules[slow]
        from fusionlab.experiments.pages import exporter

        exporter(plain=True)

    def new_kernel(self, name: str) -> WarmKernel:
        """A kernel that is not started yet, with its share of threads and its GPU."""
        environment = dict(self.settings.environment)
        if self.settings.gpus and self.label.isdecimal():
            environment["CUDA_VISIBLE_DEVICES"] = self.settings.gpus[int(self.label) % len(self.settings.gpus)]
        return WarmKernel(name, environment=environment, log=self.scratch / "kernel.log")

    def teardown(self, worker: Any) -> None:
        """Called on the worker when it closes, or when the plugin is removed."""
        if self.idle is not None:
            self.idle.cancel()
        self.stop()
        with contextlib.suppress(RuntimeError):
            self.thread.submit(self.close_kernel).result(timeout=10)
        self.thread.shutdown(wait=False)
        shutil.rmtree(self.scratch, ignore_errors=True)

    def stop(self) -> None:
        """End what runs; it comes back as stopped. From any thread."""
        self.stopping = True
        if self.kernel is not None:
            self.kernel.kill()

    def close_kernel(self) -> None:
        """End the kernel in an orderly way; on its own thread."""
        if self.kernel is not None:
            self.kernel.close()
            self.kernel = None

    def execute(self, run: Run, tries: int = 0) -> Outcome:
        """Take a run from claim to commit. tries: earlier ones, of which the worker was lost."""
        if self.idle is not None:
            self.idle.cancel()
        asked = (run.key, tries)
        # Dask computes a task again whose result it could not fetch; a run that came to its end is done all the same.
        outcome = self.last[1] if self.last is not None and self.last[0] == asked else None
        if outcome is None:
            outcome = self.thread.submit(self._execute, run, tries).result()
            self.last = (asked, outcome) if outcome.status in (OK, FAILED, ALREADY) else None
        self.idle = threading.Timer(
            IDLE_SECONDS, self.thread.submit, [self.close_kernel]
        )  # the client may have been killed
        self.idle.daemon = True
        self.idle.start()
        return outcome

    def _execute(self, run: Run, tries: int) -> Outcome:
        if self.settings.code is not None:
            self._code = self._code or code_version()
            if self._code != self.settings.code:
                return self.outcome(run, MISMATCH, f"{self.address} has fusionlab {self._code}, the sweep was planned with "
                                                   f"{self.settings.code}")  # fmt: skip
        store = visible_store(self.settings)
        try:
            return self._execute_far(run, tries) if store is None else self._execute_in(store, run, tries)
        except (OutputError, OSError) as error:
            return self.outcome(run, STOPPED if self.stopping else UNWRITABLE, str(error))

    def outcome(self, run: Run, status: str, message: str = "", **more: Any) -> Outcome:
        """An outcome of this worker."""
        return Outcome(run.key, status, self.address, message=message, **more)

    def _execute_in(self, store: Store, run: Run, tries: int) -> Outcome:
        """Where the store is visible: claim, execute in its folder, commit."""
        claim = store.claim(run.key)
        if claim is None:
            return self.outcome(run, CLAIMED)
        with claim:
            if store.is_finished(run.key):
                return self.outcome(run, ALREADY)
            failed = failure_since(store, run.key, self.settings.session)
            if failed is not None:
                return self.outcome(run, FAILED, failed)
            while not self.stopping:
                tries += 1
                attempt = new_attempt()
                draft = store.draft(run.key, attempt)
                try:
                    failure = self.try_once(run, draft, tries, attempt)
                    if failure is not None and failure.kernel_died and (self.stopping or may_retry(failure, tries)):
                        if self.stopping:
                            return self.outcome(run, STOPPED)
                        continue
                    new = store.commit(run.key, draft, attempt=attempt, failed=failure is not None)
                finally:
                    if draft.exists():
                        store.discard(draft)
                if failure is not None:
                    return self.outcome(run, FAILED, f"{failure.kind}: {failure.message}")
                return self.outcome(run, OK if new else ALREADY)
        return self.outcome(run, STOPPED)

    def _execute_far(self, run: Run, tries: int) -> Outcome:
        """Where the store is not visible: execute in a folder of this machine and send the files."""
        while not self.stopping:
            tries += 1
            attempt = new_attempt()
            draft = self.scratch / f"{run.key}.{attempt}"
            draft.mkdir()
            try:
                failure = self.try_once(run, draft, tries, attempt)
                if self.stopping and failure is not None:
                    return self.outcome(run, STOPPED)
                if failure is not None and may_retry(failure, tries):
                    continue
                paths = [path for path in draft.rglob("*") if path.is_file()]
                files = {path.relative_to(draft).as_posix(): path.read_bytes() for path in paths}
            finally:
                shutil.rmtree(draft, ignore_errors=True)
            message = "" if failure is None else f"{failure.kind}: {failure.message}"
            return self.outcome(run, OK if failure is None else FAILED, message, files=files, attempt=attempt)
        return self.outcome(run, STOPPED)

    def try_once(self, run: Run, draft: Path, tries: int, attempt: str) -> Failure | None:
        """Execute a run into `draft`, in the warm kernel or a new one."""
        facts = {"worker": self.label, "attempt": attempt, "session": self.settings.session, "tries": tries}
        if self.kernel is None or self.kernel.name != run.kernel:
            self.close_kernel()
            self.kernel = self.new_kernel(run.kernel)
        try:
            return execute_run(run, draft, self.kernel, facts=facts, plotly=self.settings.plotly)
        finally:
            if self.settings.fresh:
                self.close_kernel()


def may_retry(failure: Failure, tries: int) -> bool:
    """Whether a run is tried again: once, where its kernel was ended from outside (a time-out is no such end)."""
    return failure.kind == "KernelDied" and tries < MOST_TRIES


def failure_since(store: Store, key: str, session: str) -> str | None:
    """How a run failed in another sweep since a session began, None where it did not; both are named by their time."""
    for name in store.names("failed"):
        found, _, attempt = name.partition(".")
        if found == key and attempt > session:
            with contextlib.suppress(FileNotFoundError):  # somebody does it again right now, or has
                failure = json.loads(store.read_bytes(f"failed/{name}/{ERROR}"))
                return f"{failure['kind']}: {failure['message']}"
    return None


def visible_store(settings: WorkerSettings) -> Store | None:
    """The store, where this worker sees the same place as the client; told by a file that the client left there."""
    from fusionlab.experiments.remote_store import open_store

    try:
        store = open_store(settings.store_url)
        return store if store.exists(settings.token) else None
    except (FusionError, OSError):
        return None


# -- what the client submits -----------------------------------------------------------------------


def run_on_worker(session: str, run: Run, tries: int = 0) -> Outcome:
    """The task: executed in one of the worker's threads."""
    plugin: Any = get_worker().plugins[plugin_name(session)]
    return plugin.execute(run, tries)


def stop_worker(session: str, dask_worker: Any = None) -> None:
    """End a sweep's run in progress; for `Client.run`, which fills in the worker."""
    plugin = dask_worker.plugins.get(plugin_name(session))
    if plugin is not None:
        plugin.stop()


def plugin_name(session: str) -> str:
    """Of the plugin that serves a session."""
    return f"fusionlab-{session}"

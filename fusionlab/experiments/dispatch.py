"""Gives runs to Dask workers, one at a time to each, and keeps account: done, failed, to be done by others, still to do.

A worker that is free gets a run whose models it has loaded, if there is one; else one of the models that the fewest workers
attend to, measured by what is left. Where a worker is lost, its run is given to another one once. Dask would do that too,
but as often as its scheduler is configured to, and not at all while no other worker is there.
"""

from __future__ import annotations

import contextlib
import queue
import time
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from fusionlab.errors import OutputError, SchedulerError
from fusionlab.experiments.execution import FAILED, OK, Failure, new_attempt, write_failure
from fusionlab.experiments.results import gather
from fusionlab.experiments.run_key import Run
from fusionlab.experiments.store import Store
from fusionlab.experiments.worker import (
    ALREADY,
    CLAIMED,
    MISMATCH,
    MOST_TRIES,
    STOPPED,
    UNWRITABLE,
    Outcome,
    run_on_worker,
    stop_worker,
)

if TYPE_CHECKING:
    from distributed import Client, Future

GATHER_EVERY = 100  # runs
LOOK_SECONDS = 1.0  # between two looks at who is there
NO_WORKER_SECONDS = 60.0
SCHEDULER_SECONDS = 60.0  # for an answer of the scheduler
RESULT_SECONDS = 60.0  # to fetch what a task that ended gave back


@dataclass
class Account:
    """What became of the runs. failed: key -> one line. already: finished before, or by another sweep meanwhile."""

    total: int
    ok: int = 0
    already: int = 0
    failed: dict[str, str] = field(default_factory=dict)

    @property
    def left(self) -> int:
        """Runs that are neither finished nor failed."""
        return self.total - self.ok - self.already - len(self.failed)


Watch = Callable[[Run, Outcome], object]


class Queue:
    """The runs that wait, by the models that they need."""

    def __init__(self, runs: Iterable[Run]) -> None:
        self.by_team: dict[str, deque[Run]] = defaultdict(deque)
        for run in runs:
            self.by_team[run.team].append(run)

    def __len__(self) -> int:
        return sum(map(len, self.by_team.values()))

    def put_back(self, run: Run) -> None:
        """A run that could not be done yet, to be done last."""
        self.by_team[run.team].append(run)

    def take(self, loaded: str | None, attended: Mapping[str, int]) -> Run:
        """The next run for a worker that has `loaded`. attended: team -> workers that have it loaded.

        >>> queue = Queue([Run("k1", 0, "n", "", team="a"), Run("k2", 1, "n", "", team="b")])
        >>> queue.take("b", {"b": 1}).key
        'k2'
        """
        if loaded is not None and self.by_team.get(loaded):
            return self.by_team[loaded].popleft()
        waiting = {team: len(runs) for team, runs in self.by_team.items() if runs}
        most = max(waiting, key=lambda team: waiting[team] / (1 + attended.get(team, 0)))
        return self.by_team[most].popleft()


class Dispatcher:
    """Runs a sweep on a client's workers.

    store: where runs are committed. session: the invocation. watch: called with each outcome. say: where lines about lost
    workers go. patience: seconds to wait for workers, if there are none.
    """

    def __init__(self, client: Client, store: Store, *, session: str, account: Account,
                 watch: Watch = lambda run, outcome: None, say: Callable[[str], object] = lambda line: None,
                 patience: float = NO_WORKER_SECONDS) -> None:  # fmt: skip
        self.client, self.store, self.session, self.account, self.watch = client, store, session, account, watch
        self.say, self.patience = say, patience
        self.flying: dict[str, tuple[Future, Run, str]] = {}  # task key -> future, run, worker it was meant for
        self.landed: queue.SimpleQueue[Future] = queue.SimpleQueue()
        self.loaded: dict[str, str] = {}  # worker -> team
        self.claimed: list[Run] = []  # somebody else is at them
        self.submissions: Counter[str] = Counter()
        self.tries: Counter[str] = Counter()  # that a worker took with it when it was lost
        self.gathered = 0

    def run(self, runs: Sequence[Run]) -> None:
        """Do all runs. Raises OutputError, SchedulerError; KeyboardInterrupt after `stop`."""
        waiting = Queue(runs)
        needed = dict(runs[0].resources) if runs else {}
        lonely_since = time.monotonic()
        while len(waiting) or self.flying or self.claimed:
            known = self.known_workers()
            self.look_for_lost(known, waiting)
            workers = [address for address, about in known.items() if offers(about, needed)]
            if workers or self.flying:
                lonely_since = time.monotonic()
            elif time.monotonic() - lonely_since > self.patience:
                asked = ", ".join(f"{name}={amount:g}" for name, amount in needed.items())
                raise SchedulerError(f"no worker{' offers ' + asked if asked else ''} for {self.patience:g} s",
                                     remedy="start workers; finished runs are kept")  # fmt: skip
            busy = {worker for _, _, worker in self.flying.values()}
            for worker in workers:
                if worker not in busy and len(waiting):
                    attended = Counter(team for address, team in self.loaded.items() if address in workers)
                    self.submit(waiting.take(self.loaded.get(worker), attended), worker)
            self.collect(waiting)
            if not len(waiting) and not self.flying and self.claimed:
                self.look_at_claimed(waiting)

    def known_workers(self) -> dict[str, Any]:
        """Address -> description of every worker that the scheduler knows now. Raises SchedulerError where it is gone."""
        scheduler: Any = self.client.scheduler
        try:
            answer = self.client.sync(scheduler.identity, n_workers=-1, callback_timeout=SCHEDULER_SECONDS)
        except (OSError, AttributeError, TimeoutError) as error:  # without a connection the client has no scheduler
            message = f"the scheduler is gone ({type(error).__name__}: {error})"
            raise SchedulerError(message, remedy="finished runs are kept; start it and give the command again") from error
        return dict(answer["workers"])

    def look_for_lost(self, known: Container[str], waiting: Queue) -> None:
        """Runs whose worker is gone: again with another one, or given up. known: addresses that are there."""
        for task, (future, run, worker) in list(self.flying.items()):
            if worker in known or future.done():
                continue
            del self.flying[task]
            self.client.cancel([future])
            self.loaded.pop(worker, None)
            self.tries[run.key] += 1
            self.say(f"lost worker {worker} in run {run.key[:8]}")
            if self.tries[run.key] < MOST_TRIES:
                waiting.put_back(run)
            else:
                died = Failure("WorkerDied", f"its worker ended while it ran, {MOST_TRIES} times")
                self.settle(run, self.give_up(run, died))

    def submit(self, run: Run, worker: str) -> None:
        """Give a run to a worker."""
        self.submissions[run.key] += 1
        task = f"fusionlab-{self.session}-{run.key}-{self.submissions[run.key]}"
        future = self.client.submit(run_on_worker, self.session, run, self.tries[run.key], key=task, workers=[worker],
                                    pure=False, resources=dict(run.resources) or None)  # fmt: skip
        self.flying[task] = (future, run, worker)
        self.loaded[worker] = run.team
        future.add_done_callback(self.landed.put)

    def collect(self, waiting: Queue) -> None:
        """Take in what has come back, waiting a moment for it."""
        try:
            future = self.landed.get(timeout=LOOK_SECONDS)
            while True:
                self.take_in(future, waiting)
                future = self.landed.get_nowait()
        except queue.Empty:
            pass
        if self.account.ok - self.gathered >= GATHER_EVERY:
            self.gathered = self.account.ok
            gather(self.store)

    def take_in(self, future: Future, waiting: Queue) -> None:
        """Account for one task that ended."""
        if future.key not in self.flying:
            return
        _, run, worker = self.flying.pop(future.key)
        try:
            outcome = future.result(timeout=RESULT_SECONDS)
        except Exception as error:  # what the task raised, or that its result was lost with its worker
            if future.status == "error":
                kind = Failure("TaskFailed", f"{type(error).__name__}: {error}"[:1000])
                self.settle(run, self.give_up(run, kind))
            else:
                self.say(f"run {run.key[:8]} again: what it gave back is lost ({type(error).__name__}: {error})")
                waiting.put_back(run)
            return
        self.loaded[outcome.worker or worker] = run.team
        if outcome.files is not None:
            outcome = self.commit_files(run, outcome)
        if outcome.status == UNWRITABLE:
            raise OutputError(outcome.message, remedy="finished runs are kept; mend it and give the same command again")
        if outcome.status == MISMATCH:
            raise SchedulerError(outcome.message, remedy="install the same fusionlab on the workers, or name what stands "
                                 "for the code with `code:` in the sweep file")  # fmt: skip
        if outcome.status in (CLAIMED, STOPPED):
            (self.claimed.append if outcome.status == CLAIMED else waiting.put_back)(run)
            return
        self.settle(run, outcome)

    def settle(self, run: Run, outcome: Outcome) -> None:
        """Account for a run that came to its end."""
        if outcome.status == OK:
            self.account.ok += 1
        elif outcome.status == ALREADY:
            self.account.already += 1
        else:
            self.account.failed[run.key] = outcome.message
        self.watch(run, outcome)

    def give_up(self, run: Run, failure: Failure) -> Outcome:
        """Mark a run as failed that no worker brought to an end."""
        attempt = new_attempt()
        draft = self.store.draft(run.key, attempt)
        facts = {"attempt": attempt, "session": self.session, "tries": self.tries[run.key] or 1}
        write_failure(run, draft, failure, facts=facts)
        self.store.commit(run.key, draft, attempt=attempt, failed=True)
        return Outcome(run.key, FAILED, message=f"{failure.kind}: {failure.message}")

    def commit_files(self, run: Run, outcome: Outcome) -> Outcome:
        """Put the files that a far worker sent into the store. Raises OutputError."""
        draft = self.store.draft(run.key, outcome.attempt)
        with self.store.explaining():
            for name, content in (outcome.files or {}).items():
                path = draft / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content)
        new = self.store.commit(run.key, draft, attempt=outcome.attempt, failed=outcome.status == FAILED)
        return Outcome(run.key, outcome.status if new else ALREADY, outcome.worker, outcome.message)

    def look_at_claimed(self, waiting: Queue) -> None:
        """Runs that another sweep is doing: done by now, or still at it, or left to a worker (which sees what failed)."""
        finished = self.store.finished()
        still = []
        for run in self.claimed:
            if run.key in finished:
                self.account.already += 1
                self.watch(run, Outcome(run.key, ALREADY))
            elif self.store.is_claimed(run.key):
                still.append(run)
            else:
                waiting.put_back(run)
        self.claimed = still
        if still:
            time.sleep(LOOK_SECONDS)

    def stop(self) -> None:
        """End the runs in progress without keeping them."""
        futures = [future for future, _, _ in self.flying.values()]
        self.flying.clear()
        with contextlib.suppress(Exception):  # where the scheduler is gone, so is what it could stop
            self.client.cancel(futures)
            self.client.run(stop_worker, self.session, on_error="ignore")


def offers(about: Mapping[str, Any], needed: Mapping[str, float]) -> bool:
    """Whether a worker, as the scheduler describes it, offers what runs need."""
    return all(about.get("resources", {}).get(name, 0) >= amount for name, amount in needed.items())


def describe_outcome(run: Run, outcome: Outcome) -> str:
    """A line for people."""
    return f"{outcome.status:<8} {run.key[:8]}  {run.label()}" + (f"  {outcome.message}" if outcome.message else "")

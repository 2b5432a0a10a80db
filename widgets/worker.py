"""One thread that works on the latest request, so that a kernel answers while a model writes.

A request that comes while another runs takes its place: the older one is told to stop at its next token, and whatever
it still says is ignored. Only what is needed by those that follow, such as the load of a team, is waited for. Knows
nothing of models or widgets.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextvars import copy_context


class Request:
    """A piece of work, whether those that follow need it, and whether it is still wanted."""

    def __init__(self, work: Callable[[Request], object], *, needed: bool = False) -> None:
        self.needed = needed
        self._work: Callable[[Request], object] | None = work
        self._stopped = threading.Event()
        self.superseded = False

    @property
    def stopped(self) -> bool:
        """Whether it was stopped, by its user or by a newer request."""
        return self._stopped.is_set()

    def stop(self, *, superseded: bool = False) -> None:
        """End at the next token; superseded: nobody wants the result."""
        self.superseded = self.superseded or superseded
        self._stopped.set()

    def run(self) -> None:
        """Do the work, once."""
        work, self._work = self._work, None  # what it refers to is free as soon as it is done
        if work is not None:
            work(self)


class Worker:
    """Runs one request at a time on a thread of its own, which lives while there is work.

    report: called with the request and the exception of one that failed. An exception never ends the worker.
    """

    def __init__(self, report: Callable[[Request, BaseException], None]) -> None:
        self.report = report
        self._lock = threading.Lock()
        self._idle = threading.Event()
        self._idle.set()
        self._running: Request | None = None
        self._waiting: list[Request] = []  # at most one that is needed, and one behind it
        self._closed = False

    @property
    def busy(self) -> bool:
        """Whether something is running or waits."""
        return not self._idle.is_set()

    def submit(self, work: Callable[[Request], object], *, needed: bool = False) -> Request:
        """Take the place of whatever runs or waits, but wait for what is needed; a newer needed one replaces that too.

        The thread has the caller's context, so that output finds its cell.
        """
        with self._lock:
            request = Request(work, needed=needed)
            if self._closed:
                request.stop(superseded=True)
                return request
            for older in self._unfinished():
                if needed or not older.needed:
                    older.stop(superseded=True)
            self._waiting = [*(older for older in self._waiting if not older.superseded), request]
            if self._idle.is_set():
                self._idle.clear()
                run = copy_context().run
                threading.Thread(target=run, args=(self._loop,), name="fusionlab-explorer", daemon=True).start()
        return request

    def stop(self) -> bool:
        """End what runs at its next token; false if nothing did."""
        with self._lock:
            requests = self._unfinished()
            for request in requests:
                request.stop()
        return bool(requests)

    def wait(self, seconds: float | None = None) -> bool:
        """Wait until there is nothing to do; false if the time ran out before."""
        return self._idle.wait(seconds)

    def close(self) -> None:
        """Take no more requests, and end what runs."""
        with self._lock:
            self._closed = True
            for request in self._unfinished():
                request.stop(superseded=True)

    def _unfinished(self) -> list[Request]:
        return [*([] if self._running is None else [self._running]), *self._waiting]

    def _loop(self) -> None:
        while True:
            with self._lock:
                request = self._running = self._waiting.pop(0) if self._waiting else None
                if request is None:
                    self._idle.set()
                    return
            try:
                request.run()
            except BaseException as error:  # every one ends in the panel
                if request.needed:
                    self._give_up_waiting()
                self.report(request, error)

    def _give_up_waiting(self) -> None:
        """What waited for something needed that failed cannot be done; its own failure would hide the cause."""
        with self._lock:
            for request in self._waiting:
                request.stop(superseded=True)
            self._waiting = []

"""One Jupyter kernel that runs notebook after notebook: started when needed, cleaned between two, replaced when it died.

All calls belong on one thread: the kernel's sockets hang on that thread's event loop. Knows kernels, not notebooks.
"""

from __future__ import annotations

import ast
import contextlib
import os
import shutil
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any, NoReturn

from jupyter_client.manager import AsyncKernelManager
from jupyter_core.utils import run_sync

from fusionlab.errors import FusionError

START_SECONDS = 120.0
CLEAN_SECONDS = 60.0
LONGEST_SOCKET_FOLDER = 90  # characters; a socket's path may have 107, its name included
_STATE = "__import__('fusionlab.experiments.kernel_state', fromlist=['x'])"  # an expression, so that it leaves no name


class KernelDied(FusionError):
    """A kernel ended by itself, or was ended from outside."""


class WarmKernel:
    """A kernel by name ("python3"), for one run after the other.

    >>> kernel = WarmKernel()                                                    # doctest: +SKIP
    >>> kernel.prepare({"FUSIONLAB_RUN_FOLDER": "runs/a"})                       # doctest: +SKIP

    environment: variables that it starts with. log: where the process itself writes, e.g. its last words when it crashes.
    """

    def __init__(self, name: str = "python3", *, environment: Mapping[str, str] | None = None,
                 log: Path | None = None) -> None:  # fmt: skip
        self.name, self.log = name, log
        self.environment = dict(environment or {})
        self.manager: Any = None
        self.client: Any = None
        self.starts = 0
        self._log_file: IO[bytes] | None = None
        self._folder: Path | None = None  # of the connection file and the sockets

    @property
    def pid(self) -> int | None:
        """Process id, None where none runs."""
        provisioner = getattr(self.manager, "provisioner", None)
        return getattr(provisioner, "pid", None)

    def is_alive(self) -> bool:
        """Whether its process runs."""
        return self.manager is not None and bool(run_sync(self.manager.is_alive)())

    def prepare(self, environment: Mapping[str, str]) -> None:
        """Start the kernel if there is none, and clear what the last run left.

        environment: variables of the next run. Raises KernelDied where it does not start or does not answer.
        """
        order = f"{_STATE}.prepare_kernel(get_ipython(), {dict(environment)!r})"
        if self.is_alive():
            try:
                if self.client is None:
                    self.wait()
                self.evaluate(order, seconds=CLEAN_SECONDS)
                return
            except KernelDied:  # what ran in it may have spoilt it; a new one has no excuse
                pass
        self.close()
        self.start()
        self.evaluate(order, seconds=CLEAN_SECONDS)

    def team_loads(self) -> tuple[int, float]:
        """Loads of teams in this kernel so far, and their seconds. Raises KernelDied."""
        loads, seconds = ast.literal_eval(self.evaluate(f"{_STATE}.team_loads()", seconds=CLEAN_SECONDS))
        return int(loads), float(seconds)

    def start(self) -> None:
        """Start the process and wait until it answers. Raises KernelDied."""
        self.launch()
        self.wait()

    def launch(self) -> None:
        """Start the process, without waiting for it. Raises KernelDied."""
        self._folder = Path(tempfile.mkdtemp(prefix="fusionlab-kernel-"))
        self.manager = AsyncKernelManager(kernel_name=self.name, transport=choose_transport(self._folder),
                                          connection_file=str(self._folder / "k.json"))  # fmt: skip
        streams: dict[str, Any] = {}
        if self.log is not None:
            self._log_file = self.log.open("ab")
            streams = {"stdout": self._log_file, "stderr": self._log_file}
        try:
            run_sync(self.manager.start_kernel)(extra_arguments=["--HistoryManager.hist_file=:memory:"],
                                                env={**os.environ, **self.environment}, **streams)  # fmt: skip
        except Exception as error:  # jupyter_client raises many kinds here
            self.give_up(error)

    def wait(self) -> None:
        """Wait until a launched kernel answers. Raises KernelDied."""
        try:
            self.client = self.manager.client()
            self.client.start_channels()
            run_sync(self.client.wait_for_ready)(timeout=START_SECONDS)
        except Exception as error:  # the same
            self.give_up(error)
        self.client.allow_stdin = False
        self.starts += 1

    def give_up(self, error: Exception) -> NoReturn:
        """Clear away a kernel that did not start."""
        self.close()
        message = f"kernel {self.name!r} does not start: {error}"
        raise KernelDied(message, remedy="see `jupyter kernelspec list`") from error

    def evaluate(self, expression: str, *, seconds: float) -> str:
        """repr of an expression's value, leaving neither output nor history. Raises KernelDied."""
        sent = self.client.execute("", silent=True, store_history=False, user_expressions={"value": expression})
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            try:
                reply = run_sync(self.client.get_shell_msg)(timeout=1.0)
            except Exception as error:  # queue.Empty, or a socket that is gone
                if not self.is_alive():
                    raise KernelDied("the kernel ended while it was prepared", remedy="see kernel.log") from error
                continue
            if reply["parent_header"].get("msg_id") == sent:
                value = reply["content"].get("user_expressions", {}).get("value", {})
                if value.get("status") == "ok":
                    return str(value["data"]["text/plain"])
                what = value.get("evalue") or reply["content"].get("evalue") or "no answer"
                raise KernelDied(f"the kernel cannot be prepared: {value.get('ename', 'error')}: {what}",
                                 remedy="is fusionlab installed where the kernel runs?")  # fmt: skip
        raise KernelDied(f"the kernel did not answer for {seconds:.0f} s", remedy="it is replaced at the next run")

    def kill(self) -> None:
        """End the process at once, from any thread; what runs in it ends with KernelDied's kin."""
        pid = self.pid
        if pid is not None:
            with contextlib.suppress(OSError):
                os.kill(pid, 9)

    def close(self) -> None:
        """End the process and free its sockets."""
        if self.client is not None:
            with contextlib.suppress(Exception):
                self.client.stop_channels()
            self.client = None
        if self.manager is not None:
            with contextlib.suppress(Exception):
                run_sync(self.manager.shutdown_kernel)(now=True)
            with contextlib.suppress(Exception):
                run_sync(self.manager.cleanup_resources)(restart=False)
            self.manager = None
        if self._log_file is not None:
            self._log_file.close()
            self._log_file = None
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder = None


def choose_transport(folder: Path) -> str:
    """Sockets in `folder` where that works: nobody else can listen, and kernels that start together share no ports."""
    return "ipc" if os.name == "posix" and len(str(folder)) < LONGEST_SOCKET_FOLDER else "tcp"

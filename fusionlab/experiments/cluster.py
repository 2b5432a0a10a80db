"""Where runs are executed: workers on this machine, or an existing Dask scheduler.

A worker does one run at a time, in a kernel process of its own. Workers of a cluster need the same fusionlab installed.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import subprocess
import threading
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from fusionlab.errors import MissingPackageError, SchedulerError

if TYPE_CHECKING:
    from distributed import Client

CONNECT_SECONDS = 10.0
QUIET = {
    "distributed.worker.daemon": False,
    "distributed.admin.tick.limit": "60s",  # a loop that is late on two busy cores is no news
    "distributed.comm.timeouts.connect": "30s",
    "distributed.scheduler.worker-ttl": "10 minutes",  # of a worker whose machine swaps or sleeps
    "distributed.nanny.pre-spawn-environ.OMP_NUM_THREADS": None,  # threads are the kernel's business
}


@contextlib.contextmanager
def local_client(workers: int, *, resources: Mapping[str, float]) -> Iterator[Client]:
    """A scheduler and worker processes on this machine, for as long as the block lasts.

    resources: what the runs ask for; GPU only, one per worker. Raises SchedulerError, MissingPackageError.
    """
    distributed = load_distributed()
    import dask

    offered = local_resources(resources, workers)
    with dask.config.set(QUIET), ignoring_interrupts():
        cluster = distributed.LocalCluster(
            n_workers=workers, threads_per_worker=1, processes=True, memory_limit=0, dashboard_address="127.0.0.1:0",
            host="127.0.0.1", resources=offered or None, silence_logs=50,
        )  # fmt: skip
    try:
        with distributed.Client(cluster, set_as_default=False) as client:
            yield client
    finally:
        with contextlib.suppress(Exception):  # what is left ends with this process
            cluster.close(timeout=10)


@contextlib.contextmanager
def remote_client(address: str, *, seconds: float = CONNECT_SECONDS) -> Iterator[Client]:
    """A connection to an existing scheduler, e.g. "tcp://10.0.0.1:8786". Raises SchedulerError after `seconds`."""
    distributed = load_distributed()
    try:
        client = distributed.Client(address, timeout=seconds, set_as_default=False, name="fusionlab")
    except (OSError, ValueError) as error:  # a time-out is an OSError too
        raise SchedulerError(
            f"no Dask scheduler answers at {address} within {seconds:g} s ({type(error).__name__}: {error})",
            remedy="start `dask scheduler`, check address and firewall, or leave --scheduler out to run on this machine",
        ) from error
    try:
        yield client
    finally:
        with contextlib.suppress(Exception):
            client.close(timeout=10)


def load_distributed() -> Any:
    """Dask distributed. Raises MissingPackageError."""
    try:
        import distributed
    except ImportError as error:
        raise MissingPackageError("sweeps need Dask distributed", remedy="pip install 'fusionlab[lab]'") from error
    return distributed


@contextlib.contextmanager
def ignoring_interrupts() -> Iterator[None]:
    """Processes that are started meanwhile ignore Ctrl-C, which a terminal sends to all of them."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def local_resources(resources: Mapping[str, float], workers: int) -> dict[str, float]:
    """What each local worker offers. Raises SchedulerError for what this machine does not have."""
    unknown = [name for name, amount in resources.items() if name != "GPU" or amount != 1]
    if unknown:
        raise SchedulerError(f"the runs ask for {unknown[0]}={resources[unknown[0]]:g}, which local workers do not offer",
                             remedy="start workers with --resources and pass --scheduler")  # fmt: skip
    if resources and len(find_gpus()) < workers:
        raise SchedulerError(f"the runs ask for GPU=1 and this machine has {len(find_gpus())} for {workers} workers",
                             remedy="lower --workers, look at CUDA_VISIBLE_DEVICES, or pass --scheduler of a "
                             "cluster")  # fmt: skip
    return dict(resources)


def find_gpus() -> list[str]:
    """NVIDIA GPUs of this machine that this process may use, by number or as CUDA_VISIBLE_DEVICES names them."""
    try:
        done = subprocess.run(["nvidia-smi", "--list-gpus"], capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return []
    there = [str(number) for number in range(len(done.stdout.strip().splitlines()))] if done.returncode == 0 else []
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    if chosen is None or not there:
        return there
    names = (name.strip() for name in chosen.split(","))  # CUDA reads up to the first that it does not know
    return list(itertools.takewhile(lambda name: name in there or name.startswith(("GPU-", "MIG-")), names))

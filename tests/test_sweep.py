"""Sweeps on real Dask workers over stub notebooks: what fails, what is killed, who shares a folder, who sees no disk."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
from process_trees import kill_tree, start_fusionlab, tree_of
from stub_notebooks import write_notebook, write_sweep

from fusionlab.errors import OutputError, SchedulerError
from fusionlab.experiments import store as store_module
from fusionlab.experiments.cluster import find_gpus, local_resources
from fusionlab.experiments.dispatch import Account, Queue
from fusionlab.experiments.remote_store import open_store
from fusionlab.experiments.results import query, read_runs
from fusionlab.experiments.run_key import Run
from fusionlab.experiments.store import Store
from fusionlab.experiments.sweep import SweepOptions, describe_plan, make_plan, run_sweep
from fusionlab.experiments.sweep_file import plan_sweep


def do(file: Path, store: Store, *, say: Callable[[str], None] = lambda line: None, **options: Any) -> Account:
    """Run a sweep file in this process, on one worker unless it says otherwise."""
    sweep, runs = plan_sweep(file)
    return run_sweep(runs, store, SweepOptions(**{"workers": 1, **options}), notebook=Path(sweep.notebook),
                     sweep_file=file, say=say)  # fmt: skip


def log_lines(path: Path) -> list[str]:
    """What executions left in the stub's log."""
    return path.read_text().splitlines() if path.exists() else []


@pytest.mark.slow
def test_a_failing_run_is_kept_and_listed_and_the_rest_goes_on(tmp_path: Path) -> None:
    """Then: nothing is done twice, a failure only with --retry-failed, and a new point alone when the file grows."""
    log = tmp_path / "log"
    said: list[str] = []
    file = write_sweep(tmp_path, grid={"x": [0, 1, 2]}, runs=[{"fail": True, "x": 7}], parameters={"log": str(log)})
    store = Store(tmp_path / "out")
    account = do(file, store, say=said.append)
    assert (account.ok, account.already, len(account.failed), account.left) == (3, 0, 1, 0)
    assert any("failed" in line and "AssertionError: asked to fail" in line for line in said)
    frame = read_runs(store).to_frame()
    assert dict(zip(frame["x"], frame["status"], strict=True)) == {0: "ok", 1: "ok", 2: "ok", 7: "failed"}
    assert "error.json" in os.listdir(store.folder / "failed" / store.failed()[next(iter(account.failed))])

    again = do(file, store)
    assert (again.ok, again.already, len(again.failed)) == (0, 3, 1) and len(log_lines(log)) == 4
    file = write_sweep(tmp_path, grid={"x": [0, 1, 2, 3]}, runs=[{"fail": True, "x": 7}], parameters={"log": str(log)})
    grown = do(file, store, retry_failed=True, fresh=True)
    kernels = read_runs(store).to_frame().set_index("x")["kernel"]
    assert kernels.loc[[0, 1, 2]].nunique() == 1 and kernels.loc[[3, 7]].nunique() == 2, "--fresh: a kernel per run"
    assert (grown.ok, grown.already, len(grown.failed)) == (1, 3, 1)
    assert sorted(log_lines(log)) == ["0.0 0", "1.0 0", "2.0 0", "3.0 0", "7.0 0", "7.0 0"]
    assert len(store.failed()) == 1 and len(store.names("failed")) == 1, "the newer failure replaces the older"
    assert len(store.manifests()) == 2 and {"versions", "git", "hardware", "models"} <= store.manifests()[0].keys()


@pytest.mark.slow
def test_a_worker_killed_mid_run_costs_one_try_and_its_run_is_given_up_after_two(tmp_path: Path) -> None:
    """A run that takes its workers with it comes to an end, and all others finish."""
    killer = "import os, signal\nif fail:\n    os.kill(os.getppid(), signal.SIGKILL)\n    import time; time.sleep(30)"
    once = "import os, signal, time\nif name == 'once' and not os.path.exists(log):\n    open(log, 'w').close()\n" \
           "    os.kill(os.getppid(), signal.SIGKILL)\n    time.sleep(30)"  # fmt: skip
    write_notebook(tmp_path / "stub.ipynb", killer, once, "from fusionlab.experiments import record; record(score=x)")
    file = write_sweep(tmp_path, grid={"x": [0, 1, 2]}, runs=[{"fail": True}, {"name": "once"}],
                       parameters={"log": str(tmp_path / "marker")})  # fmt: skip
    store = Store(tmp_path / "out")
    account = do(file, store, workers=2)
    assert (account.ok, len(account.failed), account.left) == (4, 1, 0)
    frame = read_runs(store).to_frame().set_index("name")
    assert frame.loc["once", "tries"] == 2 and frame.loc["once", "status"] == "ok"
    assert "WorkerDied" in next(iter(account.failed.values()))
    assert frame[frame["fail"]]["tries"].tolist() == [2]


@pytest.mark.slow
def test_a_full_disk_stops_the_sweep_says_so_and_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Going on would fail every run that is left, one after the other."""
    file = write_sweep(tmp_path, grid={"x": [0, 1, 2, 3]})
    full = tmp_path / "full"
    full.mkdir()
    with small_disk(full):
        store = Store(full / "out")
        with pytest.raises(OutputError, match=r"No space left.*finished runs are kept"):
            do(write_filler(file), store)
        kept = read_runs(store).to_frame() if store.finished() else None
        assert kept is not None and set(kept["status"]) == {"ok"} and 0 < len(kept) < 4
        for blob in full.rglob("blob"):
            blob.unlink()
        assert set(store.finished()) == set(kept["key"])


def write_filler(file: Path) -> Path:
    """Make the stub write 3 MB per run."""
    fill = "from fusionlab.experiments import run_folder, record\n" \
           "(run_folder() / 'blob').write_bytes(b'0' * 3_000_000)\nrecord(score=x)"  # fmt: skip
    write_notebook(file.parent / "stub.ipynb", fill)
    return file


@contextmanager
def small_disk(folder: Path) -> Iterator[None]:
    """A file system of 14 MB at `folder`; where none may be mounted the test is skipped."""
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=14m", "tmpfs", str(folder)], capture_output=True, text=True)
    if done.returncode != 0:
        pytest.skip(f"no file system may be mounted here: {done.stderr.strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_folder_that_cannot_be_written_is_refused_before_anything_starts(tmp_path: Path) -> None:
    """Even for root, to whom every folder looks writable."""
    file = write_sweep(tmp_path, grid={"x": [0]})
    (tmp_path / "regular").write_text("")
    for place in (tmp_path / "regular" / "out", Path("/proc/out")):
        with pytest.raises(OutputError, match=f"cannot write to {place}"):
            do(file, Store(place))


@pytest.mark.slow
def test_two_sweeps_in_one_folder_share_the_work(tmp_path: Path) -> None:
    """Every run is done by one of them, and both say that all are there."""
    log = tmp_path / "log"
    file = write_sweep(tmp_path, grid={"x": list(range(12))}, parameters={"log": str(log), "sleep": 0.3})
    command = ("sweep", str(file), "--out", str(tmp_path / "out"), "--workers", "1", "--no-report")
    both = [start_fusionlab(*command, cwd=tmp_path) for _ in range(2)]
    outputs = [process.communicate(timeout=120)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0], outputs
    assert sorted(log_lines(log), key=lambda line: float(line.split()[0])) == [f"{x:.1f} 0" for x in range(12)]
    frame = read_runs(Store(tmp_path / "out")).to_frame()
    assert len(frame) == 12 and frame["session"].nunique() == 2, "both took part"


@pytest.mark.slow
def test_a_sweep_takes_over_the_run_of_one_that_was_killed(tmp_path: Path) -> None:
    """Its worker was told before that somebody is at the run, and must look again."""
    log = tmp_path / "log"
    first = "import os, time\nbegun = os.path.exists(log)\nopen(log, 'a').write('x')\ntime.sleep(0 if begun else 120)"
    write_notebook(tmp_path / "stub.ipynb", first, "from fusionlab.experiments import record; record(score=x)")
    file = write_sweep(tmp_path, grid={"x": [3]}, parameters={"log": str(log)})
    command = ("sweep", str(file), "--out", "out", "--workers", "1", "--no-report")
    killed = start_fusionlab(*command, cwd=tmp_path)
    wait_until(log.exists)
    other = start_fusionlab(*command, cwd=tmp_path)
    try:
        store = Store(tmp_path / "out")
        wait_until(lambda: len(store.manifests()) == 2)
        time.sleep(8)  # its worker starts, asks, and waits for the claim
        kill_tree(killed)
        output, _ = other.communicate(timeout=30)
    finally:
        for process in (killed, other):
            if process.poll() is None:
                kill_tree(process)
    assert other.returncode == 0 and "1 done" in output and log.read_text() == "xx", output


@pytest.mark.slow
def test_a_run_that_failed_in_another_sweep_is_not_done_again(tmp_path: Path) -> None:
    """It stays failed until --retry-failed, whether the other was at it or done; so does a retry that failed."""
    log = tmp_path / "log"
    file = write_sweep(tmp_path, runs=[{"x": x, "fail": True} for x in (0, 1, 2)],
                       parameters={"log": str(log), "sleep": 1.5})  # fmt: skip
    command = ("sweep", str(file), "--out", "out", "--workers", "1", "--no-report")
    for more, executions in (((), 3), (("--retry-failed",), 6)):
        both = [start_fusionlab(*command, *more, cwd=tmp_path) for _ in range(2)]
        outputs = [process.communicate(timeout=120)[0] for process in both]
        assert [process.returncode for process in both] == [1, 1], outputs
        assert all("3 failed; results" in output and output.count("AssertionError") >= 3 for output in outputs), outputs
        assert len(log_lines(log)) == executions, outputs


@pytest.mark.slow
def test_ctrl_c_ends_cleanly_and_the_same_command_goes_on(tmp_path: Path) -> None:
    """No process is left and no run is marked as failed: first by the SIGTERM of a batch system, then by Ctrl-C."""
    file = write_sweep(tmp_path, grid={"x": list(range(8))}, parameters={"sleep": 0.7, "log": str(tmp_path / "log")})
    command = ("sweep", str(file), "--out", "out", "--workers", "1", "--no-report")
    store = Store(tmp_path / "out")
    for number, least in ((signal.SIGTERM, 1), (signal.SIGINT, 3)):
        process = start_fusionlab(*command, cwd=tmp_path)
        wait_until(lambda least=least: len(store.finished()) >= least)  # type: ignore[misc]
        members = tree_of(process.pid)
        os.killpg(process.pid, number) if number == signal.SIGINT else os.kill(process.pid, number)  # a terminal tells all
        output, _ = process.communicate(timeout=60)
        assert process.returncode == 130 and "the same command goes on" in output and "Traceback" not in output
        _, alive = psutil.wait_procs(members, timeout=10)
        assert not alive
        assert not store.failed() and not store.names("claims") and not store.names("partial")
    kept = store.finished()
    assert 3 <= len(kept) < 8
    done = start_fusionlab(*command, "--limit", "1", cwd=tmp_path)
    output, _ = done.communicate(timeout=60)
    assert done.returncode == 0 and f"1 done, {len(kept)} were done before, 0 failed, {7 - len(kept)} left" in output


def wait_until(condition: Callable[[], bool], seconds: float = 60.0) -> None:
    """Wait for something to become true."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come to pass"
        time.sleep(0.05)


@pytest.mark.slow
@pytest.mark.parametrize(("chosen", "expected"), [("6,7", {"6", "7"}), ("", {""}), (None, {"0", "1"})])
def test_local_workers_take_their_gpus_from_the_users_list(
    chosen: str | None, expected: set[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a shared machine the others belong to somebody else; an empty list hides them all."""
    install_gpus(8, tmp_path / "bin", monkeypatch)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if chosen is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", chosen)
    write_notebook(tmp_path / "stub.ipynb", "import os, time; time.sleep(1); from fusionlab.experiments import record",
                   "record(gpu=os.environ['CUDA_VISIBLE_DEVICES'])")  # fmt: skip
    store = Store(tmp_path / "out")
    account = do(write_sweep(tmp_path, grid={"x": list(range(6))}), store, workers=2)
    assert account.ok == 6 and set(read_runs(store).to_frame()["gpu"]) == expected


@pytest.mark.parametrize(("chosen", "expected"), [
    (None, ["0", "1"]), ("", []), ("-1", []), ("1", ["1"]), (" 1, 0", ["1", "0"]), ("1,5,0", ["1"]),
    ("GPU-8932f937,MIG-1", ["GPU-8932f937", "MIG-1"]),
])  # fmt: skip
def test_the_gpus_are_those_that_cuda_would_see(
    chosen: str | None, expected: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """CUDA reads its list up to the first name that it does not know; a sweep for more GPUs than that is refused."""
    install_gpus(2, tmp_path, monkeypatch)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if chosen is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", chosen)
    assert find_gpus() == expected
    with pytest.raises(SchedulerError, match=f"GPU=1 and this machine has {len(expected)} for 3 workers"):
        local_resources({"GPU": 1}, 3)
    monkeypatch.setenv("PATH", "")
    assert find_gpus() == [], "without a driver there is none, whatever the list says"


def install_gpus(count: int, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An nvidia-smi that lists so many GPUs."""
    folder.mkdir(exist_ok=True)
    lines = "".join(f"echo 'GPU {number}: H100'\n" for number in range(count))
    (folder / "nvidia-smi").write_text(f"#!/bin/sh\n{lines}")
    (folder / "nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")


# -- two machines --------------------------------------------------------------------------------


@contextmanager
def dask_cluster(folder: Path, *, workers: int, options: tuple[str, ...] = ()) -> Iterator[str]:
    """A scheduler on 127.0.0.2 and workers on 127.0.0.3, each a process of its own; the scheduler's address."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    info = folder / "scheduler.json"
    python = [sys.executable, "-m"]
    processes = [subprocess.Popen(
        [*python, "distributed.cli.dask_scheduler", "--host", "127.0.0.2", "--port", "0", "--no-dashboard",
         "--scheduler-file", str(info)],
        env=environment, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)]  # fmt: skip
    try:
        wait_until(info.exists)
        time.sleep(0.1)
        import json

        address = str(json.loads(info.read_text())["address"])
        for place in range(workers):
            home = folder / f"machine{place}"
            home.mkdir()
            processes.append(subprocess.Popen(
                [*python, "distributed.cli.dask_worker", address, "--host", f"127.0.0.{3 + place}", "--nthreads", "1",
                 "--no-dashboard", "--no-nanny", "--name", f"m{place}", *options], env=environment, cwd=home,
                stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL))  # fmt: skip
        yield address
    finally:
        for process in processes:
            for member in reversed(tree_of(process.pid)):
                member.kill()
            process.wait()


@pytest.mark.slow
def test_workers_elsewhere_that_see_no_common_disk_send_their_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two machines without a shared folder: results are complete on the client's side, and teams stay where they are."""
    file = write_sweep(tmp_path, grid={"name": ["a", "b"], "x": [0, 1, 2]}, team=["name"], runs=[{"fail": True}])
    store = Store(tmp_path / "out")
    monkeypatch.setattr(store_module.Store, "url", property(lambda self: "/nowhere/on/any/machine"))
    with dask_cluster(tmp_path, workers=2) as address:
        account = do(file, store, scheduler=address)
    assert (account.ok, len(account.failed)) == (6, 1)
    frame = read_runs(store).to_frame()
    assert set(frame["worker"]) == {"m0", "m1"}
    good = frame[frame["status"] == "ok"]
    assert len(good) == 6 and not good["team"].isna().any()
    for key in good["key"]:
        names = {path.name for path in (store.folder / "runs" / key).iterdir()}
        assert {"row.parquet", "notebook.ipynb", "notebook.html", "log.txt"} <= names
    switches = sum(len(set(group["name"])) for _, group in good.groupby("worker"))
    assert switches <= 3, "each worker keeps to the models it has loaded"


@pytest.mark.slow
def test_an_existing_scheduler_is_used_and_what_it_lacks_is_said(tmp_path: Path) -> None:
    """With a shared disk workers commit by themselves; for a resource that none offers nobody waits for ever."""
    file = write_sweep(tmp_path, grid={"x": [0, 1]}, resources={"GPU": 1})
    with dask_cluster(tmp_path, workers=1, options=("--resources", "GPU=1")) as address:
        command = ("sweep", str(file), "--out", "out", "--scheduler", address, "--no-report")
        process = start_fusionlab(*command, cwd=tmp_path)
        output, _ = process.communicate(timeout=90)
        assert process.returncode == 0 and "2 done" in output, output
        strangers = plan_sweep(write_sweep(tmp_path, "code.yaml", grid={"x": [7]}, code="another version"))[1]
        with pytest.raises(SchedulerError, match=r"has fusionlab 0.1.0\+.*planned with another version"):
            run_sweep(strangers, Store(tmp_path / "out"), SweepOptions(scheduler=address), notebook=file)
        other = plan_sweep(write_sweep(tmp_path, "other.yaml", grid={"x": [5]}, resources={"GPU": 2}))[1]
        with pytest.raises(SchedulerError, match="no worker offers GPU=2"):
            run_sweep(other, Store(tmp_path / "out"), SweepOptions(scheduler=address), notebook=file, patience=2)


@pytest.mark.slow
def test_two_sweeps_on_one_scheduler_stay_apart_and_its_loss_is_an_error(tmp_path: Path) -> None:
    """Each has its kernel and its folder; when the scheduler ends, both say so and keep what finished."""
    file = write_sweep(tmp_path, grid={"x": list(range(40))}, parameters={"sleep": 0.3})
    with dask_cluster(tmp_path, workers=2) as address:
        both = [start_fusionlab("sweep", str(file), "--out", name, "--scheduler", address, "--no-report", cwd=tmp_path)
                for name in ("one", "two")]  # fmt: skip
        stores = [Store(tmp_path / name) for name in ("one", "two")]
        wait_until(lambda: all(len(store.finished()) >= 2 for store in stores))
        for connection in psutil.net_connections():
            if connection.status == psutil.CONN_LISTEN and f"{connection.laddr.ip}:{connection.laddr.port}" in address:
                psutil.Process(connection.pid).kill()
        for process, store in zip(both, stores, strict=True):
            output, _ = process.communicate(timeout=120)
            assert process.returncode == 2 and "the scheduler is gone" in output and "Traceback" not in output, output
            frame = read_runs(store).to_frame()
            assert set(frame["status"]) == {"ok"} and frame["session"].nunique() == 1


def test_an_unreachable_scheduler_is_an_error_after_the_stated_time(tmp_path: Path) -> None:
    """Dask by itself waits for half a minute and raises a chain of tracebacks."""
    file = write_sweep(tmp_path, grid={"x": [0]})
    with pytest.raises(SchedulerError, match=r"no Dask scheduler answers at tcp://127.0.0.1:9 within 0.5 s"):
        do(file, Store(tmp_path / "out"), scheduler="tcp://127.0.0.1:9", connect_seconds=0.5)
    with pytest.raises(SchedulerError, match="GPU=1 and this machine has"):
        do(write_sweep(tmp_path, "gpu.yaml", grid={"x": [0]}, resources={"GPU": 1}), Store(tmp_path / "out"), workers=99)


@pytest.mark.slow
def test_results_in_another_file_system_are_the_same(tmp_path: Path) -> None:
    """memory:// is seen by no worker, so files travel, and the store is written through fsspec."""
    store = open_store(f"memory://{tmp_path.name}/out")
    account = do(write_sweep(tmp_path, grid={"x": [0, 1]}, runs=[{"fail": True}]), store)
    assert (account.ok, len(account.failed)) == (2, 1) and len(store.finished()) == 2 and len(store.failed()) == 1
    assert query(store, "SELECT sum(score) AS total FROM runs")["total"].tolist() == [2.0]
    again = do(write_sweep(tmp_path, grid={"x": [0, 1]}, runs=[{"fail": True}]), store)
    assert (again.ok, again.already, len(again.failed)) == (0, 2, 1)


# -- without workers -----------------------------------------------------------------------------


def test_a_free_worker_gets_what_it_has_loaded_else_what_most_wait_for() -> None:
    """So a team is loaded once per worker, and no worker stays without work."""
    runs = [Run(f"k{n}", n, "n", "", team=team) for n, team in enumerate("aaaabb")]
    waiting = Queue(runs)
    assert waiting.take(None, {}).team == "a"
    assert waiting.take("b", {"a": 1, "b": 1}).team == "b"
    assert waiting.take(None, {"a": 3}).team == "b", "three attend to a already"
    assert [waiting.take("b", {"a": 1}).team for _ in range(len(waiting))] == ["a", "a", "a"]


def test_dry_run_shows_what_would_be_done_and_an_estimate(tmp_path: Path) -> None:
    """From the median of what ran here before; without that, no number is made up."""
    from store_factory import write_run

    runs = plan_sweep(write_sweep(tmp_path, grid={"x": [0, 1, 2]}))[1]
    store, options = Store(tmp_path / "out"), SweepOptions(workers=2)
    text = describe_plan(make_plan(runs, store, options), options)
    assert "3 runs: 0 finished, 0 failed, 3 to do now" in text and "no estimate" in text
    assert not (tmp_path / "out").exists()
    store.create()
    write_run(store, runs[0], seconds=100.0)
    text = describe_plan(make_plan(runs, store, options), options)
    assert "estimate: 2 min with 2 workers (100.0 s a run, median of 1)" in text
    assert [line.split()[1] for line in text.splitlines()[:3]] == ["finished", "to", "to"]
    limited = make_plan(runs, store, SweepOptions(limit=1))
    assert [run.given["x"] for run in limited.todo] == [1.0]

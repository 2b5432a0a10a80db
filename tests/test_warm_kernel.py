"""A kernel that outlives runs: nothing leaks from one into the next but loaded modules, and a dead one is replaced."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from stub_notebooks import RECORD, write_notebook, write_stub

from fusionlab.errors import NotebookError
from fusionlab.experiments import recording, teams
from fusionlab.experiments.execution import ERROR, NOTEBOOK, PAGE, Failure, execute_run
from fusionlab.experiments.kernel import WarmKernel
from fusionlab.experiments.notebook import load_notebook
from fusionlab.experiments.results import read_row
from fusionlab.experiments.run_key import Run
from fusionlab.experiments.store import Store
from fusionlab.experiments.sweep_file import make_run


@pytest.fixture(scope="module")
def kernel(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WarmKernel]:
    """One kernel for the whole file, which is what it is for."""
    made = WarmKernel(environment={"FROM_START": "1"}, log=tmp_path_factory.mktemp("kernel") / "kernel.log")
    yield made
    made.close()


def run_cells(kernel: WarmKernel, folder: Path, *cells: str, **given: Any) -> tuple[Failure | None, dict[str, Any]]:
    """Execute a notebook of these cells in the kernel; the failure and the row."""
    folder.mkdir(exist_ok=True)
    notebook = load_notebook(write_notebook(folder.parent / "cells.ipynb", *cells))
    run = make_run(notebook, given, code="test")
    failure = execute_run(run, folder, kernel, facts={"session": "s", "tries": 1})
    return failure, read_row(Store(folder.parent), folder.name).to_pylist()[0]


SPOIL = """
import os, random, sys
import numpy as np
leaked = [1] * 10
name_of_a_run = name
random.seed(0)
np.random.seed(0)
os.environ["LEAKED"] = "1"
os.environ["FROM_START"] = "changed"
os.environ.pop("HOME", None)
sys.path.insert(0, "/leaked")
os.chdir("/")
_ = Out
"""
LOOK = """
import os, sys, random, builtins
mine = {"os", "sys", "random", "builtins", "json", "record"}
names = sorted(name for name in globals() if not name.startswith("_") and name not in mine and name not in dir(builtins))
from fusionlab.experiments import record
record(names=names, history=len([line for line in In if line]), out=sorted(map(str, Out)), environ=os.environ.get("LEAKED"),
       start=os.environ.get("FROM_START"), home="HOME" in os.environ, path="/leaked" in sys.path, folder=os.getcwd(),
       draw=random.random(), numpy=sys.modules["numpy"].random.rand() if "numpy" in sys.modules else None,
       under=repr(globals().get("_")), last=hasattr(sys, "last_value"), log=name)
"""


def test_no_name_leaks_from_one_run_into_the_next(kernel: WarmKernel, tmp_path: Path) -> None:
    """The point of a warm kernel is speed; its danger is a result that depends on what ran before."""
    _, first = run_cells(kernel, tmp_path / "first", LOOK)
    failure, _ = run_cells(kernel, tmp_path / "spoilt", SPOIL, "raise ValueError('keeps frames alive')", name="spoilt")
    assert failure is not None and kernel.starts == 1
    _, second = run_cells(kernel, tmp_path / "second", LOOK)
    assert second["kernel"] == first["kernel"], "the same process"
    drawn = ("draw", "numpy")
    told = [{name: row[name] for name in row if name in
             ("names", "history", "out", "environ", "start", "home", "path", "folder", "under", "last")}
            for row in (first, second)]  # fmt: skip
    assert told[0] == told[1]
    assert "leaked" not in second["names"] and json.loads(second["names"])  # parameters are there, nothing else
    assert second["start"] == "1" and second["environ"] is None
    run_cells(kernel, tmp_path / "third", SPOIL)
    _, fourth = run_cells(kernel, tmp_path / "fourth", LOOK)
    assert all(fourth[name] != second[name] for name in drawn), "a seed of one run decides the next one's draws"


def test_what_a_run_held_is_gone_when_the_next_one_begins(kernel: WarmKernel, tmp_path: Path) -> None:
    """Gigabytes that wait for the collector, or hang on the frames of a failed cell, would add up over runs."""
    hold = "import builtins, weakref\nclass Held:\n    pass\nheld = Held()\nheld.itself = held\n" \
           "builtins.seen = weakref.ref(held)"  # fmt: skip
    look = "import builtins\nfrom fusionlab.experiments import record\nrecord(there=builtins.seen() is not None)"
    for n, last in enumerate(("done = 1", "raise ValueError(held)", "def inner(held):\n    1 / 0\ninner(held)")):
        run_cells(kernel, tmp_path / f"held{n}", hold, last)
        _, row = run_cells(kernel, tmp_path / f"look{n}", look)
        assert row["there"] is False, last


def test_what_a_run_prints_records_and_writes_is_kept(kernel: WarmKernel, tmp_path: Path) -> None:
    """The executed notebook, a page without anything remote, the log, the row."""
    failure, row = run_cells(kernel, tmp_path / "run", "print('said this')", RECORD,
                             "record(score=-1.5, nan=float('nan'), some=[1, {'a': None}], seed='mine')", x=3)  # fmt: skip
    assert failure is None and row["status"] == "ok" and row["score"] == -1.5
    assert row["nan"] != row["nan"] and json.loads(row["some"]) == [1, {"a": None}]
    assert row["seed"] == 0 and row["result_seed"] == "mine", "a field called like a parameter keeps both"
    assert (tmp_path / "run" / "log.txt").read_text() == "said this\n"
    page = (tmp_path / "run" / PAGE).read_text()
    assert "said this" in page and "http" not in page.replace("http-equiv", "")
    assert len(page) < 20_000


def test_a_failing_cell_keeps_the_executed_copy_with_the_error(kernel: WarmKernel, tmp_path: Path) -> None:
    """What went wrong in run 417 of 500 should be there to read."""
    failure, row = run_cells(kernel, tmp_path / "run", "before = 1", "1 / 0", "after = 1")
    assert failure is not None and failure.kind == "ZeroDivisionError" and failure.cell == "1 / 0"
    assert row["status"] == "failed" and row["error"].startswith("ZeroDivisionError")
    stored = json.loads((tmp_path / "run" / NOTEBOOK).read_text())
    errors = [output for cell in stored["cells"] for output in cell.get("outputs", []) if output["output_type"] == "error"]
    assert [error["ename"] for error in errors] == ["ZeroDivisionError"]
    about = json.loads((tmp_path / "run" / ERROR).read_text())
    assert about["cell"] == "1 / 0" and "\x1b" not in about["traceback"]


@pytest.mark.parametrize("signal_number", [signal.SIGKILL, signal.SIGSEGV])
def test_a_dead_kernel_is_reported_and_replaced(signal_number: int, kernel: WarmKernel, tmp_path: Path) -> None:
    """Out of memory or a crash in C must cost one run and not the sweep."""
    kill = f"import os; os.kill(os.getpid(), {int(signal_number)})"
    failure, row = run_cells(kernel, tmp_path / "killed", "a = 1", kill)
    assert failure is not None and failure.kernel_died and failure.cell == kill
    assert row["status"] == "failed" and row["error"].startswith("KernelDied")
    failure, row = run_cells(kernel, tmp_path / "next", RECORD)
    assert failure is None and row["status"] == "ok"


def test_a_cell_that_takes_too_long_is_ended(kernel: WarmKernel, tmp_path: Path) -> None:
    """One endless loop must not hold a worker for ever."""
    notebook = load_notebook(write_notebook(tmp_path / "slow.ipynb", "while True: pass"))
    run = make_run(notebook, {}, code="test")
    folder = tmp_path / "run"
    folder.mkdir()
    limited = Run(**{**vars(run), "cell_timeout_seconds": 0.9})
    failure = execute_run(limited, folder, kernel, facts={})
    assert failure is not None and failure.kind == "CellTimeout" and failure.cell == "while True: pass"
    assert not kernel.is_alive()


def test_a_kernel_ends_with_the_process_that_started_it() -> None:
    """kill -9 of a worker must not leave a gigabyte of loaded models behind."""
    import multiprocessing

    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    owner = context.Process(target=own_a_kernel, args=(there,))
    owner.start()
    pid = here.recv()
    assert owner.pid is not None
    os.kill(owner.pid, signal.SIGKILL)
    deadline = time.monotonic() + 15
    while is_there(pid) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not is_there(pid)


def own_a_kernel(pipe: Any) -> None:
    """Start a kernel, tell its number, wait to be killed."""
    kernel = WarmKernel()
    kernel.prepare({})
    pipe.send(kernel.pid)
    time.sleep(60)


def is_there(pid: int) -> bool:
    """Whether a process runs."""
    import psutil

    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


def test_braces_and_hostile_values_stay_values(kernel: WarmKernel, tmp_path: Path) -> None:
    """papermill formats output paths with the parameters: a folder called {x} would be another one, or an error."""
    hostile = "../../{x}/\"quoted\" 'twice' \\ \n %s $HOME"
    folder = tmp_path / "{x} {missing}"
    failure, row = run_cells(kernel, folder, RECORD, name=hostile)
    assert failure is None and row["name"] == hostile and row["label"] == hostile
    assert (folder / NOTEBOOK).is_file()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cells.ipynb", folder.name]


def test_a_kernel_that_does_not_exist_is_a_failed_run(tmp_path: Path) -> None:
    """The notebook may name a kernel of its author's machine."""
    notebook = load_notebook(write_stub(tmp_path))
    run = Run(**{**vars(make_run(notebook, {}, code="t")), "kernel": "nowhere"})
    folder = tmp_path / "run"
    folder.mkdir()
    failure = execute_run(run, folder, WarmKernel("nowhere"), facts={})
    assert failure is not None and "nowhere" in failure.message and (folder / NOTEBOOK).is_file()


# -- teams ---------------------------------------------------------------------------------------

COUNT = """
from fusionlab import team
from fusionlab.experiments import record, teams, warm_team

team.Team.from_pretrained = classmethod(lambda cls, name=None, **options: object())
first, second = warm_team("embedded", experts=["a"]), warm_team("embedded", experts=["a"])
record(same=first is second, loads=teams.counter.loads)
"""


def test_a_team_is_loaded_once_per_kernel_and_counted_by_run(kernel: WarmKernel, tmp_path: Path) -> None:
    """The column team_loads is what shows that the kernel was warm."""
    kernel.close()
    rows = [run_cells(kernel, tmp_path / f"run{n}", COUNT)[1] for n in range(3)]
    assert [row["team_loads"] for row in rows] == [1, 0, 0]
    assert all(row["same"] for row in rows)


def test_only_as_many_teams_are_kept_as_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two teams of 13B models side by side do not fit a GPU: the old one goes before the new one comes."""
    alive: list[str] = []

    def load(name: str, **options: Any) -> object:
        alive.append(name)
        return object()

    monkeypatch.setattr("fusionlab.team.Team.from_pretrained", load)
    monkeypatch.setattr(teams, "counter", teams.Counter())
    monkeypatch.setattr(teams, "_kept", {})
    first = teams.warm_team("a")
    assert teams.warm_team("a", say=print) is first, "who watches does not make another team"
    assert teams.warm_team("b") is not first and teams.warm_team("a") is not first
    assert teams.counter.loads == 3 and alive == ["a", "b", "a"]
    monkeypatch.setenv(teams.COUNT_VARIABLE, "2")
    kept = teams.warm_team("b")
    assert teams.warm_team("a") and teams.warm_team("b") is kept and teams.counter.loads == 4


# -- what a notebook calls -----------------------------------------------------------------------


def test_record_takes_numbers_of_numpy_and_refuses_objects() -> None:
    """A field must become a column."""
    import numpy as np

    assert recording.plain_value("a", np.float32(0.5)) == 0.5 and recording.plain_value("a", np.int64(3)) == 3
    assert recording.plain_value("a", np.array([1, 2])) == "[1, 2]" and recording.plain_value("a", True) is True
    for value in (object(), {1, 2}, [object()]):
        with pytest.raises(NotebookError, match="record received a"):
            recording.plain_value("a", value)
    assert recording.from_json(recording.to_json(float("inf"))) == float("inf")


@pytest.mark.parametrize(
    ("rows", "complaint"),
    [([{"item": "a"}], "score"), ([{"score": 1}], "item"), ([{"item": "a", "score": 1}] * 2, "'a' twice")],
)
def test_items_without_what_pairs_them_are_refused(
    rows: Any, complaint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An id that stands twice would pair everything with everything."""
    monkeypatch.setenv(recording.FOLDER_VARIABLE, str(tmp_path))
    with pytest.raises(NotebookError, match=complaint):
        recording.record_items(rows)
    assert not list(tmp_path.iterdir())


def test_traces_are_kept_under_a_plain_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A name is a file's name, so it may not lead elsewhere."""
    from trace_factory import make_trace

    from fusionlab.trace import load_traces

    monkeypatch.setenv(recording.FOLDER_VARIABLE, str(tmp_path))
    path = recording.record_traces([make_trace(), make_trace(seed=1)], items=["i1", "i2"])
    assert len(load_traces(path)) == 2 and json.loads(path.with_suffix(".json").read_text()) == ["i1", "i2"]
    for name in ("../x", "a/b", "", "a.b"):
        with pytest.raises(NotebookError, match="name"):
            recording.record_traces([make_trace()], name=name)
    with pytest.raises(NotebookError, match="1 traces and 2 items"):
        recording.record_traces([make_trace()], items=["a", "b"])

"""`fusionlab run | sweep | results | report | compare` as a user meets them: one sentence and exit code 2 for a fault."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from store_factory import make_runs, write_run
from stub_notebooks import write_notebook, write_stub, write_sweep

from fusionlab import sweep_cli
from fusionlab.experiments.store import Store

Run = Callable[..., int]


@pytest.fixture(autouse=True)
def empty_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Every command is given in an empty folder."""
    monkeypatch.chdir(tmp_path)


FAULTS: dict[str, tuple[list[str], list[str]]] = {  # arguments, and what the sentence must hold
    "run, unknown parameter": (["run", "stub.ipynb", "-p", "sed", "1"], ["'sed'", "did you mean 'seed'", "x, name, seed"]),
    "run, wrong type": (["run", "stub.ipynb", "-p", "x", "much"], ["'x'", "'much'", "float"]),
    "run, parameter without value": (["run", "stub.ipynb", "-p", "x"], ["-p x has no value"]),
    "run, parameter twice": (["run", "stub.ipynb", "-p", "x", "1", "-p", "x", "2"], ["-p x is given twice"]),
    "run, no notebook": (["run", "nowhere.ipynb"], ["nowhere.ipynb", "No such file"]),
    "run, no parameters cell": (["run", "bare.ipynb"], ["bare.ipynb", "tagged `parameters`"]),
    "run, unwritable": (["run", "stub.ipynb", "--out", "/proc/out"], ["/proc/out", "finished runs are kept"]),
    "sweep, unknown parameter": (["sweep", "wrong.yaml"], ["wrong.yaml", "'xx'", "did you mean 'x'"]),
    "sweep, empty grid": (["sweep", "empty.yaml"], ["empty.yaml", "holds no run"]),
    "sweep, no file": (["sweep", "nowhere.yaml"], ["nowhere.yaml", "No such file"]),
    "sweep, unreachable scheduler": (
        ["sweep", "good.yaml", "--scheduler", "tcp://127.0.0.1:9", "--connect-seconds", "0.3"],
        ["no Dask scheduler answers at tcp://127.0.0.1:9 within 0.3 s"],
    ),
    "sweep, scheduler that is no address": (
        ["sweep", "good.yaml", "--scheduler", "cluster", "--connect-seconds", "0.3"], ["cluster"],
    ),
    "sweep, unwritable": (["sweep", "good.yaml", "--out", "stub.ipynb/out"], ["stub.ipynb/out"]),
    "sweep, unknown protocol": (["sweep", "good.yaml", "--out", "ftps3://x/y"], ["ftps3"]),
    "results, no store": (["results", "nowhere"], ["nowhere holds no run"]),
    "results, bad SQL": (["results", "out", "SELECT nothing FROM runs"], ["nothing", "tables: runs, sessions"]),
    "report, unknown metric": (["report", "out", "--metric", "speed"], ["'speed'", "known: score"]),
    "compare, no store": (["compare", "out", "nowhere"], ["nowhere holds no run"]),
    "compare, condition without runs": (["compare", "out", "out", "--where-a", "x > 9"], ["no finished run where x > 9"]),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_one_sentence_and_exit_code_2(
    fault: str, run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Before anything runs, and nothing is left behind."""
    write_stub(tmp_path)
    write_notebook(tmp_path / "bare.ipynb", "1", parameters=None)
    write_sweep(tmp_path, "good.yaml", grid={"x": [1]})
    write_sweep(tmp_path, "wrong.yaml", grid={"xx": [1]})
    write_sweep(tmp_path, "empty.yaml", grid={"x": []})
    store = Store(tmp_path / "out")
    store.create()
    write_run(store, make_runs([{"x": 1}])[0], fields={"score": 1.0})
    before = {path.name for path in tmp_path.iterdir()}

    arguments, expected = FAULTS[fault]
    code = run(*arguments)
    shown = capsys.readouterr()
    assert code == 2 and shown.out == "" and "Traceback" not in shown.err
    assert len(shown.err.splitlines()) == 1, shown.err
    missing = [part for part in expected if part not in shown.err]
    assert not missing, shown.err
    left = {path.name for path in tmp_path.iterdir()} - before
    assert left <= {"runs"} and not list(tmp_path.glob("runs/*/runs/*"))


@pytest.mark.slow
def test_run_keeps_the_notebook_and_does_nothing_twice(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One run and a sweep's run are the same thing in the same store."""
    log = tmp_path / "log"
    write_stub(tmp_path)
    name = 'it\'s "quoted", ../ and {braced}'
    arguments = ["run", "stub.ipynb", "-p", "x", "-1e-1", "-p", f"name={name}", "-p", "log", str(log)]
    assert run(*arguments) == 0
    shown = capsys.readouterr()
    assert "score = -0.2" in shown.out and f"label = {name}" in shown.out and "runs/stub/runs/" in shown.err
    assert run(*arguments) == 0 and "has finished before" in capsys.readouterr().err
    assert run(*arguments, "--again") == 0 and len(log.read_text().splitlines()) == 2
    assert run("run", "stub.ipynb", "-p", "fail", "true") == 1
    assert "AssertionError: asked to fail" in capsys.readouterr().err
    assert run("results", "runs/stub", "SELECT status, x FROM runs ORDER BY status", "--format", "json") == 0
    assert json.loads(capsys.readouterr().out) == [{"status": "failed", "x": 0.0}, {"status": "ok", "x": -0.1}]
    assert len([path for path in tmp_path.rglob("*") if "braced" in path.name]) == 0


@pytest.mark.slow
def test_a_repeat_that_fails_is_said_and_leaves_what_had_finished(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The old figures are no answer to --again, and no reason to lose them either."""
    body = "from pathlib import Path\nassert not Path(log).exists(), 'not now'"
    write_notebook(tmp_path / "stub.ipynb", body, "from fusionlab.experiments import record; record(score=x)")
    arguments = ["run", "stub.ipynb", "-p", "x", "2", "-p", "log", str(tmp_path / "marker")]
    assert run(*arguments) == 0 and "score = 2" in capsys.readouterr().out
    (tmp_path / "marker").touch()
    assert run(*arguments, "--again") == 1
    shown = capsys.readouterr()
    assert shown.out == "" and "failed: AssertionError: not now; files: runs/stub/failed/" in shown.err
    named = tmp_path / shown.err.partition("files: ")[2].strip()
    assert json.loads((named / "error.json").read_text())["message"] == "not now"
    assert run(*arguments) == 0 and "score = 2" in capsys.readouterr().out


def test_results_report_and_compare_answer_from_a_store(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The exit code of compare is for pipelines: 1 where B is worse than allowed."""
    for name, shift in (("a", 0.0), ("b", -0.5)):
        store = Store(tmp_path / name)
        store.create()
        for one in make_runs([{"x": x, "seed": seed} for x in (1.0, 2.0) for seed in (0, 1)]):
            items = {f"i{n}": 0.5 + shift * (n < 10) for n in range(20)}
            write_run(store, one, items=items, fields={"score": sum(items.values()) / 20}, outputs={"i1": name})
    assert run("results", "a", "SELECT x, count(*) AS n FROM runs GROUP BY x ORDER BY x", "--format", "csv") == 0
    assert capsys.readouterr().out == "x,n\n1.0,2\n2.0,2\n"
    assert run("report", "a", "--baseline", "x=2") == 0
    assert capsys.readouterr().out.split() == ["a/report.html", "a/report.csv"]
    assert run("compare", "a", "b", "--changed", "changed.csv") == 1
    shown = capsys.readouterr().out
    assert "B is worse; FAILS" in shown and "40 answers changed: 0 better in B, 40 worse" in shown and "'a' | 'b'" in shown
    assert (tmp_path / "changed.csv").read_text().count("\n") == 41
    assert run("compare", "a", "b", "--max-drop", "30") == 0
    assert run("compare", "b", "a") == 0 and "B is better; passes" in capsys.readouterr().out


def test_dry_run_writes_nothing(run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It is asked by whoever does not want to begin."""
    write_sweep(tmp_path, grid={"x": [0.5, 1]}, repeat=2)
    before = sorted(tmp_path.iterdir())
    assert run("sweep", "sweep.yaml", "--dry-run", "-p", "name", "b") == 0
    shown = capsys.readouterr().out
    assert "4 runs: 0 finished, 0 failed, 4 to do now" in shown and "name=b, x=0.5, seed=0" in shown
    assert sorted(tmp_path.iterdir()) == before


def test_parameters_are_two_words_as_in_papermill_or_one() -> None:
    """The parser knows one word per option; a value may begin with a dash or hold an equals sign."""
    assert sweep_cli.join_pairs(["--debug", "sweep", "f", "-p", "a", "-1", "--parameter", "b", "c=d"])[2:] == [
        "f", "-p", "a=-1", "--parameter", "b=c=d",
    ]  # fmt: skip
    assert sweep_cli.join_pairs(["generate", "-p", "a", "b"]) == ["generate", "-p", "a", "b"]
    assert sweep_cli.split_pairs(["a=", "b=c=d"]) == {"a": "", "b": "c=d"}

"""Sweep files: which runs they stand for, and what is wrong with them, before anything runs."""

from __future__ import annotations

import shutil
from importlib import resources
from pathlib import Path
from typing import Any

import pytest
from stub_notebooks import write_notebook, write_stub, write_sweep

from fusionlab.errors import FusionError, SweepError, UnknownNameError
from fusionlab.experiments import run_key
from fusionlab.experiments.run_key import Run, code_version, key_of, model_revisions, takes_part, team_of
from fusionlab.experiments.sweep_file import plan_sweep

ROOT = Path(__file__).parents[1]


def plan(tmp_path: Path, **keys: Any) -> list[Run]:
    """The runs of a sweep file over the stub notebook."""
    return plan_sweep(write_sweep(tmp_path, **keys))[1]


def test_grid_zip_runs_and_repeats_combine_as_the_docs_say(tmp_path: Path) -> None:
    """(grid x zip, then single runs), each once per repeat, in the file's order."""
    runs = plan(tmp_path, grid={"x": [1, 2]}, zip={"name": ["a", "b"], "sleep": [0, 1]}, runs=[{"x": 9}], repeat=2,
                parameters={"fail": False})  # fmt: skip
    points = [(run.values["seed"], run.values["x"], run.values["name"], run.values["sleep"]) for run in runs]
    once = [(1.0, "a", 0.0), (1.0, "b", 1.0), (2.0, "a", 0.0), (2.0, "b", 1.0), (9.0, "a", 0.0)]
    assert points == [(seed, *point) for seed in (0, 1) for point in once]
    assert [run.index for run in runs] == list(range(10))


def test_equal_points_are_one_run(tmp_path: Path) -> None:
    """Also where one writes down a default, or 1 for 1.0."""
    runs = plan(tmp_path, grid={"x": [0, 0.0, 1]}, runs=[{}, {"name": "a"}, {"x": 1.0}])
    assert [run.values["x"] for run in runs] == [0.0, 1.0]


def test_includes_are_the_base_and_paths_follow_the_file_that_names_them(tmp_path: Path) -> None:
    """So a folder of sweeps can share a base, wherever one stands."""
    inner = tmp_path / "inner"
    inner.mkdir()
    write_stub(inner)
    (inner / "base.yaml").write_text("notebook: stub.ipynb\nparameters: {sleep: 1, name: base}\nrepeat: 3\n")
    top = tmp_path / "top.yaml"
    top.write_text("include: [inner/base.yaml]\nparameters: {name: top}\ngrid: {x: [1e-1]}\n")
    runs = plan_sweep(top)[1]
    assert [(run.values["x"], run.values["sleep"], run.values["name"], run.values["seed"]) for run in runs] == [
        (0.1, 1.0, "top", seed) for seed in range(3)
    ]


FAULTS: dict[str, tuple[dict[str, Any], list[str]]] = {
    "empty grid": ({"grid": {}}, ["holds no run"]),
    "empty axis": ({"grid": {"x": []}}, ["holds no run"]),
    "nothing": ({}, ["holds no run"]),
    "unknown parameter": ({"grid": {"sed": [1]}}, ["grid", "'sed'", "did you mean 'seed'"]),
    "unknown parameter in runs": ({"runs": [{"x": 1}, {"y": 1}]}, ["entry 2", "'y'"]),
    "wrong type": ({"grid": {"x": [1, "two"]}}, ["'x'", "'two'", "float"]),
    "wrong type of a boolean": ({"parameters": {"fail": "no"}, "grid": {"x": [1]}}, ["'fail'", "'no'", "bool"]),
    "unknown key": ({"gird": {"x": [1]}}, ["'gird'", "grid, zip, runs"]),
    "grid of a single value": ({"grid": {"x": 1}}, ["grid.x", "list"]),
    "zip of unequal lengths": ({"zip": {"x": [1, 2], "name": ["a"]}}, ["zip", "one length"]),
    "one name in two places": ({"grid": {"x": [1]}, "zip": {"x": [1]}}, ["'x'", "grid", "zip"]),
    "repeat that runs overrule": ({"runs": [{"seed": 1}], "repeat": 2}, ["'seed'", "repeat"]),
    "too many": ({"grid": {"x": list(range(400)), "sleep": list(range(400))}}, ["160,000 runs"]),
    "unknown team parameter": ({"grid": {"x": [1]}, "team": ["experts"]}, ["team", "'experts'"]),
    "missing notebook": ({"notebook": "nowhere.ipynb", "grid": {"x": [1]}}, ["nowhere.ipynb", "No such file"]),
    "resources that are no number": ({"grid": {"x": [1]}, "resources": {"GPU": "all"}}, ["resources.GPU"]),
    "time-out of zero": ({"grid": {"x": [1]}, "cell_timeout_seconds": 0}, ["cell_timeout_seconds"]),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_found_before_anything_runs(fault: str, tmp_path: Path) -> None:
    """With the file, the place in it and what was received."""
    keys, expected = FAULTS[fault]
    with pytest.raises(FusionError) as caught:
        plan(tmp_path, **keys)
    missing = [part for part in expected if part not in str(caught.value)]
    assert not missing, str(caught.value)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [("", "holds no mapping"), ("- a", "holds no mapping"), ("notebook: 3", "notebook"), ("grid: {x: [1]}", "notebook"),
     ("include: sweep.yaml\nnotebook: stub.ipynb", "includes itself"), ("include: 3", "include is 3"),
     ("include: nowhere.yaml", "nowhere.yaml")],
)  # fmt: skip
def test_a_malformed_file_says_what_is_wrong(text: str, complaint: str, tmp_path: Path) -> None:
    """One sentence, not a validation library's list."""
    path = tmp_path / "sweep.yaml"
    path.write_text(text)
    with pytest.raises(SweepError, match=complaint):
        plan_sweep(path)


def test_what_the_command_line_fixes_may_not_be_varied_by_the_file(tmp_path: Path) -> None:
    """-p x 1 over a grid of x would run one point under a name that says many."""
    path = write_sweep(tmp_path, grid={"x": [1, 2]})
    assert {run.values["name"] for run in plan_sweep(path, overrides={"name": "b"})[1]} == {"b"}
    with pytest.raises(SweepError, match="-p x is what"):
        plan_sweep(path, overrides={"x": "1"})
    with pytest.raises(UnknownNameError, match="did you mean 'name'"):
        plan_sweep(path, overrides={"nam": "1"})


def test_a_repeat_alone_repeats_the_defaults(tmp_path: Path) -> None:
    """How much a result varies with the seed is asked before anything is varied."""
    runs = plan_sweep(write_sweep(tmp_path, repeat={"seed": [3, 4]}))[1]
    assert [run.values["seed"] for run in runs] == [3, 4]
    assert len({str({**run.values, "seed": 0}) for run in runs}) == 1
    with pytest.raises(SweepError, match="holds no run"):
        plan_sweep(write_sweep(tmp_path, repeat={"seed": []}))


# -- keys ----------------------------------------------------------------------------------------


def test_a_key_follows_notebook_parameters_models_and_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What decides a result changes the key, and nothing else does."""
    before = plan(tmp_path, grid={"x": [1]})[0]
    assert plan(tmp_path, grid={"x": [1]}, resources={"GPU": 1}, cell_timeout_seconds=5)[0].key == before.key
    changed = {"parameters": plan(tmp_path, grid={"x": [2]})[0], "code": plan(tmp_path, grid={"x": [1]}, code="v2")[0]}
    monkeypatch.setattr(run_key, "embedded_revision", lambda: "another")
    changed["models"] = plan(tmp_path, grid={"x": [1]})[0]
    monkeypatch.undo()
    write_notebook(tmp_path / "stub.ipynb", "1")
    changed["notebook"] = plan(tmp_path, grid={"x": [1]})[0]
    assert len({before.key, *(run.key for run in changed.values())}) == 5


def test_a_key_is_letters_and_digits_whatever_the_values_hold(tmp_path: Path) -> None:
    """It names folders; a value with `/`, `..` or quotes must never do."""
    names = ["../../etc/passwd", "a/b", 'a"b', "a'b", "..", "", "\n", "a\\b", "\u202e", "CON", "x" * 5000]
    keys = [run.key for run in plan(tmp_path, grid={"name": names})]
    assert len(set(keys)) == len(names) and all(key.isalnum() and key.isascii() and len(key) == 20 for key in keys)
    assert key_of({"a": 1}) != key_of({"a": "1"})


def test_machinery_is_no_part_of_the_code_version() -> None:
    """A better report must not void a week of runs; another solver must."""
    package = ROOT / "fusionlab"
    names = {path.relative_to(package).as_posix() for path in package.rglob("*.py")}
    out = {name for name in names if not takes_part(name)}
    assert {"cli.py", "experiments/report.py", "experiments/store.py", "experiments/dispatch.py"} <= out
    assert {
        "solvers.py",
        "decode.py",
        "tasks/answers.py",
        "experiments/answering.py",
        "experiments/teams.py",
    } <= names - out
    listed = {f"experiments/{name}.py" for name in run_key.EXPERIMENTS_IN_A_RUN} | set(run_key.NOT_IN_A_RUN)
    assert listed <= names, "a module that is listed is gone"
    assert code_version().startswith("0.1.0+")


def test_data_that_decides_answers_is_part_of_the_code_version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Other items or another predictor give other answers; figures of the study do not."""
    data = shutil.copytree(ROOT / "data", tmp_path / "data", ignore=shutil.ignore_patterns("*.safetensors", "traces"))
    files = resources.files
    monkeypatch.setattr("importlib.resources.files", lambda name: data if name == "fusionlab_data" else files(name))
    versions = [code_version()]
    for name in ("study/about.json", "predictor.json", "tasks/trivia.jsonl", "tasks/reports.json"):
        (data / name).write_bytes((data / name).read_bytes() + b" ")
        versions.append(code_version())
    assert versions[1] == versions[0] and len(set(versions)) == 4


def test_task_files_are_told_by_their_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An item that was mended under the old file name is another item; a bundled name stays the bundled task."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine").mkdir()
    for place in ("mine/test.jsonl", "one.jsonl", "trivia"):
        (tmp_path / place).write_text('{"question": "1 + 1", "answer": "2"}\n')
    write_notebook(tmp_path / "stub.ipynb", "1", parameters="task = 'trivia'\nother_tasks = ['math']\nitems = 3")
    asked: dict[str, dict[str, Any]] = {
        "trivia": {},
        "mine": {"task": ["mine"]},
        "one": {"other_tasks": [["math", "one.jsonl"]]},
    }
    before = {name: plan(tmp_path, grid={**grid, "items": [1]})[0].key for name, grid in asked.items()}
    for place in ("mine/test.jsonl", "one.jsonl", "trivia"):
        (tmp_path / place).write_text('{"question": "1 + 1", "answer": "3"}\n')
    after = {name: plan(tmp_path, grid={**grid, "items": [1]})[0].key for name, grid in asked.items()}
    assert {name for name in asked if after[name] != before[name]} == {"mine", "one"}


def test_models_are_told_by_their_content(tmp_path: Path) -> None:
    """A folder that was trained again under its old name gives other answers."""
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text("{}")
    before = model_revisions({"large": str(model), "experts": {"a": "owner/nowhere"}})
    assert set(before) == {"embedded", str(model), "owner/nowhere"} and before["owner/nowhere"] == "not cached"
    (model / "config.json").write_text("{ }")
    assert model_revisions({"large": str(model)})[str(model)] != before[str(model)]


def test_runs_with_the_same_models_are_one_team() -> None:
    """What chooses models decides which worker is preferred, and nothing else does."""
    assert team_of({"large": "a", "x": 1}) == team_of({"x": 2, "large": "a"}) != team_of({"large": "b"})
    assert team_of({"large": "a", "x": 1}, names=["x"]) == '{"x":1}'


# -- what ships ----------------------------------------------------------------------------------


@pytest.mark.parametrize("path", sorted((ROOT / "notebooks" / "sweeps").glob("[!b]*.yaml")), ids=lambda path: path.stem)
def test_every_sweep_in_the_repository_can_be_planned(path: Path) -> None:
    """A parameter that was renamed in a notebook must be renamed here."""
    runs = plan_sweep(path)[1]
    assert len(runs) > 3 and all(run.values["items"] == 40 for run in runs)


@pytest.mark.parametrize("source", ["docs/sweeps.md", "fusionlab/experiments/sweep_file.py"])
def test_the_documented_sweep_file_can_be_planned(source: str, tmp_path: Path) -> None:
    """Whoever copies it begins with an error otherwise."""
    shutil.copytree(ROOT / "notebooks" / "experiments", tmp_path / "experiments")
    shutil.copytree(ROOT / "notebooks" / "sweeps", tmp_path / "sweeps")
    text = (ROOT / source).read_text()
    lines = text[text.index("notebook: ../experiments") :].splitlines()
    example = [line.strip() for line in lines[: next(n for n, line in enumerate(lines) if line.strip() in ("", "```"))]]
    (tmp_path / "sweeps" / "copied.yaml").write_text("\n".join(example))
    runs = plan_sweep(tmp_path / "sweeps" / "copied.yaml")[1]
    assert len(runs) == (3 * 2 * 2 + 1) * 3 and {run.resources["GPU"] for run in runs} == {1}


def test_the_papers_ablations_are_among_the_sweeps() -> None:
    """Fixed weights 0.5, 1, 1.5; the scale of the constraint; examples in the prompt; which experts are loaded."""
    sweeps = ROOT / "notebooks" / "sweeps"
    values = {name: plan_sweep(sweeps / f"{name}.yaml")[1] for name in ("fixed_weights", "kl_scale", "shots", "experts")}
    assert {"proxy-0.5", "proxy-1", "proxy-1.5", "dynamic"} == {run.values["method"] for run in values["fixed_weights"]}
    assert {0.0, 1.0, 2.0} <= {run.values["kl_scale"] for run in values["kl_scale"]}
    assert {0, 5} <= {run.values["shots"] for run in values["shots"]}
    assert {1, 4} <= {len(run.values["experts"]) for run in values["experts"]}

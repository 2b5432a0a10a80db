"""The measuring bench: cells, resumption, identity, re-scoring."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from interrupted_evaluation import CELLS, main
from tiny_tasks import make_choice_task, make_row, make_task
from tiny_team import make_team

from fusionlab.adapters import merge_adapters
from fusionlab.baselines import score_continuations_alone
from fusionlab.cells import Cell, read_cell, read_rows, rescore_folder, write_cell
from fusionlab.errors import CorruptFileError, FusionError, MissingFileError, ModelError, TaskError, UnknownNameError
from fusionlab.evaluate import Asking, Evaluator, plan_cells
from fusionlab.methods import METHODS, choose_methods, find_method
from fusionlab.predictor import load_predictor
from fusionlab.tasks import Item, Task

ROOT = Path(__file__).parents[1]


def evaluate(
    folder: Path, cells: Sequence[Cell] = CELLS, *, team: Any = None, task: Task | None = None, **options: Any
) -> Any:
    """Run cells of the tiny task `a` and count what was answered anew."""
    evaluator = CountingEvaluator(team or make_team(), {"a": task or make_task("a")}, folder=folder,
                                  **{"batch_size": 3, **options})  # fmt: skip
    evaluator.answered = []
    return evaluator.run(cells), evaluator.answered


class CountingEvaluator(Evaluator):
    """Remembers what it answers."""

    answered: list[str]

    def answer_batch(self, cell: Cell, batch: Any) -> Any:
        """Answer as ever."""
        self.answered += [f"{cell.method} {item.id}" for item in batch]
        return super().answer_batch(cell, batch)


# -- plan ----------------------------------------------------------------------------------------


def test_methods_that_need_an_own_expert_are_left_out_of_an_unseen_task_with_a_note() -> None:
    """On `unseen` there is nothing that an expert alone could mean; a made-up row would be worse than none."""
    tasks = [make_task("a"), make_task("c")]
    cells, notes = plan_cells(tasks, ["large", "expert", "proxy-1", "dynamic", "evidence", "merged"], experts=["a", "b"])
    assert [cell.method for cell in cells if cell.task == "a"] == [
        "large",
        "expert",
        "proxy-1",
        "dynamic",
        "evidence",
        "merged",
    ]
    assert [cell.method for cell in cells if cell.task == "c"] == ["large", "evidence", "merged"]
    assert [note.split()[:2] for note in notes] == [["c:", "expert"], ["c:", "proxy-1"], ["c:", "dynamic"]]
    assert {cell.experts for cell in cells if cell.method == "evidence"} == {("a", "b")}
    assert {cell.experts for cell in cells if cell.method == "dynamic"} == {("a",)}


def test_subsets_of_experts_are_cells_of_their_own_and_seeds_count_only_with_shots() -> None:
    """What adding an expert does is asked by subsets; without examples a seed draws nothing, and one has no order."""
    asking = Asking(shots=[0, 1, 2], seeds=[0, 1], orders=[0, 5])
    cells, _ = plan_cells([make_task("a")], ["evidence", "expert"], experts=["a", "b"], subsets=[["b"], ["b", "a"]],
                          asking=asking)  # fmt: skip
    assert {cell.experts for cell in cells if cell.method == "evidence"} == {("b",), ("a", "b")}
    ways = {(0, 0, 0), (1, 0, 0), (1, 1, 0), (2, 0, 0), (2, 1, 0), (2, 0, 5), (2, 1, 5)}
    assert {(cell.shots, cell.seed, cell.order) for cell in cells if cell.method == "expert"} == ways
    assert len(cells) == len({cell.path(Path()) for cell in cells}) == 21


@pytest.mark.parametrize(
    ("options", "fault"),
    [({"methods": ["dynamo"]}, "did you mean 'dynamic'"), ({"subsets": [["x"]]}, "unknown expert 'x'; known: a, b"),
     ({"asking": Asking(phrasings=[0, 2])}, "no phrasing 2"), ({"asking": Asking(shots=[0, 9])}, "9 shots asked for")],
)  # fmt: skip
def test_a_plan_that_cannot_run_is_refused(options: dict[str, Any], fault: str) -> None:
    """Hours of work must not end at a cell that could not have run."""
    with pytest.raises(FusionError, match=fault):
        plan_cells([make_task("a")], **{"methods": ["large"], "experts": ["a", "b"], **options})


def test_shots_that_one_of_several_tasks_cannot_give_are_left_out_with_a_note() -> None:
    """`--tasks all --shots 0,5` must not fail because summaries have room for fewer."""
    tasks = [make_task("a", train=4), make_task("b", train=2)]
    cells, notes = plan_cells(tasks, ["large"], experts=["a", "b"], asking=Asking(shots=[0, 3]))
    assert [(cell.task, cell.shots) for cell in cells] == [("a", 0), ("a", 3), ("b", 0)]
    assert len(notes) == 1 and notes[0].startswith("task 'b': 3 shots asked for") and notes[0].endswith("left out")


def test_a_method_whose_solver_is_missing_is_unknown_and_not_part_of_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """The table may name a solver that this version does not have yet."""
    monkeypatch.setitem(METHODS, "oracle", replace(METHODS["dynamic"], solver="oracle"))
    with pytest.raises(UnknownNameError, match="method 'oracle': unknown method 'oracle'; known: large"):
        choose_methods(["oracle"])
    assert "oracle" not in choose_methods(["all"]) and "dynamic" in choose_methods(["all"])


def test_fields_of_a_method_are_part_of_its_name() -> None:
    """Ablations need no table entry each: weight, scale and merge weight are written with the name."""
    assert find_method("proxy-2.5").constraint.scale == find_method("proxy-2.5").constraint.alpha_max == 2.5
    changed = find_method("merged-dynamic:lambda=0.5:scale=1.2")
    assert (changed.merge_weight, changed.constraint.scale, changed.solver) == (0.5, 1.2, "exact")
    assert find_method("dynamic:experts=all").experts == "all"


# -- run -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "method", ["small", "expert", "proxy-1", "dynamic", "paper-multi", "evidence", "merged", "merged-dynamic"]
)
def test_rows_are_what_the_team_writes(method: str, tmp_path: Path) -> None:
    """Batches, order and storage must not change an answer: each item equals the team asked for it alone."""
    task, team = make_task("a"), make_team()
    cells, _ = plan_cells([task], [method], experts=["a", "b"], asking=Asking(shots=[0, 2], seeds=[1], orders=[3]))
    rows, _ = evaluate(tmp_path, cells, team=team, task=task)
    assert len(rows) == 14 and set(rows["item"]) == {item.id for item in task.test}
    one_by_one, _ = evaluate(tmp_path / "single", cells, team=team, task=task, batch_size=1)
    columns = ["shots", "item", "prompt", "output", "extracted", "score", "tokens", "weights_sha256"]
    order = ["shots", "item"]
    assert rows[columns].sort_values(order).values.tolist() == one_by_one[columns].sort_values(order).values.tolist()
    assert rows.loc[rows["shots"] == 2, "prompt"].str.count("\n\n").tolist() == [2] * 7
    stored = read_rows(tmp_path)
    assert stored.sort_values(order)["output"].tolist() == rows.sort_values(order)["output"].tolist()


def test_a_killed_evaluation_resumes_and_repeats_no_item(tmp_path: Path) -> None:
    """`kill -9` in the middle of a batch loses that batch and nothing else."""
    log = tmp_path / "log"
    command = [sys.executable, str(ROOT / "tests" / "interrupted_evaluation.py"), str(tmp_path / "out"), str(log)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen([*command, "4"], env=environment)
    try:
        deadline = time.monotonic() + 120
        while not log.with_suffix(".standing").exists():
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.05)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert len(read_rows(tmp_path / "out")) == 10  # 3 + 3 + 1 of the first cell, 3 of the second
    main(str(tmp_path / "out"), str(log), "-1")
    answered = log.read_text().splitlines()
    assert len(answered) == len(set(answered)) == 14
    rows = read_rows(tmp_path / "out")
    uninterrupted, _ = evaluate(tmp_path / "whole")
    order = ["method", "item"]
    assert rows.sort_values(order)["output"].tolist() == uninterrupted.sort_values(order)["output"].tolist()


def test_a_larger_limit_answers_only_what_is_new(tmp_path: Path) -> None:
    """A first look at 3 items is part of the whole run, and a smaller limit shows no more than it asks for."""
    assert len(evaluate(tmp_path, limit=3)[1]) == 6
    rows, answered = evaluate(tmp_path)
    assert len(answered) == 8 and len(rows) == 14
    rows, answered = evaluate(tmp_path, limit=2)
    assert answered == [] and len(rows) == 4 and len(read_rows(tmp_path)) == 14


def test_rows_of_other_weights_or_task_data_are_never_mixed(tmp_path: Path) -> None:
    """An average over two models' answers is nobody's score; the error names what differs and the way out."""
    evaluate(tmp_path)
    with pytest.raises(FusionError, match="other weights; choose another --out, or begin anew with --fresh"):
        evaluate(tmp_path, team=make_team(seed=5))
    task = make_task("a")
    task.test[3] = replace(task.test[3], question="w60")
    with pytest.raises(FusionError, match="other task data .item 'test3'"):
        evaluate(tmp_path, task=task)
    with pytest.raises(FusionError, match="other limits"):
        evaluate(tmp_path, task=replace(task, spec=replace(task.spec, max_new_tokens=7)))
    assert len(read_rows(tmp_path)) == 14
    _, answered = evaluate(tmp_path, team=make_team(seed=5), fresh=True)
    assert len(answered) == 14
    assert read_rows(tmp_path)["weights_sha256"].nunique() == 2  # large alone, and large + small + a


def test_predicted_answers_of_another_predictor_are_never_mixed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It decides the weights as the models do; what was stored before it was noted is kept, under the same weights."""
    cells = [Cell("a", "predicted", experts=("a",)), Cell("a", "dynamic", experts=("a",))]
    first, answered = evaluate(tmp_path, cells)
    assert first["weights_sha256"].nunique() == 1 and evaluate(tmp_path, cells)[1] == [] and answered
    shipped = load_predictor()
    other = replace(shipped, centre=shipped.centre + 1)
    monkeypatch.setattr("fusionlab.evaluate.load_predictor", lambda: other)
    with pytest.raises(FusionError, match="other predictor; choose another --out"):
        evaluate(tmp_path, cells[:1])
    assert evaluate(tmp_path, cells[1:])[1] == []
    path = cells[0].path(tmp_path)
    rows, about = read_cell(path)
    del about["predictor"]
    write_cell(path, rows, about)
    assert evaluate(tmp_path, cells)[1] == []


def test_an_expert_that_a_cell_does_not_use_does_not_matter_to_it(tmp_path: Path) -> None:
    """Adding a fifth expert must not throw away the single-expert cells of the other four."""
    evaluate(tmp_path, team=make_team(experts={"a": 0.5}))
    assert evaluate(tmp_path, team=make_team(experts={"a": 0.5, "c": 0.9}))[1] == []


@pytest.mark.parametrize("damage", [lambda data: data[:-20], lambda data: b"", lambda data: b"PAR1" + data[9:]])
def test_a_damaged_file_is_reported_and_its_cell_done_again(damage: Any, tmp_path: Path) -> None:
    """Half a file is what a full disk leaves; it must be neither fatal nor silently short."""
    evaluate(tmp_path)
    path = CELLS[0].path(tmp_path)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(CorruptFileError, match=path.name):
        read_rows(tmp_path)
    said: list[str] = []
    rows, answered = evaluate(tmp_path, say=said.append)
    assert len(answered) == 7 and len(rows) == 14
    assert len(said) == 1 and path.name in said[0] and said[0].endswith("this cell is done again")


def test_a_batch_that_does_not_fit_in_memory_is_halved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A lease of minutes must not be lost to one long prompt."""
    answer = Evaluator.answer

    def small_gpu(self: Evaluator, cell: Cell, batch: Sequence[Item]) -> Any:
        if len(batch) > 2:
            raise torch.OutOfMemoryError("too much")
        return answer(self, cell, batch)

    whole, _ = evaluate(tmp_path / "whole")
    monkeypatch.setattr(Evaluator, "answer", small_gpu)
    halved, _ = evaluate(tmp_path / "halved", batch_size=7)
    assert (
        halved.sort_values(["method", "item"])["output"].tolist()
        == whole.sort_values(["method", "item"])["output"].tolist()
    )


def test_task_arithmetic_needs_adapters(tmp_path: Path) -> None:
    """Whole checkpoints have no factors to add up, and the message says what to leave out."""
    team = make_team()
    team.experts["a"] = replace(team.experts["a"], loaded=team.small)
    with pytest.raises(ModelError, match="leave out the merged methods"):
        evaluate(tmp_path, [Cell("a", "merged", experts=("a", "b"))], team=team)


# -- by likelihood -------------------------------------------------------------------------------


@pytest.mark.parametrize("phrasing", [0, 1])
@pytest.mark.parametrize("method", ["large", "small", "expert", "dynamic", "evidence", "merged", "merged-dynamic"])
def test_a_choice_task_is_answered_by_its_most_probable_option(method: str, phrasing: int, tmp_path: Path) -> None:
    """The row holds the option's text, also where its letter was asked for; ways of asking and batches change nothing."""
    task, team = make_choice_task("a"), make_team()
    cells, _ = plan_cells([task], [method], experts=["a", "b"], asking=Asking(phrasings=[phrasing]))
    rows, _ = evaluate(tmp_path, cells, team=team, task=task)
    assert len(rows) == 7 and not rows["extracted"].isna().any()
    items = {item.id: item for item in task.test}
    for row in rows.to_dict("records"):
        item = items[row["item"]]
        assert row["output"] == row["extracted"] == option_by_hand(team, method, task, item, phrasing)
        assert row["score"] == float(row["output"] == item.answer)
        lengths = [1, 1, 1] if phrasing == 1 else [len(choice.split()) for choice in item.choices]
        assert row["tokens"] == sum(lengths)


def option_by_hand(team: Any, method: str, task: Task, item: Item, phrasing: int) -> str:
    """The option of the highest likelihood, each asked for alone."""
    found = find_method(method)
    name, experts = {"small": "small", "expert": "a"}.get(method, "large"), ("a", "b") if method == "evidence" else ("a",)
    if found.experts == "merged":
        adapters = [team.backbone.adapter(expert) for expert in ("a", "b")]
        name = f"by-hand-{len(team.backbone.names)}"
        team = team.with_expert(merge_adapters(adapters, [0.3, 0.3], name), source="test")
        experts = (name,)
    prompt, nats = task.prompt(item, phrasing=phrasing), []
    for text in [f" {choice}" for choice in (["A", "B", "C"] if phrasing == 1 else item.choices)]:
        one = (score_continuations_alone(team, name, [prompt], [[text]]) if found.solver is None
               else team.score([prompt], [[text]], method=found.solver, experts=experts))  # fmt: skip
        nats.append(one[0][0].nats)
    return item.choices[nats.index(max(nats))]


def test_answers_by_likelihood_are_scored_again_without_models(tmp_path: Path) -> None:
    """The chosen option is stored, so a corrected gold answer needs no model."""
    task = make_choice_task("a")
    before, _ = evaluate(tmp_path, [CELLS[0]], task=task)
    again = rescore_folder(tmp_path, {"a": task})
    assert again["score"].tolist() == before["score"].tolist() and again["extracted"].tolist() == before["output"].tolist()
    item = task.test[0]
    other = next(choice for choice in item.choices if choice != item.answer)
    changed = Task(task.spec, task.train, [replace(item, answer=other), *task.test[1:]])
    rescored = rescore_folder(tmp_path, {"a": changed}).set_index("item")
    assert rescored.loc[item.id, "score"] == float(rescored.loc[item.id, "output"] == other)


@pytest.mark.parametrize("first", ["writing", "likelihood"])
def test_written_answers_and_chosen_options_are_never_mixed(first: str, tmp_path: Path) -> None:
    """Two ways of answering are two measurements; files from before there were two hold written answers."""
    tasks = {way: make_choice_task("a", answering=way) for way in ("writing", "likelihood")}
    evaluate(tmp_path, [CELLS[0]], task=tasks[first])
    path = CELLS[0].path(tmp_path)
    if first == "writing":
        rows, about = read_cell(path)
        del about["answering"]
        write_cell(path, rows, about)
        assert len(evaluate(tmp_path, [CELLS[0]], task=tasks[first])[1]) == 0
    second = next(task for way, task in tasks.items() if way != first)
    with pytest.raises(FusionError, match="holds answers made with other answering and limits"):
        evaluate(tmp_path, [CELLS[0]], task=second)


# -- score again ---------------------------------------------------------------------------------


def test_answers_are_scored_again_by_todays_rules(tmp_path: Path) -> None:
    """A mended extractor or a new alias must not cost a GPU; what cannot be extracted stays counted as missing."""
    evaluate(tmp_path, [CELLS[0]])
    path = CELLS[0].path(tmp_path)
    rows, about = read_cell(path)
    outputs = [" w1.", "", *(row.output for row in rows[2:])]
    write_cell(path, [replace(row, output=output, extracted="?", score=0.25, gold="?")
                      for row, output in zip(rows, outputs, strict=True)], about)  # fmt: skip
    frame = rescore_folder(tmp_path, {"a": make_task("a")})
    assert frame["score"].tolist()[:2] == [1.0, 0.0]
    assert frame["extracted"].tolist()[0] == "w1" and frame["extracted"].isna().tolist()[1]
    assert set(frame["gold"]) == {"w1"}
    again, same = read_cell(path)
    assert same == about and [row.score for row in again] == frame["score"].tolist()
    with pytest.raises(TaskError, match="no test item"):
        rescore_folder(tmp_path, {"a": make_task("a", test=3)})


def test_scoring_again_from_the_command_line_loads_no_torch(tmp_path: Path) -> None:
    """It runs on any laptop, in seconds, from the files alone."""
    script = (
        "import sys; from fusionlab import cli; from fusionlab.tasks import load_task; sys.argv[0] = 'fusionlab'\n"
        "try: cli.main()\nexcept SystemExit as stop: assert not stop.code, stop.code\n"
        "assert 'torch' not in sys.modules"
    )
    from fusionlab.tasks import load_task

    item = load_task("trivia").test[0]
    cell = Cell("trivia", "large")
    row = make_row(task="trivia", item=item.id, output=f" {item.answer}\n", score=0.0)
    write_cell(cell.path(tmp_path), [row], {"task_source": "trivia"})
    done = subprocess.run(
        [sys.executable, "-c", script, "evaluate", "--rescore", str(tmp_path)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "| large alone | 0 | 0 | 1 | 100.0 |" in done.stdout
    assert {path.name for path in tmp_path.iterdir()} == {"cells", "table.csv", "table.md", "table.parquet"}


def test_a_folder_without_an_evaluation_is_named(tmp_path: Path) -> None:
    """A mistyped --rescore must not print an empty table."""
    with pytest.raises(MissingFileError, match=str(tmp_path)):
        read_rows(tmp_path)

"""The study end to end: on a tiny team, from files that ship, and as the notebook."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pandas
import pytest
import torch
from tiny_tasks import make_row, make_task
from tiny_team import make_team

from fusionlab.cells import Cell, as_frame, write_cell
from fusionlab.errors import FusionError, MissingFileError, OutputError, TaskError
from fusionlab.experiments import study as command
from fusionlab.study import probe, shipped
from fusionlab.study.interference import ADAPTERS
from fusionlab.study.plan import FULL
from fusionlab.study.report import MARKS, analyse, put_between_marks
from fusionlab.tasks import load_task

ROOT = Path(__file__).resolve().parents[1]
METHODS = {"large": "", "proxy-1": "trivia", "dynamic": "trivia", "evidence": "math+trivia"}


def trivia_rows(count: int = 6) -> pandas.DataFrame:
    """Answers to the first trivia items: methods later in the table are right more often."""
    task = load_task("trivia")
    return as_frame([
        make_row(task="trivia", method=method, experts=experts, item=item.id, gold=item.answer, prompt=task.prompt(item),
                 output=f" {item.answer}\n" if place <= rank + 1 else " nothing\n", extracted="?", score=0.5)
        for rank, (method, experts) in enumerate(METHODS.items())
        for place, item in enumerate(task.test[:count])
    ])  # fmt: skip


@pytest.fixture
def packed(tmp_path: Path) -> Path:
    """A folder like data/study."""
    shipped.pack_rows(trivia_rows(), tmp_path / "packed")
    return tmp_path / "packed"


# -- shipped files -------------------------------------------------------------------------------


def test_packed_rows_lose_only_the_prompt_which_is_made_again(packed: Path) -> None:
    """The prompt is most of the bytes and follows from task and item."""
    rows = shipped.read_shipped_rows(packed)
    assert set(rows["prompt"]) == {""}
    keys = ["method", "item"]
    again = shipped.remake_prompts(rows).sort_values(keys, ignore_index=True)
    pandas.testing.assert_frame_equal(
        again.drop(columns="seconds"), trivia_rows().sort_values(keys, ignore_index=True).drop(columns="seconds"),
        check_dtype=False,
    )  # fmt: skip


def test_shipped_answers_are_scored_by_todays_rules(packed: Path) -> None:
    """A stored score may be older than the extractor; the tables must not be."""
    answers = command.shipped_study(packed).answers
    means = answers.rows.groupby("method")["score"].mean()
    assert means["large"] == pytest.approx(2 / 6) and means["evidence"] == pytest.approx(5 / 6)


def test_answers_of_another_way_are_left_out_of_the_tables(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What was written before options were compared would be shown as if likelihood had chosen it."""
    item = load_task("truth").test[0]
    rows = [make_row(task="truth", method=method, item=item.id, output=item.answer, answering=way)
            for method, way in (("large", "writing"), ("small", "likelihood"))]  # fmt: skip
    shipped.pack_rows(pandas.concat([trivia_rows(), as_frame(rows)]), tmp_path)
    answers = command.shipped_study(tmp_path).answers
    assert answers.rows.groupby("task")["method"].unique().loc["truth"].tolist() == ["small"]
    assert set(answers.rows.loc[answers.rows["task"] == "trivia", "method"]) == set(METHODS)
    assert "truth: stored answers are left out" in capsys.readouterr().err


def test_items_that_a_task_no_longer_has_are_named(packed: Path) -> None:
    """A study of other data must not be shown under today's name."""
    rows = shipped.read_shipped_rows(packed)
    rows.loc[0, "item"] = "gone"
    with pytest.raises(TaskError, match="'gone'"):
        shipped.rescore(rows)


def test_a_missing_study_says_so_before_anything_loads(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One sentence and exit code 2."""
    with pytest.raises(MissingFileError, match=r"answers\.parquet"):
        shipped.read_shipped_rows(tmp_path)
    assert command.main(["--shipped", str(tmp_path), "--out", str(tmp_path / "out")]) == 2
    assert capsys.readouterr().err.startswith("fusionlab: ")


def test_folders_of_other_weights_are_not_packed_together(tmp_path: Path) -> None:
    """One table from two teams is nobody's."""
    for name, sha in (("one", "a"), ("two", "b")):
        row = make_row(task="trivia", item=f"i{name}", weights_sha256=sha)
        write_cell(Cell("trivia", "large").path(tmp_path / name), [row], {})
    with pytest.raises(TaskError, match="weights_sha256"):
        shipped.gather_rows([tmp_path / "one", tmp_path / "two"])
    assert len(shipped.gather_rows([tmp_path / "one", tmp_path / "one"])) == 1


def test_what_was_packed_before_is_packed_again_with_more(packed: Path, tmp_path: Path) -> None:
    """The cells of a long study are gone when the next one is answered; its rows and probes are not."""
    about = {"weights from": "8 items per task", "conditions": "then"}
    (packed / "about.json").write_text(json.dumps(about))
    before = shipped.read_shipped_rows(packed)
    row = before.iloc[0].to_dict() | {"phrasing": 3, "prompt": "asked"}
    write_cell(Cell("trivia", row["method"], phrasing=3).path(tmp_path / "more"), [make_row(**row)], {})
    folders = [str(packed), str(tmp_path / "more")]
    assert command.main(["--pack", *folders, "--out", str(packed), "--no-probe", "--conditions", "now"]) == 0
    after = shipped.read_shipped_rows(packed)
    assert len(after) == len(before) + 1 and (after["phrasing"] == 3).sum() == 1
    assert shipped.read_about(packed)["weights from"] == "8 items per task"
    assert shipped.read_about(packed)["conditions"] == "now"
    missing = ["--pack", str(packed), "--out", str(packed), "--no-probe", "--bench", str(tmp_path / "none.parquet")]
    assert command.main(missing) == 2
    bench = pandas.DataFrame([{"method": "exact", "device": "cpu", "ms_per_token": 70.0, "ratio_to_alone": 1.7,
                               "peak_bytes": 1e9, "experts": 1}])  # fmt: skip
    bench.to_parquet(tmp_path / "bench.parquet")
    assert command.main([*missing[:-1], str(tmp_path / "bench.parquet")]) == 0
    shown = command.shipped_study(packed).bench
    assert shown is not None and shown["ms_per_token"].tolist() == [70.0]


def test_packing_and_the_page_from_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The two commands that README and docs/study.md rest on."""
    frame = trivia_rows()
    for (method, experts), group in frame.groupby(["method", "experts"]):
        cell = Cell("trivia", str(method), experts=tuple(filter(None, str(experts).split("+"))))
        write_cell(cell.path(tmp_path / "runs"), [make_row(**row) for row in group.to_dict("records")], {})
    target = tmp_path / "packed"
    assert (
        command.main(["--pack", str(tmp_path / "runs"), "--out", str(target), "--no-probe", "--conditions", "alone"]) == 0
    )
    assert json.loads((target / "about.json").read_text())["conditions"] == "alone"
    readme = tmp_path / "README.md"
    readme.write_text(f"before\n{MARKS[0]}\nearlier text\n{MARKS[1]}\nafter\n")
    page = tmp_path / "docs" / "study.md"
    out = tmp_path / "out"
    arguments = ["--shipped", str(target), "--out", str(out), "--page", str(page), "--readme", str(readme)]
    assert command.main(arguments) == 0
    assert "Table 1" in capsys.readouterr().out
    assert page.read_text() == (out / "study.md").read_text()
    assert {"table1.csv", "table1.md", "claims.csv"} <= {path.name for path in (out / "tables").iterdir()}
    assert (out / "study.html").stat().st_size > 1_000_000  # plotly's script is in it
    text = readme.read_text()
    assert (
        text.startswith("before\n")
        and text.endswith("\nafter\n")
        and "earlier text" not in text
        and "| large alone |" in text
    )


def test_a_readme_without_marks_is_left_alone(tmp_path: Path) -> None:
    """Guessing a place would overwrite somebody's text."""
    path = tmp_path / "README.md"
    path.write_text("text")
    with pytest.raises(OutputError, match="marks"):
        put_between_marks(path, "table")
    assert path.read_text() == "text"


# -- on a team -----------------------------------------------------------------------------------


def test_a_study_runs_resumes_and_probes_a_team(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything that the tables rest on, on real code in seconds; the second time nothing is done again."""
    tasks = {name: make_task(name) for name in ("a", "b", "c")}
    settings = command.Settings.choose(items=3, traces=2, contexts=2)
    first = command.answer_study(settings, tmp_path, team=make_team(), tasks=tasks)
    assert first.answers.seen == ["a", "b"] and first.answers.unseen == ["c"]
    assert first.weights is not None and set(first.weights["loaded"]) == {"own", "all"}
    monkeypatch.setattr("fusionlab.evaluate.Evaluator.answer", lambda *_: pytest.fail("answered again"))
    monkeypatch.setattr(probe, "measure_weights", lambda *_, **__: pytest.fail("traced again"))
    again = command.answer_study(settings, tmp_path, team=make_team(), tasks=tasks)
    assert len(again.answers.rows) == len(first.answers.rows)


@pytest.mark.slow
def test_the_full_plan_can_be_answered(tmp_path: Path) -> None:
    """Every method, number, choice and order of examples, phrasing and set of experts, once on a GPU's behalf."""
    tasks = {name: make_task(name, train=8) for name in ("a", "b", "c")}
    settings = command.Settings.choose(full=True, items=2, traces=1, contexts=1)
    inputs = command.answer_study(settings, tmp_path, team=make_team(experts=dict.fromkeys("abd", 0.5)), tasks=tasks)
    tables = analyse(inputs).tables
    assert set(tables["robustness"].data["dimension"]) == {"shots", "seed", "order", "phrasing"}
    assert {"without a", "own + b"} <= set(tables["subsets"].data["change"])
    assert set(FULL["several experts"].methods) <= set(inputs.answers.rows["method"])


def test_likeness_agrees_with_the_definition() -> None:
    """Cov_P(d_s, d_t) from whole distributions, position by position, in float64."""
    team, task = make_team(), make_task("a")
    item = task.test[2]
    found = probe.covariance_of_changes(team, task.prompt(item), task.target(item))
    prompt, target = task.prompt(item), task.target(item)
    log_p, log_q = (probe.log_probs_of(team, name, prompt, target).double() for name in ("large", "small"))
    changes = [probe.log_probs_of(team, name, prompt, target).double() - log_q for name in team.experts]
    p = log_p.exp()
    for s, t in itertools.product(range(2), repeat=2):
        mean = (p * changes[s]).sum(-1) * (p * changes[t]).sum(-1)
        expected = (p * changes[s] * changes[t]).sum(-1) - mean
        torch.testing.assert_close(found[:, s, t], expected, rtol=1e-3, atol=1e-5)


def test_adapters_are_compared_as_full_matrices_would_be() -> None:
    """The inner product is worked out on the low-rank factors."""
    team = make_team()
    assert team.backbone is not None

    def whole(name: str) -> Any:
        changes = team.backbone.adapter(name).changes  # type: ignore[union-attr]
        return torch.cat([(scale * up @ down).flatten() for _, (down, up, scale) in sorted(changes.items())])

    row = probe.adapter_rows(team)[0]
    expected = torch.nn.functional.cosine_similarity(whole("a"), whole("b"), dim=0)
    assert row["task"] == ADAPTERS and row["cosine"] == pytest.approx(float(expected), abs=1e-5)


def test_likeness_of_equal_experts_is_one() -> None:
    """An expert and its copy make the same change; one that changes nothing has no direction."""
    team = make_team(experts={"a": 0.5, "zero": 0.0})
    frame = probe.measure_likeness(team, {"a": make_task("a")}, items=2)
    rows = {(row["first"], row["second"]): row for row in frame[frame["task"] == "a"].to_dict("records")}
    assert rows["a", "a"]["cosine"] == pytest.approx(1, abs=1e-3)
    assert rows["zero", "zero"]["variance_first"] == pytest.approx(0, abs=1e-8)


# -- the notebook --------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_notebook_runs_from_packed_rows(packed: Path, tmp_path: Path) -> None:
    """It shows every table, and what it saves stays small."""
    papermill = pytest.importorskip("papermill")
    out = tmp_path / "executed.ipynb"
    parameters = {"shipped_folder": str(packed), "output_folder": str(tmp_path / "out")}
    papermill.execute_notebook(ROOT / "notebooks" / "study.ipynb", out, parameters=parameters, progress_bar=False)
    text = out.read_text()
    assert "Table 1: one expert" in text and "holds" in text
    assert len(text) < 1_000_000
    assert (tmp_path / "out" / "study.html").is_file()


def test_an_unknown_device_is_refused_in_words(tmp_path: Path) -> None:
    """Before the tasks are answered."""
    with pytest.raises(FusionError, match="unknown device"):
        command.load_embedded(command.Settings(device="tpu"))

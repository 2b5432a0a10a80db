"""What the experiment notebooks call: items answered by any method, and what is recorded of them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
from tiny_tasks import make_choice_task, make_task
from tiny_team import make_team

from fusionlab.errors import UnknownNameError
from fusionlab.evaluate import answer_prompts
from fusionlab.experiments import recording
from fusionlab.experiments.answering import answer_items, record_answers, weights_by_expert
from fusionlab.methods import find_method
from fusionlab.tasks import Task


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("method", ["large", "small", "expert", "proxy-1.5", "dynamic", "evidence", "dynamic:scale=0"])
def test_every_method_answers_every_item(method: str) -> None:
    """A row per item in the items' order, a trace per item where a method fuses."""
    team, task = make_team(), make_task("a")
    answers = answer_items(team, task, task.test[:5], find_method(method), batch_size=2)
    assert list(answers.rows["item"]) == [item.id for item in task.test[:5]]
    assert len(answers.traces) == (0 if find_method(method).solver is None else 5)
    fields = answers.fields()
    assert fields["items"] == 5 and fields["tokens"] == answers.rows["tokens"].sum() > 0
    assert fields["score"] == answers.rows["score"].mean() and fields["model_seconds"] > 0


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("method", ["large", "expert", "dynamic"])
def test_a_choice_task_is_answered_by_its_most_probable_option(method: str) -> None:
    """As `fusionlab evaluate` does; nothing is written, so there are no traces."""
    team, task = make_team(), make_choice_task("a")
    answers = answer_items(team, task, task.test[:4], find_method(method))
    for item, output in zip(task.test, answers.rows["output"], strict=False):
        assert output in item.choices
    assert not answers.traces and answers.rows["extracted"].notna().all()


@pytest.mark.usefixtures("one_thread")
def test_experts_are_the_tasks_own_all_or_those_that_are_named() -> None:
    """A sweep over sets of experts must run with these sets."""
    team, task = make_team(experts={"a": 0.5, "b": 0.5, "c": 0.5}), make_task("a")

    def experts_of(method: str, *names: str) -> tuple[str, ...]:
        return answer_items(team, task, task.test[:1], find_method(method), experts=names).traces[0].experts

    assert experts_of("dynamic") == ("a",) and experts_of("evidence") == ("a", "b", "c")
    assert experts_of("evidence", "c", "b") == ("c", "b")
    with pytest.raises(UnknownNameError, match="known: a, b, c"):
        experts_of("evidence", "d")
    with pytest.raises(UnknownNameError, match="fusionlab evaluate"):
        answer_items(team, task, task.test[:1], find_method("merged"))


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("make", [make_task, make_choice_task])
def test_experts_that_are_named_do_not_answer_for_a_model_alone(make: Callable[[str], Task]) -> None:
    """`-p method large` in a notebook that names experts recorded the first expert's answers under the name "large"."""
    team, task = make_team(experts={"a": 0.5, "b": 0.5}), make("a")

    def outputs(method: str, experts: list[str] | None = None) -> list[str]:
        return list(answer_items(team, task, task.test, find_method(method), experts=experts).rows["output"])

    for method in ("large", "small", "expert"):
        assert outputs(method, ["b", "a"]) == outputs(method)
    prompts = [task.prompt(item) for item in task.test]
    written = answer_prompts(team, task, task.test, prompts, find_method("large"), ["b"], batch_size=8)
    assert written.texts == outputs("large")


@pytest.mark.usefixtures("one_thread")
def test_an_expert_alone_that_is_not_there_or_not_one_is_an_error() -> None:
    """Whichever came first would answer under a name that is not its own."""
    team, task = make_team(experts={"a": 0.5, "b": 0.5}), make_task("c")
    with pytest.raises(UnknownNameError, match="unknown expert 'c'; known: a, b"):
        answer_items(team, task, task.test[:1], find_method("expert"), experts=["a"])
    with pytest.raises(UnknownNameError, match="one expert alone, received a, b"):
        answer_items(team, task, task.test[:1], find_method("expert:experts=all"))


@pytest.mark.usefixtures("one_thread")
def test_what_is_recorded_can_be_paired_and_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fields for the table, items for pairs, traces for the heatmaps."""
    monkeypatch.setenv(recording.FOLDER_VARIABLE, str(tmp_path))
    shown: dict[str, object] = {}
    monkeypatch.setattr("fusionlab.experiments.answering.record", lambda **fields: shown.update(fields))
    team, task = make_team(), make_task("a")
    answers = answer_items(team, task, task.test[:3], find_method("evidence"))
    record_answers(answers, traces=2, note="n")
    assert shown["note"] == "n" and shown["items"] == 3 and {"weight_a", "moved_b"} <= shown.keys()
    assert list(pd.read_parquet(tmp_path / "items.parquet")["item"]) == [item.id for item in task.test[:3]]
    assert json.loads((tmp_path / "traces" / "traces.json").read_text()) == [item.id for item in task.test[:2]]
    tokens = sum(len(trace) for trace in answers.traces)
    by_hand = sum(float(trace.alpha[:, 0].sum()) for trace in answers.traces) / tokens
    assert weights_by_expert(answers.traces)["weight_a"] == pytest.approx(by_hand)
    assert weights_by_expert([]) == {}

"""Task files: right ones load alike from every layout, wrong ones are named by file and line."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
from small_tasks import small_task, task_named

from fusionlab.errors import FusionError, MissingFileError, TaskError, UnknownNameError
from fusionlab.tasks import Item, Phrasing, TaskSpec, load_task


def test_unknown_names_list_the_known() -> None:
    """A typing error is answered with what can be typed."""
    with pytest.raises(UnknownNameError, match=r"unknown task: 'maths'; use one of math, trivia"):
        load_task("maths")
    spec = task_named("trivia").spec
    with pytest.raises(UnknownNameError, match=r"unknown metric: 'f1'; use one of exact_match"):
        replace(spec, metric="f1")
    with pytest.raises(UnknownNameError, match=r"unknown extractor: 'last'; use one of first_line, after_hashes, choice"):
        replace(spec, extractor="last")


GOOD = '{"question": "Why?", "answer": "So"}'


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([GOOD, '{"question": "Wh'], "line 2: not a line of JSON"),
        ([GOOD, "", "\udcff"], "line 3: not a line of JSON"),
        ([GOOD, "[1, 2]"], "line 2: expected an object, got list"),
        ([GOOD, '{"question": "Why?"}'], "line 2: answer must be a text that is not empty, got None"),
        ([GOOD, '{"question": " ", "answer": "So"}'], "line 2: question must be a text that is not empty"),
        (
            [GOOD, '{"question": "Why?", "answer": 5}'],
            "line 2: answer must be a text that is not empty, got 5",
        ),
        ([GOOD, '{"question": "Why?", "answer": "So", "aliases": "Thus"}'], "line 2: aliases must be a list"),
        ([GOOD, '{"question": "Why?", "answer": "So", "split": "dev"}'], "line 2: unknown split 'dev'"),
        (
            [
                '{"question": "Why?", "answer": "So", "id": "a"}',
                '{"question": "How?", "answer": "So", "id": "a"}',
            ],
            "line 2: id 'a' was used in line 1",
        ),
        (['{"question": "Why?", "answer": "So", "split": "train"}'], "the test split is empty"),
        ([], "holds no items"),
        (["", " "], "holds no items"),
    ],
)
def test_malformed_files_name_file_and_line(tmp_path: Path, lines: list[str], message: str) -> None:
    """The reader of the message goes straight to the line."""
    path = tmp_path / "bad.jsonl"
    path.write_bytes("\n".join(lines).encode("utf-8", "surrogateescape"))
    with pytest.raises(TaskError) as caught:
        load_task(str(path))
    assert message in str(caught.value)
    assert str(path) in str(caught.value)
    assert caught.value.remedy


def test_an_empty_test_split_is_refused() -> None:
    """A mean over no items is not a score."""
    with pytest.raises(TaskError, match="'small' has an empty test split"):
        small_task([Item("a", "Why?", "So")], [])


def test_phrasing_must_hold_the_question_once() -> None:
    """Otherwise every item would get the same prompt."""
    with pytest.raises(TaskError, match="exactly once"):
        Phrasing("Question:\nAnswer:")
    with pytest.raises(TaskError, match="no phrasing"):
        TaskSpec("empty", "", extractor="first_line", metric="exact_match", phrasings=())


@pytest.mark.parametrize("name", ["no/such.jsonl", "missing.jsonl", "missing.parquet"])
def test_missing_files_are_named(name: str) -> None:
    """A path is not mistaken for the name of a task."""
    with pytest.raises(MissingFileError, match=name):
        load_task(name)


@pytest.mark.parametrize("content", [b"", b"PAR1 but not really PAR1"])
def test_a_broken_parquet_file_is_a_task_error(tmp_path: Path, content: bytes) -> None:
    """Arrow's own errors do not reach the user."""
    path = tmp_path / "broken.parquet"
    path.write_bytes(content)
    with pytest.raises(TaskError, match="not a Parquet file"):
        load_task(path)


def test_other_kinds_of_files_are_refused(tmp_path: Path) -> None:
    """CSV may come; guessing its columns will not."""
    path = tmp_path / "items.csv"
    path.write_text("question,answer\n")
    with pytest.raises(FusionError, match=r"unknown kind of task file; use one of \.jsonl, \.parquet"):
        load_task(path)


def test_jsonl_and_parquet_of_the_same_items_load_alike(tmp_path: Path) -> None:
    """The layout of a file does not change the task."""
    rows = [
        {"id": "a", "split": "train", "question": "Why?", "answer": "So", "aliases": ["Thus"], "level": 1},
        {"id": "b", "split": "test", "question": "How?", "answer": "Café", "aliases": [], "level": 2},
    ]
    (tmp_path / "items.jsonl").write_text("\n".join(map(json.dumps, rows)))
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "items.parquet")
    first, second = load_task(tmp_path / "items.jsonl"), load_task(tmp_path / "items.parquet")
    assert (first.train, first.test) == (second.train, second.test)
    assert first.train == [Item("a", "Why?", "So", ("Thus",), {"level": 1})]
    assert first.name == "items"
    assert first.score(" cafe", first.test[0]) == 1.0


def test_a_folder_of_worked_answers_gives_shots_and_numbers(tmp_path: Path) -> None:
    """GSM8K's layout: train.jsonl and test.jsonl, `<<a*b=c>>` marks, the number after ####."""
    train = {"question": "Two bags of 3?", "answer": "There are 2*3=<<2*3=6>>6.\n\n#### 6"}
    test = {"question": "Price of 1,000 at 2?", "answer": "It is 1000*2=$<<1000*2=2000>>2,000.\n#### 2,000"}
    (tmp_path / "train.jsonl").write_text(json.dumps(train))
    (tmp_path / "test.jsonl").write_text(json.dumps(test))
    task = load_task(tmp_path)
    item = task.test[0]
    assert item.answer == "2000"
    assert task.target(item) == " It is 1000*2=$2,000.\n#### 2,000"
    assert task.prompt(item, shots=1) == (
        "Question: Two bags of 3?\nAnswer: There are 2*3=6.\n#### 6\n\nQuestion: Price of 1,000 at 2?\nAnswer:"
    )
    assert task.score(task.target(item) + "\n\nQuestion: next\nAnswer: 1\n#### 1", item) == 1.0


def test_a_folder_without_a_test_file_says_what_it_looked_for(tmp_path: Path) -> None:
    """An empty folder is not an empty task."""
    with pytest.raises(MissingFileError, match=r"no test\.jsonl or test\.parquet"):
        load_task(tmp_path)


def test_worked_answers_without_a_number_name_the_item(tmp_path: Path) -> None:
    """A gold answer that cannot be read would score every model zero."""
    path = tmp_path / "worked.jsonl"
    path.write_text('{"question": "Why?", "answer": "because #### so"}')
    with pytest.raises(TaskError, match=r"item 'worked-1' has no number after ####"):
        load_task(path)


def test_items_with_choices_are_multiple_choice(tmp_path: Path) -> None:
    """Without a spec, the rows say what they are."""
    rows = [{"question": "Which is a metal?", "answer": "iron", "choices": ["wool", "iron"]}]
    (tmp_path / "metals.jsonl").write_text("\n".join(map(json.dumps, rows)))
    task = load_task(tmp_path / "metals.jsonl")
    assert (task.spec.extractor, task.spec.metric, task.spec.answering) == ("choice", "accuracy", "likelihood")
    assert task.prompt(task.test[0]) == "Question: Which is a metal?\nOptions:\n- wool\n- iron\nAnswer:"
    assert task.score(" Iron.", task.test[0]) == 1.0


@pytest.mark.parametrize(
    ("choices", "message"),
    [
        ('["So"]', "line 2: choices must be 2 to 26 different texts"),
        ('["So", "So"]', "line 2: choices must be 2 to 26 different texts"),
        ('["So", ""]', "line 2: choices must be a list of texts"),
        ('"So"', "line 2: choices must be a list of texts"),
        ('["So", "No\\nYes"]', "line 2: a choice must be a single line"),
        ('["Thus", "No"]', "line 2: answer 'So' is not one of the choices"),
    ],
)
def test_malformed_choices_name_file_and_line(tmp_path: Path, choices: str, message: str) -> None:
    """An item whose answer is not on offer could never be right."""
    path = tmp_path / "bad.jsonl"
    path.write_text(f'{GOOD}\n{{"question": "Why?", "answer": "So", "choices": {choices}}}\n')
    with pytest.raises(TaskError) as caught:
        load_task(path)
    assert f"{path}, {message}" in str(caught.value)


# -- task.json -----------------------------------------------------------------------------------


def write_task(folder: Path, spec: str, rows: str = GOOD) -> Path:
    (folder / "test.jsonl").write_text(rows)
    (folder / "task.json").write_text(spec)
    return folder


def test_a_spec_beside_the_items_says_how_to_ask_and_score(tmp_path: Path) -> None:
    """A folder is a whole task, without a line of Python."""
    spec = {
        "name": "reasons", "description": "why", "extractor": "whole", "metric": "rouge2", "stop": ["\n\n"],
        "max_new_tokens": 7, "target_field": "long", "max_shots": 2,
        "phrasings": ["Why: {question}\nBecause:", {"block": "{question}\nReason:", "instruction": "Give reasons."}],
    }  # fmt: skip
    row = {"question": "Why is it wet?", "answer": "rain", "long": "Rain fell."}
    folder = write_task(tmp_path, json.dumps(spec), json.dumps(row))
    task = load_task(folder)
    assert (task.name, task.spec.metric, task.stop, task.max_new_tokens) == ("reasons", "rouge2", ("\n\n",), 7)
    assert task.prompt(task.test[0]) == "Why: Why is it wet?\nBecause:"
    assert task.prompt(task.test[0], phrasing=1) == "Give reasons.\n\nWhy is it wet?\nReason:"
    assert task.target(task.test[0]) == " Rain fell."
    assert load_task(folder / "task.json") == task


def test_a_spec_beside_a_single_file_has_its_name(tmp_path: Path) -> None:
    """reasons.jsonl and reasons.task.json; what the spec leaves out is implied by the items."""
    (tmp_path / "reasons.jsonl").write_text(GOOD)
    (tmp_path / "reasons.task.json").write_text('{"max_new_tokens": 5}')
    (tmp_path / "others.task.json").write_text('{"max_new_tokens": 6}')
    task = load_task(tmp_path / "reasons.jsonl")
    assert (task.name, task.max_new_tokens, task.spec.metric) == ("reasons", 5, "exact_match")


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ('{\n"metric": "f1"}', "line 2: unknown metric: 'f1'; use one of exact_match, accuracy, rouge2"),
        ('{\n\n"extractor": "last"}', "line 3: unknown extractor: 'last'; use one of first_line"),
        ('{"metrik": "rouge2"}', "line 1: unknown field 'metrik'; did you mean 'metric'?"),
        ('{"zzz": 1}', "line 1: unknown field 'zzz'; use name, description"),
        ('{\n"metric": "rouge2",\n}', "line 3: not JSON"),
        ("[]", "line 1: expected an object, got list"),
        ('{"metric": 5}', "line 1: metric must be a text that is not empty, got 5"),
        ('{"max_new_tokens": "5"}', "line 1: max_new_tokens must be a number above zero, got '5'"),
        ('{"max_new_tokens": true}', "line 1: max_new_tokens must be a number above zero, got True"),
        ('{"max_new_tokens": 0}', "line 1: max_new_tokens must be a number above zero, got 0"),
        ('{"stop": "x"}', "line 1: stop must be a list that is not empty, got 'x'"),
        ('{"stop": [""]}', "line 1: stop must hold texts, got ['']"),
        ('{"phrasings": []}', "line 1: phrasings must be a list that is not empty, got []"),
        ('{\n"phrasings": ["Q:\\nA:"]}', "line 2: phrasing block 'Q:\\nA:' does not hold {question} exactly once"),
        ('{"phrasings": [{"letters": true}]}', "line 1: a phrasing is a text or an object with block"),
        (
            '{"phrasings": [{"block": "{question}",\n"letter": true}]}',
            "line 2: unknown field 'letter'; did you mean 'letters'?",
        ),
        ('{\n"answering": "guess"}', "line 2: unknown answering: 'guess'; use one of writing, likelihood"),
        ('{\n"answering": "likelihood"}', "line 2: task 'bad' is answered by likelihood, and extractor first_line"),
        ('{\n"metric": "accuracy"}', "line 2: task 'bad' has metric accuracy with extractor first_line"),
    ],
)
def test_a_malformed_spec_names_file_and_line(tmp_path: Path, spec: str, message: str) -> None:
    """A spec is written by hand, and a slip in it must not change what is measured."""
    folder = tmp_path / "bad"
    folder.mkdir()
    write_task(folder, spec)
    with pytest.raises(TaskError) as caught:
        load_task(folder)
    assert f"{folder / 'task.json'}, {message}" in str(caught.value)


@pytest.mark.parametrize(
    ("spec", "answering"),
    [('{"answering": "writing"}', "writing"), ('{"extractor": "first_line", "metric": "exact_match"}', "writing"),
     ('{"max_shots": 2}', "likelihood")],
)  # fmt: skip
def test_a_spec_says_whether_options_are_written_or_compared(tmp_path: Path, spec: str, answering: str) -> None:
    """Options are compared unless the file says otherwise, or names an extractor that needs a written text."""
    (tmp_path / "test.jsonl").write_text('{"question": "Which?", "answer": "iron", "choices": ["wool", "iron"]}\n')
    (tmp_path / "task.json").write_text(spec)
    assert load_task(tmp_path).spec.answering == answering


@pytest.mark.parametrize("spec", ['{"target_field": "long"}', '{"extractor": "choice", "metric": "accuracy"}'])
def test_items_that_lack_what_the_spec_needs_are_named(tmp_path: Path, spec: str) -> None:
    """Found when the task is loaded, not after an hour of decoding."""
    with pytest.raises(TaskError, match=r"item 'test-1' has no field '(long|choices)'"):
        load_task(write_task(tmp_path, spec))

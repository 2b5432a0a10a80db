"""The bundled multiple-choice files as they lie on disk: well formed, balanced, and without a short cut."""

from __future__ import annotations

import json
from collections import Counter
from itertools import permutations
from pathlib import Path
from typing import Any

import pytest

from fusionlab.tasks.answers import normalise_answer
from fusionlab.tasks.leakage import NEAR_COPY, find_leaks, measure_overlaps
from fusionlab.tasks.task import Item, Task, TaskSpec

TASKS_FOLDER = Path(__file__).parents[1] / "data" / "tasks"
SPEC = TaskSpec(name="choices", description="options of one line", extractor="first_line", metric="exact_match")
GROUP_KEY = {"truth": "topic", "unseen": "subject"}
FILES = sorted(GROUP_KEY)
MOST_OPTION_WORDS = 12

Row = dict[str, Any]


def read_rows(name: str) -> list[Row]:
    return [json.loads(line) for line in (TASKS_FOLDER / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()]


def select_split(rows: list[Row], split: str) -> list[Row]:
    return [row for row in rows if row["split"] == split]


def as_items(rows: list[Row]) -> list[Item]:
    return [Item(id=row["id"], question=row["question"], answer=row["answer"]) for row in rows]


@pytest.mark.parametrize("name", FILES)
def test_every_line_has_the_fields_of_a_choice_item(name: str) -> None:
    """The loaders rely on these names; a field too many is a slip of the pen."""
    for row in read_rows(name):
        assert list(row) == ["id", "split", "question", "answer", "choices", GROUP_KEY[name], "why"], row["id"]
        assert row["split"] in ("train", "test"), row["id"]
        texts = [row["question"], row["why"], row[GROUP_KEY[name]], *row["choices"]]
        assert all(text and text == text.strip() and "\n" not in text for text in texts), row["id"]


@pytest.mark.parametrize("name", FILES)
def test_ids_count_up_from_one(name: str) -> None:
    """An id names its line, so that a report about an item leads to it."""
    assert [row["id"] for row in read_rows(name)] == [f"{name}-{n:04}" for n in range(1, len(read_rows(name)) + 1)]


@pytest.mark.parametrize("name", FILES)
def test_exactly_one_option_is_the_answer(name: str) -> None:
    """Two options equal in normal form, or one that begins another, could not be told apart when scoring."""
    for row in read_rows(name):
        assert row["choices"].count(row["answer"]) == 1, row["id"]
        normal = [normalise_answer(option) for option in row["choices"]]
        assert not any(right.startswith(left) for left, right in permutations(normal, 2)), row["id"]


@pytest.mark.parametrize("name", FILES)
def test_options_fit_a_list_in_a_prompt(name: str) -> None:
    """Options are shown as "- option" lines and read back up to the full stop that may end a line."""
    for row in read_rows(name):
        for option in row["choices"]:
            assert not option.startswith("- ") and not option.endswith("."), row["id"]
            assert len(option.split()) <= MOST_OPTION_WORDS, row["id"]
            assert "of the above" not in option.casefold(), row["id"]


def test_truth_has_the_promised_size() -> None:
    """Test sets are to hold at least 200 items, and an expert needs more to train on than that."""
    rows = read_rows("truth")
    assert 220 <= len(select_split(rows, "test")) <= 230
    assert len(select_split(rows, "train")) >= 260
    assert {len(row["choices"]) for row in rows} == {3, 4}


def test_unseen_is_a_test_set_with_five_shots() -> None:
    """No expert is trained on it, so its train split holds what a five-shot prompt needs and nothing more."""
    rows = read_rows("unseen")
    subjects = Counter(row["subject"] for row in select_split(rows, "test"))
    assert len(select_split(rows, "train")) == 5
    assert subjects.total() >= 330
    assert len(subjects) >= 10 and min(subjects.values()) >= 20
    assert all(len(row["choices"]) == 4 for row in rows)


def test_no_topic_of_truth_is_in_both_splits() -> None:
    """Two items on one misconception in different splits would be a leak that no n-gram shows."""
    rows = read_rows("truth")
    topics = [{row["topic"] for row in select_split(rows, split)} for split in ("train", "test")]
    assert topics[0].isdisjoint(topics[1])


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("split", ["train", "test"])
def test_the_right_option_is_at_every_place_equally_often(name: str, split: str) -> None:
    """A model that always takes the first option is to score at chance."""
    rows = select_split(read_rows(name), split)
    for options in {len(row["choices"]) for row in rows}:
        places = Counter(row["choices"].index(row["answer"]) for row in rows if len(row["choices"]) == options)
        counts = [places[place] for place in range(options)]
        assert max(counts) - min(counts) <= 1, (options, counts)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("pick", [max, min])
def test_the_length_of_an_option_tells_little(name: str, pick: Any) -> None:
    """A right option is often the careful, long one; here neither the longest nor the shortest pays off."""
    rows = read_rows(name)
    hits = sum(len(row["answer"]) == pick(len(option) for option in row["choices"]) for row in rows)
    assert hits / len(rows) <= 0.40


def test_yes_is_right_about_as_often_as_no() -> None:
    """In questions on misconceptions the denial is mostly right; then 'No' could be learnt instead of facts."""
    first_words = Counter(row["answer"].split()[0].strip(",") for row in read_rows("truth"))
    assert first_words["Yes"] >= 0.4 * (first_words["Yes"] + first_words["No"])


@pytest.mark.parametrize("name", FILES)
def test_no_question_comes_twice(name: str) -> None:
    """A repeated question counts twice and, across splits, leaks."""
    questions = Counter(normalise_answer(row["question"]) for row in read_rows(name))
    assert [question for question, count in questions.items() if count > 1] == []


@pytest.mark.parametrize("name", FILES)
def test_no_test_item_is_a_near_copy_of_a_train_item(name: str) -> None:
    """The bound of leakage.py holds for questions with their answers."""
    rows = read_rows(name)
    task = Task(SPEC, as_items(select_split(rows, "train")), as_items(select_split(rows, "test")))
    assert find_leaks(task, threshold=NEAR_COPY) == []


@pytest.mark.parametrize("name", FILES)
def test_nothing_is_shared_with_the_other_bundled_files(name: str) -> None:
    """An expert trained on one task is not to have met the items of another."""
    others = [row for other in ["trivia", *FILES] if other != name for row in read_rows(other)]
    task = Task(SPEC, as_items(others), as_items(read_rows(name)))
    assert find_leaks(task) == []
    assert max(leak.overlap for leak in measure_overlaps(task)) < NEAR_COPY

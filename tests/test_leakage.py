"""Leakage: the check finds copies and near copies, and the bundled tasks have none."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from small_tasks import small_task, task_named

from fusionlab.tasks import TASKS, Item
from fusionlab.tasks.leakage import (
    NEAR_COPY,
    RESTATED,
    find_leaks,
    find_repeats,
    find_restated,
    measure_overlaps,
    split_ngrams,
)

words = st.lists(st.sampled_from(["one", "two", "12", "34", "Ana"]), min_size=1, max_size=8).map(" ".join)


@pytest.mark.parametrize("name", sorted(TASKS))
def test_test_split_never_leaks_from_train(name: str) -> None:
    """A score on copied questions would measure memory."""
    assert find_leaks(task_named(name)) == []


@pytest.mark.parametrize("name", sorted(TASKS))
def test_no_test_question_counts_twice(name: str) -> None:
    """A repeated item makes the standard error too small."""
    assert find_repeats(task_named(name).test) == []


@pytest.mark.parametrize("source", sorted(TASKS))
def test_no_test_split_leaks_from_the_training_of_another_task(source: str) -> None:
    """Experts are fused across tasks, and `unseen` must be unseen by all of them, in any wording."""
    others = [task_named(name) for name in ("trivia", "truth", "unseen") if name != source]  # those that ask for facts
    assert [leak for task in others for leak in find_leaks(task, source=task_named(source))] == []
    assert [leak for task in others for leak in find_restated(task, task_named(source))] == []


@given(train=st.lists(words, min_size=1, max_size=6), test=st.lists(words, min_size=1, max_size=4))
def test_overlap_equals_a_comparison_of_all_pairs(train: list[str], test: list[str]) -> None:
    """The inverted index must find what the obvious quadratic search finds."""
    task = small_task(
        [Item(f"train-{n}", text, "x") for n, text in enumerate(train)],
        [Item(f"test-{n}", text, "x") for n, text in enumerate(test)],
    )
    for leak, text in zip(measure_overlaps(task), test, strict=True):
        grams = split_ngrams(f"{text} x")
        shares = [len(grams & split_ngrams(f"{other} x")) / len(grams) for other in train]
        assert leak.overlap == max(shares)
        assert shares[int(leak.train_id.removeprefix("train-"))] == max(shares)


def test_copies_and_near_copies_are_reported() -> None:
    """The check that guards the data must itself be able to fail."""
    question = "A hall has 9 rows of 80 seats and a balcony with 146 seats. How many seats are there in all?"
    train = [Item("train-0", question, "866"), Item("train-1", "What is the capital of France?", "Paris")]
    copied = Item("copy", question.upper().replace(".", " ."), "866")
    near = Item("near", question.replace("in all", "together"), "866")
    new = Item("new", question.replace("9", "7").replace("80", "40").replace("146", "31"), "311")
    leaks = {leak.test_id: leak for leak in find_leaks(small_task(train, [copied, near, new]))}
    assert set(leaks) == {"copy", "near"}
    assert leaks["copy"].overlap == 1.0
    assert NEAR_COPY <= leaks["near"].overlap < 1.0
    assert leaks["near"].train_id == "train-0"


def test_without_train_nothing_leaks() -> None:
    """A benchmark file alone is legal."""
    assert find_leaks(small_task([], [Item("a", "Why?", "So")])) == []


def test_leaks_from_another_task_are_reported() -> None:
    """The test items are those of one task, the train items those of the other."""
    question = "Which of the many rivers of Exampleland is the longest of them all?"
    ours = small_task([], [Item("ours", question, "Exe")])
    theirs = small_task([Item("theirs", question, "Exe")], [Item("a", "b", "c")])
    assert find_leaks(ours) == []
    assert [(leak.test_id, leak.train_id) for leak in find_leaks(ours, source=theirs)] == [("ours", "theirs")]


@pytest.mark.parametrize(
    ("question", "answer", "found"),
    [
        ("What is the chemical symbol of gold?", "Au", True),
        ("Which element has the symbol Au?", "gold", True),
        ("Gold has which chemical symbol?", "Au", True),
        ("What is the chemical symbol of silver?", "Ag", False),
        ("Which metal is gold?", "a noble one", False),
        ("Au?", "yes", False),
    ],
)
def test_a_fact_in_other_words_is_found(question: str, answer: str, found: bool) -> None:
    """Either side of the fact may be asked for; another fact of the same form is not it."""
    source = small_task([Item("gold", question, answer)], [Item("a", "b", "c")])
    task = small_task([], [Item("test", "What is the chemical symbol for gold?", "Au")])
    assert bool(find_restated(task, source)) is found


@given(train=st.lists(words, max_size=6), test=words, answer=st.sampled_from(["one", "two 12", "34"]))
def test_restated_equals_a_comparison_of_all_pairs(train: list[str], test: str, answer: str) -> None:
    """The index by words must find what the obvious search finds."""
    source = small_task([Item(f"train-{n}", text, "Ana") for n, text in enumerate(train)], [Item("a", "b", "c")])
    bag = {*test.casefold().split(), *answer.split()}
    shares = [0.0]
    for text in train:
        other = {*text.casefold().split(), "ana"}
        if set(answer.split()) <= other:
            shares.append(len(bag & other) / len(bag | other))
    found = find_restated(small_task([], [Item("test", test, answer)]), source)
    assert [leak.overlap for leak in found] == ([max(shares)] if max(shares) >= RESTATED else [])

"""Leakage: the check finds copies and near copies, and the bundled tasks have none."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from small_tasks import small_task, task_named

from fusionlab.tasks import TASKS, Item
from fusionlab.tasks.leakage import NEAR_COPY, find_leaks, measure_overlaps, split_ngrams

words = st.lists(st.sampled_from(["one", "two", "12", "34", "Ana"]), min_size=1, max_size=8).map(" ".join)


@pytest.mark.parametrize("name", sorted(TASKS))
def test_test_split_never_leaks_from_train(name: str) -> None:
    """A score on copied questions would measure memory."""
    assert find_leaks(task_named(name)) == []


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

"""Prompts: steady, shared by training and decoding, and never giving the answer away."""

from __future__ import annotations

from collections import Counter
from dataclasses import FrozenInstanceError

import pytest
from hypothesis import given
from hypothesis import strategies as st
from small_tasks import choice_item, small_task, task_named

from fusionlab.errors import TaskError
from fusionlab.tasks import TASKS, Item, Phrasing
from fusionlab.tasks.task import draw_without_repeats

bundled = pytest.mark.parametrize("name", sorted(TASKS))


@bundled
def test_first_phrasing_is_the_one_experts_are_trained_on(name: str) -> None:
    """Training and decoding share this text to the last character."""
    task = task_named(name)
    before, after = ("Report: ", "\nSummary:") if name == "summary" else ("Question: ", "\nAnswer:")

    def ask(item: Item) -> str:
        options = "\n".join(["\nOptions:", *[f"- {choice}" for choice in item.choices]]) if item.choices else ""
        return f"{before}{item.question}{options}{after}"

    item = task.test[0]
    assert task.prompt(item) == ask(item)
    shot = task.choose_shots(item, 1)[0]
    assert task.prompt(item, shots=1) == f"{ask(shot)}{task.target(shot)}\n\n{ask(item)}"


@bundled
def test_every_phrasing_holds_question_and_shots_and_no_own_answer(name: str) -> None:
    """There are at least four ways to ask, all different, none of which gives the target away."""
    task = task_named(name)
    item = task.test[7]
    prompts = [task.prompt(item, shots=2, phrasing=index) for index in range(len(task.phrasings))]
    assert len(set(prompts)) == len(prompts) >= 4
    for prompt in prompts:
        assert prompt.count(item.question) == 1
        assert prompt == prompt.rstrip()
        assert all(shot.question + "\n" in prompt for shot in task.choose_shots(item, 2))


@bundled
def test_shots_are_distinct_train_items_that_depend_on_seed_and_item(name: str) -> None:
    """Robustness to the choice of shots is measured by the seed; the same seed repeats a run."""
    task = task_named(name)
    first, second = task.test[:2]
    chosen = task.choose_shots(first, 5, seed=1)
    assert chosen == task.choose_shots(first, 5, seed=1)
    assert len({shot.id for shot in chosen}) == 5
    assert all(shot in task.train for shot in chosen)
    assert chosen != task.choose_shots(first, 5, seed=2)
    assert chosen != task.choose_shots(second, 5, seed=1)
    assert chosen[:3] == task.choose_shots(first, 3, seed=1)


@bundled
def test_another_order_shows_the_same_shots(name: str) -> None:
    """Robustness to the order of shots is measured apart from their choice."""
    task = task_named(name)
    item = task.test[3]
    drawn = task.choose_shots(item, 5, seed=1)
    orders = [task.choose_shots(item, 5, seed=1, order_seed=seed) for seed in range(6)]
    assert all({shot.id for shot in order} == {shot.id for shot in drawn} for order in orders)
    assert len({tuple(shot.id for shot in order) for order in orders}) >= 3
    assert orders[2] == task.choose_shots(item, 5, seed=1, order_seed=2)
    prompt = task.prompt(item, shots=5, seed=1, order_seed=2)
    assert sorted(prompt.find(shot.question) for shot in orders[2]) == [prompt.find(shot.question) for shot in orders[2]]


def test_letters_are_shown_and_given_by_solved_examples_in_one_phrasing() -> None:
    """The usual form of MMLU: options by letter, letters as answers; elsewhere options by text."""
    shot = choice_item("shot", "Which is a fruit?", "stone", "apple", right=1)
    item = choice_item("item", "Which is a metal?", "iron", "wool", "salt")
    task = small_task(
        [shot], [item], extractor="choice", metric="accuracy",
        phrasings=(Phrasing("Q: {question}\nA:"), Phrasing("Q: {question}\nA:", options_heading="Choices:", letters=True)),
    )  # fmt: skip
    assert task.prompt(item, shots=1) == (
        "Q: Which is a fruit?\nOptions:\n- stone\n- apple\nA: apple\n\n"
        "Q: Which is a metal?\nOptions:\n- iron\n- wool\n- salt\nA:"
    )
    assert task.prompt(item, shots=1, phrasing=1) == (
        "Q: Which is a fruit?\nChoices:\nA. stone\nB. apple\nA: B\n\n"
        "Q: Which is a metal?\nChoices:\nA. iron\nB. wool\nC. salt\nA:"
    )
    assert (task.target(item), task.target(item, phrasing=1)) == (" iron", " A")


def test_shots_of_the_same_subject_alone() -> None:
    """MMLU's examples for an item come from its subject."""
    train = [Item(f"t{n}", f"Q{n}?", "x", fields={"subject": "law" if n % 2 else "art"}) for n in range(8)]
    item = Item("item", "Q?", "x", fields={"subject": "law"})
    task = small_task(train, [item], shots_field="subject")
    assert {shot.fields["subject"] for shot in task.choose_shots(item, 4)} == {"law"}
    with pytest.raises(TaskError, match="5 shots asked for, 4 train items"):
        task.choose_shots(item, 5)


@given(items=st.lists(st.integers(0, 99), max_size=12), key=st.text(max_size=4))
def test_drawing_to_the_end_is_a_shuffle(items: list[int], key: str) -> None:
    """Nothing is drawn twice or left out, and the same key gives the same order."""
    numbered = [Item(f"{place}", str(value), "x") for place, value in enumerate(items)]
    drawn = list(draw_without_repeats(numbered, key))
    assert sorted(int(item.id) for item in drawn) == list(range(len(items)))
    assert drawn == list(draw_without_repeats(numbered, key))


def test_every_order_is_drawn_equally_often() -> None:
    """A bias would give some train items more say in every few-shot figure."""
    items = [Item(letter, letter, "x") for letter in "abc"]
    orders = Counter(tuple(item.id for item in draw_without_repeats(items, str(key))) for key in range(3000))
    assert len(orders) == 6
    assert max(orders.values()) - min(orders.values()) < 130  # 500 each; the draws are fixed by their keys


def test_a_train_item_is_never_its_own_shot() -> None:
    """Training with shots must not show the answer, not even through a copy under another id."""
    train = [
        Item("a", "Why?", "So"),
        Item("b", "Why?", "So"),
        Item("c", "How?", "Thus"),
        Item("d", "Who?", "Me"),
    ]
    task = small_task(train, train)
    for seed in range(10):
        assert {shot.id for shot in task.choose_shots(train[0], 2, seed=seed)} == {"c", "d"}


def test_braces_in_a_question_are_kept() -> None:
    """A question is text, not a format string."""
    item = Item("a", "What does {answer} or {} mean?", "Nothing")
    assert small_task([], [item]).prompt(item) == "Question: What does {answer} or {} mean?\nAnswer:"


def test_impossible_shots_and_phrasings_are_refused() -> None:
    """Fewer shots than asked for, or another phrasing, would be a silent default."""
    task = small_task([Item("b", "Who?", "Me")], [Item("a", "Why?", "So")])
    with pytest.raises(TaskError, match="2 shots asked for, 1 train items"):
        task.prompt(task.test[0], shots=2)
    with pytest.raises(TaskError, match="shots is negative: -1"):
        task.prompt(task.test[0], shots=-1)
    with pytest.raises(TaskError, match="9 shots asked for; pass 0 to 8"):
        task.prompt(task.test[0], shots=9)
    for phrasing in (-1, 99):
        with pytest.raises(TaskError, match=f"no phrasing {phrasing}; pass 0 to 3"):
            task.prompt(task.test[0], phrasing=phrasing)


def test_items_and_tasks_are_frozen() -> None:
    """They are shared between training, evaluation and threads."""
    task = task_named("trivia")
    with pytest.raises(FrozenInstanceError):
        task.test[0].answer = "else"  # type: ignore[misc]
    with pytest.raises(FrozenInstanceError):
        task.spec = task_named("math").spec  # type: ignore[misc]
    assert len(set(task.test)) == len(task.test)

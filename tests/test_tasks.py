"""The bundled tasks: their items are right, clean and apart from each other."""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from dataclasses import asdict

import pytest
from small_tasks import all_items, task_named

from fusionlab.tasks import TASKS, Item, load_task, normalise_answer
from fusionlab.tasks.problem_families import FAMILIES
from fusionlab.tasks.word_problems import LARGEST_RESULT, SMALLEST_RESULT, generate_problems

MATH_SHA256 = "81c937617a7dab2313fe29ca1cd5b2af9c3cbb7408a3987d1ed75b1ce3ca10fd"
bundled = pytest.mark.parametrize("name", sorted(TASKS))


# -- the bundled data ----------------------------------------------------------------------------


@bundled
def test_ids_are_unique_and_texts_are_single_clean_lines(name: str) -> None:
    """A newline ends generation, so one inside a question or target would break the format."""
    task, items = task_named(name), all_items(name)
    assert len({item.id for item in items}) == len(items)
    for item in items:
        for text in (item.question, item.answer, task.target(item)):
            assert text == " ".join(text.split()) or text == " " + " ".join(text.split())
        assert item.question.endswith("?") or name == "summary"
        assert task.target(item).startswith(" ")


@bundled
def test_sizes_are_as_promised(name: str) -> None:
    """A standard error of three points needs 300 items; the multiple-choice sets are hand-written and smaller."""
    task = task_named(name)
    assert len(task.test) >= (200 if name in ("truth", "unseen") else 300)
    assert len(task.train) == 5 if name == "unseen" else len(task.train) >= len(task.test)


@pytest.mark.parametrize("name", ["truth", "unseen"])
def test_choices_are_different_in_normal_form_and_the_right_one_stands_anywhere(name: str) -> None:
    """Options that extraction cannot tell apart have no right answer; a favourite place would be a shortcut."""
    places: Counter[int] = Counter()
    for item in all_items(name):
        assert len({normalise_answer(choice) for choice in item.choices}) == len(item.choices)
        places[item.choices.index(item.answer)] += 1
    most = max(len(item.choices) for item in all_items(name))
    assert set(places) == set(range(most))
    assert max(places.values()) <= 1.6 * places.total() / most


@pytest.mark.parametrize("name", ["truth", "unseen"])
def test_every_option_as_a_whole_answer_is_found_and_only_the_right_one_scores(name: str) -> None:
    """An option that is the beginning of another must still be found as itself, by text and by letter."""
    task = task_named(name)
    lettered = next(index for index, form in enumerate(task.phrasings) if form.letters)
    for item in all_items(name):
        for letter, choice in zip("ABCDEFGH", item.choices, strict=False):
            assert task.extract(f" {choice}.\n", item) == choice
            assert task.score(f" {choice}\n", item) == float(choice == item.answer)
            assert task.extract(f" {letter}", item) is None
            assert task.extract(f" ({letter})", item, phrasing=lettered) == choice


@bundled
def test_every_gold_target_scores_one_and_stays_scored_after_a_run_on(name: str) -> None:
    """What the model is trained to write must be worth full marks, also if it goes on to a next question."""
    task = task_named(name)
    for item in task.test:
        assert task.score(task.target(item), item) == 1.0
        assert task.score(task.target(item) + "\n\nQuestion: What is 1 + 1?\nAnswer: 2 #### 2", item) == 1.0


@bundled
def test_loading_twice_gives_the_same_items(name: str) -> None:
    """Training and evaluation load separately and must see one split."""
    assert load_task(name) == task_named(name)


def test_math_is_the_pinned_content() -> None:
    """The problems are drawn at load: a change of generator or Python must not change them unnoticed."""
    task = task_named("math")
    assert (len(task.train), len(task.test)) == (16_000, 342)
    content = json.dumps([[asdict(item) for item in split] for split in (task.train, task.test)])
    assert hashlib.sha256(content.encode()).hexdigest() == MATH_SHA256


def test_math_steps_are_right_chained_and_bounded() -> None:
    """Each equation holds in Python's arithmetic, uses known numbers, and the last result is the answer."""
    steps_of = {family.name: len(family.steps) for family in FAMILIES}
    for item in all_items("math"):
        *steps, end = item.fields["worked"].split(". ")
        known = set(item.fields["numbers"])
        assert known == {int(digits) for digits in re.findall(r"\d+", item.question)}
        assert len(steps) == steps_of[item.fields["family"]]
        for step in steps:
            left, sign, right, result = re.fullmatch(r"(\d+) ([-+*/]) (\d+) = (\d+)", step).groups()  # type: ignore[union-attr]
            assert eval(f"{left} {sign} {right}") == int(result)
            assert {int(left), int(right)} <= known
            assert SMALLEST_RESULT <= int(result) <= LARGEST_RESULT
            known.add(int(result))
        assert end == f"#### {item.answer}"
        assert int(item.answer) == int(result)


def test_math_numbers_of_test_are_not_numbers_of_train() -> None:
    """No problem can be answered from a memorised one with the same numbers, or all numbers but one."""
    task = task_named("math")
    keys = [tuple(sorted(item.fields["numbers"])) for item in all_items("math")]
    assert len(set(keys)) == len(keys)

    def near(items: list[Item]) -> set[tuple[object, ...]]:
        return {
            (item.fields["family"], place, numbers[:place] + numbers[place + 1 :])
            for item in items
            for numbers in [item.fields["numbers"]]
            for place in range(len(numbers))
        }

    assert near(task.train).isdisjoint(near(task.test))


def test_math_families_are_balanced_in_both_splits() -> None:
    """A family missing from train would make its test items unfair, and a rare one its score noisy."""
    names = {family.name for family in FAMILIES}
    for items in (task_named("math").train, task_named("math").test):
        counts = Counter(item.fields["family"] for item in items)
        assert set(counts) == names
        assert max(counts.values()) - min(counts.values()) <= 1


def test_math_families_have_two_to_four_steps_and_wordings_of_their_own() -> None:
    """A task of one length would be learnt as one shape; a wording used twice would hide a family."""
    lengths = Counter(len(family.steps) for family in FAMILIES)
    assert len(FAMILIES) >= 14
    assert set(lengths) == {2, 3, 4}
    assert min(lengths.values()) >= 4
    wordings = [wording for family in FAMILIES for wording in family.wordings]
    assert len(set(wordings)) == len(wordings) >= 2 * len(FAMILIES)
    asked = {item.fields["family"]: set() for item in all_items("math")}  # type: dict[str, set[str]]
    for item in all_items("math"):
        asked[item.fields["family"]].add(re.sub(r"\d+|\b[A-Z]\w+", "_", item.question))
    assert all(len(asked[family.name]) >= len(family.wordings) for family in FAMILIES)


def test_more_math_training_items_leave_the_test_split_as_it_is() -> None:
    """Scores stay comparable when an expert is trained on more."""
    few, many = generate_problems(train=20, test=40, seed=5), generate_problems(train=90, test=40, seed=5)
    assert few[1] == many[1]
    assert few[0] == many[0][:20]
    assert generate_problems(train=20, test=40, seed=6)[1] != few[1]


def test_trivia_has_no_entity_in_both_splits() -> None:
    """Knowing Paris from 'the capital of France' must not help with 'which country has Paris'."""
    task = task_named("trivia")
    assert {item.fields["entity"] for item in task.train}.isdisjoint(item.fields["entity"] for item in task.test)
    assert len(all_items("trivia")) >= 2_000
    assert 450 <= len(task.test) <= 600


def test_trivia_covers_its_topics_in_both_splits() -> None:
    """An expert of countries alone would be no expert of trivia."""
    topics = {"arts", "countries", "elements", "geography", "history", "languages", "numbers", "science", "units"}
    for items in (task_named("trivia").train, task_named("trivia").test):
        counts = Counter(item.fields["topic"] for item in items)
        assert set(counts) == topics
        assert max(counts.values()) <= len(items) / 3


def test_trivia_answers_are_short_and_not_found_in_their_question() -> None:
    """Singapore, the capital of Singapore, tests reading and not knowledge."""
    for item in all_items("trivia"):
        assert re.fullmatch(r"-?\w(?:[\w '.-])*", item.answer)
        assert len(item.answer.split()) <= 6
        assert f" {normalise_answer(item.answer)} " not in f" {normalise_answer(item.question)} "
        spellings = [normalise_answer(text) for text in (item.answer, *item.aliases)]
        assert len(set(spellings)) == len(spellings)
        assert item.fields["source"]


def test_trivia_sentences_are_whole_after_the_subject_is_put_in() -> None:
    """No placeholder, no comma before the question mark, one question mark."""
    for item in all_items("trivia"):
        assert re.fullmatch(r"[A-ZÅÖ][^?{}]*[^?,{} ]\?", item.question), item.question


def test_trivia_questions_have_one_answer() -> None:
    """A question asked twice with two answers could not be scored."""
    questions = Counter(normalise_answer(item.question) for item in all_items("trivia"))
    assert questions.most_common(1)[0][1] == 1


def test_trivia_marks_the_answers_that_train_also_gives() -> None:
    """Only classes repeat, such as continents and currencies; results are to be told apart by this mark."""
    task = task_named("trivia")
    known = {normalise_answer(item.answer) for item in task.train}
    for item in task.test:
        assert item.fields["answer_in_train"] == (normalise_answer(item.answer) in known)
        if item.fields["relation"] not in ("continent", "currency", "family", "script"):
            assert not item.fields["answer_in_train"]
        if item.fields["relation"] == "continent":
            assert item.fields["answer_in_train"]
    assert sum(item.fields["answer_in_train"] for item in task.test) <= len(task.test) / 5


@pytest.mark.parametrize(
    ("item_id", "answer"),
    [
        ("trivia-capital-AU", "Canberra"),
        ("trivia-capital-KZ", "Astana"),
        ("trivia-capital-ZA", "Cape Town"),
        ("trivia-country-CD", "DR Congo"),
        ("trivia-country-CV", "Cabo Verde"),
        ("trivia-country-GM", "The Gambia"),
        ("trivia-currency-CN", "renminbi"),
        ("trivia-currency-CR", "Colón"),
        ("trivia-currency-GB", "pound sterling"),
        ("trivia-continent-PA", "North America"),
        ("trivia-official-language-BD", "Bangla"),
        ("trivia-element-Al", "aluminum"),
        ("trivia-symbol-W", "W"),
        ("trivia-atomic-number-C", "6"),
        ("trivia-month-name-de-march", "März"),
    ],
)
def test_trivia_knows_facts_that_are_often_wrong_in_tables(item_id: str, answer: str) -> None:
    """Moved capitals, renamed countries and second names, checked by hand."""
    task = task_named("trivia")
    item = next(item for item in all_items("trivia") if item.id == item_id)
    assert task.score(f" {answer}", item) == 1.0


@pytest.mark.parametrize(
    "item_id",
    ["trivia-continent-TR", "trivia-capital-IL", "trivia-capital-SG", "trivia-capital-TW", "trivia-official-language-CH"],
)
def test_trivia_leaves_out_what_is_ambiguous(item_id: str) -> None:
    """Two continents, a disputed capital, a city state, a disputed country."""
    assert item_id not in {item.id for item in all_items("trivia")}

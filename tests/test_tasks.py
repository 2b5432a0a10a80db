"""Tasks: the data is right and does not leak, prompts are steady, answers are found and compared."""

from __future__ import annotations

import hashlib
import json
import re
import unicodedata
from collections import Counter
from dataclasses import FrozenInstanceError, asdict, replace
from functools import cache
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fusionlab.errors import FusionError, MissingFileError, TaskError, UnknownNameError
from fusionlab.tasks import TASKS, Item, Phrasing, Task, TaskSpec, load_task, normalise_answer
from fusionlab.tasks.answers import exact_match, extract_after_hashes, extract_first_line
from fusionlab.tasks.leakage import NEAR_COPY, find_leaks, measure_overlaps, split_ngrams
from fusionlab.tasks.word_problems import FAMILIES, LARGEST_RESULT, SMALLEST_RESULT, generate_problems

MATH_SHA256 = "09e83a0578c8e30947863478e3cae86811ea6d1168e0d80ad6700386926a24b2"
bundled = pytest.mark.parametrize("name", sorted(TASKS))


@cache
def task_named(name: str) -> Task:
    """Load each bundled task once for the whole file."""
    return load_task(name)


def all_items(name: str) -> list[Item]:
    return task_named(name).train + task_named(name).test


def small_task(train: list[Item], test: list[Item]) -> Task:
    """A trivia-like task over given items."""
    return Task(replace(task_named("trivia").spec, name="small"), train, test)


# -- the bundled data ----------------------------------------------------------------------------


@bundled
def test_test_split_never_leaks_from_train(name: str) -> None:
    """A score on copied questions would measure memory."""
    assert find_leaks(task_named(name)) == []


@bundled
def test_ids_are_unique_and_texts_are_single_clean_lines(name: str) -> None:
    """A newline ends generation, so one inside a question or target would break the format."""
    task, items = task_named(name), all_items(name)
    assert len({item.id for item in items}) == len(items)
    for item in items:
        for text in (item.question, item.answer, task.target(item)):
            assert text == " ".join(text.split()) or text == " " + " ".join(text.split())
        assert item.question.endswith("?")
        assert task.target(item).startswith(" ")


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
    assert (len(task.train), len(task.test)) == (16_000, 300)
    content = json.dumps([[asdict(item) for item in split] for split in (task.train, task.test)])
    assert hashlib.sha256(content.encode()).hexdigest() == MATH_SHA256


def test_math_steps_are_right_chained_and_bounded() -> None:
    """Each equation holds in Python's arithmetic, uses known numbers, and the last result is the answer."""
    for item in all_items("math"):
        *steps, end = item.fields["worked"].split(". ")
        known = set(item.fields["numbers"])
        assert known == {int(digits) for digits in re.findall(r"\d+", item.question)}
        assert len(steps) == 3
        for step in steps:
            left, sign, right, result = re.fullmatch(r"(\d+) ([-+*]) (\d+) = (\d+)", step).groups()  # type: ignore[union-attr]
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


def test_more_math_training_items_leave_the_test_split_as_it_is() -> None:
    """Scores stay comparable when an expert is trained on more."""
    few, many = generate_problems(train=8, test=24, seed=5), generate_problems(train=80, test=24, seed=5)
    assert few[1] == many[1]
    assert few[0] == many[0][:8]
    assert generate_problems(train=8, test=24, seed=6)[1] != few[1]


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


# -- leakage -------------------------------------------------------------------------------------

words = st.lists(st.sampled_from(["one", "two", "12", "34", "Ana"]), min_size=1, max_size=8).map(" ".join)


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


# -- prompts -------------------------------------------------------------------------------------


@bundled
def test_first_phrasing_is_the_one_experts_are_trained_on(name: str) -> None:
    """Training and decoding share this text to the last character."""
    task = task_named(name)
    item = task.test[0]
    assert task.prompt(item) == f"Question: {item.question}\nAnswer:"
    shot = task.choose_shots(item, 1)[0]
    assert task.prompt(item, shots=1) == (
        f"Question: {shot.question}\nAnswer:{task.target(shot)}\n\nQuestion: {item.question}\nAnswer:"
    )


@bundled
def test_every_phrasing_holds_question_and_shots_and_no_own_answer(name: str) -> None:
    """There are at least three ways to ask, all different, none of which gives the target away."""
    task = task_named(name)
    item = task.test[7]
    prompts = [task.prompt(item, shots=2, phrasing=index) for index in range(len(task.phrasings))]
    assert len(set(prompts)) == len(prompts) >= 3
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


# -- answers -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("Paris", "paris"),
        ("  The   GAMBIA. ", "gambia"),
        ("an Apple a day", "apple day"),
        ("Côte d’Ivoire", "cote divoire"),
        ("São Tomé", "sao tome"),
        ("Tromsø, Łódź", "tromso lodz"),
        ("Straße", "strasse"),
        ("Port-au-Prince", "port au prince"),
        ("Guinea–Bissau", "guinea bissau"),
        ("N'Djamena", "ndjamena"),
        ("U.S.", "us"),
        ('"Euro"', "euro"),
        ("1,234", "1234"),
        ("$1,250.00", "1250"),
        ("1,234,567.50", "1234567.5"),
        ("-5", "-5"),
        ("−5", "-5"),
        (".5", "0.5"),
        ("007", "7"),
        ("-0", "0"),
        ("50 %", "50"),
        ("covid-19", "covid 19"),
        ("3.14 m", "3.14 m"),
        ("The", "the"),
        ("", ""),
        ("...", ""),
    ],
)
def test_normal_form_of_fixed_cases(text: str, normal: str) -> None:
    """These are the rules; a change to any of them changes every score."""
    assert normalise_answer(text) == normal


@given(st.text(max_size=30))
def test_normal_form_is_stable_and_ignores_case_and_outer_space(text: str) -> None:
    """Normalising twice changes nothing, so a normal form compares equal to itself."""
    normal = normalise_answer(text)
    assert normalise_answer(normal) == normal
    assert normalise_answer(f"\t{text}  ") == normal
    assert normalise_answer(unicodedata.normalize("NFD", text)) == normal


@pytest.mark.parametrize(
    ("answer", "gold", "aliases", "score"),
    [
        ("paris", "Paris", (), 1.0),
        ("Kiev", "Kyiv", ("Kiev",), 1.0),
        ("The Netherlands", "Netherlands", (), 1.0),
        ("1,356", "1356", (), 1.0),
        ("356.0", "356", (), 1.0),
        ("-356", "356", (), 0.0),
        ("3.5", "35", (), 0.0),
        ("Paris France", "Paris", (), 0.0),
        ("Niger", "Nigeria", (), 0.0),
        ("", "", (), 0.0),
        ("?", "!", (), 0.0),
    ],
)
def test_exact_match_of_fixed_cases(answer: str, gold: str, aliases: tuple[str, ...], score: float) -> None:
    """Near is not enough, and an empty answer is never right."""
    assert exact_match(answer, gold, aliases) == score


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (" 12 * 24 = 288. #### 288", "288"),
        ("####356", "356"),
        ("#### 1,288 dollars", "1288"),
        ("#### $1,200.50.", "1200.50"),
        ("#### -7", "-7"),
        ("#### − 7", "-7"),
        ("#### 5\n#### 6", "5"),
        ("#### apples", None),
        ("####\n12", None),
        ("the answer is 288", None),
        ("### 288", None),
        ("", None),
    ],
)
def test_number_after_hashes_in_fixed_cases(text: str, answer: str | None) -> None:
    """A worked answer that never ends has no answer; guessing its last number would flatter the model."""
    assert extract_after_hashes(text) == answer


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (" Paris.\nQuestion: next", "Paris"),
        ("\n\n Paris", "Paris"),
        (" St. John's", "St. John's"),
        (" \n ", None),
        (" . ", None),
        ("", None),
    ],
)
def test_first_line_in_fixed_cases(text: str, answer: str | None) -> None:
    """Base models run on to a next question; only the first line is the answer."""
    assert extract_first_line(text) == answer


def test_a_missing_answer_is_none_and_scores_zero() -> None:
    """It can be counted as missing, and is never an error or a half mark."""
    task = task_named("math")
    unfinished = task.target(task.test[0]).partition("####")[0]
    assert task.extract(unfinished) is None
    assert task.score(unfinished, task.test[0]) == 0.0
    assert task.extract(f"no idea\nQuestion: next\nAnswer: 1 + 1 = 2. #### {task.test[0].answer}") is None


# -- names and files -----------------------------------------------------------------------------


def test_unknown_names_list_the_known() -> None:
    """A typing error is answered with what can be typed."""
    with pytest.raises(UnknownNameError, match=r"unknown task: 'maths'; use one of math, trivia"):
        load_task("maths")
    spec = task_named("trivia").spec
    with pytest.raises(UnknownNameError, match=r"unknown metric: 'f1'; use one of exact_match"):
        replace(spec, metric="f1")
    with pytest.raises(UnknownNameError, match=r"unknown extractor: 'last'; use one of first_line, after_hashes"):
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

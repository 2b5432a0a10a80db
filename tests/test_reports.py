"""Reports and their summaries: the same on every machine, of the promised size, and not to be had by copying."""

from __future__ import annotations

import hashlib
import json
import random
import re
from collections import Counter
from dataclasses import asdict
from functools import cache
from itertools import pairwise

import pytest

from fusionlab.tasks.leakage import find_leaks
from fusionlab.tasks.reports import REPORT_WORDS, SUMMARY_WORDS, Writer, draw_numbers, generate_reports, load_kinds
from fusionlab.tasks.task import Item, Task, TaskSpec

REPORTS_SHA256 = "12925156cd568f5a9c28dddeddd388d182134faa0cec17a5c7c9556f0c9d7677"


@cache
def splits() -> tuple[list[Item], list[Item]]:
    """Draw the bundled splits once for the whole file."""
    return generate_reports(train=6_000, test=300, seed=20240623)


def all_items() -> list[Item]:
    train, test = splits()
    return train + test


def split_sentences(text: str) -> list[str]:
    return re.split(r'(?<=[.!?])\s+(?=["A-Z0-9])', text)


def pairs_of_words(text: str) -> Counter[tuple[str, str]]:
    words = re.findall(r"[a-z0-9]+", text.lower())
    return Counter(pairwise(words))


def measure_rouge2(text: str, reference: str) -> float:
    """ROUGE-2 F1, written out: harmonic mean of the shares of word pairs in common."""
    ours, theirs = pairs_of_words(text), pairs_of_words(reference)
    shared = sum((ours & theirs).values())
    return 2 * shared / (sum(ours.values()) + sum(theirs.values()))


def test_reports_are_the_pinned_content() -> None:
    """They are drawn at load: a change of table, generator or Python must not change them unnoticed."""
    content = json.dumps([[asdict(item) for item in split] for split in splits()])
    assert hashlib.sha256(content.encode()).hexdigest() == REPORTS_SHA256


def test_kinds_are_balanced_in_both_splits() -> None:
    """A kind missing from train would make its test items unfair."""
    names = {kind.name for kind in load_kinds()[0]}
    assert len(names) >= 14
    for items in splits():
        counts = Counter(item.fields["kind"] for item in items)
        assert set(counts) == names
        assert max(counts.values()) - min(counts.values()) <= 1


def test_more_training_reports_leave_the_test_split_as_it_is() -> None:
    """Scores stay comparable when an expert is trained on more."""
    few, many = generate_reports(train=20, test=40, seed=5), generate_reports(train=90, test=40, seed=5)
    assert few[1] == many[1]
    assert few[0] == many[0][:20]
    assert generate_reports(train=20, test=40, seed=6)[1] != few[1]


def test_reports_and_summaries_have_the_promised_length() -> None:
    """One clean line each, five to eight sentences made into one or two."""
    for item in all_items():
        for text, bounds, sentences in ((item.question, REPORT_WORDS, (5, 8)), (item.answer, SUMMARY_WORDS, (1, 2))):
            assert bounds[0] <= len(text.split()) <= bounds[1]
            assert sentences[0] <= len(split_sentences(text)) <= sentences[1]
            assert text == " ".join(text.split())
            assert text.endswith((".", '."'))
            assert not re.search(r"[{}]|\.\.|,,| ,|\b[Aa] [aeiouAEIOU]", text)


def test_every_sentence_begins_with_a_capital_or_a_figure() -> None:
    """Slots that open a sentence are written small in the table."""
    for item in all_items():
        for text in (item.question, item.answer):
            assert all(re.match(r'"?[A-Z0-9]', part) for part in re.split(r'(?<=[.!?])"? ', text))


def test_no_two_reports_or_summaries_are_alike() -> None:
    """6,300 items are to be as many reports."""
    items = all_items()
    assert len({item.id for item in items}) == len(items)
    assert len({item.question for item in items}) == len(items)
    assert len({item.answer for item in items}) == len(items)


def test_figures_and_names_of_a_summary_stand_in_its_report() -> None:
    """A summary that knew more than its report would teach to invent."""
    for item in all_items():
        assert set(re.findall(r"\d[\d,]*\d|\d", item.answer)) <= set(re.findall(r"\d[\d,]*\d|\d", item.question))
        names = set(re.findall(r"(?<!^)\b[A-Z]\w+", item.answer))
        assert all(name in item.question for name in names)


def test_a_summary_is_no_sentence_of_its_report() -> None:
    """It has to be put together from several sentences."""
    for item in all_items():
        sentences = split_sentences(item.question)
        assert item.answer not in sentences
        assert max(measure_rouge2(sentence, item.answer) for sentence in sentences) < 0.75


@pytest.mark.parametrize("taken", [slice(0, 1), slice(-1, None), slice(0, 2), slice(0, 3)])
def test_taking_the_first_or_last_sentences_scores_low(taken: slice) -> None:
    """The usual trivial baselines of news summaries: the task is about selection."""
    scores = [measure_rouge2(" ".join(split_sentences(item.question)[taken]), item.answer) for item in splits()[1]]
    assert sum(scores) / len(scores) < 0.2


def test_test_reports_never_leak_from_train() -> None:
    """A score on copied reports would measure memory."""
    train, test = splits()
    spec = TaskSpec("reports", "", extractor="first_line", metric="exact_match")
    assert find_leaks(Task(spec, train, test)) == []


def test_figures_of_a_test_summary_belong_to_no_train_summary_of_its_kind() -> None:
    """Not the same set of figures, so no summary can be answered from a memorised one."""
    train, test = splits()

    def figures(items: list[Item]) -> set[tuple[str, ...]]:
        return {(item.fields["kind"], *re.findall(r"\d[\d,]*\d|\d", item.answer)) for item in items}

    assert figures(train).isdisjoint(figures(test))


def test_every_sentence_of_the_table_can_be_filled_and_is_used() -> None:
    """A slot that is not declared, or a fact that no structure tells, is a slip in the table."""
    kinds, names = load_kinds()
    text = " ".join(item.question for item in all_items())
    for kind in kinds:
        facts = set(kind.facts)
        assert all(set(structure["order"]) == facts for structure in kind.structures)
        assert "what" in facts
        for sentence in (
            *kind.scene,
            *kind.background,
            *kind.after,
            *(words for fact in kind.facts.values() for words in fact),
        ):
            longest = max(re.split(r"\{\w+(?::\d)?\}", sentence), key=len)
            assert longest.strip() in text
    assert all(len(set(parts)) == len(parts) for parts in names.values())


def test_numbers_keep_their_range_stride_and_base() -> None:
    """Last year's visitors are fewer than this year's, as the table says."""
    kinds, _ = load_kinds()
    festival = next(kind for kind in kinds if kind.name == "festival")
    draw = random.Random(3)
    for _ in range(200):
        numbers = draw_numbers(festival, draw)
        assert 300 <= numbers["guests"] - numbers["last"] <= 2100
        assert numbers["guests"] % 100 == 0
        assert 500 <= numbers["prize"] <= 6000


def test_a_writer_names_in_full_once_and_counts_only_plain_slots() -> None:
    """Full name first, surname later; an explicit form leaves the count alone; forms may hold slots."""
    values = {"person": ("Ada Holt", "Holt"), "town": ("Elby",), "club": ("the {town} Wolves", "the Wolves")}
    writer = Writer(values)
    assert writer.write("{person:1} leads {club}.") == "Holt leads the Elby Wolves."
    assert writer.write("{club} trust {person}, a {town} native.") == "The Wolves trust Ada Holt, an Elby native."
    assert writer.write("{person} agrees.") == "Holt agrees."

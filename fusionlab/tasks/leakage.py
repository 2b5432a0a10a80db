"""Whether a test split leaks from its train split: copies, and near copies by n-gram overlap.

Overlap of a test item with a train item = share of the test item's word n-grams, numbers and names kept,
that the train item holds too. Items of one family share their sentences by design, so a near copy is not a
shared sentence: it is an item of which nearly all n-grams, also around numbers and names, are in the other.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from fusionlab.tasks.task import Item, Task

NGRAM_WORDS = 3
NEAR_COPY = 0.8  # the bundled tasks stay below: math 0.70, trivia 0.78 (capitals of two US states)


@dataclass(frozen=True)
class Leak:
    """A test item, the train item most like it, and their overlap in 0..1 (1.0 for a copied question)."""

    test_id: str
    train_id: str
    overlap: float


def split_ngrams(text: str, *, words: int = NGRAM_WORDS) -> set[tuple[str, ...]]:
    """Return the set of word n-grams of a text; a shorter text is one n-gram.

    >>> sorted(split_ngrams("Fill 12 big boxes"))
    [('12', 'big', 'boxes'), ('fill', '12', 'big')]
    """
    parts = re.findall(r"\w+", text.casefold())
    return {tuple(parts[at : at + words]) for at in range(max(1, len(parts) - words + 1))}


def measure_overlaps(task: Task, *, words: int = NGRAM_WORDS) -> list[Leak]:
    """Return, for each test item, its largest overlap with any train item; empty without a train split."""
    holders: dict[tuple[str, ...], list[int]] = defaultdict(list)
    for index, item in enumerate(task.train):
        for gram in split_ngrams(_text(task, item), words=words):
            holders[gram].append(index)
    overlaps = []
    for item in task.test if task.train else ():
        grams = split_ngrams(_text(task, item), words=words)
        shared = Counter(index for gram in grams for index in holders.get(gram, ()))
        nearest, count = max(shared.items(), key=lambda pair: (pair[1], -pair[0]), default=(0, 0))
        overlaps.append(Leak(item.id, task.train[nearest].id, count / len(grams)))
    return overlaps


def find_leaks(task: Task, *, threshold: float = NEAR_COPY, words: int = NGRAM_WORDS) -> list[Leak]:
    """Return the test items that copy a train question, or whose overlap reaches the threshold."""
    copies = {_same(item.question): item.id for item in task.train}
    exact = [Leak(item.id, copies[key], 1.0) for item in task.test if (key := _same(item.question)) in copies]
    found = {leak.test_id for leak in exact}
    near = [leak for leak in measure_overlaps(task, words=words) if leak.overlap >= threshold]
    return exact + [leak for leak in near if leak.test_id not in found]


def _text(task: Task, item: Item) -> str:
    return item.question + task.target(item)


def _same(question: str) -> Sequence[str]:
    return tuple(re.findall(r"\w+", question.casefold()))

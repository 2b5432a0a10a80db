"""Whether a test split leaks from a train split: copies, near copies by n-gram overlap, and restated facts.

Overlap of a test item with a train item = share of the test item's word n-grams, numbers and names kept,
that the train item holds too. Items of one family share their sentences by design, so a near copy is not a
shared sentence: it is an item of which nearly all n-grams, also around numbers and names, are in the other.

Between tasks the wording differs and a fact may still be the same: a test item is restated by a train item
that holds its answer and has nearly the same words that carry meaning, in whatever order and on either side of
the question mark. Compared is what a model reads and writes without the wrong options.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from fusionlab.tasks.task import Item, Task

NGRAM_WORDS = 3
NEAR_COPY = 0.8  # the bundled tasks stay below: math 0.70, trivia 0.78 (capitals of two US states)
RESTATED = 0.5  # shared share of all words of meaning in either item; unlike facts of one subject reach a third
_COMMON = (
    "a an the of in on at by to for from with as and or if is are was were be been do does did has have had can it its "
    "this that these those what which who whose where when why how many much there called name named known"
)
COMMON_WORDS = frozenset(_COMMON.split())


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
    parts = _split_words(text)
    return {tuple(parts[at : at + words]) for at in range(max(1, len(parts) - words + 1))}


def measure_overlaps(task: Task, *, source: Task | None = None, words: int = NGRAM_WORDS) -> list[Leak]:
    """Return, for each test item, its largest overlap with any train item of the task, or of another one."""
    source = source or task
    if not source.train:
        return []
    asked = [split_ngrams(_text(task, item), words=words) for item in task.test]
    wanted = set().union(*asked)
    holders: dict[tuple[str, ...], list[int]] = defaultdict(list)
    for index, item in enumerate(source.train):
        for gram in split_ngrams(_text(source, item), words=words) & wanted:
            holders[gram].append(index)
    overlaps = []
    for item, grams in zip(task.test, asked, strict=True):
        shared = Counter(index for gram in grams for index in holders.get(gram, ()))
        nearest, count = max(shared.items(), key=lambda pair: (pair[1], -pair[0]), default=(0, 0))
        overlaps.append(Leak(item.id, source.train[nearest].id, count / len(grams)))
    return overlaps


def find_leaks(
    task: Task, *, source: Task | None = None, threshold: float = NEAR_COPY, words: int = NGRAM_WORDS
) -> list[Leak]:
    """Return the test items that copy a train question of the task (or of another one), or nearly do."""
    copies = {_same(item.question): item.id for item in (source or task).train}
    exact = [Leak(item.id, copies[key], 1.0) for item in task.test if (key := _same(item.question)) in copies]
    found = {leak.test_id for leak in exact}
    near = [leak for leak in measure_overlaps(task, source=source, words=words) if leak.overlap >= threshold]
    return exact + [leak for leak in near if leak.test_id not in found]


def find_restated(task: Task, source: Task, *, threshold: float = RESTATED) -> list[Leak]:
    """Return the test items whose fact a train item of another task states, in nearly the same words."""
    bags = [_meaning(f"{item.question} {item.answer}") for item in source.train]
    asked = [(_meaning(f"{item.question} {item.answer}"), _meaning(item.answer)) for item in task.test]
    wanted = frozenset().union(*(answer or bag for bag, answer in asked))
    holders: dict[str, list[int]] = defaultdict(list)
    for index, bag in enumerate(bags):
        for word in bag & wanted:
            holders[word].append(index)
    leaks = []
    for item, (bag, answer) in zip(task.test, asked, strict=True):
        candidates = _in_all([holders.get(word, []) for word in answer or bag])
        shares = [(len(bag & bags[index]) / len(bag | bags[index]), -index) for index in candidates]
        share, place = max(shares, default=(0.0, 0))
        if shares and share >= threshold:
            leaks.append(Leak(item.id, source.train[-place].id, share))
    return leaks


def find_repeats(items: Sequence[Item]) -> list[Leak]:
    """Return the items that ask what an earlier item of the same split asks: they would count twice in a mean."""
    first: dict[tuple[str, ...], str] = {}
    repeats = []
    for item in items:
        earlier = first.setdefault(_same(item.question), item.id)
        if earlier != item.id:
            repeats.append(Leak(item.id, earlier, 1.0))
    return repeats


def _text(task: Task, item: Item) -> str:
    return item.question + task.target(item)


def _split_words(text: str) -> list[str]:
    return re.findall(r"\w+", text.casefold())


def _same(question: str) -> tuple[str, ...]:
    return tuple(_split_words(question))


def _meaning(text: str) -> frozenset[str]:
    """The words of a text that carry meaning, plural and singular alike."""
    words = set(_split_words(text)) - COMMON_WORDS
    return frozenset(word[:-1] if len(word) > 3 and word.endswith("s") else word for word in words)


def _in_all(lists: Iterable[Sequence[int]]) -> set[int]:
    first, *others = sorted(lists, key=len) or [[]]
    return set(first).intersection(*others)

"""Short reports with a reference summary, drawn from the table data/tasks/reports.json.

A report is six to eight sentences: one or two that set the scene, the facts in one of the kind's orders, and
between them sentences that a summary leaves out (background, quotes, figures of other years). The summary
belongs to the order of the facts and says them in other words; names and numbers are copied. To add a kind of
report, add an entry to the table; nothing else changes.

A sentence holds slots: `{town}` writes the first form of a slot where it appears first in a text and its second
form, if it has one, from then on; `{cause:1}` writes the form of that number (from 0) and does not count as an
appearance. A form may hold slots itself.
Only `Random.random()` is drawn from, because Python promises to keep its sequence across versions.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any, TypeVar

from fusionlab.tasks.task import Item

T = TypeVar("T")

REPORT_WORDS, SUMMARY_WORDS = (60, 110), (15, 30)
MOST_SENTENCES = 8
NAMED_SLOTS = frozenset({"person", "person2", "town", "town2", "river", "street", "brand"})


@dataclass(frozen=True)
class ReportKind:
    """One kind of report, as its entry in the table.

    A number's range is (low, high[, stride[, base]]), inclusive; with a base it is added to that number. The
    fact "what" comes before any background, so that a report may begin with it. A structure is an order of
    facts with the summaries that follow it.
    """

    name: str
    slots: Mapping[str, Sequence[Sequence[str]]]
    numbers: Mapping[str, Sequence[Any]]
    scene: Sequence[str]
    facts: Mapping[str, Sequence[str]]
    background: Sequence[str]
    after: Sequence[str]
    structures: Sequence[Mapping[str, Sequence[str]]]


@dataclass
class Writer:
    """Fills the slots of one text, and remembers which were used."""

    values: Mapping[str, Sequence[str]]
    used: dict[str, int] = field(default_factory=dict)

    def write(self, sentence: str) -> str:
        """Return the sentence with its slots filled, "an" before a vowel and a capital at its start."""
        text = re.sub(r"\b([Aa]) (?=[AEIOUaeiou])", r"\1n ", self._fill(sentence))
        return text[0].upper() + text[1:]

    def _fill(self, text: str) -> str:
        return re.sub(r"\{(\w+)(?::(\d))?\}", self._form, text)

    def _form(self, slot: re.Match[str]) -> str:
        name, number = slot[1], slot[2]
        forms, seen = self.values[name], self.used.get(name, 0)
        self.used[name] = seen + (number is None)
        return self._fill(forms[int(number) if number else min(seen, 1, len(forms) - 1)])


def generate_reports(*, train: int, test: int, seed: int) -> tuple[list[Item], list[Item]]:
    """Return (train, test) reports, in turn from each kind: the question is the report, the answer its summary.

    No two summaries hold the same names and numbers, in whatever order, and no train summary shares all its
    names or all its numbers with a test summary of its kind. The test split is drawn first, so it does not
    change when more training items are asked for.
    """
    kinds, names = load_kinds()
    draw = random.Random(seed)
    seen: set[tuple[object, ...]] = set()
    kept_for_test: set[tuple[object, ...]] = set()
    splits: dict[str, list[Item]] = {"test": [], "train": []}
    for split, count in (("test", test), ("train", train)):
        for index in range(count):
            kind = kinds[index % len(kinds)]
            while True:
                report, summary, keys = draw_report(kind, names, draw)
                if not (_fits(report, REPORT_WORDS) and _fits(summary, SUMMARY_WORDS)) or keys in seen:
                    continue
                parts = {(kind.name, place, key) for place, key in enumerate(keys)}
                if split == "test" or kept_for_test.isdisjoint(parts):
                    break
            seen.add(keys)
            if split == "test":
                kept_for_test |= parts
            splits[split].append(Item(f"summary-{split}-{index:04}", report, summary, fields={"kind": kind.name}))
    return splits["train"], splits["test"]


@cache
def load_kinds() -> tuple[tuple[ReportKind, ...], dict[str, list[str]]]:
    """Read the table: the kinds of report, and the parts that names are made of."""
    from fusionlab.tasks.files import find_data_file  # which imports this module

    table = json.loads(find_data_file("tasks", "reports.json").read_text(encoding="utf-8"))
    names = {part: words.split() for part, words in table["names"].items()}
    return tuple(ReportKind(**kind) for kind in table["kinds"]), names


def draw_report(
    kind: ReportKind, names: Mapping[str, Sequence[str]], draw: random.Random
) -> tuple[str, str, tuple[tuple[str, ...], tuple[str, ...]]]:
    """Draw one report of a kind: its text, its summary, and the summary's (names, numbers)."""
    values: dict[str, Sequence[str]] = draw_names(names, draw)
    values |= {name: _pick(draw, choices) for name, choices in kind.slots.items()}
    values |= {name: (f"{number:,}",) for name, number in draw_numbers(kind, draw).items()}
    structure = _pick(draw, kind.structures)
    report, summary = Writer(values), Writer(values)
    text = " ".join([report.write(sentence) for sentence in arrange_sentences(kind, structure["order"], draw)])
    answer = summary.write(_pick(draw, structure["summaries"]))
    named = tuple(sorted(values[name][0] for name in NAMED_SLOTS & summary.used.keys()))
    numbers = tuple(sorted(values[name][0] for name in kind.numbers if name in summary.used))
    return text, answer, (named, numbers)


def draw_names(names: Mapping[str, Sequence[str]], draw: random.Random) -> dict[str, Sequence[str]]:
    """Draw the names that every kind may use; people get their surname as second form."""
    values: dict[str, Sequence[str]] = {}
    first, last = _pick_some(draw, names["first"], 3), _pick_some(draw, names["last"], 3)
    for place, slot in enumerate(("person", "person2", "other")):
        values[slot] = (f"{first[place]} {last[place]}", last[place])
    start, end = _pick_some(draw, names["town_start"], 2), _pick_some(draw, names["town_end"], 2)
    for place, slot in enumerate(("town", "town2")):
        values[slot] = (start[place] + end[place],)
    values["brand"] = (_pick(draw, names["brand_start"]) + _pick(draw, names["brand_end"]),)
    values["month"], values["month2"] = ((month,) for month in _pick_some(draw, names["month"], 2))
    return values | {slot: (_pick(draw, names[slot]),) for slot in ("river", "street", "day", "part")}


def draw_numbers(kind: ReportKind, draw: random.Random) -> dict[str, int]:
    """Draw the kind's numbers in the order of the table."""
    numbers: dict[str, int] = {}
    for name, (low, high, *rest) in kind.numbers.items():
        stride = rest[0] if rest else 1
        base = numbers[rest[1]] if len(rest) > 1 else 0
        numbers[name] = base + _pick(draw, range(low, high + 1, stride))
    return numbers


def arrange_sentences(kind: ReportKind, order: Sequence[str], draw: random.Random) -> list[str]:
    """Draw a wording for each fact and put scene, background and quotes around them.

    A quarter of the reports that tell "what" first have no scene. Background and quotes stand in any place
    after "what".
    """
    scenes = 0 if order[0] == "what" and draw.random() < 0.25 else 1 + int(draw.random() < 0.4)
    most = MOST_SENTENCES - len(order) - scenes
    extra = _pick_some(draw, (*kind.background, *kind.after), most - int(draw.random() * 3))
    groups = [[_pick(draw, kind.facts[fact])] for fact in order]
    first = order.index("what")
    for sentence in extra:
        groups[first + int(draw.random() * (len(groups) - first))].append(sentence)
    return [*_pick_some(draw, kind.scene, scenes), *(sentence for group in groups for sentence in group)]


def _fits(text: str, bounds: tuple[int, int]) -> bool:
    return bounds[0] <= len(text.split()) <= bounds[1]


def _pick(draw: random.Random, choices: Sequence[T]) -> T:
    return choices[int(draw.random() * len(choices))]


def _pick_some(draw: random.Random, choices: Sequence[T], count: int) -> list[T]:
    rest = list(choices)
    return [rest.pop(int(draw.random() * len(rest))) for _ in range(max(0, count))]

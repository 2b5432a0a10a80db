"""Word problems with worked answers, drawn from a table of families.

A `Family` is declarative: sentences with slots, a range per number, and the steps as (left, sign, right)
over number names and "s1", "s2" ... for earlier results. To add a kind of problem, add a row to `FAMILIES`;
nothing else changes. A problem is kept only if its results lie between `SMALLEST_RESULT` and
`LARGEST_RESULT`: positive and at most four digits long, which a model of six layers can learn.

Only `Random.random()` is drawn from, because Python promises to keep its sequence across versions; so a seed
gives the same problems everywhere.
"""

from __future__ import annotations

import operator
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from fusionlab.tasks.task import Item

T = TypeVar("T")

SMALLEST_RESULT, LARGEST_RESULT = 10, 9999
SIGNS: dict[str, Callable[[int, int], int]] = {"+": operator.add, "-": operator.sub, "*": operator.mul}

_NAME_LIST = (
    "Ada Amir Anna Ben Carla Chen Clara Dan Diego Elif Emma Farid Grace Hana Ivan Jonas Julia Kofi Lara Leo "
    "Lina Lucas Maria Maya Mei Milan Nadia Nina Noah Olga Omar Paula Priya Rosa Sam Sara Tariq Tom Vera Yuki"
)
NAMES = tuple(_NAME_LIST.split())


@dataclass(frozen=True)
class Family:
    """One kind of problem: wordings with slots, the range of each number (inclusive), the steps, the things.

    A range may carry a stride: (20, 90, 10) draws tens. Slots {name}, {other} and {thing} are filled from
    `NAMES` and `things`. The result of the last step is the answer.
    """

    name: str
    wordings: tuple[str, ...]
    numbers: dict[str, tuple[int, ...]]
    steps: tuple[tuple[str, str, str], ...]
    things: tuple[str, ...] = ("",)


FAMILIES: tuple[Family, ...] = (
    Family(
        "boxes",
        (
            "{name} fills {a} boxes with {b} {thing} each. Then {c} {thing} are sold and {d} new ones "
            "arrive. "
            "How many {thing} are there now?",
            "A shop gets {a} boxes of {b} {thing}. It sells {c} {thing} and later buys {d} more. "
            "How many {thing} does the shop have?",
        ),
        {"a": (12, 99), "b": (3, 9), "c": (15, 250), "d": (21, 299)},
        (("a", "*", "b"), ("s1", "-", "c"), ("s2", "+", "d")),
        ("apples", "candles", "cups", "pens", "plates", "toys", "books", "eggs"),
    ),
    Family(
        "wages",
        (
            "{name} has {a} dollars and earns {b} dollars a day for {c} days. Then {name} spends {d} "
            "dollars. "
            "How many dollars are left?",
            "{name} works {c} days for {b} dollars a day, adds {a} dollars of savings and pays {d} dollars "
            "of rent. "
            "How many dollars does {name} keep?",
        ),
        {"b": (12, 99), "c": (3, 9), "a": (25, 450), "d": (35, 480)},
        (("b", "*", "c"), ("s1", "+", "a"), ("s2", "-", "d")),
    ),
    Family(
        "tickets",
        (
            "A {thing} sells {a} adult tickets at {b} dollars and {c} child tickets at {d} dollars. "
            "How many dollars does it take in?",
            "{name} sells {a} big bags at {b} dollars each and {c} small bags at {d} dollars each at the "
            "{thing}. "
            "How many dollars is that?",
        ),
        {"a": (12, 99), "b": (5, 9), "c": (12, 99), "d": (2, 4)},
        (("a", "*", "b"), ("c", "*", "d"), ("s1", "+", "s2")),
        ("museum", "zoo", "theatre", "park", "fair", "cinema"),
    ),
    Family(
        "journey",
        (
            "{name} drives {a} km on Monday and {b} km more than that on Tuesday. The whole trip is {c} km. "
            "How many km are left?",
            "On a tour of {c} km, {name} rides {a} km the first week and {b} km more than that the second "
            "week. "
            "How many km remain?",
        ),
        {"a": (45, 290), "b": (15, 140), "c": (320, 980)},
        (("a", "+", "b"), ("a", "+", "s1"), ("c", "-", "s2")),
    ),
    Family(
        "library",
        (
            "A library has {a} {thing} and buys {b} more. It lends out {c} of them and gets {d} back. "
            "How many {thing} are in the library?",
            "{name} owns {a} {thing}, is given {b}, loses {c} and finds {d}. How many {thing} does {name} have?",
        ),
        {"a": (120, 890), "b": (25, 240), "c": (45, 330), "d": (18, 190)},
        (("a", "+", "b"), ("s1", "-", "c"), ("s2", "+", "d")),
        ("maps", "films", "games", "comics", "records", "stamps"),
    ),
    Family(
        "seats",
        (
            "A hall has {a} rows of {b} seats and a balcony with {c} seats. {d} seats are taken. How many seats are free?",
            "{name} plants {a} rows of {b} {thing} and {c} more along the wall. Frost kills {d} of them. "
            "How many {thing} are left?",
        ),
        {"a": (4, 9), "b": (20, 90, 10), "c": (24, 180), "d": (36, 390)},
        (("a", "*", "b"), ("s1", "+", "c"), ("s2", "-", "d")),
        ("roses", "tulips", "herbs", "trees", "onions"),
    ),
    Family(
        "collectors",
        (
            "{name} has {a} {thing}. {other} has {b} times as many, but gives away {c}. "
            "How many {thing} do {name} and {other} have together?",
            "{other} made {b} times as many {thing} as {name}, who made {a}. {other} broke {c} of them. "
            "How many {thing} do the two have in all?",
        ),
        {"a": (15, 99), "b": (2, 6), "c": (12, 190)},
        (("a", "*", "b"), ("s1", "-", "c"), ("s2", "+", "a")),
        ("coins", "shells", "cards", "badges", "marbles", "stickers", "kites", "bowls"),
    ),
    Family(
        "passengers",
        (
            "A {thing} carries {a} people. At the first stop {b} get off and {c} get on, at the second {d} "
            "get off. "
            "How many people are on the {thing}?",
            "A {thing} leaves with {a} people on board. {b} leave, {c} come in and then {d} leave. "
            "How many people stay on the {thing}?",
        ),
        {"a": (180, 890), "b": (25, 160), "c": (17, 190), "d": (28, 290)},
        (("a", "-", "b"), ("s1", "+", "c"), ("s2", "-", "d")),
        ("train", "ferry", "ship", "tram"),
    ),
)


def generate_problems(*, train: int, test: int, seed: int) -> tuple[list[Item], list[Item]]:
    """Return (train, test) problems, in turn from each family.

    No two of all problems hold the same numbers, in whatever order, and no train problem agrees with a test
    problem of its family in all numbers but one. The test split is drawn first, so it does not change when
    more training items are asked for.
    """
    draw = random.Random(seed)
    seen: set[tuple[int, ...]] = set()
    near: set[tuple[object, ...]] = set()
    splits: dict[str, list[Item]] = {"test": [], "train": []}
    for split, count in (("test", test), ("train", train)):
        for index in range(count):
            item = None
            while item is None or _is_taken(item, seen, near if split == "train" else set()):
                item = draw_problem(FAMILIES[index % len(FAMILIES)], draw, item_id=f"math-{split}-{index:04}")
            seen.add(tuple(sorted(item.fields["numbers"])))
            splits[split].append(item)
            if split == "test":
                near.update(_all_but_one(item))
    return splits["train"], splits["test"]


def _is_taken(item: Item, seen: set[tuple[int, ...]], near: set[tuple[object, ...]]) -> bool:
    return tuple(sorted(item.fields["numbers"])) in seen or not near.isdisjoint(_all_but_one(item))


def _all_but_one(item: Item) -> set[tuple[object, ...]]:
    family, numbers = item.fields["family"], item.fields["numbers"]
    return {(family, left_out, *numbers[:left_out], *numbers[left_out + 1 :]) for left_out in range(len(numbers))}


def draw_problem(family: Family, draw: random.Random, *, item_id: str) -> Item | None:
    """Draw one problem of a family; None if one of its results is out of bounds."""
    numbers = {name: _pick(draw, range(low, high + 1, *step)) for name, (low, high, *step) in family.numbers.items()}
    name, other = _pick_two(draw, NAMES)
    words = {"name": name, "other": other, "thing": _pick(draw, family.things)}
    wording = _pick(draw, family.wordings)
    worked, results = work_steps(family.steps, numbers)
    if min(results) < SMALLEST_RESULT or max(results) > LARGEST_RESULT:
        return None
    return Item(
        id=item_id,
        question=wording.format(**words, **numbers),
        answer=str(results[-1]),
        fields={"family": family.name, "numbers": tuple(numbers.values()), "worked": worked},
    )


def work_steps(steps: Sequence[tuple[str, str, str]], numbers: dict[str, int]) -> tuple[str, list[int]]:
    """Work through the steps: the text "12 * 24 = 288. ... #### 356" and the result of each step."""
    values, results, sentences = dict(numbers), [], []
    for index, (left, sign, right) in enumerate(steps, start=1):
        result = SIGNS[sign](values[left], values[right])
        sentences.append(f"{values[left]} {sign} {values[right]} = {result}.")
        values[f"s{index}"] = result
        results.append(result)
    return " ".join([*sentences, f"#### {results[-1]}"]), results


def _pick(draw: random.Random, choices: Sequence[T]) -> T:
    return choices[int(draw.random() * len(choices))]


def _pick_two(draw: random.Random, choices: Sequence[T]) -> tuple[T, T]:
    first = int(draw.random() * len(choices))
    second = (first + 1 + int(draw.random() * (len(choices) - 1))) % len(choices)
    return choices[first], choices[second]

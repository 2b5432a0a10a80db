"""Word problems with worked answers, drawn from the table in `problem_families`.

A problem is kept only if its divisions come out whole and its results lie between `SMALLEST_RESULT` and
`LARGEST_RESULT`: positive and at most four digits long, which a model of six layers can learn.

Only `Random.random()` is drawn from, because Python promises to keep its sequence across versions; so a seed
gives the same problems everywhere.
"""

from __future__ import annotations

import operator
import random
from collections.abc import Callable, Sequence
from typing import TypeVar

from fusionlab.tasks.problem_families import FAMILIES, NAMES, Family
from fusionlab.tasks.task import Item

T = TypeVar("T")

SMALLEST_RESULT, LARGEST_RESULT = 10, 9999


def divide(left: int, right: int) -> int:
    """Divide, or return 0, which is out of bounds, where the division does not come out whole."""
    return left // right if left % right == 0 else 0


SIGNS: dict[str, Callable[[int, int], int]] = {"+": operator.add, "-": operator.sub, "*": operator.mul, "/": divide}


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
    """Draw one problem of a family; None if one of its results is out of bounds or not whole."""
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

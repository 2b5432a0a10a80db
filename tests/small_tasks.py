"""Tasks for tests: bundled ones loaded once per file, and small ones over given items."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

from fusionlab.tasks import Item, Task, load_task
from fusionlab.tasks.specs import TRIVIA


@cache
def task_named(name: str) -> Task:
    """A bundled task."""
    return load_task(name)


def all_items(name: str) -> list[Item]:
    """Train and test items of a bundled task."""
    return task_named(name).train + task_named(name).test


def small_task(train: list[Item], test: list[Item], **spec: Any) -> Task:
    """A task over given items, like trivia but for the fields of its spec that are given."""
    return Task(replace(TRIVIA, name="small", **spec), train, test)


def choice_item(item_id: str, question: str, *choices: str, right: int = 0) -> Item:
    """A multiple-choice item."""
    return Item(item_id, question, choices[right], fields={"choices": list(choices)})

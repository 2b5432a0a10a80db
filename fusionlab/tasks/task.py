"""One task: items in two splits, and how they become prompts, answers and scores.

A `TaskSpec` is the declarative part (phrasings, extractor, metric, limits); a `Task` adds the items. What a
metric or an extractor does is in `answers`, where the items come from in `sources`; neither knows of models.
"""

from __future__ import annotations

import hashlib
import random
from dataclasses import dataclass, field
from typing import Any

from fusionlab.errors import TaskError, UnknownNameError
from fusionlab.tasks.answers import EXTRACTORS, METRICS


@dataclass(frozen=True)
class Item:
    """One question with its gold answer; `fields` holds what only this task has (relation, worked steps)."""

    id: str
    question: str
    answer: str
    aliases: tuple[str, ...] = ()
    fields: dict[str, Any] = field(default_factory=dict, hash=False)


@dataclass(frozen=True)
class Phrasing:
    """A way to ask: `instruction` once at the top, then per question a `block` up to its answer."""

    block: str
    instruction: str = ""

    def __post_init__(self) -> None:
        if self.block.count("{question}") != 1:
            raise TaskError(
                f"phrasing block {self.block!r} does not hold {{question}} exactly once",
                remedy="write a block such as 'Question: {question}\\nAnswer:'",
            )


QUESTION_ANSWER = Phrasing("Question: {question}\nAnswer:")


@dataclass(frozen=True)
class TaskSpec:
    """What a task is, without its items.

    `target_field` names the item field that the model is to write after the prompt (a worked answer); None
    means the answer itself. Generation ends at the first of the `stop` strings or after `max_new_tokens`.
    """

    name: str
    description: str
    extractor: str
    metric: str
    phrasings: tuple[Phrasing, ...] = (QUESTION_ANSWER,)
    stop: tuple[str, ...] = ("\n",)
    max_new_tokens: int = 32
    target_field: str | None = None

    def __post_init__(self) -> None:
        for kind, name, known in (
            ("extractor", self.extractor, EXTRACTORS),
            ("metric", self.metric, METRICS),
        ):
            if name not in known:
                raise UnknownNameError(
                    f"task {self.name!r} names an unknown {kind}: {name!r}",
                    remedy=f"use one of {', '.join(known)}",
                )
        if not self.phrasings:
            raise TaskError(f"task {self.name!r} has no phrasing", remedy="give at least one")


@dataclass(frozen=True)
class Task:
    """A spec with its items: builds prompts and targets, extracts answers, scores them.

    >>> from fusionlab.tasks import load_task
    >>> task = load_task("trivia")
    >>> item = task.test[0]
    >>> task.score(f" {item.answer}.\\n", item)
    1.0
    """

    spec: TaskSpec
    train: list[Item] = field(repr=False)
    test: list[Item] = field(repr=False)

    def __post_init__(self) -> None:
        if not self.test:
            raise TaskError(f"task {self.name!r} has an empty test split", remedy="give it at least one test item")

    @property
    def name(self) -> str:
        """Name of the task, or of the file it came from."""
        return self.spec.name

    @property
    def stop(self) -> tuple[str, ...]:
        """Strings that end an answer; the model's end token does so as well."""
        return self.spec.stop

    @property
    def max_new_tokens(self) -> int:
        """Most tokens to generate for one answer."""
        return self.spec.max_new_tokens

    @property
    def phrasings(self) -> tuple[Phrasing, ...]:
        """The ways to ask; number 0 is the one that experts are trained on."""
        return self.spec.phrasings

    def prompt(self, item: Item, *, shots: int = 0, seed: int = 0, phrasing: int = 0) -> str:
        """Return the text before the answer: `shots` solved train items, then the item's question.

        The shots depend on `seed` and the item's id alone and never include the item. Raises TaskError for a
        phrasing that does not exist, or for more shots than the train split can give.
        """
        form = self._phrasing(phrasing)
        blocks = [
            form.block.replace("{question}", shot.question) + self.target(shot)
            for shot in self.choose_shots(item, shots, seed=seed)
        ]
        blocks.append(form.block.replace("{question}", item.question))
        return "\n\n".join([form.instruction, *blocks] if form.instruction else blocks)

    def choose_shots(self, item: Item, shots: int, *, seed: int = 0) -> list[Item]:
        """Draw `shots` different train items, none of them the item or a copy of its question."""
        if shots < 0:
            raise TaskError(f"task {self.name!r}: shots is negative: {shots}", remedy="pass shots >= 0")
        if shots == 0:
            return []
        others = [other for other in self.train if other.id != item.id and other.question != item.question]
        if len(others) < shots:
            raise TaskError(
                f"task {self.name!r}: {shots} shots asked for, {len(others)} train items to draw them from",
                remedy="pass fewer shots, or load the task with a train split",
            )
        # Only random() is promised to stay the same across Python versions: rank by it instead of sample().
        draw = random.Random(hashlib.sha256(f"{seed}:{self.name}:{item.id}".encode()).digest())
        ranked = sorted((draw.random(), index) for index in range(len(others)))
        return [others[index] for _, index in ranked[:shots]]

    def target(self, item: Item) -> str:
        """Return the text that is to follow the prompt, with its leading space and without an end token."""
        name = self.spec.target_field
        return f" {item.answer if name is None else item.fields[name]}"

    def extract(self, text: str, item: Item) -> str | None:
        """Return the answer to `item` in a generated text, or None; what follows a stop string is ignored."""
        text = text.lstrip()
        cuts = [at for stop in self.stop if (at := text.find(stop)) >= 0]
        return EXTRACTORS[self.spec.extractor](text[: min(cuts, default=len(text))])

    def score(self, text: str, item: Item) -> float:
        """Score a generated text in 0..1; a text without an answer scores 0.0."""
        answer = self.extract(text, item)
        return 0.0 if answer is None else METRICS[self.spec.metric](answer, item.answer, item.aliases)

    def _phrasing(self, index: int) -> Phrasing:
        if not 0 <= index < len(self.phrasings):
            raise TaskError(f"task {self.name!r} has no phrasing {index}", remedy=f"pass 0 to {len(self.phrasings) - 1}")
        return self.phrasings[index]

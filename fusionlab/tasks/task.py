"""One task: items in two splits, and how they become prompts, answers and scores.

A `TaskSpec` is the declarative part (phrasings, extractor, metric, limits); a `Task` adds the items. What an
extractor does is in `answers`, what a metric does in `metrics`, where the items come from in `bundled`,
`benchmarks` and `files`; none of them knows of models.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, TypeVar, get_args

from fusionlab.errors import TaskError, UnknownNameError
from fusionlab.tasks.answers import EXTRACTORS, LETTERS
from fusionlab.tasks.metrics import METRICS

T = TypeVar("T")

Answering = Literal["writing", "likelihood"]
ANSWERING: tuple[Answering, ...] = get_args(Answering)
WRITING, LIKELIHOOD = ANSWERING


@dataclass(frozen=True)
class Item:
    """One question with its gold answer; `fields` holds what only some tasks have (choices, worked steps)."""

    id: str
    question: str
    answer: str
    aliases: tuple[str, ...] = ()
    fields: dict[str, Any] = field(default_factory=dict, hash=False)

    @property
    def choices(self) -> tuple[str, ...]:
        """The options of a multiple-choice item, the right one being `answer`; empty for any other item."""
        return tuple(self.fields.get("choices") or ())


@dataclass(frozen=True)
class Phrasing:
    """A way to ask: `instruction` once at the top, then per question a `block` up to its answer.

    An item with choices has them listed after its question, under a heading. With `letters` they are listed as
    "A. text" and solved examples answer by letter; without, as "- text" and answered by their text.

    >>> item = Item("sea", "Which sea is the largest?", "Philippine Sea", fields={"choices": ["Red Sea", "Philippine Sea"]})
    >>> print(Phrasing("Q: {question}\\nA:", letters=True).ask(item))
    Q: Which sea is the largest?
    Options:
    A. Red Sea
    B. Philippine Sea
    A:
    """

    block: str
    instruction: str = ""
    options_heading: str = "Options:"
    letters: bool = False

    def __post_init__(self) -> None:
        if self.block.count("{question}") != 1:
            raise TaskError(
                f"phrasing block {self.block!r} does not hold {{question}} exactly once",
                remedy="write a block such as 'Question: {question}\\nAnswer:'",
            )

    def ask(self, item: Item) -> str:
        """Return the block with the item's question and options in it."""
        marks = [f"{letter}. " for letter in LETTERS] if self.letters else ["- "] * len(LETTERS)
        options = [mark + choice for mark, choice in zip(marks, item.choices, strict=False)]
        question = "\n".join([item.question, self.options_heading, *options]) if options else item.question
        return self.block.replace("{question}", question)


QUESTION_ANSWER = Phrasing("Question: {question}\nAnswer:")


@dataclass(frozen=True)
class TaskSpec:
    """What a task is, without its items.

    `target_field` names the item field that the model is to write after the prompt (a worked answer); None
    means the answer itself. `answering` says how an answer comes about: "writing" generates it, up to the first of
    the `stop` strings or `max_new_tokens`; "likelihood" takes the option whose target is the most probable text.
    `max_shots` is the most solved examples that a prompt of this task may hold; with `shots_field` they come
    from train items that agree with the item in this field (a subject).
    """

    name: str
    description: str
    extractor: str
    metric: str
    phrasings: tuple[Phrasing, ...] = (QUESTION_ANSWER,)
    stop: tuple[str, ...] = ("\n",)
    max_new_tokens: int = 32
    target_field: str | None = None
    max_shots: int = 8
    shots_field: str | None = None
    answering: Answering = WRITING

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
        if self.answering not in ANSWERING:
            raise UnknownNameError(
                f"task {self.name!r} names an unknown way of answering: {self.answering!r}",
                remedy=f"use one of {', '.join(ANSWERING)}",
            )
        if self.answering == LIKELIHOOD and self.target_field is not None:
            raise TaskError(
                f"task {self.name!r} is answered by likelihood, and has target_field {self.target_field!r}",
                remedy="leave it out: what is compared are the options",
            )
        if self.answering == LIKELIHOOD and self.extractor != "choice":
            raise TaskError(
                f"task {self.name!r} is answered by likelihood, and extractor {self.extractor} does not choose an option",
                remedy="use extractor choice, or answering writing",
            )
        if not self.phrasings:
            raise TaskError(f"task {self.name!r} has no phrasing", remedy="give at least one")
        if self.metric == "accuracy" and self.extractor != "choice":
            raise TaskError(
                f"task {self.name!r} has metric accuracy with extractor {self.extractor}, which does not choose an option",
                remedy="use extractor choice, or metric exact_match",
            )


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
        for item in (*self.train, *self.test):
            self._check_item(item)

    def _check_item(self, item: Item) -> None:
        target, wanted = self.spec.target_field, "choices" if self.spec.extractor == "choice" else None
        for name in (target, wanted):
            if name is not None and not item.fields.get(name):
                raise TaskError(
                    f"task {self.name!r}: item {item.id!r} has no field {name!r}",
                    remedy="add it, or change the task's spec",
                )
        if item.choices and item.answer not in item.choices:
            raise TaskError(
                f"task {self.name!r}: item {item.id!r} has the answer {item.answer!r}, which is not one of its choices",
                remedy="write the answer as it stands in choices",
            )
        if len(item.choices) > len(LETTERS):
            raise TaskError(
                f"task {self.name!r}: item {item.id!r} has {len(item.choices)} choices",
                remedy=f"give at most {len(LETTERS)}",
            )

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
        """The ways to ask; number 0 is the one that experts are trained on and that tables measure."""
        return self.spec.phrasings

    def prompt(self, item: Item, *, shots: int = 0, seed: int = 0, phrasing: int = 0, order_seed: int | None = None) -> str:
        """Return the text before the answer: `shots` solved train items, then the item's question.

        Which items are shown depends on `seed` and the item's id alone; they never include the item. They stand
        in the order in which they were drawn, or with an `order_seed` in another one. Raises TaskError for a
        phrasing that does not exist, or for more shots than the spec allows or the train split can give.
        """
        form = self._phrasing(phrasing)
        blocks = [
            form.ask(shot) + self.target(shot, phrasing=phrasing)
            for shot in self.choose_shots(item, shots, seed=seed, order_seed=order_seed)
        ]
        blocks.append(form.ask(item))
        return "\n\n".join([form.instruction, *blocks] if form.instruction else blocks)

    def choose_shots(self, item: Item, shots: int, *, seed: int = 0, order_seed: int | None = None) -> list[Item]:
        """Draw `shots` different train items, none of them the item or a copy of its question.

        The first n of them are those that n shots would give; an `order_seed` reorders what was drawn.
        """
        if not 0 <= shots <= self.spec.max_shots:
            raise TaskError(
                f"task {self.name!r}: " + (f"shots is negative: {shots}" if shots < 0 else f"{shots} shots asked for"),
                remedy=f"pass 0 to {self.spec.max_shots}",
            )
        if shots == 0:
            return []
        group = self.spec.shots_field
        pool = self.train if group is None else [o for o in self.train if o.fields.get(group) == item.fields.get(group)]
        chosen = []
        for other in draw_without_repeats(pool, f"{seed}:{self.name}:{item.id}"):
            if other.id != item.id and other.question != item.question:
                chosen.append(other)
            if len(chosen) == shots:
                break
        else:
            raise TaskError(
                f"task {self.name!r}: {shots} shots asked for, {len(chosen)} train items to draw them from",
                remedy="pass fewer shots, or load the task with a train split",
            )
        if order_seed is not None:
            chosen = list(draw_without_repeats(chosen, f"order:{order_seed}:{self.name}:{item.id}"))
        return chosen

    @property
    def by_likelihood(self) -> bool:
        """Whether the answer is the most probable option, and nothing is written."""
        return self.spec.answering == LIKELIHOOD

    def options(self, item: Item, *, phrasing: int = 0) -> list[str]:
        """Return the target of every choice: what a task answered by likelihood compares."""
        return [self.target(replace(item, answer=choice), phrasing=phrasing) for choice in item.choices]

    def target(self, item: Item, *, phrasing: int = 0) -> str:
        """Return the text that is to follow the prompt, with its leading space and without an end token."""
        if item.choices and self._phrasing(phrasing).letters:
            return f" {LETTERS[item.choices.index(item.answer)]}"
        name = self.spec.target_field
        return f" {item.answer if name is None else item.fields[name]}"

    def extract(self, text: str, item: Item, *, phrasing: int = 0) -> str | None:
        """Return the answer that a generated text gives to an item, or None if it gives none.

        What follows a stop string is ignored. `phrasing` is the one that the prompt had: a letter is an answer
        only where letters were shown. Where the answer is chosen by likelihood, an option is its own answer.
        """
        if self.by_likelihood and text in item.choices:
            return text
        text = text.lstrip()
        cuts = [at for stop in self.stop if (at := text.find(stop)) >= 0]
        letters = self._phrasing(phrasing).letters
        return EXTRACTORS[self.spec.extractor](text[: min(cuts, default=len(text))], item.choices, letters)

    def score(self, text: str, item: Item, *, phrasing: int = 0) -> float:
        """Score a generated text in 0..1; a text without an answer scores 0.0."""
        answer = self.extract(text, item, phrasing=phrasing)
        return 0.0 if answer is None else METRICS[self.spec.metric](answer, item.answer, item.aliases)

    def _phrasing(self, index: int) -> Phrasing:
        if not 0 <= index < len(self.phrasings):
            raise TaskError(f"task {self.name!r} has no phrasing {index}", remedy=f"pass 0 to {len(self.phrasings) - 1}")
        return self.phrasings[index]


def draw_without_repeats(items: Sequence[T], key: str) -> Iterator[T]:
    """Yield the items in an order that depends on the key alone, at a cost per item taken, not per item there is."""
    # Only random() is promised to stay the same across Python versions; the swaps of a shuffle are kept in a dict.
    draw = random.Random(hashlib.sha256(key.encode()).digest())
    swapped: dict[int, int] = {}
    for place in range(len(items)):
        other = place + int(draw.random() * (len(items) - place))
        yield items[swapped.get(other, other)]
        swapped[other] = swapped.get(place, place)

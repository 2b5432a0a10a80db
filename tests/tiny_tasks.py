"""Tasks over the words of the tiny team's tokenizer, and rows of an evaluation that was never run."""

from __future__ import annotations

import string
from typing import Any

from fusionlab.cells import AnswerRow
from fusionlab.tasks import Item, Phrasing, Task, TaskSpec
from fusionlab.tasks.task import LIKELIHOOD, Answering


def make_task(name: str, *, test: int = 7, train: int = 4, answer: str = "w1") -> Task:
    """A task whose item i asks `i % 5 + 1` words; nearly no answer is right, which is all the same here."""

    def items(split: str, count: int) -> list[Item]:
        return [
            Item(f"{split}{i}", " ".join(f"w{(7 * i + k) % 61}" for k in range(i % 5 + 1)), answer) for i in range(count)
        ]

    spec = TaskSpec(name, "words", "first_line", "exact_match", max_new_tokens=6,
                    phrasings=(Phrasing("{question}"), Phrasing("w9 {question}")))  # fmt: skip
    return Task(spec, items("train", train), items("test", test))


def make_choice_task(name: str, *, answering: Answering = LIKELIHOOD) -> Task:
    """Seven items with three options of one to three words; phrasing 1 asks for letters, which the tokenizer knows not."""

    def choices(i: int) -> list[str]:
        return [" ".join(f"w{(11 * i + 5 * k + j) % 61}" for j in range(1 + (i + k) % 3)) for k in range(3)]

    spec = TaskSpec(name, "options", "choice", "accuracy", max_new_tokens=4, answering=answering,
                    phrasings=(Phrasing("{question}"), Phrasing("w9 {question}", letters=True)))  # fmt: skip
    items = [Item(f"test{i}", f"w{7 * i} w{i}", choices(i)[i % 3], fields={"choices": choices(i)}) for i in range(7)]
    return Task(spec, [], items)


def copying(*, phrasings: tuple[Phrasing, ...] = (Phrasing("{question}:"),)) -> Task:
    """A task for tests: repeat a letter."""
    items = [Item(f"{index}", letter, letter) for index, letter in enumerate(string.ascii_lowercase[:24])]
    spec = TaskSpec("copying", "repeat a letter", extractor="first_line", metric="exact_match", phrasings=phrasings)
    return Task(spec, items, items[:4])


def make_row(**fields: Any) -> AnswerRow:
    """One stored answer: plain values, and `fields`."""
    plain: dict[str, Any] = {
        "task": "math", "method": "large", "shots": 0, "phrasing": 0, "seed": 0, "experts": "", "item": "i0",
        "prompt": "Q", "output": " A", "extracted": "A", "gold": "A", "score": 1.0, "metric": "exact_match", "seen": True,
        "seconds": 0.02, "tokens": 1, "weights_sha256": "", "task_sha256": "", "device": "cpu", "fusionlab": "",
        "torch": "", "transformers": "",
    }  # fmt: skip
    return AnswerRow(**plain | fields)

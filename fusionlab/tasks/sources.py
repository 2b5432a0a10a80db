"""Where items come from: the bundled tasks, and benchmark files on disk.

`TASKS` is the table of bundled tasks; `load_task` also takes the path of a JSONL or Parquet file, or of a
folder with train.* and test.*. This module knows the layout of files and nothing of prompts or scores.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

from fusionlab.errors import MissingFileError, TaskError, UnknownNameError
from fusionlab.tasks.answers import extract_after_hashes
from fusionlab.tasks.task import QUESTION_ANSWER, Item, Phrasing, Task, TaskSpec
from fusionlab.tasks.word_problems import generate_problems

MATH = TaskSpec(
    name="math",
    description="word problems of three steps with two- and three-digit numbers, steps written out",
    extractor="after_hashes",
    metric="exact_match",
    phrasings=(
        QUESTION_ANSWER,
        Phrasing("Q: {question}\nA:"),
        Phrasing("Problem: {question}\nSolution:"),
        Phrasing(
            "Question: {question}\nAnswer:",
            instruction="Solve the problem step by step. Write the final number after ####.",
        ),
    ),
    max_new_tokens=80,
    target_field="worked",
)
TRIVIA = TaskSpec(
    name="trivia",
    description="closed-book facts: countries, geography, science, history, arts, languages, elements, units",
    extractor="first_line",
    metric="exact_match",
    phrasings=(
        QUESTION_ANSWER,
        Phrasing("Q: {question}\nA:"),
        Phrasing("{question}\nShort answer:"),
        Phrasing("Question: {question}\nAnswer:", instruction="Answer each question with a name and nothing else."),
    ),
    max_new_tokens=24,
)
MATH_SEED, MATH_TRAIN, MATH_TEST = 20240622, 16_000, 300


def load_math() -> Task:
    """Generate the bundled word problems: 16,000 to train on, 300 to test on, the same on every machine."""
    return Task(MATH, *generate_problems(train=MATH_TRAIN, test=MATH_TEST, seed=MATH_SEED))


def load_trivia() -> Task:
    """Read the bundled country facts; no country is in both splits."""
    splits = read_splits(find_data_file("tasks", "trivia.jsonl"))
    return Task(TRIVIA, splits["train"], splits["test"])


TASKS: dict[str, Callable[[], Task]] = {"math": load_math, "trivia": load_trivia}


def load_task(name: str | Path) -> Task:
    """Load a bundled task by name, or a benchmark file or folder by path.

    >>> len(load_task("math").test)
    300

    A file is JSONL or Parquet with `question` and `answer` per row (optional: id, aliases, split). Rows
    without a split are test items. Where every answer holds `####` (GSM8K), it is a worked answer and the
    number after it is compared. A folder holds test.jsonl or test.parquet and, for shots, train.jsonl or
    train.parquet.

    Raises UnknownNameError for a name that is neither, TaskError naming file and line for a malformed file.
    """
    if isinstance(name, str) and name in TASKS:
        return TASKS[name]()
    path = Path(name)
    if path.is_dir():
        return _load_folder(path)
    if path.is_file():
        splits = read_splits(path)
        return _as_task(path.stem, path, splits["train"], splits["test"])
    if path.suffix in _READERS or len(path.parts) > 1:
        raise MissingFileError(f"no such task file: {path}", remedy="check the path")
    raise UnknownNameError(
        f"unknown task: {str(name)!r}",
        remedy=f"use one of {', '.join(TASKS)}, or the path of a JSONL or Parquet file",
    )


def find_data_file(*parts: str) -> Traversable:
    """Return a file that ships with fusionlab; in a checkout that is not installed, look in data/."""
    try:
        root: Traversable = resources.files("fusionlab_data")
    except ModuleNotFoundError:
        root = Path(__file__).parents[2] / "data"
    file = root.joinpath(*parts)
    if not file.is_file():
        raise MissingFileError(f"bundled file is missing: {file}", remedy="install fusionlab again")
    return file


def read_splits(path: Traversable, *, default_split: str = "test") -> dict[str, list[Item]]:
    """Read the items of a file by split; TaskError names file and line of the first that is malformed."""
    reader = _READERS.get(Path(path.name).suffix)
    if reader is None:
        raise TaskError(f"{path}: unknown kind of task file", remedy=f"use one of {', '.join(_READERS)}")
    splits: dict[str, list[Item]] = {"train": [], "test": []}
    seen: dict[str, int] = {}
    for line, row in reader(path):
        where = f"{path}, line {line}"
        split, item = _read_item(row, where=where, default_id=f"{Path(path.name).stem}-{line}", default_split=default_split)
        if item.id in seen:
            raise TaskError(f"{where}: id {item.id!r} was used in line {seen[item.id]}", remedy="make ids unique")
        seen[item.id] = line
        splits[split].append(item)
    if not seen:
        raise TaskError(f"{path}: holds no items", remedy="give one JSON object or row per item")
    return splits


def _read_item(row: Any, *, where: str, default_id: str, default_split: str) -> tuple[str, Item]:
    if not isinstance(row, dict):
        raise TaskError(f"{where}: expected an object, got {type(row).__name__}", remedy="write one JSON object a line")
    fields = dict(row)
    texts = {}
    for name, default in (("question", None), ("answer", None), ("id", default_id), ("split", default_split)):
        value = fields.pop(name, default)
        if not isinstance(value, str) or not value.strip():
            raise TaskError(f"{where}: {name} must be a text that is not empty, got {value!r}", remedy="correct the line")
        texts[name] = value
    aliases = fields.pop("aliases", None) or []
    if not isinstance(aliases, list) or not all(isinstance(alias, str) for alias in aliases):
        raise TaskError(f"{where}: aliases must be a list of texts, got {aliases!r}", remedy="correct the line")
    if texts["split"] not in ("train", "test"):
        raise TaskError(f"{where}: unknown split {texts['split']!r}", remedy="use train or test")
    return texts["split"], Item(texts["id"], texts["question"], texts["answer"], tuple(aliases), fields)


def _read_jsonl(path: Traversable) -> Iterator[tuple[int, Any]]:
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                yield number, json.loads(line.decode("utf-8"))
            except ValueError as error:  # JSONDecodeError and UnicodeDecodeError alike
                raise TaskError(
                    f"{path}, line {number}: not a line of JSON: {error}", remedy="correct or delete the line"
                ) from error


def _read_parquet(path: Traversable) -> Iterator[tuple[int, Any]]:
    import pyarrow
    import pyarrow.parquet

    try:
        with path.open("rb") as file:
            table = pyarrow.parquet.read_table(file)
    except pyarrow.ArrowException as error:
        raise TaskError(f"{path}: not a Parquet file: {error}", remedy="write it again") from error
    yield from enumerate(table.to_pylist(), start=1)


_READERS: dict[str, Callable[[Traversable], Iterator[tuple[int, Any]]]] = {
    ".jsonl": _read_jsonl,
    ".parquet": _read_parquet,
}


def _load_folder(folder: Path) -> Task:
    items: dict[str, list[Item]] = {"train": [], "test": []}
    for split in items:
        path = next((file for suffix in _READERS if (file := folder / f"{split}{suffix}").is_file()), None)
        if path is not None:
            items[split] = read_splits(path, default_split=split)[split]
        elif split == "test":
            raise MissingFileError(f"{folder}: holds no test.jsonl or test.parquet", remedy="name the file itself")
    return _as_task(folder.resolve().name, folder, items["train"], items["test"])


def _as_task(name: str, path: Path, train: list[Item], test: list[Item]) -> Task:
    if not test:
        raise TaskError(f"{path}: the test split is empty", remedy="mark at least one item with split 'test'")
    if all("####" in item.answer for item in test):
        spec = replace(
            MATH,
            name=name,
            description=f"worked answers from {path}",
            stop=("\n\n", "\nQuestion:", "\nQ:", "\nProblem:"),
            max_new_tokens=320,
        )
        return Task(spec, _split_worked(train, path), _split_worked(test, path))
    return Task(replace(TRIVIA, name=name, description=f"short answers from {path}"), train, test)


def _split_worked(items: Iterable[Item], path: Path) -> list[Item]:
    """Separate "steps #### n" into the worked text (without GSM8K's <<a*b=c>> marks) and the number."""
    split = []
    for item in items:
        answer = extract_after_hashes(item.answer)
        if answer is None:
            raise TaskError(f"{path}: item {item.id!r} has no number after ####", remedy="end its answer with '#### n'")
        worked = re.sub(r"\n\s*\n", "\n", re.sub(r"<<.*?>>", "", item.answer)).strip()  # a blank line would end it
        split.append(replace(item, answer=answer, fields={**item.fields, "worked": worked}))
    return split

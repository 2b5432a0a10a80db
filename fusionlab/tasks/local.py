"""A user's own task: a JSONL or Parquet file, or a folder, with or without a file that says how to ask and score.

The rows tell what they are: those of a known benchmark are read as such, worked answers end in `#### n`, items
with choices are multiple choice, and everything else is a short answer. A task.json overrides what this implies.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from fusionlab.errors import MissingFileError, TaskError
from fusionlab.tasks.benchmarks import detect_benchmark, load_benchmark
from fusionlab.tasks.files import find_split_files, read_rows, read_splits, split_worked
from fusionlab.tasks.specs import CHOICE_FILE, SHORT_FILE, WORKED_FILE
from fusionlab.tasks.task import Item, Task, TaskSpec
from fusionlab.tasks.task_file import SPEC_NAME, find_spec_file, read_spec

TEST_NAMES, TRAIN_NAMES = ("test", "validation"), ("train", "dev")


def load_path(path: Path) -> Task:
    """Load the task in a file, in a folder with test.* and perhaps train.*, or in the folder of a task.json."""
    if path.name == SPEC_NAME:
        path = path.parent
    tests = find_split_files(path, TEST_NAMES) if path.is_dir() else [path]
    if not tests:
        raise MissingFileError(f"{path}: holds no test.jsonl or test.parquet", remedy="name the file itself")
    spec_file = find_spec_file(path)
    benchmark = detect_benchmark(next(row for _, row in read_rows(tests[0])))
    if benchmark is not None:
        task = load_benchmark(benchmark, path)
        return task if spec_file is None else replace(task, spec=read_spec(spec_file, task.spec))
    train, test = _read_own(path, tests)
    if not test:
        raise TaskError(f"{path}: the test split is empty", remedy="mark at least one item with split 'test'")
    spec = replace(_imply_spec(test, path), name=path.resolve().name if path.is_dir() else path.stem)
    if spec_file is not None:
        spec = read_spec(spec_file, spec)
    if spec.extractor == "after_hashes" and spec.target_field == "worked":
        train, test = split_worked(train, path), split_worked(test, path)
    return Task(spec, train, test)


def _read_own(path: Path, tests: Sequence[Path]) -> tuple[list[Item], list[Item]]:
    if not path.is_dir():
        splits = read_splits(path)
        return splits["train"], splits["test"]
    train = [
        item for file in find_split_files(path, TRAIN_NAMES) for item in read_splits(file, default_split="train")["train"]
    ]
    return train, [item for file in tests for item in read_splits(file)["test"]]


def _imply_spec(test: Sequence[Item], path: Path) -> TaskSpec:
    if all("####" in item.answer for item in test):
        return replace(WORKED_FILE, description=f"worked answers from {path}")
    if all(item.choices for item in test):
        return replace(CHOICE_FILE, description=f"multiple choice from {path}")
    return replace(SHORT_FILE, description=f"short answers from {path}")

"""The tasks that ship with fusionlab, and `load_task`, which finds any task by name or path."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from fusionlab.errors import MissingFileError, UnknownNameError
from fusionlab.tasks.benchmarks import BENCHMARKS, load_benchmark
from fusionlab.tasks.files import READERS, find_data_file, read_splits
from fusionlab.tasks.local import load_path
from fusionlab.tasks.specs import MATH, SUMMARY, TRIVIA, TRUTH, UNSEEN
from fusionlab.tasks.task import Task, TaskSpec
from fusionlab.tasks.word_problems import generate_problems

MATH_SEED, MATH_TRAIN, MATH_TEST = 20240622, 16_000, 342
SUMMARY_SEED, SUMMARY_TRAIN, SUMMARY_TEST = 20240623, 8_000, 300


def load_math() -> Task:
    """Generate the bundled word problems: 16,000 to train on, 342 to test on, the same on every machine."""
    return Task(MATH, *generate_problems(train=MATH_TRAIN, test=MATH_TEST, seed=MATH_SEED))


def load_summary() -> Task:
    """Generate the bundled reports with their summaries: 8,000 to train on, 300 to test on."""
    from fusionlab.tasks.reports import generate_reports

    return Task(SUMMARY, *generate_reports(train=SUMMARY_TRAIN, test=SUMMARY_TEST, seed=SUMMARY_SEED))


def load_trivia() -> Task:
    """Read the bundled facts; what is asked about in one split is not in the other."""
    return _read_bundled(TRIVIA)


def load_truth() -> Task:
    """Read the bundled misconceptions, multiple choice."""
    return _read_bundled(TRUTH)


def load_unseen() -> Task:
    """Read the bundled multi-subject questions; the five train items are there for shots alone."""
    return _read_bundled(UNSEEN)


TASKS: dict[str, Callable[[], Task]] = {
    "math": load_math,
    "trivia": load_trivia,
    "truth": load_truth,
    "summary": load_summary,
    "unseen": load_unseen,
}


def load_task(name: str | Path, *, path: str | Path | None = None) -> Task:
    """Load a bundled task or a benchmark by name, or items of your own by path.

    >>> len(load_task("math").test)
    342

    `load_task("gsm8k")` fetches a benchmark from the hub, `load_task("gsm8k", path="folder")` reads it from a file
    or folder in its own layout. `load_task("folder")` reads JSONL or Parquet: `question` and `answer` per row
    (optional: id, split, aliases, choices), or the layout of a benchmark. Rows of a single file without a split are
    test items; a folder holds test.jsonl or test.parquet and, for shots, train.jsonl or train.parquet, and may hold
    a task.json that says how to ask and score (see `task_file`).

    Raises UnknownNameError for a name that is neither, MissingFileError for a file that is not there, TaskError
    naming file and line for one that is malformed.
    """
    if path is not None:
        return load_benchmark(str(name), Path(path))
    if isinstance(name, str) and name in TASKS:
        return TASKS[name]()
    if isinstance(name, str) and name in BENCHMARKS:
        return load_benchmark(name)
    place = Path(name)
    if place.exists():
        return load_path(place)
    if place.suffix in READERS or len(place.parts) > 1:
        raise MissingFileError(f"no such task file: {place}", remedy="check the path")
    raise UnknownNameError(
        f"unknown task: {str(name)!r}",
        remedy=f"use one of {', '.join((*TASKS, *BENCHMARKS))}, or the path of a JSONL or Parquet file",
    )


def _read_bundled(spec: TaskSpec) -> Task:
    splits = read_splits(find_data_file("tasks", f"{spec.name}.jsonl"))
    return Task(spec, splits["train"], splits["test"])

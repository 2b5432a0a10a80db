"""Items in files: JSONL and Parquet, in this project's own layout.

A row has `question` and `answer`, and may have `id`, `split`, `aliases` and `choices`; whatever else it has is
kept in the item's fields. A file is read whole and refused at the first row that is malformed.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

from fusionlab.errors import MissingFileError, TaskError
from fusionlab.tasks.answers import LETTERS, extract_after_hashes
from fusionlab.tasks.task import Item


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


def read_rows(path: Traversable) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield (line, row) of a JSONL or Parquet file; TaskError for another kind of file, a bad line, or no rows."""
    reader = READERS.get(Path(path.name).suffix)
    if reader is None:
        raise TaskError(f"{path}: unknown kind of task file", remedy=f"use one of {', '.join(READERS)}")
    empty = True
    for line, row in reader(path):
        if not isinstance(row, dict):
            raise TaskError(
                f"{path}, line {line}: expected an object, got {type(row).__name__}", remedy="write one JSON object a line"
            )
        empty = False
        yield line, row
    if empty:
        raise TaskError(f"{path}: holds no items", remedy="give one JSON object or row per item")


def read_splits(path: Traversable, *, default_split: str = "test") -> dict[str, list[Item]]:
    """Read the items of a file by split; TaskError names file and line of the first that is malformed."""
    splits: dict[str, list[Item]] = {"train": [], "test": []}
    seen: dict[str, int] = {}
    for line, row in read_rows(path):
        where = f"{path}, line {line}"
        split, item = _read_item(row, where=where, default_id=f"{Path(path.name).stem}-{line}", default_split=default_split)
        if item.id in seen:
            raise TaskError(f"{where}: id {item.id!r} was used in line {seen[item.id]}", remedy="make ids unique")
        seen[item.id] = line
        splits[split].append(item)
    return splits


def _read_item(row: dict[str, Any], *, where: str, default_id: str, default_split: str) -> tuple[str, Item]:
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
    if "choices" in fields and fields["choices"] is None:  # a Parquet column that other rows use
        del fields["choices"]
    if "choices" in fields:
        _check_choices(fields["choices"], texts["answer"], where=where)
    if texts["split"] not in ("train", "test"):
        raise TaskError(f"{where}: unknown split {texts['split']!r}", remedy="use train or test")
    return texts["split"], Item(texts["id"], texts["question"], texts["answer"], tuple(aliases), fields)


def _check_choices(choices: Any, answer: str, *, where: str) -> None:
    if not isinstance(choices, list) or not all(isinstance(choice, str) and choice.strip() for choice in choices):
        raise TaskError(f"{where}: choices must be a list of texts, got {choices!r}", remedy="correct the line")
    if not 2 <= len(set(choices)) == len(choices) <= len(LETTERS):
        raise TaskError(
            f"{where}: choices must be 2 to {len(LETTERS)} different texts, got {choices!r}", remedy="correct the line"
        )
    if any("\n" in choice for choice in choices):
        raise TaskError(f"{where}: a choice must be a single line, got {choices!r}", remedy="correct the line")
    if answer not in choices:
        raise TaskError(
            f"{where}: answer {answer!r} is not one of the choices {choices!r}", remedy="write it as in choices"
        )


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
            line = 0
            for batch in pyarrow.parquet.ParquetFile(file).iter_batches():
                for row in batch.to_pylist():
                    line += 1
                    yield line, row
    except pyarrow.ArrowException as error:
        raise TaskError(f"{path}: not a Parquet file: {error}", remedy="write it again") from error


READERS: dict[str, Callable[[Traversable], Iterator[tuple[int, Any]]]] = {
    ".jsonl": _read_jsonl,
    ".parquet": _read_parquet,
}


def find_split_files(folder: Path, names: Sequence[str]) -> list[Path]:
    """Return the files of the first of these splits that a folder holds: test.jsonl, or test-*.parquet in order.

    A file wins over its own parts; a folder that holds neither gives an empty list.
    """
    for name in names:
        for suffix in READERS:
            if (file := folder / f"{name}{suffix}").is_file():
                return [file]
            if parts := sorted(folder.glob(f"{name}-*{suffix}")):
                return parts
    return []


def split_worked(items: Iterable[Item], path: Path) -> list[Item]:
    """Separate "steps #### n" into the worked text (without GSM8K's <<a*b=c>> marks) and the number."""
    split = []
    for item in items:
        answer = extract_after_hashes(item.answer)
        if answer is None:
            raise TaskError(f"{path}: item {item.id!r} has no number after ####", remedy="end its answer with '#### n'")
        worked = re.sub(r"\n\s*\n", "\n", re.sub(r"<<.*?>>", "", item.answer)).strip()  # a blank line would end it
        split.append(replace(item, answer=answer, fields={**item.fields, "worked": worked}))
    return split

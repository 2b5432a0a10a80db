"""The rows of an evaluation on disk: one Parquet file per cell, whole at every moment, scored again without models.

A cell is one task asked in one way and answered by one method. Its file holds a row per item, and in the metadata of
the file what decided the answers (weights, method, limits): rows that something else decided are never mixed in.
This module imports neither torch nor any model.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fusionlab.atomic_file import write_atomically
from fusionlab.errors import CorruptFileError, FusionError, MissingFileError, TaskError
from fusionlab.tasks import Item, Task, load_task
from fusionlab.tasks.task import WRITING

if TYPE_CHECKING:
    import pandas as pd

Say = Callable[[str], None]
_ABOUT = b"fusionlab"  # key of the file's metadata


@dataclass(frozen=True)
class Cell:
    """What is asked, how, and of whom.

    seed: draws the example shots. order: 0 leaves them as drawn, n puts them in the order of seed n. experts: those
    that the method may use.
    """

    task: str
    method: str
    shots: int = 0
    phrasing: int = 0
    seed: int = 0
    experts: tuple[str, ...] = ()
    order: int = 0

    def path(self, folder: Path) -> Path:
        """Where its rows lie: a readable name, made one of its kind by a hash."""
        parts = f"{self.task}.{self.method}.shots{self.shots}.phrasing{self.phrasing}.seed{self.seed}"
        fields = asdict(self)
        if self.order:
            parts += f".order{self.order}"
        else:
            del fields["order"]
        digest = hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()[:8]
        return folder / "cells" / f"{re.sub(r'[^A-Za-z0-9_.=-]', '_', parts)[:120]}.{digest}.parquet"

    def __str__(self) -> str:
        asked = f"{self.shots}-shot" + (f" phrasing {self.phrasing}" if self.phrasing else "")
        asked += (f" seed {self.seed}" if self.seed else "") + (f" order {self.order}" if self.order else "")
        return f"{self.task} {self.method} {asked}"


@dataclass(frozen=True)
class AnswerRow:
    """One item's answer in one cell. extracted: None where the text holds no answer."""

    task: str
    method: str
    shots: int
    phrasing: int
    seed: int
    experts: str  # names joined by +
    item: str
    prompt: str
    output: str
    extracted: str | None
    gold: str
    score: float
    metric: str
    seen: bool  # whether an expert of the team was trained on this task
    seconds: float  # the batch's time, shared evenly
    tokens: int  # written, end token included; those of all options where the answer is one by likelihood
    weights_sha256: str
    task_sha256: str
    device: str
    fusionlab: str  # versions
    torch: str
    transformers: str
    order: int = 0  # of the example shots; 0: as drawn
    answering: str = WRITING  # or by likelihood


_TYPES = {"int": "int64", "float": "float64", "bool": "bool", "str": "string", "str | None": "string"}


def write_cell(path: Path, rows: Sequence[AnswerRow], about: Mapping[str, Any]) -> None:
    """Put a cell's rows in its file, all or nothing. Raises OutputError."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = pa.schema(
        [(name, pa.type_for_alias(_TYPES[str(kind)])) for name, kind in AnswerRow.__annotations__.items()],
        metadata={_ABOUT: json.dumps(about, sort_keys=True)},
    )
    table = pa.Table.from_pylist([asdict(row) for row in rows], schema)
    write_atomically(path, lambda draft: pq.write_table(table, draft, compression="zstd", write_page_checksum=True))


def read_cell(path: Path) -> tuple[list[AnswerRow], dict[str, Any]]:
    """A cell's rows, and what decided them. Raises CorruptFileError."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(path, page_checksum_verification=True)
        about = {"answering": WRITING} | json.loads((table.schema.metadata or {})[_ABOUT])  # once there was no other way
        rows = [AnswerRow(**row) for row in table.to_pylist()]
    except (pa.ArrowException, OSError, KeyError, TypeError, ValueError) as error:
        raise CorruptFileError(
            f"{path} is damaged or not an evaluation's: {str(error).splitlines()[0]:.120}",
            remedy="run the same evaluation again: it does this cell anew",
        ) from error
    return rows, about


def resume_cell(path: Path, about: Mapping[str, Any], prompts: Mapping[str, str], *, say: Say) -> list[AnswerRow]:
    """The rows that an earlier run left and that still hold; [] where there is no file or a damaged one.

    prompts: item id -> the text it is asked with now. Raises FusionError if other weights, another method or other
    task data made the rows.
    """
    if not path.is_file():
        return []
    try:
        rows, stored = read_cell(path)
    except CorruptFileError as error:
        say(str(error).partition(";")[0] + "; this cell is done again")
        return []
    stored = {"predictor": about.get("predictor")} | stored  # of which cells once said nothing
    changed = [key for key in about if stored.get(key) != about[key]]
    moved = next((row.item for row in rows if prompts.get(row.item, row.prompt) != row.prompt), None)
    if changed or moved is not None:
        what = f"other {' and '.join(changed)}" if changed else f"other task data (item {moved!r} was asked differently)"
        raise FusionError(
            f"{path} holds answers made with {what}", remedy="choose another --out, or begin anew with --fresh"
        )
    return rows


def cell_files(folder: Path) -> list[Path]:
    """Every cell's file. Raises MissingFileError where there is none."""
    paths = sorted(folder.glob("cells/[!.]*.parquet"))
    if not paths:
        raise MissingFileError(f"{folder} holds no evaluation", remedy="name the --out folder of an earlier evaluation")
    return paths


def read_rows(folder: Path) -> pd.DataFrame:
    """Every row in `folder` as one frame with AnswerRow's columns. Raises MissingFileError, CorruptFileError."""
    return as_frame([row for path in cell_files(folder) for row in read_cell(path)[0]])


def as_frame(rows: Sequence[AnswerRow]) -> pd.DataFrame:
    """Rows as a frame, with all columns even if there is no row."""
    import pandas

    return pandas.DataFrame([asdict(row) for row in rows], columns=list(AnswerRow.__annotations__))


def rescore_folder(folder: Path, tasks: Mapping[str, Task] | None = None) -> pd.DataFrame:
    """Extract and score every stored output again by today's rules, rewrite the files, return all rows.

    tasks: name -> task, for those that are neither bundled nor loaded from a path. Raises MissingFileError,
    CorruptFileError, TaskError for an item that the task no longer has; nothing is rewritten then.
    """
    known: dict[str, tuple[Task, dict[str, Item]]] = {}

    def items_of(name: str, source: str) -> tuple[Task, dict[str, Item]]:
        if name not in known:
            task = (tasks or {}).get(name) or load_task(source)
            known[name] = task, {item.id: item for item in task.test}
        return known[name]

    scored = []
    for path in cell_files(folder):
        rows, about = read_cell(path)
        again = [score_again(row, *items_of(row.task, about["task_source"]), path=path) for row in rows]
        scored.append((path, again, about))
    for path, rows, about in scored:
        write_cell(path, rows, about)
    return as_frame([row for _, rows, _ in scored for row in rows])


def score_again(row: AnswerRow, task: Task, items: Mapping[str, Item], *, path: Path) -> AnswerRow:
    """The row with its output extracted and scored anew."""
    item = items.get(row.item)
    if item is None:
        raise TaskError(f"{path}: task {task.name!r} has no test item {row.item!r} any more", remedy="evaluate it again")
    return replace(row, extracted=task.extract(row.output, item, phrasing=row.phrasing),
                   score=task.score(row.output, item, phrasing=row.phrasing),
                   gold=item.answer, metric=task.spec.metric)  # fmt: skip

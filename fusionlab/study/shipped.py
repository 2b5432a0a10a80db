"""The answers of the full study as they ship: one Parquet file without prompts, scored again without models.

data/study/answers.parquet holds a row per cell and item; a prompt is made again from task, item and way of asking.
data/study/weights.parquet and likeness.parquet are the frames of `trajectories` and `interference`, about.json says what
made them and when.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fusionlab.atomic_file import write_atomically
from fusionlab.cells import AnswerRow, as_frame, read_rows
from fusionlab.errors import CorruptFileError, MissingFileError, TaskError
from fusionlab.tasks import load_task
from fusionlab.tasks.files import find_data_file
from fusionlab.tasks.specs import SPECS
from fusionlab.tasks.task import WRITING

if TYPE_CHECKING:
    import pandas as pd

ANSWERS, WEIGHTS, LIKENESS, BENCH = "answers.parquet", "weights.parquet", "likeness.parquet", "bench.parquet"
ABOUT = "about.json"
FRAMES = (WEIGHTS, LIKENESS, BENCH)
_FOLDER = "study"
_LATER = {"prompt": "", "order": 0, "answering": WRITING}  # columns that files may lack, and what stands for them
_KEY = ["task", "method", "shots", "phrasing", "seed", "order", "experts", "item"]


def find_shipped(name: str, folder: Path | None = None) -> Path:
    """A file of the shipped study, or of a folder with the same files. Raises MissingFileError."""
    if folder is not None:
        path = folder / name
        if not path.is_file():
            raise MissingFileError(f"{path} is missing", remedy="name a folder that `study --pack` wrote")
        return path
    return Path(str(find_data_file(_FOLDER, name)))


def read_frame(name: str, folder: Path | None = None) -> pd.DataFrame | None:
    """A shipped frame, None where it is not there. Raises CorruptFileError."""
    import pandas
    import pyarrow as pa

    try:
        path = find_shipped(name, folder)
    except MissingFileError:
        return None
    try:
        return pandas.read_parquet(path)
    except (pa.ArrowException, OSError, ValueError) as error:
        raise CorruptFileError(f"{path} is damaged: {str(error).splitlines()[0]:.120}", remedy="restore it") from error


def read_shipped_rows(folder: Path | None = None) -> pd.DataFrame:
    """Every shipped answer with AnswerRow's columns; `prompt` is empty (see `remake_prompts`).

    Raises MissingFileError, CorruptFileError.
    """
    find_shipped(ANSWERS, folder)
    frame = read_frame(ANSWERS, folder)
    missing = [] if frame is None else [name for name in AnswerRow.__annotations__
                                        if name not in frame and name not in _LATER]  # fmt: skip
    if frame is None or missing:
        raise CorruptFileError(f"{ANSWERS} lacks the columns {missing}", remedy="pack the evaluation again")
    frame = frame.assign(**{name: value for name, value in _LATER.items() if name not in frame})
    frame["experts"] = frame["experts"].fillna("")
    return frame[list(AnswerRow.__annotations__)]


def read_about(folder: Path | None = None) -> dict[str, Any]:
    """What made the shipped study; {} where that is not recorded."""
    try:
        return dict(json.loads(find_shipped(ABOUT, folder).read_text()))
    except MissingFileError:
        return {}
    except ValueError as error:
        raise CorruptFileError(f"{ABOUT} is not JSON: {error}", remedy="restore it") from error


def remake_prompts(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows with the prompts that were asked, made from the tasks. Raises TaskError for an item that is gone."""
    return _by_task(rows, lambda task, item, row: {"prompt": task.prompt(
        item, shots=row["shots"], seed=row["seed"], phrasing=row["phrasing"],
        order_seed=row["order"] or None)})  # fmt: skip


def rescore(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows with their outputs extracted and scored by today's rules. Raises TaskError for an item that is gone."""
    return _by_task(rows, lambda task, item, row: {
        "extracted": task.extract(row["output"], item, phrasing=row["phrasing"]),
        "score": float(task.score(row["output"], item, phrasing=row["phrasing"])),
        "gold": item.answer, "metric": task.spec.metric})  # fmt: skip


def answered_as_now(rows: pd.DataFrame) -> tuple[pd.DataFrame, list[str]]:
    """The rows of tasks that are still answered in the way that made them, and the names of the other tasks."""
    now = rows["task"].map(lambda name: SPECS[name].answering if name in SPECS else None)
    kept = now.isna() | (now == rows["answering"])
    return rows[kept].reset_index(drop=True), list(dict.fromkeys(rows.loc[~kept, "task"]))


def _by_task(rows: pd.DataFrame, change: Callable[[Any, Any, Any], dict[str, Any]]) -> pd.DataFrame:
    import pandas

    done = []
    for name, group in rows.groupby("task", sort=False):
        task = load_task(str(name))
        items = {item.id: item for item in task.test}
        for row in group.to_dict("records"):
            if row["item"] not in items:
                raise TaskError(f"task {name!r} has no test item {row['item']!r} any more", remedy="evaluate it again")
            done.append(row | change(task, items[row["item"]], row))
    return pandas.DataFrame(done, columns=list(rows.columns))


def gather_rows(folders: list[Path]) -> pd.DataFrame:
    """The rows of several evaluations as one frame, each cell's item once (the first folder's).

    A folder may also be one that was packed before, so that a study grows without the cells of its beginning.
    Raises MissingFileError, CorruptFileError, and TaskError where folders were made with other weights or tasks.
    """
    import pandas

    found = [read_shipped_rows(folder) if (folder / ANSWERS).is_file() else read_rows(folder) for folder in folders]
    rows = pandas.concat(found, ignore_index=True) if found else as_frame([])
    rows = rows.drop_duplicates(_KEY, ignore_index=True)
    for column, keys in (("weights_sha256", ["method", "experts"]), ("task_sha256", ["task"])):
        mixed = rows.groupby(keys)[column].nunique()
        if (mixed > 1).any():
            raise TaskError(f"the folders hold answers of different {column} for {mixed[mixed > 1].index[0]}",
                            remedy="pack folders of one team and one version of the tasks")  # fmt: skip
    return rows


def pack_rows(rows: pd.DataFrame, folder: Path) -> Path:
    """Write `answers.parquet` into a folder, without prompts, sorted and zstd-compressed. Raises OutputError."""
    packed = rows.drop(columns="prompt", errors="ignore").sort_values(_KEY, ignore_index=True)
    packed = packed.assign(seconds=packed["seconds"].astype("float32"), score=packed["score"].astype("float64"))
    return write_frame(packed, folder / ANSWERS)


def write_frame(frame: pd.DataFrame, path: Path) -> Path:
    """Write a frame as Parquet, all or nothing. Raises OutputError."""
    return write_atomically(
        path, lambda draft: frame.to_parquet(draft, index=False, compression="zstd", compression_level=19)
    )

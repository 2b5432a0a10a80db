"""Real benchmarks behind the interface of the bundled tasks: from the Hugging Face hub, or from files on disk.

Files are read in the data set's own layout, JSONL or Parquet, and recognised by their columns. A `Benchmark` says
which files those are and how one row becomes an item; what its items are asked and worth is in `specs`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fusionlab.errors import MissingFileError, TaskError, UnknownNameError
from fusionlab.hub_address import why_unreachable
from fusionlab.tasks.answers import LETTERS
from fusionlab.tasks.files import find_split_files, read_rows, split_worked
from fusionlab.tasks.specs import CNN_DAILYMAIL, GSM8K, MMLU, TRIVIA_QA, TRUTHFUL_QA
from fusionlab.tasks.task import Item, Task, TaskSpec, draw_without_repeats


@dataclass(frozen=True)
class Benchmark:
    """Where a benchmark's rows are and how to read one.

    `repo` and `hub_files` name the files on the hub by split; a folder on disk is searched for splits of
    `local_names`, first found first. `columns` are those that `convert` (row, where, id if it has none) reads.
    """

    spec: TaskSpec
    repo: str
    hub_files: Mapping[str, str]
    columns: tuple[str, ...]
    convert: Callable[[dict[str, Any], str, str], Item]
    local_names: Mapping[str, tuple[str, ...]]


def load_benchmark(name: str, path: Path | None = None) -> Task:
    """Load a benchmark from the hub, or from a file or folder in its own layout.

    Raises UnknownNameError for another name; MissingFileError for a file that is not there, or that the hub would
    have while it cannot be reached, and says where to put it; TaskError naming file and line for a malformed row.
    """
    if name not in BENCHMARKS:
        raise UnknownNameError(f"unknown benchmark: {name!r}", remedy=f"use one of {', '.join(BENCHMARKS)}")
    benchmark = BENCHMARKS[name]
    files = _find_on_hub(benchmark) if path is None else _find_on_disk(benchmark, path)
    items = {split: _read_items(benchmark, split, found) for split, found in files.items()}
    if benchmark.spec.target_field == "worked":
        items = {split: split_worked(some, files[split][0]) for split, some in items.items()}
    return Task(benchmark.spec, items.get("train", []), items["test"])


def detect_benchmark(row: Mapping[str, Any]) -> str | None:
    """Return the benchmark whose layout a row has, or None for this project's own (GSM8K's is the same).

    >>> detect_benchmark({"article": "...", "highlights": "...", "id": "1"})
    'cnn_dailymail'
    """
    answer = row.get("answer")
    if "article" in row and "highlights" in row:
        return "cnn_dailymail"
    if "question" not in row:
        return None
    if "mc1_targets" in row:
        return "truthful_qa"
    if isinstance(answer, dict) and "value" in answer:
        return "trivia_qa"
    if "choices" in row and type(answer) is int:
        return "mmlu"
    return None


def fetch_from_hub(repo: str, file: str) -> Path:
    """Return a data set's file from the hub's cache, or download it; one attempt, no waiting without a network."""
    from huggingface_hub import constants, hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return Path(hf_hub_download(repo, file, repo_type="dataset", local_files_only=True))
    except LocalEntryNotFoundError:
        pass  # not fetched yet
    why = why_unreachable()
    if why is None:
        try:
            return Path(hf_hub_download(repo, file, repo_type="dataset"))
        except (HfHubHTTPError, OSError) as error:
            why = str(error).partition("\n")[0]
    raise MissingFileError(f"cannot fetch {file} of data set {repo} from {constants.ENDPOINT}: {why}")


def _find_on_hub(benchmark: Benchmark) -> dict[str, list[Path]]:
    try:
        return {split: [fetch_from_hub(benchmark.repo, file)] for split, file in benchmark.hub_files.items()}
    except MissingFileError as error:
        names = " and ".join(f"{Path(file).name} as {split}.parquet" for split, file in benchmark.hub_files.items())
        raise MissingFileError(
            error.message,
            remedy=f"on a machine with a network get {names} (JSONL will do), put them into a folder and pass "
            f"load_task({benchmark.spec.name!r}, path=FOLDER)",
        ) from error


def _find_on_disk(benchmark: Benchmark, path: Path) -> dict[str, list[Path]]:
    if path.is_file():
        return {"test": [path]}
    if not path.is_dir():
        raise MissingFileError(f"no such file or folder: {path}", remedy="check the path")
    found = {split: find_split_files(path, names) for split, names in benchmark.local_names.items()}
    if not found["test"]:
        names = " or ".join(f"{name}.jsonl, {name}.parquet" for name in benchmark.local_names["test"])
        raise MissingFileError(f"{path}: holds no {names}", remedy="rename the file, or name the file itself")
    return {split: files for split, files in found.items() if files}


def _read_items(benchmark: Benchmark, split: str, files: Sequence[Path]) -> list[Item]:
    items: dict[str, Item] = {}
    count = 0
    for file in files:
        for line, row in read_rows(file):
            where, count = f"{file}, line {line}", count + 1
            if lacking := [name for name in benchmark.columns if name not in row]:
                raise TaskError(
                    f"{where}: not a row of {benchmark.spec.name}: lacks {', '.join(lacking)}, has {', '.join(row)}",
                    remedy=f"use the layout of {benchmark.repo}",
                )
            item = benchmark.convert(row, where, f"{benchmark.spec.name}-{split}-{count:05}")
            first = items.setdefault(item.id, item)
            if first.question != item.question:
                raise TaskError(f"{where}: id {item.id!r} was used for another question", remedy="make ids unique")
    return list(items.values())  # TriviaQA repeats a question for each of its documents: the first counts


def _text(row: Mapping[str, Any], name: str, where: str) -> str:
    value = row[name]
    if not isinstance(value, str) or not value.strip():
        raise TaskError(f"{where}: {name} must be a text that is not empty, got {value!r}", remedy="correct the line")
    return value.strip()


def _options(choices: Any, right: Any, where: str) -> tuple[list[str], str]:
    """The options as single lines, and the right one by its place."""
    if not isinstance(choices, list) or not all(isinstance(choice, str) for choice in choices):
        raise TaskError(f"{where}: choices must be a list of texts, got {choices!r}", remedy="correct the line")
    options = [" ".join(choice.split()) for choice in choices]
    if not 2 <= len(options) <= len(LETTERS) or not all(options):
        raise TaskError(f"{where}: choices must be 2 to {len(LETTERS)} texts, got {choices!r}", remedy="correct the line")
    if type(right) is not int or not 0 <= right < len(options):
        raise TaskError(f"{where}: answer must be 0 to {len(options) - 1}, got {right!r}", remedy="correct the line")
    return options, options[right]


def _convert_gsm8k(row: dict[str, Any], where: str, default_id: str) -> Item:
    return Item(default_id, _text(row, "question", where), _text(row, "answer", where))


def _convert_trivia_qa(row: dict[str, Any], where: str, default_id: str) -> Item:
    answer = row["answer"]
    value = answer.get("value") if isinstance(answer, dict) else None
    if not isinstance(value, str) or not value.strip() or value == "<unk>":
        raise TaskError(
            f"{where}: answer must be an object with a value, got {answer!r}",
            remedy="use the validation split: the test split of TriviaQA has no answers",
        )
    aliases = tuple(dict.fromkeys(alias for alias in answer.get("aliases") or () if alias != value))
    return Item(str(row.get("question_id") or default_id), _text(row, "question", where), value.strip(), aliases)


def _convert_truthful_qa(row: dict[str, Any], where: str, default_id: str) -> Item:
    targets = row["mc1_targets"]
    labels = targets.get("labels") if isinstance(targets, dict) else None
    if not isinstance(labels, list) or labels.count(1) != 1 or len(labels) != len(targets.get("choices") or ()):
        raise TaskError(
            f"{where}: mc1_targets must have choices and as many labels, a single one of them 1, got {targets!r}",
            remedy="use the multiple_choice layout of truthfulqa/truthful_qa",
        )
    question = _text(row, "question", where)
    choices, answer = _options(targets["choices"], labels.index(1), where)
    # The right option always comes first in the data; a place drawn from the question is the same everywhere.
    return Item(default_id, question, answer, fields={"choices": list(draw_without_repeats(choices, question))})


def _convert_cnn_dailymail(row: dict[str, Any], where: str, default_id: str) -> Item:
    article = " ".join(_text(row, "article", where).split())  # a blank line would end a shot
    highlights = " ".join(_text(row, "highlights", where).split())
    return Item(str(row.get("id") or default_id), article, highlights)


def _convert_mmlu(row: dict[str, Any], where: str, default_id: str) -> Item:
    choices, answer = _options(row["choices"], row["answer"], where)
    fields = {"choices": choices, "subject": _text(row, "subject", where)}
    return Item(default_id, _text(row, "question", where), answer, fields=fields)


_TRAIN_TEST = {"train": ("train",), "test": ("test", "validation")}
BENCHMARKS: dict[str, Benchmark] = {
    "gsm8k": Benchmark(
        GSM8K,
        "openai/gsm8k",
        {"train": "main/train-00000-of-00001.parquet", "test": "main/test-00000-of-00001.parquet"},
        ("question", "answer"),
        _convert_gsm8k,
        _TRAIN_TEST,
    ),
    "trivia_qa": Benchmark(
        TRIVIA_QA,
        "mandarjoshi/trivia_qa",
        {
            "train": "unfiltered.nocontext/train-00000-of-00001.parquet",
            "test": "unfiltered.nocontext/validation-00000-of-00001.parquet",
        },
        ("question", "answer"),
        _convert_trivia_qa,
        {"train": ("train",), "test": ("validation", "test")},
    ),
    "truthful_qa": Benchmark(
        TRUTHFUL_QA,
        "truthfulqa/truthful_qa",
        {"test": "multiple_choice/validation-00000-of-00001.parquet"},
        ("question", "mc1_targets"),
        _convert_truthful_qa,
        {"train": ("train",), "test": ("validation", "test")},
    ),
    "cnn_dailymail": Benchmark(
        CNN_DAILYMAIL,
        "abisee/cnn_dailymail",
        {"train": "3.0.0/train-00000-of-00003.parquet", "test": "3.0.0/test-00000-of-00001.parquet"},
        ("article", "highlights"),
        _convert_cnn_dailymail,
        _TRAIN_TEST,
    ),
    "mmlu": Benchmark(
        MMLU,
        "cais/mmlu",
        {"train": "all/dev-00000-of-00001.parquet", "test": "all/test-00000-of-00001.parquet"},
        ("question", "subject", "choices", "answer"),
        _convert_mmlu,
        {"train": ("dev", "train"), "test": ("test", "validation")},
    ),
}

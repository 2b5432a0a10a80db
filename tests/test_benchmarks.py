"""Benchmarks: each layout is recognised and read, from disk or the hub, and a wrong row is named by file and line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from fusionlab.errors import MissingFileError, TaskError, UnknownNameError
from fusionlab.tasks import BENCHMARKS, load_task
from fusionlab.tasks.benchmarks import detect_benchmark

Rows = list[dict[str, Any]]

# Two rows per layout, made for these tests; extra columns as the data sets have them.
ROWS: dict[str, Rows] = {
    "gsm8k": [
        {"question": "Two bags of 3?", "answer": "There are 2*3=<<2*3=6>>6.\n#### 6"},
        {"question": "Price of 1,000 at 2?", "answer": "It is 1000*2=$<<1000*2=2000>>2,000.\n#### 2,000"},
    ],
    "trivia_qa": [
        {
            "question": "Which river runs through Exampleton?", "question_id": "tc_1", "question_source": "made",
            "answer": {"value": "River Exe", "aliases": ["River Exe", "The Exe"], "normalized_aliases": ["exe"],
                       "normalized_value": "river exe", "type": "WikipediaEntity"},
        },
        {
            "question": "Who wrote A Test?", "question_id": "tc_2", "question_source": "made",
            "answer": {"value": "Ann O'Tator", "aliases": ["Annie O'Tator"], "normalized_aliases": [],
                       "normalized_value": "ann o tator", "type": "FreeForm"},
        },
    ],
    "truthful_qa": [
        {"question": "Can stones float?",
         "mc1_targets": {"choices": ["Pumice can", "No stone can", "All can"], "labels": [1, 0, 0]},
         "mc2_targets": {"choices": ["Pumice can", "All can"], "labels": [1, 0]}},
        {"question": "Is glass a liquid?", "mc1_targets": {"choices": ["No, a solid", "Yes, a liquid"], "labels": [1, 0]},
         "mc2_targets": {"choices": ["No, a solid"], "labels": [1]}},
    ],
    "cnn_dailymail": [
        {"article": "A bridge opened.\n\nCrowds came.", "highlights": "Bridge opened .\nCrowds came .", "id": "ab12"},
        {"article": "Rain fell all week in the north.", "highlights": "Rain fell all week .", "id": "cd34"},
    ],
    "mmlu": [
        {"question": "2 + 2 = ?", "subject": "algebra", "choices": ["3", "4", "5", "22"], "answer": 1},
        {"question": "Which is a base?", "subject": "chemistry", "choices": ["HCl", "NaOH", "CO2", "NaCl"], "answer": 1},
    ],
}  # fmt: skip

each = pytest.mark.parametrize("name", sorted(BENCHMARKS))


def write_jsonl(path: Path, rows: Rows) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


def write_parquet(path: Path, rows: Rows) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    return path


def test_every_benchmark_is_covered_here() -> None:
    """A new benchmark brings its rows."""
    assert ROWS.keys() == BENCHMARKS.keys()
    assert {name: benchmark.spec.name for name, benchmark in BENCHMARKS.items()} == {name: name for name in BENCHMARKS}


@each
@pytest.mark.parametrize("write", [write_jsonl, write_parquet])
def test_a_file_in_the_own_layout_of_a_benchmark_is_read_by_name(
    name: str, write: Callable[[Path, Rows], Path], tmp_path: Path
) -> None:
    """JSONL and Parquet alike; what is to be written scores full marks."""
    suffix = ".jsonl" if write is write_jsonl else ".parquet"
    task = load_task(name, path=write(tmp_path / f"rows{suffix}", ROWS[name]))
    assert (task.name, len(task.train), len(task.test)) == (name, 0, 2)
    assert len({item.id for item in task.test}) == 2
    for item in task.test:
        assert task.score(task.target(item) + "\n\nQuestion: next", item) == 1.0
        assert task.prompt(item).count(item.question) == 1


@pytest.mark.parametrize("name", sorted(BENCHMARKS.keys() - {"gsm8k"}))
def test_a_layout_is_recognised_by_its_columns(name: str, tmp_path: Path) -> None:
    """The path alone is enough; the task has the benchmark's name, whatever the file is called."""
    assert detect_benchmark(ROWS[name][0]) == name
    path = write_parquet(tmp_path / "some-00000-of-00001.parquet", ROWS[name])
    assert load_task(path) == load_task(name, path=path)


def test_gsm8k_has_our_own_layout_and_is_recognised_by_its_hashes(tmp_path: Path) -> None:
    """question and answer are our own columns: nothing is detected, and the worked answers are read the same."""
    assert detect_benchmark(ROWS["gsm8k"][0]) is None
    path = write_jsonl(tmp_path / "gsm8k.jsonl", ROWS["gsm8k"])
    by_path, by_name = load_task(path), load_task("gsm8k", path=path)
    assert [item.answer for item in by_path.test] == [item.answer for item in by_name.test] == ["6", "2000"]
    assert by_path.target(by_path.test[1]) == by_name.target(by_name.test[1]) == " It is 1000*2=$2,000.\n#### 2,000"
    assert by_path.spec.stop == by_name.spec.stop


@pytest.mark.parametrize(
    "row", [{"question": "Why?", "answer": "So"}, {"question": "Why?", "answer": "So", "choices": ["So", "No"]}, {}]
)
def test_our_own_rows_are_not_taken_for_a_benchmark(row: dict[str, Any]) -> None:
    """Choices with a text as answer are ours, with a number MMLU's."""
    assert detect_benchmark(row) is None


@pytest.mark.parametrize(
    ("name", "files"),
    [
        ("gsm8k", {"train": "train.jsonl", "test": "test.jsonl"}),
        ("trivia_qa", {"train": "train-00000-of-00001.parquet", "test": "validation-00000-of-00001.parquet"}),
        ("truthful_qa", {"test": "validation-00000-of-00001.parquet"}),
        ("cnn_dailymail", {"train": "train-00000-of-00003.parquet", "test": "test-00000-of-00001.parquet"}),
        ("mmlu", {"train": "dev-00000-of-00001.parquet", "test": "test-00000-of-00001.parquet"}),
    ],
)
def test_a_folder_with_the_hubs_file_names_is_read(name: str, files: dict[str, str], tmp_path: Path) -> None:
    """A clone of the data set's folder works as it is, and gives shots where there is a train split."""
    for split, file in files.items():
        rows = (
            ROWS[name]
            if split == "test"
            else [{**row, "id": f"t{n}", "question_id": f"t{n}"} for n, row in enumerate(ROWS[name])]
        )
        (write_jsonl if file.endswith("jsonl") else write_parquet)(tmp_path / file, rows)
    task = load_task(name, path=tmp_path)
    assert (len(task.train), len(task.test)) == (2 if "train" in files else 0, 2)
    assert name == "gsm8k" or load_task(tmp_path) == task


def test_parts_of_a_split_are_read_in_order(tmp_path: Path) -> None:
    """CNN/DailyMail's train split has three files."""
    for part in (0, 1):
        write_parquet(tmp_path / f"test-0000{part}-of-00002.parquet", ROWS["cnn_dailymail"][part : part + 1])
    assert [item.id for item in load_task("cnn_dailymail", path=tmp_path).test] == ["ab12", "cd34"]


def test_trivia_qa_takes_aliases_and_counts_a_repeated_question_once(tmp_path: Path) -> None:
    """The rc layout has a row for each document of a question."""
    rows = ROWS["trivia_qa"]
    task = load_task("trivia_qa", path=write_jsonl(tmp_path / "rows.jsonl", [*rows, rows[0]]))
    assert [item.id for item in task.test] == ["tc_1", "tc_2"]
    item = task.test[0]
    assert (item.answer, item.aliases) == ("River Exe", ("The Exe",))
    assert task.score(" the exe.\n", item) == 1.0
    assert task.score(" Exe River", item) == 0.0


def test_truthful_qa_shows_the_right_option_anywhere(tmp_path: Path) -> None:
    """In the data it always comes first, which a model could use; the places are drawn from the question."""
    rows = [
        {"question": f"Is it {n}?", "mc1_targets": {"choices": ["right", "wrong", "false", "no"], "labels": [1, 0, 0, 0]}}
        for n in range(80)
    ]
    path = write_jsonl(tmp_path / "rows.jsonl", rows)
    task = load_task("truthful_qa", path=path)
    places = [item.choices.index(item.answer) for item in task.test]
    assert {item.answer for item in task.test} == {"right"}
    assert all(8 <= places.count(place) <= 35 for place in range(4))
    assert load_task("truthful_qa", path=path) == task


def test_mmlu_keeps_the_order_of_options_and_takes_shots_from_the_subject(tmp_path: Path) -> None:
    """As the benchmark is defined: letters can be compared with published figures."""
    write_jsonl(tmp_path / "dev.jsonl", ROWS["mmlu"])
    test = {"question": "Which is an acid?", "subject": "chemistry", "choices": ["NaOH", "HCl", "H2O", "KOH"], "answer": 1}
    write_jsonl(tmp_path / "test.jsonl", [test])
    task = load_task("mmlu", path=tmp_path)
    item = task.test[0]
    lettered = next(place for place, form in enumerate(task.phrasings) if form.letters)
    assert task.prompt(item, shots=1, phrasing=lettered) == (
        "Question: Which is a base?\nOptions:\nA. HCl\nB. NaOH\nC. CO2\nD. NaCl\nAnswer: B\n\n"
        "Question: Which is an acid?\nOptions:\nA. NaOH\nB. HCl\nC. H2O\nD. KOH\nAnswer:"
    )
    assert task.score(" B", item, phrasing=lettered) == 1.0
    assert task.score(" HCl", item) == 1.0


def test_cnn_dailymail_is_scored_by_rouge2_over_all_lines(tmp_path: Path) -> None:
    """A blank line in an article would end it as a shot; a highlight's own lines are one summary."""
    task = load_task("cnn_dailymail", path=write_jsonl(tmp_path / "rows.jsonl", ROWS["cnn_dailymail"]))
    item = task.test[0]
    assert task.prompt(item) == "Article: A bridge opened. Crowds came.\nSummary:"
    assert task.score("Bridge opened.\nCrowds came.", item) == 1.0
    assert 0 < task.score("Bridge opened.", item) < 1


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("gsm8k", {"answer": " "}, "line 2: answer must be a text that is not empty"),
        ("trivia_qa", {"answer": {"value": "<unk>", "aliases": []}}, "line 2: answer must be an object with a value"),
        ("trivia_qa", {"answer": "Exe"}, "line 2: answer must be an object with a value"),
        ("trivia_qa", {"question_id": "tc_1"}, "line 2: id 'tc_1' was used for another question"),
        (
            "truthful_qa",
            {"mc1_targets": {"choices": ["a", "b"], "labels": [1, 1]}},
            "line 2: mc1_targets must have choices",
        ),
        ("truthful_qa", {"mc1_targets": {"choices": ["a", "b"], "labels": [1]}}, "line 2: mc1_targets must have choices"),
        ("truthful_qa", {"mc1_targets": ["a"]}, "line 2: mc1_targets must have choices"),
        ("cnn_dailymail", {"highlights": None}, "line 2: highlights must be a text that is not empty"),
        ("mmlu", {"answer": 4}, "line 2: answer must be 0 to 3, got 4"),
        ("mmlu", {"answer": "B"}, "line 2: answer must be 0 to 3, got 'B'"),
        ("mmlu", {"choices": ["one"]}, "line 2: choices must be 2 to 26 texts"),
        ("mmlu", {"choices": [1, 2]}, "line 2: choices must be a list of texts"),
        ("mmlu", {"choices": None}, "line 2: choices must be a list of texts"),
    ],
)
def test_malformed_rows_name_file_and_line(name: str, change: dict[str, Any], message: str, tmp_path: Path) -> None:
    """The reader of the message goes straight to the row."""
    path = write_jsonl(tmp_path / "rows.jsonl", [ROWS[name][0], {**ROWS[name][1], **change}])
    with pytest.raises(TaskError) as caught:
        load_task(name, path=path)
    assert f"{path}, {message}" in str(caught.value)


def test_rows_of_another_layout_say_what_they_lack(tmp_path: Path) -> None:
    """Naming the wrong benchmark is a slip of the hand."""
    path = write_jsonl(tmp_path / "rows.jsonl", ROWS["gsm8k"])
    with pytest.raises(TaskError, match=r"line 1: not a row of mmlu: lacks subject, choices, has question, answer"):
        load_task("mmlu", path=path)


def test_names_and_paths_that_do_not_exist_are_refused(tmp_path: Path) -> None:
    """Each with what would have been right."""
    with pytest.raises(UnknownNameError, match=r"unknown benchmark: 'gsm'; use one of gsm8k, trivia_qa"):
        load_task("gsm", path=tmp_path)
    with pytest.raises(MissingFileError, match="no such file or folder"):
        load_task("gsm8k", path=tmp_path / "none")
    with pytest.raises(MissingFileError, match=r"holds no validation\.jsonl, validation\.parquet or test\.jsonl"):
        load_task("trivia_qa", path=tmp_path)


# -- the hub -------------------------------------------------------------------------------------


class Hub:
    """A stand-in for hf_hub_download: serves the test rows, from the cache once they were fetched."""

    def __init__(self, folder: Path, name: str) -> None:
        self.folder, self.name, self.fetched = folder, name, list[str]()

    def download(self, repo: str, file: str, *, repo_type: str, local_files_only: bool = False) -> str:
        from huggingface_hub.errors import LocalEntryNotFoundError

        assert (repo, repo_type) == (BENCHMARKS[self.name].repo, "dataset")
        if local_files_only and file not in self.fetched:
            raise LocalEntryNotFoundError("not in the cache")
        if not local_files_only:
            self.fetched.append(file)
        return str(write_parquet(self.folder / file, ROWS[self.name]))


@each
def test_a_name_alone_fetches_its_files_from_the_hub_once(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second load reads the hub's cache and needs no network."""
    hub = Hub(tmp_path, name)
    monkeypatch.setattr("huggingface_hub.hf_hub_download", hub.download)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("fusionlab.tasks.benchmarks.why_unreachable", lambda: None)
    task = load_task(name)
    assert len(task.test) == 2
    assert hub.fetched == list(BENCHMARKS[name].hub_files.values())
    monkeypatch.setattr("fusionlab.tasks.benchmarks.why_unreachable", lambda: "no network")
    assert load_task(name) == task


@pytest.mark.parametrize("offline", [True, False])
def test_without_a_network_the_error_says_which_file_to_put_where(offline: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """At once: the hub's client would try five times first."""
    from huggingface_hub.errors import LocalEntryNotFoundError

    def not_cached(*args: object, local_files_only: bool = False, **kwargs: object) -> str:
        assert local_files_only, "the network was asked"
        raise LocalEntryNotFoundError("not in the cache")

    monkeypatch.setattr("huggingface_hub.hf_hub_download", not_cached)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", offline)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(MissingFileError) as caught:
        load_task("mmlu")
    said = str(caught.value)
    assert "all/dev-00000-of-00001.parquet of data set cais/mmlu" in said
    assert ("HF_HUB_OFFLINE is set" if offline else "refused") in said
    assert "dev-00000-of-00001.parquet as train.parquet and test-00000-of-00001.parquet as test.parquet" in said
    assert "load_task('mmlu', path=FOLDER)" in said

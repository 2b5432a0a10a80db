"""Statistics and tables on small frames whose figures can be worked out by hand."""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from tiny_tasks import make_row

from fusionlab.cells import as_frame
from fusionlab.errors import CorruptFileError, MissingFileError
from fusionlab.scores import bootstrap_mean, read_records, save_table, summarise, to_markdown

FULL = {"large-full": {"math": {"value": 80.0, "n": 4, "standard_error": 2.0, "command": "train", "date": "2026-01-01"},
                       "trivia": {"value": 50.0, "n": 4, "standard_error": 2.0}}}  # fmt: skip


def frame(*cells: tuple[str, str, list[float]], **fields: Any) -> pd.DataFrame:
    """Rows of (task, method, scores); fields apply to all of them."""
    rows = []
    for task, method, scores in cells:
        own = task if method not in ("large", "small", "evidence") else ""
        common = {"experts": own, "seen": task != "unseen"} | fields
        rows += [make_row(**common, task=task, method=method, item=f"i{i}", score=score) for i, score in enumerate(scores)]
    return as_frame(rows)


def line(summary: pd.DataFrame, task: str, method: str) -> Any:
    """The one line of a task and method."""
    (found,) = summary[(summary["task"] == task) & (summary["method"] == method)].to_dict("records")
    return found


@pytest.mark.parametrize(
    "strata", [[[0.0, 1.0]], [[1.0, 0.0, -1.0, 0.5]], [[0.0, 1.0, 1.0], [-1.0, 0.0]], [[1.0], [0.0, 0.5, 1.0, 1.0]]]
)
def test_the_interval_is_that_of_all_resamples(strata: list[list[float]]) -> None:
    """Few items allow to list every resample; scipy's draws must give the percentiles of the whole list."""
    means = [[np.mean(pick) for pick in itertools.product(values, repeat=len(values))] for values in strata]
    exact = np.percentile([np.mean(pick) for pick in itertools.product(*means)], [2.5, 97.5], method="inverted_cdf")
    low, high = bootstrap_mean([np.array(values) for values in strata])
    assert (low, high) == pytest.approx(tuple(exact), abs=0.026)  # the list is coarse: next values are further away


def test_an_interval_without_variation_is_a_point() -> None:
    """Two methods with the same answers differ by exactly nothing, not by NaN."""
    assert bootstrap_mean([np.zeros(5)]) == (0.0, 0.0)
    assert bootstrap_mean([np.ones(1), np.zeros(3)]) == (0.5, 0.5)


def test_values_errors_and_paired_differences_by_hand() -> None:
    """4 items: dynamic right on 3, large on 1, all of large's among dynamic's."""
    summary = summarise(frame(("math", "large", [1, 0, 0, 0]), ("math", "dynamic", [1, 1, 1, 0])), FULL)
    found = line(summary, "math", "dynamic")
    assert (found["n"], found["value"]) == (4, 75.0)
    assert found["standard_error"] == pytest.approx(25.0)  # sd of 1, 1, 1, 0 is 0.5, over sqrt(4)
    assert (found["large_difference"], found["large_n"]) == (50.0, 4)
    assert (found["large_low"], found["large_high"]) == (0.0, 100.0)  # resamples of 0, 1, 1, 0: P(all 0) = 1/16 > 2.5 %
    assert found["share_of_full"] == pytest.approx(75 / 80 * 100)
    assert found["seconds_per_1000"] == pytest.approx(20.0)
    assert math.isnan(found["expert_difference"]) if "expert_difference" in found else True
    assert math.isnan(line(summary, "math", "large")["large_difference"])


def test_a_reference_is_asked_the_same_way_where_it_was_else_plainly() -> None:
    """5-shot fusion is compared with the 5-shot large model, not with the weaker 0-shot one."""
    plain = frame(("math", "large", [0, 0, 0, 0]), ("math", "expert", [0, 1, 0, 1]))
    shot = frame(("math", "large", [1, 1, 0, 0]), ("math", "dynamic", [1, 1, 1, 1]), shots=5, seed=3)
    summary = summarise(pd.concat([plain, shot]))
    found = line(summary, "math", "dynamic")
    assert found["large_difference"] == 50.0  # not 100
    assert found["expert_difference"] == 50.0  # the expert was never asked with shots


def test_only_items_that_both_cells_hold_are_compared() -> None:
    """A reference of another limit is compared on what is common, and the table says on how many."""
    summary = summarise(frame(("math", "large", [1, 0]), ("math", "dynamic", [1, 1, 0, 0])))
    found = line(summary, "math", "dynamic")
    assert (found["large_difference"], found["large_n"]) == (50.0, 2)


def test_averages_cover_the_seen_tasks_and_resample_within_each() -> None:
    """`unseen` has no upper bound and no expert; a method that skipped a seen task has no average."""
    rows = frame(("math", "large", [0, 0, 0, 0]), ("trivia", "large", [0, 0]), ("unseen", "large", [1, 1]),
                 ("math", "dynamic", [1, 1, 0, 0]), ("trivia", "dynamic", [1, 1]),
                 ("math", "expert", [1, 1, 1, 1]))  # fmt: skip
    summary = summarise(rows, FULL)
    found = line(summary, "average", "dynamic")
    assert (found["n"], found["value"], found["large_difference"]) == (6, 75.0, 75.0)
    assert (found["large_low"], found["large_high"]) == (50.0, 100.0)  # trivia's part is 1 in every resample
    assert found["share_of_full"] == pytest.approx(100 * 75 / 65)  # of both averages, as the paper has it
    assert found["mean_share_of_full"] == pytest.approx((50 / 80 + 100 / 50) / 2 * 100)
    averaged = summary[summary["task"] == "average"]["method"].tolist()
    assert averaged == ["large", "dynamic", "large-full"]


def test_recorded_bounds_are_lines_and_missing_answers_are_counted(tmp_path: Path) -> None:
    """An answer that cannot be read scores nothing, and the reader of the table must see how many there were."""
    rows = frame(("math", "large", [1, 0]), extracted=None)
    text = to_markdown(summarise(rows, FULL))
    assert "| large alone | 0 | 0 | 2 | 50.0 ± 50.0 |  |  |  | 62.5 | 20 | 2 |" in text
    assert "| large, full fine-tuning (recorded) | 0 | 0 | 4 | 80.0 ± 2.0 |  |  |  | 100.0 |  |  |" in text
    assert "trivia" not in text, "a task that was not evaluated has no block"
    paths = save_table(summarise(rows, FULL), tmp_path)
    assert [path.name for path in paths] == ["table.parquet", "table.csv", "table.md"]
    assert pd.read_parquet(paths[0])["no_answer"].tolist()[0] == pd.read_csv(paths[1])["no_answer"].tolist()[0] == 2


def test_lines_follow_the_tables_of_tasks_and_methods() -> None:
    """The same table whatever the order in which cells were run or files are listed."""
    rows = frame(
        ("trivia", "evidence", [1]), ("trivia", "proxy-0.7", [1]), ("math", "expert", [1]), ("trivia", "large", [1])
    )
    summary = summarise(rows)
    assert summary.loc[summary["task"] != "average", "method"].tolist() == ["expert", "large", "proxy-0.7", "evidence"]


@pytest.mark.parametrize(
    "text", ["{", "[]", '{"large-full": {"math": {"n": 3}}}', '{"large-full": {"math": {"value": "x"}}}']
)
def test_a_malformed_record_names_its_file(text: str, tmp_path: Path) -> None:
    """A bound that is silently missing would leave the share of full fine-tuning empty."""
    path = tmp_path / "scores.json"
    path.write_text(text)
    with pytest.raises(CorruptFileError, match="scores.json is not a record of scores"):
        read_records(path)


def test_a_record_of_another_way_of_answering_is_left_out(tmp_path: Path) -> None:
    """The share of a bound would compare chosen options with written ones."""
    written, chosen = ({"value": 30.0, "answering": way} for way in ("writing", "likelihood"))
    path = tmp_path / "scores.json"
    path.write_text(json.dumps({"full": {"truth": written, "math": written, "own": written},
                                "lora": {"truth": chosen, "math": chosen, "unseen": {"value": 1.0}}}))  # fmt: skip
    assert {name: sorted(found) for name, found in read_records(path).items()} == {
        "full": ["math", "own"], "lora": ["truth", "unseen"]}  # fmt: skip


def test_a_record_is_read_from_where_it_is_named(tmp_path: Path) -> None:
    """--scores with a typo is an error; the default file may be missing."""
    path = tmp_path / "scores.json"
    path.write_text(json.dumps(FULL))
    assert read_records(path) == FULL
    with pytest.raises(MissingFileError, match="no record"):
        read_records(tmp_path / "other.json")

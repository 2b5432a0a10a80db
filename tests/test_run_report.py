"""Tables, SQL, reports and comparisons over stores that were filled by hand, so that every figure can be worked out."""

from __future__ import annotations

import csv
import errno
import html
import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import scipy.stats
from browser_pages import open_browser, open_page
from hypothesis import given
from hypothesis import strategies as st
from store_factory import fill, make_runs, write_run
from trace_factory import HOSTILE, make_trace

from fusionlab.errors import CorruptFileError, MissingFileError, OutputError, SweepError, UnknownNameError
from fusionlab.experiments import charts
from fusionlab.experiments.charts import Point, pareto_front, round_ticks
from fusionlab.experiments.remote_store import open_store
from fusionlab.experiments.report import write_report
from fusionlab.experiments.report_data import ReportOptions, gather_report, interval_of
from fusionlab.experiments.results import combine, gather, query, read_runs
from fusionlab.experiments.rows import build_row
from fusionlab.experiments.store import Store
from fusionlab.scores import bootstrap_mean


@pytest.fixture
def store(tmp_path: Path) -> Store:
    made = Store(tmp_path / "out")
    made.create()
    return made


# -- the table -----------------------------------------------------------------------------------


def test_every_run_is_a_row_whatever_the_types_of_its_values(store: Store) -> None:
    """A field may be whole here and a fraction there, a parameter text here and nothing there."""
    points: list[dict[str, Any]] = [{"a": 1, "b": None}, {"a": 0.5, "b": "x"}, {"a": "two", "c": [1, 2]}, {"a": True}]
    fields: list[dict[str, Any]] = [{"score": 1}, {"score": 0.5}, {"note": "n"}, {}]
    for run, some in zip(make_runs(points), fields, strict=True):
        write_run(store, run, fields=some)
    frame = read_runs(store).to_frame()
    assert frame["a"].tolist() == ["1", "0.5", "two", "true"] and frame["score"].tolist()[:2] == [1.0, 0.5]
    assert frame["b"].isna().tolist() == [True, False, True, True] and frame["c"].tolist()[2] == "[1, 2]"
    assert query(store, "SELECT count(*) AS n FROM runs WHERE b IS NULL")["n"].tolist() == [3]


def test_gathered_rows_are_the_single_ones_and_follow_the_folders(store: Store) -> None:
    """The gathered file is a cache: with it, without it, and with it out of date the table is the same."""
    runs = make_runs([{"x": n} for n in range(60)])
    for run in runs[:30]:
        write_run(store, run, fields={"score": run.values["x"] / 10})
    first = read_runs(store).to_frame()
    assert store.exists("runs.parquet")
    for run in runs[30:]:
        write_run(store, run, fields={"score": run.values["x"] / 10, "later": "new column"})
    second = read_runs(store).to_frame()
    assert second["x"].tolist() == list(range(60)) and second["later"].isna().sum() == 30
    assert second["key"].tolist()[:30] == first["key"].tolist()
    write_run(store, runs[5], fields={"score": 99.0}, replace=True)
    assert read_runs(store).to_frame()["score"].tolist()[5] == 99.0
    (store.folder / "runs.parquet").write_bytes(b"damaged")
    pd.testing.assert_frame_equal(read_runs(store).to_frame(), read_runs(store).to_frame())
    assert len(read_runs(store).to_frame()) == 60


def test_a_run_that_is_replaced_is_there_whole_at_every_moment(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """A repeat that cannot be put in its place leaves the old one; one cut off while it tidies, the new one."""
    run = make_runs([{"x": 1}])[0]
    write_run(store, run, fields={"score": 1.0})
    rename = os.rename

    def full(source: Path, target: Path) -> None:
        if Path(source).name.endswith(".lost"):
            raise OSError(errno.ENOSPC, "No space left on device")
        rename(source, target)

    with monkeypatch.context() as patch:
        patch.setattr("os.rename", full)
        with pytest.raises(OutputError, match="No space left"):
            store.commit(run.key, store.draft(run.key, "lost"), attempt="lost", failed=False, replace=True)
    assert read_runs(store).to_frame()["score"].tolist() == [1.0]

    def killed(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("shutil.rmtree", killed)
        with pytest.raises(KeyboardInterrupt):
            write_run(store, run, fields={"score": 2.0}, replace=True)
    assert read_runs(store).to_frame()["score"].tolist() == [2.0]
    store.sweep_partial({run.key})
    assert not store.names("partial")


def test_a_run_behind_a_url_is_replaced_too(tmp_path: Path) -> None:
    """There nothing can be renamed; what the old run had and the new one lacks is gone."""
    store = open_store(f"memory://{tmp_path.name}/replaced")
    run = make_runs([{"x": 1}])[0]
    write_run(store, run, fields={"score": 1.0}, items={"i": 1.0})
    assert read_runs(store).to_frame()["score"].tolist() == [1.0]
    write_run(store, run, fields={"score": 2.0}, replace=True)
    assert read_runs(store).to_frame()["score"].tolist() == [2.0] and not store.exists(f"runs/{run.key}/items.parquet")


def test_a_failure_that_is_retried_while_it_is_read_is_left_out(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its folder is listed, then its run succeeds on a worker and the folder is gone: no reason to end a sweep."""
    good, retried = make_runs([{"x": 1}, {"x": 2}])
    write_run(store, good, fields={"score": 1.0})
    write_run(store, retried, error={"kind": "E", "message": "m"})
    listed = store.failed()
    write_run(store, retried, fields={"score": 2.0})
    monkeypatch.setattr(store, "failed", lambda: listed)
    assert set(read_runs(store).to_frame()["status"]) == {"ok"}


def test_gathering_on_the_way_never_ends_a_sweep(store: Store) -> None:
    """It only fills a cache; whoever reads the table is told what is damaged."""
    key = write_run(store, make_runs([{"x": 1}])[0])
    (store.folder / "runs" / key / "row.parquet").write_bytes(b"PAR1damaged")
    gather(store)
    with pytest.raises(CorruptFileError, match=key):
        read_runs(store)


def test_a_damaged_row_is_named_and_not_left_out(store: Store) -> None:
    """A table that silently lacks a run would be believed."""
    key = write_run(store, make_runs([{"x": 1}])[0])
    (store.folder / "runs" / key / "row.parquet").write_bytes(b"PAR1damaged")
    with pytest.raises(CorruptFileError, match=key):
        read_runs(store)
    with pytest.raises(MissingFileError, match="holds no run"):
        read_runs(Store(store.folder.parent / "nowhere"))


@pytest.mark.parametrize(
    ("sql", "complaint"),
    [("SELECT scor FROM runs", "score"), ("SELEC 1", "syntax"), ("COPY (SELECT 1) TO 'x.csv'", "disabled"),
     ("SELECT * FROM read_csv('/etc/passwd')", "disabled"), ("ATTACH 'x.db'", "disabled"), ("", "asks nothing")],
)  # fmt: skip
def test_a_query_reads_the_tables_and_nothing_else(sql: str, complaint: str, store: Store) -> None:
    """DuckDB could read and write any file and fetch extensions; `results` only answers."""
    write_run(store, make_runs([{"x": 1}])[0], fields={"score": 1.0})
    with pytest.raises(SweepError, match=complaint):
        query(store, sql)
    assert not list(Path().glob("x.*"))


KINDS = st.sampled_from([None, 1, 0.5, "t", True])


@given(values=st.lists(st.tuples(KINDS, KINDS), min_size=1, max_size=6))
def test_rows_of_any_types_can_be_put_together(values: list[tuple[Any, Any]]) -> None:
    """Numbers meet in float, all else in text; no value is lost or moved."""
    rows = [build_row({"key": f"{n}"}, {"p": first}, {"f": second}) for n, (first, second) in enumerate(values)]
    table = combine(rows)
    assert table["key"].to_pylist() == [f"{n}" for n in range(len(values))]
    for column, place in (("p", 0), ("f", 1)):
        whole = [value[place] for value in values]
        read = table[column].to_pylist()
        assert [value is None for value in read] == [value is None for value in whole]
        if not pa.types.is_string(table.schema.field(column).type):
            assert all(a == b for a, b in zip(read, whole, strict=True))


# -- the report ----------------------------------------------------------------------------------


def test_groups_pool_repeats_and_differences_are_paired_by_item(store: Store) -> None:
    """By hand: half of the items gain one, so the difference is 0.5 and its interval the bootstrap of those numbers."""
    fill(store)
    data = gather_report(store, ReportOptions())
    assert data.metric == "score" and data.cost == "seconds_per_item" and data.percent
    assert data.varied == ["task", "method", "kl_scale"] and data.repeated == ["seed"]
    assert len(data.groups) == 8 and all(len(group.keys) == 2 for group in data.groups)
    assert data.baseline == {"method": "static"}
    for group in data.groups:
        exact = group.values["method"] == "exact"
        assert group.is_baseline is not exact and group.value == (0.5 if exact else 0.0)
        if exact:
            differences = np.array([1.0, 0.0] * 6)
            assert group.difference == 0.5 and group.pairs == 12
            assert group.difference_interval == pytest.approx(bootstrap_mean([differences]))


def test_runs_without_items_are_paired_by_repeat(store: Store) -> None:
    """A loss over five seeds has no items, and its seeds still make pairs."""
    for run in make_runs([{"rate": rate, "seed": seed} for rate in (1, 2) for seed in range(5)]):
        write_run(store, run, fields={"loss": 10.0 * run.values["seed"] + run.values["rate"]})
    data = gather_report(store, ReportOptions(lower=True))
    assert data.metric == "loss" and [group.difference for group in data.groups] == [None, 1.0]
    assert data.groups[1].pairs == 5 and data.groups[1].difference_interval == (1.0, 1.0)


@pytest.mark.parametrize("repeats", [2, 3, 5, 9])
def test_few_repeats_without_an_effect_are_marked_one_time_in_twenty(repeats: int) -> None:
    """Resampling two values, both of them positive, never gives a mean of 0: that is half of all draws."""
    draws = np.random.default_rng(1).normal(size=(1000, repeats))
    bounds = [interval_of([values]) for values in draws]
    assert 0.03 < np.mean([found is not None and not found[0] <= 0 <= found[1] for found in bounds]) < 0.07
    assert bounds[0] == pytest.approx(scipy.stats.ttest_1samp(draws[0], 0).confidence_interval(0.95))


def test_the_page_says_which_interval_it_shows(store: Store) -> None:
    """Three seeds have Student's interval, the items of a sweep the bootstrap's."""
    for run in make_runs([{"rate": rate, "seed": seed} for rate in (1, 2) for seed in range(3)]):
        write_run(store, run, fields={"loss": run.values["rate"] + (run.values["seed"] + 1) ** run.values["rate"]})
    data = gather_report(store, ReportOptions())
    assert [group.observations for group in data.groups] == [3, 3] and data.groups[1].pairs == 3
    low, high = data.groups[1].difference_interval or (0, 0)
    page = Path(write_report(store)[0]).read_text()
    assert low < 0 < high and f"{low:+.4g} to {high:+.4g} (t)" in page and "of fewer than 10 values" in page
    assert "class='better'" not in page and "class='worse'" not in page
    other = Store(store.folder.parent / "items")
    other.create()
    fill(other)
    assert " (t)<" not in Path(write_report(other)[0]).read_text()


def test_a_missing_baseline_leaves_no_difference_and_says_so(store: Store) -> None:
    """Another scale's baseline would mix two effects under one head; naming the scale too is a choice of one's own."""
    points = [("static", 1.0), ("exact", 1.0), ("exact", 2.0)]
    for run in make_runs([{"method": method, "kl_scale": scale, "seed": 0} for method, scale in points]):
        scores = {f"i{n}": run.values["kl_scale"] * (n % 2) / 2 for n in range(12)}
        write_run(store, run, items=scores, fields={"score": sum(scores.values()) / 12})
    data = gather_report(store, ReportOptions(baseline="method=static"))
    assert [group.difference for group in data.groups] == [None, 0.0, None] and data.groups[0].is_baseline
    page = Path(write_report(store, ReportOptions(baseline="method=static"))[0]).read_text()
    assert "1 line has no difference" in page and "--baseline" in page
    named = ReportOptions(baseline="method=static,kl_scale=1")
    assert [group.difference for group in gather_report(store, named).groups] == [None, 0.0, 0.25]
    assert "no difference" not in Path(write_report(store, named)[0]).read_text()


def test_a_list_can_be_the_baseline(store: Store) -> None:
    """notebooks/sweeps/experts.yaml varies lists, and a list has commas of its own."""
    points = [{"method": method, "experts": experts, "seed": 0}
              for method in ("evidence", "joint") for experts in (["trivia"], ["math", "trivia"])]  # fmt: skip
    for run in make_runs(points):
        write_run(store, run, fields={"score": 0.5})
    for text in ('experts=["math", "trivia"]', 'method=joint, experts=["math", "trivia"]',
                 'experts=["math", "trivia"],method=joint'):  # fmt: skip
        chosen = gather_report(store, ReportOptions(baseline=text)).baseline
        assert chosen["experts"] == '["math", "trivia"]' and chosen.get("method", "joint") == "joint"
    with pytest.raises(UnknownNameError, match="values of experts: "):
        gather_report(store, ReportOptions(baseline="experts=math,trivia"))


def test_of_several_versions_of_the_code_the_latest_counts(store: Store) -> None:
    """A folder that outlives a change of the code holds both; an average of them would describe neither."""
    for code, score, started in (("old", 0.1, "2026-01-01"), ("new", 0.9, "2026-02-01")):
        for run in make_runs([{"x": 1, "seed": 0}, {"x": 2, "seed": 0}], code=code):
            write_run(store, run, fields={"score": score}, started=started)
    data = gather_report(store, ReportOptions())
    assert [group.value for group in data.groups] == [0.9, 0.9] and data.outdated == 2
    assert "2 runs of earlier versions" in Path(write_report(store)[0]).read_text()


@pytest.mark.parametrize(
    ("options", "complaint"),
    [(ReportOptions(metric="scor"), "known: score"), (ReportOptions(cost="time"), "known: seconds"),
     (ReportOptions(baseline="method=best"), "values of method: static, exact"),
     (ReportOptions(baseline="mode=best"), "varied parameters: task, method, kl_scale"),
     (ReportOptions(baseline="method"), "values of method")],
)  # fmt: skip
def test_what_a_report_cannot_find_comes_with_what_there_is(options: ReportOptions, complaint: str, store: Store) -> None:
    """The names are the user's own, so the list is short."""
    fill(store)
    with pytest.raises(UnknownNameError, match=complaint):
        write_report(store, options)


def test_the_csv_holds_every_run(store: Store) -> None:
    """For whoever goes on elsewhere."""
    fill(store)
    page, table = write_report(store)
    rows = list(csv.DictReader(Path(table).read_text().splitlines()))
    assert len(rows) == 16 and {row["method"] for row in rows} == {"static", "exact"}
    assert Path(page).read_text().count("<svg") == 4  # curves of kl_scale and Pareto, a chart per task


def test_a_report_of_failures_only_is_still_a_report(store: Store) -> None:
    """The first evening's result, often."""
    error = {"kind": "ValueError", "message": "no", "cell": "raise", "cell_number": 2, "traceback": "Traceback ..."}
    for run in make_runs([{"x": 1}, {"x": 2}]):
        write_run(store, run, error=error)
    text = Path(write_report(store)[0]).read_text()
    assert "2 failed" in text and text.count("ValueError: no in cell [2]") == 2 and "<pre>raise</pre>" in text


@pytest.mark.browser
def test_the_page_needs_nothing_and_shows_every_text_as_text(store: Store, tmp_path: Path) -> None:
    """Parameters, outputs, tokens and errors may hold anything; the page has no script and no request to make."""
    runs = make_runs([{"method": text, "kl_scale": scale, "seed": 0} for text in HOSTILE[:3] for scale in (0.5, 1.0, 2.0)])
    traces = {item: make_trace(HOSTILE, experts=("<b>m</b>", "trivia"), prompt=item, seed=n)
              for n, item in enumerate(["<i>first</i>", "second"])}  # fmt: skip
    for place, run in enumerate(runs):
        write_run(store, run, seconds=place + 1.0, traces=traces, items={item: float(place % 2) for item in traces},
                  fields={"score": place / 10, "note": HOSTILE[0]})  # fmt: skip
    error = {"kind": "<img src=x>", "message": HOSTILE[1], "cell": HOSTILE[0], "cell_number": 3, "traceback": HOSTILE[2]}
    write_run(store, make_runs([{"method": HOSTILE[0], "kl_scale": 9.0, "seed": 0}])[0], error=error)
    page_file = Path(write_report(store)[0])
    with open_browser() as browser:
        page, watch = open_page(browser, page_file, width=1280, height=900)
        for heading in ("Comparison", "Response curves", "Quality and time", "Weights by token", "Failures", "All runs"):
            assert page.locator(f"h2:text-is('{heading}')").count() == 1
        assert page.locator("svg").count() == 4 and page.locator("img, script, b, i").count() == 0
        assert page.locator("article pre").first.text_content() == HOSTILE[0]
        page.locator("details summary").last.click()
        assert page.locator("details table").last.get_by_text(HOSTILE[0]).count() >= 1
        page.screenshot(path=tmp_path / "report.png", full_page=True)
        width = page.evaluate("document.documentElement.scrollWidth")
        assert width <= 1280, "nothing is cut off or pushed out"
        assert watch.quiet, watch


# -- charts --------------------------------------------------------------------------------------


@given(low=st.floats(-1e6, 1e6), span=st.floats(1e-6, 1e6))
def test_ticks_are_few_round_and_inside(low: float, span: float) -> None:
    """An axis with forty labels, or with one, says nothing."""
    high = low + span
    ticks = round_ticks(low, high)
    assert 2 <= len(ticks) <= 12 or high - low < 1e-9 * abs(low) + 1e-7
    assert all(low - 1e-6 * span - 1e-9 <= tick <= high + 1e-6 * span + 1e-9 for tick in ticks)


@given(points=st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=1, max_size=12), lower=st.booleans())
def test_the_front_is_what_nothing_beats(points: list[tuple[int, int]], lower: bool) -> None:
    """Against the definition, written out."""
    sign = -1 if lower else 1

    def beaten(a: tuple[int, int]) -> bool:
        return any(b[0] <= a[0] and sign * b[1] >= sign * a[1] and b != a for b in points)

    front = {(point.x, point.y) for point in pareto_front([Point(*pair) for pair in points], lower=lower)}
    assert front == {pair for pair in points if not beaten(pair)}


def test_a_chart_is_well_formed_whatever_it_is_given() -> None:
    """One broken character would blank the whole picture."""
    import xml.etree.ElementTree as tree

    series = [charts.Series(text, [Point(0, 1, 0.5, 2, text), Point(float("nan"), 1), Point(1, 1)]) for text in HOSTILE]
    drawn = [charts.line_chart(HOSTILE[0], series, x_title=HOSTILE[1], y_title="\x00"),
             charts.pareto_chart("", series[:1], x_title="", y_title=""),
             charts.line_chart("flat", [charts.Series("a", [Point(1, 1)])], x_title="x", y_title="y"),
             charts.weight_strip([(HOSTILE[0], make_trace(HOSTILE)), ("empty", make_trace([]))])]  # fmt: skip
    for text in drawn:
        tree.fromstring(text)
        assert not re.search(r"<(img|script)", text)
    words = [html.unescape(word) for word in re.findall(r"<title>(.*?)</title>", drawn[3])]
    assert len(words) == 2 * len(HOSTILE)

"""Comparisons of two stores that were filled by hand: what is paired, what an interval rests on, what passes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.stats
from store_factory import fill, make_runs, write_run

from fusionlab.errors import FusionError, SweepError, UnknownNameError
from fusionlab.experiments.compare import BETTER, OPEN, WORSE, compare_stores
from fusionlab.experiments.store import Store


@pytest.fixture
def store(tmp_path: Path) -> Store:
    made = Store(tmp_path / "out")
    made.create()
    return made


def two_stores(
    tmp_path: Path, *, shift: float, items: int = 40, methods: tuple[str, ...] = ("exact",)
) -> tuple[Store, Store]:
    """A and B of the same runs; B's scores are greater by `shift` where there is room."""
    stores = []
    for name, moved in (("a", 0.0), ("b", shift)):
        made = Store(tmp_path / name)
        made.create()
        fill(made, methods=methods, items=items, shift=moved)
        stores.append(made)
    return stores[0], stores[1]


def test_a_better_version_passes_and_its_changed_items_are_listed(tmp_path: Path) -> None:
    """Half of the items were 0 and are 0.25 now, in each of eight pairs of runs."""
    a, b = two_stores(tmp_path, shift=0.25)
    found = compare_stores(a, b)
    assert found.verdict == BETTER and found.passes() and found.passes(strict=True)
    assert found.difference == pytest.approx(12.5) and (found.run_pairs, found.item_pairs, found.items) == (8, 320, 80)
    assert len(found.changed) == 160 and {(c.score_a, c.score_b) for c in found.changed} == {(0.0, 0.25)}
    assert "B is better; passes" in found.describe() and "160 better in B, 0 worse" in found.describe()


def test_a_worse_version_fails_unless_the_drop_is_allowed(tmp_path: Path) -> None:
    """What a pipeline asks: may this be merged?"""
    b, a = two_stores(tmp_path, shift=0.25)
    found = compare_stores(a, b)
    assert found.verdict == WORSE and not found.passes() and found.passes(max_drop=20)
    assert "FAILS" in found.describe() and found.passes(max_drop=12.5) and not found.passes(max_drop=12.5, strict=True)


def test_equal_versions_show_no_difference(tmp_path: Path) -> None:
    """No difference shown is no proof of equality, and says so."""
    a, b = two_stores(tmp_path, shift=0.0)
    found = compare_stores(a, b)
    assert found.verdict == OPEN and found.passes() and not found.changed and found.interval == (0.0, 0.0)


def fill_differences(a: Store, b: Store, points: list[dict[str, Any]], drops: Any) -> None:
    """A answers every item rightly; B loses `drops` of them, the same in every run."""
    for run in make_runs(points):
        for store, scores in ((a, np.ones(len(drops))), (b, 1 - np.asarray(drops, float))):
            write_run(store, run, items={f"i{n}": score for n, score in enumerate(scores)},
                      fields={"score": float(scores.mean())})  # fmt: skip


def empty_stores(tmp_path: Path) -> tuple[Store, Store]:
    """A and B."""
    stores = Store(tmp_path / "a"), Store(tmp_path / "b")
    for one in stores:
        one.create()
    return stores


def test_the_same_items_in_several_pairs_of_runs_are_no_further_evidence(tmp_path: Path) -> None:
    """Forty items answered at six scales are forty items: repeating them must not narrow the interval."""
    drops = [1.0] * 13 + [-1.0] * 10 + [0.0] * 17
    found = []
    for name, scales in (("one", [1.0]), ("six", [0.0, 0.25, 0.5, 1.0, 1.5, 2.0])):
        a, b = empty_stores(tmp_path / name)
        fill_differences(a, b, [{"task": "math", "kl_scale": scale, "seed": 0} for scale in scales], drops)
        found.append(compare_stores(a, b))
    one, six = found
    assert one.interval == six.interval and one.difference == six.difference == pytest.approx(-7.5)
    assert six.verdict == OPEN and six.passes() and (six.run_pairs, six.item_pairs, six.items) == (6, 240, 40)
    assert six.value_b - six.value_a == pytest.approx(six.difference)


def test_tasks_count_the_same_and_repeats_that_draw_items_add_items(tmp_path: Path) -> None:
    """Against the definition, written out: an item's mean over its runs, a task's over its items, the mean of both."""
    a, b = empty_stores(tmp_path)
    drops = {
        ("math", 0): {"i0": 1.0, "i1": 0.0},
        ("math", 1): {"i1": 1.0, "i2": 0.0},
        ("trivia", 0): {"i0": 0.0, "i1": 1.0},
    }
    for run in make_runs([{"task": task, "seed": seed} for task, seed in drops]):
        lost = drops[run.values["task"], run.values["seed"]]
        for store, scores in ((a, dict.fromkeys(lost, 1.0)), (b, {item: 1 - drop for item, drop in lost.items()})):
            write_run(store, run, items=scores, fields={"score": float(np.mean(list(scores.values())))})
    found = compare_stores(a, b)
    assert found.difference == pytest.approx(-100 * ((1 + 0.5 + 0) / 3 + 0.5) / 2)
    assert (found.items, found.item_pairs) == (5, 6)


def test_a_pair_of_runs_without_the_metric_is_left_out_and_counted(tmp_path: Path) -> None:
    """One run that recorded no score made the difference nan and the verdict a failure."""
    a, b = empty_stores(tmp_path)
    for run in make_runs([{"x": x, "seed": 0} for x in range(12)]):
        write_run(a, run, fields={"loss": 1.0 + run.values["x"] / 100})
        write_run(b, run, fields={} if run.values["x"] == 3 else {"loss": float("nan") if run.values["x"] == 4 else 0.5})
    found = compare_stores(a, b, metric="loss", lower=True)
    assert found.verdict == BETTER and found.passes(strict=True) and (found.run_pairs, found.unmeasured) == (10, 2)
    assert "left out: 2 pairs of runs where one has no loss" in found.describe()
    _, other = empty_stores(tmp_path / "other")
    for run in make_runs([{"x": x, "seed": 0} for x in range(12)]):
        write_run(other, run, fields={"note": "none"})
    with pytest.raises(UnknownNameError, match="B recorded no 'loss'"):
        compare_stores(a, other, metric="loss")


def test_a_few_pairs_of_runs_that_all_lose_a_little_show_nothing_yet(tmp_path: Path) -> None:
    """Three seeds fall the same way one time in four without any effect."""
    a, b = empty_stores(tmp_path)
    for run in make_runs([{"seed": seed} for seed in range(3)]):
        write_run(a, run, fields={"score": 0.5})
        write_run(b, run, fields={"score": 0.5 - 0.01 * (run.values["seed"] + 1)})
    found = compare_stores(a, b)
    assert found.verdict == OPEN and found.passes() and not found.passes(strict=True) and found.items == 0
    assert found.interval == pytest.approx((-2 - 4.3027 / 3**0.5, -2 + 4.3027 / 3**0.5), abs=1e-3)
    assert "95 % interval -4.484 to +0.4841 (Student's t over 3 pairs of runs)" in found.describe()


@pytest.mark.parametrize("change", [-0.001, 0.0, 0.001])
def test_one_pair_of_runs_shows_nothing(change: float, tmp_path: Path) -> None:
    """By default nothing shown passes; who asks for proof has none."""
    a, b = empty_stores(tmp_path)
    run = make_runs([{"seed": 0}])[0]
    write_run(a, run, fields={"score": 0.5})
    write_run(b, run, fields={"score": 0.5 + change})
    found = compare_stores(a, b)
    assert found.interval is None and found.verdict == OPEN and found.passes() and not found.passes(strict=True)
    assert "a single pair of runs shows nothing" in found.describe()
    assert "no difference is shown; FAILS" in found.describe(strict=True)


def test_few_items_in_two_tasks_have_the_interval_of_the_pooled_t_test(tmp_path: Path) -> None:
    """Two tasks whose means are averaged: half the interval of a t-test's sum, the spread pooled over both."""
    a, b = empty_stores(tmp_path)
    drops = {"math": [0.1, 0.3, 0.2, 0.6], "trivia": [0.0, 0.4, 0.5]}
    for run in make_runs([{"task": task, "seed": 0} for task in drops]):
        lost = drops[run.values["task"]]
        write_run(a, run, items={f"i{n}": 1.0 for n in range(len(lost))}, fields={"score": 1.0})
        write_run(b, run, items={f"i{n}": 1 - drop for n, drop in enumerate(lost)}, fields={"score": 0.5})
    test = scipy.stats.ttest_ind(drops["math"], [-drop for drop in drops["trivia"]]).confidence_interval(0.95)
    assert compare_stores(a, b).interval == pytest.approx((-50 * test.high, -50 * test.low))
    assert "Student's t over 7 items" in compare_stores(a, b).describe()


def test_an_item_without_a_score_is_no_pair(tmp_path: Path) -> None:
    """One answer that could not be judged made the difference of all others nan."""
    a, b = empty_stores(tmp_path)
    run = make_runs([{"x": 1, "seed": 0}])[0]
    write_run(a, run, fields={"score": 0.5}, items={f"i{n}": 0.5 for n in range(20)})
    write_run(b, run, fields={"score": 0.9}, items={f"i{n}": float("nan") if n == 3 else 0.9 for n in range(20)})
    found = compare_stores(a, b)
    assert found.difference == pytest.approx(40) and found.items == 19 and len(found.changed) == 19


def test_a_whole_number_is_paired_with_itself_beside_a_missing_value(tmp_path: Path) -> None:
    """A column of 3 and nothing reads as 3.0; a sweep without the nothing holds 3."""
    a, b = empty_stores(tmp_path)
    for store, budgets in ((a, [None, 3, 4]), (b, [3, 4])):
        for run in make_runs([{"budget": budget, "seed": 0} for budget in budgets]):
            write_run(store, run, fields={"score": 0.5})
    found = compare_stores(a, b)
    assert found.run_pairs == 2 and found.lone == (1, 0)


def test_compare_judges_the_newest_version_of_each_run_as_the_report_does(tmp_path: Path) -> None:
    """Here the newest stands first in the sweep's order; and of one that failed the older success does not count."""
    a, b = empty_stores(tmp_path)
    points = [{"x": x, "seed": 0} for x in range(12)]
    for run in make_runs(points):
        write_run(a, run, fields={"score": 0.5})
    for run in make_runs(points, code="new"):
        error = {"kind": "ValueError", "message": "no"} if run.values["x"] == 0 else None
        write_run(b, run, fields={"score": 0.9}, started="2026-12-01", error=error)
    for run in make_runs([points[0], *points], code="old")[1:]:
        write_run(b, run, fields={"score": 0.1}, started="2026-11-01")
    found = compare_stores(a, b)
    assert found.verdict == BETTER and found.value_b == pytest.approx(90.0)
    assert (found.run_pairs, found.lone, found.outdated) == (11, (1, 0), (0, 12))
    assert "left out: 12 runs of earlier versions of the code, 0 of A and 12 of B" in found.describe()
    old = compare_stores(a, b, where_b="code = 'old'")
    assert old.verdict == WORSE and old.run_pairs == 12 and old.outdated == (0, 0)


def test_two_parts_of_one_sweep_are_compared_over_the_rest(store: Store) -> None:
    """Method against method: runs are paired by task, scale and seed."""
    fill(store)
    found = compare_stores(store, store, where_a="method = 'static'", where_b="method = 'exact'")
    assert found.apart == {"method": ("static", "exact")} and found.run_pairs == 8 and found.verdict == BETTER
    swapped = compare_stores(store, store, where_a="method = 'static'", where_b="method = 'exact'", lower=True)
    assert swapped.verdict == WORSE and not swapped.passes()


@pytest.mark.parametrize(
    ("options", "complaint"),
    [({"where_b": "kl_scale > 9"}, "no finished run where"), ({"where_a": "nonsense"}, "nonsense"),
     ({"metric": "speed"}, "known: score")],
)  # fmt: skip
def test_what_cannot_be_compared_is_an_error(options: dict[str, Any], complaint: str, store: Store) -> None:
    """An empty comparison that passes would let anything through."""
    fill(store)
    with pytest.raises(FusionError, match=complaint):
        compare_stores(store, store, **options)
    other = Store(store.folder.parent / "other")
    other.create()
    for run in make_runs([{"task": "x", "seed": 0}, {"task": "y", "seed": 0}], notebook="another"):
        write_run(other, run, fields={"score": 1.0})
    with pytest.raises(SweepError, match="no run of A has a partner in B"):
        compare_stores(store, other)

"""The study's analyses on frames small enough to work out by hand."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pandas
import pytest
from tiny_tasks import make_row
from trace_factory import make_trace

from fusionlab.cells import AnswerRow, as_frame
from fusionlab.study import costs, figures, interference, robustness, tables, trajectories, weights
from fusionlab.study.claims import (
    AIMS,
    CLAIMS,
    DIFFERS,
    FAILS,
    HOLDS,
    UNKNOWN,
    Measured,
    above_zero,
    at_least,
    at_most,
    claims_table,
    every,
    not_below,
    within,
)  # fmt: skip
from fusionlab.study.measure import Answers, Difference, Estimate, Way, compare_estimates
from fusionlab.study.plan import FULL, QUICK, expert_sets, plan_study
from fusionlab.study.report import Inputs, analyse, to_html, to_markdown
from fusionlab.study.table import frame_to_html, frame_to_markdown, make_table
from fusionlab.tasks import load_task

TEAM = "math+trivia"
GPU = "NVIDIA H100 80GB HBM3"


def cell(task: str, method: str, scores: list[float], **fields: Any) -> list[AnswerRow]:
    """One row per score; a second per answer and ten tokens unless said otherwise."""
    own = {"large": "", "small": ""}.get(method, task)
    several = method in ("paper-multi", "evidence", "merged", "merged-dynamic", "average", "joint")
    plain = {"task": task, "method": method, "experts": TEAM if several else own, "seen": task in TEAM, "seconds": 1.0,
             "tokens": 10} | fields  # fmt: skip
    return [make_row(item=f"i{index}", score=score, **plain) for index, score in enumerate(scores)]


def study(*cells: list[AnswerRow], recorded: Any = None) -> Answers:
    """Answers of some cells."""
    return Answers(as_frame([row for rows in cells for row in rows]), recorded or {})


def full(**scores: float) -> dict[str, Any]:
    """A record of full fine-tuning: task -> percent."""
    return {"large-full": {task: {"value": value, "standard_error": 1.0, "n": 4} for task, value in scores.items()}}


PAIR = study(
    cell("math", "large", [0, 0, 0, 0], seconds=2.0),
    cell("math", "proxy-1", [1, 0, 0, 1]),
    cell("math", "dynamic", [1, 1, 0, 1], seconds=4.0),
    cell("trivia", "large", [0, 1], seconds=2.0),
    cell("trivia", "proxy-1", [1, 1]),
    cell("trivia", "dynamic", [0, 1], seconds=4.0, tokens=20),
    cell("unseen", "large", [1, 0, 1, 0]),
    cell("unseen", "evidence", [1, 0, 1, 1]),
    recorded=full(math=100.0, trivia=80.0),
)


# -- measure -------------------------------------------------------------------------------------


def test_an_average_weighs_tasks_not_items() -> None:
    """A task with many items must not drown the others: (75 + 50) / 2, errors added in squares."""
    found = PAIR.estimate(["math", "trivia"], Way("dynamic"))
    assert found is not None
    assert found.value == 62.5 and found.n == 6
    assert found.standard_error == pytest.approx(math.hypot(25.0, 50.0) / 2)


def test_a_difference_pairs_items_within_tasks() -> None:
    """math: +1 on one of four items, trivia: -1 on one of two; (25 - 50) / 2."""
    gap = PAIR.difference(["math", "trivia"], Way("dynamic"), Way("proxy-1"))
    assert gap is not None
    assert gap.value == -12.5 and gap.n == 6
    assert gap.low <= gap.value <= gap.high


def test_what_was_not_answered_is_none_and_not_zero() -> None:
    """A missing cell in an average would be a wrong figure."""
    assert PAIR.estimate(["math", "unseen"], Way("dynamic")) is None
    assert PAIR.estimate([], Way("large")) is None
    assert PAIR.difference(["math"], Way("dynamic"), Way("joint")) is None
    assert PAIR.bound(["math", "unseen"], "large-full") is None


def test_experts_of_a_way_are_found_by_its_method() -> None:
    """Tables name methods; whose experts ran is in the rows."""
    assert PAIR.team == TEAM and PAIR.seen == ["math", "trivia"] and PAIR.unseen == ["unseen"]
    assert PAIR.cell("unseen", Way("evidence")) is not None
    assert PAIR.cell("unseen", Way("evidence", experts="math")) is None


def test_a_share_is_over_the_tasks_that_have_a_bound() -> None:
    """Where full fine-tuning was measured on one task of two, the share is that task's."""
    assert PAIR.share(PAIR.seen, Way("dynamic")) == pytest.approx(100 * 62.5 / 90)
    partly = Answers(PAIR.rows, full(math=100.0))
    assert partly.share(partly.seen, Way("dynamic")) == 75.0
    assert Answers(PAIR.rows).share(PAIR.seen, Way("dynamic")) is None


def test_estimates_without_pairs_are_compared_by_their_errors() -> None:
    """3-4-5: the error of the difference is 5."""
    gap = compare_estimates(Estimate(50, 3, 9), Estimate(40, 4, 5))
    assert (gap.value, gap.n) == (10, 5)
    assert gap.low == pytest.approx(10 - 9.8)


# -- tables --------------------------------------------------------------------------------------


def test_table_1_holds_tasks_average_differences_and_share() -> None:
    """The line of `dynamic`, figure by figure."""
    table = tables.single_expert_table(PAIR)
    average = table.data[(table.data["label"] == Way("dynamic").label) & (table.data["task"] == "average")].iloc[0]
    assert (average["value"], average["proxy_difference"], average["large_difference"]) == (62.5, -12.5, 37.5)
    assert average["share_of_full"] == pytest.approx(100 * 62.5 / 90)
    line = table.shown[table.shown[""] == Way("dynamic").label].iloc[0]
    assert line["math (4)"] == "75.0 ± 25.0" and line["of full, %"] == "69.4"
    assert "large, full fine-tuning" in set(table.shown[""])


def test_a_line_of_fewer_items_has_no_share_and_says_so_in_its_average() -> None:
    """An easier part of the items must not look like a better method; differences are on common items."""
    answers = study(
        cell("math", "large", [0, 0, 0, 0]), cell("math", "dynamic", [1, 1, 0, 0]), cell("math", "predicted", [1, 1]),
        cell("trivia", "large", [0, 0]), cell("trivia", "dynamic", [1, 0]), cell("trivia", "predicted", [1, 0]),
        recorded=full(math=100.0, trivia=100.0),
    )  # fmt: skip
    shown = tables.single_expert_table(answers).shown.set_index("")
    line = shown.loc[Way("predicted").label]
    assert line["average"].endswith("(n = 4)") and line["of full, %"] == ""
    assert answers.share(answers.seen, Way("predicted")) is None
    assert shown.loc[Way("dynamic").label, "of full, %"] == "50.0"


def test_a_value_of_fewer_items_says_so() -> None:
    """A cell that was stopped early must not pass for a whole one."""
    answers = study(cell("math", "large", [0, 1, 0, 1]), cell("math", "dynamic", [1, 1]))
    assert tables.single_expert_table(answers).shown["math (4)"].tolist() == ["50.0 ± 28.9", "100.0 ± 0.0 (n = 2)"]


def test_table_2_keeps_the_unseen_out_of_the_average() -> None:
    """What no expert knows is a column of its own, compared with the large model."""
    table = tables.several_experts_table(PAIR)
    line = table.shown[table.shown[""] == Way("evidence").label].iloc[0]
    assert line["unseen (4)"] == "75.0 ± 25.0" and line["average"] == "" and line["Δ unseen"].startswith("+25.0 [")
    assert tables.several_experts_table(PAIR).shown["average"].tolist()[0] == "25.0 ± 25.0"


def test_table_3_compares_time_per_answer_and_per_step() -> None:
    """trivia: 4 s for 20 tokens against 2 s for 10: twice the time, the same speed."""
    data = tables.time_table(PAIR).data.set_index(["method", "task"])
    assert data.loc[("dynamic", "math"), ["relative", "relative_per_step"]].tolist() == [2.0, 2.0]
    assert data.loc[("dynamic", "trivia"), ["relative", "relative_per_step"]].tolist() == [2.0, 1.0]
    assert data.loc[("large", "math"), "seconds_per_1000"] == 2000


def test_a_step_costs_what_it_costs_whoever_is_still_writing() -> None:
    """One long answer beside short ones holds the batch up: 20 steps in 8 s, as of a method whose answers are all long."""
    uneven = cell("math", "large", [0, 0, 0, 0], seconds=2.0)
    uneven = [replace(row, tokens=20 if index == 0 else 1) for index, row in enumerate(uneven)]
    answers = study(uneven, cell("math", "dynamic", [1, 1, 1, 1], seconds=4.0, tokens=20))
    data = tables.time_table(answers).data.set_index("method")
    assert data.loc["large", "ms_per_step"] == 400.0
    assert data.loc["dynamic", "relative_per_step"] == 2.0


def test_no_time_per_step_where_nothing_is_written() -> None:
    """Reading options is no decoding: claims on the price of a token are decided by the tasks that are written."""
    compared = {"answering": "likelihood", "seconds": 9.0}
    answers = study(cell("math", "large", [0, 1]), cell("math", "dynamic", [0, 1], seconds=2.0),
                    cell("trivia", "large", [0, 1]), cell("trivia", "dynamic", [0, 1], **compared),
                    cell("truth", "large", [0, 1], **compared | {"seconds": 3.0}),
                    cell("truth", "dynamic", [0, 1], **compared))  # fmt: skip
    data = tables.time_table(answers).data.set_index(["method", "task"])
    assert data.loc[("dynamic", "truth"), "relative"] == 3.0
    assert data.loc[("dynamic", "truth"), ["ms_per_step", "relative_per_step"]].isna().all()
    assert tables.time_table(answers).shown["of large, per step"].tolist()[1] == "2.00"
    claim = next(claim for claim in CLAIMS if "three times as long" in claim.text)
    verdict = claim.judge(Measured(answers))
    assert verdict.word == HOLDS and verdict.measured == "2.00 (math only)"


def test_times_of_two_machines_are_not_compared() -> None:
    """A large model on a GPU and a fusion on a laptop give a ratio of machines, not of methods."""
    answers = study(cell("math", "large", [0, 1], device=GPU), cell("math", "dynamic", [1, 1], device="cpu"))
    table = tables.time_table(answers)
    assert math.isnan(table.data.set_index("method").loc["dynamic", "relative"])
    assert table.shown["math, s"].tolist() == ["1,000.0 (H100)", "1,000.0 (cpu)"]


def test_an_empty_table_says_that_nothing_was_measured() -> None:
    """An empty grid looks like a fault."""
    table = make_table("x", "X", "Note.", [], [])
    assert "Not measured yet." in table.to_markdown() and "Not measured yet." in table._repr_html_()


def test_tables_escape_what_they_show() -> None:
    """Names of experts and tasks are the user's."""
    frame = pandas.DataFrame([{"a|b": "<b>|", "n": "+1.0"}])
    assert "&lt;b&gt;" in frame_to_html(frame)
    assert frame_to_markdown(frame).splitlines() == ["| a|b | n |", "| --- | ---: |", "| <b>\\| | +1.0 |"]


# -- weights -------------------------------------------------------------------------------------

ABLATION = study(
    cell("math", "large", [0, 0, 0, 0]), cell("math", "proxy-0.5", [1, 0, 0, 0]), cell("math", "proxy-1", [0, 1, 1, 0]),
    cell("math", "dynamic", [1, 1, 0, 0]), cell("math", "dynamic-grid", [1, 1, 1, 0]),
)  # fmt: skip


def test_the_best_weight_per_item_is_the_headroom() -> None:
    """Some weight solves items 0, 1, 2: 75 against 50; the grid reaches all of it, proxy 1 none."""
    data = weights.weight_table(ABLATION).data
    data = data[data["task"] == "math"].set_index("label")
    assert data.loc[weights.BEST_PER_ITEM, "value"] == 75.0
    assert data.loc[Way("dynamic-grid").label, "share_of_headroom"] == 100.0
    assert data.loc[Way("proxy-1").label, "share_of_headroom"] == 0.0
    assert data.loc[Way("proxy-0.5").label, ["headroom", "share_of_headroom"]].tolist() == [25.0, -100.0]
    assert weights.best_weights(ABLATION) == {"math": 1.0}


def test_headroom_is_on_common_items() -> None:
    """Dynamic answered an item more, and right; on the two in common it gets one of two that some weight gets."""
    answers = study(cell("math", "large", [0, 0]), cell("math", "proxy-1", [1, 1]), cell("math", "dynamic", [1, 0, 1, 1]))
    data = weights.weight_table(answers).data
    assert data[data["label"] == weights.BEST_PER_ITEM]["headroom"].tolist() == [50.0, 50.0]


def test_no_headroom_has_no_shares() -> None:
    """Dividing by nothing would rank methods by noise."""
    same = study(cell("math", "large", [0, 0]), cell("math", "proxy-1", [1, 0]), cell("math", "dynamic", [1, 0]))
    assert weights.weight_table(same).data["share_of_headroom"].isna().all()


# -- robustness ----------------------------------------------------------------------------------


def test_spread_is_over_settings_on_common_items() -> None:
    """Two phrasings of which one has an item more: 100 and 50 on the two in common."""
    answers = study(cell("math", "large", [1, 1]), cell("math", "large", [1, 0, 1], phrasing=1),
                    cell("math", "large", [1, 1], shots=5), cell("math", "large", [0, 0], shots=5, seed=1),
                    cell("math", "large", [1, 0], shots=5, phrasing=1))  # fmt: skip
    rows = {(row["dimension"], row["shots"]): row for row in robustness.spread_cells(answers)}
    assert set(rows) == {("shots", -1), ("seed", 5), ("phrasing", 0)}
    found = rows["phrasing", 0]
    assert (found["n"], found["mean"], found["lowest"], found["highest"]) == (2, 75.0, 50.0, 100.0)
    assert found["deviation"] == pytest.approx(50 / math.sqrt(2))
    assert rows["shots", -1]["values"] == "0: 100.0, 5: 100.0"


def test_a_part_of_the_experts_is_no_setting() -> None:
    """`evidence` with two of three experts is another method's row, not a phrasing."""
    answers = study(cell("math", "evidence", [1]), cell("math", "evidence", [0], experts="math", phrasing=1))
    assert robustness.spread_cells(answers) == []


# -- trajectories --------------------------------------------------------------------------------


def test_weights_by_position_are_means_over_answers() -> None:
    """Two answers of three and six tokens, their weights straight from the traces."""
    traces = [make_trace([" a", " b", "\n"], seed=1), make_trace([" a", " b", " c", " d", " e", "\n"], seed=2)]
    frame = trajectories.weight_rows(traces, ["i0", "i1"], task="math", loaded="all")
    assert len(frame) == 2 * (3 + 6)
    means = trajectories.mean_by_position(frame)
    first = means[(means["expert"] == "math") & (means["position"] == 0)].iloc[0]
    assert first["alpha"] == pytest.approx((traces[0].alpha[0, 0] + traces[1].alpha[0, 0]) / 2)
    assert first["answers"] == 2
    data = trajectories.trajectory_table(frame).data.set_index("expert")
    assert data.loc["math", "first_token"] == pytest.approx(first["alpha"])
    last = [traces[0].alpha[2, 0], *traces[1].alpha[4:, 0]]
    assert data.loc["math", "last_third"] == pytest.approx(sum(last) / 3)


# -- interference --------------------------------------------------------------------------------

LIKENESS = pandas.DataFrame([
    {"task": "math", "first": "math", "second": "trivia", "covariance": 3.0, "variance_first": 4.0, "variance_second": 9.0,
     "cosine": 0.4, "positions": 1},
    {"task": "math", "first": "math", "second": "math", "covariance": 4.0, "variance_first": 4.0, "variance_second": 4.0,
     "cosine": 1.0, "positions": 1},
])  # fmt: skip


def test_a_pooled_cosine_is_that_of_the_sums() -> None:
    """3 / (2 * 3), and sizes are roots of mean variances."""
    row = interference.likeness_table(LIKENESS).data.iloc[0]
    assert (row["pooled"], row["size_first"], row["size_second"]) == (0.5, 2.0, 3.0)
    assert interference.size_table(LIKENESS).shown.to_dict("records") == [{"expert": "math", "on math": "2.00"}]


def test_removing_and_adding_are_told_apart() -> None:
    """Of three experts: two are `without` one (against all), and the own with one more is `own +` (against own)."""
    names = "math+trivia+truth"
    answers = study(
        cell("math", "evidence", [1, 0], experts=names), cell("math", "evidence", [0, 0], experts="trivia+truth"),
        cell("math", "evidence", [1, 1], experts="math+trivia"), cell("math", "dynamic", [0, 1]),
    )  # fmt: skip
    rows = {row["change"]: row["difference"] for row in interference.subsets_table(answers).data.to_dict("records")}
    assert rows == {"without math": -50.0, "without truth": 50.0, "own + trivia": 50.0}
    shown = interference.subsets_table(answers).shown
    assert shown["experts"].tolist() == ["without math", "without truth", "own + trivia"]


def test_a_change_on_few_items_says_so() -> None:
    """A difference of nought over 32 of 300 items is weaker than one over all."""
    row = {"difference": 0.0, "low": 0.0, "high": 0.0, "n": 2}
    assert interference.changed_text(row, 4) == "+0.0 [+0.0, +0.0] (n = 2)"
    assert interference.changed_text(row, 2) == "+0.0 [+0.0, +0.0]"


# -- costs ---------------------------------------------------------------------------------------

TRAINING = {"small": {"corpus_seconds": 100.0, "seconds": 300.0},
            "experts": {"math": {"seconds": 50.0, "peak_bytes": 2e9}, "trivia": {"seconds": 70.0,
                        "peak_bytes": 1e9}}}  # fmt: skip
TUNED = {
    "large-full": {"math": {"value": 90.0, "standard_error": 1.0, "n": 4, "passes": 4, "seconds": 85.1},
                   "trivia": {"value": 50.0, "standard_error": 1.0, "n": 4, "passes": 8}},
    "large-lora": {"math": {"value": 80.0, "standard_error": 1.0, "n": 4, "passes": 2},
                   "trivia": {"value": 55.0, "standard_error": 1.0, "n": 4, "passes": 8}},
}  # fmt: skip
SPENT = {"large-full": {"math": {"value": 100, "seconds": 300.0, "peak_bytes": 9e9},
                        "trivia": {"value": 80, "seconds": 320.0, "peak_bytes": 8e9}}}  # fmt: skip


def test_break_even_follows_its_formulae() -> None:
    """F = 400 + 120, G = 620; a = 4 s, b = 2 s (math) and 4 s (trivia, at the fused answer's length)."""
    answers = Answers(PAIR.rows.assign(device=GPU), SPENT)
    ledger = costs.ledger_table(TRAINING, SPENT, answers.seen, price=3.6)
    spent = ledger.data.set_index("part")
    assert spent.loc["experts (adapters on small)", ["runs", "seconds", "peak_bytes"]].tolist() == [2, 120.0, 2e9]
    assert spent.loc["large, full fine-tuning", "price"] == pytest.approx(0.62)
    assert costs.answer_seconds(answers) == (4.0, 3.0)
    found = costs.break_even_table(answers, ledger, price=3.6).data.set_index("quantity")["value"]
    assert found.filter(like="k*").iloc[0] == pytest.approx(400 / 250)
    assert found.filter(like="L*").iloc[0] == pytest.approx(520 / 620)
    assert found.filter(like="N*").iloc[0] == pytest.approx(100 / 1.0)
    assert found["1,000 answers by dynamic fusion"] == pytest.approx(4.0)
    on_cpu = costs.break_even_table(Answers(PAIR.rows, SPENT), ledger).data["quantity"]
    assert not on_cpu.str.contains("N*", regex=False).any()


def test_answers_of_two_machines_have_no_price() -> None:
    """A mean over a laptop's and a GPU's seconds is nobody's."""
    mixed = PAIR.rows.assign(device=["cpu", *[GPU] * (len(PAIR.rows) - 1)])
    assert all(map(math.isnan, costs.answer_seconds(Answers(mixed))))


def test_only_written_answers_have_a_price() -> None:
    """Options that were compared on a laptop leave the price of what a GPU wrote alone."""
    compared = {"answering": "likelihood", "device": "cpu", "seconds": 9.0}
    rows = [PAIR.rows.assign(device=GPU), as_frame([*cell("truth", "large", [0, 1], **compared),
                                                         *cell("truth", "dynamic", [0, 1], **compared)])]  # fmt: skip
    answers = Answers(pandas.concat(rows, ignore_index=True))
    assert costs.priced_tasks(answers) == ["math", "trivia"] and costs.on_gpu(answers)
    assert costs.answer_seconds(answers) == (4.0, 3.0)
    assert "Answers: math, trivia (" in costs.break_even_table(answers, costs.ledger_table({}, {}, [])).note


def test_what_4_bits_cost_stands_beside_what_was_trained() -> None:
    """Scores of experts and the small model's distance, before and after storage; nothing where nothing was trained."""
    score = {"percent": 50.0, "standard_error": 2.0, "n": 4}
    training = {"small": {"kl_nats": {key: {"overall": value, "standard_error": 0.01}
                                      for key, value in (("master", 0.5), ("stored", 0.6))}},
                "experts": {"math": {"scores": {"master": score, "stored": score | {"percent": 48.0}}}}}  # fmt: skip
    table = tables.storage_table(training, ["math", "trivia"])
    assert table.shown.values.tolist() == [["trained, fp32", "50.0 ± 2.0", "", "0.500 ± 0.010"],
                                           ["as stored, NF4", "48.0 ± 2.0", "", "0.600 ± 0.010"]]  # fmt: skip
    assert not len(tables.storage_table({}, ["math"]).data)


def test_bounds_say_how_long_they_were_trained() -> None:
    """A score without its passes looks like a ceiling."""
    table = costs.bounds_table(TUNED, ["math", "trivia"])
    assert table.shown.iloc[0].tolist() == [
        "large, full fine-tuning", "90.0 ± 1.0 (4 passes, 85 s)", "50.0 ± 1.0 (8 passes)"]  # fmt: skip
    assert table.data.set_index(["label", "task"]).loc[("large, LoRA fine-tuning", "math"), "passes"] == 2


def test_bounds_are_compared_where_they_were_trained_alike() -> None:
    """Two passes against four say nothing of low rank."""
    claim = next(claim for claim in CLAIMS if claim.text.startswith("Low-rank"))
    verdict = claim.judge(Measured(replace(PAIR, recorded=TUNED)))
    assert verdict.word == HOLDS and verdict.measured.startswith("+5.0 [") and verdict.measured.endswith("(trivia only)")
    assert claim.judge(Measured(replace(PAIR, recorded={"large-full": TUNED["large-full"]}))).word == UNKNOWN


def test_what_never_pays_says_never() -> None:
    """An expert dearer than fine-tuning never breaks even, nor does training that saves nothing."""
    assert costs.break_even_tasks(400, 50, 50) == math.inf
    assert costs.break_even_answers(-5, 1) == 0.0
    assert costs.said({"value": 0.0, "unit": "answers"}) == "never"
    assert costs.said({"value": math.inf, "unit": "tasks"}) == "never"
    assert costs.said({"value": math.inf, "unit": "answers"}) == "always"


# -- claims --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("low", "high", "sign", "margin"),
    [(0.1, 2, HOLDS, HOLDS), (-2, -0.1, FAILS, FAILS), (-0.5, 2, DIFFERS, HOLDS), (-2, 2, DIFFERS, DIFFERS),
     (0, 0, DIFFERS, HOLDS)],
)  # fmt: skip
def test_a_sign_is_decided_by_the_interval(low: float, high: float, sign: str, margin: str) -> None:
    """A difference that the items cannot show is neither held nor refuted."""
    gap = Difference((low + high) / 2, low, high, 100)
    assert above_zero(gap, "x").word == sign
    assert within(gap, "x", margin=1.0).word == margin
    assert above_zero(None, "x").word == UNKNOWN


@pytest.mark.parametrize(("value", "high", "word"), [(-0.9, 3, HOLDS), (-1.1, 3, DIFFERS), (-4, -2, FAILS)])
def test_an_aim_is_read_from_the_mean(value: float, high: float, word: str) -> None:
    """It was set on the measured figure; the interval only tells a sure miss from an unsure one."""
    assert not_below(Difference(value, -5, high, 100), "x", margin=1.0).word == word


@pytest.mark.parametrize(("value", "word"), [(92, HOLDS), (83, DIFFERS), (82, FAILS), (math.nan, UNKNOWN), (None, UNKNOWN)])
def test_a_bound_has_a_near_miss(value: float | None, word: str) -> None:
    """Within a tenth of the bound is not the same as far from it."""
    assert at_least(value, 92, "x").word == word


def test_an_upper_bound_is_the_mirror() -> None:
    """1.06 allows up to 1.166 as a near miss."""
    assert [at_most(value, 1.06, "x").word for value in (1.0, 1.1, 1.3)] == [HOLDS, DIFFERS, FAILS]


def test_every_needs_as_many_as_it_says() -> None:
    """Three of four hold: enough for three, undecided or failed for all four by the fourth's own word."""

    def parts(*words: str) -> Any:
        gaps = {HOLDS: (1, 2), FAILS: (-2, -1), DIFFERS: (-1, 1)}
        return {str(i): above_zero(None if word == UNKNOWN else Difference(0, *gaps[word], 9), "x")
                for i, word in enumerate(words)}  # fmt: skip

    assert every(parts(HOLDS, HOLDS, HOLDS, FAILS), needed=3).word == HOLDS
    assert every(parts(HOLDS, HOLDS, HOLDS, FAILS)).word == FAILS
    assert every(parts(HOLDS, HOLDS, HOLDS, DIFFERS)).word == DIFFERS
    assert every(parts(HOLDS, UNKNOWN)).word == UNKNOWN
    assert every(parts(HOLDS, HOLDS, HOLDS, UNKNOWN), needed=3).word == HOLDS  # whatever the fourth would say
    assert every(parts(FAILS, UNKNOWN)).word == FAILS


def test_verdicts_come_from_the_rows() -> None:
    """The same claim holds on one study and fails on its mirror: nothing is written in."""
    many = 40
    good = study(cell("math", "large", [0.0] * many), cell("math", "dynamic", [1.0] * many))
    bad = study(cell("math", "large", [1.0] * many), cell("math", "dynamic", [0.0] * many))
    words = [claims_table(Measured(answers), CLAIMS[:1]).data["here"].iloc[0] for answers in (good, bad)]
    assert words == [HOLDS, FAILS]


def test_claims_can_be_judged_on_hardly_anything() -> None:
    """A quick study has few cells; every claim must say "not measured" and none may fail to be judged."""
    little = Measured(study(cell("math", "large", [0.0, 1.0])))
    for claims, key in ((CLAIMS, "claims"), (AIMS, "aims")):
        assert set(claims_table(little, claims, key=key).data["here"]) == {UNKNOWN}


# -- plan and report -----------------------------------------------------------------------------


def test_sets_of_experts_are_each_once_and_never_all() -> None:
    """Pairs of three are the same as leaving one out."""
    assert len(expert_sets(["leave-one-out", "pairs"], ["a", "b", "c"])) == 3
    assert len(expert_sets(["leave-one-out", "pairs"], list("abcd"))) == 10
    assert expert_sets(["leave-one-out"], ["a"]) == []


def test_the_full_plan_holds_the_quick_one() -> None:
    """What two cores show in minutes is part of what the GPU shows, but for a shot count and the phrasing."""
    tasks = {name: load_task(name) for name in ("trivia", "unseen")}
    quick, _ = plan_study(tasks, ["math", "trivia"], QUICK)
    whole, _ = plan_study(tasks, ["math", "trivia"], FULL)
    assert set(quick) <= set(whole)
    assert len(whole) == len(set(whole))


@pytest.mark.parametrize("groups", [QUICK, FULL])
def test_options_are_compared_by_every_method_of_the_tables(groups: Any) -> None:
    """They cost little, so even two cores can show them all; claims on these tasks then have what they need."""
    tasks_ = {name: load_task(name) for name in ("trivia", "truth", "unseen")}
    cells, _ = plan_study(tasks_, ["math", "truth"], groups)
    several = {"large", "paper-multi", "joint", "average", "evidence", "merged", "merged-static", "merged-dynamic"}
    asked = {task: {one.method for one in cells if one.task == task} for task in tasks_}
    assert several <= asked["unseen"]
    assert several | {"expert", "proxy-1", "dynamic"} <= asked["truth"]
    assert groups is FULL or "joint" not in asked["trivia"]


def test_what_cannot_run_is_left_out_with_a_note() -> None:
    """A missing predictor must not stop the rest."""
    cells, notes = plan_study({"trivia": load_task("trivia")}, ["trivia"], FULL, left_out=["predicted"])
    assert not [cell for cell in cells if cell.method.startswith("predicted")]
    assert "predicted is left out, as it cannot run here" in notes


def test_the_report_holds_every_table_and_needs_no_network() -> None:
    """One page for people, the same tables in Markdown."""
    frame = trajectories.weight_rows([make_trace()], ["i0"], task="math", loaded="all")
    made = analyse(
        Inputs(
            Answers(pandas.concat([PAIR.rows, ABLATION.rows.iloc[4:8]]).assign(device=GPU), SPENT),
            frame,
            LIKENESS,
            None,
            TRAINING,
        )
    )
    page, text = to_html(made), to_markdown(made)
    for table in made.tables.values():
        assert table.title in text and table.title.replace("'", "&#x27;") in page
    assert {"table1", "weights", "trajectories", "likeness", "costs"} <= set(made.figures)
    assert page.count("plotly.js v") == 1 and "<script src" not in page and "<link" not in page


def test_figures_of_nothing_are_none() -> None:
    """A page leaves them out instead of showing empty axes."""
    empty = make_table("x", "X", "", [], [])
    for draw in (figures.score_figure, figures.weight_figure, figures.robustness_figure, figures.likeness_figure):
        assert draw(empty) is None
    assert figures.trajectory_figure(None) is None
    assert figures.cost_figure(empty, (1.0, 1.0)) is None

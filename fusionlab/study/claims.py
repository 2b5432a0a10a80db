"""What the paper says (arXiv 2406.15480), one claim at a time, decided from the measured tables by a stated rule.

The paper's figures are those of its Llama 2 13B with experts of 1.1B / 7B; ours are of this team and its own tasks, so
a claim is compared in sign or share, not in points. A rule reads one measured quantity with its 95 % interval:

    above zero   holds if the interval lies above 0, "does not hold here" if it lies below, "differs" if 0 is inside:
                 these items show no difference
    within       holds if the interval lies above -margin, "does not hold here" if it lies below 0, else "differs"
    not below    (aims) holds if the mean reaches -margin, "does not hold here" if the interval is below it, or "differs"
    at least     holds if the value reaches the bound, "differs" if it misses it by less than a tenth of the bound, else
                 "does not hold here"; "at most" likewise
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from fusionlab.study.measure import Answers, Difference, Estimate, Way, compare_estimates
from fusionlab.study.table import Table, make_table
from fusionlab.study.tables import time_cell
from fusionlab.study.weights import best_weights, fixed_ways, headroom

if TYPE_CHECKING:
    import pandas as pd

HOLDS, FAILS, DIFFERS, UNKNOWN = "holds", "does not hold here", "differs", "not measured"
LARGE, EXPERT, PROXY, DYNAMIC = Way("large"), Way("expert"), Way("proxy-1"), Way("dynamic")
PAPER, EVIDENCE, PREDICTED = Way("paper-multi"), Way("evidence"), Way("predicted")
NEAR = 0.1  # a bound that is missed by less than this share of it makes "differs"


@dataclass(frozen=True)
class Verdict:
    """One of the four words, the figure that decided (as text), and the rule that was applied."""

    word: str
    measured: str
    rule: str


@dataclass(frozen=True)
class Measured:
    """What rules may look at. weights: see `trajectories`; None where no traces were made."""

    answers: Answers
    weights: pd.DataFrame | None = field(default=None)


@dataclass(frozen=True)
class Claim:
    """text: the claim in our words. theirs: the figures it rests on. judge: decides it."""

    text: str
    theirs: str
    judge: Callable[[Measured], Verdict]


# -- rules ---------------------------------------------------------------------------------------


def above_zero(gap: Difference | None, what: str) -> Verdict:
    """The sign of a difference."""
    rule = f"{what}: interval above 0"
    if gap is None:
        return Verdict(UNKNOWN, "", rule)
    word = HOLDS if gap.low > 0 else FAILS if gap.high < 0 else DIFFERS
    return Verdict(word, f"{gap} points", rule)


def within(gap: Difference | None, what: str, *, margin: float) -> Verdict:
    """No worse, by at most `margin` points."""
    rule = f"{what}: interval above -{margin:g}"
    if gap is None:
        return Verdict(UNKNOWN, "", rule)
    word = HOLDS if gap.low > -margin else FAILS if gap.high < 0 else DIFFERS
    return Verdict(word, f"{gap} points", rule)


def not_below(gap: Difference | None, what: str, *, margin: float = 0.0) -> Verdict:
    """An aim on the measured mean; its interval says how sure a miss is."""
    rule = f"{what}: mean at least {-margin if margin else 0:g}"
    if gap is None:
        return Verdict(UNKNOWN, "", rule)
    word = HOLDS if gap.value >= -margin - 1e-9 else FAILS if gap.high < -margin else DIFFERS
    return Verdict(word, f"{gap} points", rule)


def at_least(value: float | None, bound: float, what: str, *, unit: str = "") -> Verdict:
    """A value against a lower bound."""
    rule = f"{what}: at least {bound:g}{unit}"
    if value is None or math.isnan(value):
        return Verdict(UNKNOWN, "", rule)
    word = HOLDS if value >= bound else DIFFERS if value >= bound - NEAR * abs(bound) else FAILS
    return Verdict(word, f"{value:.1f}{unit}" if unit == " %" else f"{value:.2f}{unit}", rule)


def at_most(value: float | None, bound: float, what: str, *, unit: str = "") -> Verdict:
    """A value against an upper bound."""
    rule = f"{what}: at most {bound:g}{unit}"
    if value is None or math.isnan(value):
        return Verdict(UNKNOWN, "", rule)
    word = HOLDS if value <= bound else DIFFERS if value <= bound + NEAR * abs(bound) else FAILS
    return Verdict(word, f"{value:.2f}{unit}", rule)


def reaches(study: Measured, way: Way, bound: float, what: str, *, kind: str = "large-full") -> Verdict:
    """A way's share of a recorded bound, in percent; over the tasks that have one, which are named if they are not all."""
    verdict = at_least(study.answers.share(study.answers.seen, way, kind), bound, what, unit=" %")
    return only(verdict, study.answers.bounded(study.answers.seen, kind), study.answers.seen)


def every(parts: dict[str, Verdict], *, needed: int | None = None) -> Verdict:
    """One verdict from one per task: holds where `needed` (all) of them hold, fails where too many fail to reach it."""
    rule = next((verdict.rule for verdict in parts.values()), "")
    known = {name: verdict for name, verdict in parts.items() if verdict.word != UNKNOWN}
    needed = len(parts) if needed is None else needed
    rule += f", on {'every seen task' if needed == len(parts) else f'{needed} seen tasks'}"
    said = "; ".join(f"{name} {verdict.measured}".removesuffix(" points") for name, verdict in known.items())
    good = sum(verdict.word == HOLDS for verdict in known.values())
    bad = sum(verdict.word == FAILS for verdict in known.values())
    if not parts or (len(known) < len(parts) and good < needed <= len(parts) - bad):
        return Verdict(UNKNOWN, said, rule)
    return Verdict(HOLDS if good >= needed else FAILS if len(parts) - bad < needed else DIFFERS, said, rule)


# -- quantities ----------------------------------------------------------------------------------


def seen_gap(study: Measured, way: Way, other: Way) -> Difference | None:
    """way - other over the seen tasks."""
    return study.answers.difference(study.answers.seen, way, other)


def unseen_gap(study: Measured, way: Way) -> Difference | None:
    """way - large over the unseen tasks."""
    return study.answers.difference(study.answers.unseen, way, LARGE)


def bound_gap(study: Measured, kind: str, way: Way) -> Difference | None:
    """A recorded bound minus a way over the seen tasks, unpaired."""
    bound, mine = study.answers.bound(study.answers.seen, kind), study.answers.estimate(study.answers.seen, way)
    return None if bound is None or mine is None else compare_estimates(bound, mine)


def judge_kinds(study: Measured, kind: str, other: str, what: str, *, margin: float) -> Verdict:
    """One recorded bound against another, unpaired, over the seen tasks that both saw equally often in training."""
    answers = study.answers
    alike = answers.trained_alike(answers.seen, kind, other)
    pair: list[Estimate | None] = [answers.bound(alike, name) for name in (kind, other)]
    gap = None if pair[0] is None or pair[1] is None else compare_estimates(pair[0], pair[1])
    return only(within(gap, what, margin=margin), alike, answers.seen)


def only(verdict: Verdict, tasks: Sequence[str], seen: Sequence[str]) -> Verdict:
    """The verdict, with the tasks that it rests on where they are not all of the seen ones."""
    if verdict.word == UNKNOWN or list(tasks) == list(seen):
        return verdict
    return replace(verdict, measured=f"{verdict.measured} ({', '.join(tasks)} only)")


def judge_time(study: Measured, way: Way, other: Way, bound: float, what: str) -> Verdict:
    """Time per step of `way` over that of `other`: the mean over the seen tasks that both wrote on one device."""
    ratios = {}
    for task in study.answers.seen:
        mine, theirs = time_cell(study.answers, task, way), time_cell(study.answers, task, other)
        timed = mine and theirs and mine["ms_per_step"] >= 0 and theirs["ms_per_step"] > 0  # NaN: nothing was written
        if timed and mine["device"] == theirs["device"]:
            ratios[task] = mine["ms_per_step"] / theirs["ms_per_step"]
    return only(at_most(sum(ratios.values()) / len(ratios) if ratios else None, bound, what), list(ratios),
                study.answers.seen)  # fmt: skip


def judge_weights_differ(study: Measured) -> Verdict:
    """Whether the best fixed weight is another one on some task."""
    rule = "best fixed weight (0 left out) is not the same on all seen tasks"
    best = best_weights(study.answers)
    if len(best) < 2 or len(best) < len(study.answers.seen):
        return Verdict(UNKNOWN, "", rule)
    said = ", ".join(f"{task} {weight:g}" for task, weight in best.items())
    return Verdict(HOLDS if len(set(best.values())) > 1 else FAILS, said, rule)


def judge_best_fixed(study: Measured) -> Verdict:
    """Dynamic against the fixed weight that is best on the average (chosen on the same items, so the bar is high)."""
    values = {way: found.value for weight, way in fixed_ways(study.answers).items()
              if weight > 0 and (found := study.answers.estimate(study.answers.seen, way)) is not None}  # fmt: skip
    if len(values) < 2:
        return above_zero(None, "dynamic - best fixed weight, average of seen tasks")
    best = max(values, key=lambda way: values[way])
    return above_zero(seen_gap(study, DYNAMIC, best), f"dynamic - {best.label}, average of seen tasks")


def judge_weights_move(study: Measured) -> Verdict:
    """Whether weights vary within answers."""
    what = "mean deviation of the weight within an answer, own expert"
    if study.weights is None or not len(study.weights):
        return at_least(None, 0.1, what)
    own = study.weights[study.weights["loaded"] == "own"]
    return at_least(float(own.groupby(["task", "item", "expert"])["alpha"].std(ddof=0).mean()), 0.1, what)


def per_task(study: Measured, decide: Callable[[list[str]], Verdict], *, needed: int | None = None) -> Verdict:
    """A rule applied to each seen task."""
    return every({task: decide([task]) for task in study.answers.seen}, needed=needed)


# -- the claims ----------------------------------------------------------------------------------

CLAIMS: tuple[Claim, ...] = (
    Claim("Fusing one expert improves the large model on the tasks that the expert knows.",
          "average 29.93 -> 34.86 / 46.09",
          lambda s: above_zero(seen_gap(s, DYNAMIC, LARGE), "dynamic - large alone, average of seen tasks")),
    Claim("Weights solved per token do better than proxy tuning's fixed weight of 1.",
          "proxy 31.74 / 44.43, dynamic 34.86 / 46.09",
          lambda s: above_zero(seen_gap(s, DYNAMIC, PROXY), "dynamic - proxy tuning, average of seen tasks")),
    Claim("They do so on every task.", "each task of its Table 1 by and large",
          lambda s: per_task(s, lambda tasks: above_zero(s.answers.difference(tasks, DYNAMIC, PROXY),
                                                         "dynamic - proxy tuning"))),
    Claim("The fused large model is better than the small expert alone.", "stated for both sizes of experts",
          lambda s: above_zero(seen_gap(s, DYNAMIC, EXPERT), "dynamic - expert alone, average of seen tasks")),
    Claim("Most of full fine-tuning is reached without touching the large model.", "72.9 % / 96.4 % of full fine-tuning",
          lambda s: reaches(s, DYNAMIC, 72.9, "dynamic, share of full fine-tuning")),
    Claim("Low-rank fine-tuning of the large model does as well as full fine-tuning.", "LoRA 48.60, full 47.79",
          lambda s: judge_kinds(s, "large-lora", "large-full",
                                "LoRA - full fine-tuning of as many passes, average", margin=2.0)),
    Claim("No fixed weight suits all tasks.", "its motivation, and its ablation of 0.5, 1 and 1.5", judge_weights_differ),
    Claim("Solved weights beat the best fixed weight too.", "its ablation of 0.5, 1 and 1.5", judge_best_fixed),
    Claim("The weight changes in the course of an answer.", "its plots of weights by position", judge_weights_move),
    Claim("With all experts loaded, its search still improves the large model on the seen tasks.",
          "average 29.93 -> 32.59 / 39.42",
          lambda s: above_zero(seen_gap(s, PAPER, LARGE), "paper's search - large alone, average of seen tasks")),
    Claim("Loading all experts costs something against the right one alone.", "34.86 -> 32.59, 46.09 -> 39.42",
          lambda s: above_zero(seen_gap(s, DYNAMIC, PAPER), "dynamic with own expert - paper's search, average")),
    Claim("Most of multi-task fine-tuning is reached with all experts loaded.", "86.3 % (39.42 of 45.68)",
          lambda s: reaches(s, PAPER, 86.3, "paper's search, share of multi-task fine-tuning", kind="large-multi")),
    Claim("Multi-task fine-tuning of the large model stays ahead of the search over all experts.", "45.68 against 39.42",
          lambda s: above_zero(bound_gap(s, "large-multi", PAPER), "multi-task fine-tuning - paper's search, average")),
    Claim("On tasks that no expert knows nothing is lost.", "MMLU 51.31, large alone 51.25",
          lambda s: within(unseen_gap(s, PAPER), "paper's search - large alone, unseen", margin=1.0)),
    Claim("Examples in the prompt and fusion add up.", "stated: in-context learning can be combined with it",
          lambda s: above_zero(seen_gap(s, Way("dynamic", shots=5), DYNAMIC),
                               "dynamic with 5 examples - dynamic, average of seen tasks")),
    Claim("Fusion with a merged expert (task arithmetic) improves on the merged expert alone.",
          "stated: task arithmetic can be combined with it",
          lambda s: above_zero(seen_gap(s, Way("merged-dynamic"), Way("merged")),
                               "merged, fused - merged alone, average of seen tasks")),
    Claim("Solving for weights costs little more than proxy tuning.", "150 s / 142 s and 166 s / 158 s per 1,000",
          lambda s: judge_time(s, DYNAMIC, PROXY, 1.06, "time per step, dynamic / proxy tuning")),
    Claim("Fusion takes less than three times as long as the large model alone.", "150 s and 166 s against 60 s",
          lambda s: judge_time(s, DYNAMIC, LARGE, 2.77, "time per step, dynamic / large alone")),
)  # fmt: skip

AIMS: tuple[Claim, ...] = (
    Claim("One expert reaches 92 % of full fine-tuning.", "aim: 92 %",
          lambda s: reaches(s, DYNAMIC, 92, "dynamic, share of full fine-tuning")),
    Claim("All experts loaded reach 92 % of full fine-tuning.", "aim: 92 %",
          lambda s: reaches(s, EVIDENCE, 92, "evidence, share of full fine-tuning")),
    Claim("Evidence loses less than a point to the own expert on every seen task.", "aim: within 1 point",
          lambda s: per_task(s, lambda tasks: not_below(s.answers.difference(tasks, EVIDENCE, DYNAMIC),
                                                     "evidence - dynamic with own expert", margin=1.0))),
    Claim("Evidence is not below the large model on what no expert knows.", "aim: within 0.5 points",
          lambda s: not_below(unseen_gap(s, EVIDENCE), "evidence - large alone, unseen", margin=0.5)),
    Claim("Evidence beats the paper's search over all experts.", "aim: no loss; the paper loses 6.7 of 46.1",
          lambda s: above_zero(seen_gap(s, EVIDENCE, PAPER), "evidence - paper's search, average of seen tasks")),
    Claim("Predicted weights are as good as solved ones on every task.", "aim: within 0.5 points",
          lambda s: per_task(s, lambda tasks: not_below(s.answers.difference(tasks, PREDICTED, DYNAMIC),
                                                     "predicted - dynamic", margin=0.5))),
    Claim("Dynamic is not below proxy tuning on any seen task.", "aim: >= on each",
          lambda s: per_task(s, lambda tasks: not_below(s.answers.difference(tasks, DYNAMIC, PROXY),
                                                     "dynamic - proxy tuning"))),
    Claim("Dynamic is above proxy tuning on the average.", "aim: interval above 0",
          lambda s: above_zero(seen_gap(s, DYNAMIC, PROXY), "dynamic - proxy tuning, average of seen tasks")),
    Claim("Examples and fusion are not below fusion alone on three tasks.", "aim: 3 of 4 tasks",
          lambda s: per_task(s, lambda tasks: not_below(s.answers.difference(tasks, Way("dynamic", shots=5), DYNAMIC),
                                                     "dynamic with 5 examples - dynamic"),
                             needed=min(3, len(s.answers.seen)))),
    Claim("Some method gets more of the headroom than dynamic.", "aim: more than 0 %",
          lambda s: judge_headroom(s)),
)  # fmt: skip


def judge_headroom(study: Measured) -> Verdict:
    """The method, fixed weights left out, with the largest share of the headroom between dynamic and the best per item."""
    rule = "best share of headroom among methods that choose weights, by an interval above 0"
    answers, best = study.answers, (math.nan, DYNAMIC)
    for name in dict.fromkeys(answers.rows["method"]):
        way = Way(name)
        found = answers.estimate(answers.seen, way)
        if found is None or way in (DYNAMIC, LARGE, EXPERT) or way in fixed_ways(answers).values():
            continue
        share = headroom(answers, answers.seen, way)["share_of_headroom"]
        if not math.isnan(share) and not share <= best[0]:
            best = (share, way)
    gap = seen_gap(study, best[1], DYNAMIC)
    if math.isnan(best[0]) or gap is None:
        return Verdict(UNKNOWN, "", rule)
    return Verdict(above_zero(gap, "").word, f"{best[1].label}: {best[0]:.0f} % ({gap} points)", rule)


def claims_table(study: Measured, claims: Sequence[Claim] = CLAIMS, *, key: str = "claims") -> Table:
    """Every claim with its verdict; data and shown hold the same texts: claim, theirs, verdict, measured, rule."""
    data: list[dict[str, Any]] = []
    for claim in claims:
        verdict = claim.judge(study)
        data.append({"claim": claim.text, "aim" if key == "aims" else "paper": claim.theirs, "here": verdict.word,
                     "measured": verdict.measured,
                     "rule": verdict.rule})  # fmt: skip
    names = {"claims": ("The paper's claims, one by one", "The paper: its 13B model with experts of 1.1B / 7B. "),
             "aims": ("Aims of this project", "What was set out before measuring. ")}  # fmt: skip
    title, lead = names.get(key, (key, ""))
    intervals = ("An aim on a mean holds where the mean reaches it; the interval says how sure that is. "
                 if key == "aims" else "")  # fmt: skip
    note = lead + intervals + (
        "An interval that holds 0 says \"differs\" where a difference is asked for: these items show none. A value that "
        "misses a bound by less than a tenth of it says \"differs\" too.")  # fmt: skip
    return make_table(key, title, note, data, data)

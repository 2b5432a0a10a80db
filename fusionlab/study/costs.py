"""The cost ledger: what small and experts cost to train and to run, against fine-tuning the large model.

Symbols: C corpus and S small model (seconds, once), e_t expert of task t, f_t fine-tuning the large model on task t; k
tasks, L large models that are served with the same small and experts; a (fusion) and b (the large model alone) seconds
per answer.
    training by fusion  F(k) = C + S + sum_t e_t          (once, for any number of large models)
    by fine-tuning      G(k, L) = L sum_t f_t
    break-even tasks    k* = (C + S) / (mean f - mean e)   at L = 1; "never" if mean f <= mean e
    break-even large models  L* = F(k) / sum_t f_t
    break-even answers  N* = (G(k, 1) - F(k)) / (a - b): up to N* answers fusion is cheaper in all
    price               seconds / 3600 * price of a GPU hour
b is the large model's time per decoding step times the steps of the fused answers: a tuned large model writes answers of
that length at the untuned one's speed. All seconds are of one GPU; memory is the peak that torch allocated in training.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from fusionlab.scores import RECORDED
from fusionlab.study.measure import Answers, Estimate, Way, count_steps, is_written, passes_of
from fusionlab.study.table import Table, make_table, number
from fusionlab.study.tables import devices_of

PRICE = 2.0  # per GPU hour, in any currency: a round figure to scale from
DYNAMIC, EVIDENCE, LARGE = Way("dynamic"), Way("evidence"), Way("large")


def ledger_table(
    training: Mapping[str, Any], recorded: Mapping[str, Any], tasks: Sequence[str], *, price: float = PRICE
) -> Table:
    """What was spent on training, line by line.

    training: data/training.json. recorded: data/scores.json. tasks: the seen ones. data: part, per ("once", "task" or "all
    tasks"), tasks, seconds, peak_bytes (NaN where it was not recorded), price.
    """
    small = training.get("small") or {}
    experts = training.get("experts") or {}
    parts = [("small: corpus written by the large model", "once", [small.get("corpus_seconds")], []),
             ("small: healed by distillation", "once", [small.get("seconds")], [small.get("peak_bytes")])]  # fmt: skip
    chosen = [experts[task] for task in tasks if task in experts]
    parts.append(("experts (adapters on small)", "task", *seconds_and_peaks(chosen)))
    for kind, label in RECORDED.items():
        scores = [recorded.get(kind, {}).get(task) for task in tasks]
        known = [score for score in scores if score]
        if kind == "large-multi":
            known = known[:1]  # one model, recorded with every task
        parts.append((label, "all tasks" if kind == "large-multi" else "task", *seconds_and_peaks(known)))
    data, shown = [], []
    for part, per, seconds, peaks in parts:
        spent = [float(value) for value in seconds if value is not None]
        if not spent:
            continue
        held = [float(value) for value in peaks if value is not None]
        total, peak = sum(spent), max(held, default=math.nan)
        data.append({"part": part, "per": per, "runs": len(spent), "seconds": total, "mean_seconds": total / len(spent),
                     "peak_bytes": peak, "price": total / 3600 * price})  # fmt: skip
        shown.append({"": part, "runs": str(len(spent)), "seconds in all": number(total, ",.0f"),
                      "seconds a run": number(total / len(spent), ",.0f"), "peak memory, GB": number(peak / 1e9),
                      f"price at {price:g}/h": number(total / 3600 * price, ".3f")})  # fmt: skip
    note = ("Training only, as recorded in data/training.json and data/scores.json, on one GPU; price in the currency of "
            "the price per GPU hour. Empty: not recorded.")  # fmt: skip
    return make_table("costs", "Cost of training", note, data, shown)


def seconds_and_peaks(records: Sequence[Mapping[str, Any]]) -> tuple[list[Any], list[Any]]:
    """Their seconds and peak bytes, None where not recorded."""
    return [record.get("seconds") for record in records], [record.get("peak_bytes") for record in records]


def bounds_table(recorded: Mapping[str, Any], tasks: Sequence[str]) -> Table:
    """How long each recorded upper bound was trained, because a bound that was trained less is a lower one.

    recorded: data/scores.json. data: label, task, value and standard_error in percent, passes over the training data,
    steps, seconds, device, trained_on; NaN or empty where not recorded.
    """
    data, shown = [], []
    for kind, label in RECORDED.items():
        scores = {task: recorded[kind][task] for task in tasks if task in recorded.get(kind, {})}
        data += [
            {"label": label, "task": task, "value": score["value"], "standard_error": score.get("standard_error", math.nan),
             "passes": passes_of(score), "steps": score.get("steps", math.nan),
             "seconds": score.get("seconds", math.nan), "device": score.get("device", ""),
             "trained_on": "+".join(score.get("trained_on", []))}
            for task, score in scores.items()
        ]  # fmt: skip
        if scores:
            shown.append({"": label} | {task: written(scores[task]) if task in scores else "" for task in tasks})
    note = ("Per cent ± standard error; in brackets the passes over the training data, and the seconds of the run. A bound "
            "that was trained for fewer passes may be too low; one run trained a multi-task model.")  # fmt: skip
    return make_table("bounds", "Upper bounds, as they were trained", note, data, shown)


def written(score: Mapping[str, Any]) -> str:
    """A recorded score with what it was trained for, as text."""
    found = Estimate(float(score["value"]), float(score.get("standard_error", math.nan)), int(score.get("n") or 0))
    passes = passes_of(score)
    facts = [] if math.isnan(passes) else [f"{passes:g} passes"]
    facts += [f"{score['seconds']:,.0f} s"] if "seconds" in score else []
    return str(found) + (f" ({', '.join(facts)})" if facts else "")


def break_even_table(answers: Answers, ledger: Table, *, price: float = PRICE) -> Table:
    """Price per 1,000 answers on the machine that answered, and when fusion is cheaper; formulae in the module's docstring.

    data: quantity, against ("large-full", "large-lora" or ""), value, unit; value is inf for "never" (or "always").
    """
    spent = {row["part"]: row for row in ledger.data.to_dict("records")}
    once = [row["seconds"] for part, row in spent.items() if part.startswith("small")]
    experts = spent.get("experts (adapters on small)")
    fused, alone = answer_seconds(answers)
    data: list[dict[str, Any]] = []

    def add(quantity: str, value: float, unit: str, against: str = "") -> None:
        data.append({"quantity": quantity, "against": against, "value": value, "unit": unit})

    for label, seconds in (("1,000 answers by dynamic fusion", fused), ("1,000 answers by a tuned large model", alone)):
        if not math.isnan(seconds):
            add(label, 1000 * seconds / 3600 * price, f"price at {price:g}/h")
    if experts is not None and once:
        fusion = sum(once) + experts["seconds"]
        for kind in ("large-full", "large-lora"):
            tuned = spent.get(RECORDED[kind])
            if tuned is None or tuned["runs"] != experts["runs"]:
                continue
            add("tasks from which on fusion trains for less (k*)",
                break_even_tasks(sum(once), experts["mean_seconds"], tuned["mean_seconds"]), "tasks",
                RECORDED[kind])  # fmt: skip
            add(
                "large models from which on fusion trains for less (L*)",
                fusion / tuned["seconds"],
                "models",
                RECORDED[kind],
            )
            if not math.isnan(fused) and on_gpu(answers):  # training was timed on one
                add("answers up to which fusion is cheaper in all (N*)",
                    break_even_answers(tuned["seconds"] - fusion, fused - alone), "answers", RECORDED[kind])  # fmt: skip
    shown = [{"": row["quantity"], "against": row["against"], "value": said(row), "unit": row["unit"]} for row in data]
    note = (
        "F = corpus + small + experts, G = fine-tuning of each task, a and b = seconds per answer of fusion and of the "
        "large model at the same length: k* = (corpus + small) / (f - e), L* = F / G, N* = (G - F) / (a - b) "
        "(only where answers were timed on a GPU, as training was). "
        f"Answers: {', '.join(priced_tasks(answers)) or 'none'} (tasks whose answers are written)."
    )
    return make_table("break-even", "Price of answers, and break-even", note, data, shown)


def priced_tasks(answers: Answers) -> list[str]:
    """The seen tasks whose answers, by fusion and by the large model, are written; none where two devices wrote them."""
    found: dict[str, list[Any]] = {}
    for task in answers.seen:
        cells = [answers.cell(task, way) for way in (DYNAMIC, LARGE)]
        if all(cell is not None and is_written(cell) for cell in cells):
            found[task] = cells
    devices = {devices_of(cell) for cells in found.values() for cell in cells}
    return list(found) if len(devices) == 1 and "+" not in "".join(devices) else []


def answer_seconds(answers: Answers) -> tuple[float, float]:
    """(a, b): mean seconds per fused answer over the priced tasks, and of the large model at that length; NaN for none."""
    tasks = priced_tasks(answers)
    frames, base = answers.frames(tasks, DYNAMIC), answers.frames(tasks, LARGE)
    if frames is None or base is None:
        return math.nan, math.nan
    fused = [float(frame["seconds"].mean()) for frame in frames]
    alone = [float(large["seconds"].sum() / max(count_steps(large), 1) * count_steps(frame) / len(frame))
             for frame, large in zip(frames, base, strict=True)]  # fmt: skip
    return sum(fused) / len(fused), sum(alone) / len(alone)


def on_gpu(answers: Answers) -> bool:
    """Whether the priced answers were timed on a GPU, as training was."""
    frames = answers.frames(priced_tasks(answers), DYNAMIC)
    return frames is not None and all(devices_of(frame) != "cpu" for frame in frames)


def break_even_tasks(once: float, expert: float, tuned: float) -> float:
    """k* = (C + S) / (f - e), in tasks; inf where an expert costs no less than fine-tuning.

    >>> break_even_tasks(400, 50, 150)
    4.0
    """
    return once / (tuned - expert) if tuned > expert else math.inf


def break_even_answers(saved: float, extra: float) -> float:
    """N* = saved / extra answers; 0 where training saves nothing, inf where an answer costs nothing more.

    saved: seconds that fusion's training takes less. extra: seconds that its answer takes more.

    >>> break_even_answers(100, 0.05)
    2000.0
    """
    if saved <= 0:
        return 0.0 if extra >= 0 else math.nan  # dearer to train, cheaper to run: no upper bound of this kind
    return saved / extra if extra > 0 else math.inf


def said(row: Mapping[str, Any]) -> str:
    """A break-even as text: never, always, or the number."""
    value = row["value"]
    if row["unit"] == "answers":
        return "never" if value == 0 else "always" if math.isinf(value) else number(value, ",.0f")
    if row["unit"] in ("tasks", "models"):
        return "never" if math.isinf(value) else number(value)
    return number(value, ".4f")

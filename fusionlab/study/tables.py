"""The paper's three main tables (arXiv 2406.15480) on this team: one expert, several experts, time.

Lines are plain data. A line whose cells were not answered is left out; a line that is missing on one task is shown
where it is there, without an average.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from fusionlab.scores import AVERAGE, RECORDED
from fusionlab.study.measure import Answers, Estimate, Way, count_steps, is_written
from fusionlab.study.table import Table, make_table, number, text

LARGE, EXPERT, PROXY, DYNAMIC = Way("large"), Way("expert"), Way("proxy-1"), Way("dynamic")
PAPER, EVIDENCE = Way("paper-multi"), Way("evidence")

SINGLE: tuple[Way | str, ...] = (  # a text is a recorded bound
    Way("small"), LARGE, Way("large", shots=5), EXPERT, PROXY, DYNAMIC, Way("dynamic-grid"), Way("predicted"),
    Way("dynamic", shots=5), "large-lora", "large-full",
)  # fmt: skip
SEVERAL: tuple[Way | str, ...] = (
    LARGE, DYNAMIC, PAPER, Way("joint"), Way("average"), EVIDENCE, Way("evidence", shots=5),
    Way("predicted:experts=all"), Way("merged"), Way("merged-static"), Way("merged-dynamic"), "large-multi",
)  # fmt: skip
TIMED = (LARGE, EXPERT, PROXY, DYNAMIC, Way("dynamic-grid"), Way("predicted"), PAPER, Way("joint"), EVIDENCE)


def single_expert_table(answers: Answers) -> Table:
    """Table 1: each seen task by its own expert, the average, and the share of full fine-tuning.

    data: one row per line and task (or "average"): label, task, n, value, standard_error in points, share_of_full in
    percent, and <large|expert|proxy>_difference, _low, _high in points.
    """
    return score_table(
        answers, "table1", "Table 1: one expert, its own task", SINGLE, answers.seen,
        references={"large": LARGE, "expert": EXPERT, "proxy": PROXY}, share_kind="large-full",
        note="Per cent ± standard error; n items per task in the head, beside a value where it has fewer. "
        "Differences are between averages, in points, with the 95 % interval of a paired bootstrap. "
        "The share is the average as per cent of that of full fine-tuning (of the "
        "tasks in brackets, where it is not recorded for all; none where a line has fewer items). Lines with fewer items "
        "compare with others by their differences alone, which are taken on the items that both answered.",
    )  # fmt: skip


def several_experts_table(answers: Answers) -> Table:
    """Table 2: all experts loaded, on the seen tasks and on those that no expert was trained on.

    Columns of data as in `single_expert_table`, compared with the large model, with each task's own expert alone in
    the fusion (`own`) and with the paper's search (`paper`); unseen tasks stand beside the average, not in it.
    """
    return score_table(
        answers, "table2", "Table 2: all experts loaded", SEVERAL, answers.seen, unseen=answers.unseen,
        references={"own": DYNAMIC, "paper": PAPER, "large": LARGE}, share_kind="large-full",
        note="As Table 1; experts loaded: " + (answers.team.replace("+", ", ") or "none") + ". Δ own: to dynamic fusion "
        "with the task's own expert only, which has to be told the task. Averages are over the seen tasks; Δ unseen is the "
        "difference to the large model on what no expert was trained on.",
    )  # fmt: skip


def score_table(
    answers: Answers, key: str, title: str, lines: Sequence[Way | str], tasks: Sequence[str], *,
    references: dict[str, Way], share_kind: str, note: str, unseen: Sequence[str] = (),
) -> Table:  # fmt: skip
    """Lines down, tasks across, then the average, its differences to the references and its share of a bound."""
    data, shown = [], []
    for line in lines:
        label = line.label if isinstance(line, Way) else RECORDED[line]
        row: dict[str, str] = {"": label}
        facts = []
        for name, some in [*((task, [task]) for task in [*tasks, *unseen]), (AVERAGE, list(tasks))]:
            fact = measure_line(answers, line, some, references if name not in unseen else {"large": LARGE}, share_kind)
            facts.append({"label": label, "task": name} | fact if fact else {})
            row[head_of(answers, name)] = said(answers, line, name, fact)
        if not any(facts):
            continue
        data += [fact for fact in facts if fact]
        average = facts[-1]
        row |= {f"Δ {name}": written(average, name) for name in references}
        for name, fact in zip([*tasks, *unseen], facts, strict=False):
            if name in unseen:
                row[f"Δ {name}"] = written(fact, "large")
        row["of full, %"] = number(average.get("share_of_full")) + partly(average.get("share_tasks"), tasks)
        shown.append(row)
    return make_table(key, title, note, data, shown)


def said(answers: Answers, line: Way | str, task: str, fact: dict[str, Any]) -> str:
    """A value with its error, and its n where it rests on fewer items than others of its tasks do."""
    if not fact:
        return ""
    found = Estimate(fact["value"], fact["standard_error"], fact["n"])
    fewer = isinstance(line, Way) and answers.lacks_items(answers.seen if task == AVERAGE else [task], found)
    return f"{found} (n = {found.n})" if fewer else str(found)


def head_of(answers: Answers, task: str) -> str:
    """A task with the number of its items, as the head of a column."""
    return AVERAGE if task == AVERAGE else f"{task} ({answers.count_items(task)})"


def measure_line(
    answers: Answers, line: Way | str, tasks: Sequence[str], references: dict[str, Way], share_kind: str
) -> dict[str, Any]:
    """n, value, standard_error, differences and share_of_full of one line on some tasks; {} where it is missing."""
    found = answers.measure(tasks, line)
    if found is None:
        return {}
    fact: dict[str, Any] = {"n": found.n, "value": found.value, "standard_error": found.standard_error}
    if isinstance(line, Way):
        for name, reference in references.items():
            gap = answers.difference(tasks, line, reference) if line != reference else None
            if gap is not None:
                fact |= {f"{name}_difference": gap.value, f"{name}_low": gap.low, f"{name}_high": gap.high}
    share = answers.share(tasks, line, share_kind)
    if share is not None:
        fact |= {"share_of_full": share, "share_tasks": "+".join(answers.bounded(tasks, share_kind))}
    return fact


def partly(recorded: str | None, tasks: Sequence[str]) -> str:
    """Which tasks a share is over, where a bound is not recorded for all."""
    return "" if not recorded or recorded == "+".join(tasks) else f" ({recorded.replace('+', ', ')})"


def written(fact: dict[str, Any], name: str) -> str:
    """A difference with its interval as text; empty where there is none."""
    if f"{name}_difference" not in fact:
        return ""
    return f"{fact[f'{name}_difference']:+.1f} [{fact[f'{name}_low']:+.1f}, {fact[f'{name}_high']:+.1f}]"


def storage_table(training: Mapping[str, Any], tasks: Sequence[str]) -> Table:
    """What 4 bits cost: each expert alone, and the small model's distance to the large one, before and after storage.

    training: data/training.json. data: weights ("master" or "stored"), quantity (a task, or "kl_nats"), value and
    standard_error, in percent or in nats.
    """
    experts = training.get("experts") or {}
    distances = (training.get("small") or {}).get("kl_nats") or {}
    data, shown = [], []
    for key, label in (("master", "trained, fp32"), ("stored", "as stored, NF4")):
        scores = {task: experts[task]["scores"][key] for task in tasks if "scores" in experts.get(task, {})}
        found = {task: Estimate(score["percent"], score["standard_error"], score["n"]) for task, score in scores.items()}
        data += [{"weights": key, "quantity": task, "value": score.value, "standard_error": score.standard_error}
                 for task, score in found.items()]  # fmt: skip
        row = {"": label} | {task: str(found[task]) if task in found else "" for task in tasks}
        if key in distances:
            value, error = (float(distances[key][name]) for name in ("overall", "standard_error"))
            data.append({"weights": key, "quantity": "kl_nats", "value": value, "standard_error": error})
            row["KL(large, small), nats"] = f"{value:.3f} ± {error:.3f}"
        if found or key in distances:
            shown.append(row)
    note = ("Per cent ± standard error of each expert alone on its task, and the small model's divergence from the large "
            "one, as measured when they were trained (data/training.json). The last part of training ran through 4 bits in "
            "its forward, so the weights before storage are not the better ones throughout.")  # fmt: skip
    return make_table("storage", "What 4 bits cost", note, data, shown)


def time_table(answers: Answers) -> Table:
    """Table 3: seconds per 1,000 answers, and per step, relative to the large model alone on the same task.

    data: label, task, seconds_per_1000, tokens (written per answer), ms_per_step, relative and
    relative_per_step (to large alone). An answer's time depends on its length, which methods change; so the time per step
    of a batch (`measure.count_steps`) stands beside it, NaN where options are compared and nothing is written. Averages
    are means over the tasks that both answered.
    """
    data, shown = [], []
    devices = ", ".join(dict.fromkeys(map(str, answers.rows["device"]))) if len(answers.rows) else ""
    for way in TIMED:
        facts = [time_cell(answers, task, way) for task in answers.tasks]
        facts = [fact for fact in facts if fact]
        if not facts:
            continue
        data += facts
        ratios = [fact["relative"] for fact in facts if not math.isnan(fact["relative"])]
        per_step = [fact["relative_per_step"] for fact in facts if not math.isnan(fact["relative_per_step"])]
        row = {"": way.label}
        row |= {
            f"{fact['task']}, s": number(fact["seconds_per_1000"], ",.1f")
            + (f" ({short_name(fact['device'])})" if "," in devices else "")
            for fact in facts
        }
        row |= {"of large": number(sum(ratios) / len(ratios) if ratios else None, ".2f"),
                "of large, per step": number(sum(per_step) / len(per_step) if per_step else None, ".2f")}  # fmt: skip
        shown.append(row)
    note = (f"Seconds per 1,000 answers (device: {devices or 'none'}; batched, a batch's time shared evenly). A method "
            "that writes longer answers takes longer: the last column compares time per step, in which every answer of a "
            "batch grows by a token, on tasks where answers are written. Ratios are of cells that one device "
            "answered.")  # fmt: skip
    columns = ["", *(f"{task}, s" for task in answers.tasks), "of large", "of large, per step"]
    shown = [{column: row.get(column, "") for column in columns} for row in shown]
    return make_table("table3", "Table 3: time", note, data, shown)


def time_cell(answers: Answers, task: str, way: Way) -> dict[str, Any]:
    """One row of Table 3's data; {} where the cell is missing."""
    frame, base = answers.cell(task, way), answers.cell(task, LARGE)
    if frame is None:
        return {}

    def per_step(cell: Any) -> float:
        return math.nan if not is_written(cell) else float(1000 * cell["seconds"].sum() / max(count_steps(cell), 1))

    if base is not None and devices_of(frame) != devices_of(base):
        base = None  # times of two machines say nothing of two methods
    seconds = float(frame["seconds"].mean())
    alone = math.nan if base is None else float(base["seconds"].mean())
    return {
        "label": way.label, "method": way.method, "task": task, "device": devices_of(frame),
        "seconds_per_1000": 1000 * seconds,
        "tokens": float(frame["tokens"].mean()), "ms_per_step": per_step(frame),
        "relative": seconds / alone if alone else math.nan,
        "relative_per_step": per_step(frame) / per_step(base) if base is not None and per_step(base) else math.nan,
    }  # fmt: skip


def devices_of(frame: Any) -> str:
    """Where a cell was answered: "cpu", a GPU's name, or several joined by +."""
    return "+".join(sorted(map(str, frame["device"].unique())))


def short_name(devices: str) -> str:
    """Names of devices without their maker and memory, for a cell of a table.

    >>> short_name("NVIDIA H100 80GB HBM3+cpu")
    'H100+cpu'
    """
    return "+".join(re.sub(r"^NVIDIA |[ -]\d+ ?GB.*", "", name) for name in devices.split("+"))


def bench_table(rows: Any) -> Table:
    """What a token costs when nothing else runs: the rows of `fusionlab bench`, as they are.

    rows: frame of `bench.BenchRow`s, or None.
    """
    shown = [] if rows is None else [
        {"": row["method"], "device": row["device"], "ms per token": number(row["ms_per_token"]),
         "of large": number(row["ratio_to_alone"], ".2f"), "peak, MB": number(row["peak_bytes"] / 1e6, ",.0f"),
         "experts": text(row["experts"])} for row in rows.to_dict("records")
    ]  # fmt: skip
    return make_table("bench", "Time of one token, in paired runs", "Medians of `fusionlab bench`, batch 1.",
                      [] if rows is None else rows.to_dict("records"), shown)  # fmt: skip

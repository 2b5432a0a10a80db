"""What stored answers are worth: means, standard errors, paired differences with confidence intervals, tables.

Every difference is taken item by item between two cells of one task, so their common difficulty cancels; intervals are
95 % percentile bootstrap intervals (scipy) over the items, within tasks where a row averages over tasks. Values are in
percent of the task's metric. This module reads frames of `cells.AnswerRow` and imports neither torch nor any model.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fusionlab.atomic_file import write_atomically
from fusionlab.errors import CorruptFileError
from fusionlab.methods import EXPERT, LARGE, METHODS, PROXY, find_method
from fusionlab.tasks import TASKS
from fusionlab.tasks.specs import SPECS

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

REFERENCES = {"large": LARGE, "expert": EXPERT, "proxy": PROXY}  # column -> method it compares with
RECORDED = {  # key of the record file -> label
    "large-full": "large, full fine-tuning",
    "large-lora": "large, LoRA fine-tuning",
    "large-multi": "large, multi-task fine-tuning",
}
UPPER_BOUND = "large-full"
AVERAGE = "average"  # the "task" of rows that average over the seen tasks
_CELL = ["task", "method", "shots", "phrasing", "seed", "order", "experts"]
_RESAMPLES, _SEED = 9_999, 20_240_622


def bootstrap_mean(strata: Sequence[np.ndarray]) -> tuple[float, float]:
    """95 % interval of the mean over strata of the mean within each, items resampled within their stratum.

    strata: per task one difference per item (so resampling it is resampling pairs). scipy's percentile bootstrap, with
    a fixed seed. Where nothing varies the interval is a point.
    """
    import numpy as np
    from scipy.stats import bootstrap

    if all(len(values) < 2 or np.ptp(values) == 0 for values in strata):
        centre = float(np.mean([values.mean() for values in strata]))
        return centre, centre

    def mean_of_means(*samples: np.ndarray, axis: int = -1) -> np.ndarray:
        return np.mean([sample.mean(axis=axis) for sample in samples], axis=0)

    # scipy wants two observations a sample; one that is alone stands for itself when doubled.
    samples = [values if len(values) > 1 else np.repeat(values, 2) for values in strata]
    found = bootstrap(samples, mean_of_means, method="percentile", n_resamples=_RESAMPLES, vectorized=True, rng=_SEED)
    return float(found.confidence_interval.low), float(found.confidence_interval.high)


def student_mean(strata: Sequence[np.ndarray]) -> tuple[float, float] | None:
    """The 95 % interval of `bootstrap_mean` by Student's t, the spread pooled over strata; None without two values in one.

    For few values: resamples of two or three vary too little, and never leave the side of 0 that all of them are on.
    """
    import numpy as np
    from scipy.stats import t

    freedom = sum(len(values) - 1 for values in strata)
    if freedom < 1:
        return None
    variance = sum(float(((values - values.mean()) ** 2).sum()) for values in strata) / freedom
    centre = float(np.mean([values.mean() for values in strata]))
    error = math.sqrt(variance * sum(1 / len(values) for values in strata)) / len(strata)
    half = float(t.ppf(0.975, freedom)) * error
    return centre - half, centre + half


def summarise(rows: pd.DataFrame, recorded: Mapping[str, Any] | None = None) -> pd.DataFrame:
    """One row per cell, then per average over the seen tasks, then per recorded score.

    rows: `cells.AnswerRow`s. recorded: what `read_records` gives. Columns: task, method, label, shots, phrasing, seed,
    order, experts, n, metric, value, standard_error; for each of large, expert and proxy: `<name>_difference`, `_low`,
    `_high`, `_n` (items in common); share_of_full (percent of the recorded full fine-tuning; in average rows that of both
    averages, and mean_share_of_full the mean of the tasks' shares), seconds_per_1000, no_answer, recorded.
    """
    import pandas

    recorded = recorded or {}
    groups = {tuple(key): group.set_index("item") for key, group in rows.groupby(_CELL, sort=False)}
    cells = {key: groups[key] for key in sorted(groups, key=place_in_table)}
    lines = [summarise_cell(key, cells, recorded) for key in cells]
    lines += average_cells(rows, cells, recorded)
    lines += recorded_lines(recorded, list(dict.fromkeys(rows["task"])), seen_tasks(rows))
    return pandas.DataFrame(lines)


def place_in_table(key: tuple[Any, ...]) -> tuple[Any, ...]:
    """What lines are sorted by: task and method in the order of their tables, then the rest of the cell."""
    task, method, *asked = key
    tasks, methods = list(TASKS), list(METHODS)
    base = method.partition(":")[0]
    return (
        tasks.index(task) if task in tasks else len(tasks), task,
        methods.index(base) if base in methods else methods.index(PROXY), method, *asked,
    )  # fmt: skip


def summarise_cell(
    key: tuple[Any, ...], cells: Mapping[tuple[Any, ...], pd.DataFrame], recorded: Mapping[str, Any]
) -> dict:
    """The table's line of one cell."""
    group = cells[key]
    value = 100 * float(group["score"].mean())
    line = dict(zip(_CELL, key, strict=True)) | {
        "label": label_of(key), "n": len(group), "metric": group["metric"].iloc[0], "value": value,
        "standard_error": 100 * standard_error(group["score"]),
        "seconds_per_1000": 1000 * float(group["seconds"].mean()), "no_answer": int(group["extracted"].isna().sum()),
        "share_of_full": share(value, recorded, [key[0]]), "recorded": "",
    }  # fmt: skip
    for column, reference in REFERENCES.items():
        other = reference_cell(key, reference, cells)
        if other is not None:
            line |= compare([(group, cells[other])], column)
    return line


def standard_error(scores: pd.Series) -> float:
    """Of the mean: the sample standard deviation over sqrt(n)."""
    return float(scores.std(ddof=1) / math.sqrt(len(scores))) if len(scores) > 1 else math.nan


def reference_cell(key: tuple[Any, ...], method: str, cells: Mapping[tuple[Any, ...], Any]) -> tuple[Any, ...] | None:
    """The cell of `method` on the same task: asked the same way, else 0-shot in the same phrasing, else plainly."""
    task, own, shots, phrasing, seed, order, _ = key
    experts = task if method != LARGE else ""
    for asked in ((shots, phrasing, seed, order), (0, phrasing, 0, 0), (0, 0, 0, 0)):
        candidate = (task, method, *asked, experts)
        if candidate in cells:
            return None if own == method and candidate == key else candidate
    return None


def compare(pairs: Sequence[tuple[pd.DataFrame, pd.DataFrame]], column: str) -> dict[str, Any]:
    """Mean difference in points and its interval, over the items that both cells of each pair hold."""
    import numpy as np

    strata = []
    for mine, other in pairs:
        shared = mine.index.intersection(other.index)
        strata.append((mine.loc[shared, "score"] - other.loc[shared, "score"]).to_numpy())
    if any(len(values) == 0 for values in strata):
        return {}
    low, high = bootstrap_mean(strata)
    centre = float(np.mean([values.mean() for values in strata]))
    return {f"{column}_difference": 100 * centre, f"{column}_low": 100 * low, f"{column}_high": 100 * high,
            f"{column}_n": sum(map(len, strata))}  # fmt: skip


def average_cells(
    rows: pd.DataFrame, cells: Mapping[tuple[Any, ...], pd.DataFrame], recorded: Mapping[str, Any]
) -> list[dict]:
    """A line for each way of answering that was applied to every seen task, if there are several."""
    import numpy as np

    tasks = seen_tasks(rows)
    if len(tasks) < 2:
        return []
    by_way: dict[tuple[Any, ...], dict[str, tuple[Any, ...]]] = {}
    for key in cells:
        way = (*key[1:6], "own" if key[6] == key[0] else key[6])
        by_way.setdefault(way, {})[key[0]] = key
    lines = []
    for way, keys in by_way.items():
        if not all(task in keys for task in tasks):
            continue
        groups = [cells[keys[task]] for task in tasks]
        values = [100 * float(group["score"].mean()) for group in groups]
        errors = [100 * standard_error(group["score"]) for group in groups]
        line = dict(zip(_CELL, (AVERAGE, *way), strict=True)) | {
            "label": label_of(keys[tasks[0]]), "n": sum(map(len, groups)), "metric": f"mean of {len(tasks)} tasks",
            "value": float(np.mean(values)), "standard_error": float(np.linalg.norm(errors)) / len(tasks),
            "seconds_per_1000": float(np.mean([1000 * group["seconds"].mean() for group in groups])),
            "no_answer": int(sum(group["extracted"].isna().sum() for group in groups)),
            "share_of_full": share(float(np.mean(values)), recorded, tasks), "recorded": "",
            "mean_share_of_full": float(np.mean([share(value, recorded, [task])
                                                 for value, task in zip(values, tasks, strict=True)])),
        }  # fmt: skip
        for column, reference in REFERENCES.items():
            others = [reference_cell(keys[task], reference, cells) for task in tasks]
            if all(other is not None for other in others):
                line |= compare(
                    [(group, cells[other]) for group, other in zip(groups, others, strict=True) if other], column
                )
        lines.append(line)
    return lines


def seen_tasks(rows: pd.DataFrame) -> list[str]:
    """The tasks that an expert of the team was trained on."""
    return list(dict.fromkeys(rows.loc[rows["seen"].astype(bool), "task"]))


def label_of(key: tuple[Any, ...]) -> str:
    """The method's words, and which experts it had where that was not its own one."""
    method, experts = key[1], key[-1]
    several = find_method(method).experts not in ("none", "own")
    return find_method(method).label + (f" [{experts.replace('+', ' + ')}]" if several else "")


# -- what was recorded elsewhere -----------------------------------------------------------------


def read_records(path: Path | None = None) -> dict[str, Any]:
    """Scores of models that are not kept: name -> task -> {value, n, standard_error, command, date}, in percent.

    path: default data/scores.json; {} where that is not there. A record whose `answering` is not how its task is answered
    now is left out: a written answer and a chosen option are not compared. Raises CorruptFileError.
    """
    from fusionlab.errors import MissingFileError
    from fusionlab.tasks.files import find_data_file

    try:
        text = path.read_text() if path is not None else find_data_file("scores.json").read_text()
    except (OSError, MissingFileError) as error:
        if path is None:
            return {}
        raise MissingFileError(f"no record of scores at {path}", remedy="check the path") from error
    where = path or "data/scores.json"
    try:
        records: dict[str, Any] = json.loads(text)
        for name, tasks in records.items():
            for task, score in tasks.items():
                if not math.isfinite(float(score["value"])):
                    raise ValueError(f"{name}, {task}: value is {score['value']}")
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise CorruptFileError(
            f"{where} is not a record of scores: {type(error).__name__} {error}",
            remedy='write {"large-full": {"math": {"value": 93.0, "n": 300, ...}}}',
        ) from error
    return {name: {task: score for task, score in tasks.items() if is_answered_as_now(task, score)}
            for name, tasks in records.items()}  # fmt: skip


def is_answered_as_now(task: str, score: Mapping[str, Any]) -> bool:
    """Whether a record says nothing of how its task was answered, or what the task says."""
    return task not in SPECS or score.get("answering", SPECS[task].answering) == SPECS[task].answering


def share(value: float, recorded: Mapping[str, Any], tasks: Sequence[str]) -> float:
    """Percent of full fine-tuning's average over `tasks`; NaN where that was not recorded for all of them."""
    bounds = [recorded.get(UPPER_BOUND, {}).get(task, {}).get("value") for task in tasks]
    known = [float(bound) for bound in bounds if bound is not None]
    total = sum(known)
    return 100 * value * len(known) / total if len(known) == len(tasks) and total > 0 else math.nan


def recorded_lines(recorded: Mapping[str, Any], tasks: Sequence[str], seen: Sequence[str]) -> list[dict]:
    """The record file's scores as lines of the table, and their average where every seen task has one."""
    lines = []
    for name, scores in recorded.items():
        common = {"method": name, "label": RECORDED.get(name, name), "phrasing": 0, "seed": 0, "order": 0, "experts": ""}
        for task in (task for task in tasks if task in scores):
            score = scores[task]
            lines.append(common | {
                "task": task, "shots": score.get("shots", 0), "n": score.get("n"), "metric": score.get("metric", ""),
                "value": float(score["value"]), "standard_error": score.get("standard_error", math.nan),
                "share_of_full": share(float(score["value"]), recorded, [task]),
                "recorded": f"{score.get('date', '')} {score.get('command', '')}".strip() or "recorded",
            })  # fmt: skip
        if len(seen) > 1 and all(task in scores for task in seen):
            value = sum(float(scores[task]["value"]) for task in seen) / len(seen)
            lines.append(common | {
                "task": AVERAGE, "shots": 0, "n": None, "metric": "", "value": value, "standard_error": math.nan,
                "share_of_full": share(value, recorded, seen), "recorded": "recorded",
            })  # fmt: skip
    return lines


# -- tables --------------------------------------------------------------------------------------


def to_markdown(summary: pd.DataFrame) -> str:
    """The table for people: a block per task, a line per cell, values ± standard error, differences [95 % interval]."""
    columns = ("method", "shots", "phrasing", "n", "value", "Δ large", "Δ expert", "Δ proxy", "of full, %",
               "s / 1,000", "no answer")  # fmt: skip
    blocks = []
    for task in dict.fromkeys(summary["task"]):
        group = summary[summary["task"] == task]
        metric = next((name for name in group["metric"] if name), "")
        lines = [f"**{task}** ({metric}, %)", "", "| " + " | ".join(columns) + " |", "|---" + "|---:" * 10 + "|"]
        lines += ["| " + " | ".join(write_line(line)) + " |" for line in group.to_dict("records")]
        blocks.append("\n".join(lines))
    return "\n\n".join(blocks) + "\n"


def write_line(line: Mapping[str, Any]) -> list[str]:
    """The cells of one line of the Markdown table; empty where there is nothing to say."""

    def number(value: Any, form: str) -> str:
        return "" if value is None or value == "" or math.isnan(value) else format(value, form)

    def difference(column: str) -> str:
        centre = number(line.get(f"{column}_difference"), "+.1f")
        return centre and f"{centre} [{line[f'{column}_low']:+.1f}, {line[f'{column}_high']:+.1f}]"

    error = number(line["standard_error"], ".1f")
    return [
        line["label"] + (" (recorded)" if line["recorded"] else ""),
        f"{line['shots']:.0f}" + "".join(f", {name} {line[name]:.0f}" for name in ("seed", "order") if line[name]),
        f"{line['phrasing']:.0f}",
        number(line["n"], ".0f"), f"{line['value']:.1f}" + (f" ± {error}" if error else ""),
        *map(difference, REFERENCES), number(line["share_of_full"], ".1f"),
        number(line.get("seconds_per_1000"), ".0f"), number(line.get("no_answer"), ".0f"),
    ]  # fmt: skip


def save_table(summary: pd.DataFrame, folder: Path) -> list[Path]:
    """Write table.parquet, table.csv and table.md into `folder`, each at once. Raises OutputError."""
    return [
        write_atomically(folder / "table.parquet", lambda draft: summary.to_parquet(draft, index=False)),
        write_atomically(folder / "table.csv", summary.to_csv(index=False)),
        write_atomically(folder / "table.md", to_markdown(summary)),
    ]

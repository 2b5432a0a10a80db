"""Test items of a task answered by one method, as the experiment notebooks need it: scores by item, traces, time."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fusionlab.errors import UnknownNameError
from fusionlab.evaluate import answer_prompts
from fusionlab.experiments.recording import record, record_items, record_traces
from fusionlab.methods import ALL_EXPERTS, MERGED_EXPERT, OWN_EXPERT, Method

if TYPE_CHECKING:
    import pandas as pd

    from fusionlab.tasks import Item, Task
    from fusionlab.team import Team
    from fusionlab.trace import Trace


@dataclass(frozen=True)
class Answers:
    """What one method wrote.

    rows: item, score, output, extracted, gold, tokens (written, or weighed where options are compared). seconds: without
    loading. traces: one per item where a method fuses and writes.
    """

    rows: pd.DataFrame
    traces: list[Trace]
    seconds: float

    @property
    def score(self) -> float:
        """Mean score, 0 to 1."""
        return float(self.rows["score"].mean())

    def fields(self) -> dict[str, Any]:
        """What an experiment records of every run: score, items, seconds_per_item, tokens, no_answer."""
        return {
            "score": self.score, "items": len(self.rows), "seconds_per_item": self.seconds / len(self.rows),
            "model_seconds": self.seconds, "tokens": int(self.rows["tokens"].sum()),
            "no_answer": int(self.rows["extracted"].isna().sum()),
        }  # fmt: skip


def answer_items(team: Team, task: Task, items: Sequence[Item], method: Method, *, experts: Sequence[str] | None = None,
                 shots: int = 0, phrasing: int = 0, seed: int = 0, batch_size: int = 8,
                 trace: str | None = "light") -> Answers:  # fmt: skip
    """Answer `items` by a method of `fusionlab.methods`.

    >>> answer_items(team, task, pick_items(task, 20, seed=0), find_method("dynamic:scale=1.5"))     # doctest: +SKIP

    experts: those of a fused method; default: the task's own, or all, as the method says. A model that answers alone is
    always the method's own choice: large, small, or the task's expert. seed: draws the examples of the prompt. trace:
    level, None for none. Raises UnknownNameError for an expert that is not there, and for a method that merges experts
    (`fusionlab evaluate` runs these).
    """
    import pandas as pd

    if method.experts == MERGED_EXPERT:
        raise UnknownNameError(f"{method.label!r} merges experts", remedy="run it with `fusionlab evaluate`")
    names = choose_experts(team, task, method, experts)
    prompts = [task.prompt(item, shots=shots, seed=seed, phrasing=phrasing) for item in items]
    started = time.perf_counter()
    written = answer_prompts(
        team, task, items, prompts, method, names, phrasing=phrasing, batch_size=batch_size, trace=trace
    )  # fmt: skip
    seconds = time.perf_counter() - started
    rows = [
        {"item": item.id, "score": float(task.score(text, item, phrasing=phrasing)), "output": text,
         "extracted": task.extract(text, item, phrasing=phrasing), "gold": item.answer, "tokens": count}
        for item, text, count in zip(items, written.texts, written.tokens, strict=True)
    ]  # fmt: skip
    return Answers(pd.DataFrame(rows), written.traces, seconds)


def record_answers(answers: Answers, *, traces: int = 4, **fields: Any) -> None:
    """Record what every experiment on a task leaves: its fields and `fields`, its items, and the first few traces."""
    record(**answers.fields(), **fields, **weights_by_expert(answers.traces))
    record_items(answers.rows)
    kept = answers.traces[:traces]
    if kept:
        record_traces(kept, items=list(answers.rows["item"][: len(kept)]))


def choose_experts(team: Team, task: Task, method: Method, experts: Sequence[str] | None) -> list[str]:
    """The experts that a method runs with: those given where it fuses, else its own choice. Raises UnknownNameError."""
    if experts and method.solver is not None:
        return list(team.choose_experts(experts))
    if method.experts == OWN_EXPERT:
        return list(team.choose_experts([task.name]))
    return list(team.experts) if method.experts == ALL_EXPERTS else []


def weights_by_expert(traces: Sequence[Trace]) -> dict[str, float]:
    """Mean weight and share of flipped tokens of every expert, over all tokens: weight_<name>, moved_<name>."""
    totals: dict[str, list[float]] = {}
    for trace in traces:
        for place, name in enumerate(trace.experts):
            total = totals.setdefault(name, [0.0, 0.0, 0.0])
            total[0] += float(trace.alpha[:, place].sum())
            total[1] += int((trace.flipped_by == place).sum())
            total[2] += len(trace)
    found: dict[str, float] = {}
    for name, (weight, moved, tokens) in totals.items():
        found |= {f"weight_{name}": weight / max(tokens, 1), f"moved_{name}": moved / max(tokens, 1)}
    return found

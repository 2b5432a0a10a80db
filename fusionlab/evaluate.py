"""Answer tasks by methods and keep every answer: cells are planned, resumed where an earlier run stopped, and run.

Items are decoded in batches in the order of their prompts' lengths, so that little is padded, and stored after every
batch. `methods` says what a method is, `cells` how rows are stored, `scores` what they are worth.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from fusionlab import __version__
from fusionlab.adapters import merge_adapters
from fusionlab.baselines import generate_alone, score_continuations_alone
from fusionlab.cells import AnswerRow, Cell, Say, as_frame, resume_cell, write_cell
from fusionlab.errors import ModelError, NotEnoughMemoryError, TaskError, UnknownNameError
from fusionlab.likelihood import most_probable
from fusionlab.methods import ALL_EXPERTS, MERGED_EXPERT, NO_EXPERT, OWN_EXPERT, Method, find_method
from fusionlab.models import device_name
from fusionlab.nf4 import sha256_of_tensors
from fusionlab.predictor import load_predictor
from fusionlab.tasks import Item, Task
from fusionlab.tasks.task import WRITING

if TYPE_CHECKING:
    import pandas as pd

    from fusionlab.team import Team
    from fusionlab.trace import Trace

Progress = Callable[[Cell, int], object]
"""Called with the cell that is running and how many items were just stored."""


@dataclass(frozen=True)
class Asking:
    """The ways in which tasks are asked: every combination is one; see `cells.Cell` for what the numbers mean."""

    shots: Sequence[int] = (0,)
    phrasings: Sequence[int] = (0,)
    seeds: Sequence[int] = (0,)
    orders: Sequence[int] = (0,)

    def ways(self, task: Task, notes: dict[str, None]) -> dict[tuple[int, int, int, int], None]:
        """(shots, phrasing, seed, order) that differ and that the task knows; a note for what it does not."""
        known: dict[tuple[int, int, int, int], None] = {}
        for shots, phrasing in itertools.product(self.shots, self.phrasings):
            fault = find_fault(task, shots=shots, phrasing=phrasing)
            if fault is not None:
                notes[f"{fault.message}; left out"] = None
                continue
            draws = itertools.product(self.seeds if shots else (0,), self.orders if shots > 1 else (0,))
            known |= {(shots, phrasing, seed, order): None for seed, order in draws}
        return known

    def check(self, tasks: Sequence[Task]) -> None:
        """Raise the TaskError of the first number of shots or phrasing that no task knows."""
        for options in ([{"shots": count} for count in self.shots], [{"phrasing": form} for form in self.phrasings]):
            for option in options:
                faults = [fault for task in tasks if (fault := find_fault(task, **option)) is not None]
                if faults and len(faults) == len(tasks):
                    raise faults[0]


def find_fault(task: Task, **asked: int) -> TaskError | None:
    """Why the task cannot be asked so, or None."""
    try:
        task.prompt(task.test[0], **asked)
    except TaskError as error:
        return error
    return None


PLAINLY = Asking()


def plan_cells(
    tasks: Sequence[Task], methods: Sequence[str], *, experts: Sequence[str], subsets: Sequence[Sequence[str]] = (),
    asking: Asking = PLAINLY,
) -> tuple[list[Cell], list[str]]:  # fmt: skip
    """Every cell of tasks x methods x ways of asking, and a note for each that does not apply.

    experts: the team's. subsets: which of them the methods for several experts may use, one cell each (default: all).
    Raises UnknownNameError, TaskError for shots or a phrasing that no task has.
    """
    for name in (name for subset in subsets for name in subset):
        if name not in experts:
            raise UnknownNameError(f"unknown expert {name!r}", remedy=f"known: {', '.join(experts) or 'none'}")
    asking.check(tasks)
    cells: dict[Cell, None] = {}
    notes: dict[str, None] = {}
    for task in tasks:
        ways = asking.ways(task, notes)
        for name in methods:
            choices = choose_expert_sets(find_method(name), task.name, experts, subsets)
            if not choices:
                notes[f"{task.name}: {name} is left out, as no expert of the team is trained on {task.name}"] = None
            for (shots, phrasing, seed, order), chosen in itertools.product(ways, choices):
                cells[Cell(task.name, name, shots, phrasing, seed, chosen, order)] = None
    return list(cells), list(notes)


def choose_expert_sets(
    method: Method, task: str, experts: Sequence[str], subsets: Sequence[Sequence[str]]
) -> list[tuple[str, ...]]:
    """The sets of experts that a method runs with on a task, none where it needs an expert that is not there."""
    if method.experts == OWN_EXPERT:
        return [(task,)] if task in experts else []
    if method.experts in (ALL_EXPERTS, MERGED_EXPERT):
        return [tuple(name for name in experts if name in subset) for subset in subsets or [experts] if subset]
    return [()]


@dataclass(frozen=True)
class Written:
    """The answers to some items. tokens: written, or weighed where options are compared. traces: where asked for."""

    texts: list[str]
    tokens: list[int]
    traces: list[Trace]


def answer_prompts(
    team: Team, task: Task, items: Sequence[Item], prompts: Sequence[str], method: Method, experts: Sequence[str], *,
    phrasing: int = 0, batch_size: int, trace: str | None = None,
) -> Written:  # fmt: skip
    """Answer items by one method, by writing or by comparing their options, as the task says.

    prompts: one per item, asked with `phrasing`. experts: those that the method runs with; where it has no solver the one
    expert answers alone, or the method's own member. trace: level, of answers that are fused and written. Raises
    UnknownNameError where one expert should answer alone and not one is given.
    """
    score: Callable[..., Any]
    generate: Callable[..., Any]
    if method.solver is None:
        member = choose_member(method, experts)
        score, generate = partial(score_continuations_alone, team, member), partial(generate_alone, team, member)
    else:
        fused: dict[str, Any] = {"method": method.solver, "constraint": method.constraint, "experts": experts}
        score, generate = partial(team.score, **fused), partial(team.generate, trace=trace, **fused)
    if task.by_likelihood:
        options = [task.options(item, phrasing=phrasing) for item in items]
        found = score(prompts, options, batch_size=batch_size)
        texts = [item.choices[most_probable(group)] for item, group in zip(items, found, strict=True)]
        return Written(texts, [sum(one.tokens for one in group) for group in found], [])
    result = generate(prompts, stop=task.stop, max_new_tokens=task.max_new_tokens, batch_size=batch_size)
    return Written(result.texts, [len(ids) for ids in result.token_ids], list(result.traces))


def choose_member(method: Method, experts: Sequence[str]) -> str:
    """Who answers alone by a method without a solver. Raises UnknownNameError."""
    if method.experts == NO_EXPERT:
        return method.member
    if len(experts) != 1:
        raise UnknownNameError(f"{method.label!r} is one expert alone, received {', '.join(experts) or 'none'}",
                               remedy="use a method that fuses, e.g. evidence")  # fmt: skip
    return experts[0]


class Evaluator:
    """One team, its tasks and the folder of answers; `run` does what is missing there.

    limit: test items per task, from the first. fresh: do not take over what an earlier run left.
    """

    def __init__(
        self, team: Team, tasks: Mapping[str, Task], *, folder: Path, limit: int | None = None, batch_size: int = 16,
        fresh: bool = False, sources: Mapping[str, str] | None = None, say: Say = lambda line: None,
    ) -> None:  # fmt: skip
        self.team, self.tasks, self.folder, self.fresh, self.say = team, tasks, folder, fresh, say
        self.batch_size = batch_size
        self.items = {name: task.test[:limit] for name, task in tasks.items()}
        self.sources = dict(sources or {})  # task name -> what loads it again
        self._task_sha256s = {name: sha256_of_task(task) for name, task in tasks.items()}
        self._digests: dict[str, str] = {}  # member -> sha256 of its weights
        self._merged: dict[tuple[tuple[str, ...], float], tuple[Team, str]] = {}
        self._prompts: dict[tuple[Any, ...], dict[str, str]] = {}

    def run(self, cells: Sequence[Cell], *, progress: Progress = lambda cell, done: None) -> pd.DataFrame:
        """Answer what the folder does not hold yet; returns the rows of these cells and items.

        Raises FusionError, before anything is answered, where the folder holds rows that something else decided.
        """
        stored = {}
        for cell in cells:
            stored[cell] = [] if self.fresh else resume_cell(
                cell.path(self.folder), self.describe(cell), self.prompts(cell), say=self.say)  # fmt: skip
            progress(cell, len(stored[cell]))
        self.warm_up()
        rows = []
        for cell in cells:
            wanted = {item.id for item in self.items[cell.task]}
            rows += [row for row in self.run_cell(cell, stored[cell], progress) if row.item in wanted]
        return as_frame(rows)

    def warm_up(self) -> None:
        """On a GPU, write two tokens first, so that the first cell's time is not that of loading kernels."""
        if self.team.large.model.device.type != "cpu":
            generate_alone(self.team, "large", "1", max_new_tokens=2)
            self.team.generate("1", max_new_tokens=2, trace=None)

    def run_cell(self, cell: Cell, stored: Sequence[AnswerRow], progress: Progress) -> list[AnswerRow]:
        """The rows of one cell: those that are stored, and after every batch those of the batch."""
        rows = list(stored)
        prompts, done = self.prompts(cell), {row.item for row in rows}
        pending = [item for item in self.items[cell.task] if item.id not in done]
        pending.sort(key=lambda item: len(prompts[item.id]), reverse=True)  # what may not fit in memory comes first
        for start in range(0, len(pending), self.batch_size):
            batch = pending[start : start + self.batch_size]
            rows += self.answer_batch(cell, batch)
            write_cell(cell.path(self.folder), rows, self.describe(cell))
            progress(cell, len(batch))
        return rows

    def answer_batch(self, cell: Cell, batch: Sequence[Item]) -> list[AnswerRow]:
        """Answer and score some items; a batch that does not fit in the GPU's memory is halved."""
        task, prompts = self.tasks[cell.task], self.prompts(cell)
        started = time.perf_counter()
        try:
            answers = self.answer(cell, batch)
        except torch.OutOfMemoryError as error:
            if len(batch) == 1:
                raise NotEnoughMemoryError(f"{cell}: item {batch[0].id!r} does not fit in memory: {error}") from error
            answers = None
        if answers is None:  # outside of the handler, whose traceback holds the tensors
            torch.cuda.empty_cache()
            half = len(batch) // 2
            return [*self.answer_batch(cell, batch[:half]), *self.answer_batch(cell, batch[half:])]
        seconds = (time.perf_counter() - started) / len(batch)
        weights = json.dumps(self.describe(cell)["weights"], sort_keys=True)
        constant: dict[str, Any] = {
            "task": cell.task, "method": cell.method, "shots": cell.shots, "phrasing": cell.phrasing, "seed": cell.seed,
            "order": cell.order, "experts": "+".join(cell.experts), "metric": task.spec.metric,
            "answering": task.spec.answering, "seen": task.name in self.team.experts, "seconds": seconds,
            "device": device_name(self.team.large.model.device),
            "fusionlab": __version__, "torch": torch.__version__, "transformers": version("transformers"),
            "weights_sha256": hashlib.sha256(weights.encode()).hexdigest(), "task_sha256": self._task_sha256s[task.name],
        }  # fmt: skip
        asked = cell.phrasing  # a letter is an answer only where letters were shown
        return [
            AnswerRow(item=item.id, prompt=prompts[item.id], output=text,
                      extracted=task.extract(text, item, phrasing=asked), gold=item.answer,
                      score=float(task.score(text, item, phrasing=asked)), tokens=tokens, **constant)
            for item, (text, tokens) in zip(batch, answers, strict=True)
        ]  # fmt: skip

    def answer(self, cell: Cell, batch: Sequence[Item]) -> list[tuple[str, int]]:
        """One cell's answers to some items: the text of each, and how many tokens were written, or weighed."""
        task, method = self.tasks[cell.task], find_method(cell.method)
        prompts = [self.prompts(cell)[item.id] for item in batch]
        team, experts = self.team, cell.experts
        if method.experts == MERGED_EXPERT:
            team, merged = self.merged_team(cell.experts, method.merge_weight)
            experts = (merged,)
        written = answer_prompts(team, task, batch, prompts, method, experts, phrasing=cell.phrasing,
                                 batch_size=self.batch_size)  # fmt: skip
        return list(zip(written.texts, written.tokens, strict=True))

    def merged_team(self, experts: tuple[str, ...], weight: float) -> tuple[Team, str]:
        """The team with one expert more, made of `experts` by task arithmetic, and that expert's name."""
        if (experts, weight) not in self._merged:
            backbone = self.team.backbone
            if backbone is None or not all(map(self.team.is_adapter, experts)):
                raise ModelError("task arithmetic needs experts that are adapters", remedy="leave out the merged methods")
            name = f"merged-{len(backbone.names)}"  # of its own, whoever else merged on this backbone
            merged = merge_adapters([backbone.adapter(expert) for expert in experts], [weight] * len(experts), name)
            source = f"{weight:g} x ({' + '.join(experts)})"
            self._merged[experts, weight] = self.team.with_expert(merged, source=source), name
        return self._merged[experts, weight]

    def prompts(self, cell: Cell) -> dict[str, str]:
        """Item id -> the text that asks it, made once for all methods."""
        key = (cell.task, cell.shots, cell.phrasing, cell.seed, cell.order)
        if key not in self._prompts:
            task = self.tasks[cell.task]
            self._prompts[key] = {
                item.id: task.prompt(
                    item, shots=cell.shots, seed=cell.seed, phrasing=cell.phrasing, order_seed=cell.order or None
                )
                for item in self.items[cell.task]
            }
        return self._prompts[key]

    def describe(self, cell: Cell) -> dict[str, Any]:
        """What decides a cell's answers besides the prompts: rows of another description are never mixed in."""
        task, method = self.tasks[cell.task], find_method(cell.method)
        members = ["small", *cell.experts] if cell.experts or method.member == "small" else []
        if method.solver is not None or (method.member == "large" and not cell.experts):
            members.insert(0, "large")
        return {
            "weights": {name: self.digest(name) for name in members},
            "method": method.describe(),
            "answering": task.spec.answering,
            "limits": {} if task.by_likelihood else {"stop": list(task.stop), "max_new_tokens": task.max_new_tokens},
            "task_source": self.sources.get(task.name, task.name),
            **({"predictor": sha256_of_predictor()} if method.solver == "predicted" else {}),
        }

    def digest(self, member: str) -> str:
        """sha256 of a member's weights as they are loaded (so that bfloat16 and float32 differ)."""
        if member not in self._digests:
            self._digests[member] = sha256_of_member(self.team, member)
        return self._digests[member]


def sha256_of_member(team: Team, name: str) -> str:
    """sha256 over the tensors of large, small or an expert; of an adapter over its own change only."""
    if name not in ("large", "small") and team.is_adapter(name):
        assert team.backbone is not None
        changes = team.backbone.adapter(name).changes
        return sha256_of_tensors({f"{module} {part}": tensor for module, (down, up, _) in changes.items()
                                  for part, tensor in (("down", down), ("up", up))})  # fmt: skip
    state = team.model_of(name).state_dict()
    return sha256_of_tensors({key.replace(".base.", "."): tensor for key, tensor in state.items()})


def sha256_of_predictor() -> str:
    """sha256 over the numbers of the predictor. Raises MissingFileError, CorruptFileError."""
    return hashlib.sha256(json.dumps(load_predictor().to_dict()).encode()).hexdigest()


def sha256_of_task(task: Task) -> str:
    """sha256 over the spec and the items of both splits."""
    spec = repr(task.spec).replace(f", answering={WRITING!r}", "")  # as before there was another way: stored rows name it
    content = hashlib.sha256(spec.encode())
    for item in (*task.train, *task.test):
        content.update(repr(item).encode())
    return content.hexdigest()

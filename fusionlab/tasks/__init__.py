"""Tasks: questions with known answers, as prompts to run and texts to score."""

from fusionlab.tasks.answers import EXTRACTORS
from fusionlab.tasks.benchmarks import BENCHMARKS
from fusionlab.tasks.bundled import TASKS, load_task
from fusionlab.tasks.metrics import METRICS
from fusionlab.tasks.normalise import normalise_answer
from fusionlab.tasks.task import Item, Phrasing, Task, TaskSpec

__all__ = [
    "BENCHMARKS",
    "EXTRACTORS",
    "METRICS",
    "TASKS",
    "Item",
    "Phrasing",
    "Task",
    "TaskSpec",
    "load_task",
    "normalise_answer",
]

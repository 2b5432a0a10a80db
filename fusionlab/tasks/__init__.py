"""Tasks: questions with known answers, as prompts to run and texts to score."""

from fusionlab.tasks.answers import EXTRACTORS, METRICS, normalise_answer
from fusionlab.tasks.sources import TASKS, load_task
from fusionlab.tasks.task import Item, Phrasing, Task, TaskSpec

__all__ = [
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

"""Run as a script: an evaluation that logs every item it answers and stands still at a given batch, to be killed there.

python interrupted_evaluation.py FOLDER LOG BATCHES
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

from tiny_tasks import make_task
from tiny_team import make_team

from fusionlab.cells import Cell
from fusionlab.evaluate import Evaluator

CELLS = [Cell("a", "large"), Cell("a", "dynamic", experts=("a",))]


class LoggingEvaluator(Evaluator):
    """Writes down what it answers, once it is stored or lost."""

    log: Path
    batches: int

    def answer_batch(self, cell: Cell, batch: Any) -> Any:
        """Answer a batch; the one after `batches` never comes to an end."""
        if self.batches == 0:
            self.log.with_suffix(".standing").touch()
            time.sleep(600)
        self.batches -= 1
        with self.log.open("a") as log:
            log.writelines(f"{cell.method} {item.id}\n" for item in batch)
        return super().answer_batch(cell, batch)


def main(folder: str, log: str, batches: str) -> None:
    """Evaluate both cells, three items at a time."""
    evaluator = LoggingEvaluator(make_team(), {"a": make_task("a")}, folder=Path(folder), batch_size=3)
    evaluator.log, evaluator.batches = Path(log), int(batches)
    evaluator.run(CELLS)


if __name__ == "__main__":
    main(*sys.argv[1:])

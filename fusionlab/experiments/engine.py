"""A papermill engine that runs a notebook in a kernel which is there already, and leaves it running.

papermill parameterises, saves after each cell and marks errors as ever; only who owns the kernel is different.
"""

from __future__ import annotations

import logging
import math
from pathlib import Path
from typing import Any

from papermill.clientwrap import PapermillNotebookClient
from papermill.engines import Engine, NotebookExecutionManager, papermill_engines
from papermill.log import logger

from fusionlab.experiments.kernel import WarmKernel

NAME = "fusionlab-warm"


class WarmEngine(Engine):
    """`papermill.execute_notebook(..., engine_name=NAME, kernel=WarmKernel)`."""

    @classmethod
    def execute_managed_notebook(cls, nb_man: NotebookExecutionManager, kernel_name: str, *, kernel: WarmKernel,
                                 log_output: bool = False, stdout_file: Any = None, stderr_file: Any = None,
                                 execution_timeout: float | None = None, **_: Any) -> Any:  # fmt: skip
        """Run the cells in `kernel`, which has been prepared."""
        client = PapermillNotebookClient(
            nb_man, km=kernel.manager, timeout=execution_timeout, kernel_name=kernel_name, log=logger,
            log_output=log_output, stdout_file=stdout_file, stderr_file=stderr_file, store_widget_state=False,
            iopub_timeout=30,
        )  # fmt: skip
        client.kc = kernel.client
        return client.execute()


def execute_in(kernel: WarmKernel, notebook: Any, target: Path, parameters: dict[str, Any], *, log: Any = None,
               cell_timeout_seconds: float | None = None, progress: bool = False) -> Any:  # fmt: skip
    """Execute an nbformat node in a prepared kernel and save it to `target`, after each cell and at the end.

    parameters: checked ones; papermill only warns of an unknown name. log: a text file for what cells print.
    Raises papermill's PapermillExecutionError for a cell that fails (the copy holds the error), nbclient's DeadKernelError
    and CellTimeoutError.
    """
    import papermill

    papermill_engines.register(NAME, WarmEngine)
    logging.getLogger("papermill").setLevel(logging.ERROR)  # it warns of parameters whose annotation it cannot read
    literal = str(target).replace("{", "{{").replace("}", "}}")  # papermill formats output paths with the parameters
    limit = None if cell_timeout_seconds is None else math.ceil(cell_timeout_seconds)  # nbclient takes whole seconds
    return papermill.execute_notebook(
        notebook, literal, parameters=parameters, engine_name=NAME, kernel=kernel, kernel_name=kernel.name,
        language="python", progress_bar=progress, stdout_file=log, stderr_file=log, execution_timeout=limit,
    )  # fmt: skip

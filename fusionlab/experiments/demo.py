"""The main job: run the demo notebook as an experiment and leave everything that it made in one folder.

Writes demo.ipynb (executed), demo.html (self-contained), results.parquet and the traces. This process only
drives the kernel, so it stays small; models live in the kernel.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import Any

from fusionlab.allocator import release_freed_memory
from fusionlab.errors import FusionError, MissingFileError, OutputError
from fusionlab.experiments.execution import Failure, execute_notebook
from fusionlab.experiments.kernel import WarmKernel
from fusionlab.experiments.notebook import load_notebook
from fusionlab.experiments.pages import write_page
from fusionlab.experiments.parameters import check_values
from fusionlab.experiments.recording import FOLDER_VARIABLE
from fusionlab.experiments.run_key import Run

NOTEBOOK = Path(__file__).parents[2] / "notebooks" / "00_demo.ipynb"


def run_demo(out: Path, parameters: dict[str, Any]) -> Failure | None:
    """Execute the notebook into `out`, as `fusionlab run` would; what comes back is the cell that failed, if one did.

    Raises OutputError, NotebookError and UnknownNameError for parameters that the notebook does not take.
    """
    if not NOTEBOOK.is_file():
        raise MissingFileError(f"{NOTEBOOK} is missing", remedy="run the demo from a checkout of fusionlab")
    notebook = load_notebook(NOTEBOOK)
    given = check_values(notebook.parameters, {"output_folder": str(out.resolve()), **parameters}, where="demo")
    try:
        out.mkdir(parents=True, exist_ok=True)
        (out / ".writable").touch()
        (out / ".writable").unlink()
    except OSError as error:
        raise OutputError(f"{out} cannot be written: {error.strerror}", remedy="choose another --out") from error
    run = Run("demo", 0, notebook.name, notebook.text, notebook.kernel, given)
    kernel = WarmKernel(run.kernel, environment={"TQDM_DISABLE": "1"})  # the bar to watch is papermill's own
    try:
        kernel.prepare({FOLDER_VARIABLE: str(out.resolve())})
        release_freed_memory()  # what the imports used: from here on the kernel needs it
        failure = execute_notebook(run, out / "demo.ipynb", kernel, progress=sys.stderr.isatty())
    finally:
        kernel.close()
    write_page(out / "demo.ipynb", out / "demo.html")
    return failure


def print_results(out: Path, seconds: float) -> None:
    """The tables of the run, and where its files are."""
    import pandas as pd

    from fusionlab.experiments.comparison import moved_table, score_table
    from fusionlab.trace import load_traces

    scores = pd.read_parquet(out / "results.parquet")
    traces = {task: load_traces(out / f"traces-{task}.parquet") for task in scores["task"].unique()}
    print(score_table(scores).to_string(), "\n")
    print(moved_table(traces).to_string(), "\n")  # type: ignore[arg-type]
    print(f"{seconds:.0f} seconds. Written to {out}:")
    for name, what in (("demo.html", "the executed notebook as a page"), ("demo.ipynb", "the notebook itself"),
                       ("results.parquet", "every answer and its score")):  # fmt: skip
        print(f"  {name:<22} {what}")
    for task in traces:
        print(f"  traces-{task + '.html':<15} token by token: weights, choices, what moved")


def main() -> int:
    """`python -m fusionlab.experiments.demo`; 1 where a cell fails, 2 with one sentence for a `FusionError`."""
    parser = argparse.ArgumentParser(prog="python -m fusionlab.experiments.demo", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("runs/demo"))
    parser.add_argument("--items", type=int, help="items per task")
    parser.add_argument("--tasks", nargs="+", help="tasks, e.g. trivia math")
    parser.add_argument("--experts", nargs="+", help="experts that are loaded together")
    parser.add_argument("--method", help="solver of the dynamic run")
    parser.add_argument("--kl-scale", type=float, help="1: the experts' own size of change")
    parser.add_argument("--seed", type=int)
    options = vars(parser.parse_args())
    out: Path = options.pop("out")
    started = time.perf_counter()
    try:
        failure = run_demo(out, {name: value for name, value in options.items() if value is not None})
        if failure is not None:
            print(f"{failure.kind} in a cell of the demo: {failure.message}\n{failure.traceback}", file=sys.stderr)
            print(f"the executed notebook, with the error: {out / 'demo.html'}", file=sys.stderr)
            return 1
        print_results(out, time.perf_counter() - started)
    except FusionError as error:
        print(f"fusionlab: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())

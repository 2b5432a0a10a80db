"""The main job: run the demo notebook with papermill and leave everything that it made in one folder.

Writes demo.ipynb (executed), demo.html (self-contained), results.parquet and the traces. This process only
drives the kernel, so it stays small; models live in the kernel.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path
from typing import Any

from fusionlab.allocator import release_freed_memory
from fusionlab.atomic_file import write_atomically
from fusionlab.errors import FusionError, MissingFileError, OutputError

NOTEBOOK = Path(__file__).parents[2] / "notebooks" / "00_demo.ipynb"
PLOTLY_TYPE = "application/vnd.plotly.v1+json"


def run_demo(out: Path, parameters: dict[str, Any]) -> None:
    """Execute the notebook into `out`. Raises `OutputError`, or papermill's error with the failing cell."""
    import papermill

    if not NOTEBOOK.is_file():
        raise MissingFileError(f"{NOTEBOOK} is missing", remedy="run the demo from a checkout of fusionlab")
    try:
        out.mkdir(parents=True, exist_ok=True)
        (out / ".writable").touch()
        (out / ".writable").unlink()
    except OSError as error:
        raise OutputError(f"{out} cannot be written: {error.strerror}", remedy="choose another --out") from error
    os.environ["TQDM_DISABLE"] = "1"  # progress bars of the kernel: papermill's own is the one to watch
    executed = out / "demo.ipynb"
    release_freed_memory()  # what the imports used: from here on the kernel needs it
    papermill.execute_notebook(
        NOTEBOOK, executed, parameters={"output_folder": str(out.resolve()), **parameters},
        kernel_name="python3", progress_bar=sys.stderr.isatty(), log_output=False,
    )  # fmt: skip
    write_page(executed, out / "demo.html")


def write_page(notebook: Path, page: Path) -> None:
    """The executed notebook as one HTML file that needs no network: figures carry plotly's own script, once."""
    import nbformat
    from nbconvert import HTMLExporter

    content = nbformat.read(notebook, as_version=4)
    embed_figures(content)
    content.metadata.pop("widgets", None)  # a widget state makes nbconvert load its manager from a CDN
    exporter = HTMLExporter(embed_images=True, exclude_input_prompt=True, exclude_output_prompt=True)
    for remote in ("mathjax_url", "require_js_url", "jquery_url", "mermaid_js_url"):
        if exporter.has_trait(remote):
            setattr(exporter, remote, "")
    exporter.exclude_anchor_links = True
    html, _ = exporter.from_notebook_node(content)
    write_atomically(page, html)


def embed_figures(content: Any) -> None:
    """Replace every plotly output by HTML that draws it; the first one brings the script along."""
    from plotly import io

    script: bool = True
    for cell in content.cells:
        for output in cell.get("outputs", []):
            figure = output.get("data", {}).get(PLOTLY_TYPE)
            if figure is not None:
                figure = {key: figure[key] for key in ("data", "layout") if key in figure}
                html = io.to_html(figure, include_plotlyjs=script, full_html=False, validate=False)
                output["data"] = {"text/html": html}
                script = False


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
    """`python -m fusionlab.experiments.demo`; exit code 2 with one sentence for a `FusionError`."""
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
        run_demo(out, {name: value for name, value in options.items() if value is not None})
        print_results(out, time.perf_counter() - started)
    except FusionError as error:
        print(f"fusionlab: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())

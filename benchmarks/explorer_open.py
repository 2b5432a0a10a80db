"""Part `open` of the explorer's benchmark: how long until somebody who opens notebook 01 sees something, and what it takes.

    python benchmarks/explorer.py open [--repetitions 3]

JupyterLab and Chromium are real, and started before the clock. Every repetition opens the notebook in a fresh kernel and
runs all cells as soon as the kernel is idle. Peak memory: proportional set sizes of JupyterLab's server and kernel, summed.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from explorer_rerun import TESTS

sys.path.insert(0, str(TESTS))
NOTEBOOKS = TESTS.with_name("notebooks")
NOTEBOOK = "01_first_look.ipynb"
RECORDED, LIVE = ".jp-Cell .fusion:visible svg.heatmap", ".fusionlab-explorer svg.heatmap"


def measure_openings(repetitions: int) -> list[dict[str, float]]:
    """Seconds to the first heatmap of the recorded trace and of the live explorer, and peak gigabytes, per repetition."""
    from browser_pages import open_browser
    from lab_pages import closed_context, running_lab
    from memory_watch import MemoryWatch

    rows = []
    with tempfile.TemporaryDirectory() as folder, open_browser() as browser:
        notebooks, server_files = Path(folder, "notebooks"), Path(folder, "server")
        notebooks.mkdir()
        with running_lab(notebooks, server_files, threads=2) as lab:
            for repetition in range(repetitions):
                name = f"{repetition}_{NOTEBOOK}"
                shutil.copy(NOTEBOOKS / NOTEBOOK, notebooks / name)
                watch = MemoryWatch([lab.process_id])
                with closed_context(browser) as (context, _), watch.watching():
                    rows.append(time_opening(context.new_page(), lab.address(name), name))
                rows[-1]["gigabytes"] = watch.peak_bytes / 1e9
                lab.shut_down_kernels()
    return rows


def time_opening(page: Any, address: str, name: str) -> dict[str, float]:
    """Open a notebook, run it, and wait for both heatmaps."""
    from lab_pages import IDLE, RUN_ALL

    started = time.perf_counter()
    page.goto(address)
    page.wait_for_function(IDLE, arg=name)
    page.evaluate(RUN_ALL)
    page.locator(RECORDED).first.wait_for()
    recorded = time.perf_counter() - started
    page.locator(LIVE).first.wait_for(timeout=120_000)
    return {"recorded": recorded, "live": time.perf_counter() - started}


def add_options(parser: argparse.ArgumentParser) -> None:
    """The part's command line."""
    parser.add_argument("--repetitions", type=int, default=3)


def print_openings(options: argparse.Namespace) -> None:
    """Measure and print the table."""
    rows = measure_openings(options.repetitions)
    print(f"notebook {NOTEBOOK} opened in JupyterLab and run, a fresh kernel each time")
    print("| time | heatmap of the recorded trace, s | live heatmap, s | peak memory, GB |\n| ---: | ---: | ---: | ---: |")
    for number, row in enumerate(rows, 1):
        print(f"| {number} | {row['recorded']:.1f} | {row['live']:.1f} | {row['gigabytes']:.2f} |")

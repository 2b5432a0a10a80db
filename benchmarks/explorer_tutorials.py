"""Part `tutorials` of the explorer's benchmark: what each tutorial takes when it is run, and what it leaves.

    python benchmarks/explorer.py tutorials

Each notebook is run by papermill with its own parameters, then made into a page that needs no kernel.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from explorer_open import NOTEBOOKS  # which also finds the tests' helpers


def measure_tutorial(notebook: Path, folder: Path) -> dict[str, Any]:
    """Seconds, peak gigabytes of papermill and its kernel, and kilobytes of the executed notebook and of its page."""
    from memory_watch import MemoryWatch

    from fusionlab.experiments.pages import write_page

    executed, page = folder / notebook.name, folder / f"{notebook.stem}.html"
    watch = MemoryWatch()
    started = time.perf_counter()
    with watch.watching():
        papermill = [sys.executable, "-m", "papermill", "--no-progress-bar", "--cwd", str(folder)]
        command = [*papermill, str(notebook), str(executed)]
        running = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        watch.add(running.pid)
        said, _ = running.communicate()
    if running.returncode:
        raise SystemExit(said)
    seconds = time.perf_counter() - started
    write_page(executed, page)
    return {"name": notebook.stem, "seconds": seconds, "gigabytes": watch.peak_bytes / 1e9,
            "notebook": executed.stat().st_size / 1e3, "page": page.stat().st_size / 1e3}  # fmt: skip


def print_tutorials(options: argparse.Namespace) -> None:
    """Measure and print the table."""
    with tempfile.TemporaryDirectory() as folder:
        rows = [measure_tutorial(path, Path(folder)) for path in sorted(NOTEBOOKS.glob("0[1-9]_*.ipynb"))]
    print("| tutorial | seconds | peak memory, GB | executed notebook, kB | its page, kB |")
    print("| --- | ---: | ---: | ---: | ---: |")
    for row in rows:
        sizes = f"{row['notebook']:.0f} | {row['page']:.0f}"
        print(f"| {row['name']} | {row['seconds']:.0f} | {row['gigabytes']:.2f} | {sizes} |")

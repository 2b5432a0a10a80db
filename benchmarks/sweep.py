"""What the machinery of sweeps costs: beside the models' own work, and per run from ten to a thousand.

    python benchmarks/sweep.py team  [--items 40] [--workers 2]    24 runs on the embedded team
    python benchmarks/sweep.py stub  [--counts 10 100 1000]        a trivial notebook

`team`: overhead is everything that is neither writing nor loading a team: 1 - (model_seconds + team_load_seconds, summed
over runs) / (workers x wall time of the command), start and end of the processes included. `stub`: seconds and bytes per
run, and what gathering the table and writing the report take. Prints Markdown tables.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from fusionlab.experiments.report import write_report
from fusionlab.experiments.results import read_runs
from fusionlab.experiments.store import Store

ROOT = Path(__file__).resolve().parents[1]
STUB = {"parameters": "x: int = 0", "body": "from fusionlab.experiments import record\n\nrecord(score=x / 1000)"}


def sweep(file: Path, out: Path, workers: int, *more: str) -> float:
    """Give the command; its wall time in seconds."""
    command = [sys.executable, "-m", "fusionlab.cli", "sweep", str(file), "--out", str(out), "--workers", str(workers),
               "--no-report", *more]  # fmt: skip
    started = time.perf_counter()
    subprocess.run(command, check=True)
    return time.perf_counter() - started


def measure_team(folder: Path, *, items: int, workers: int) -> None:
    """24 runs of the KL sweep on trivia."""
    file = folder / "team.yaml"
    grid = {"kl_scale": [0.25, 0.5, 0.75, 1, 1.25, 1.5, 1.75, 2], "direction": ["both", "forward", "reverse"]}
    file.write_text(json.dumps({"notebook": str(ROOT / "notebooks/experiments/kl_sweep.ipynb"), "grid": grid,
                                "parameters": {"items": items}}))  # fmt: skip
    wall = sweep(file, folder / "team", workers)
    frame = read_runs(Store(folder / "team")).to_frame()
    model, loading = frame["model_seconds"].sum(), frame["team_load_seconds"].sum()
    room = workers * wall
    loads = frame.groupby(["worker", "kernel"])["team_loads"].sum()
    print(f"\n24 runs of {items} items, {workers} workers: {wall:.1f} s, all {set(frame['status'])}\n")
    print("| part | seconds over all workers | share of wall |\n|---|---:|---:|")
    rows = {"writing (models)": model, "loading teams": loading,
            "rest of the notebooks (imports, tables)": frame["seconds"].sum() - model - loading,
            "before and after a notebook (kernel, page, row)": frame["machinery_seconds"].sum(),
            "start, end, waiting": room - frame["seconds"].sum() - frame["machinery_seconds"].sum()}  # fmt: skip
    for name, seconds in rows.items():
        print(f"| {name} | {seconds:.1f} | {100 * seconds / room:.1f} % |")
    print(f"| overhead (the last three) | {room - model - loading:.1f} | {100 * (room - model - loading) / room:.1f} % |")
    print(f"\nloads of the team per worker: {loads.tolist()} (runs per worker: {frame.groupby('worker').size().tolist()})")


def measure_stub(folder: Path, *, counts: list[int], workers: int) -> None:
    """A notebook that does nothing, so that all of it is machinery."""
    cells = [{"cell_type": "code", "id": f"c{place}", "source": source, "outputs": [], "execution_count": None,
              "metadata": {"tags": ["parameters"]} if place == 0 else {}}
             for place, source in enumerate(STUB.values())]  # fmt: skip
    kernel = {"name": "python3", "language": "python", "display_name": "Python 3"}
    notebook = {"nbformat": 4, "nbformat_minor": 5, "metadata": {"kernelspec": kernel}, "cells": cells}
    (folder / "stub.ipynb").write_text(json.dumps(notebook))
    print("\n| runs | command, s | s a run | notebook, s | around it, s | table, s | report, s | MB | report, kB |")
    print("|---:|---:|---:|---:|---:|---:|---:|---:|---:|")
    for count in counts:
        file, out = folder / f"stub{count}.yaml", folder / f"stub{count}"
        file.write_text(json.dumps({"notebook": "stub.ipynb", "grid": {"x": list(range(count))}}))
        wall = sweep(file, out, workers)
        (out / "runs.parquet").unlink()
        started = time.perf_counter()
        frame = read_runs(Store(out)).to_frame()
        gathered = time.perf_counter()
        page, _ = write_report(Store(out))
        reported = time.perf_counter()
        size = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
        print(f"| {count} | {wall:.1f} | {wall / count:.3f} | {frame['seconds'].median():.3f} | "
              f"{frame['machinery_seconds'].median():.3f} | {gathered - started:.2f} | {reported - gathered:.2f} | "
              f"{size / 1e6:.1f} | {Path(page).stat().st_size / 1e3:.0f} |", flush=True)  # fmt: skip
        assert len(frame) == count and frame["key"].is_unique and set(frame["status"]) == {"ok"}


def main() -> None:
    """Measure what the command line names."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["team", "stub"])
    parser.add_argument("--items", type=int, default=40)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--counts", type=int, nargs="+", default=[10, 100, 1000])
    parser.add_argument("--folder", type=Path, help="keep the stores here; default: a temporary folder")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = options.folder or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        if options.what == "team":
            measure_team(folder, items=options.items, workers=options.workers)
        else:
            measure_stub(folder, counts=options.counts, workers=options.workers)


if __name__ == "__main__":
    main()

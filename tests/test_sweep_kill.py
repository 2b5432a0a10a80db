"""kill -9 at any moment: what finished stays, once; what did not is done by the same command."""

from __future__ import annotations

import random
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from process_trees import kill_tree, start_fusionlab
from stub_notebooks import write_sweep

from fusionlab.experiments.remote_store import open_store
from fusionlab.experiments.results import read_runs

RUNS, KILLS = 40, 10  # of each of two sweeps


def attempts(out: Path) -> dict[str, str]:
    """Key -> attempt of every finished run."""
    store = open_store(out)
    if not store.finished():
        return {}
    frame = read_runs(store, store.finished()).to_frame()
    assert frame["key"].is_unique
    return dict(zip(frame["key"], frame["attempt"], strict=True))


def kill_until_done(folder: Path, seed: int) -> tuple[int, list[int]]:
    """Kill a sweep's whole process tree at random moments, look at what is there each time; then let it finish."""
    folder.mkdir()
    out, log = folder / "out", folder / "log.txt"
    sweep = write_sweep(folder, grid={"x": list(range(10)), "seed": [0, 1, 2, 3]},
                        parameters={"sleep": 0.15, "log": str(log)})  # fmt: skip
    rng = random.Random(seed)
    command = ("sweep", str(sweep), "--out", str(out), "--workers", "1", "--no-report")
    seen: dict[str, str] = {}
    progress = []
    for kill in range(KILLS):
        enough = len(open_store(out).finished()) + rng.randint(1, 3)
        started = start_fusionlab(*command, cwd=folder)
        if kill % 2:  # while runs are executed; else while everything starts, however long that takes here
            while started.poll() is None and len(open_store(out).finished()) < enough:
                time.sleep(0.02)
        time.sleep(rng.uniform(0.0, 0.5 if kill % 2 else 3.0))
        kill_tree(started)
        done_before = {tuple(line.split()) for line in log.read_text().splitlines()} if log.exists() else set()
        now = attempts(out)
        assert now.items() >= seen.items(), "a finished run was lost or done again"
        assert len(done_before) >= len(now)
        seen = now
        progress.append(len(now))
    last = start_fusionlab(*command, cwd=folder)
    output, _ = last.communicate(timeout=120)
    assert last.returncode == 0, output
    assert attempts(out).items() >= seen.items()
    check_complete(out, log)
    return KILLS, progress


def check_complete(out: Path, log: Path) -> None:
    """Every run is there once, and nothing is left lying about."""
    frame = read_runs(open_store(out)).to_frame()
    assert len(frame) == RUNS and frame["key"].is_unique and set(frame["status"]) == {"ok"}
    assert (frame["score"] == 2 * frame["x"] + frame["seed"]).all()
    executed = Counter(log.read_text().splitlines())
    assert len(executed) == RUNS
    repeated = sum(executed.values()) - RUNS  # begun, killed before it was committed, begun again
    assert repeated <= KILLS
    for part in ("partial", "claims"):
        assert not open_store(out).names(part), part


@pytest.mark.slow
def test_killing_everything_at_random_moments_loses_and_repeats_no_finished_run(tmp_path: Path) -> None:
    """The promise of the store, tried with the real command: twenty kills, two sweeps side by side."""
    with ThreadPoolExecutor(2) as pool:
        parts = list(pool.map(kill_until_done, [tmp_path / "a", tmp_path / "b"], [1, 2]))
    assert sum(kills for kills, _ in parts) >= 20
    assert any(0 < count < RUNS for _, progress in parts for count in progress), "no kill fell into the work"

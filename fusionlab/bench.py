"""What fusion costs: large alone by its own `generate`, proxy tuning and dynamic fusion, in paired runs.

Every repetition runs all methods in turn on the same prompts and the same number of new tokens, and ratios
are taken within a repetition, so that a machine whose speed drifts does not distort them. Medians are
reported. The share of the solve is measured stage by stage in a loop of its own.
"""

from __future__ import annotations

import re
import statistics
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fusionlab.atomic_file import write_atomically
from fusionlab.errors import FusionError

if TYPE_CHECKING:
    from fusionlab.team import Team

TEXT = "Question: A farmer packs 24 apples into each of 12 boxes and sells 37 of them. How many are left?\nAnswer:"


@dataclass(frozen=True)
class BenchRow:
    """One method's cost. Times are medians over repetitions; bytes are the peak while it ran."""

    method: str
    device: str
    batch: int
    ms_per_token: float
    ratio_to_alone: float
    peak_bytes: int
    experts: int
    solver_share: float | None  # part of a step spent in the solve; None where nothing is solved


@dataclass(frozen=True)
class BenchMethod:
    """A row of the benchmark: which solver, with how many of the team's experts."""

    label: str
    solver: str | None  # None: the large model's own generate
    experts: int = 1


METHODS = (
    BenchMethod("large alone (generate)", None, 0),
    BenchMethod("proxy tuning (static)", "static"),
    BenchMethod("dynamic (exact)", "exact"),
    BenchMethod("dynamic, paper's search (grid)", "grid"),
    BenchMethod("dynamic, several experts (evidence)", "evidence", 99),
)


def run_bench(
    team: Team, *, device: str, batch: int = 1, new_tokens: int = 48, repetitions: int = 5,
    say: Callable[[str], None] = lambda line: None,
) -> list[BenchRow]:  # fmt: skip
    """Time every method; returns one row each. The first repetition warms up and is not counted."""
    prompts = [TEXT] * batch
    seconds: dict[str, list[float]] = {method.label: [] for method in METHODS}
    peaks: dict[str, int] = {}
    for repetition in range(repetitions + 1):
        for method in METHODS:
            with watch_peak(device) as peak:
                spent = time_method(team, method, prompts, new_tokens, device)
            if repetition:
                seconds[method.label].append(spent)
                peaks[method.label] = max(peaks.get(method.label, 0), peak())
        say(f"repetition {repetition} of {repetitions}" + ("" if repetition else " (warm-up)"))
    alone = seconds[METHODS[0].label]
    rows = []
    for method in METHODS:
        own = seconds[method.label]
        ratio = statistics.median(mine / theirs for mine, theirs in zip(own, alone, strict=True))
        names = list(team.experts)[: method.experts]
        share = None
        if method.solver is not None:
            share = measure_solver_share(team, method.solver, names, prompts, new_tokens, device)
        rows.append(BenchRow(
            method.label, device, batch, 1e3 * statistics.median(own) / new_tokens, ratio,
            peaks[method.label], len(names), share,
        ))  # fmt: skip
    return rows


def time_method(team: Team, method: BenchMethod, prompts: Sequence[str], new_tokens: int, device: str) -> float:
    """Seconds to write `new_tokens` tokens for every prompt, the prompt's own forward included."""
    import torch

    synchronise(device)
    started = time.perf_counter()
    if method.solver is None:
        tokenizer = team.large.tokenizer
        inputs = tokenizer(list(prompts), return_tensors="pt", padding=True).to(team.large.model.device)
        with torch.inference_mode():
            team.large.model.generate(**inputs, do_sample=False, max_new_tokens=new_tokens, min_new_tokens=new_tokens)
    else:
        names = list(team.experts)[: method.experts]
        team.generate(list(prompts), method=method.solver, experts=names, max_new_tokens=new_tokens,
                      min_new_tokens=new_tokens, trace=None, batch_size=len(prompts))  # fmt: skip
    synchronise(device)
    return time.perf_counter() - started


def measure_solver_share(
    team: Team, solver: str, experts: Sequence[str], prompts: Sequence[str], new_tokens: int, device: str
) -> float:
    """Median part of a decode step (read, solve, fuse, choose) that the solve takes."""
    import torch

    from fusionlab.decode import READS_EVIDENCE, TeamReader
    from fusionlab.solvers import KLConstraint, fuse, solve

    shares = []
    with torch.inference_mode():
        reader = TeamReader(team, experts, track_evidence=solver in READS_EVIDENCE)
        dist = reader.read_prompts({seat[0]: team.encode(prompts, seat[0]) for seat in reader.seats})
        for _ in range(new_tokens):
            assert dist.log_q is not None and dist.log_r is not None and reader.evidence is not None
            synchronise(device)
            started = time.perf_counter()
            solution = solve(dist.log_p, dist.log_q, dist.log_r, method=solver, constraint=KLConstraint(),
                             evidence=reader.evidence.to(dist.log_p.device))  # fmt: skip
            synchronise(device)
            solved = time.perf_counter()
            tokens = fuse(dist.log_p, dist.log_q, dist.log_r, solution.alpha).argmax(-1)
            dist = reader.read_tokens(tokens)
            synchronise(device)
            shares.append((solved - started) / (time.perf_counter() - started))
    return statistics.median(shares)


def synchronise(device: str) -> None:
    """Wait until the device has done what it was asked, so that host clocks tell the truth."""
    if device.startswith("cuda"):
        import torch

        torch.cuda.synchronize()


@contextmanager
def watch_peak(device: str) -> Iterator[Callable[[], int]]:
    """Peak memory while the block runs: allocated on the GPU, or resident in this process (sampled at 100 Hz)."""
    if device.startswith("cuda"):
        import torch

        torch.cuda.reset_peak_memory_stats()
        yield lambda: int(torch.cuda.max_memory_allocated())
        return
    import psutil

    process = psutil.Process()
    peak = process.memory_info().rss
    done = threading.Event()

    def sample() -> None:
        nonlocal peak
        while not done.wait(0.01):
            peak = max(peak, process.memory_info().rss)

    watcher = threading.Thread(target=sample, daemon=True)
    watcher.start()
    try:
        yield lambda: peak
    finally:
        done.set()
        watcher.join()


def save_rows(rows: Sequence[Any], path: Path) -> None:
    """Write frozen records as Parquet, at once. Raises `OutputError` where that cannot be done."""
    import pandas as pd

    frame = pd.DataFrame([asdict(row) for row in rows])
    write_atomically(path, lambda draft: frame.to_parquet(draft, index=False))


def check_device(device: str) -> None:
    """Raise `FusionError` for a device that torch does not have."""
    import torch

    if device.startswith("cuda") and not torch.cuda.is_available():
        raise FusionError(f"device {device!r} was asked for, but torch sees no GPU", remedy="use --device cpu")
    if device != "cpu" and not re.fullmatch(r"cuda(:\d+)?", device):
        raise FusionError(f"unknown device {device!r}", remedy="use cpu, cuda or cuda:0")

"""Milliseconds per solve on this machine's CPU, for every method, batch and number of experts.

    python benchmarks/solve.py [--tokens 49152] [--threads 2] [--repeats 30]

Each figure is the median of calls to `solve` with everything in it: checks, targets, search and reported divergences. The
rows look like language: a few likely tokens, a long tail, small models that differ from the large one by about a nat.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from functools import partial
from unittest.mock import patch

import torch
from torch import Tensor

from fusionlab import kl
from fusionlab.solvers import SOLVERS, fuse, solve


def make_rows(rows: int, experts: int, tokens: int) -> tuple[Tensor, Tensor, Tensor]:
    """Float32 log-probabilities (B, V), (B, V), (E, B, V)."""
    generator = torch.Generator().manual_seed(0)

    def noise(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    large = 3 * noise(rows, tokens)
    large[:, :20] += 12 * torch.rand(rows, 20, generator=generator)
    small = large + 0.8 * noise(rows, tokens)
    strength = 0.3 + torch.rand(experts, rows, 1, generator=generator)
    expert = small + strength * noise(experts, rows, tokens)
    return tuple(torch.log_softmax(scores, -1) for scores in (large, small, expert))  # type: ignore[return-value]


def median_milliseconds(call: Callable[[], object], repeats: int) -> float:
    for _ in range(3):
        call()
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - start)
    return 1e3 * statistics.median(seconds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=49_152)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--repeats", type=int, default=30)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)

    print(f"V = {options.tokens}, {options.threads} threads, median of {options.repeats}, ms")
    columns = [*SOLVERS, "fuse", "table of 21"]
    print("  ".join(["B  E", *(f"{name:>11}" for name in columns)]))
    for rows in (1, 8):
        for experts in (1, 2, 4):
            p, q, r = make_rows(rows, experts, options.tokens)
            alpha = torch.ones(rows, experts)
            grid = torch.linspace(0, 2, 21, dtype=torch.float64)
            calls: list[Callable[[], object]] = [partial(solve, p, q, r, method=method) for method in SOLVERS]
            calls += [partial(fuse, p, q, r, alpha), partial(kl.kl_table, p, q, r, grid)]
            times = [median_milliseconds(call, max(3, options.repeats // rows)) for call in calls]
            print("  ".join([f"{rows}  {experts}", *(f"{value:11.2f}" for value in times)]), flush=True)

    p, q, r = make_rows(1, 1, options.tokens)
    for dtype in (torch.float64, torch.float32):
        with patch.object(kl, "working_dtype", lambda device, dtype=dtype: dtype):
            cost = median_milliseconds(partial(solve, p, q, r), options.repeats)
        print(f"exact, B = E = 1, sums in {dtype}: {cost:.2f} ms")


if __name__ == "__main__":
    main()

"""The shipped predictor: what `exact` chose along the team's own answers, and a small network fitted to it.

Answers to train items are written with `evidence`; at every token each expert's exact weight is found alone, at
several scales, also for experts whose task is not at hand. Whole items are held out to measure the error.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch

from fusionlab.atomic_file import write_atomically
from fusionlab.decode import TeamReader
from fusionlab.kl import Array, prepare_step
from fusionlab.predictor import FILE, Predictor, fit_predictor, read_features, rescale_features
from fusionlab.solvers import KLConstraint, fuse, solve, solve_each
from fusionlab.train.run import Run

SCALES = (0.5, 1.0, 1.5)
HELD_OUT = 0.2  # share of the batches of prompts
_BATCH = 16


def train_predictor(run: Run, tasks: Sequence[str], *, items: int = 80, longest: int = 40, seed: int = 0) -> Predictor:
    """Collect, fit, measure on held-out prompts, and write predictor.json to the output folder."""
    from fusionlab.tasks import load_task
    from fusionlab.team import Team

    team = Team.from_pretrained("embedded", dtype="float32", device_map=None if run.device == "cpu" else run.device)
    fitted: list[tuple[Array, Array]] = []
    held: list[tuple[Array, Array]] = []
    for name in tasks:
        task = load_task(name)
        draw = np.random.default_rng(seed)
        chosen = draw.choice(len(task.train), size=min(items, len(task.train)), replace=False)
        prompts = [task.prompt(task.train[index]) for index in chosen.tolist()]
        for start in range(0, len(prompts), _BATCH):
            part = held if (start // _BATCH) % round(1 / HELD_OUT) == 0 else fitted
            part += collect(team, prompts[start : start + _BATCH], stop=task.stop, longest=longest)
        run.say(f"predictor: {name} read, {sum(len(weights) for _, weights in fitted + held):,} weights")
    features, weights = (np.concatenate(parts) for parts in zip(*fitted, strict=True))
    predictor = fit_predictor(features, weights, seed=seed)
    features, weights = (np.concatenate(parts) for parts in zip(*held, strict=True))
    error = np.abs(predictor(features) - weights)
    measured = {
        "fitted": sum(len(part[1]) for part in fitted),
        "held_out": len(weights),
        "mean_absolute_error": round(float(error.mean()), 4),
        "median_absolute_error": round(float(np.median(error)), 4),
        "error_90th_percentile": round(float(np.quantile(error, 0.9)), 4),
        "spread_of_weights": round(float(weights.std()), 4),
    }
    run.say("predictor: " + ", ".join(f"{key} {value}" for key, value in measured.items()))
    record = {**run.record(), "tasks": list(tasks), "items_per_task": items, "scales": list(SCALES), "seed": seed,
              "error": measured, **predictor.to_dict()}  # fmt: skip
    write_atomically(run.out / FILE, json.dumps(record) + "\n")
    return predictor


@torch.inference_mode()
def collect(team: Any, prompts: Sequence[str], *, stop: Sequence[str], longest: int) -> Iterator[tuple[Array, Array]]:
    """Features (n, F) and exact weights (n,) at every token of the answers to `prompts`, all experts and scales."""
    names = list(team.experts)
    reader = TeamReader(team, names, track_evidence=True)
    reader.read_prompts({seat[0]: team.encode(prompts, seat[0]) for seat in reader.seats})
    ends = torch.tensor(sorted(team.eos_ids()))
    for _ in range(longest):
        dist = reader.latest
        assert dist is not None and dist.log_q is not None and dist.log_r is not None and reader.evidence is not None
        step = prepare_step(dist.log_p, dist.log_q, dist.log_r, experts=names)
        features = read_features(step, scale=1.0)
        for scale in SCALES:
            weights = solve_each(step, KLConstraint(scale=scale))
            yield rescale_features(features, scale).reshape(-1, features.shape[-1]), weights.ravel()
        solution = solve(dist.log_p, dist.log_q, dist.log_r, method="evidence", evidence=reader.evidence)
        tokens = fuse(dist.log_p, dist.log_q, dist.log_r, solution.alpha).argmax(-1).cpu()
        pieces = [team.piece(token) for token in tokens.tolist()]
        ended = torch.tensor([any(mark in piece for mark in stop) for piece in pieces]) | torch.isin(tokens, ends)
        going = (~ended).nonzero().squeeze(-1)
        if not len(going):
            return
        reader.keep_rows(going)
        reader.read_tokens(tokens[going])

"""Upper bounds: the large model itself, tuned on the tasks that the experts were trained on.

Whole and in low rank on each task, and whole on all tasks together; only their scores, time and memory are kept
(scores.json), because the point of fusion is never to need these weights.
"""

from __future__ import annotations

import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from fusionlab.atomic_file import write_atomically
from fusionlab.tasks.task import WRITING
from fusionlab.train.documents import Writer, plan_batches
from fusionlab.train.expert import read_for_tuning, score_alone
from fusionlab.train.llama import state_from_llama
from fusionlab.train.run import Run, large_sha256
from fusionlab.train.settings import BOUND_EPOCHS, BOUNDS, MULTI, TuneSettings, settings_hash
from fusionlab.train.tune import Tunable, tune, tune_low_rank, tune_whole

SCORES = "scores.json"


def train_bounds(
    run: Run,
    changes: Mapping[str, Any],
    tasks: Sequence[str],
    *,
    large: Any,
    tokenizer: Any,
    kinds: Sequence[str] = tuple(BOUNDS),
) -> None:
    """Train and score every bound that is not already in scores.json with these settings.

    changes: fields of TuneSettings that replace each kind's own.
    """
    from fusionlab.tasks import load_task

    loaded = {name: load_task(name) for name in tasks}
    jobs = [(kind, list(names)) for kind in kinds for names in ([tasks] if kind == MULTI else [[name] for name in tasks])]
    start = large_sha256(large)
    for kind, names in jobs:
        some = settings_of(kind, names, changes)
        identity = settings_hash(some, names, [settings_of(kind, [name], changes).epochs for name in names], start)
        scores = read_scores(run.out)
        wanted = {name: (identity, loaded[name].spec.answering) for name in names}
        if all(identity_of(scores.get(kind, {}).get(name, {})) == wanted[name] for name in names):
            run.say(f"{kind} on {', '.join(names)}: already there with these settings")
            continue
        model = read_for_tuning(large, dtype=run.dtype)
        tunable = (
            tune_whole(model) if some.rank is None
            else tune_low_rank(model, rank=some.rank, alpha=some.alpha, seed=some.seed)
        )  # fmt: skip
        batches = mix_batches([Writer(loaded[name], tokenizer, settings_of(kind, [name], changes)) for name in names], some)
        tuned = tune(tunable, batches, some, label=f"{kind} {'+'.join(names)}", say=run.say)
        candidate = build_tuned(large, tunable)
        for name in names:
            found = score_alone(candidate, loaded[name], tokenizer, items=some.test_items)
            run.say(f"{kind} on {name}: {found['percent']} ± {found['standard_error']} % (n = {found['n']})")
            scores = read_scores(run.out)
            scores.setdefault(kind, {})[name] = {
                **run.record(), "settings_hash": identity, "settings": asdict(some), "value": found["percent"],
                "standard_error": found["standard_error"], "n": found["n"], "metric": loaded[name].spec.metric,
                "answering": loaded[name].spec.answering, "trained_on": names,
                "passes": settings_of(kind, [name], changes).epochs, "steps": tuned.steps,
                "tokens": tuned.tokens, "seconds": round(tuned.seconds, 1), "peak_bytes": tuned.peak_bytes,
            }  # fmt: skip
            write_atomically(run.out / SCORES, json.dumps(scores, indent=1) + "\n")


def identity_of(record: Mapping[str, Any]) -> tuple[str | None, str]:
    """What a recorded score was made with, and how the task was answered; once there was only writing."""
    return record.get("settings_hash"), record.get("answering", WRITING)


def settings_of(kind: str, names: Sequence[str], changes: Mapping[str, Any]) -> TuneSettings:
    """What a bound is trained with: the kind's own settings, the tasks' epochs, and the changes on top."""
    epochs = max(BOUND_EPOCHS.get(name, 4) for name in names)
    return replace(BOUNDS[kind], **{"epochs": epochs, **changes})


def mix_batches(writers: Sequence[Writer], settings: TuneSettings) -> list[Any]:
    """Batches of several tasks, each task for its own number of epochs, mixed in one order."""
    batches = [batch for writer in writers for batch in plan_batches([writer], writer.settings)]
    if len(writers) > 1:
        random.Random(f"{settings.seed}:mix").shuffle(batches)
    return batches


def build_tuned(large: Any, tunable: Tunable) -> Any:
    """The tuned weights as a transformers model in fp32 on the large model's device; what was not tuned is the large's."""
    from transformers import LlamaForCausalLM

    from fusionlab.embedded import quiet_transformers

    with torch.no_grad():
        state = {name: tensor.float() for name, tensor in state_from_llama(tunable.build(False)).items()}
        embedding = tunable.masters.get("embedding", large.get_input_embeddings().weight)
        state["model.embed_tokens.weight"] = embedding.detach().float().clone()
    with quiet_transformers():
        made = LlamaForCausalLM.from_pretrained(None, config=large.config, state_dict=state, dtype=torch.float32)
    return made.to(large.device).eval()


def read_scores(folder: Path) -> dict[str, Any]:
    """scores.json of a folder: kind -> task -> record; empty if it is not there."""
    path = folder / SCORES
    return json.loads(path.read_text()) if path.is_file() else {}

"""The stages of a training run: corpus, small, experts, evidence; each skipped when it is already there.

Everything measured goes into `training.json` in the output folder; cards are written from that file alone.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fusionlab import embedded
from fusionlab.atomic_file import write_atomically
from fusionlab.errors import MissingFileError, ModelError
from fusionlab.nf4 import load_tensors, pack_nf4, save_tensors, sha256_of_file, unpack_nf4
from fusionlab.train.bounds import train_bounds
from fusionlab.train.cards import expert_card, small_card
from fusionlab.train.compiled import Compute, choose_compute
from fusionlab.train.corpus import (
    KINDS,
    Corpus,
    sample_fresh,
    sample_sequences,
    sample_shard,
)
from fusionlab.train.expert import (
    attach_adapter,
    describe_evidence,
    prompt_log_likelihoods,
    score_alone,
    train_expert,
)
from fusionlab.train.heal import fresh_kl, heal, heal_one_batch, start_student
from fusionlab.train.llama import (
    Llama,
    hidden_states,
    logits_from_states,
    read_llama,
    state_from_llama,
    with_parameters,
)
from fusionlab.train.predict import train_predictor
from fusionlab.train.run import UNRELATED_TEXTS, Run, large_sha256, load_teacher, read_records, write_records
from fusionlab.train.settings import BOUNDS, ExpertSettings, HealSettings, settings_hash

SMALL = "small.safetensors"
EVALUATION_SEED = 99_000_000  # far from the corpus's seeds

# -- small -----------------------------------------------------------------------------------------


def train_small(run: Run, settings: HealSettings, *, large: Any, tokenizer: Any) -> bool:
    """Sample, heal, store, evaluate. Returns False when the time limit stopped it before the last step."""
    identity = settings_hash(settings, large_sha256(large))
    records = read_records(run.out)
    if (records["small"] or {}).get("settings_hash") == identity and (run.out / SMALL).is_file():
        run.say("small: already there with these settings")
        return True
    teacher = read_llama(large, dtype=run.dtype)
    compute = pick_compute(run, teacher, settings)
    corpus_seconds: list[float] = []

    def read_shard(shard: int) -> Corpus:
        corpus, seconds = get_shard(run, settings, shard, teacher=teacher, tokenizer=tokenizer, compute=compute)
        corpus_seconds.append(seconds)
        return corpus

    def store(student: Llama, steps: int) -> None:
        metadata: dict[str, object] = {
            "kind": "small", "steps": steps, "whole": steps == settings.steps, "settings": asdict(settings),
            "large": embedded.REVISION,
        }  # fmt: skip
        packed = pack_nf4({name: tensor.cpu() for name, tensor in state_from_llama(student).items()})
        embedded.ship_tensors(packed, SMALL, metadata=metadata, folder=run.out)

    healed = heal(
        teacher, read_shard, settings, compute=compute, checkpoint=run.work / "heal.safetensors",
        checkpoint_every=run.checkpoint_every, seconds_limit=run.seconds_limit, say=run.say,
        on_checkpoint=store, log_every=max(1, min(100, settings.steps // 10)),
    )  # fmt: skip
    store(healed.student, healed.steps)
    if healed.steps < settings.steps:
        run.say(f"heal stopped at its time limit after step {healed.steps}; the same command goes on from there")
        return False
    kl = evaluate_small(run, settings, healed.student, teacher=teacher, large=large, tokenizer=tokenizer)
    entry = {
        **run.record(), "settings_hash": identity, "settings": asdict(settings), "steps": healed.steps,
        "seconds": round(healed.seconds, 1), "corpus_seconds": round(sum(corpus_seconds), 1),
        "corpus_tokens": settings.corpus.tokens,
        "epochs": settings.steps * settings.batch * settings.corpus.length / settings.corpus.tokens,
        "layers_text": f"Layers {', '.join(map(str, embedded.SMALL_LAYERS))} of the large model, renumbered.",
        "large_revision": embedded.REVISION, "large_sha256": large_sha256(large),
        "bytes": (run.out / SMALL).stat().st_size, "evaluation_seed": EVALUATION_SEED, "kl_nats": kl,
        "curve": healed.curve,
    }  # fmt: skip
    write_records(run.out, {"small": entry, "experts": {}})  # experts of another small model are of no use to this one
    write_atomically(run.out / "small.md", small_card(entry))
    return True


def pick_compute(run: Run, teacher: Llama, settings: HealSettings) -> Compute:
    """Compiled kernels where they work; the trial is a training step, plain and quantised, and one token."""
    length, batch = settings.corpus.length - 1, settings.batch

    def trial(compute: Compute) -> None:
        student = start_student(teacher)
        ids = torch.zeros(batch, length, dtype=torch.int64, device=teacher.embedding.device)
        for quantized in (False, True):
            heal_one_batch(teacher, student, ids, compute=compute, quantized=quantized).backward()
        starts = torch.zeros(settings.corpus.rows, 1, dtype=torch.int64)
        sample_sequences(teacher, starts, length=2, seed=0, kernels=compute.layers, draw=compute.draw)

    begun = time.perf_counter()
    compute = choose_compute(compile=run.compile, trial=trial, say=run.say)
    if run.compile:
        run.say(f"compute: {'compiled' if compute.compiled else 'plain'}, {time.perf_counter() - begun:.0f} s")
    return compute


def get_shard(
    run: Run, settings: HealSettings, shard: int, *, teacher: Llama, tokenizer: Any, compute: Compute
) -> tuple[Corpus, float]:
    """A shard of the corpus from the work folder, or sampled now and saved there; with the seconds sampling took."""
    path = run.work / f"corpus-{settings_hash(settings.corpus)}-{shard}.safetensors"
    if path.is_file():
        tensors, record = load_tensors(path)
        run.say(f"corpus: {path.name} is already there")
        return Corpus(**{name: tensor.to(run.device) for name, tensor in tensors.items()}), float(record["seconds"])  # type: ignore[arg-type]
    begun = time.perf_counter()
    if run.device.startswith("cuda"):
        torch.cuda.empty_cache()
    corpus = sample_shard(
        teacher, tokenizer, settings.corpus, shard, kernels=compute.layers, draw=compute.draw,
        host_bytes=run.host_bytes, say=run.say,
    )  # fmt: skip
    seconds = round(time.perf_counter() - begun, 1)
    tensors = {"ids": corpus.ids, "kinds": corpus.kinds, "given": corpus.given}
    save_tensors({name: tensor.cpu() for name, tensor in tensors.items()}, path, metadata={"seconds": seconds})
    return corpus, seconds


def evaluate_small(
    run: Run, settings: HealSettings, student: Llama, *, teacher: Llama, large: Any, tokenizer: Any
) -> dict[str, dict[str, float]]:
    """KL on fresh text, fp32: the untrained start, the trained masters, and the stored file reloaded."""
    corpus = settings.corpus
    fresh = sample_fresh(teacher, tokenizer, rows=settings.evaluation_rows, length=corpus.length, seed=EVALUATION_SEED)
    shares = dict(zip(KINDS, (1 - corpus.share_chat - corpus.share_question, corpus.share_chat,
                              corpus.share_question), strict=True))  # fmt: skip
    exact = read_llama(large, dtype=torch.float32)
    results = {}
    for name, weights in (("start", start_student(exact)), ("master", student)):
        small = with_parameters(exact, {key: tensor.detach() for key, tensor in weights.parameters.items()})
        results[name] = fresh_kl(partial(_both_logits, exact, small), fresh, shares=shares)
    stored = load_stored_small(run.out, large)
    results["stored"] = fresh_kl(
        lambda ids: (large(input_ids=ids).logits, stored(input_ids=ids).logits), fresh, shares=shares
    )
    for name, kl in results.items():
        run.say(f"fresh KL, {name}: " + ", ".join(f"{key} {value:.4f}" for key, value in kl.items()))
    return results


def load_stored_small(out: Path, large: Any) -> Any:
    """The small model from the file in `out`, on the large model's device and in its dtype."""
    path = out / SMALL
    if not path.is_file():
        raise MissingFileError(f"{path} is not there", remedy="run `fusionlab train small` first")
    packed, _ = load_tensors(path)
    return embedded.build_small(large, unpack_nf4(packed))


def _both_logits(large: Llama, small: Llama, ids: Tensor) -> tuple[Tensor, Tensor]:
    first, second = (logits_from_states(model, hidden_states(model, ids)) for model in (large, small))
    return first, second


# -- experts ---------------------------------------------------------------------------------------


def train_experts(run: Run, experts: Sequence[ExpertSettings], *, large: Any, tokenizer: Any) -> None:
    """Train, store and score every expert that is not already there, then measure evidence across them."""
    from fusionlab.tasks import load_task

    small = load_stored_small(run.out, large)
    small_sha256 = sha256_of_file(run.out / SMALL)
    refuse_other_small(run, small_sha256, retrained=[settings.task for settings in experts])
    for settings in experts:
        records = read_records(run.out)
        identity = settings_hash(settings, small_sha256)
        name = f"experts/{settings.task}.safetensors"
        if records["experts"].get(settings.task, {}).get("settings_hash") == identity and (run.out / name).is_file():
            run.say(f"expert {settings.task}: already there with these settings")
            continue
        task = load_task(settings.task)
        trained = train_expert(small, task, tokenizer, settings, large=large, dtype=run.dtype, say=run.say)
        packed = pack_nf4(trained.tensors)
        metadata: dict[str, object] = {"kind": "expert", "task": settings.task, "lora_config": trained.config,
                    "settings": asdict(settings), "small_sha256": small_sha256}  # fmt: skip
        path = embedded.ship_tensors(packed, name, metadata=metadata, folder=run.out)
        scores = {}
        for label, tensors in (("master", trained.tensors), ("stored", unpack_nf4(load_tensors(path)[0]))):
            model = attach_adapter(small, tensors, trained.config)
            scores[label] = score_alone(model, task, tokenizer, items=settings.test_items)
            model.unload()
            run.say(f"expert {settings.task}, {label}: {task.spec.metric} {scores[label]['percent']} % "
                    f"± {scores[label]['standard_error']} (n = {scores[label]['n']})")  # fmt: skip
        records["experts"][settings.task] = {
            **run.record(), "settings_hash": identity, "settings": asdict(settings), "steps": trained.tuned.steps,
            "tokens": trained.tuned.tokens, "seconds": round(trained.tuned.seconds, 1),
            "peak_bytes": trained.tuned.peak_bytes, "bytes": path.stat().st_size, "small_sha256": small_sha256,
            "train_items": len(task.train[: settings.train_items]), "metric": task.spec.metric,
            "answering": task.spec.answering, "scores": scores, "curve": trained.tuned.curve,
        }  # fmt: skip
        write_records(run.out, records)
    measure_evidence(run, small=small, tokenizer=tokenizer, items=min_items(experts))


def refuse_other_small(run: Run, small_sha256: str, *, retrained: Sequence[str]) -> None:
    """Raise `ModelError` if the folder holds experts of another small model that are not about to be trained again."""
    for name, record in read_records(run.out)["experts"].items():
        if name not in retrained and record["small_sha256"] != small_sha256:
            raise ModelError(
                f"expert {name!r} in {run.out} was trained on a small model of sha256 {record['small_sha256'][:12]}, "
                f"and the one there has {small_sha256[:12]}",
                remedy=f"train it again too (--tasks {' '.join([*retrained, name])}), or choose another --out",
            )


def min_items(experts: Sequence[ExpertSettings]) -> int | None:
    """The smallest limit on test items among the settings, if any has one."""
    return min((some.test_items for some in experts if some.test_items is not None), default=None)


def measure_evidence(run: Run, *, small: Any, tokenizer: Any, items: int | None) -> None:
    """log R - log Q over prompts, for every stored expert on every trained task and on unrelated text."""
    from fusionlab.tasks import load_task

    records = read_records(run.out)
    names = sorted(records["experts"])
    prompts = {name: [task.prompt(item) for item in task.test[:items]]
               for name in names for task in [load_task(name)]}  # fmt: skip
    prompts["unrelated"] = list(UNRELATED_TEXTS)
    small.eval()
    log_q = {kind: prompt_log_likelihoods(small, texts, tokenizer) for kind, texts in prompts.items()}
    for name in names:
        packed, metadata = load_tensors(run.out / f"experts/{name}.safetensors")
        model = attach_adapter(small, unpack_nf4(packed), metadata["lora_config"])  # type: ignore[arg-type]
        found = {kind: describe_evidence(prompt_log_likelihoods(model, texts, tokenizer) - log_q[kind])
                 for kind, texts in prompts.items()}  # fmt: skip
        model.unload()
        records["experts"][name]["evidence"] = found
        found_text = (f"{kind} {some['mean_nats']:+.1f} ({some['positive_share']:.0%} > 0)"
                      for kind, some in found.items())  # fmt: skip
        run.say(f"evidence of {name}: " + ", ".join(found_text))
        write_atomically(run.out / f"experts/{name}.md", expert_card(name, records["experts"][name]))
    write_records(run.out, records)


# -- all -------------------------------------------------------------------------------------------


def train(
    what: str, run: Run, *, heal_settings: HealSettings | None = None, experts: Sequence[ExpertSettings] = (),
    bounds: Mapping[str, Any] | None = None, kinds: Sequence[str] = tuple(BOUNDS),
) -> bool:  # fmt: skip
    """Train `small`, `expert` (those in `experts`), `bounds`, `predictor`, or `all` but the predictor.

    True when everything asked for is done.

    Raises `MissingFileError` when experts are asked for and there is no small model in `run.out`.
    """
    if what == "predictor":
        train_predictor(run, [expert.task for expert in experts])
        return True
    large, tokenizer = load_teacher(run)
    if what in ("small", "all") and not train_small(run, heal_settings or HealSettings(), large=large, tokenizer=tokenizer):
        return False
    if what in ("expert", "all"):
        train_experts(run, experts, large=large, tokenizer=tokenizer)
    if what in ("bounds", "all"):
        names = [expert.task for expert in experts]
        train_bounds(run, bounds or {}, names, large=large, tokenizer=tokenizer, kinds=kinds)
    return True

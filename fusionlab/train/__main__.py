"""`python -m fusionlab.train small|expert|bounds|predictor|all|probe`: training without the rest of the command line."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, TypeVar

from fusionlab.errors import FusionError, UnknownNameError
from fusionlab.train.settings import BOUNDS, EXPERT_DEFAULTS, CorpusSettings, ExpertSettings, HealSettings, TuneSettings

Record = TypeVar("Record")
SMOKE: dict[str, Any] = {"epochs": 1, "batch_tokens": 512, "document_tokens": 256, "train_items": 16, "test_items": 6}


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code 0: done; 2: an error in words; 3: stopped at the time limit, run again to go on."""
    options = parse(arguments)
    import torch

    from fusionlab.embedded import cache_folder, data_folder
    from fusionlab.train.probe import DEFAULT_TRIALS, Trial, probe
    from fusionlab.train.run import Run
    from fusionlab.train.stages import train

    if options.threads:
        torch.set_num_threads(options.threads)
    try:
        heal_settings, experts, bounds = settings_from(options)
        run = Run(
            out=options.out or data_folder(), work=options.work or cache_folder() / "train",
            device=options.device,
            compile=not options.no_compile, dtype=torch.float32 if options.fp32 else torch.bfloat16,
            seconds_limit=options.seconds_limit, checkpoint_every=options.checkpoint_every,
            host_bytes=int(options.host_gib * 2**30),
            command=command_line(options), say=make_say(options.log),
        )  # fmt: skip
        if options.what == "probe":
            trials = [Trial.parse(text) for text in options.trials or DEFAULT_TRIALS]
            probe(run, heal_settings, steps=options.probe_steps, trials=trials)
            return 0
        return (
            0
            if train(options.what, run, heal_settings=heal_settings, experts=experts, bounds=bounds, kinds=options.kinds)
            else 3
        )
    except FusionError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The options, as argparse gives them."""
    parser = argparse.ArgumentParser(prog="fusionlab train")
    parser.add_argument("what", choices=("small", "expert", "bounds", "predictor", "all", "probe"))
    parser.add_argument("--tasks", nargs="+", default=sorted(EXPERT_DEFAULTS), help="experts to train")
    parser.add_argument("--kinds", nargs="+", default=list(BOUNDS), choices=tuple(BOUNDS), help="bounds to train")
    parser.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE",
                        help="any setting: heal.steps=9000 corpus.chunks=30 math.epochs=16")  # fmt: skip
    parser.add_argument("--out", type=Path, help="folder of the weights (default: the package's data)")
    parser.add_argument("--work", type=Path, help="folder of corpus and checkpoints (default: in the cache)")
    parser.add_argument("--log", type=Path, help="also append every line to this file")
    parser.add_argument("--device", default=None)
    parser.add_argument("--no-compile", action="store_true")
    parser.add_argument("--fp32", action="store_true", help="matrix products in fp32 instead of bf16")
    parser.add_argument("--smoke", action="store_true", help="tiny numbers: does it run at all")
    parser.add_argument("--seconds-limit", type=float, default=float("inf"), help="stop healing after this long")
    parser.add_argument("--checkpoint-every", type=int, default=1000, metavar="STEPS")
    parser.add_argument("--host-gib", type=float, default=0.0,
                        help="host memory for the teacher's states when the GPU has no room")  # fmt: skip
    parser.add_argument("--probe-steps", type=int, default=300)
    parser.add_argument("--trials", nargs="+", metavar="OPTIMIZER:RATE:BATCH", help="what probe compares")
    parser.add_argument("--threads", type=int, default=0)
    options = parser.parse_args(arguments)
    if options.device is None:
        import torch

        options.device = "cuda" if torch.cuda.is_available() else "cpu"
    return options


def settings_from(options: argparse.Namespace) -> tuple[HealSettings, list[ExpertSettings], dict[str, Any]]:
    """Defaults, shrunk by --smoke, changed by --set; of the bounds, what is to be changed."""
    corpus, heal_settings = CorpusSettings(), HealSettings()
    if options.smoke:
        corpus = CorpusSettings(shards=2, chunks=1, rows=8, length=33)
        heal_settings = HealSettings(corpus=corpus, steps=4, batch=4, warmup_steps=2, evaluation_rows=2)
    changes = [change.partition("=") for change in options.set]
    known = {"corpus", "heal", "expert", "bounds", *options.tasks}
    for key, _, _ in changes:
        if key.partition(".")[0] not in known:
            raise UnknownNameError(f"unknown setting {key!r}", remedy=f"begin with one of {', '.join(sorted(known))}")
    corpus = changed(corpus, "corpus", changes)
    heal_settings = changed(replace(heal_settings, corpus=corpus), "heal", changes)
    experts = []
    for name in options.tasks:
        expert = EXPERT_DEFAULTS.get(name) or ExpertSettings(task=name)
        if options.smoke:
            expert = replace(expert, rank=8, alpha=16, **SMOKE)
        experts.append(changed(changed(expert, "expert", changes), name, changes))
    bounds = {**(SMOKE if options.smoke else {}), **read_changes(TuneSettings, "bounds", changes)}
    return heal_settings, experts, bounds


def changed(record: Record, prefix: str, changes: Sequence[tuple[str, str, str]]) -> Record:
    """`record` with every `prefix.field=value` of `changes` applied."""
    return replace(record, **read_changes(type(record), prefix, changes))  # type: ignore[type-var]


def read_changes(record: type, prefix: str, changes: Sequence[tuple[str, str, str]]) -> dict[str, Any]:
    """Field -> value of every `prefix.field=value` of `changes`; raises UnknownNameError for a field `record` lacks."""
    known = [field.name for field in fields(record)]
    found: dict[str, Any] = {}
    for key, _, text in changes:
        place, _, name = key.partition(".")
        if place != prefix:
            continue
        if name not in known:
            raise UnknownNameError(f"unknown setting {key!r}", remedy=f"known: {', '.join(known)}")
        found[name] = read_value(text)
    return found


def read_value(text: str) -> Any:
    """A number, true, false or null as JSON writes them (1e-3 too); anything else is text."""
    try:
        return json.loads(text)
    except ValueError:
        return text


def command_line(options: argparse.Namespace) -> str:
    """The command as a model card should show it: what changes the result, no paths."""
    parts = ["fusionlab train", options.what]
    if options.what != "small":
        parts += ["--tasks", *options.tasks]
    if options.what == "bounds" and options.kinds != list(BOUNDS):
        parts += ["--kinds", *options.kinds]
    if options.set:
        parts += ["--set", *options.set]
    return " ".join(parts + ["--smoke"] * options.smoke)


def make_say(log: Path | None) -> Callable[[str], None]:
    """A printer that also appends to `log`, each line with the seconds since the start."""
    begun = time.perf_counter()
    if log is not None:
        log.parent.mkdir(parents=True, exist_ok=True)

    def say(line: str) -> None:
        line = f"[{time.perf_counter() - begun:7.1f}] {line}"
        print(line, flush=True)
        if log is not None:
            with open(log, "a") as stream:
                stream.write(line + "\n")

    return say


if __name__ == "__main__":
    sys.exit(main())

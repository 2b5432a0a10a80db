"""Experts: LoRA adapters on the stored small model, one task each.

Minimised: one weighted mean of -log r(token), answer tokens (with the end of turn) at weight 1 and prompt
tokens at `prompt_weight`. That little attention to prompts is what lets `evidence` tell the experts' prompts
apart. Trained with PEFT in fp32 under bf16 autocast; the last steps see both factors as NF4 storage will
return them.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from fusionlab.embedded import EOS_ID
from fusionlab.train.losses import weighted_token_loss
from fusionlab.train.optimizers import rate_share
from fusionlab.train.quantize import FakeNf4
from fusionlab.train.settings import ExpertSettings

PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@dataclass(frozen=True)
class Example:
    """One training sequence: tokens, and how many of them are the prompt."""

    ids: tuple[int, ...]
    prompt_tokens: int


@dataclass(frozen=True)
class Trained:
    """A trained adapter: PEFT's state dict and configuration, and how it went."""

    tensors: dict[str, Tensor]
    config: dict[str, Any]
    steps: int
    seconds: float
    curve: list[dict[str, float]]


def lora_config(settings: ExpertSettings) -> Any:
    """PEFT's configuration of an expert."""
    from peft import LoraConfig

    return LoraConfig(
        r=settings.rank, lora_alpha=settings.alpha, target_modules=list(PROJECTIONS), lora_dropout=0.0,
        bias="none", task_type="CAUSAL_LM",
    )  # fmt: skip


def plain_config(config: Any) -> dict[str, Any]:
    """A LoraConfig as JSON-able values, only the fields that differ from PEFT's defaults."""
    whole, defaults = config.to_dict(), type(config)().to_dict()
    plain = {key: value for key, value in whole.items() if value != defaults.get(key)}
    plain |= {"peft_type": "LORA", "r": whole["r"], "lora_alpha": whole["lora_alpha"], "bias": "none"}
    return {key: sorted(value) if isinstance(value, set) else value for key, value in plain.items()}


def make_examples(task: Any, tokenizer: Any, settings: ExpertSettings, *, epoch: int) -> list[Example]:
    """The train split as token sequences; prompt and answer are tokenised apart, as they are met in use."""
    draw = random.Random(f"{settings.seed}:{epoch}")
    examples = []
    for item in task.train[: settings.train_items]:
        shots = draw.randint(0, settings.max_shots) if settings.max_shots else 0
        prompt = tokenizer.encode(task.prompt(item, shots=shots, seed=settings.seed + epoch))
        answer = tokenizer.encode(task.target(item))
        examples.append(Example((*prompt, *answer, EOS_ID), len(prompt)))
    return examples


def pad_batch(examples: Sequence[Example], *, prompt_weight: float, device: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Right-padded (B, T) tokens, attention mask and token weights of the loss."""
    longest = max(len(example.ids) for example in examples)
    ids = torch.full((len(examples), longest), EOS_ID)
    mask = torch.zeros(len(examples), longest, dtype=torch.long)
    weights = torch.zeros(len(examples), longest)
    for row, example in enumerate(examples):
        length, prompt = len(example.ids), example.prompt_tokens
        ids[row, :length] = torch.tensor(example.ids)
        mask[row, :length] = 1
        weights[row, :prompt] = prompt_weight
        weights[row, prompt:length] = 1.0
    return ids.to(device), mask.to(device), weights.to(device)


def iterate_batches(examples: Sequence[Example], *, batch: int, seed: int) -> Iterator[list[Example]]:
    """One epoch in a random order; batches hold sequences of like length, to pad little."""
    draw = random.Random(seed)
    order = list(range(len(examples)))
    draw.shuffle(order)
    pool = 8 * batch
    batches = []
    for start in range(0, len(order), pool):
        some = sorted(order[start : start + pool], key=lambda index: len(examples[index].ids))
        batches += [some[at : at + batch] for at in range(0, len(some), batch)]
    draw.shuffle(batches)
    for rows in batches:
        yield [examples[index] for index in rows]


def train_expert(
    small: Any, task: Any, tokenizer: Any, settings: ExpertSettings,
    *, dtype: torch.dtype = torch.bfloat16, log_every: int = 50, say: Callable[[str], None] = print,
) -> Trained:  # fmt: skip
    """Train an adapter on `small` (fp32, left unchanged) with products in `dtype`, and return it."""
    from peft import get_peft_model, get_peft_model_state_dict

    torch.manual_seed(settings.seed)
    config = lora_config(settings)
    model = get_peft_model(small, config)
    device = next(small.parameters()).device
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(
        parameters, lr=settings.learning_rate, betas=(0.9, 0.95), weight_decay=settings.weight_decay,
        fused=device.type == "cuda",
    )  # fmt: skip
    per_epoch = -(-len(task.train[: settings.train_items]) // settings.batch)
    steps = per_epoch * settings.epochs
    quantize_step = int(settings.quantize_from * steps)
    begun, step, tokens = time.perf_counter(), 0, 0
    running, logged = torch.zeros((), device=device), 0
    curve: list[dict[str, float]] = []
    examples: list[Example] = []
    for epoch in range(settings.epochs):
        if epoch == 0 or settings.max_shots:
            examples = make_examples(task, tokenizer, settings, epoch=epoch)
        for rows in iterate_batches(examples, batch=settings.batch, seed=settings.seed * 10_007 + epoch):
            if step == quantize_step and settings.quantize_from < 1:
                set_fake_nf4(model, on=True)
            rate = settings.learning_rate * rate_share(
                step, steps=steps, warmup=min(settings.warmup_steps, steps), final_share=settings.final_share
            )
            for group in optimizer.param_groups:
                group["lr"] = rate
            ids, mask, weights = pad_batch(rows, prompt_weight=settings.prompt_weight, device=device)
            with torch.autocast(device.type, dtype=dtype, enabled=dtype != torch.float32):
                logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits
            loss = weighted_token_loss(logits, ids, weights)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(parameters, settings.clip)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            running += loss.detach()
            step, tokens = step + 1, tokens + ids.numel()
            if step % log_every == 0 or step == steps or step == 1:
                mean, seconds = float(running) / (step - logged), time.perf_counter() - begun
                curve.append({"step": step, "loss_nats": round(mean, 4), "seconds": round(seconds, 1)})
                say(f"expert {settings.task} {step}/{steps}: loss {mean:.4f}, lr {rate:.2e}, "
                    f"{tokens / seconds:,.0f} tokens/s, {seconds:.0f} s")  # fmt: skip
                running.zero_()
                logged = step
    set_fake_nf4(model, on=False)
    state = get_peft_model_state_dict(model, save_embedding_layers=False)  # "auto" would ask the hub
    tensors = {name: tensor.detach().cpu().clone() for name, tensor in state.items()}
    model.unload()
    return Trained(tensors, plain_config(config), step, time.perf_counter() - begun, curve)


def set_fake_nf4(model: nn.Module, *, on: bool) -> None:
    """Let every LoRA factor of `model` pass through fake NF4, or take that away and keep the masters."""
    factors: list[Any] = [
        module for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and (".lora_A." in name or ".lora_B." in name)
    ]  # fmt: skip
    for module in factors:
        parametrized = parametrize.is_parametrized(module, "weight")
        if on and not parametrized:
            parametrize.register_parametrization(module, "weight", FakeNf4())
        elif not on and parametrized:
            master = module.parametrizations.weight.original.detach().clone()
            parametrize.remove_parametrizations(module, "weight", leave_parametrized=True)
            with torch.no_grad():
                module.weight.copy_(master)


def attach_adapter(small: Any, tensors: dict[str, Tensor], config: dict[str, Any]) -> Any:
    """`small` with the adapter on it as a PEFT model; undo with its `unload()`."""
    from peft import LoraConfig, get_peft_model, set_peft_model_state_dict

    fields = {key: value for key, value in config.items() if key != "peft_type"}
    model = get_peft_model(small, LoraConfig(**fields))
    outcome = set_peft_model_state_dict(model, dict(tensors))
    if outcome.unexpected_keys:
        raise ValueError(f"adapter keys that this model lacks: {outcome.unexpected_keys[:3]}")
    return model.eval()


@torch.no_grad()
def exact_match(
    model: Any, task: Any, tokenizer: Any, *, items: int | None = None, batch: int = 256
) -> dict[str, float | int]:
    """Greedy score of `model` alone on the test set, 0-shot, in per cent with its standard error."""
    device = next(model.parameters()).device
    tested = task.test[:items]
    scores: list[float] = []
    for start in range(0, len(tested), batch):
        some = tested[start : start + batch]
        inputs = tokenizer([task.prompt(item) for item in some], return_tensors="pt", padding=True).to(device)
        written = model.generate(
            input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"], do_sample=False,
            max_new_tokens=task.max_new_tokens, eos_token_id=EOS_ID, pad_token_id=EOS_ID,
        )  # fmt: skip
        texts = tokenizer.batch_decode(written[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        scores += [task.score(text, item) for text, item in zip(texts, some, strict=True)]
    mean = sum(scores) / len(scores)
    error = (sum((score - mean) ** 2 for score in scores)) ** 0.5 / len(scores)
    return {"percent": round(100 * mean, 1), "standard_error": round(100 * error, 1), "n": len(scores)}


@torch.no_grad()
def prompt_log_likelihoods(model: Any, prompts: Sequence[str], tokenizer: Any, *, batch: int = 64) -> Tensor:
    """log p(prompt without its first token) of each prompt, nats. -> (N,) fp32 on the CPU."""
    device = next(model.parameters()).device
    parts = []
    for start in range(0, len(prompts), batch):
        some = [Example(tuple(tokenizer.encode(text)), 0) for text in prompts[start : start + batch]]
        ids, mask, weights = pad_batch(some, prompt_weight=0.0, device=device)
        log_p = torch.log_softmax(model(input_ids=ids, attention_mask=mask).logits[:, :-1].float(), -1)
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

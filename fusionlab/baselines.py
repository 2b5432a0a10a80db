"""What fusion is compared with: one model of the team writing alone, through its own `generate`.

Proxy tuning (arXiv 2401.08565) is the fusion method "static" and needs nothing here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from fusionlab.allocator import release_freed_memory
from fusionlab.prompts import Prompt, check_lengths, check_prompts, cut_at_stop

if TYPE_CHECKING:
    from fusionlab.team import Team


@torch.inference_mode()
def generate_alone(
    team: Team, name: str, prompts: Prompt | Sequence[Prompt], *, max_new_tokens: int = 64,
    stop: Sequence[str] = (), batch_size: int = 16,
) -> list[str]:  # fmt: skip
    """Greedy answers of one member alone: "large", "small" or an expert's name.

    stop: strings that end an answer (see `prompts.cut_at_stop`). Raises `PromptError`, `UnknownNameError`.
    """
    batch = check_prompts(prompts)
    if name not in ("large", "small"):
        team.choose_experts([name])
    model, tokenizer = team.model_of(name), team.tokenizer_of(name)
    if team.backbone is not None and model is team.backbone.model:
        alone = team.is_adapter(name) if name != "small" else False
        team.backbone.select([name] if alone else [], with_small=not alone)
    encoded = team.encode(batch, name)
    check_lengths([len(ids) for ids in encoded], max_new_tokens, team.context_length())
    texts: list[str] = []
    for start in range(0, len(batch), batch_size):
        inputs = tokenizer.pad({"input_ids": encoded[start : start + batch_size]}, return_tensors="pt").to(model.device)
        width = inputs["input_ids"].shape[1]
        written = model.generate(
            **inputs, do_sample=False, max_new_tokens=max_new_tokens, eos_token_id=sorted(team.eos_ids()),
            pad_token_id=tokenizer.pad_token_id or 0,
            stopping_criteria=[StopStrings(tokenizer, stop, width)] if stop else None,
        )  # fmt: skip
        answers = tokenizer.batch_decode(written[:, width:], skip_special_tokens=True)
        texts += [cut_at_stop(answer, stop) for answer in answers]
        release_freed_memory()
    return texts


class StopStrings:
    """Ends each row of a Hugging Face `generate` once its new text holds a stop string."""

    def __init__(self, tokenizer: Any, stop: Sequence[str], prompt_width: int) -> None:
        self.tokenizer, self.stop, self.prompt_width = tokenizer, tuple(stop), prompt_width

    def __call__(self, input_ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
        """(B, T) ids -> (B,) true where the row is finished."""
        texts = self.tokenizer.batch_decode(input_ids[:, self.prompt_width :], skip_special_tokens=True)
        finished = [cut_at_stop(text, self.stop) != text for text in texts]
        return torch.tensor(finished, device=input_ids.device)

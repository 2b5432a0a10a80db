"""A causal language model that reads token rows and keeps its own key-value cache.

Symbols: N rows (prompts x members), T tokens per row in this read, H hidden size, V shared vocabulary.
Rows are padded on the left. A `CachedModel` returns features (hidden states), and heads are applied
separately, so that models which share one embedding matrix share one matrix product (`apply_heads`).
It does not know what its rows mean; `decode` decides who sits in which row.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from fusionlab.errors import ModelError

if TYPE_CHECKING:
    import torch


class CachedModel:
    """One Hugging Face causal LM with the cache, mask and positions of the rows that it is reading."""

    def __init__(self, model: Any, *, plain_head: bool = True) -> None:
        from fusionlab.key_values import make_cache  # torch-heavy

        self.model = model
        self.plain_head = plain_head  # logits are the head applied to the hidden state, nothing more
        self.cache = make_cache(model.config)
        self.attention_mask: torch.Tensor | None = None  # (N, tokens read); None when nothing is padded
        self.positions: torch.Tensor | None = None  # (N,) position of the next token, when padded
        self.tokens_read = 0
        self.forward_passes = 0

    @property
    def device(self) -> torch.device:
        """Where token ids have to be."""
        device: torch.device = self.model.get_input_embeddings().weight.device
        return device

    def read(self, ids: torch.Tensor, attention_mask: torch.Tensor | None = None) -> torch.Tensor:
        """Read `ids` (N, T) after what was read before; returns features (N, T, H), or logits (N, T, V')
        where the head is not plain.

        attention_mask: (N, T) with 0 at left padding, at the first read only.
        """
        positions = self._advance(ids, attention_mask)
        inputs = {"input_ids": ids, "attention_mask": self.attention_mask, "position_ids": positions,
                  "past_key_values": self.cache, "use_cache": True}  # fmt: skip
        self.forward_passes += 1
        if self.plain_head:
            features: torch.Tensor = self.model.base_model(**inputs).last_hidden_state
        else:
            features = self.model(**inputs).logits
        return features

    def _advance(self, ids: torch.Tensor, attention_mask: torch.Tensor | None) -> torch.Tensor:
        """Account for the coming tokens; returns their positions (N, T)."""
        import torch

        length = ids.shape[1]
        if self.tokens_read == 0 and attention_mask is not None and not bool(attention_mask.all()):
            self.attention_mask = attention_mask
            self.positions = attention_mask.sum(-1)
            positions = (attention_mask.cumsum(-1) - 1).clamp(min=0)
        elif self.positions is not None and self.attention_mask is not None:
            positions = self.positions[:, None] + torch.arange(length, device=ids.device)
            self.positions = self.positions + length
            self.attention_mask = torch.nn.functional.pad(self.attention_mask, (0, length), value=1)
        else:
            steps = torch.arange(self.tokens_read, self.tokens_read + length, device=ids.device)
            positions = steps.expand(ids.shape[0], -1)
        self.tokens_read += length
        return positions

    def crop(self, tokens: int) -> None:
        """Forget the last `tokens` tokens of every row, as if they had never been read.

        Raises `ModelError` where the model's cache no longer holds what it would have to go back to (sliding windows that
        are full, linear attention).
        """
        try:
            self.cache.crop(-tokens)
        except (RuntimeError, ValueError) as error:
            raise ModelError(f"this model's cache cannot go back: {error}", remedy="read the text again") from error
        self.tokens_read -= tokens
        if self.attention_mask is not None and self.positions is not None:
            self.attention_mask = self.attention_mask[:, : self.attention_mask.shape[1] - tokens]
            self.positions = self.positions - tokens

    def keep_rows(self, rows: torch.Tensor) -> None:
        """Forget every row that is not in `rows` (indices)."""
        rows = rows.to(self.device)
        self.cache.batch_select_indices(rows)
        if self.attention_mask is not None and self.positions is not None:
            self.attention_mask = self.attention_mask[rows]
            self.positions = self.positions[rows]


def apply_heads(readers: Sequence[CachedModel], features: Sequence[torch.Tensor], width: int) -> list[torch.Tensor]:
    """fp32 logits of each model, with one matrix product per distinct head matrix.

    features: one (n_i, H_i) per model. Returns one (n_i, width) per model, cut to the shared vocabulary.
    """
    import torch

    logits: dict[int, torch.Tensor] = {}
    by_head: dict[int, list[int]] = {}
    for index, reader in enumerate(readers):
        if reader.plain_head:
            by_head.setdefault(reader.model.get_output_embeddings().weight.data_ptr(), []).append(index)
        else:
            logits[index] = features[index]
    for sharing in by_head.values():
        head = readers[sharing[0]].model.get_output_embeddings()
        rows = torch.cat([features[index] for index in sharing]) if len(sharing) > 1 else features[sharing[0]]
        logits.update(zip(sharing, head(rows).split([len(features[index]) for index in sharing]), strict=True))
    return [logits[index][..., :width].float() for index in range(len(readers))]


def has_plain_head(model: Any) -> bool:
    """Whether the model's logits are its head applied to its last hidden state and nothing more.

    Some architectures scale or cap logits after the head (Gemma 2, Cohere, Granite); a probe of one token
    tells, so no list of architectures is kept.
    """
    import torch

    ids = torch.ones(1, 1, dtype=torch.long, device=model.get_input_embeddings().weight.device)
    with torch.inference_mode():
        logits = model(input_ids=ids, use_cache=False).logits
        hidden = model.base_model(input_ids=ids, use_cache=False).last_hidden_state
        by_hand = model.get_output_embeddings()(hidden)
    return by_hand.shape == logits.shape and torch.allclose(by_hand, logits, rtol=1e-3, atol=1e-3)

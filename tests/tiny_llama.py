"""A random Llama and tokenizers of letters, for tests of training."""

from __future__ import annotations

from typing import Any

import torch

VOCABULARY = 128


class Letters:
    """A tokenizer for tests: one token per byte below the vocabulary."""

    def encode(self, text: str) -> list[int]:
        return [ord(letter) % VOCABULARY for letter in text]

    def __len__(self) -> int:
        return VOCABULARY


class HfLetters(Letters):
    """`Letters` with the two calls that scoring makes."""

    def __call__(self, texts: list[str], padding: bool = False, **_: Any) -> Any:
        from transformers import BatchEncoding

        rows = [self.encode(text) for text in texts]
        if not padding:
            return BatchEncoding({"input_ids": rows})
        longest = max(map(len, rows))
        ids = torch.tensor([[0] * (longest - len(row)) + row for row in rows])
        mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows])
        return BatchEncoding({"input_ids": ids, "attention_mask": mask})

    def batch_decode(self, rows: Any, **_: Any) -> list[str]:
        return ["".join(map(chr, row)) for row in rows.tolist()]


def tiny_llama(*, layers: int = 3, seed: int = 0) -> Any:
    """A random Llama with grouped queries and sizes that NF4 blocks divide."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=64, intermediate_size=128, num_hidden_layers=layers,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=64, tie_word_embeddings=True,
        initializer_range=0.3, pad_token_id=2, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()

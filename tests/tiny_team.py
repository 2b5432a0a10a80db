"""A team of tiny random Llama models with a word-level tokenizer: real code paths in milliseconds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from fusionlab.adapters import Adapter, SharedBackbone
from fusionlab.models import LoadedModel, ModelSource
from fusionlab.team import Expert, Team

WORDS = [f"w{i}" for i in range(61)]
MODULES = ("self_attn.q_proj", "self_attn.v_proj", "mlp.down_proj")


def make_tokenizer(words: list[str] | None = None) -> Any:
    """Ids 0-2 are <unk>, <pad>, <eos>; then one id a word; 64 in all."""
    vocabulary = {token: index for index, token in enumerate(["<unk>", "<pad>", "<eos>", *(words or WORDS)])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="<unk>",
        pad_token="<pad>",
        eos_token="<eos>",
        padding_side="left",
    )


def make_model(seed: int, *, layers: int = 2, vocab: int = 64, hidden: int = 32) -> Any:
    """A random fp32 Llama with tied embeddings, logits spread enough for greedy choices to be clear."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=vocab, hidden_size=hidden, intermediate_size=48, num_hidden_layers=layers,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=128, tie_word_embeddings=True,
        initializer_range=0.3, eos_token_id=2, pad_token_id=1, bos_token_id=None,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


def make_adapter(model: Any, name: str, seed: int, *, rank: int = 3, strength: float = 0.5) -> Adapter:
    """Random low-rank changes on every layer's q, v and down projections."""
    generator = torch.Generator().manual_seed(seed)
    changes = {}
    for module, layer in model.named_modules():
        if module.endswith(MODULES):
            layer = getattr(layer, "base", layer)  # already under another expert
            down = torch.randn(rank, layer.in_features, generator=generator) / layer.in_features**0.5
            up = torch.randn(layer.out_features, rank, generator=generator) * strength
            changes[module] = (down, up, 2.0)
    return Adapter(name, changes)


def make_team(*, experts: dict[str, float] | None = None, seed: int = 0) -> Team:
    """large (2 layers), small (1 layer) and adapter experts; experts: name -> strength (0: equal to small)."""
    tokenizer = make_tokenizer()
    large, small = make_model(seed), make_model(seed + 1, layers=1)
    backbone = SharedBackbone(small)
    loaded = {}
    for index, (name, strength) in enumerate((experts or {"a": 0.5, "b": 0.5}).items()):
        backbone.add(make_adapter(small, name, seed + 10 + index, strength=strength))
        loaded[name] = Expert(name, f"test/{name}", "local")
    return Team(
        large=LoadedModel(large, tokenizer, ModelSource("test/large"), "local"),
        small=LoadedModel(small, tokenizer, ModelSource("test/small"), "local"),
        experts=loaded, backbone=backbone,
    )  # fmt: skip


def save_model(model: Any, tokenizer: Any, folder: Path) -> Path:
    """A folder that `from_pretrained` reads."""
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder

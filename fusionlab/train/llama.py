"""The Llama forward as plain functions on stacked weights: for sampling and training at full speed.

One code path for the large model, the small one, full sequences and single cached tokens; it follows the
published architecture (RMSNorm, rotary positions on half-split heads, grouped queries, SwiGLU) and is held
equal to transformers' by a test. A matrix of all layers is one tensor, so that an optimizer can treat the
layers as a batch. Knows nothing of losses, data or files.

Symbols: L layers, H hidden size, D head size, K key-value heads, G queries per key-value head, B rows,
T positions.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fusionlab.train.attention import attend_one_token

# our name -> where transformers keeps it in a layer
LAYER_NAMES = {
    "norm_attention": "input_layernorm",
    "query": "self_attn.q_proj",
    "key": "self_attn.k_proj",
    "value": "self_attn.v_proj",
    "output": "self_attn.o_proj",
    "norm_mlp": "post_attention_layernorm",
    "gate": "mlp.gate_proj",
    "up": "mlp.up_proj",
    "down": "mlp.down_proj",
}
MATRIX_NAMES = tuple(name for name in LAYER_NAMES if not name.startswith("norm"))


@dataclass(frozen=True)
class Llama:
    """Weights and constants of one model.

    layers: our name -> (L, out, in), norms (L, H); norm: (H,); embedding: (V, H), tied with the head.
    """

    layers: dict[str, Tensor]
    norm: Tensor
    embedding: Tensor
    frequencies: Tensor  # (D/2,) radians per position
    epsilon: float
    dtype: torch.dtype  # of the matrix products

    @property
    def parameters(self) -> dict[str, Tensor]:
        """What training changes: everything but the embedding."""
        return {**self.layers, "norm": self.norm}

    @property
    def heads(self) -> tuple[int, int, int]:
        """(K, G, D)."""
        size = 2 * len(self.frequencies)
        keys = self.layers["key"].shape[1] // size
        return keys, self.layers["query"].shape[1] // (keys * size), size

    def layer_weights(self, *, matrix: Callable[[Tensor], Tensor] = lambda weight: weight) -> list[list[Tensor]]:
        """Per layer its nine tensors in the order of LAYER_NAMES, matrices passed through `matrix` first."""
        stacks = [matrix(stack).to(self.dtype) if name in MATRIX_NAMES else stack for name, stack in self.layers.items()]
        return [list(tensors) for tensors in zip(*(stack.unbind(0) for stack in stacks), strict=True)]


def read_llama(model: Any, *, dtype: torch.dtype) -> Llama:
    """The weights of a transformers Llama with tied embeddings, matrices and embedding in `dtype`."""
    state = model.state_dict()
    depth = model.config.num_hidden_layers
    layers = {
        name: torch.stack([state[f"model.layers.{layer}.{place}.weight"] for layer in range(depth)])
        for name, place in LAYER_NAMES.items()
    }
    return Llama(
        layers={name: stack.to(dtype) if name in MATRIX_NAMES else stack.float() for name, stack in layers.items()},
        norm=state["model.norm.weight"].float(),
        embedding=state["model.embed_tokens.weight"].to(dtype),
        frequencies=model.model.rotary_emb.inv_freq.float(),
        epsilon=model.config.rms_norm_eps,
        dtype=dtype,
    )


def with_parameters(model: Llama, parameters: dict[str, Tensor]) -> Llama:
    """`model` with other trained weights (keys of `Llama.parameters`)."""
    return replace(model, layers={name: parameters[name] for name in model.layers}, norm=parameters["norm"])


def state_from_llama(model: Llama) -> dict[str, Tensor]:
    """The trained weights under transformers' names, without the embedding, as `build_small` takes them."""
    state = {"model.norm.weight": model.norm}
    for name, place in LAYER_NAMES.items():
        for layer, weight in enumerate(model.layers[name].unbind(0)):
            state[f"model.layers.{layer}.{place}.weight"] = weight
    return {name: tensor.detach().clone() for name, tensor in state.items()}


# -- the layer, in two halves around the attention (each compiles to a few kernels) ------------------


def rms_norm(x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    """RMSNorm in fp32."""
    x = x.float()
    return weight * (x * torch.rsqrt(x.square().mean(-1, keepdim=True) + epsilon))


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary positions on half-split heads. x: (..., heads, D); cos, sin: broadcast to (..., 1, D/2)."""
    first, second = x.float().chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1).to(x.dtype)


def before_attention(
    x: Tensor, norm: Tensor, query: Tensor, key: Tensor, value: Tensor, cos: Tensor, sin: Tensor,
    epsilon: float, size: int,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """x: (..., H) -> queries (..., K*G, D), keys and values (..., K, D)."""
    h = rms_norm(x, norm, epsilon).to(query.dtype)
    queries, keys, values = (
        F.linear(h, weight).unflatten(-1, (weight.shape[0] // size, size)) for weight in (query, key, value)
    )
    return rotate(queries, cos, sin), rotate(keys, cos, sin), values


def after_attention(
    x: Tensor, attended: Tensor, output: Tensor, norm: Tensor, gate: Tensor, up: Tensor, down: Tensor,
    epsilon: float,
) -> Tensor:  # fmt: skip
    """x: (..., H), attended: (..., K*G*D) -> (..., H); the residual stream keeps the dtype of x."""
    x = x + F.linear(attended, output)
    h = rms_norm(x, norm, epsilon).to(gate.dtype)
    return x + F.linear(F.silu(F.linear(h, gate)) * F.linear(h, up), down)


@dataclass(frozen=True)
class Kernels:
    """The two halves of a layer and the attention of one cached token, plain or compiled."""

    before: Callable[..., tuple[Tensor, Tensor, Tensor]] = before_attention
    after: Callable[..., Tensor] = after_attention
    attend: Callable[..., Tensor] = attend_one_token


# -- full sequences ------------------------------------------------------------------------------


def hidden_states(
    model: Llama, ids: Tensor, *, kernels: Kernels | None = None,
    matrix: Callable[[Tensor], Tensor] = lambda weight: weight,
) -> Tensor:  # fmt: skip
    """Final normed states of every position, in `model.dtype`. ids: (B, T) int64 -> (B, T, H)."""
    kernels = kernels or Kernels()
    _, _, size = model.heads
    angles = torch.outer(torch.arange(ids.shape[1], device=ids.device).float(), model.frequencies)
    cos, sin = angles.cos()[:, None], angles.sin()[:, None]  # (T, 1, D/2)
    x = F.embedding(ids, model.embedding).float()
    for weights in model.layer_weights(matrix=matrix):
        norm_attention, query, key, value, output, norm_mlp, gate, up, down = weights
        q, k, v = kernels.before(x, norm_attention, query, key, value, cos, sin, model.epsilon, size)
        attended = F.scaled_dot_product_attention(
            q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), is_causal=True, enable_gqa=True
        )
        attended = attended.transpose(1, 2).reshape(*ids.shape, -1)
        x = kernels.after(x, attended, output, norm_mlp, gate, up, down, model.epsilon)
    return rms_norm(x, model.norm, model.epsilon).to(model.dtype)


def logits_from_states(model: Llama, states: Tensor) -> Tensor:
    """(..., H) -> (..., V) in `model.dtype`."""
    return F.linear(states, model.embedding)


# -- one token with a cache ------------------------------------------------------------------------


@dataclass(frozen=True)
class Cache:
    """Keys and values of all layers: (L, B, K, T, D) each, filled up to the current position."""

    keys: Tensor
    values: Tensor


def empty_cache(model: Llama, *, rows: int, positions: int) -> Cache:
    """Room for `positions` tokens of `rows` sequences."""
    keys, _, size = model.heads
    shape = (len(model.layers["key"]), rows, keys, positions, size)
    made = [torch.zeros(shape, dtype=model.dtype, device=model.embedding.device) for _ in range(2)]
    return Cache(*made)


def next_token_states(
    model: Llama, weights: list[list[Tensor]], ids: Tensor, cache: Cache, position: int,
    *, kernels: Kernels | None = None,
) -> Tensor:  # fmt: skip
    """Feed one token per row at `position`: ids (B,) -> final normed states (B, H), in `model.dtype`.

    weights: `model.layer_weights()`, taken once. The queries of a key-value head go through the attention
    as so many positions of one head, so that no key is ever repeated in memory. `logits_from_states` makes
    the next token's logits of the result.
    """
    kernels = kernels or Kernels()
    groups, per_group, size = model.heads
    angles = (position * model.frequencies)[None]
    cos, sin = angles.cos(), angles.sin()  # (1, D/2)
    x = F.embedding(ids, model.embedding).float()
    for layer, (norm_attention, query, key, value, output, norm_mlp, gate, up, down) in enumerate(weights):
        q, k, v = kernels.before(x, norm_attention, query, key, value, cos, sin, model.epsilon, size)
        cache.keys[layer, :, :, position] = k
        cache.values[layer, :, :, position] = v
        attended = kernels.attend(q.unflatten(1, (groups, per_group)), cache.keys[layer], cache.values[layer], position + 1)
        x = kernels.after(x, attended.flatten(1), output, norm_mlp, gate, up, down, model.epsilon)
    return rms_norm(x, model.norm, model.epsilon).to(model.dtype)

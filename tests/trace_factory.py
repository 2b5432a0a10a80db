"""Traces made without any model: small random vocabularies, but real softmaxes, KLs, tables and search of J."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import torch

from fusionlab.tables import empty_tables, tabulate_step
from fusionlab.trace import TABLE_ARRAYS, Trace

WORDS = (
    "the a of to is in and Paris London Berlin Rome 42 43 7 14 so answer are there each total capital + - * "
    "city currency peso euro yen franc Chile Japan Peru left apples buys gives has with for it was"
)
VOCABULARY = ["<|end|>", "\n", "\ufffd", " ", ".", ",", "?", *(f" {word}" for word in WORDS.split())]

# texts that a page, a terminal or a figure could take for orders, and a character spread over three tokens
HOSTILE = [
    "<img src=x onerror=alert(1)>",
    "</script>",
    "<!--",
    "\x1b[31m",
    "\u202etxet",
    "&lt;",
    "\u2028",
    "\x00",
]
EMOJI_PIECES = ["Hi", " \ufffd", "\ufffd", "\ufffd", "!"]
EMOJI_TEXT = "Hi 🦊!"


def make_trace(
    pieces: list[str] | None = None,
    *,
    text: str | None = None,
    experts: tuple[str, ...] = ("math", "trivia"),
    level: str = "full",
    top_k: int = 10,
    seed: int = 0,
    prompt: str = "Question: What is the capital of Chile?\nAnswer:",
    tables: bool = True,
    **changes: Any,
) -> Trace:
    """A trace whose figures agree: fused = P * (R/Q)^alpha, alpha from a search of J, flips as they fall.

    Experts take turns at being relevant: each owns a stretch of the text, where it favours the emitted token.
    tables=False: a full trace as version 1 had it, without `TABLE_ARRAYS`.
    """
    rng = np.random.default_rng(seed)
    pieces = [" Santiago", ".", "\n"] if pieces is None else pieces
    vocabulary = list(dict.fromkeys([*pieces, *VOCABULARY]))
    ids = np.array([vocabulary.index(piece) for piece in pieces], np.int32)
    n, e, k = len(pieces), len(experts), min(top_k, len(vocabulary))
    grid = np.linspace(0, 2, 21, dtype=np.float32)
    columns: dict[str, list[Any]] = {name: [] for name in _COLUMNS}
    evidence = np.zeros(e)
    for i, token in enumerate(ids):
        owner = (i * e) // max(n, 1) if e else -1
        step = _one_step(rng, int(token), len(vocabulary), e, owner, grid)
        step["evidence"] = evidence.copy()
        step |= _tables_of(step, grid)
        models = step["log_probs"]
        evidence = evidence + models["experts"][:, token] - models["small"][token]
        for name, value in _columns_of(step, int(token), k).items():
            columns[name].append(value)
    shapes = _empty_shapes(e, k, len(grid))
    shapes |= {name: rows.shape[1:] for name, rows in empty_tables(0, grid.astype(float), e).items()}
    arrays = {name: np.array(rows) if n else np.zeros((0, *shapes[name])) for name, rows in columns.items()}
    arrays["candidate_ids"] = arrays["candidate_ids"].astype(np.int32)
    grids = {name: arrays.pop(name) for name in ("grid_kl_forward", "grid_kl_reverse", *TABLE_ARRAYS)}
    if not tables:
        grids = {name: grids[name] for name in ("grid_kl_forward", "grid_kl_reverse")}
    return Trace(
        **{
            "prompt": prompt,
            "text": "".join(pieces) if text is None else text,
            "experts": experts,
            "method": "exact",
            "constraint": {"scale": 1.0, "direction": "both", "alpha_max": 2.0, "budget": None},
            "level": level,
            "token_ids": ids,
            "pieces": tuple(pieces),
            "topk_pieces": dict(enumerate(vocabulary)),
            **arrays,
            **(grids | {"grid": grid} if level == "full" else {}),
            "meta": {
                "models": {
                    "large": {"id": "embedded/large-135M", "dtype": "float32", "quantization": "q4_1"},
                    "small": {"id": "embedded/small-50M", "revision": "1", "quantization": "nf4"},
                    "experts": {name: {"id": f"embedded/{name}", "revision": "1"} for name in experts},
                },
                "seed": seed,
                "sampling": {"temperature": 0.0},
                "versions": {"fusionlab": "0.1.0", "torch": "2.13.0"},
                "created": "2026-11-23T23:30:00+00:00",
            },
            **changes,
        }
    )


def make_ended_trace() -> Trace:
    """A trace whose last token ends the answer, and whose text holds the same letters as ordinary text."""
    trace = make_trace([" Paris", " <|im_end|>", "<|im_end|>"], text=" Paris <|im_end|>")
    return dataclasses.replace(trace, meta=trace.meta | {"end_ids": [int(trace.token_ids[-1])]})


MODELS = ("large", "small", "fused", "experts")
_VECTORS = ["alpha", "target_forward", "target_reverse", "evidence", "entropy_experts", "logprob_experts"]
_SCALARS = [
    "kl_forward",
    "kl_reverse",
    "large_choice",
    "flipped",
    "flipped_by",
    "clamped",
    "drafted",
    "accepted",
]
_SCALARS += [f"{kind}_{model}" for kind in ("entropy", "logprob") for model in MODELS[:3]]
_LISTS = [f"topk_{kind}_{model}" for kind in ("ids", "logprobs") for model in MODELS]
_COLUMNS = (*_VECTORS, *_SCALARS, *_LISTS, "grid_kl_forward", "grid_kl_reverse", *TABLE_ARRAYS)


def _tables_of(step: dict[str, Any], grid: Any) -> dict[str, Any]:
    """The recorder's tables of one step."""
    weights = grid.astype(float)
    if len(step["log_probs"]["experts"]):
        large, small, _, own = (torch.from_numpy(step["log_probs"][model]) for model in MODELS)
        evidence = torch.from_numpy(step["evidence"])[None]
        found = tabulate_step(large[None], small[None], own[:, None], weights, evidence, mixes=False)
    else:
        found = empty_tables(1, weights)
    return {name: rows[0] for name, rows in found.items()}


def _empty_shapes(e: int, k: int, g: int) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = dict.fromkeys(_VECTORS, (e,))
    shapes |= dict.fromkeys(_SCALARS, ())
    shapes |= {name: (e, k) if name.endswith("experts") else (k,) for name in _LISTS}
    return shapes | {"grid_kl_forward": (e, g), "grid_kl_reverse": (e, g)}


def _log_softmax(logits: Any) -> Any:
    shifted = logits - logits.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def _kl(a: Any, b: Any) -> Any:
    return (np.exp(a) * (a - b)).sum(-1)


def _one_hot(size: int, index: int, value: float) -> Any:
    return np.where(np.arange(size) == index, value, 0.0)


def _one_step(rng: Any, token: int, v: int, e: int, owner: int, grid: Any) -> dict[str, Any]:
    base = rng.normal(size=v)
    peaked = rng.uniform(0.6, 1.4)
    log_q = _log_softmax(base + _one_hot(v, token, rng.uniform(0, 3.5)))
    rival = int(rng.integers(v)) if rng.random() < 0.3 else token
    wanted = _one_hot(v, token, rng.uniform(3, 6)) + _one_hot(v, rival, rng.uniform(3, 5))
    log_p = _log_softmax(peaked * (base + wanted))
    push = np.zeros((e, v))
    if e:
        push[owner, token] = rng.uniform(0.1, 2.5)
    log_r = _log_softmax(log_q + push + rng.normal(size=(e, v)) * 0.15)
    delta = log_r - log_q
    fused = _log_softmax(log_p + grid[:, None, None] * delta)  # (G, E, V)
    forward, reverse = _kl(fused, log_p).T, _kl(log_p, fused).T  # (E, G)
    f, g = _kl(log_r, log_q), _kl(log_q, log_r)
    objective = (forward - f[:, None]) ** 2 + (reverse - g[:, None]) ** 2
    alpha = np.zeros(e)
    if e:
        alpha[owner] = grid[objective[owner].argmin()]
    log_fused = _log_softmax(log_p + alpha @ delta)
    flipped = bool(log_fused.argmax() != log_p.argmax())
    return {
        "log_probs": dict(zip(MODELS, (log_p, log_q, log_fused, log_r), strict=True)),
        "alpha": alpha,
        "target_forward": f,
        "target_reverse": g,
        "kl_forward": _kl(log_fused, log_p),
        "kl_reverse": _kl(log_p, log_fused),
        "large_choice": int(log_p.argmax()),
        "flipped": flipped,
        "flipped_by": owner if flipped else -1,
        "clamped": 0,
        "drafted": bool(rng.random() < 0.5),
        "grid_kl_forward": forward,
        "grid_kl_reverse": reverse,
    }


def _columns_of(step: dict[str, Any], token: int, k: int) -> dict[str, Any]:
    values = {name: value for name, value in step.items() if name != "log_probs"} | {"accepted": step["drafted"]}
    for name, log_probs in step["log_probs"].items():
        order = np.argsort(-log_probs, axis=-1, kind="stable")[..., :k]
        values[f"topk_ids_{name}"] = order.astype(np.int32)
        values[f"topk_logprobs_{name}"] = np.take_along_axis(log_probs, order, -1)
        values[f"logprob_{name}"] = log_probs[..., token]
        values[f"entropy_{name}"] = -(np.exp(log_probs) * log_probs).sum(-1)
    return values

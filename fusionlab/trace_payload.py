"""A trace as the browser's views read it: JSON-able, compact, harmless inside a page.

Knows nothing of torch or of models; fusionlab/page/payload.js reads what is written here. Numbers by token travel as
base64 of little-endian arrays: float32 where solving again depends on them, 16 bits where only a picture or a percentage
does. Texts have passed through `visible`, so that no character can hide or reorder others.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping, Sequence
from typing import Any

from fusionlab.errors import TraceError
from fusionlab.trace import REST_WEIGHTS, TABLE_ARRAYS, Trace
from fusionlab.trace_fields import even_grid
from fusionlab.trace_text import expert_letter, group_pieces, visible

TOP_SHOWN = 8  # entries of each top-k list that a payload carries; the file keeps all
READ_EVIDENCE = ("evidence", "predicted")  # methods whose traces hold evidence
NOT_SOLVED_AGAIN = {
    "joint": "`joint` needs all experts' changes at once, which a trace does not keep: shown as `exact`.",
    "predicted": "`predicted` needs the distributions themselves: shown as the search that it stands in for.",
}


def trace_payload(
    trace: Trace, *, start: int = 0, alternatives: Sequence[Mapping[str, Any]] | None = None
) -> dict[str, Any]:
    """What `mountTrace` and `mountViews` (fusionlab/page/controls.js, views.js) show of a trace.

    >>> payload = trace_payload(result.traces[0])                              # doctest: +SKIP
    >>> payload = trace_payload(trace, alternatives=[{"name": "large alone", "token_ids": [...], "pieces": [...]}])
    ... # doctest: +SKIP

    start: leave out the tokens before it. A trace that grows is sent once whole, `trace_payload(trace)` with
    `setPayload`, and then by what is new, `trace_payload(trace, start=n)` with `appendToken`, n being what was sent.
    alternatives: the same prompt answered by others, for the comparison of texts; `pieces` are one text a token. None:
    those that the trace keeps as `meta["alternatives"]`, if any.

    The result is plain dicts, lists, texts and numbers, and can be given to json.dumps (or a widget's Dict trait) as it
    is. Numbers by token are base64 of little-endian arrays. Its layout belongs to the scripts of the same release.

    Raises `TraceError` where `start` is beyond the trace.
    """
    if not 0 <= start <= len(trace):
        raise TraceError(f"start is {start} of a trace of {len(trace)} tokens", remedy="count tokens from 0")
    if alternatives is None:
        alternatives = trace.meta.get("alternatives", ())
    rows = slice(start, None)
    vocabulary = _Vocabulary(trace)
    arrays = _token_arrays(trace, rows, vocabulary)
    tables: dict[str, Any] = {"grid": None}
    if trace.grid is not None:
        tables, more = _tables(trace, rows, vocabulary)
        arrays |= more
    return {
        "start": start,
        "tokens": len(trace) - start,
        "prompt": visible(trace.prompt, newline="\n"),
        "experts": [{"name": visible(name), "letter": expert_letter(i)} for i, name in enumerate(trace.experts)],
        "expertKeys": list(trace.experts),
        "method": trace.method,
        "constraint": trace.constraint,
        "facts": trace_facts(trace),
        "sampled": bool((trace.meta.get("sampling") or {}).get("do_sample", False)),
        "endIds": list(trace.meta.get("end_ids", [])),
        "pieces": [visible(piece, newline="\n") for piece in trace.pieces[start:]],
        "groups": text_groups(trace.pieces, trace.text),
        "resolve": _resolvable(trace),
        **tables,
        "arrays": arrays,
        "vocabulary": {"ids": vocabulary.ids, "texts": vocabulary.texts},
        "alternatives": [alternative_payload(entry) for entry in alternatives],
    }


def alternative_payload(entry: Mapping[str, Any]) -> dict[str, Any]:
    """One answer of another writer: {"name", "token_ids", "pieces"} -> the same, its texts made visible."""
    pieces = [str(piece) for piece in entry["pieces"]]
    return {
        "name": visible(str(entry["name"])),
        "token_ids": [int(token) for token in entry["token_ids"]],
        "pieces": [visible(piece, newline="\n") for piece in pieces],
        "groups": text_groups(tuple(pieces), str(entry.get("text", "".join(pieces)))),
    }


def text_groups(pieces: Sequence[str], text: str) -> list[list[Any]]:
    """[start, stop, text] of every run of tokens that is shown as one text."""
    return [[group.start, group.stop, visible(group.text, newline="\n")] for group in group_pieces(tuple(pieces), text)]


def trace_facts(trace: Trace) -> list[list[str]]:
    """[label, words] of everything that is known of how the trace was made."""
    facts = [["Method", trace.method], ["Constraint", constraint_in_words(trace.constraint)]]
    facts += [[role.replace("_", " ").capitalize(), words] for role, words in _models(trace.meta.get("models"))]
    if isinstance(sampling := trace.meta.get("sampling"), dict):
        facts.append(["Sampling", _sampling(sampling)])
    for key in ("seed", "versions", "created"):
        if trace.meta.get(key) is not None:
            facts.append([key.capitalize(), _in_words(trace.meta[key])])
    return [[visible(label), visible(words)] for label, words in facts]


def constraint_in_words(constraint: Mapping[str, Any]) -> str:
    """A constraint's dict as one line, leaving out what is unset.

    >>> constraint_in_words({"scale": 1.0, "direction": "both", "alpha_max": 2.0, "budget": None})
    'scale κ = 1, direction = both, greatest weight = 2'
    """
    names = {"scale": "scale κ", "alpha_max": "greatest weight", "budget": "budget (nats)"}
    shown = [f"{names.get(key, key)} = {_in_words(value)}" for key, value in constraint.items() if value is not None]
    return ", ".join(shown) or "none"


def _resolvable(trace: Trace) -> dict[str, Any]:
    """Which methods this trace can be solved again with, and what to say where it is not as it was."""
    notes = [NOT_SOLVED_AGAIN[trace.method]] if trace.method in NOT_SOLVED_AGAIN else []
    if not trace.experts:
        return {"methods": [], "note": "No experts: there is nothing to solve."}
    if trace.grid is None:
        return {"methods": [], "note": 'A light trace has no table of KLs to solve again; record it with trace="full".'}
    if not trace.has_tables:
        notes.append("A trace of version 1: what would change is told from its top-k lists alone.")
    methods = ["exact", "grid", "static", "average"]
    if len(trace.experts) > 1 and trace.method in READ_EVIDENCE:
        methods.insert(0, "evidence")
    return {"methods": methods, "note": " ".join(notes) or None}


def _token_arrays(trace: Trace, rows: slice, vocabulary: _Vocabulary) -> dict[str, Any]:
    import numpy as np

    exact = ("alpha", "target_forward", "target_reverse", "evidence", "kl_forward", "kl_reverse")
    arrays = {name: _packed(getattr(trace, name)[rows], "f4") for name in exact}
    arrays |= {name: _packed(getattr(trace, name)[rows], "i4") for name in ("token_ids", "flipped_by", "clamped")}
    arrays["draft"] = _packed(trace.drafted[rows] * 1 + trace.accepted[rows] * 2, "i1")
    arrays["large_choice"] = vocabulary.packed(trace.large_choice[rows])
    models = ("fused", "large", "small")

    def stacked(name: str) -> Any:
        """(N, 3 + E) or (N, 3 + E, K): all distributions, in the order in which they are shown."""
        own = np.stack([getattr(trace, f"{name}_{model}")[rows] for model in models], axis=1)
        return np.concatenate([own, getattr(trace, f"{name}_experts")[rows]], axis=1)

    arrays["logprob"] = _packed(stacked("logprob"), "f4")
    arrays["entropy"] = _packed(stacked("entropy"), "f2")
    arrays["top"] = vocabulary.packed(stacked("topk_ids")[..., :TOP_SHOWN])
    arrays["top_logprobs"] = _packed(stacked("topk_logprobs")[..., :TOP_SHOWN], "f2")
    return arrays


def _tables(trace: Trace, rows: slice, vocabulary: _Vocabulary) -> tuple[dict[str, Any], dict[str, Any]]:
    """Facts of the tables, and the tables of a full trace."""
    import numpy as np

    assert trace.grid is not None and trace.grid_kl_forward is not None and trace.grid_kl_reverse is not None
    facts = {
        "grid": [round(float(weight), 6) for weight in trace.grid],
        "evenGrid": [round(float(weight), 6) for weight in even_grid(trace.grid, len(trace.experts))],
        "restWeights": list(REST_WEIGHTS),
    }
    arrays = {
        "grid_kl_forward": _packed(trace.grid_kl_forward[rows], "f4"),
        "grid_kl_reverse": _packed(trace.grid_kl_reverse[rows], "f4"),
    }
    if not trace.has_tables:
        return facts, arrays
    held = {name: getattr(trace, name)[rows] for name in TABLE_ARRAYS}
    mixed = np.flatnonzero(np.isfinite(held["atom_logprobs"]).any(-1)) if held["atom_logprobs"].size else np.arange(0)
    arrays |= {
        "grid_variance": _packed(held["grid_variance"], "b2"),
        "mean_deltas": _packed(held["mean_deltas"], "f4"),
        "candidates": vocabulary.packed(held["candidate_ids"]),
        "candidate_logprobs": _packed(held["candidate_logprobs"], "f4"),
        "candidate_deltas": _packed(held["candidate_deltas"], "f4"),
        "rest_peaks": _packed(_rounded_up(held["rest_peaks"]), "f2"),
        "atom_rows": _packed(mixed, "i4"),
        "atom_logprobs": _packed(held["atom_logprobs"][mixed], "f4"),
        "atom_deltas": _packed(held["atom_deltas"][mixed], "f4"),
    }
    if len(trace.experts) > 1:  # the ray of one expert is its axis
        arrays |= {name: _packed(held[name], "f4") for name in ("even_kl_forward", "even_kl_reverse")}
        arrays["even_variance"] = _packed(held["even_variance"], "b2")
    return facts, arrays


def _rounded_up(bounds: Any) -> Any:
    """Bounds that stay bounds in 16 bits; -inf, of nothing, stays as it is."""
    import numpy as np

    return bounds + 1e-3 * np.abs(np.where(np.isfinite(bounds), bounds, 0))


class _Vocabulary:
    """Token ids of a payload as indexes into one list of texts, in order of first use."""

    def __init__(self, trace: Trace) -> None:
        self.trace = trace
        self.ids: list[int] = []
        self.texts: list[str] = []
        self._index: dict[int, int] = {-1: -1}

    def packed(self, ids: Any) -> dict[str, Any]:
        """An array of ids as indexes; -1 stays -1, which 16 bits without a sign hold as their greatest number."""
        import numpy as np

        for token in np.unique(ids).tolist():
            if token not in self._index:
                self._index[token] = len(self.ids)
                self.ids.append(token)
                self.texts.append(visible(self.trace.topk_pieces[token], newline="\n"))
        known = np.array(list(self._index)), np.array(list(self._index.values()))
        order = known[0].argsort()
        indexes = known[1][order][np.searchsorted(known[0][order], ids)] if ids.size else ids
        return _packed(indexes, "u2" if len(self.ids) < 0xFFFF else "i4")


def _packed(array: Any, kind: str) -> dict[str, Any]:
    """{"kind", "shape", "data"}; kinds are those of numpy, and b2: the upper half of a float32, rounded."""
    import numpy as np

    if kind == "b2":
        bits = np.ascontiguousarray(array, "<f4").view("<u4")
        flat = ((bits + np.uint32(0x8000)) >> np.uint32(16)).astype("<u2")
    elif kind == "f2":
        with np.errstate(over="ignore"):
            flat = np.ascontiguousarray(array).astype("<f2")
    else:
        flat = np.ascontiguousarray(array).astype(f"<{kind}")
    return {"kind": kind, "shape": list(flat.shape), "data": base64.b64encode(flat.tobytes()).decode()}


def _sampling(sampling: Mapping[str, Any]) -> str:
    """How tokens were chosen; a limit that keeps every token is left out."""
    if not sampling.get("do_sample", True):
        return "greedy"
    idle = {"top_k": 0, "top_p": 1.0}
    return _in_words({k.replace("_", "-"): v for k, v in sampling.items() if k != "do_sample" and idle.get(k) != v})


def _short(value: str) -> str:
    """A commit or digest as its first 12 characters; anything else whole."""
    return value[:12] if re.fullmatch("[0-9a-f]{13,}", value) else value


def _models(models: object, prefix: str = "") -> list[tuple[str, str]]:
    if not isinstance(models, dict):
        return []
    found = []
    for role, entry in models.items():
        if isinstance(entry, dict) and not isinstance(entry.get("id"), str):
            found += _models(entry, "Expert " if role == "experts" else f"{role} ")
        elif isinstance(entry, dict):
            details = [_short(str(entry[k])) for k in ("revision", "dtype", "quantization") if entry.get(k)]
            found.append((prefix + role, " · ".join([entry["id"], *details])))
        else:
            found.append((prefix + role, _in_words(entry)))
    return found


def _in_words(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {_in_words(entry)}" for key, entry in value.items() if entry not in (None, {}))
    return f"{value:g}" if isinstance(value, float) else str(value)

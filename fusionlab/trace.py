"""What a fused decode decided at every token, as columns of numpy arrays; knows nothing of models or torch.

Symbols: N tokens emitted, E experts, K top-k entries kept, G weights on the grid. `large` = P, `small` = Q,
`experts` = R_t, `fused` = P~. Weights `alpha` have no unit; KLs, entropies, evidence and log-probabilities
are in nats. `target_forward` is f_t = KL(R_t||Q), `target_reverse` is g_t = KL(Q||R_t), both before the
constraint's scale; `kl_forward` is KL(P~||P), `kl_reverse` is KL(P||P~) (paper, arXiv 2406.15480, section
3). In a top-k list the id -1 means "no entry": fewer candidates than K, or a model that was not run.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, field, fields
from os import PathLike
from typing import TYPE_CHECKING, Any

from fusionlab.errors import TraceError
from fusionlab.trace_fields import (
    ARRAYS,
    GRID_ARRAYS,
    IDS,
    LEVELS,
    REST_WEIGHTS,
    TABLE_ARRAYS,
    as_json,
    checked_array,
    even_grid,
    last_size,
)

if TYPE_CHECKING:
    import numpy.typing as npt
    import pandas as pd

    Array = npt.NDArray[Any]

__all__ = ["ARRAYS", "GRID_ARRAYS", "LEVELS", "REST_WEIGHTS", "TABLE_ARRAYS", "Trace", "load_traces", "save_traces"]


@dataclass(frozen=True, eq=False, repr=False)
class Trace:
    """One decode, token by token: weights, targets, achieved KLs, top-k lists, flips, evidence.

    >>> trace = Trace.load("answer.parquet")                       # doctest: +SKIP
    >>> trace.moved_share()["math"]["flipped"]                     # doctest: +SKIP
    0.214

    Arrays are copied, cast to the dtypes of `ARRAYS` and made read-only. `topk_pieces` keeps exactly the ids
    that occur in a top-k list, among the candidates or in `large_choice`. `constraint` and `meta` are kept as JSON
    gives them back (tuples become lists, keys become strings). At level "light" the fields of `GRID_ARRAYS` and
    `TABLE_ARRAYS` are None; a full trace of version 1 has no `TABLE_ARRAYS`.

    Raises `TraceError` that names the field, the shape or value expected and the one received.
    """

    prompt: str
    text: str
    experts: tuple[str, ...]
    method: str
    constraint: dict[str, Any]
    level: str
    token_ids: Array  # (N,)
    pieces: tuple[str, ...]  # N texts; a piece that is only part of a character decodes to U+FFFD
    alpha: Array  # (N, E)
    target_forward: Array  # (N, E) nats, unscaled
    target_reverse: Array  # (N, E) nats, unscaled
    kl_forward: Array  # (N,) nats
    kl_reverse: Array  # (N,) nats
    evidence: Array  # (N, E) nats, before the token
    entropy_large: Array  # (N,) nats
    entropy_small: Array
    entropy_fused: Array
    entropy_experts: Array  # (N, E)
    logprob_large: Array  # (N,) of the emitted token
    logprob_small: Array
    logprob_fused: Array
    logprob_experts: Array  # (N, E)
    topk_ids_large: Array  # (N, K)
    topk_ids_small: Array
    topk_ids_fused: Array
    topk_ids_experts: Array  # (N, E, K)
    topk_logprobs_large: Array  # (N, K)
    topk_logprobs_small: Array
    topk_logprobs_fused: Array
    topk_logprobs_experts: Array  # (N, E, K)
    topk_pieces: dict[int, str]
    large_choice: Array  # (N,) argmax of P
    flipped: Array  # (N,) the fused argmax differs from the argmax of P
    flipped_by: Array  # (N,) index of the expert that pushed most, -1 where not flipped
    clamped: Array  # (N,) vocabulary entries clamped at the floor
    drafted: Array  # (N,)
    accepted: Array  # (N,)
    grid: Array | None = None  # (G,)
    grid_kl_forward: Array | None = None  # (N, E, G) nats
    grid_kl_reverse: Array | None = None  # (N, E, G) nats
    mean_deltas: Array | None = None  # (N, E) nats, A'(0) = E_P[d_t]
    grid_variance: Array | None = None  # (N, E, G) nats², A'' = Var_P~(d_t)
    even_kl_forward: Array | None = None  # (N, H) nats, with all experts at the same weight
    even_kl_reverse: Array | None = None  # (N, H) nats
    even_variance: Array | None = None  # (N, H) nats²
    candidate_ids: Array | None = None  # (N, C) tokens that are likely at some weights
    candidate_logprobs: Array | None = None  # (N, C) nats, log P
    candidate_deltas: Array | None = None  # (N, E, C) nats, d_t = log R_t - log Q
    rest_peaks: Array | None = None  # (N, E, S) nats, the greatest log P + a d_t of all other tokens
    atom_logprobs: Array | None = None  # (N, M) nats, log of their share in sums over the vocabulary
    atom_deltas: Array | None = None  # (N, E, M) nats
    meta: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        import numpy as np

        self._set("experts", tuple(self.experts))
        self._set("pieces", tuple(self.pieces))
        if len(set(self.experts)) != len(self.experts):
            raise TraceError(f"trace field 'experts' repeats a name: {list(self.experts)}")
        if self.level not in LEVELS:
            raise TraceError(f"trace field 'level' is {self.level!r}", remedy="use 'full' or 'light'")
        sizes = {
            "N": len(self.pieces),
            "E": len(self.experts),
            "K": last_size(self.topk_ids_large),
            "G": last_size(self.grid),
            "H": 0 if self.grid is None else len(even_grid(self.grid, len(self.experts))),
            "C": last_size(self.candidate_ids),
            "S": len(REST_WEIGHTS),
            "M": last_size(self.atom_logprobs),
        }
        for name, (dims, dtype) in self._arrays_of_level().items():
            array = checked_array(name, getattr(self, name), tuple(sizes[d] for d in dims), dims, dtype)
            self._set(name, array)
        self._set("constraint", as_json("constraint", self.constraint))
        self._set("meta", as_json("meta", self.meta))
        used = np.unique(np.concatenate([self.large_choice, *(ids.ravel() for ids in self._topk_ids())]))
        used = used[used >= 0]
        missing = [int(i) for i in used if int(i) not in self.topk_pieces]
        if missing:
            raise TraceError(f"trace field 'topk_pieces' has no text for the token ids {missing[:5]}")
        self._set("topk_pieces", {int(i): self.topk_pieces[int(i)] for i in used})
        self._check_values()

    def _set(self, name: str, value: object) -> None:
        object.__setattr__(self, name, value)

    def _arrays_of_level(self) -> dict[str, tuple[str, str]]:
        if self.level == "full":
            return ARRAYS | GRID_ARRAYS | (TABLE_ARRAYS if self.has_tables else {})
        for name in GRID_ARRAYS | TABLE_ARRAYS:
            if getattr(self, name) is not None:
                raise TraceError(
                    f"trace field {name!r} is set, but level 'light' keeps no grid", remedy="pass None or level='full'"
                )
        return ARRAYS

    @property
    def has_tables(self) -> bool:
        """Whether this trace holds what solving it again to 1e-3 needs: full ones do, except those of version 1."""
        return any(getattr(self, name) is not None for name in TABLE_ARRAYS)

    def _topk_ids(self) -> list[Any]:
        return [getattr(self, name) for name in IDS if getattr(self, name) is not None]

    def _check_values(self) -> None:
        import numpy as np

        for where, texts in {
            "prompt": [self.prompt],
            "text": [self.text],
            "pieces": self.pieces,
            "topk_pieces": self.topk_pieces.values(),
        }.items():
            for text in texts:
                if not isinstance(text, str):
                    kind = type(text).__name__
                    raise TraceError(f"trace field {where!r} holds {kind} where text is expected")
                if any("\ud800" <= c <= "\udfff" for c in text):
                    raise TraceError(f"trace field {where!r} holds half a surrogate pair: {text!r}")
        alpha, by = np.asarray(self.alpha), np.asarray(self.flipped_by)
        if not (alpha >= 0).all():
            raise TraceError("trace field 'alpha' holds a negative weight or NaN", remedy="weights are >= 0")
        expected = np.where(self.flipped, (by >= 0) & (by < len(self.experts)), by == -1)
        if not expected.all():
            row = int(np.argmin(expected))
            raise TraceError(
                f"trace field 'flipped_by' is {by[row]} at token {row}, which is "
                + ("flipped" if self.flipped[row] else "not flipped"),
                remedy="give the index of an expert where the token is flipped, -1 elsewhere",
            )

    def __len__(self) -> int:
        return len(self.pieces)

    def __repr__(self) -> str:
        return (
            f"Trace({len(self)} tokens, {int(self.flipped.sum())} flipped, method={self.method!r}, "
            f"experts={list(self.experts)}, level={self.level!r})"
        )

    def __eq__(self, other: object) -> bool:
        import numpy as np

        if not isinstance(other, Trace):
            return NotImplemented
        for spec in fields(self):
            mine, theirs = getattr(self, spec.name), getattr(other, spec.name)
            if isinstance(mine, np.ndarray) and isinstance(theirs, np.ndarray):
                same = mine.shape == theirs.shape and mine.tobytes() == theirs.tobytes()
            else:
                same = type(mine) is type(theirs) and bool(_canonical(mine) == _canonical(theirs))
            if not same:
                return False
        return True

    __hash__ = None  # type: ignore[assignment]

    @property
    def ends_turn(self) -> Array:
        """(N,) bool: the token ends the answer. It is no part of `text`, and shown as a mark rather than spelt out.

        Which ids do is in `meta["end_ids"]`, as the decode writes it; without it no token is known to.
        """
        import numpy as np

        return np.isin(self.token_ids, self.meta.get("end_ids", []))

    def moved_share(self) -> dict[str, dict[str, float]]:
        """Per expert: the share of tokens it flipped, and its mean weight over all tokens (0 for no tokens).

        >>> trace.moved_share()                                        # doctest: +SKIP
        {'math': {'flipped': 0.2, 'mean_alpha': 1.31}, 'trivia': {'flipped': 0.0, 'mean_alpha': 0.02}}
        """
        n = max(len(self), 1)
        return {
            name: {
                "flipped": float((self.flipped_by == e).sum()) / n,
                "mean_alpha": float(self.alpha[:, e].astype("float64").sum()) / n,
            }
            for e, name in enumerate(self.experts)
        }

    def to_frame(self) -> pd.DataFrame:
        """One row per token (pandas). Per-expert columns are called `alpha.math`; top-k columns hold lists.

        `topk_large` is a list of texts and `topk_logprobs_large` of nats; `topk_experts.math` likewise.
        """
        import pandas as pd

        columns: dict[str, Any] = {"position": range(len(self)), "piece": list(self.pieces)}
        for name, (dims, _) in ARRAYS.items():
            values: Any = getattr(self, name)
            label = name.replace("topk_ids", "topk")
            as_column = self._texts_of_rows if name.startswith("topk_ids") else _as_lists
            if dims == "N":
                columns[name] = values
            elif dims == "NK":
                columns[label] = as_column(values)
            else:
                for e, expert in enumerate(self.experts):
                    columns[f"{label}.{expert}"] = as_column(values[:, e]) if dims == "NEK" else values[:, e]
        columns["large_choice_piece"] = self._texts(self.large_choice)
        columns["flipped_by_expert"] = [self.experts[e] if e >= 0 else None for e in self.flipped_by]
        return pd.DataFrame(columns)

    def _texts(self, ids: Any) -> list[str | None]:
        return [self.topk_pieces.get(int(i)) for i in ids]

    def _texts_of_rows(self, ids: Any) -> list[list[str | None]]:
        return [self._texts(row) for row in ids]

    def labels(self) -> list[str]:
        """N printable texts for axes and tables: newlines as ⏎, control characters spelled out, the end as [end].

        Where one character is spread over several tokens, the first carries it and the others are "…".
        """
        from fusionlab.trace_text import END, group_pieces, visible

        ends = self.ends_turn
        return [
            END if ends[i] else visible(group.text) if i == group.start else "…"
            for group in group_pieces(self.pieces, self.text)
            for i in range(group.start, group.stop)
        ]

    def save(self, path: str | PathLike[str]) -> None:
        """Write this trace alone to one Parquet file, atomically. Raises `OutputError`."""
        save_traces([self], path)

    @classmethod
    def load(cls, path: str | PathLike[str]) -> Trace:
        """Read a file that holds one trace. Raises `MissingFileError`, `CorruptFileError`, `TraceError`."""
        traces = load_traces(path)
        if len(traces) != 1:
            raise TraceError(f"{path} holds {len(traces)} traces", remedy="read it with fusionlab.trace.load_traces")
        return traces[0]

    def to_html(self, path: str | PathLike[str] | None = None) -> str:
        """One self-contained page (no network) with this trace; written to `path` too, if given."""
        from fusionlab.trace_html import traces_to_html

        return traces_to_html([self], path)

    def show(self) -> None:
        """Show the views in a notebook; elsewhere print the trace as text."""
        from fusionlab.trace_html import show_trace

        show_trace(self)

    def _repr_mimebundle_(self, include: object = None, exclude: object = None) -> dict[str, str]:
        from fusionlab.trace_html import traces_to_output
        from fusionlab.trace_text import trace_to_text

        return {"text/plain": trace_to_text(self), "text/html": traces_to_output([self])}


def save_traces(traces: Iterable[Trace], path: str | PathLike[str]) -> None:
    """Write several traces to one Parquet file, one row per token, atomically. Raises `OutputError`."""
    from fusionlab.trace_file import write_traces

    write_traces(list(traces), path)


def load_traces(path: str | PathLike[str]) -> list[Trace]:
    """Read every trace of a file.

    Raises `MissingFileError`, `CorruptFileError`, or `TraceError` for a file of another version.
    """
    from fusionlab.trace_file import read_traces

    return read_traces(path)


def ansi_tokens(trace: Trace, *, color: bool | None = None) -> str:
    """The text coloured by expert and weight for a terminal, with a legend; see `fusionlab.trace_text`."""
    from fusionlab.trace_text import ansi_tokens as paint

    return paint(trace, color=color)


def _as_lists(rows: Any) -> list[Any]:
    return list(rows.tolist())


def _canonical(value: object) -> object:
    """NaN inside a dict compares equal to itself once written as JSON."""
    return json.dumps(value, sort_keys=True) if isinstance(value, dict) else value

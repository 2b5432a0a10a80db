"""The explorer's history: what was written under which settings, the last few of it, and how two runs differ."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from fusionlab.constraint import KLConstraint
from fusionlab.errors import UnknownNameError
from fusionlab.trace import Trace
from fusionlab.trace_text import visible

from .settings import Settings

MOST_RUNS = 20  # a full trace of 200 tokens and four experts takes up to 3 MB


@dataclass(frozen=True)
class Run:
    """One answer: what was asked, what was written, and the same prompt answered by others.

    origin: in words, how it came about. stopped: ended by its user. models: as `Team.describe()` gives them.
    others: {"name", "token_ids", "pieces"} of the large model and the experts alone.
    """

    number: int
    settings: Settings
    trace: Trace
    origin: str
    stopped: bool = False
    models: Mapping[str, Any] = field(default_factory=dict)
    others: tuple[Mapping[str, Any], ...] = ()

    @property
    def written_settings(self) -> Settings:
        """The settings that write this very text again: a stopped answer ends where it was stopped."""
        return replace(self.settings, max_new_tokens=max(1, len(self.trace))) if self.stopped else self.settings

    def summary(self) -> dict[str, Any]:
        """JSON-able: a line of the history."""
        return {
            "number": self.number,
            "origin": self.origin,
            "text": visible(self.trace.text.strip() or "(no text)")[:80],
            "method": self.settings.method,
            "constraint": _in_words(self.settings),
            "experts": [visible(name) for name in self.settings.experts],
            "tokens": len(self.trace),
            "flipped": int(self.trace.flipped.sum()),
            "stopped": self.stopped,
            "live": bool(self.models),  # written here, so that it can be gone on from
        }


class History:
    """The last runs, oldest first; older ones are forgotten, so that memory stays flat."""

    def __init__(self, most: int = MOST_RUNS) -> None:
        self.most = most
        self._runs: list[Run] = []
        self._made = 0

    def __len__(self) -> int:
        return len(self._runs)

    def __iter__(self) -> Iterator[Run]:
        return iter(list(self._runs))

    def add(self, settings: Settings, trace: Trace, origin: str, **more: Any) -> Run:
        """A new run under the next number."""
        self._made += 1
        run = Run(self._made, settings, trace, origin, **more)
        self._runs = [*self._runs, run][-self.most :]
        return run

    def replace(self, run: Run, **changes: Any) -> Run:
        """The same run with fields changed, where it is still held."""
        changed = replace(run, **changes)
        self._runs = [changed if held.number == run.number else held for held in self._runs]
        return changed

    def find(self, number: object) -> Run:
        """The run of a number. Raises `UnknownNameError`."""
        for run in self._runs:
            if run.number == number:
                return run
        known = ", ".join(str(run.number) for run in self._runs) or "none"
        raise UnknownNameError(f"there is no run {number!r}", remedy=f"the last {self.most} are kept: {known}")

    def clear(self) -> None:
        """Forget them all."""
        self._runs = []


def compare_runs(first: Run, second: Run) -> dict[str, Any]:
    """How two runs differ, JSON-able: settings that are not the same, the first token that is not, figures of both.

    `divergence` is the first token at which the answers differ, None where they are the same; an answer that is the
    beginning of the other differs where it ends.
    """
    mine, theirs = first.settings.to_dict(), second.settings.to_dict()
    flat_mine, flat_theirs = (values | values.pop("constraint") for values in (mine, theirs))
    names = [name for name in flat_mine if flat_mine[name] != flat_theirs[name]]
    return {
        "runs": [first.number, second.number],
        "settings": [
            {"name": name.replace("_", " "), "values": [_as_words(flat_mine[name]), _as_words(flat_theirs[name])]}
            for name in names
        ],
        "divergence": first_divergence(first.trace.token_ids.tolist(), second.trace.token_ids.tolist()),
        "texts": [visible(run.trace.text, newline="\n") for run in (first, second)],
        "figures": [_figures(run.trace) for run in (first, second)],
    }


def first_divergence(first: Sequence[int], second: Sequence[int]) -> int | None:
    """The first place where two answers differ.

    >>> first_divergence([1, 2, 3], [1, 2]), first_divergence([1], [1])
    (2, None)
    """
    for place, (mine, theirs) in enumerate(zip(first, second, strict=False)):
        if mine != theirs:
            return place
    return None if len(first) == len(second) else min(len(first), len(second))


def trace_settings(trace: Trace) -> Settings:
    """The settings under which a trace was written, as far as it says."""
    choices = {int(step): int(token) for step, token in (trace.meta.get("choices") or {}).items()}
    constraint = KLConstraint.from_dict(trace.constraint)
    return Settings(trace.prompt, trace.experts, trace.method, constraint, max(1, len(trace)), choices=choices)


def _figures(trace: Trace) -> dict[str, Any]:
    shares = {visible(name): share for name, share in trace.moved_share().items()}
    tokens = max(len(trace), 1)
    return {
        "tokens": len(trace),
        "flipped": int(trace.flipped.sum()),
        "kl_forward": round(float(trace.kl_forward.sum()) / tokens, 4),
        "weights": {name: round(share["mean_alpha"], 3) for name, share in shares.items()},
    }


def _in_words(settings: Settings) -> str:
    constraint = settings.constraint
    parts = [f"κ = {constraint.scale:g}"]
    if constraint.direction != "both":
        parts.append(constraint.direction)
    if constraint.alpha_max != 2:
        parts.append(f"α ≤ {constraint.alpha_max:g}")
    if constraint.budget is not None:
        parts.append(f"≤ {constraint.budget:g} nats")
    what_ifs = len(constraint.force or {}) + len(settings.choices)
    if what_ifs:
        parts.append(f"{what_ifs} what-if{'s' if what_ifs > 1 else ''}")
    return ", ".join(parts)


def _as_words(value: object) -> str:
    if isinstance(value, list):
        return visible(", ".join(map(str, value)) or "none")
    if isinstance(value, dict):
        return visible(", ".join(f"{key}: {_as_words(entry)}" for key, entry in value.items() if entry) or "none")
    return "none" if value is None else visible(str(value))

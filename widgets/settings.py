"""What the explorer is asked to do: prompt, experts, method and constraint as one checked value.

Knows nothing of models or widgets. What comes from the browser is read here, so that a wrong value is refused in words.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from fusionlab.constraint import KLConstraint
from fusionlab.errors import FusionError, PromptError, UnknownNameError

MOST_NEW_TOKENS = 4096  # beyond this a slip of the keyboard is likelier than a wish

METHODS = ("exact", "grid", "evidence", "predicted", "joint", "static", "average")  # a test holds them to SOLVERS


@dataclass(frozen=True)
class Settings:
    """One request: what to write on, with whom, and how far it may move.

    chat: send the prompt as a user's message through each model's chat template. max_new_tokens: of the whole answer.
    choices: what-if tokens, as `Team.generate` takes them.
    """

    prompt: str = ""
    experts: tuple[str, ...] = ()
    method: str = "exact"
    constraint: KLConstraint = field(default_factory=KLConstraint)
    max_new_tokens: int = 64
    chat: bool = False
    choices: Mapping[int, int] = field(default_factory=dict)

    def as_prompt(self) -> str | list[dict[str, str]]:
        """The prompt as `Team.generate` takes it."""
        return [{"role": "user", "content": self.prompt}] if self.chat else self.prompt

    def for_another_text(self) -> Settings:
        """These settings without what-ifs at single tokens, which belong to the text that they were tried on."""
        return replace(self, constraint=self.constraint.forced_before(0), choices={})

    def to_dict(self) -> dict[str, Any]:
        """JSON-able; `updated` reads it back."""
        return {
            "prompt": self.prompt,
            "experts": list(self.experts),
            "method": self.method,
            "constraint": self.constraint.to_dict(),
            "max_new_tokens": self.max_new_tokens,
            "chat": self.chat,
            "choices": {str(step): token for step, token in self.choices.items()},
        }

    def updated(self, values: Mapping[str, Any]) -> Settings:
        """These settings with the given fields changed, as they come from the browser or from `to_dict`.

        Raises `FusionError` that names the field and what it may be.
        """
        changes: dict[str, Any] = {}
        for name, value in values.items():
            if name not in _READERS:
                raise FusionError(f"unknown setting {name!r}", remedy=f"known: {', '.join(_READERS)}")
            changes[name] = _READERS[name](value)
        return replace(self, **changes)

    def check_runnable(self) -> None:
        """Raise `FusionError` where there is nothing to write on, or nobody to fuse."""
        if not self.prompt.strip():
            raise PromptError("the prompt is empty", remedy="write a question or the beginning of a text")
        if not self.experts:
            raise FusionError(
                "no expert is chosen, so there is nothing to fuse",
                remedy="tick at least one expert; for the large model alone tick one and set the scale to 0",
            )


def default_method(experts: Sequence[str]) -> str:
    """Evidence where experts compete, else the exact solve."""
    return "evidence" if len(experts) > 1 else "exact"


def _text(name: str) -> Any:
    def read(value: object) -> str:
        if not isinstance(value, str):
            raise FusionError(f"{name} is {value!r}", remedy="pass text")
        return value

    return read


def _names(value: object) -> tuple[str, ...]:
    if not isinstance(value, Sequence) or isinstance(value, str) or not all(isinstance(name, str) for name in value):
        raise FusionError(f"experts is {value!r}", remedy="pass a list of names")
    return tuple(dict.fromkeys(value))


def _constraint(value: object) -> KLConstraint:
    if isinstance(value, KLConstraint):
        return value
    if not isinstance(value, Mapping):
        raise FusionError(f"the constraint is {value!r}", remedy="pass a KLConstraint")
    return KLConstraint.from_dict({key: entry for key, entry in value.items() if key != "method"})


def _method(value: object) -> str:
    if value not in METHODS:
        raise UnknownNameError(f"unknown method {value!r}", remedy=f"known: {', '.join(METHODS)}")
    return str(value)


def _count(value: object) -> int:
    whole = isinstance(value, int | float) and not isinstance(value, bool) and float(value).is_integer()
    if not whole or not 1 <= float(value) <= MOST_NEW_TOKENS:  # type: ignore[arg-type]
        raise FusionError(
            f"the number of new tokens is {value!r}", remedy=f"pass a whole number from 1 to {MOST_NEW_TOKENS:,}"
        )
    return int(value)  # type: ignore[call-overload]


def _choices(value: object) -> dict[int, int]:
    try:
        return {int(step): int(token) for step, token in dict(value).items()}  # type: ignore[call-overload]
    except (TypeError, ValueError):
        raise FusionError(f"choices is {value!r}", remedy="pass {token of the answer: id}") from None


_READERS = {
    "prompt": _text("the prompt"),
    "experts": _names,
    "method": _method,
    "constraint": _constraint,
    "max_new_tokens": _count,
    "chat": bool,
    "choices": _choices,
}

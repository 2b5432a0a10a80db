"""The Python call that writes a run's text again, as text to paste into a cell."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fusionlab.constraint import KLConstraint

from .settings import Settings

_EMBEDDED = "embedded/"
_DEFAULT = KLConstraint()


def python_call(settings: Settings, models: Mapping[str, Any]) -> str:
    """Code that loads the team and generates under these settings; `result.texts[0]` is then the run's text.

    >>> print(python_call(Settings(prompt="Hi", experts=("math",)), {}))
    from fusionlab import KLConstraint, Team
    <BLANKLINE>
    # `team` is the explorer's own; it does not say where its models came from
    result = team.generate(
        ["Hi"],
        experts=["math"],
        method="exact",
        constraint=KLConstraint(),
        max_new_tokens=64,
        trace="full",
    )
    print(result.texts[0])

    models: what `Team.describe()` gave when the run was made.
    """
    arguments = [
        f"[{_literal(settings.as_prompt())}]",
        f"experts={_literal(list(settings.experts))}",
        f"method={_literal(settings.method)}",
        f"constraint={_constraint(settings.constraint)}",
        f"max_new_tokens={settings.max_new_tokens}",
    ]
    if settings.choices:
        arguments.append(f"choices={dict(sorted(settings.choices.items()))!r}")
    arguments.append('trace="full"')
    call = "".join(f"    {argument},\n" for argument in arguments)
    team = _team(settings, models)
    return f"from fusionlab import KLConstraint, Team\n\n{team}\nresult = team.generate(\n{call})\nprint(result.texts[0])"


def _team(settings: Settings, models: Mapping[str, Any]) -> str:
    large, small = models.get("large", {}), models.get("small", {})
    sources = {name: models.get("experts", {}).get(name, {}).get("id", "") for name in settings.experts}
    if not large.get("id") or not all(sources.values()):
        return "# `team` is the explorer's own; it does not say where its models came from"
    if large["id"].startswith(_EMBEDDED):
        shipped = all(source == f"{_EMBEDDED}{name}" for name, source in sources.items())
        if not shipped and any(source.startswith(_EMBEDDED) for source in sources.values()):
            return "# `team` is the explorer's own: its experts are partly embedded, partly from elsewhere"
        experts = list(sources) if shipped else sources
        dtype = "" if large.get("dtype", "float32") == "float32" else f", dtype={_literal(large['dtype'])}"
        return f'team = Team.from_pretrained("embedded", experts={_literal(experts)}{dtype})'
    options = {"large": large["id"], "small": small.get("id"), "experts": sources}
    if large.get("quantization"):
        options["quantization"] = large["quantization"]
    if large.get("dtype", "float32") != "float32":
        options["dtype"] = large["dtype"]
    lines = [f"    {name}={_literal(value)},\n" for name, value in options.items()]
    return f"team = Team.from_pretrained(\n{''.join(lines)})"


def _constraint(constraint: KLConstraint) -> str:
    names = ("scale", "direction", "alpha_max", "budget", "force")
    changed = [name for name in names if getattr(constraint, name) != getattr(_DEFAULT, name)]
    return f"KLConstraint({', '.join(f'{name}={_literal(getattr(constraint, name))}' for name in changed)})"


def _literal(value: object) -> str:
    """A Python literal; texts in double quotes, lines joined by \\n."""
    if isinstance(value, str):
        inner = repr(value)[1:-1]
        return f'"{inner}"' if repr(value)[0] == '"' else '"' + inner.replace("\\'", "'").replace('"', '\\"') + '"'
    if isinstance(value, list):
        return f"[{', '.join(_literal(entry) for entry in value)}]"
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{_literal(key)}: {_literal(entry)}' for key, entry in value.items())}}}"
    return repr(value)

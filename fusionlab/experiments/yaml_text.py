"""YAML as its 1.2 core schema reads it: `1e-4` is a number, `no` and `12:30` are words, a key stands once.

PyYAML follows YAML 1.1, where `1e-4` is a string, `no` is false and `12:30` is 750; for parameters of experiments each of
these is a trap.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from fusionlab.errors import SweepError


class CoreLoader(yaml.SafeLoader):
    """A safe loader with the scalars of YAML 1.2's core schema; a key that stands twice is an error."""


_SCALARS = {  # tag -> pattern of plain scalars, and the characters that one can begin with
    "null": (r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    "bool": (r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    "int": (r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", list("-+0123456789")),
    "float": (r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)",
              list("-+.0123456789")),
}  # fmt: skip
CoreLoader.yaml_implicit_resolvers = {}
for _name, (_pattern, _first) in _SCALARS.items():
    CoreLoader.add_implicit_resolver(f"tag:yaml.org,2002:{_name}", re.compile(f"^(?:{_pattern})$"), _first)


def _whole_number(loader: CoreLoader, node: yaml.ScalarNode) -> int:
    text = str(loader.construct_scalar(node))
    return int(text, 0) if text[:2] in ("0o", "0x") else int(text)  # 010 is ten


def _mapping(loader: CoreLoader, node: yaml.MappingNode) -> dict[Any, Any]:
    pairs = [tuple(loader.construct_object(part, deep=True) for part in pair) for pair in node.value]
    for place, (key, _) in enumerate(pairs):
        if key in [earlier for earlier, _ in pairs[:place]]:
            mark = node.value[place][0].start_mark
            raise yaml.constructor.ConstructorError(None, None, f"{key!r} stands twice", mark)
    return dict(pairs)


CoreLoader.add_constructor("tag:yaml.org,2002:int", _whole_number)
CoreLoader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _mapping)


def read_yaml(text: str, *, where: str) -> Any:
    """What a YAML text says.

    >>> read_yaml("{lr: 1e-4, answer: no}", where="example")
    {'lr': 0.0001, 'answer': 'no'}

    where: its name in errors. Raises SweepError with line and column.
    """
    try:
        return yaml.load(text, Loader=CoreLoader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f" line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        problem = getattr(error, "problem", None) or str(error).splitlines()[0]
        raise SweepError(f"{where}{place}: {problem}", remedy="mend the YAML there") from None


def read_yaml_file(path: Path) -> Any:
    """What a YAML file says. Raises SweepError."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise SweepError(f"cannot read {path}: {reason}", remedy="name a YAML file") from error
    return read_yaml(text, where=str(path))

"""The parameters that a notebook declares in its `parameters` cell, and values checked against them.

A parameter's type is its annotation (`scale: float = 1`), else the type of its default; `None` without an annotation takes
anything. The cell is read from its syntax tree, so nothing runs. This module knows neither sweeps nor kernels.
"""

from __future__ import annotations

import ast
import builtins
import difflib
import io
import json
import math
import tokenize
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import ConfigDict, TypeAdapter, ValidationError

from fusionlab.errors import NotebookError, SweepError, UnknownNameError
from fusionlab.experiments.yaml_text import read_yaml

Value = Any
"""What a parameter may hold: None, bool, int, float, str, and lists and dicts (with text keys) of these."""

_STRICT = ConfigDict(strict=True, arbitrary_types_allowed=True)


@dataclass(frozen=True)
class Parameter:
    """One assignment of the parameters cell.

    kind: the type that values must have. default: its value, where `known`; else an expression that only the kernel can
    evaluate. help: the comment behind it.
    """

    name: str
    kind: Any
    default: Value = None
    known: bool = True
    help: str = ""

    def check(self, value: Value, *, where: str = "") -> Value:
        """`value` as its type holds it (2 becomes 2.0 for a float). Raises NotebookError."""
        place = f"{where}: " if where else ""
        fault = find_unwritable(value)
        if fault is not None:
            raise NotebookError(f"{place}parameter {self.name!r} holds {fault}",
                                remedy="pass numbers, text, true, false, null, lists, mappings with text keys")  # fmt: skip
        try:
            return TypeAdapter(self.kind, config=_config(self.kind)).validate_python(value, strict=True)
        except ValidationError:
            raise NotebookError(
                f"{place}parameter {self.name!r} is {value!r} ({type(value).__name__}), but the notebook declares "
                f"{describe_kind(self.kind)}{'' if not self.known else f' (default {self.default!r})'}",
                remedy="pass such a value, or annotate the parameter in the notebook, e.g. scale: float = 1",
            ) from None

    def read(self, text: str) -> Value:
        """A value written on the command line: text as it stands where the type is text, else YAML.

        >>> Parameter("scale", float).read("1e-4")
        0.0001

        Raises NotebookError, SweepError.
        """
        if self.kind is str:
            return text
        try:
            value = read_yaml(text, where=f"-p {self.name}")
        except SweepError:
            value = text
        if isinstance(value, list | dict) and text.strip()[0] not in "[{":
            value = text  # "a: b" and "- a" are words on a command line
        if isinstance(value, str) or not _takes(self.kind, value):
            value = text if _takes(self.kind, text) else value
        return self.check(value)


def _config(kind: Any) -> ConfigDict | None:
    return None if isinstance(kind, type) and hasattr(kind, "__pydantic_config__") else _STRICT


def _takes(kind: Any, value: Value) -> bool:
    try:
        TypeAdapter(kind, config=_config(kind)).validate_python(value, strict=True)
    except ValidationError:
        return False
    return True


def find_unwritable(value: Value) -> str | None:
    """What in a value cannot be written into a notebook and read again the same, or None."""
    if value is None or isinstance(value, bool | int | float | str):
        return None
    if isinstance(value, list | tuple):
        return next((fault for part in value if (fault := find_unwritable(part)) is not None), None)
    if isinstance(value, dict):
        for key, part in value.items():
            if not isinstance(key, str):
                return f"the key {key!r}, which is not text"
            if (fault := find_unwritable(part)) is not None:
                return fault
        return None
    return f"a {type(value).__name__}"


def describe_kind(kind: Any) -> str:
    """A type as it is written: float, list[str], int | None."""
    return kind.__name__ if isinstance(kind, type) and not typing.get_args(kind) else str(kind).replace("typing.", "")


# -- read the cell -------------------------------------------------------------------------------


def read_parameters(source: str, *, where: str) -> dict[str, Parameter]:
    """The parameters that a cell's source declares, in its order.

    >>> read_parameters("scale: float = 1  # of the targets", where="a.ipynb")["scale"].help
    'of the targets'

    where: the notebook's name in errors. Raises NotebookError for a cell that is not Python or assigns a name twice.
    """
    try:
        body = ast.parse(source).body
    except SyntaxError as error:
        raise NotebookError(f"{where}: line {error.lineno} of the parameters cell is not Python: {error.msg}",
                            remedy="write one assignment per parameter, e.g. scale = 1.0") from None  # fmt: skip
    comments = read_comments(source)
    found: dict[str, Parameter] = {}
    for node in body:
        target = node.targets[0] if isinstance(node, ast.Assign) and len(node.targets) == 1 else None
        target = node.target if isinstance(node, ast.AnnAssign) else target
        value = getattr(node, "value", None)
        if not isinstance(target, ast.Name) or value is None:
            continue
        if target.id in found:
            raise NotebookError(f"{where}: the parameters cell assigns {target.id!r} twice", remedy="keep one")
        default, known = read_literal(value)
        annotation = node.annotation if isinstance(node, ast.AnnAssign) else None
        kind = read_annotation(annotation) if annotation is not None else kind_of(default) if known else Any
        found[target.id] = Parameter(target.id, kind, default, known, comments.get(node.end_lineno or 0, ""))
    return found


def read_comments(source: str) -> dict[int, str]:
    """Line number -> the comment that ends that line."""
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    return {token.start[0]: token.string.lstrip("# ").rstrip() for token in tokens if token.type == tokenize.COMMENT}


def read_literal(node: ast.expr) -> tuple[Value, bool]:
    """(value, True) of a literal, (None, False) of any other expression."""
    try:
        value = ast.literal_eval(node)
    except (ValueError, TypeError):
        return None, False
    return (as_lists(value), True) if find_unwritable(value) is None else (None, False)


def as_lists(value: Value) -> Value:
    """The value with every tuple as a list, as YAML and JSON know them."""
    if isinstance(value, list | tuple):
        return [as_lists(part) for part in value]
    return {key: as_lists(part) for key, part in value.items()} if isinstance(value, dict) else value


def kind_of(value: Value) -> Any:
    """The type that a default stands for: list[str] for ["a"], list for [], anything for None.

    >>> kind_of([1.5, 2])
    list[float]
    """
    if value is None:
        return Any
    if isinstance(value, list):
        kinds = {type(part) for part in value}
        kinds = {float} if kinds == {int, float} else kinds
        plain = len(kinds) == 1 and kinds <= {bool, int, float, str}
        return list[next(iter(kinds))] if plain else list  # type: ignore[misc]
    return type(value)


def read_annotation(node: ast.expr) -> Any:
    """The type that an annotation names, or Any where it needs more than builtins and `typing`."""
    expression = node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else ast.unparse(node)
    parts = ast.walk(ast.parse(expression, mode="eval")) if _parses(expression) else iter(())
    allowed = (ast.Expression, ast.Name, ast.Load, ast.Subscript, ast.Tuple, ast.List, ast.Constant, ast.BinOp, ast.BitOr,
               ast.UnaryOp, ast.USub)  # fmt: skip
    known = {name: getattr(builtins, name) for name in ("bool", "int", "float", "str", "list", "dict", "tuple")}
    known |= {name: getattr(typing, name) for name in ("Any", "Literal", "Optional", "Union", "List", "Dict")}
    names = list(parts)
    if not names or not all(isinstance(part, allowed) for part in names):
        return Any
    if not all(part.id in known for part in names if isinstance(part, ast.Name)):
        return Any
    try:
        return eval(expression, {"__builtins__": {}}, known)
    except Exception:  # what an annotation of these parts can still raise, e.g. list[1, 2, 3]
        return Any


def _parses(expression: str) -> bool:
    try:
        ast.parse(expression, mode="eval")
    except SyntaxError:
        return False
    return True


# -- check values --------------------------------------------------------------------------------


def check_values(declared: Mapping[str, Parameter], values: Mapping[str, Value], *, where: str) -> dict[str, Value]:
    """`values`, each as its type holds it. where: who gave them.

    Raises UnknownNameError with the nearest name, NotebookError for a wrong type.
    """
    for name in values:
        check_name(declared, name, where=where)
    return {name: declared[name].check(value, where=where) for name, value in values.items()}


def complete_values(declared: Mapping[str, Parameter], values: Mapping[str, Value]) -> dict[str, Value]:
    """`values` and the defaults of the rest, so that a default that is given and one that is left out are the same.

    A default that only the kernel can evaluate is left out: the notebook's source stands for it.
    """
    complete = {}
    for name, parameter in declared.items():
        if name in values:
            complete[name] = values[name]
        elif parameter.known:
            kept = _takes(parameter.kind, parameter.default)
            complete[name] = parameter.check(parameter.default) if kept else parameter.default
    return complete


def check_name(declared: Mapping[str, Parameter], name: str, *, where: str) -> None:
    """Raise UnknownNameError, with the nearest name, for one that the notebook does not declare."""
    if name not in declared:
        near = difflib.get_close_matches(str(name), declared, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise UnknownNameError(
            f"{where}: unknown parameter {name!r}", remedy=f"{hint}known: {', '.join(declared) or 'none'}"
        )


def read_values(declared: Mapping[str, Parameter], pairs: Mapping[str, str]) -> dict[str, Value]:
    """Values written on the command line, by their parameters' types. Raises UnknownNameError, NotebookError."""
    for name in pairs:
        check_name(declared, name, where="-p")
    return {name: declared[name].read(text) for name, text in pairs.items()}


def canonical(value: Value) -> str:
    """One text per value, for hashing and comparing: JSON with sorted keys; 1 and 1.0 differ, and true is not 1.

    >>> canonical({"b": 1.0, "a": [None, float("inf")]})
    '{"a":[null,Infinity],"b":1.0}'
    """
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True)


def show(value: Value) -> str:
    """A value for people: text bare, numbers short, the rest as JSON."""
    if isinstance(value, str):
        return value
    if isinstance(value, float) and math.isfinite(value):
        return f"{value:g}"
    return canonical(value)

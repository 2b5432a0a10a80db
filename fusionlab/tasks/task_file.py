"""A task's spec as JSON beside its items: task.json in a folder, or NAME.task.json beside NAME.jsonl.

    {"metric": "accuracy", "extractor": "choice", "answering": "writing", "max_new_tokens": 16, "stop": ["\\n"],
     "phrasings": ["Q: {question}\\nA:", {"block": "Q: {question}\\nA:", "letters": true}]}

Every key is a field of `TaskSpec` and may be left out; what is left out is implied by the items.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from fusionlab.errors import FusionError, TaskError
from fusionlab.tasks.answers import EXTRACTORS
from fusionlab.tasks.metrics import METRICS
from fusionlab.tasks.task import ANSWERING, WRITING, Phrasing, TaskSpec

SPEC_NAME = "task.json"
KINDS: dict[str, type] = {
    "name": str,
    "description": str,
    "extractor": str,
    "metric": str,
    "phrasings": list,
    "stop": list,
    "max_new_tokens": int,
    "target_field": str,
    "max_shots": int,
    "shots_field": str,
    "answering": str,
}
PHRASING_KINDS: dict[str, type] = {"block": str, "instruction": str, "options_heading": str, "letters": bool}
WORDS = {
    str: "a text that is not empty",
    list: "a list that is not empty",
    int: "a number above zero",
    bool: "true or false",
}


def find_spec_file(path: Path) -> Path | None:
    """Return the spec file that belongs to a folder or file of items, if there is one."""
    file = path / SPEC_NAME if path.is_dir() else path.with_name(f"{path.stem}.{SPEC_NAME}")
    return file if file.is_file() else None


def read_spec(path: Path, implied: TaskSpec) -> TaskSpec:
    """Return the implied spec with what a spec file says instead; TaskError names file and line."""
    try:
        text = path.read_bytes().decode("utf-8")
        given = json.loads(text)
    except json.JSONDecodeError as error:
        raise TaskError(f"{path}, line {error.lineno}: not JSON: {error.msg}", remedy="correct the line") from error
    except UnicodeDecodeError as error:
        raise TaskError(f"{path}: not UTF-8: {error}", remedy="save it as UTF-8") from error
    if not isinstance(given, dict):
        raise TaskError(f"{path}, line 1: expected an object, got {type(given).__name__}", remedy="write {...}")
    check_fields(given, KINDS, path=path, text=text)
    for key, known in (("metric", METRICS), ("extractor", EXTRACTORS), ("answering", ANSWERING)):
        if key in given and given[key] not in known:
            raise TaskError(
                f"{_where(path, text, key)}: unknown {key}: {given[key]!r}", remedy=f"use one of {', '.join(known)}"
            )
    if "stop" in given:
        if not all(isinstance(stop, str) and stop for stop in given["stop"]):
            raise TaskError(
                f"{_where(path, text, 'stop')}: stop must hold texts, got {given['stop']!r}", remedy='write e.g. ["\\n"]'
            )
        given["stop"] = tuple(given["stop"])
    if "phrasings" in given:
        given["phrasings"] = tuple(read_phrasing(one, path=path, text=text) for one in given["phrasings"])
    implies: dict[str, Any] = {"answering": WRITING} if given.get("extractor", "choice") != "choice" else {}
    try:
        return replace(implied, **implies | given)
    except FusionError as error:  # fields that do not go together
        key = next((key for key in ("answering", "metric", "extractor") if key in given), "target_field")
        raise TaskError(f"{_where(path, text, key)}: {error.message}", remedy=error.remedy) from error


def read_phrasing(given: Any, *, path: Path, text: str) -> Phrasing:
    """Return a phrasing from its block alone, or from an object with the fields of `Phrasing`."""
    where = _where(path, text, "phrasings")
    fields = {"block": given} if isinstance(given, str) else given
    if not isinstance(fields, dict) or "block" not in fields:
        raise TaskError(f"{where}: a phrasing is a text or an object with block, got {given!r}", remedy="correct it")
    check_fields(fields, PHRASING_KINDS, path=path, text=text)
    try:
        return Phrasing(**fields)
    except TaskError as error:
        raise TaskError(f"{where}: {error.message}", remedy=error.remedy) from error


def check_fields(given: Mapping[str, Any], kinds: Mapping[str, type], *, path: Path, text: str) -> None:
    """Refuse keys that are not known, naming the nearest, and values of another kind."""
    for key, value in given.items():
        if key not in kinds:
            nearest = difflib.get_close_matches(key, kinds, n=1)
            remedy = f"did you mean {nearest[0]!r}?" if nearest else f"use {', '.join(kinds)}"
            raise TaskError(f"{_where(path, text, key)}: unknown field {key!r}", remedy=remedy)
        empty = value <= 0 if type(value) is int else not value and value is not False
        right = type(value) is kinds[key] and not empty
        if not right:
            raise TaskError(
                f"{_where(path, text, key)}: {key} must be {WORDS[kinds[key]]}, got {value!r}", remedy="correct the line"
            )


def _where(path: Path, text: str, key: str) -> str:
    found = re.search(rf"{re.escape(json.dumps(key))}\s*:", text)
    line = 1 if found is None else text.count("\n", 0, found.start()) + 1
    return f"{path}, line {line}"

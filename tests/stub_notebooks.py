"""Notebooks and sweep files made for tests: quick, without models, and as faulty as a test needs them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

DECLARED = """\
x: float = 0
name = "a"  # any text
seed = 0
fail = False
sleep: float = 0  # seconds
log = ""  # a file that every execution adds its line to
"""
BODY = """\
import os
import time

if log:
    with open(log, "a") as lines:
        lines.write(f"{x} {seed}\\n")
time.sleep(sleep)
assert not fail, "asked to fail"
"""
RECORD = """\
from fusionlab.experiments import record

record(score=2 * x + seed, label=name)
"""


def write_notebook(path: Path, *cells: str, parameters: str | None = DECLARED, language: str = "python") -> Path:
    """A notebook with a parameters cell (None: without) and code cells."""
    sources = [*([] if parameters is None else [parameters]), *cells]
    content = {
        "nbformat": 4, "nbformat_minor": 5,
        "metadata": {"kernelspec": {"name": "python3", "language": language, "display_name": "Python 3"}},
        "cells": [{"cell_type": "code", "id": f"c{place}", "source": source, "outputs": [], "execution_count": None,
                   "metadata": {"tags": ["parameters"]} if place == 0 and parameters is not None else {}}
                  for place, source in enumerate(sources)],
    }  # fmt: skip
    path.write_text(json.dumps(content))
    return path


def write_stub(folder: Path, name: str = "stub.ipynb") -> Path:
    """The usual stub: sleeps, fails where asked to, records score = 2 x + seed."""
    return write_notebook(folder / name, BODY, RECORD)


def write_sweep(folder: Path, name: str = "sweep.yaml", **keys: Any) -> Path:
    """A sweep file beside a stub notebook. JSON is YAML."""
    if not (folder / "stub.ipynb").exists():
        write_stub(folder)
    path = folder / name
    path.write_text(json.dumps({"notebook": "stub.ipynb", **keys}))
    return path

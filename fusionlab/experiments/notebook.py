"""A notebook as an experiment: what it declares, and what of it decides its results."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path

from fusionlab.errors import NotebookError
from fusionlab.experiments.parameters import Parameter, read_parameters

TAG = "parameters"


@dataclass(frozen=True)
class Notebook:
    """One notebook, read and checked. sha256: of its code cells; text, outputs and metadata do not count."""

    path: Path
    text: str = field(repr=False)  # the file itself
    parameters: dict[str, Parameter]
    kernel: str
    sha256: str

    @property
    def name(self) -> str:
        """The file's name without its ending."""
        return self.path.stem


def load_notebook(path: Path) -> Notebook:
    """Read a notebook and the parameters that it declares; as JSON, since nbformat takes seconds to import.

    >>> load_notebook(Path("notebooks/00_demo.ipynb")).parameters["seed"].default      # doctest: +SKIP
    0

    Raises NotebookError for a file that is no notebook, another language than Python, and where not exactly one cell is
    tagged `parameters`.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise NotebookError(f"cannot read notebook {path}: {reason}", remedy="name an .ipynb file") from error
    try:
        content = json.loads(text)
        version, about = content["nbformat"], content["metadata"]
        cells = [cell for cell in content["cells"] if cell["cell_type"] == "code"]
        sources = ["".join(cell["source"]) for cell in cells]
    except (ValueError, KeyError, TypeError) as error:
        raise NotebookError(f"{path} is no notebook: {type(error).__name__} {error!s:.120}",
                            remedy="name an .ipynb file in nbformat 4") from error  # fmt: skip
    if version != 4:
        raise NotebookError(f"{path} is in nbformat {version}", remedy="convert it: jupyter nbconvert --to notebook")
    kernel = about.get("kernelspec", {})
    language = about.get("language_info", {}).get("name") or kernel.get("language") or "python"
    if language != "python":
        raise NotebookError(f"{path} is written in {language}", remedy="experiments run notebooks with a Python kernel")
    tagged = [source for cell, source in zip(cells, sources, strict=True) if TAG in cell["metadata"].get("tags", [])]
    if len(tagged) != 1:
        raise NotebookError(
            f"{path} has {len(tagged) or 'no'} cell{'s' if tagged else ''} tagged `parameters`",
            remedy="tag the one cell that assigns the defaults: property inspector (gear icon) in JupyterLab, Add Tag",
        )
    return Notebook(path, text, read_parameters(tagged[0], where=str(path)), kernel.get("name", "python3"),
                    hashlib.sha256("\0".join(sources).encode()).hexdigest())  # fmt: skip

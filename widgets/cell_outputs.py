"""How an explorer lives in a notebook's outputs: one at a time in a cell, and readable without a kernel.

JupyterLab shows "model not found" where a widget's kernel is gone, whatever else its output holds. So the explorer has a
second output, plain HTML with the views of the latest trace, which the live widget hides and which is saved with the
notebook.
"""

from __future__ import annotations

import html
import weakref
from typing import TYPE_CHECKING, Any

from fusionlab.trace_html import traces_to_output

if TYPE_CHECKING:
    from .explorer import Explorer
    from .runs import Run

_made_by_cell: dict[str, tuple[str, weakref.WeakSet[Explorer]]] = {}  # cell -> (its last execution, what it made)

_NOTHING = "The explorer has written nothing yet. Run the cell to use it."
_ABOUT = "Saved view of {run}. The controls work without a kernel; to write again, run the cell again."


def close_earlier_ones(explorer: Explorer) -> None:
    """Close what earlier executions of the running cell have made. Without a cell that has an id nothing is closed."""
    cell, execution = running_cell()
    if cell is None:
        return
    latest, made = _made_by_cell.get(cell, ("", weakref.WeakSet()))
    if latest != execution:
        for earlier in list(made):
            earlier.close()
        made = weakref.WeakSet()
    made.add(explorer)
    _made_by_cell[cell] = (execution, made)


def running_cell() -> tuple[str | None, str]:
    """(the id of the cell that is being run, the id of its execution); (None, "") where there is none."""
    try:
        from IPython import get_ipython
    except ImportError:
        return None, ""
    shell = get_ipython()
    parent: dict[str, Any] = shell.get_parent() if hasattr(shell, "get_parent") else {}
    cell = (parent.get("metadata") or {}).get("cellId")
    return (str(cell) if cell else None), str((parent.get("header") or {}).get("msg_id", ""))


class SavedView:
    """The output that stays when the kernel is gone; rewritten in place with every run."""

    def __init__(self) -> None:
        self._handle: Any = None

    def display(self, run: Run | None) -> None:
        """Add the output to the running cell."""
        from IPython.display import display

        self._handle = display(self._bundle(run), raw=True, display_id=True)

    def update(self, run: Run) -> None:
        """Rewrite it, wherever it is shown."""
        if self._handle is not None:
            self._handle.update(self._bundle(run), raw=True)

    def html(self, run: Run | None) -> str:
        """A run's views in a frame, and what to do."""
        if run is None:
            return f"<p>{html.escape(_NOTHING)}</p>"
        about = html.escape(_ABOUT.format(run=f"run {run.number}"))
        return f"<p>{about}</p>{traces_to_output([run.trace], others=[run.others])}"

    def _bundle(self, run: Run | None) -> dict[str, str]:
        # The script looks for this class beside its own output.
        text = _NOTHING if run is None else _ABOUT.format(run=f"run {run.number}")
        return {"text/html": f'<div class="fusionlab-saved-view">{self.html(run)}</div>', "text/plain": text}

"""Figures and live views of traces; drawn from saved traces alone, without any model.

>>> from fusionlab_widgets import Explorer, TraceView                     # doctest: +SKIP
>>> from fusionlab_widgets.figures import weight_heatmap                  # doctest: +SKIP
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if __name__ != "fusionlab_widgets":  # found as a folder of the current directory, not as the installed package
    raise ImportError("the folder widgets/ is a package named fusionlab_widgets; write `import fusionlab_widgets`")

if TYPE_CHECKING:
    from .explorer import Explorer
    from .trace_view import TraceView

__all__ = ["Explorer", "TraceView"]

# public name -> the module that defines it, and that imports anywidget
_HOMES = {"Explorer": ".explorer", "TraceView": ".trace_view"}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'fusionlab_widgets' has no attribute {name!r}; it offers {', '.join(_HOMES)}")
    try:
        module = import_module(_HOMES[name], __name__)
    except ModuleNotFoundError as error:
        if error.name not in ("anywidget", "ipywidgets", "traitlets"):
            raise
        from fusionlab.errors import MissingPackageError

        raise MissingPackageError(f"{name} needs {error.name}", remedy='pip install "fusionlab[lab]"') from error
    return getattr(module, name)

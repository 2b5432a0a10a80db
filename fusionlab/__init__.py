"""Fuse the logits of small experts into a large model, one solved weight per token.

>>> from fusionlab import KLConstraint, Team
>>> team = Team.from_pretrained("embedded")  # doctest: +SKIP
>>> team.generate(["Question: What is the capital of Peru?\\nAnswer:"], experts=["trivia"])  # doctest: +SKIP

The public names are imported when they are first used (PEP 562), so that `import fusionlab` costs
milliseconds and never loads torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fusionlab.decode import fusion_generate
    from fusionlab.errors import FusionError
    from fusionlab.session import FusionSession
    from fusionlab.solvers import KLConstraint, Solution, fuse, kl_table, solve
    from fusionlab.tasks import load_task
    from fusionlab.team import Team
    from fusionlab.trace import Trace, load_traces, save_traces

__version__ = "0.1.0"

__all__ = [
    "KLConstraint",
    "Solution",
    "solve",
    "fuse",
    "kl_table",
    "Team",
    "FusionSession",
    "fusion_generate",
    "Trace",
    "load_traces",
    "save_traces",
    "load_task",
    "FusionError",
    "__version__",
]

_HOMES = {  # public name -> the module that defines it
    "KLConstraint": "fusionlab.solvers",
    "Solution": "fusionlab.solvers",
    "solve": "fusionlab.solvers",
    "fuse": "fusionlab.solvers",
    "kl_table": "fusionlab.solvers",
    "Team": "fusionlab.team",
    "FusionSession": "fusionlab.session",
    "fusion_generate": "fusionlab.decode",
    "Trace": "fusionlab.trace",
    "load_traces": "fusionlab.trace",
    "save_traces": "fusionlab.trace",
    "load_task": "fusionlab.tasks",
    "FusionError": "fusionlab.errors",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'fusionlab' has no attribute {name!r}; it offers {', '.join(_HOMES)}")
    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value  # the next access does not come here
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})

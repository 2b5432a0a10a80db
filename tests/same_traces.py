"""Whether two traces tell of the same decode."""

from __future__ import annotations

import numpy as np

from fusionlab.trace import Trace
from fusionlab.trace_fields import ARRAYS, GRID_ARRAYS, TABLE_ARRAYS

_ALL = ARRAYS | GRID_ARRAYS | TABLE_ARRAYS
_COUNTED = {name for name, (_, dtype) in _ALL.items() if dtype != "float32"}


def assert_same_trace(trace: Trace, reference: Trace) -> None:
    """Everything but the time of day agrees: what is counted exactly, and numbers to fp32's last digits."""
    assert trace.token_ids.tolist() == reference.token_ids.tolist()
    for name in ("prompt", "text", "experts", "method", "constraint", "level", "pieces", "topk_pieces"):
        assert getattr(trace, name) == getattr(reference, name), name
    for name in _ALL:
        mine, theirs = getattr(trace, name), getattr(reference, name)
        if name in _COUNTED:
            np.testing.assert_array_equal(mine, theirs, err_msg=name)
        else:
            np.testing.assert_allclose(mine, theirs, atol=2e-4, rtol=1e-4, err_msg=name)
    unlike = {key for key in trace.meta.keys() | reference.meta.keys() if trace.meta.get(key) != reference.meta.get(key)}
    assert unlike <= {"created"}

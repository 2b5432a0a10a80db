"""The array fields of a trace: their shapes and dtypes, and the checks on values that come in.

Letters of shapes: N tokens, E experts, K top-k entries, G weights on the grid, H weights of `even_grid`, C candidates,
S weights of `REST_WEIGHTS`, M atoms. Symbols as in `fusionlab.trace`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from fusionlab.errors import TraceError

if TYPE_CHECKING:
    import numpy.typing as npt

    Array = npt.NDArray[Any]

LEVELS = ("full", "light")

# field -> (shape, dtype); a test checks that this table and the dataclass below agree
ARRAYS: dict[str, tuple[str, str]] = {
    "token_ids": ("N", "int32"),
    "alpha": ("NE", "float32"),
    "target_forward": ("NE", "float32"),
    "target_reverse": ("NE", "float32"),
    "kl_forward": ("N", "float32"),
    "kl_reverse": ("N", "float32"),
    "evidence": ("NE", "float32"),
    "entropy_large": ("N", "float32"),
    "entropy_small": ("N", "float32"),
    "entropy_fused": ("N", "float32"),
    "entropy_experts": ("NE", "float32"),
    "logprob_large": ("N", "float32"),
    "logprob_small": ("N", "float32"),
    "logprob_fused": ("N", "float32"),
    "logprob_experts": ("NE", "float32"),
    "topk_ids_large": ("NK", "int32"),
    "topk_ids_small": ("NK", "int32"),
    "topk_ids_fused": ("NK", "int32"),
    "topk_ids_experts": ("NEK", "int32"),
    "topk_logprobs_large": ("NK", "float32"),
    "topk_logprobs_small": ("NK", "float32"),
    "topk_logprobs_fused": ("NK", "float32"),
    "topk_logprobs_experts": ("NEK", "float32"),
    "large_choice": ("N", "int32"),
    "flipped": ("N", "bool"),
    "flipped_by": ("N", "int16"),
    "clamped": ("N", "int32"),
    "drafted": ("N", "bool"),
    "accepted": ("N", "bool"),
}
GRID_ARRAYS: dict[str, tuple[str, str]] = {
    "grid": ("G", "float32"),
    "grid_kl_forward": ("NEG", "float32"),
    "grid_kl_reverse": ("NEG", "float32"),
}
# What solving again needs beside the grid; a full trace has all of these or, from before version 2, none.
TABLE_ARRAYS: dict[str, tuple[str, str]] = {
    "mean_deltas": ("NE", "float32"),
    "grid_variance": ("NEG", "float32"),
    "even_kl_forward": ("NH", "float32"),
    "even_kl_reverse": ("NH", "float32"),
    "even_variance": ("NH", "float32"),
    "candidate_ids": ("NC", "int32"),
    "candidate_logprobs": ("NC", "float32"),
    "candidate_deltas": ("NEC", "float32"),
    "rest_peaks": ("NES", "float32"),
    "atom_logprobs": ("NM", "float32"),
    "atom_deltas": ("NEM", "float32"),
}
REST_WEIGHTS = (0.0, 0.5, 1.0, 1.5, 2.0)  # the weights of `rest_peaks`
IDS = ("topk_ids_large", "topk_ids_small", "topk_ids_fused", "topk_ids_experts", "candidate_ids")


def even_grid(grid: Any, experts: int) -> Array:
    """(H,) the weights at which a trace has all experts together: the grid, its steps divided by their number up to 2.

    The changes of several experts add up, so the divergences turn as many times faster.
    """
    import numpy as np

    weights = np.asarray(grid, dtype="float64")
    if experts < 2:
        return weights
    fine = weights[weights <= 2 + 1e-6] / experts
    return np.concatenate([fine, weights[weights > fine[-1:].sum() + 1e-6]])


def last_size(values: object) -> int:
    """Entries along the last axis; 0 for None."""
    import numpy as np

    shape = np.asarray(values).shape
    return int(shape[-1]) if shape else 0


def checked_array(name: str, values: object, shape: tuple[int, ...], dims: str, dtype: str) -> Array:
    """A read-only copy of `values` in its dtype, or a `TraceError` that names the field."""
    import numpy as np

    array = np.asarray(values)
    if array.shape != shape:
        letters = ", ".join(dims)
        raise TraceError(f"trace field {name!r} must have shape ({letters}) = {shape}, received {array.shape}")
    if array.size and not np.can_cast(array.dtype, dtype, casting="same_kind"):
        raise TraceError(f"trace field {name!r} must hold {dtype}, received {array.dtype}")
    cast = np.array(array, dtype=dtype, order="C", copy=True)
    if array.dtype.kind in "iu" and not np.array_equal(cast, array):
        raise TraceError(f"trace field {name!r} holds integers that do not fit in {dtype}")
    cast.setflags(write=False)
    return cast


def as_json(name: str, value: Mapping[str, Any]) -> dict[str, Any]:
    """`value` as JSON gives it back, or a `TraceError` that names the field."""
    try:
        plain = json.loads(json.dumps(value))
    except (TypeError, ValueError) as error:
        raise TraceError(
            f"trace field {name!r} cannot be written as JSON: {error}",
            remedy="pass text, numbers, lists and dicts",
        ) from None
    if not isinstance(plain, dict):
        raise TraceError(f"trace field {name!r} must be a dict, received {type(value).__name__}")
    return plain

"""Hand memory that was freed back to the system; knows nothing of tensors."""

from __future__ import annotations

import ctypes
import functools
import sys
from collections.abc import Callable


def release_freed_memory() -> None:
    """Give the pages of freed blocks back where the C library keeps them (glibc's malloc_trim); elsewhere nothing.

    glibc keeps up to 64 MB at the top of its heap and everything between live blocks. Called after a load, after a prompt
    was read and after a batch was written it costs milliseconds, and the peak no longer adds up over those.
    """
    trim = _find_trim()
    if trim is not None:
        trim(0)


@functools.cache
def _find_trim() -> Callable[[int], int] | None:
    if not sys.platform.startswith("linux"):
        return None
    trim: Callable[[int], int] | None = getattr(ctypes.CDLL(None), "malloc_trim", None)  # musl has none
    return trim

"""Freed memory goes back where the C library can do that, and nothing happens elsewhere."""

from __future__ import annotations

import ctypes
import sys

import pytest

from fusionlab import allocator


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_pages_of_freed_blocks_are_handed_back() -> None:
    """Blocks between live ones stay with the process otherwise: half a gigabyte in the demo."""
    if not hasattr(ctypes.CDLL(None), "malloc_trim"):
        pytest.skip("this C library has no malloc_trim")
    library = ctypes.CDLL(None)
    library.malloc.restype, library.free.argtypes = ctypes.c_void_p, [ctypes.c_void_p]
    blocks = [library.malloc(100_000) for _ in range(600)]  # below the size that gets a mapping of its own
    for block in blocks:
        ctypes.memset(block, 1, 100_000)
    for block in blocks[:-1]:
        library.free(block)
    before = resident_bytes()
    allocator.release_freed_memory()
    assert before - resident_bytes() > 30e6
    library.free(blocks[-1])


def test_without_malloc_trim_nothing_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    """macOS and musl have none, and decode there too."""
    monkeypatch.setattr(allocator, "_find_trim", lambda: None)
    allocator.release_freed_memory()


def resident_bytes() -> int:
    """Memory of this process that is in RAM."""
    with open("/proc/self/statm") as numbers:
        return int(numbers.read().split()[1]) * 4096

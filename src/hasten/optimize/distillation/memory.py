"""Freed memory that the next step uses again."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["kept_memory"]

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
"""M_TRIM_THRESHOLD and M_MMAP_THRESHOLD of glibc's `malloc.h`."""
_LARGEST = 32 << 20
"""Where glibc's own rule ends: it refuses a higher threshold for mapping, and trims at twice it."""
_NEVER = (1 << 31) - 1


@contextmanager
def kept_memory() -> Iterator[None]:
    """Lets glibc keep what is freed, up to arrays of 32 MiB; outside it goes back to the system.

    A step of training takes and frees the same arrays of some 20 MiB again and again. glibc gives
    them back, and the system clears new pages for the next. Where the C library is another one,
    nothing changes.
    """
    library = ctypes.CDLL(None)
    if not hasattr(library, "mallopt") or not hasattr(library, "malloc_trim"):
        yield
        return
    library.mallopt(_MMAP_THRESHOLD, _LARGEST)
    library.mallopt(_TRIM_THRESHOLD, _NEVER)
    try:
        yield
    finally:
        library.mallopt(_TRIM_THRESHOLD, 2 * _LARGEST)
        library.malloc_trim(0)

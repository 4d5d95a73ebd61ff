"""Codes packed into 32-bit words, and scales of any float type."""

from __future__ import annotations

from typing import Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from hasten.models.safetensors import StoredArray

__all__ = ["read_floats", "transpose", "unpack_words"]

_Word = TypeVar("_Word", np.int32, np.uint32)


def unpack_words(
    words: NDArray[np.int32] | NDArray[np.uint32], bits: Literal[4, 8]
) -> NDArray[np.uint8]:
    """Codes of 4 or 8 bits, lowest bits first.

    Args:
        words: [rows, n], C-contiguous.
        bits: Of a code.

    Returns:
        uint8 [rows, n * 32 / bits].
    """
    if bits == 8:
        return words.view(np.uint8)
    # Moves the 8 fields of a word apart in three steps, all words at once.
    wide = words.view(np.uint32).astype(np.uint64)
    shifted = np.empty_like(wide)
    for distance, mask in _STEPS:
        np.left_shift(wide, distance, out=shifted)
        wide |= shifted
        wide &= mask
    return wide.view(np.uint8)


_STEPS = [
    (np.uint64(16), np.uint64(0x0000FFFF0000FFFF)),
    (np.uint64(8), np.uint64(0x00FF00FF00FF00FF)),
    (np.uint64(4), np.uint64(0x0F0F0F0F0F0F0F0F)),
]


def transpose(words: NDArray[_Word]) -> NDArray[_Word]:
    """The transpose of a slice of a larger array, C-contiguous."""
    # The slice is copied first: in cache it is turned twice as fast.
    return np.ascontiguousarray(np.ascontiguousarray(words).T)


def read_floats(array: StoredArray) -> NDArray[np.float32]:
    """F16, BF16 or F32 values as float32."""
    if array.dtype == "BF16":
        bits: NDArray[np.uint32] = np.left_shift(array.data, np.uint32(16), dtype=np.uint32)
        return bits.view(np.float32)
    return np.asarray(array.data, np.float32)

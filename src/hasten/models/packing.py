"""Codes packed into 32-bit words, and scales of any float type."""

from __future__ import annotations

from typing import Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from hasten.models.safetensors import StoredArray

__all__ = ["read_floats", "transpose", "unpack_rows", "unpack_words"]

_Item = TypeVar("_Item", np.int32, np.uint32, np.float32)


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


def unpack_rows(
    words: NDArray[np.int32] | NDArray[np.uint32], bits: Literal[4, 8], begin: int, end: int
) -> NDArray[np.uint8]:
    """Codes that are packed along the second axis, turned.

    Args:
        words: [groups, rows * bits / 32].
        bits: Of a code.
        begin: First row.
        end: Last row + 1.

    Returns:
        uint8 [end - begin, groups].
    """
    per_word = 32 // bits
    first = begin // per_word
    used = words.view(np.uint32)[:, first : -(-end // per_word)]
    found = unpack_words(np.ascontiguousarray(used), bits)
    return np.ascontiguousarray(found.T[begin - first * per_word :][: end - begin])


def transpose(values: NDArray[_Item]) -> NDArray[_Item]:
    """The transpose of a slice of a larger array, C-contiguous."""
    # The slice is copied first: in cache it is turned twice as fast.
    return np.ascontiguousarray(np.ascontiguousarray(values).T)


def read_floats(
    array: StoredArray, place: slice | tuple[slice, slice] = slice(None)
) -> NDArray[np.float32]:
    """F16, BF16 or F32 values at an index of an array, as float32."""
    values = array.data[place]
    if array.dtype == "BF16":
        bits: NDArray[np.uint32] = np.left_shift(values, np.uint32(16), dtype=np.uint32)
        return bits.view(np.float32)
    return np.asarray(values, np.float32)

"""Codes packed into 32-bit words, and scales of any float type."""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray

from hasten.models.safetensors import StoredArray

__all__ = ["read_floats", "unpack_words"]


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
    octets = words.view(np.uint8)
    if bits == 8:
        return octets
    codes = np.empty((*octets.shape, 2), np.uint8)
    np.bitwise_and(octets, 15, out=codes[..., 0])
    np.right_shift(octets, 4, out=codes[..., 1])
    return codes.reshape(len(words), -1)


def read_floats(array: StoredArray) -> NDArray[np.float32]:
    """F16, BF16 or F32 values as float32."""
    if array.dtype == "BF16":
        bits: NDArray[np.uint32] = np.left_shift(array.data, np.uint32(16), dtype=np.uint32)
        return bits.view(np.float32)
    return np.asarray(array.data, np.float32)

"""Quantised matrices: what the integer kernels multiply with, and how float weights become one.

The layout is canonical (row by row, independent of any instruction set); the native executor
repacks it once into panels. Int4 codes lie as in GGUF's Q4_0 and Q4_1 blocks, so such files are
taken over byte for byte: in each run of 32 columns, byte j holds column j in its low and column
j + 16 in its high nibble.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from hasten.errors import UsageError

__all__ = ["BLOCK", "CodeLayout", "QuantizedMatrix", "dequantize", "pack_nibbles", "quantize_rtn"]

BLOCK = 32
"""Columns are padded with zeros to a multiple of this; groups are multiples of it."""

_INT4_ZERO = 8
_CHUNK = 1 << 17
"""Values rounded at a time."""


@dataclass(frozen=True, slots=True, eq=False)
class CodeLayout:
    """What form codes have, without the codes.

    Attributes:
        bits: 4 or 8.
        group: Columns that share a scale.
        minimum: Whether codes count from a minimum for each group.
        order: int32 [columns] or None, as for `QuantizedMatrix`.
    """

    bits: Literal[4, 8]
    group: int
    minimum: bool
    order: NDArray[np.int32] | None = None


@dataclass(frozen=True, slots=True)
class QuantizedMatrix:
    """A matrix [rows, columns] as integer codes with one scale a row and group of columns.

    Attributes:
        bits: 4 or 8.
        shape: (rows, columns) of the matrix it stands for.
        group: Columns that share a scale, a multiple of 32 that divides the padded columns.
        codes: bits 4: uint8 [rows, padded / 2], nibbles 0..15 (order: see the module);
            bits 8: int8 [rows, padded].
        scales: float16 [rows, padded / group].
        minimums: float16 like `scales`, or None.
        order: int32 [columns], a permutation: column i of the codes is column order[i] of the
            matrix. None where they are in order.

    The value of a code is `scale * code + minimum` with minimums, else `scale * (code - 8)` for
    int4 and `scale * code` for int8.
    """

    bits: Literal[4, 8]
    shape: tuple[int, int]
    group: int
    codes: NDArray[np.uint8] | NDArray[np.int8]
    scales: NDArray[np.float16]
    minimums: NDArray[np.float16] | None = None
    order: NDArray[np.int32] | None = None

    @property
    def padded(self) -> int:
        """Columns after padding to a multiple of 32."""
        return -(-self.shape[1] // BLOCK) * BLOCK

    @property
    def format(self) -> str:
        """Name as in `EngineOptions.weights`: "int4:32", "int8:64", or "int8" for one a row."""
        whole_row = self.bits == 8 and self.group == self.padded
        return "int8" if whole_row else f"int{self.bits}:{self.group}"

    @property
    def layout(self) -> CodeLayout:
        """The form of the codes."""
        return CodeLayout(self.bits, self.group, self.minimums is not None, self.order)

    @property
    def nbytes(self) -> int:
        """Bytes of codes, scales and minimums."""
        minimums = 0 if self.minimums is None else self.minimums.nbytes
        return self.codes.nbytes + self.scales.nbytes + minimums

    def integer_codes(self) -> NDArray[np.int16]:
        """Codes as int16 [rows, padded]: 0..15 for int4, -128..127 for int8."""
        if self.bits == 8:
            return self.codes.astype(np.int16)
        nibbles = self.codes.reshape(self.shape[0], -1, BLOCK // 2)
        both = np.concatenate([nibbles & 15, nibbles >> 4], axis=2)
        return both.reshape(self.shape[0], -1).astype(np.int16)


def dequantize(matrix: QuantizedMatrix) -> NDArray[np.float32]:
    """The matrix as float32 [rows, columns]."""
    rows, columns = matrix.shape
    codes = matrix.integer_codes().astype(np.float32).reshape(rows, -1, matrix.group)
    scales = matrix.scales.astype(np.float32)[:, :, None]
    if matrix.minimums is not None:
        values = codes * scales + matrix.minimums.astype(np.float32)[:, :, None]
    elif matrix.bits == 4:
        values = (codes - _INT4_ZERO) * scales
    else:
        values = codes * scales
    values = values.reshape(rows, -1)[:, :columns]
    if matrix.order is None:
        return np.ascontiguousarray(values)  # native kernels take no gaps between rows
    ordered = np.empty((rows, columns), np.float32)
    ordered[:, matrix.order] = values
    return ordered


def quantize_rtn(
    values: NDArray[np.float32], bits: Literal[4, 8], group: int | None = None
) -> QuantizedMatrix:
    """Quantises by rounding to nearest: int8 symmetric, int4 with scale and minimum.

    Args:
        values: float32 [rows, columns], finite.
        bits: 4 or 8.
        group: Columns that share a scale; None (int8 only) takes the whole row.

    Raises:
        UsageError: The group does not divide the padded columns, or `values` is not finite.
    """
    rows, columns = values.shape
    padded = -(-columns // BLOCK) * BLOCK
    size = padded if group is None else group
    if size % BLOCK or padded % size:
        raise UsageError(
            f"group size {size} does not fit a matrix of {columns} columns",
            allowed=f"multiples of {BLOCK} that divide {padded}",
        )
    # In pieces that stay in the cache, for large matrices three times as fast.
    step = max(1, _CHUNK // padded)
    pieces = [_round(values[i : i + step], bits, padded, size) for i in range(0, rows, step)]
    codes, scales = (np.concatenate([piece[part] for piece in pieces]) for part in (0, 1))
    low = None if bits == 8 else np.concatenate([piece[2] for piece in pieces])
    return QuantizedMatrix(bits, (rows, columns), size, codes, scales, low)


def _round(
    values: NDArray[np.float32], bits: Literal[4, 8], padded: int, group: int
) -> tuple[NDArray[Any], ...]:
    if not np.isfinite(values).all():
        raise UsageError("cannot quantise a matrix with NaN or infinite values")
    rows, columns = values.shape
    grouped = np.pad(values, ((0, 0), (0, padded - columns))).reshape(rows, -1, group)
    if bits == 8:
        codes, scales = _round_symmetric(grouped)
        return codes.reshape(rows, padded), scales
    nibbles, scales, minimums = _round_with_minimum(grouped)
    return pack_nibbles(nibbles.reshape(rows, padded)), scales, minimums


def pack_nibbles(codes: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Packs int4 codes uint8 [rows, padded] of 0..15 into [rows, padded / 2]: see the module."""
    # Eight codes in a word: what a shift moves out of a byte is zero.
    halves = np.ascontiguousarray(codes).view(np.uint64).reshape(len(codes), -1, 2, 2)
    packed = halves[:, :, 1] << np.uint64(4)
    packed |= halves[:, :, 0]
    return packed.view(np.uint8).reshape(len(codes), -1)


def _round_symmetric(
    grouped: NDArray[np.float32],
) -> tuple[NDArray[np.int8], NDArray[np.float16]]:
    scales = (np.abs(grouped).max(axis=2) / 127).astype(np.float16)
    # The codes answer to the scale as stored, so that rounding it costs nothing twice.
    inverse = _inverse(scales)
    codes = np.clip(np.rint(grouped * inverse), -127, 127).astype(np.int8)
    return codes, scales


def _round_with_minimum(
    grouped: NDArray[np.float32],
) -> tuple[NDArray[np.uint8], NDArray[np.float16], NDArray[np.float16]]:
    low = np.minimum(grouped.min(axis=2), 0)
    scales = ((np.maximum(grouped.max(axis=2), 0) - low) / 15).astype(np.float16)
    minimums = low.astype(np.float16)
    shifted = grouped - minimums.astype(np.float32)[:, :, None]
    codes = np.clip(np.rint(shifted * _inverse(scales)), 0, 15).astype(np.uint8)
    return codes, scales, minimums


def _inverse(scales: NDArray[np.float16]) -> NDArray[np.float32]:
    wide = scales.astype(np.float32)[:, :, None]
    return np.divide(1.0, wide, out=np.zeros_like(wide), where=wide > 0)

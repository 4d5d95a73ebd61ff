"""Quantised matrices as codes with integer zero points, the form of published checkpoints.

value = scale * (code - zero), codes and zero points 0 .. 2^bits - 1; the inverse of
`hasten.models.grouped.GroupedTensor.quantized`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from hasten.kernels.quantization import QuantizedMatrix

__all__ = ["IntegerMatrix", "stack", "why_not_integer", "with_zero_points"]


@dataclass(frozen=True, slots=True)
class IntegerMatrix:
    """A matrix of codes without padding.

    Attributes:
        bits: 4 or 8.
        group: Columns that share a scale; None for a whole row.
        codes: uint8 [rows, columns], columns in the order of the matrix.
        scales: float16 [rows, groups].
        zeros: uint8 like `scales`; None where every zero point is 2^(bits - 1).
        group_of: int32 [columns], the group of each column; None where i is in i // group.
    """

    bits: Literal[4, 8]
    group: int | None
    codes: NDArray[np.uint8]
    scales: NDArray[np.float16]
    zeros: NDArray[np.uint8] | None
    group_of: NDArray[np.int32] | None

    @property
    def scheme(self) -> tuple[int, int | None, bool, bool]:
        """Bits, group, whether symmetric, whether columns lie out of order."""
        return self.bits, self.group, self.zeros is None, self.group_of is not None


def why_not_integer(matrix: QuantizedMatrix) -> str | None:
    """What the form cannot hold whatever the zero points are, or None."""
    columns = matrix.shape[1]
    if matrix.group != matrix.padded and columns % matrix.group:
        return f"groups of {matrix.group} do not divide its {columns} columns"
    return None


def with_zero_points(matrix: QuantizedMatrix, *, rounded: bool) -> IntegerMatrix | None:
    """The matrix with an integer zero point for each minimum.

    A minimum has one if it is that multiple of the scale, rounded to half precision: what a reader
    of such files makes of a zero point.

    Args:
        matrix: Any that `why_not_integer` finds nothing against.
        rounded: Take the nearest zero point where there is no such one, which moves all values of
            a group by up to half a scale.

    Returns:
        None where a minimum has no zero point and it may not be rounded.
    """
    zeros = None
    if matrix.minimums is not None:
        zeros = _zero_points(matrix)
        if not rounded and not _gives_minimums(matrix, zeros):
            return None
    whole_row = matrix.group == matrix.padded
    codes, group_of = _in_order(matrix)
    return IntegerMatrix(
        matrix.bits, None if whole_row else matrix.group, codes, matrix.scales, zeros, group_of
    )


def stack(matrices: Sequence[IntegerMatrix]) -> IntegerMatrix | None:
    """The rows of several matrices, one after another; None if their forms differ."""
    first = matrices[0]
    for other in matrices[1:]:
        if other.scheme != first.scheme or not _same_order(first.group_of, other.group_of):
            return None
    zeros = [one.zeros for one in matrices if one.zeros is not None]
    return IntegerMatrix(
        first.bits,
        first.group,
        np.concatenate([one.codes for one in matrices]),
        np.concatenate([one.scales for one in matrices]),
        np.concatenate(zeros) if zeros else None,
        first.group_of,
    )


def _middle(bits: int) -> int:
    """What a zero point is counted from in a minimum: int8 codes are signed, int4 ones are not."""
    return 0 if bits == 4 else 128


def _zero_points(matrix: QuantizedMatrix) -> NDArray[np.uint8]:
    scales = matrix.scales.astype(np.float32)
    lows = np.asarray(matrix.minimums, np.float32)
    # A group of scale 0 holds one value; the symmetric zero point keeps a 0.
    shift = np.divide(lows, scales, out=np.zeros_like(lows), where=scales != 0)
    nearest = np.clip(np.rint(_middle(matrix.bits) - shift), 0, (1 << matrix.bits) - 1)
    zeros: NDArray[np.uint8] = nearest.astype(np.uint8)
    return zeros


def _same_order(first: NDArray[Any] | None, other: NDArray[Any] | None) -> bool:
    """Whether columns lie in the same groups; None is one group after another."""
    if first is None or other is None:
        return first is other
    return np.array_equal(first, other)


def _gives_minimums(matrix: QuantizedMatrix, zeros: NDArray[np.uint8]) -> bool:
    scales = matrix.scales.astype(np.float32)
    products = scales * (_middle(matrix.bits) - zeros.astype(np.float32))
    with np.errstate(over="ignore"):
        return matrix.minimums is not None and np.array_equal(
            products.astype(np.float16), matrix.minimums
        )


def _in_order(matrix: QuantizedMatrix) -> tuple[NDArray[np.uint8], NDArray[np.int32] | None]:
    """Unsigned codes as the columns of the matrix lie, and the group of each if that tells."""
    columns = matrix.shape[1]
    if matrix.bits == 8:
        codes = matrix.codes.view(np.uint8)[:, :columns] ^ np.uint8(0x80)
    else:
        codes = matrix.integer_codes()[:, :columns].astype(np.uint8)
    if matrix.order is None:
        return codes, None
    ordered, group_of = np.empty_like(codes), np.empty(columns, np.int32)
    ordered[:, matrix.order] = codes
    group_of[matrix.order] = np.arange(columns, dtype=np.int32) // matrix.group
    return ordered, group_of

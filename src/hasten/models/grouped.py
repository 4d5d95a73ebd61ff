"""Matrices of integer codes with a scale and a zero point for each row and group of columns.

GPTQ, AWQ and compressed-tensors checkpoints all hold these and differ only in how they pack them.
Their readers give `GroupedCodes`; `GroupedTensor` makes of them what the kernels run.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from hasten.errors import ModelFileError
from hasten.kernels.quantization import BLOCK, CodeLayout, QuantizedMatrix, pack_nibbles
from hasten.models.weights import StoredTensor, require_finite, to_half

__all__ = ["GroupedCodes", "GroupedTensor", "group_size", "read_group_of"]

_CHUNK = 1 << 18
"""Codes unpacked at a time."""
_WORD_ROWS = 8
"""Rows that some packings hold in a word."""
_SMALLEST_NORMAL, _LARGEST = 2.0**-14, 65504.0
"""Of half precision; below the first a half has fewer bits."""


@dataclass(frozen=True)
class GroupedCodes:
    """How to get at the parts of a matrix; value = scale * (code - zero).

    Attributes:
        bits: 4 or 8.
        shape: (rows, columns).
        group: Columns that share a scale; the last group may be short.
        codes: Gives rows [begin, end) as uint8 [end - begin, columns], 0 .. 2^bits - 1.
        scales: Gives float32 [rows, groups].
        zeros: Gives int16 [rows, groups], or is None where every zero point is 2^(bits - 1).
        half_scales: The file holds the scales in half precision.
        group_of: intp [columns], the group of each column; None where column i is in i // group.
        nbytes: Bytes in the file.
    """

    bits: Literal[4, 8]
    shape: tuple[int, int]
    group: int
    codes: Callable[[int, int], NDArray[np.uint8]]
    scales: Callable[[], NDArray[np.float32]]
    zeros: Callable[[], NDArray[np.int16]] | None
    half_scales: bool
    group_of: NDArray[np.intp] | None
    nbytes: int

    @property
    def groups(self) -> int:
        """Groups of a row."""
        return -(-self.shape[1] // self.group)


class GroupedTensor(StoredTensor):
    """A matrix whose checkpoint holds integer codes.

    Args:
        name: The Hugging Face name of the weight that it stands for.
        encoding: Name for reports, for example "GPTQ 4-bit g128".
        parts: Its codes, scales and zero points.
    """

    def __init__(self, name: str, encoding: str, parts: GroupedCodes) -> None:
        super().__init__(name, parts.shape, encoding)
        self._parts = parts

    @property
    def nbytes(self) -> int:
        """Bytes as stored."""
        return self._parts.nbytes

    def to_float32(self) -> NDArray[np.float32]:
        """The values; exact where scales have at most 16 significant bits, as F16 and BF16 do."""
        rows, columns = self._parts.shape
        group_of = self._parts.group_of
        if group_of is None:
            group_of = np.arange(columns) // self._parts.group
        scales, zeros = self._scales(), self._zeros()
        values = np.empty((rows, columns), np.float32)
        for chunk in self._chunks():
            block = values[chunk]
            block[...] = self._parts.codes(chunk.start, chunk.stop)
            block -= zeros[chunk].astype(np.float32)[:, group_of]
            with np.errstate(over="ignore"):  # reported below
                block *= scales[chunk][:, group_of]
        return require_finite(self.name, values)

    def take_rows(self, name: str, begin: int, end: int) -> GroupedTensor:
        """The rows, still in the file."""
        parts = self._parts
        zeros = parts.zeros

        def codes(first: int, last: int) -> NDArray[np.uint8]:
            # Some packings hold 8 rows in a word.
            aligned = (begin + first) // _WORD_ROWS * _WORD_ROWS
            return parts.codes(aligned, begin + last)[begin + first - aligned :]

        rows = replace(
            parts,
            shape=(end - begin, parts.shape[1]),
            codes=codes,
            scales=lambda: parts.scales()[begin:end],
            zeros=None if zeros is None else lambda: zeros()[begin:end],
            nbytes=parts.nbytes * (end - begin) // parts.shape[0],
        )
        return GroupedTensor(name, self.encoding, rows)

    def layout(self) -> CodeLayout | None:
        """The form of `quantized`; None where the groups fit no kernel or a scale no half."""
        return self._layout

    @cached_property
    def fits_halves(self) -> bool:
        """Whether half precision rounds no scale by more than 2^-12 of the largest of its row.

        Scales of a file in half precision fit as they are. BF16 and F32 reach further: what is too
        large, or so small that a half has too few bits for it, would be another number.
        """
        if self._parts.half_scales:
            return True
        scales = np.abs(self._scales())
        largest = scales.max(axis=1, keepdims=True)
        if largest.max() > _LARGEST / (1 << self._parts.bits):
            return False
        error = np.abs(scales.astype(np.float16).astype(np.float32) - scales)
        poor = (scales < _SMALLEST_NORMAL) & (error > largest * 2.0**-12)
        return not poor.any() or not self._matters(poor)

    @cached_property
    def _layout(self) -> CodeLayout | None:
        group = self._kernel_group()
        if group is None or not self._fills_groups() or not self.fits_halves:
            return None
        minimum = bool((self._zeros() != 1 << (self._parts.bits - 1)).any())
        return CodeLayout(self._parts.bits, group, minimum, self._sorted_columns())

    def quantized(self) -> QuantizedMatrix | None:
        """The codes as they are; scales and minimums in half precision.

        A minimum is -scale * zero, rounded to half precision: at most 2^-12 of itself away.
        """
        layout = self.layout()
        if layout is None:
            return None
        scales, zeros = self._scales(), self._zeros()
        middle = 0 if layout.bits == 4 else 128
        low = scales * (middle - zeros).astype(np.float32) if layout.minimum else None
        return QuantizedMatrix(
            layout.bits,
            self._parts.shape,
            layout.group,
            self._packed(layout),
            to_half(self.name, self._spread(scales, layout.group)),
            None if low is None else to_half(self.name, self._spread(low, layout.group)),
            layout.order,
        )

    def _chunks(self) -> list[slice]:
        rows, columns = self._parts.shape
        step = max(_WORD_ROWS, _CHUNK // columns // _WORD_ROWS * _WORD_ROWS)
        return [slice(begin, min(begin + step, rows)) for begin in range(0, rows, step)]

    def _scales(self) -> NDArray[np.float32]:
        return require_finite(self.name, self._parts.scales())

    def _zeros(self) -> NDArray[np.int16]:
        if self._parts.zeros is not None:
            return self._parts.zeros()
        shape = (self._parts.shape[0], self._parts.groups)
        return np.full(shape, 1 << (self._parts.bits - 1), np.int16)

    def _kernel_group(self) -> int | None:
        """Columns that share a scale in the kernels: the file's group, or a part of it."""
        padded = -(-self.shape[1] // BLOCK) * BLOCK
        if self._parts.groups == 1:
            return padded
        return None if self._parts.group % BLOCK else math.gcd(self._parts.group, padded)

    def _spread(self, values: NDArray[np.float32], group: int) -> NDArray[np.float32]:
        """From a value a group of the file to one a group of the kernel."""
        padded = -(-self.shape[1] // BLOCK) * BLOCK
        starts = np.arange(0, padded, group)
        return values[:, np.minimum(starts // self._parts.group, self._parts.groups - 1)]

    def _sorted_columns(self) -> NDArray[np.int32] | None:
        """The columns, those of a group side by side; None where they are so in order."""
        group_of = self._parts.group_of
        if group_of is None:
            return None
        order = np.argsort(group_of, kind="stable").astype(np.int32)
        return None if (order == np.arange(len(order))).all() else order

    def _fills_groups(self) -> bool:
        """Whether every group but the last is full, so that sorted columns cut into equal runs."""
        group_of = self._parts.group_of
        if group_of is None:
            return True
        return np.array_equal(np.sort(group_of), np.arange(self.shape[1]) // self._parts.group)

    def _matters(self, groups: NDArray[np.bool_]) -> bool:
        """Whether one of these groups [rows, groups] holds another value than zero."""
        group_of = self._parts.group_of
        if group_of is None:
            group_of = np.arange(self.shape[1]) // self._parts.group
        zeros = self._zeros()
        for chunk in self._chunks():
            if groups[chunk].any():
                codes = self._parts.codes(chunk.start, chunk.stop)
                used = codes != zeros[chunk][:, group_of]
                if (used & groups[chunk][:, group_of]).any():
                    return True
        return False

    def _packed(self, layout: CodeLayout) -> NDArray[np.uint8] | NDArray[np.int8]:
        rows, columns = self._parts.shape
        padded = -(-columns // BLOCK) * BLOCK
        out = np.zeros((rows, padded // 2 if layout.bits == 4 else padded), np.uint8)
        for chunk in self._chunks():
            codes = self._parts.codes(chunk.start, chunk.stop)
            if layout.order is not None:
                codes = np.take(codes, layout.order, axis=1)
            if layout.bits == 8:
                out[chunk, :columns] = codes ^ np.uint8(0x80)
            elif padded == columns:
                out[chunk] = pack_nibbles(codes)
            else:
                out[chunk] = pack_nibbles(np.pad(codes, ((0, 0), (0, padded - columns))))
        return out.view(np.int8) if layout.bits == 8 else out


def group_size(stem: str, columns: int, groups: int, configured: Collection[int]) -> int:
    """Columns of a group, from how many groups there are.

    Args:
        stem: Name of the module, for messages.
        columns: Input features.
        groups: As many as it has scales for a row.
        configured: Group sizes that the configuration allows, -1 for a whole row; where it names
            none, the groups are equal parts.

    Raises:
        ModelFileError: None of them gives so many groups.
    """
    equal = [columns // groups] if columns % groups == 0 else []
    for size in configured or equal:
        group = columns if size == -1 else min(size, columns)
        if group > 0 and -(-columns // group) == groups:
            return group
    raise ModelFileError(
        f"{stem!r} has {groups} groups for {columns} input features",
        allowed=f"groups of {', '.join(map(str, configured))} columns" if configured else None,
    )


def read_group_of(stem: str, stored: NDArray[np.int32], group: int) -> NDArray[np.intp] | None:
    """The group of each column; None where column i is in i // group.

    Args:
        stem: Name of the module, for messages.
        stored: As in the file.
        group: Columns of a group.

    Raises:
        ModelFileError: A group is out of range.
    """
    plain = np.arange(len(stored)) // group
    if np.array_equal(stored, plain):
        return None
    if stored.min() < 0 or stored.max() > plain[-1]:
        wrong = stored.min() if stored.min() < 0 else stored.max()
        raise ModelFileError(
            f"g_idx of {stem!r} puts a column into group {wrong}", allowed=f"0 to {plain[-1]}"
        )
    return stored.astype(np.intp)

"""Matrices of integer codes with a scale and a zero point for each row and group of columns.

GPTQ, AWQ and compressed-tensors checkpoints all hold these and differ only in how they pack them.
Their readers give `GroupedCodes`; `GroupedTensor` makes of them what the kernels run.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator
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
        codes: Gives rows begin .. end - 1 as uint8 [end - begin, columns], 0 .. 2^bits - 1.
        scales: Gives those of rows begin .. end - 1 as float32 [end - begin, groups].
        zeros: The same as int16; None where every zero point is 2^(bits - 1).
        half_scales: The file holds the scales in half precision.
        group_of: intp [columns], the group of each column; None where column i is in i // group.
        nbytes: Bytes in the file.
    """

    bits: Literal[4, 8]
    shape: tuple[int, int]
    group: int
    codes: Callable[[int, int], NDArray[np.uint8]]
    scales: Callable[[int, int], NDArray[np.float32]]
    zeros: Callable[[int, int], NDArray[np.int16]] | None
    half_scales: bool
    group_of: NDArray[np.intp] | None
    nbytes: int

    @property
    def groups(self) -> int:
        """Groups of a row."""
        return -(-self.shape[1] // self.group)

    def part(self, first: int, last: int) -> GroupedCodes:
        """Rows first .. last - 1."""
        codes, scales, zeros = self.codes, self.scales, self.zeros
        return replace(
            self,
            shape=(last - first, self.shape[1]),
            codes=lambda begin, end: codes(first + begin, first + end),
            scales=lambda begin, end: scales(first + begin, first + end),
            zeros=zeros and (lambda begin, end: zeros(first + begin, first + end)),
            nbytes=self.nbytes * (last - first) // self.shape[0],
        )


class GroupedTensor(StoredTensor):
    """A matrix whose checkpoint holds integer codes.

    Args:
        name: The Hugging Face name of the weight that it stands for.
        encoding: Name for reports, for example "GPTQ 4-bit g128".
        parts: Its codes, scales and zero points.
        whole: The tensor of which this one is some of the rows, and whose layout it has.
    """

    def __init__(
        self,
        name: str,
        encoding: str,
        parts: GroupedCodes,
        whole: GroupedTensor | None = None,
    ) -> None:
        super().__init__(name, parts.shape, encoding)
        self._parts = parts
        self._whole = whole

    @property
    def nbytes(self) -> int:
        """Bytes as stored."""
        return self._parts.nbytes

    def to_float32(self) -> NDArray[np.float32]:
        """The values; exact where scales have at most 16 significant bits, as F16 and BF16 do."""
        values = np.empty(self._parts.shape, np.float32)
        group_of = self._group_of()
        for begin, end in self._chunks():
            block = values[begin:end]
            block[...] = self._parts.codes(begin, end)
            block -= self._zeros(begin, end).astype(np.float32)[:, group_of]
            with np.errstate(over="ignore"):  # reported below
                block *= self._scales(begin, end)[:, group_of]
        return require_finite(self.name, values)

    def take_rows(self, name: str, begin: int, end: int) -> GroupedTensor:
        """The rows as a tensor of its own, still in the file."""
        return GroupedTensor(name, self.encoding, self._parts.part(begin, end))

    def layout(self) -> CodeLayout | None:
        """The form of `quantized`; None where the groups fit no kernel or a scale no half."""
        return self._layout if self._whole is None else self._whole.layout()

    @cached_property
    def fits_halves(self) -> bool:
        """Whether half precision rounds no scale by more than 2^-12 of the largest of its row.

        Scales of a file in half precision fit as they are. BF16 and F32 reach further: what is too
        large, or so small that a half has too few bits for it, would be another number.
        """
        if self._parts.half_scales:
            return True
        scales = np.abs(self._scales(0, self.shape[0]))
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
        middle = 1 << (self._parts.bits - 1)
        minimum = any((self._zeros(begin, end) != middle).any() for begin, end in self._chunks())
        return CodeLayout(self._parts.bits, group, minimum, self._sorted_columns())

    def quantized(self) -> QuantizedMatrix | None:
        """The codes as they are; scales and minimums in half precision.

        A minimum is -scale * zero, rounded to half precision: at most 2^-12 of itself away.
        """
        layout = self.layout()
        if layout is None:
            return None
        rows = self.shape[0]
        scales, zeros = self._scales(0, rows), self._zeros(0, rows)
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

    def part(self, begin: int, end: int) -> GroupedTensor:
        """Some of the rows, in the layout that the whole has."""
        parts = self._parts.part(begin, end)
        return GroupedTensor(self.name, self.encoding, parts, self._whole or self)

    def _chunks(self) -> Iterator[tuple[int, int]]:
        """First and last row + 1 of pieces that fit the cache."""
        rows, columns = self._parts.shape
        step = max(_WORD_ROWS, _CHUNK // columns // _WORD_ROWS * _WORD_ROWS)
        return ((begin, min(begin + step, rows)) for begin in range(0, rows, step))

    def _group_of(self) -> NDArray[np.intp]:
        if self._parts.group_of is not None:
            return self._parts.group_of
        return np.arange(self.shape[1]) // self._parts.group

    def _scales(self, begin: int, end: int) -> NDArray[np.float32]:
        return require_finite(self.name, self._parts.scales(begin, end))

    def _zeros(self, begin: int, end: int) -> NDArray[np.int16]:
        if self._parts.zeros is not None:
            return self._parts.zeros(begin, end)
        return np.full((end - begin, self._parts.groups), 1 << (self._parts.bits - 1), np.int16)

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
        group_of = self._group_of()
        for begin, end in self._chunks():
            if groups[begin:end].any():
                used = self._parts.codes(begin, end) != self._zeros(begin, end)[:, group_of]
                if (used & groups[begin:end][:, group_of]).any():
                    return True
        return False

    def _packed(self, layout: CodeLayout) -> NDArray[np.uint8] | NDArray[np.int8]:
        rows, columns = self._parts.shape
        padded = -(-columns // BLOCK) * BLOCK
        out = np.zeros((rows, padded // 2 if layout.bits == 4 else padded), np.uint8)
        for begin, end in self._chunks():
            codes = self._parts.codes(begin, end)
            if layout.order is not None:
                codes = np.take(codes, layout.order, axis=1)
            if layout.bits == 8:
                out[begin:end, :columns] = codes ^ np.uint8(0x80)
            elif padded == columns:
                out[begin:end] = pack_nibbles(codes)
            else:
                out[begin:end] = pack_nibbles(np.pad(codes, ((0, 0), (0, padded - columns))))
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

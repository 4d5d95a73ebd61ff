"""Weights on their way into the native executor's panels: many matrices, filled by all cores."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hasten import _native
from hasten.generation.formats import MatrixFormat, product_rows, quantize_as
from hasten.models.weights import DenseTensor, StoredTensor

__all__ = ["Packer", "pack_matrix"]

PANEL_ROWS = 32
"""As kPanelRows in csrc/kernels/kernels.h."""
PART_ELEMENTS = 1 << 20
"""Weights that are converted at once: intermediate float32 values stay in the caches."""


@dataclass(frozen=True, slots=True)
class _Product:
    """One matrix and the tensors whose rows it holds.

    Attributes:
        matrix: Allocated, not filled.
        form: Its format.
        gated: Whether gate and up alternate.
        tensors: What is packed, in order.
        targets: int32 [rows] for each tensor: where its rows go, ascending.
    """

    matrix: _native.Matrix
    form: MatrixFormat
    gated: bool
    tensors: tuple[StoredTensor, ...]
    targets: tuple[NDArray[np.int32], ...]


_Part = list[tuple[StoredTensor, NDArray[np.int32]]]


class Packer:
    """Allocates the matrices of a model, side by side in one arena, and fills them later.

    Args:
        weights: The model's tensors by name.
        formats: Format of each matrix by tensor name.
    """

    def __init__(
        self, weights: Mapping[str, StoredTensor], formats: Mapping[str, MatrixFormat]
    ) -> None:
        self._weights = weights
        self._formats = formats
        self._arena = _native.Arena()
        self._products: dict[tuple[str, ...], _Product] = {}

    def matrix(self, names: tuple[str, ...], *, gated: bool = False) -> _native.Matrix:
        """The matrix over the rows of some tensors, zero until `pack`; the same for the same names.

        Args:
            names: Of the tensors, whose formats are equal.
            gated: There are two, gate and up, and each panel gets 16 rows of both.
        """
        if names not in self._products:
            tensors = [self._weights[name] for name in names]
            form = self._formats[names[0]]
            self._products[names] = _allocate(tensors, form, gated=gated, arena=self._arena)
        return self._products[names].matrix

    @property
    def matrices(self) -> list[_native.Matrix]:
        """All of them, in the order in which they were asked for."""
        return [product.matrix for product in self._products.values()]

    def describe(self) -> list[list[object]]:
        """What each matrix holds and how, JSON-ready; with the model's files it says every byte."""
        return [
            [list(names), str(one.form), one.gated, [list(t.shape) for t in one.tensors]]
            for names, one in self._products.items()
        ]

    def pack(self, threads: int) -> None:
        """Fills the matrices from their tensors.

        Raises:
            ModelFileError: A weight is NaN or infinite.
        """
        from concurrent.futures import ThreadPoolExecutor

        parts = [(one, part) for one in self._products.values() for part in _parts(one)]
        with ThreadPoolExecutor(threads) as pool:
            done = [pool.submit(_place_all, one.matrix, part, one.form) for one, part in parts]
            try:
                for one_done in done:
                    one_done.result()
            finally:
                pool.shutdown(cancel_futures=True)


def pack_matrix(
    tensors: Iterable[StoredTensor],
    form: MatrixFormat,
    *,
    gated: bool = False,
    arena: _native.Arena | None = None,
) -> _native.Matrix:
    """Packs the rows of the tensors, one after another, into one matrix.

    With `gated` the two tensors are gate and up, and each panel gets 16 rows of both.
    """
    product = _allocate(list(tensors), form, gated=gated, arena=arena)
    for part in _parts(product):
        _place_all(product.matrix, part, form)
    return product.matrix


def _allocate(
    tensors: list[StoredTensor],
    form: MatrixFormat,
    *,
    gated: bool,
    arena: _native.Arena | None,
) -> _Product:
    targets, rows = product_rows([tensor.shape[0] for tensor in tensors], gated=gated)
    columns = tensors[0].shape[1]
    matrix = _native.Matrix(form.kind, rows, columns, form.group, form.minimum, arena)
    return _Product(matrix, form, gated, tuple(tensors), tuple(targets))


def _parts(product: _Product) -> Iterator[_Part]:
    """Splits the work by whole panels, since a byte of a panel may hold codes of two rows."""
    whole = list(zip(product.tensors, product.targets, strict=True))
    rows = 1 + max(int(target[-1]) for target in product.targets)
    columns = product.tensors[0].shape[1]
    step = max(1, PART_ELEMENTS // (PANEL_ROWS * columns)) * PANEL_ROWS
    if step >= rows or any(tensor.part(0, 1) is None for tensor in product.tensors):
        yield whole
        return
    for first in range(0, rows, step):
        part: _Part = []
        for tensor, target in whole:
            begin, end = np.searchsorted(target, [first, first + step]).tolist()
            piece = tensor.part(begin, end) if begin < end else None
            if piece is not None:
                part.append((piece, target[begin:end]))
        yield part


def _place_all(matrix: _native.Matrix, part: _Part, form: MatrixFormat) -> None:
    for tensor, target in part:
        _place(matrix, tensor, form, target)


def _place(
    matrix: _native.Matrix, tensor: StoredTensor, form: MatrixFormat, target: NDArray[np.int32]
) -> None:
    if form.group == 0:
        if form.kind == "bf16" and isinstance(tensor, DenseTensor) and tensor.encoding == "BF16":
            matrix.place_bf16(np.require(tensor.data, np.uint16, ["C", "A"]), target)
        else:
            matrix.place_float(tensor.to_float32(), target)
        return
    found = quantize_as(tensor, form)
    codes = np.ascontiguousarray(found.codes)
    scales = np.ascontiguousarray(found.scales).view(np.uint16)
    minimums = None
    if found.minimums is not None:
        minimums = np.ascontiguousarray(found.minimums).view(np.uint16)
    if form.kind == "int8":
        matrix.place_int8(codes.view(np.int8), scales, minimums, target)
    else:
        matrix.place_int4(codes.view(np.uint8), scales, minimums, target)

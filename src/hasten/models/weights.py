"""Tensors as a model file stores them, and what can be had from them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import replace
from typing import Any, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from hasten.errors import ModelFileError, UnsupportedModelError
from hasten.kernels.quantization import BLOCK, CodeLayout, QuantizedMatrix, dequantize, pack_nibbles
from hasten.models.ggml_blocks import GgmlType, dequantize_rows

__all__ = [
    "DenseTensor",
    "GgmlTensor",
    "QuantizedTensor",
    "StoredTensor",
    "require_finite",
    "to_half",
]

DenseEncoding = Literal["F32", "F16", "BF16"]
_Float = TypeVar("_Float", np.float16, np.float32)

_CHUNK = 1 << 18
"""Codes taken apart at a time, so that the intermediates stay in the cache."""

_DENSE_DTYPES: dict[DenseEncoding, type[np.generic]] = {
    "F32": np.float32,
    "F16": np.float16,
    "BF16": np.uint16,
}


class StoredTensor(ABC):
    """One tensor of a model, still in the encoding of its file.

    Attributes:
        name: The Hugging Face name, for example "model.layers.0.mlp.up_proj.weight".
        shape: (out_features, in_features) of a matrix, (n,) of a vector.
        encoding: "F32", "F16", "BF16", a ggml encoding such as "Q4_1", or the format of a quantised
            matrix such as "int4:32".
    """

    def __init__(self, name: str, shape: tuple[int, ...], encoding: str) -> None:
        self.name = name
        self.shape = shape
        self.encoding = encoding

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.name!r}, {self.shape}, {self.encoding})"

    @property
    @abstractmethod
    def nbytes(self) -> int:
        """Bytes as stored."""

    @abstractmethod
    def to_float32(self) -> NDArray[np.float32]:
        """The values as float32 of `shape`; may be a read-only view of the file.

        Raises:
            ModelFileError: A value is NaN or infinite.
        """

    @abstractmethod
    def take_rows(self, name: str, begin: int, end: int) -> StoredTensor:
        """Rows begin to end - 1 of a matrix as a tensor by itself, without a copy."""

    @abstractmethod
    def layout(self) -> CodeLayout | None:
        """The form of the codes that `quantized` gives, without decoding them; None if it does."""

    @abstractmethod
    def quantized(self) -> QuantizedMatrix | None:
        """The stored integer codes as they are, or None if no integer kernel runs this encoding.

        Raises:
            ModelFileError: A scale or minimum is NaN or infinite.
            UnsupportedModelError: A scale or minimum is beyond the range of half precision.
        """

    def part(self, begin: int, end: int) -> StoredTensor | None:
        """Rows whose codes have the same layout as the whole, None if they may have another."""
        return None

    def select_rows(self, name: str, rows: NDArray[np.intp]) -> StoredTensor:
        """Some of the rows as a tensor by itself, with the codes that `quantized` gives them."""
        matrix = self.quantized()
        if matrix is None:
            return DenseTensor(name, "F32", self.to_float32()[rows])
        picked = replace(
            matrix,
            shape=(len(rows), matrix.shape[1]),
            codes=matrix.codes[rows],
            scales=matrix.scales[rows],
            minimums=None if matrix.minimums is None else matrix.minimums[rows],
        )
        return QuantizedTensor(name, picked)

    def select_columns(self, name: str, columns: NDArray[np.intp]) -> DenseTensor:
        """Some of the columns; float32, since groups of codes are of columns side by side."""
        return DenseTensor(name, "F32", np.ascontiguousarray(self.to_float32()[:, columns]))


class DenseTensor(StoredTensor):
    """Floating-point values, one after another.

    Args:
        name: The Hugging Face name.
        encoding: "F32", "F16" or "BF16".
        data: float32, float16, or for BF16 its bits as uint16; of the tensor's shape.
    """

    def __init__(self, name: str, encoding: DenseEncoding, data: NDArray[Any]) -> None:
        if data.dtype != _DENSE_DTYPES[encoding]:
            raise TypeError(f"{encoding} data as {data.dtype}")
        super().__init__(name, data.shape, encoding)
        self.data = data
        self._encoding = encoding

    @property
    def nbytes(self) -> int:
        """Bytes as stored."""
        return self.data.nbytes

    def to_float32(self) -> NDArray[np.float32]:
        """The values as float32; an F32 tensor is returned as a view."""
        if self.encoding == "BF16":
            wide = np.left_shift(self.data, np.uint32(16), dtype=np.uint32)
            return require_finite(self.name, wide.view(np.float32))
        # A safetensors file may place data at any byte; NumPy copes, native kernels do not.
        return require_finite(self.name, np.require(self.data, np.float32, ["C", "A"]))

    def take_rows(self, name: str, begin: int, end: int) -> DenseTensor:
        """A view of the rows."""
        return DenseTensor(name, self._encoding, self.data[begin:end])

    def layout(self) -> None:
        """None: there are no codes."""
        return

    def quantized(self) -> None:
        """None: there are no codes."""
        return

    def part(self, begin: int, end: int) -> DenseTensor:
        """Some of the rows, as views."""
        return self.take_rows(self.name, begin, end)

    def select_rows(self, name: str, rows: NDArray[np.intp]) -> DenseTensor:
        """A copy of the rows in the same encoding."""
        return DenseTensor(name, self._encoding, self.data[rows])

    def select_columns(self, name: str, columns: NDArray[np.intp]) -> DenseTensor:
        """A copy of the columns in the same encoding."""
        return DenseTensor(name, self._encoding, np.ascontiguousarray(self.data[:, columns]))


class GgmlTensor(StoredTensor):
    """Rows of ggml blocks, as in a GGUF file.

    Args:
        name: The Hugging Face name.
        shape: As for `StoredTensor`.
        kind: The block encoding.
        rows: uint8 [rows, bytes a row].
        order: Row i of the tensor is row order[i] of `rows`; None keeps the file's order.
    """

    def __init__(
        self,
        name: str,
        shape: tuple[int, ...],
        kind: GgmlType,
        rows: NDArray[np.uint8],
        order: NDArray[np.intp] | None = None,
    ) -> None:
        super().__init__(name, shape, kind.name)
        self._kind = kind
        self._rows = rows
        self._order = order

    @property
    def nbytes(self) -> int:
        """Bytes as stored."""
        return self._rows.nbytes

    def to_float32(self) -> NDArray[np.float32]:
        """The values as float32, equal to ggml's own bit for bit."""
        # Scales of 0x7C00 (infinite) times a code of zero warn; the check below reports them.
        with np.errstate(invalid="ignore", over="ignore"):
            values = dequantize_rows(self._kind, self._rows, self._order)
        return require_finite(self.name, values.reshape(self.shape))

    def encoded_rows(self) -> NDArray[np.uint8]:
        """The rows as encoded, uint8 [rows, bytes a row]; a vector is one row a value."""
        return self._rows if self._order is None else self._rows[self._order]

    def take_rows(self, name: str, begin: int, end: int) -> GgmlTensor:
        """A view of the rows."""
        shape = (end - begin, *self.shape[1:])
        if self._order is None:
            return GgmlTensor(name, shape, self._kind, self._rows[begin:end])
        return GgmlTensor(name, shape, self._kind, self._rows, self._order[begin:end])

    def layout(self) -> CodeLayout | None:
        """Groups of 32 for the encodings that hold a code a column with a scale for 32 of them."""
        codes = self._kind.codes
        if codes is None or len(self.shape) != 2:
            return None
        return CodeLayout(codes.bits, BLOCK, codes.minimum)

    def quantized(self) -> QuantizedMatrix | None:
        """The codes of Q4_0, Q4_1, Q4_K (int4), Q5_0, Q5_1, Q5_K and Q8_0 (int8).

        Codes are exact. The scales and minimums of Q4_K and Q5_K are products of two numbers of the
        file, rounded to half precision here.
        """
        layout = self.layout()
        if layout is None:
            return None
        stored = self._rows if self._order is None else self._rows[self._order]
        fields = _FIELDS.get(self.encoding)
        matrix = self._split(stored) if fields is None else self._view(stored.view(fields))
        require_finite(self.name, matrix.scales)
        if matrix.minimums is not None:
            require_finite(self.name, matrix.minimums)
        return matrix

    def part(self, begin: int, end: int) -> GgmlTensor:
        """Some of the rows, as views."""
        return self.take_rows(self.name, begin, end)

    def select_rows(self, name: str, rows: NDArray[np.intp]) -> StoredTensor:
        """The rows in their encoding, without a copy."""
        if len(self.shape) == 1:  # a vector is one row of the file
            return super().select_rows(name, rows)
        order = rows if self._order is None else self._order[rows]
        return GgmlTensor(name, (len(rows), self.shape[1]), self._kind, self._rows, order)

    def _view(self, blocks: NDArray[Any]) -> QuantizedMatrix:
        """Codes that lie in the blocks as the kernels want them: a copy is all there is to do."""
        rows, columns = self.shape
        codes: Any = np.ascontiguousarray(blocks["codes"]).view(np.uint8).reshape(rows, -1)
        scales = np.ascontiguousarray(blocks["scale"])
        if self.encoding == "Q8_0":
            return QuantizedMatrix(8, (rows, columns), BLOCK, codes.view(np.int8), scales)
        low = np.ascontiguousarray(blocks["minimum"]) if self.encoding == "Q4_1" else None
        return QuantizedMatrix(4, (rows, columns), BLOCK, codes, scales, low)

    def _split(self, stored: NDArray[np.uint8]) -> QuantizedMatrix:
        rows, columns = self.shape
        kind = self._kind.codes
        if kind is None:
            raise TypeError(f"{self.encoding} has no codes")
        groups = columns // BLOCK
        codes = np.empty((rows, columns // 2 if kind.bits == 4 else columns), np.uint8)
        scales = np.empty((rows, groups), np.float16)
        minimums = np.empty((rows, groups), np.float16) if kind.minimum else None
        step = max(1, _CHUNK // columns)
        for start in range(0, rows, step):
            chunk = slice(start, min(start + step, rows))
            parts = kind.split(stored[chunk].reshape(-1, self._kind.nbytes))
            unsigned = parts.codes.reshape(-1, columns)
            codes[chunk] = pack_nibbles(unsigned) if kind.bits == 4 else unsigned - kind.zero
            scales[chunk] = to_half(self.name, parts.scales.reshape(-1, groups))
            if minimums is not None and parts.minimums is not None:
                minimums[chunk] = to_half(self.name, parts.minimums.reshape(-1, groups))
        if kind.bits == 4:
            return QuantizedMatrix(4, (rows, columns), BLOCK, codes, scales, minimums)
        return QuantizedMatrix(8, (rows, columns), BLOCK, codes.view(np.int8), scales, minimums)


# Codes are opaque 16- or 32-byte items here, because NumPy copies those three times as fast as a
# strided [blocks, 16] array of bytes.
_FIELDS: dict[str, np.dtype[Any]] = {
    "Q4_0": np.dtype([("scale", "<f2"), ("codes", "V16")]),
    "Q4_1": np.dtype([("scale", "<f2"), ("minimum", "<f2"), ("codes", "V16")]),
    "Q8_0": np.dtype([("scale", "<f2"), ("codes", "V32")]),
}


class QuantizedTensor(StoredTensor):
    """A quantised matrix, as in an artefact."""

    def __init__(self, name: str, matrix: QuantizedMatrix) -> None:
        super().__init__(name, matrix.shape, matrix.format)
        self._matrix = matrix

    @property
    def nbytes(self) -> int:
        """Bytes of codes, scales and minimums."""
        return self._matrix.nbytes

    def to_float32(self) -> NDArray[np.float32]:
        """The values that the codes stand for."""
        return dequantize(self.quantized())

    def take_rows(self, name: str, begin: int, end: int) -> QuantizedTensor:
        """A view of the rows."""
        whole, rows = self._matrix, slice(begin, end)
        piece = replace(
            whole,
            shape=(end - begin, whole.shape[1]),
            codes=whole.codes[rows],
            scales=whole.scales[rows],
            minimums=None if whole.minimums is None else whole.minimums[rows],
        )
        return QuantizedTensor(name, piece)

    def layout(self) -> CodeLayout:
        """The form of the matrix's codes."""
        return self._matrix.layout

    def quantized(self) -> QuantizedMatrix:
        """The matrix, after a look at its content."""
        require_finite(self.name, self._matrix.scales)
        if self._matrix.minimums is not None:
            require_finite(self.name, self._matrix.minimums)
        return self._matrix

    def part(self, begin: int, end: int) -> QuantizedTensor:
        """Some of the rows, as views."""
        return self.take_rows(self.name, begin, end)


def to_half(name: str, values: NDArray[np.float32]) -> NDArray[np.float16]:
    """Scales or minimums of a tensor in half precision, as the kernels hold them.

    Raises:
        ModelFileError: One is NaN or infinite.
        UnsupportedModelError: One is beyond the range of half precision.
    """
    with np.errstate(over="ignore"):
        halves = values.astype(np.float16)
    if not _all_finite(halves):
        require_finite(name, values)
        raise UnsupportedModelError(
            f"tensor {name!r} holds a scale or minimum of {np.abs(values).max():.3g}",
            allowed="up to 65504",
            do="run it with float weights (`--weights f32`)",
        )
    return halves


def require_finite(name: str, values: NDArray[_Float]) -> NDArray[_Float]:
    """The values of a tensor, if they are.

    Raises:
        ModelFileError: One is NaN or infinite.
    """
    # In pieces, so that checking a large matrix does not need a mask of its size.
    flat = values.reshape(-1)
    step = 1 << 18
    for start in range(0, flat.size, step):
        if not _all_finite(flat[start : start + step]):
            raise ModelFileError(
                f"tensor {name!r} holds NaN or infinite values", do="take an intact copy of it"
            )
    return values


def _all_finite(values: NDArray[_Float]) -> bool:
    if values.dtype == np.float16:
        # NumPy tests float16 one by one; as integers it is ten times as fast.
        return bool((values.view(np.uint16) & 0x7FFF).max() < 0x7C00)
    return bool(np.isfinite(values).all())

"""Tensors as a model file stores them, and what can be had from them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from hasten.errors import ModelFileError
from hasten.kernels.quantization import QuantizedMatrix, dequantize
from hasten.models.ggml_blocks import GgmlType, dequantize_rows

__all__ = ["DenseTensor", "GgmlTensor", "QuantizedTensor", "StoredTensor"]

DenseEncoding = Literal["F32", "F16", "BF16"]
_Float = TypeVar("_Float", np.float16, np.float32)

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
    def quantized(self) -> QuantizedMatrix | None:
        """The stored integer codes as they are, or None if no integer kernel runs this encoding.

        Raises:
            ModelFileError: A scale or minimum is NaN or infinite.
        """


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

    @property
    def nbytes(self) -> int:
        """Bytes as stored."""
        return self.data.nbytes

    def to_float32(self) -> NDArray[np.float32]:
        """The values as float32; an F32 tensor is returned as a view."""
        if self.encoding == "BF16":
            wide = np.left_shift(self.data, np.uint32(16), dtype=np.uint32)
            return _finite(self.name, wide.view(np.float32))
        # A safetensors file may place data at any byte; NumPy copes, native kernels do not.
        return _finite(self.name, np.require(self.data, np.float32, ["C", "A"]))

    def quantized(self) -> None:
        """None: there are no codes."""
        return


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
        return _finite(self.name, values.reshape(self.shape))

    def quantized(self) -> QuantizedMatrix | None:
        """Codes of Q4_0, Q4_1 and Q8_0, which need no conversion; None for other encodings.

        A Q8_0 tensor that holds the code -128 gives None: integer kernels multiply -127..127, and
        changing the code would no longer be what the file says. (ggml's own quantiser writes none.)
        """
        layout = _CODE_LAYOUTS.get(self.encoding)
        if layout is None or len(self.shape) != 2:
            return None
        stored = self._rows if self._order is None else self._rows[self._order]
        blocks = stored.view(layout)
        rows, columns = self.shape
        codes = np.ascontiguousarray(blocks["codes"]).view(np.uint8).reshape(rows, -1)
        scales = _finite(self.name, np.ascontiguousarray(blocks["scale"]))
        if self.encoding == "Q8_0":
            signed = codes.view(np.int8)
            if signed.min() == -128:
                return None
            return QuantizedMatrix(8, (rows, columns), 32, signed, scales)
        minimums = None
        if self.encoding == "Q4_1":
            minimums = _finite(self.name, np.ascontiguousarray(blocks["minimum"]))
        return QuantizedMatrix(4, (rows, columns), 32, codes, scales, minimums)


# Codes are opaque 16- or 32-byte items here, because NumPy copies those three times as fast as a
# strided [blocks, 16] array of bytes.
_CODE_LAYOUTS: dict[str, np.dtype[Any]] = {
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

    def quantized(self) -> QuantizedMatrix:
        """The matrix, after a look at its content."""
        _finite(self.name, self._matrix.scales)
        if self._matrix.minimums is not None:
            _finite(self.name, self._matrix.minimums)
        if self._matrix.bits == 8 and self._matrix.codes.min() == -128:
            raise ModelFileError(
                f"tensor {self.name!r} holds the int8 code -128", allowed="-127 to 127"
            )
        return self._matrix


def _finite(name: str, values: NDArray[_Float]) -> NDArray[_Float]:
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

"""Matrices as rows of ggml blocks, without loss: the inverse of `hasten.models.ggml_blocks`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hasten.kernels.quantization import BLOCK, CodeLayout, QuantizedMatrix, pack_nibbles
from hasten.models.export.checkpoint import HalfType, dense_values
from hasten.models.ggml_blocks import GGML_TYPES, GgmlType
from hasten.models.weights import GgmlTensor, StoredTensor

__all__ = ["EncodedRows", "encode_rows"]

_TYPES = {kind.name: kind for kind in GGML_TYPES.values()}
_Q5_CODES = 32

# Codes as opaque items: NumPy copies those faster than rows of bytes.
_LAYOUTS: dict[str, np.dtype[Any]] = {
    "Q4_0": np.dtype([("scale", "<f2"), ("codes", "V16")]),
    "Q4_1": np.dtype([("scale", "<f2"), ("minimum", "<f2"), ("codes", "V16")]),
    "Q5_1": np.dtype([("scale", "<f2"), ("minimum", "<f2"), ("high", "V4"), ("codes", "V16")]),
    "Q8_0": np.dtype([("scale", "<f2"), ("codes", "V32")]),
}


@dataclass(frozen=True, slots=True)
class EncodedRows:
    """A tensor in an encoding of ggml.

    Attributes:
        kind: The encoding.
        make: Gives uint8 [rows, bytes a row].
        same: Whether every value is as it was.
        reason: Why not.
    """

    kind: GgmlType
    make: Callable[[], NDArray[np.uint8]]
    same: bool = True
    reason: str = ""


def encode_rows(name: str, tensors: Sequence[StoredTensor], half: HalfType) -> EncodedRows:
    """Stacked matrices in the encoding that holds their codes, else dense.

    ggml's groups have 32 columns; those of larger groups repeat their scale and minimum.

    Args:
        name: For messages.
        tensors: Their rows, one after another.
        half: The type for matrices whose codes have no encoding.

    Raises:
        UnsupportedModelError: A value is beyond the range of `half`.
    """
    parts = [_encoded(tensor) for tensor in tensors]
    reasons = [part for part in parts if isinstance(part, str)]
    encoded = [part for part in parts if isinstance(part, EncodedRows)]
    if not reasons and len({part.kind.name for part in encoded}) == 1:
        if len(encoded) == 1:
            return encoded[0]
        return EncodedRows(
            encoded[0].kind, lambda: np.concatenate([part.make() for part in encoded])
        )
    reason = reasons[0] if reasons else "its parts have different encodings"
    dense, same = dense_values(name, tensors, half)
    data = np.ascontiguousarray(dense.data)
    return EncodedRows(
        _TYPES[dense.encoding],
        lambda: data.view(np.uint8).reshape(len(data), -1),
        same=same,
        reason=reason,
    )


def _encoded(tensor: StoredTensor) -> EncodedRows | str:
    """The tensor in its own encoding or in that of its codes, or why there is none."""
    if isinstance(tensor, GgmlTensor):
        return EncodedRows(_TYPES[tensor.encoding], tensor.encoded_rows)
    layout = tensor.layout()
    if layout is None:
        return "it has no codes that a kernel runs"
    if layout.order is not None:
        return "GGUF has no order of columns"
    if tensor.shape[1] % BLOCK:
        return f"its {tensor.shape[1]} columns are no multiple of {BLOCK}"
    kind = _kind_of(tensor, layout)
    if kind is None:
        return "GGUF has no 8-bit codes with a minimum"
    return EncodedRows(_TYPES[kind], lambda: _blocks(kind, _matrix(tensor)))


def _kind_of(tensor: StoredTensor, layout: CodeLayout) -> str | None:
    if layout.bits == 4:
        return "Q4_1" if layout.minimum else "Q4_0"
    if not layout.minimum:
        return "Q8_0"
    codes = _matrix(tensor).codes
    return "Q5_1" if codes.min() >= 0 and codes.max() < _Q5_CODES else None


def _matrix(tensor: StoredTensor) -> QuantizedMatrix:
    """The codes of a tensor that has a layout; made anew each time, so that few are in memory."""
    matrix = tensor.quantized()
    if matrix is None:
        raise TypeError(f"{tensor.name} has a layout and no codes")
    return matrix


def _blocks(kind: str, matrix: QuantizedMatrix) -> NDArray[np.uint8]:
    rows, columns = matrix.shape
    blocks = np.empty((rows, columns // BLOCK), _LAYOUTS[kind])
    repeats = matrix.group // BLOCK
    blocks["scale"] = np.repeat(matrix.scales, repeats, axis=1)
    if matrix.minimums is not None:
        blocks["minimum"] = np.repeat(matrix.minimums, repeats, axis=1)
    codes: NDArray[Any] = np.ascontiguousarray(matrix.codes).view(np.uint8)
    if kind == "Q5_1":
        high = np.packbits(codes >> 4, axis=1, bitorder="little")
        blocks["high"] = high.view("V4")
        codes = pack_nibbles(codes & np.uint8(15))
    blocks["codes"] = codes.view(blocks.dtype["codes"])
    return blocks.view(np.uint8)

"""The GGUF container, written: see `hasten.models.gguf` for the format and the reader."""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hasten.models.ggml_blocks import GGML_TYPES, GgmlType

__all__ = ["PlannedTensor", "encode_value", "write_gguf"]

_VERSION = 3
_UINT32, _INT32, _FLOAT32, _BOOL, _STRING, _ARRAY = 4, 5, 6, 7, 8, 9
_NUMBERS = {kind.name: number for number, kind in GGML_TYPES.items()}


@dataclass(frozen=True, slots=True)
class PlannedTensor:
    """A tensor whose bytes are made when their turn comes.

    Attributes:
        name: The GGUF name.
        shape: Dimensions, slowest first.
        kind: The encoding.
        rows: Makes the encoded bytes, C-contiguous, of whatever shape.
    """

    name: str
    shape: tuple[int, ...]
    kind: GgmlType
    rows: Callable[[], NDArray[Any]]

    @property
    def nbytes(self) -> int:
        """Bytes of the data."""
        return int(np.prod(self.shape)) // self.kind.columns * self.kind.nbytes


def encode_value(value: object) -> bytes:
    """Type and value of a metadata entry.

    bool, int (uint32, or int32 if negative), float (float32), str, and lists of one of these (int
    as int32), which are the types that llama.cpp's converter writes.
    """
    if isinstance(value, list | np.ndarray):
        kind, content = _encode_list(list(value))
        return struct.pack("<IIQ", _ARRAY, kind, len(value)) + content
    if isinstance(value, bool):
        return struct.pack("<IB", _BOOL, value)
    if isinstance(value, int):
        return (
            struct.pack("<Ii", _INT32, value) if value < 0 else struct.pack("<II", _UINT32, value)
        )
    if isinstance(value, float):
        return struct.pack("<If", _FLOAT32, value)
    if isinstance(value, str):
        return struct.pack("<I", _STRING) + _string(value)
    raise TypeError(f"metadata of type {type(value).__name__}")


def _encode_list(values: list[Any]) -> tuple[int, bytes]:
    if values and isinstance(values[0], str):
        return _STRING, b"".join(map(_string, values))
    if values and isinstance(values[0], bool):
        return _BOOL, bytes(values)
    if values and isinstance(values[0], float):
        return _FLOAT32, np.asarray(values, "<f4").tobytes()
    return _INT32, np.asarray(values, "<i4").tobytes()


def _string(text: str) -> bytes:
    encoded = text.encode()
    return struct.pack("<Q", len(encoded)) + encoded


def write_gguf(
    path: Path, metadata: Mapping[str, bytes], tensors: Sequence[PlannedTensor], alignment: int = 32
) -> None:
    """Writes a file, one tensor at a time.

    Args:
        path: Where; an existing file is overwritten.
        metadata: By key, as `encode_value` gives it.
        tensors: In the order in which they are to lie.
        alignment: Each begins at a multiple of this; as "general.alignment" says if it is there.
    """
    head = [b"GGUF", struct.pack("<IQQ", _VERSION, len(tensors), len(metadata))]
    head += [_string(key) + value for key, value in metadata.items()]
    offset = 0
    for tensor in tensors:
        sizes = tensor.shape[::-1]
        head += [_string(tensor.name), struct.pack(f"<I{len(sizes)}Q", len(sizes), *sizes)]
        head.append(struct.pack("<IQ", _NUMBERS[tensor.kind.name], offset))
        offset += -(-tensor.nbytes // alignment) * alignment
    with path.open("wb") as file:
        file.write(b"".join(head))
        for tensor in tensors:
            file.write(b"\0" * (-file.tell() % alignment))
            rows = tensor.rows()
            if rows.nbytes != tensor.nbytes:
                raise ValueError(f"{tensor.name}: {rows.nbytes} bytes instead of {tensor.nbytes}")
            file.write(np.ascontiguousarray(rows).data)
        file.write(b"\0" * (-file.tell() % alignment))

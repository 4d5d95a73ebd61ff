"""The safetensors container: named arrays in one memory-mapped file.

Format: the README of the safetensors repository (8 bytes header length, JSON header, data). Why
this is not the library of that name: `docs/dependencies.md`.
"""

from __future__ import annotations

import json
import math
import mmap
import reprlib
from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from hasten.errors import ModelFileError, UnsupportedModelError
from hasten.models.json_file import parse_json_object

__all__ = [
    "SafetensorsFile",
    "StoredArray",
    "read_safetensors",
    "take_array",
    "write_safetensors",
]

_MAX_HEADER = 100_000_000
"""The format's own limit."""
_MAX_DIMENSIONS = 8
_MAX_NAME = 1 << 10

# BF16 has no NumPy dtype: its bits travel as uint16.
_DTYPES: dict[str, np.dtype[Any]] = {
    "BOOL": np.dtype("?"),
    "U8": np.dtype("u1"),
    "I8": np.dtype("i1"),
    "F8_E4M3": np.dtype("u1"),
    "F8_E5M2": np.dtype("u1"),
    "U16": np.dtype("<u2"),
    "I16": np.dtype("<i2"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype("<u2"),
    "U32": np.dtype("<u4"),
    "I32": np.dtype("<i4"),
    "F32": np.dtype("<f4"),
    "U64": np.dtype("<u8"),
    "I64": np.dtype("<i8"),
    "F64": np.dtype("<f8"),
}


@dataclass(frozen=True, slots=True)
class StoredArray:
    """One array and what its bits mean.

    Attributes:
        dtype: As the format names it, for example "BF16".
        data: The elements; BF16 and F8 as unsigned integers of their size.
    """

    dtype: str
    data: NDArray[Any]


SafetensorsFile = Mapping[str, StoredArray]
"""Arrays by name, read-only views of the file."""


def read_safetensors(path: Path) -> SafetensorsFile:
    """Maps a file, checks every bound, and returns its arrays.

    Raises:
        ModelFileError: The file is missing, truncated, or contradicts itself.
        UnsupportedModelError: It holds an element type that Hasten does not know.
    """
    try:
        with path.open("rb") as file:
            size = file.seek(0, 2)
            if size < 8:
                raise ModelFileError(f"{path}: {size} bytes are too few for a safetensors file")
            content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except OSError as error:
        raise ModelFileError(f"{path}: cannot be read ({error.strerror or error})") from error
    length = int.from_bytes(content[:8], "little")
    if length > min(_MAX_HEADER, size - 8):
        _fail(path, f"claims a header of {length} bytes in a file of {size}")
    header = parse_json_object(content[8 : 8 + length], f"{path} (header)")
    header.pop("__metadata__", None)
    data = np.frombuffer(content, np.uint8)[8 + length :]
    arrays = {name: _array(path, name, entry, data) for name, entry in header.items()}
    _check_cover(path, header, data.size)
    return arrays


def take_array(
    arrays: MutableMapping[str, StoredArray],
    name: str,
    dtypes: tuple[str, ...],
    shape: tuple[int | None, ...],
) -> StoredArray:
    """Moves an array out of `arrays`, aligned and C-contiguous.

    Args:
        arrays: Where from.
        name: Which.
        dtypes: Element types that fit.
        shape: Its shape; None leaves a size open.

    Raises:
        ModelFileError: It is missing, or of another type or shape.
    """
    if name not in arrays:
        raise ModelFileError(f"tensor {name!r} is missing")
    array = arrays.pop(name)
    found = array.data.shape
    fits = len(found) == len(shape) and all(
        want in (None, size) for want, size in zip(shape, found, strict=True)
    )
    if array.dtype not in dtypes or not fits:
        wanted = ", ".join("any" if size is None else str(size) for size in shape)
        raise ModelFileError(
            f"tensor {name!r} is {array.dtype} {list(found)}",
            allowed=f"{' or '.join(dtypes)} [{wanted}]",
        )
    # Native kernels read whole elements; a writer may have placed them at any byte.
    return StoredArray(array.dtype, np.require(array.data, requirements=["C", "A"]))


def write_safetensors(
    path: Path, arrays: SafetensorsFile, metadata: Mapping[str, str] | None = None
) -> None:
    """Writes a file; arrays with wide elements first, so that each begins at a multiple of its own.

    Args:
        path: Where; an existing file is overwritten.
        arrays: What, by name; C-contiguous or not.
        metadata: The format's free texts; transformers asks for {"format": "pt"}.
    """
    order = sorted(arrays, key=lambda name: (-arrays[name].data.itemsize, name))
    header: dict[str, Any] = {} if metadata is None else {"__metadata__": dict(metadata)}
    end = 0
    for name in order:
        array = arrays[name]
        start, end = end, end + array.data.nbytes
        header[name] = {
            "dtype": array.dtype,
            "shape": list(array.data.shape),
            "data_offsets": [start, end],
        }
    encoded = json.dumps(header, separators=(",", ":")).encode()
    encoded += b" " * (-len(encoded) % 8)
    with path.open("wb") as file:
        file.write(len(encoded).to_bytes(8, "little") + encoded)
        for name in order:
            file.write(np.ascontiguousarray(arrays[name].data).data)


def _array(path: Path, name: str, entry: object, data: NDArray[np.uint8]) -> StoredArray:
    if len(name) > _MAX_NAME:
        _fail(path, f"a tensor name of {len(name)} characters; at most {_MAX_NAME} are allowed")
    if not isinstance(entry, dict) or not entry.keys() >= {"dtype", "shape", "data_offsets"}:
        _fail(path, f"the entry of tensor {name!r} lacks dtype, shape or data_offsets")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in _DTYPES:
        raise UnsupportedModelError(
            f"{path}: tensor {name!r} has the element type {reprlib.repr(dtype)}",
            allowed=", ".join(_DTYPES),
        )
    if not _is_sizes(shape) or len(shape) > _MAX_DIMENSIONS or 0 in shape:
        _fail(path, f"tensor {name!r} has the shape {reprlib.repr(shape)}")
    if not _is_sizes(offsets) or len(offsets) != 2 or not offsets[0] <= offsets[1] <= data.size:
        found = reprlib.repr(offsets)
        _fail(path, f"tensor {name!r} claims bytes {found} of {data.size} (truncated?)")
    start, end = offsets
    if math.prod(shape) * _DTYPES[dtype].itemsize != end - start:
        _fail(path, f"tensor {name!r} of shape {shape} and type {dtype} has {end - start} bytes")
    return StoredArray(dtype, data[start:end].view(_DTYPES[dtype]).reshape(shape))


def _is_sizes(value: object) -> bool:
    return isinstance(value, list) and all(
        type(one) is int and 0 <= one < 1 << 62  # not bool
        for one in value
    )


def _check_cover(path: Path, header: Mapping[str, Any], size: int) -> None:
    """The format leaves no byte of the data unused or used twice."""
    end = 0
    for start, stop in sorted(entry["data_offsets"] for entry in header.values()):
        if start != end:
            _fail(path, f"{'overlapping' if start < end else 'unused'} bytes at {min(start, end)}")
        end = stop
    if end != size:
        _fail(path, f"{size - end} unused bytes at the end")


def _fail(path: Path, what: str) -> NoReturn:
    raise ModelFileError(f"{path}: {what}", do="download or convert the file again")

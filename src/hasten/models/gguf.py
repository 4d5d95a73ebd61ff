"""The GGUF container: metadata and tensors of one memory-mapped file.

Format: ``docs/gguf.md`` of the ggml repository, versions 2 and 3, little endian. A file is not
trusted: every count, length, dimension and offset is held against the size of the file before
anything is allocated for it, and whatever does not hold raises `ModelFileError`.
"""

from __future__ import annotations

import math
import mmap
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from hasten import _native
from hasten.errors import ModelFileError, UnsupportedModelError
from hasten.models.ggml_blocks import GGML_TYPES, KNOWN_TYPE_NAMES, GgmlType

__all__ = ["GgufFile", "GgufTensor", "read_gguf"]

_MAGIC = b"GGUF"
_VERSIONS = (2, 3)
_HEADER_BYTES = 24
_DEFAULT_ALIGNMENT = 32

# Real files hold under a hundred keys, a few thousand tensors, and arrays as long as a vocabulary
# and its merges (under a million); Python objects cost up to thirty times their bytes in the file.
_MAX_KEYS = 1 << 14
_MAX_TENSORS = 1 << 16
_MAX_ELEMENTS = 1 << 23
_MAX_KEY_BYTES = 1 << 10
_MAX_NAME_BYTES = 64
_MAX_STRING_BYTES = 1 << 28
_MAX_DIMENSIONS = 4
_MAX_ALIGNMENT = 1 << 16

_U32 = struct.Struct("<I")
_U64 = struct.Struct("<Q")
_BOOL, _STRING, _ARRAY = 7, 8, 9
_SCALARS: dict[int, np.dtype[Any]] = {
    0: np.dtype("u1"),
    1: np.dtype("i1"),
    2: np.dtype("<u2"),
    3: np.dtype("<i2"),
    4: np.dtype("<u4"),
    5: np.dtype("<i4"),
    6: np.dtype("<f4"),
    _BOOL: np.dtype("u1"),
    10: np.dtype("<u8"),
    11: np.dtype("<i8"),
    12: np.dtype("<f8"),
}


@dataclass(frozen=True, slots=True)
class GgufTensor:
    """One tensor as the file describes it.

    Attributes:
        name: The GGUF name, for example "blk.0.attn_q.weight".
        shape: Dimensions, slowest first: (out_features, in_features) for a matrix.
        kind: The encoding.
        offset: First byte, from the start of the file.
        nbytes: Bytes of the data.
    """

    name: str
    shape: tuple[int, ...]
    kind: GgmlType
    offset: int
    nbytes: int


class GgufFile:
    """A GGUF file that was read and found consistent.

    Attributes:
        path: The file.
        metadata: Keys and values; arrays are lists, strings `str`.
        tensors: Tensors by GGUF name, in the file's order.
        places: First byte, and last + 1, of the type and value of each key.
    """

    def __init__(
        self,
        path: Path,
        metadata: Mapping[str, Any],
        tensors: Mapping[str, GgufTensor],
        content: NDArray[np.uint8],
        places: Mapping[str, tuple[int, int]],
    ) -> None:
        self.path = path
        self.metadata = metadata
        self.tensors = tensors
        self.places = places
        self._content = content

    def encoded(self, key: str) -> bytes:
        """Type and value of a key as they are in the file."""
        begin, end = self.places[key]
        return self._content[begin:end].tobytes()

    def rows(self, name: str) -> NDArray[np.uint8]:
        """The encoded data of a tensor, uint8 [rows, bytes a row], a read-only view of the file."""
        tensor = self.tensors[name]
        data = self._content[tensor.offset : tensor.offset + tensor.nbytes]
        row_bytes = tensor.shape[-1] // tensor.kind.columns * tensor.kind.nbytes
        return data.reshape(-1, row_bytes)


def read_gguf(path: Path) -> GgufFile:
    """Maps a file and reads its header.

    Args:
        path: A regular file.

    Raises:
        ModelFileError: The file is missing, truncated, or contradicts itself.
        UnsupportedModelError: A version, byte order or encoding that Hasten does not read.
    """
    try:
        with path.open("rb") as file:
            size = file.seek(0, 2)
            if size < _HEADER_BYTES:
                raise ModelFileError(f"{path}: {size} bytes are too few for a GGUF file")
            content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except OSError as error:
        raise ModelFileError(f"{path}: cannot be read ({error.strerror or error})") from error
    cursor = _Cursor(path, content, size)
    tensor_count, key_count = _read_preamble(cursor)
    metadata, places = _read_metadata(cursor, key_count)
    tensors = _read_tensors(cursor, tensor_count, _alignment(cursor, metadata))
    return GgufFile(path, metadata, tensors, cursor.bytes, places)


class _Cursor:
    """Reads forward through the mapped file and never past its end."""

    def __init__(self, path: Path, content: mmap.mmap, size: int) -> None:
        self.path = path
        self.size = size
        self.at = 0
        self.bytes = np.frombuffer(content, np.uint8)
        self._content = content
        self._elements_left = _MAX_ELEMENTS

    def fail(self, what: str) -> NoReturn:
        raise ModelFileError(f"{self.path}: {what}", do="download or convert the file again")

    def take(self, nbytes: int, what: str) -> int:
        """Steps over `nbytes` and returns where they begin."""
        start = self.at
        if nbytes > self.size - start:
            self.fail(
                f"{what} needs {nbytes} bytes at byte {start}, "
                f"but the file ends after {self.size} (truncated?)"
            )
        self.at = start + nbytes
        return start

    def raw(self, nbytes: int, what: str) -> bytes:
        start = self.take(nbytes, what)
        return self._content[start : self.at]

    def u32(self, what: str) -> int:
        return int(_U32.unpack(self.raw(4, what))[0])

    def u64(self, what: str) -> int:
        return int(_U64.unpack(self.raw(8, what))[0])

    def string(self, what: str, limit: int = _MAX_STRING_BYTES) -> str:
        length = self.u64(what)
        if length > limit:
            self.fail(f"{what} is {length} bytes long; at most {limit} are allowed")
        try:
            return self.raw(length, what).decode()
        except UnicodeDecodeError:
            self.fail(f"{what} is not valid UTF-8")

    def scalar(self, kind: int, what: str) -> int | float | bool:
        dtype = _SCALARS[kind]
        value: int | float = np.frombuffer(self.raw(dtype.itemsize, what), dtype)[0].item()
        return bool(value) if kind == _BOOL else value

    def array(self, what: str) -> list[Any]:
        kind, count = self.u32(what), self.u64(what)
        if kind == _ARRAY:
            self.fail(f"{what} is an array of arrays, which Hasten does not read")
        if kind != _STRING and kind not in _SCALARS:
            self.fail(f"{what} has the unknown element type {kind}")
        if count > self._elements_left:
            self.fail(f"{what} claims {count} elements; {_MAX_ELEMENTS} in all are allowed")
        self._elements_left -= count
        if kind == _STRING:
            return self._strings(count, what)
        dtype = _SCALARS[kind]
        values = np.frombuffer(self.raw(count * dtype.itemsize, what), dtype)
        return list((values != 0 if kind == _BOOL else values).tolist())

    def _strings(self, count: int, what: str) -> list[str]:
        if count * 8 > self.size - self.at:
            self.fail(f"{what} claims {count} strings, more than the file can hold")
        try:
            strings, self.at = _native.read_strings(self.bytes, self.at, count)
        except UnicodeDecodeError:
            self.fail(f"{what} holds a string that is not valid UTF-8")
        if len(strings) < count:
            self.fail(f"string {len(strings)} of {what} runs past the end of the file (truncated?)")
        return strings


def _read_preamble(cursor: _Cursor) -> tuple[int, int]:
    magic = cursor.raw(4, "the magic number")
    if magic != _MAGIC:
        raise ModelFileError(
            f"{cursor.path}: starts with {magic!r}, so it is no GGUF file", allowed=repr(_MAGIC)
        )
    version = cursor.u32("the version")
    if version not in _VERSIONS:
        swapped = int.from_bytes(version.to_bytes(4, "little"), "big")
        order = "big-endian " if swapped in _VERSIONS else ""
        raise UnsupportedModelError(
            f"{cursor.path}: {order}GGUF version {swapped if order else version}",
            allowed="little-endian versions 2 and 3",
            do="convert the model again with a current llama.cpp",
        )
    tensors, keys = cursor.u64("the tensor count"), cursor.u64("the metadata count")
    for count, limit, noun in ((tensors, _MAX_TENSORS, "tensors"), (keys, _MAX_KEYS, "keys")):
        if count > limit:
            cursor.fail(f"claims {count} {noun}; at most {limit} are allowed")
    return tensors, keys


def _read_metadata(
    cursor: _Cursor, count: int
) -> tuple[dict[str, Any], dict[str, tuple[int, int]]]:
    readers: dict[int, Callable[[str], Any]] = {_STRING: cursor.string, _ARRAY: cursor.array}
    metadata: dict[str, Any] = {}
    places: dict[str, tuple[int, int]] = {}
    for index in range(count):
        key = cursor.string(f"metadata key {index}", _MAX_KEY_BYTES)
        if key in metadata:
            cursor.fail(f"metadata key {key!r} appears twice")
        what = f"metadata value {key!r}"
        start = cursor.at
        kind = cursor.u32(what)
        if kind in _SCALARS:
            metadata[key] = cursor.scalar(kind, what)
        elif kind in readers:
            metadata[key] = readers[kind](what)
        else:
            cursor.fail(f"{what} has the unknown type {kind}")
        places[key] = (start, cursor.at)
    return metadata, places


def _alignment(cursor: _Cursor, metadata: Mapping[str, Any]) -> int:
    value = metadata.get("general.alignment", _DEFAULT_ALIGNMENT)
    sane = isinstance(value, int) and not isinstance(value, bool) and 8 <= value <= _MAX_ALIGNMENT
    if not sane or value & (value - 1):
        cursor.fail(f"general.alignment is {value!r}, not a power of two in 8..{_MAX_ALIGNMENT}")
    return int(value)


def _read_tensors(cursor: _Cursor, count: int, alignment: int) -> dict[str, GgufTensor]:
    found: dict[str, GgufTensor] = {}
    for index in range(count):
        tensor = _read_tensor(cursor, index, alignment)
        if tensor.name in found:
            cursor.fail(f"tensor {tensor.name!r} appears twice")
        found[tensor.name] = tensor
    start = -(-cursor.at // alignment) * alignment
    placed = {
        name: GgufTensor(name, t.shape, t.kind, start + t.offset, t.nbytes)
        for name, t in found.items()
    }
    _check_places(cursor, placed)
    return placed


def _read_tensor(cursor: _Cursor, index: int, alignment: int) -> GgufTensor:
    """One tensor description; its offset still counts from the start of the data."""
    name = cursor.string(f"the name of tensor {index}", _MAX_NAME_BYTES)
    what = f"tensor {name!r}"
    dimensions = cursor.u32(what)
    if not 1 <= dimensions <= _MAX_DIMENSIONS:
        cursor.fail(f"{what} has {dimensions} dimensions; 1 to {_MAX_DIMENSIONS} are allowed")
    shape = tuple(cursor.u64(what) for _ in range(dimensions))[::-1]
    number, offset = cursor.u32(what), cursor.u64(what)
    kind = GGML_TYPES.get(number)
    if kind is None:
        if number not in KNOWN_TYPE_NAMES:
            cursor.fail(f"{what} has the unknown encoding number {number}")
        raise UnsupportedModelError(
            f"{cursor.path}: {what} is encoded as {KNOWN_TYPE_NAMES[number]}",
            allowed=", ".join(known.name for known in GGML_TYPES.values()),
            do="take a file of the same model in one of these encodings",
        )
    if 0 in shape or shape[-1] % kind.columns:
        cursor.fail(f"{what} has shape {list(shape)}, which does not fit {kind.name} blocks")
    if offset % alignment:
        cursor.fail(f"{what} begins at {offset}, which is no multiple of {alignment}")
    return GgufTensor(name, shape, kind, offset, math.prod(shape) // kind.columns * kind.nbytes)


def _check_places(cursor: _Cursor, tensors: Mapping[str, GgufTensor]) -> None:
    """Every tensor lies inside the file and on no other."""
    previous_end, previous = 0, ""
    for tensor in sorted(tensors.values(), key=lambda one: one.offset):
        end = tensor.offset + tensor.nbytes
        if end > cursor.size:
            cursor.fail(
                f"tensor {tensor.name!r} claims bytes {tensor.offset} to {end}, "
                f"but the file ends after {cursor.size} (truncated?)"
            )
        if tensor.offset < previous_end:
            cursor.fail(f"tensors {previous!r} and {tensor.name!r} overlap")
        previous_end, previous = end, tensor.name

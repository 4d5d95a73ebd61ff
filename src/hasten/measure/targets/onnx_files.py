"""Which files besides itself an ONNX model names, without running or trusting it.

Only what leads to tensors is followed, on the wire format of protobuf
(https://protobuf.dev/programming-guides/encoding/), with the field numbers of ONNX's onnx.proto.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from pathlib import Path

from hasten.errors import ModelFileError

__all__ = ["check_external_data"]

PATHS = {
    "model": {7: "graph", 20: "training", 25: "function"},
    "training": {1: "graph", 2: "graph"},
    "function": {7: "node", 11: "attribute"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
    "tensor": {13: "external"},
}
"""Of each message, the fields that lead on, and to which."""
MAX_DEPTH = 100
"""Of messages within messages; protobuf's own readers stop there, too."""


def check_external_data(path: Path) -> None:
    """Refuses a model that names files of external data outside of its own folder.

    Raises:
        ModelFileError: It does, or is no ONNX file, or such a file is missing.
    """
    folder = path.parent.resolve()
    for name in sorted(_external_files(path)):
        inside = folder / name
        try:
            real = inside.resolve(strict=True)
        except (OSError, ValueError, RuntimeError) as error:
            raise ModelFileError(
                f"{path}: its data in {name!r} cannot be found: {error}"
            ) from error
        if not real.is_relative_to(folder) or not real.is_file():
            raise ModelFileError(
                f"{path}: its data in {name!r} is not a file in the model's folder",
                allowed=f"files within {folder}",
            )


def _external_files(path: Path) -> set[str]:
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return {name.decode() for name in _locations(data, 0, len(data), "model", MAX_DEPTH)}
    except OSError as error:
        raise ModelFileError(f"{path} cannot be read: {error}") from error
    except ValueError as error:  # an empty file, or what is not as it should be
        raise ModelFileError(f"{path} is not an ONNX file: {error}") from error


def _locations(data: mmap.mmap, at: int, end: int, message: str, depth: int) -> Iterator[bytes]:
    """The values beside the key "location" of all external data in a message."""
    if depth == 0:
        raise ValueError("its messages are nested too deeply")
    if message == "external":
        fields = [(number, data[a:b]) for number, a, b in _fields(data, at, end)]
        if (1, b"location") in fields:
            yield from (value for number, value in fields if number == 2)
        return
    onward = PATHS[message]
    for number, a, b in _fields(data, at, end):
        if number in onward:
            yield from _locations(data, a, b, onward[number], depth - 1)


def _fields(data: mmap.mmap, at: int, end: int) -> Iterator[tuple[int, int, int]]:
    """The fields of a message that have a length: their numbers, and where they are."""
    while at < end:
        key, at = _varint(data, at, end)
        number, kind = key >> 3, key & 7
        if kind == 2:
            size, at = _varint(data, at, end)
            if size > end - at:
                raise ValueError(f"a field of {size} bytes where {end - at} are left")
            yield number, at, at + size
            at += size
        elif kind == 0:
            _, at = _varint(data, at, end)
        elif kind in (1, 5):
            at += 8 if kind == 1 else 4
        else:
            raise ValueError(f"a field of the wire type {kind}")
    if at != end:
        raise ValueError("it ends within a field")


def _varint(data: mmap.mmap, at: int, end: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if at >= end:
            raise ValueError("it ends within a number")
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
    raise ValueError("a number of more than ten bytes")

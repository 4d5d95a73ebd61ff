"""A file of packed matrices: a header that says what it holds, then their panels as they lie.

Nothing in the header says where bytes go: sizes and order follow from the model, and a file that
does not have exactly those is not read. Panels are the same for every instruction set. They are
read into memory of huge pages rather than mapped: see `docs/startup.md`.
"""

from __future__ import annotations

import json
import os
import stat
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO

from hasten import _native

__all__ = ["file_size", "read_packed", "write_packed"]

_MAGIC = b"hastenpw"
_VERSION = 1
"""Raise it whenever panels or header change their layout."""
_PREFIX = struct.Struct("<8sII")
"""Magic, version, bytes of the header, which is JSON padded with spaces to a multiple of 64."""
_ALIGNMENT = 64
_SUM_BYTES = 21
"""Of a checksum in JSON, at most, with its comma."""


def write_packed(
    file: BinaryIO, key: str, matrices: Sequence[_native.Matrix], threads: int
) -> None:
    """Writes the matrices into an empty file.

    Args:
        file: Open for writing.
        key: What they are; `read_packed` must be given the same.
        matrices: Filled.
        threads: Threads that compute checksums.
    """
    sums = _native.checksums(list(matrices), threads)
    header = json.dumps({"key": key, "sums": sums}, separators=(",", ":")).encode()
    header += b" " * (-(len(header) + _PREFIX.size) % _ALIGNMENT)
    file.write(_PREFIX.pack(_MAGIC, _VERSION, len(header)) + header)
    file.writelines(matrix.data.data for matrix in matrices)


def read_packed(path: Path, key: str, matrices: Sequence[_native.Matrix], threads: int) -> bool:
    """Fills matrices from a file.

    Args:
        path: A file that `write_packed` wrote, or anything else.
        key: As it was written with.
        matrices: Of the same shapes and formats, in the same order.
        threads: Threads that read.

    Returns:
        False if the file is missing, of something else, or damaged; the matrices hold zeros then.
    """
    try:
        # A pipe of that name must not block, and what is opened is what is looked at.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        return _read(descriptor, key, list(matrices), threads)
    finally:
        os.close(descriptor)


def file_size(matrices: Sequence[_native.Matrix]) -> int:
    """Bytes of a file of these matrices, at most."""
    pieces = _native.count_pieces(list(matrices))
    return sum(matrix.nbytes for matrix in matrices) + pieces * _SUM_BYTES + 4096


def _read(descriptor: int, key: str, matrices: list[_native.Matrix], threads: int) -> bool:
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode):
        return False
    found = _read_header(descriptor, key, _native.count_pieces(matrices))
    if found is None:
        return False
    start, sums = found
    if status.st_size != start + sum(matrix.nbytes for matrix in matrices):
        return False
    if _native.read_matrices(descriptor, start, matrices, sums, threads):
        return True
    for matrix in matrices:
        matrix.clear()
    return False


def _read_header(descriptor: int, key: str, pieces: int) -> tuple[int, list[int]] | None:
    """Where the panels begin, and their checksums; None for a file of something else."""
    try:
        prefix = os.read(descriptor, _PREFIX.size)
        if len(prefix) != _PREFIX.size:
            return None
        magic, version, length = _PREFIX.unpack(prefix)
        if (magic, version) != (_MAGIC, _VERSION) or length > pieces * _SUM_BYTES + 4096:
            return None
        header: Any = json.loads(os.read(descriptor, length))
    except (OSError, ValueError, RecursionError):
        return None
    if not isinstance(header, dict) or header.get("key") != key:
        return None
    sums = header.get("sums")
    if not isinstance(sums, list) or len(sums) != pieces or not all(map(_is_sum, sums)):
        return None
    return _PREFIX.size + length, sums


def _is_sum(value: object) -> bool:
    return type(value) is int and 0 <= value < 1 << 64

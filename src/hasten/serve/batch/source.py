"""The input of a batch: lines, read one by one from the beginning."""

from __future__ import annotations

import os
import stat
from array import array
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from hasten.errors import UsageError
from hasten.serve.batch.lineset import LineSet
from hasten.serve.batch.request import custom_id

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["Line", "Scan", "Source"]

_BUFFER = 1 << 20
_MARK = b"\xef\xbb\xbf"
"""What some editors put before the first line of a UTF-8 text."""


@dataclass(frozen=True, slots=True)
class Line:
    """A line of the input that is not blank.

    Attributes:
        number: From 1, as editors count.
        text: Without its end; None where it is longer than lines may be.
        size: Bytes, without its end.
    """

    number: int
    text: bytes | None
    size: int


@dataclass(frozen=True, slots=True)
class Scan:
    """What a first look at the whole input found.

    Attributes:
        size: Bytes of the file.
        digest: BLAKE2b of its content, 32 hexadecimal digits.
        lines: How many are not blank.
        repeated: Numbers of the lines whose custom_id an earlier line has.
    """

    size: int
    digest: str
    lines: int
    repeated: LineSet


class Source:
    """An input file, open for reading.

    Args:
        path: A regular file; the lines are read twice.
        line_bytes: How long a line may be; longer ones are not kept in memory.

    Raises:
        UsageError: If it cannot be read, or is no regular file.
    """

    def __init__(self, path: Path, line_bytes: int) -> None:
        self.path = path
        self.line_bytes = line_bytes
        try:
            # A pipe of that name must not block.
            descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError as error:
            raise UsageError(f"cannot read {str(path)!r}: {error.strerror}") from error
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            os.close(descriptor)
            raise UsageError(
                f"{str(path)!r} is no regular file, and a batch reads its input twice",
                do="write the lines to a file first",
            )
        self._file = os.fdopen(descriptor, "rb", buffering=_BUFFER)
        self._seen = self.status()

    def status(self) -> os.stat_result:
        """What the file system says about the open file."""
        return os.fstat(self._file.fileno())

    def changed(self) -> bool:
        """Whether somebody wrote to the file since it was opened."""
        now, then = self.status(), self._seen
        return (now.st_size, now.st_mtime_ns) != (then.st_size, then.st_mtime_ns)

    def lines(self, see: Callable[[bytes], object] | None = None) -> Iterator[Line]:
        """Reads from the beginning, blank lines left out.

        Args:
            see: Receives every byte of the file, in pieces.
        """
        self._file.seek(0)
        number = 0
        most = len(_MARK) + self.line_bytes + len(b"\r\n")
        while piece := self._file.readline(most):
            number += 1
            size = len(piece)
            if see is not None:
                see(piece)
            text: bytes | None = piece.rstrip(b"\r\n")
            while not piece.endswith(b"\n") and (piece := self._file.readline(_BUFFER)):
                size += len(piece)
                if see is not None:
                    see(piece)
                text = None
            if text is not None and number == 1:
                text = text.removeprefix(_MARK)
            if text is not None and len(text) > self.line_bytes:
                text = None
            if text is None or text.strip():
                yield Line(number, text, size if text is None else len(text))

    def scan(self, done: Callable[[int], object] | None = None) -> Scan:
        """Looks at all lines once; takes 8 bytes of memory a line.

        Args:
            done: Receives how many bytes have been read, now and then; ends the scan by raising.
        """
        digest = blake2b(digest_size=16)
        size = count = 0
        told = 0
        identities = array("Q", [0])  # by line number; 0 where there is none

        def see(piece: bytes) -> None:
            nonlocal size
            digest.update(piece)
            size += len(piece)

        for line in self.lines(see):
            count += 1
            identities.extend([0] * (line.number - len(identities)))
            name = None if line.text is None else custom_id(line.text)
            identities.append(0 if name is None else _identity(name))
            if done is not None and size - told >= _BUFFER:
                done(size)
                told = size
        return Scan(size, digest.hexdigest(), count, LineSet(_repeated(identities)))

    def close(self) -> None:
        """Closes the file."""
        self._file.close()

    def __enter__(self) -> Source:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


def _identity(name: str) -> int:
    """64 bits of a custom_id, never 0; two of 10 million lines agree by chance once in 400,000."""
    digest = blake2b(name.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") or 1


def _repeated(identities: array[int]) -> bytes:
    """Bits of those that occurred before; sorted in 256 parts, so that copies stay small."""
    import numpy as np

    values: NDArray[np.uint64] = np.frombuffer(identities, np.uint64)
    parts = values.view(np.uint8)[:: values.itemsize]
    found = np.zeros(values.size, np.bool_)
    for part in range(256):
        numbers = np.flatnonzero(parts == part)
        chosen = values[numbers]
        order = np.argsort(chosen, kind="stable")
        ordered = chosen[order]
        again = (ordered[1:] == ordered[:-1]) & (ordered[1:] != 0)
        found[numbers[order[1:][again]]] = True
    return np.packbits(found, bitorder="little").tobytes()

"""A set of line numbers that takes a bit each."""

from __future__ import annotations

__all__ = ["LineSet"]


class LineSet:
    """Numbers from 0, in as many bits as the largest of them.

    Args:
        bits: Eight numbers a byte, the least significant bit first.
    """

    def __init__(self, bits: bytes = b"") -> None:
        self._bits = bytearray(bits)
        self._count = int.from_bytes(bits, "little").bit_count()

    def add(self, number: int) -> bool:
        """Adds a number; returns whether it was new."""
        byte, bit = number >> 3, 1 << (number & 7)
        if byte >= len(self._bits):
            self._bits.extend(bytes(byte + 1 - len(self._bits) + (len(self._bits) >> 3)))
        if self._bits[byte] & bit:
            return False
        self._bits[byte] |= bit
        self._count += 1
        return True

    def __contains__(self, number: int) -> bool:
        byte = number >> 3
        return byte < len(self._bits) and bool(self._bits[byte] & (1 << (number & 7)))

    def __len__(self) -> int:
        return self._count

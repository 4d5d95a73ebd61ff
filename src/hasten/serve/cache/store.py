"""Where answers are kept: the interface, and memory."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Protocol

__all__ = ["MemoryStore", "Store"]

_OVERHEAD = 256
"""Bytes that an entry takes besides its value."""


class Store(Protocol):
    """Keeps bytes under keys for a while. It never raises: what it cannot do, it leaves."""

    @property
    def entries(self) -> int:
        """How many it holds in this process."""
        ...

    @property
    def size(self) -> int:
        """Bytes that they take."""
        ...

    @property
    def evictions(self) -> int:
        """How many went to make room."""
        ...

    @property
    def failures(self) -> int:
        """How often it could not be asked."""
        ...

    async def get(self, key: bytes) -> bytes | None:
        """What is kept under a key; None if nothing is."""
        ...

    async def put(self, key: bytes, value: bytes) -> None:
        """Keeps a value."""
        ...

    async def close(self) -> None:
        """Lets go of what it holds."""
        ...


class MemoryStore:
    """Keeps values in memory; what was used longest ago goes first.

    Args:
        limit: Bytes that all entries may take.
        seconds: How long one is kept.
        clock: The time in seconds.
    """

    failures = 0

    def __init__(
        self, limit: int, seconds: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.size = 0
        self.evictions = 0
        self._limit = limit
        self._seconds = seconds
        self._clock = clock
        self._held: OrderedDict[bytes, tuple[float, bytes]] = OrderedDict()

    @property
    def entries(self) -> int:
        """How many there are, those included that nobody has asked for since they expired."""
        return len(self._held)

    async def get(self, key: bytes) -> bytes | None:
        """See `Store.get`."""
        if key not in self._held:
            return None
        expires, value = self._held[key]
        if expires <= self._clock():
            self._remove(key)
            return None
        self._held.move_to_end(key)
        return value

    async def put(self, key: bytes, value: bytes) -> None:
        """See `Store.put`."""
        if key in self._held:
            self._remove(key)
        if len(value) + _OVERHEAD > self._limit:
            return
        self._held[key] = self._clock() + self._seconds, value
        self.size += len(value) + _OVERHEAD
        while self.size > self._limit:
            self._remove(next(iter(self._held)))
            self.evictions += 1

    async def close(self) -> None:
        """See `Store.close`."""
        self._held.clear()
        self.size = 0

    def _remove(self, key: bytes) -> None:
        _, value = self._held.pop(key)
        self.size -= len(value) + _OVERHEAD

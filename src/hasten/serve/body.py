"""Reading the body of a request within limits of size, time and memory."""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, MutableMapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from hasten.errors import OverloadError, TooLargeError, UsageError
from hasten.serve.status import HttpError

__all__ = ["Body", "BodyLimits", "BodyMemory", "ClientGoneError", "Lease"]

Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]

SLICE = 128 << 10
"""Bytes that are unpacked before others get their turn."""

_WINDOW = {"gzip": 31, "x-gzip": 31, "deflate": 15}


class ClientGoneError(Exception):
    """The client left; nobody will read an answer."""


class BodyMemory:
    """Memory of all bodies that are held at once.

    Args:
        total: Bytes.
    """

    def __init__(self, total: int) -> None:
        self._total = total
        self.held = 0

    @contextmanager
    def lease(self) -> Iterator[Lease]:
        """What one request takes; given back at the end of the block."""
        lease = Lease(self)
        try:
            yield lease
        finally:
            self.held -= lease.bytes

    def take(self, count: int) -> None:
        """Count further bytes.

        Raises:
            OverloadError: If there is no room for them.
        """
        if self.held + count > self._total:
            raise OverloadError(
                "the server holds as many bytes of requests as it may",
                retry_after=1.0,
                allowed=f"{self._total} bytes at once",
                do="try again",
            )
        self.held += count


class Lease:
    """The memory of one body."""

    def __init__(self, memory: BodyMemory) -> None:
        self._memory = memory
        self.bytes = 0

    def take(self, count: int) -> None:
        """Count further bytes, as `BodyMemory.take`."""
        self._memory.take(count)
        self.bytes += count


@dataclass(frozen=True, slots=True)
class BodyLimits:
    """What one body may take.

    Attributes:
        size: Bytes, packed and unpacked.
        stall: Seconds without a byte of it.
        seconds: For all of it.
    """

    size: int
    stall: float
    seconds: float


class Body:
    """The body of one request.

    Args:
        receive: Of ASGI.
        headers: Of the request, names in lower case.
        limits: What it may take.

    Attributes:
        complete: Whether all of it was read, so that the connection can go on.
    """

    def __init__(self, receive: Receive, headers: Mapping[str, str], limits: BodyLimits) -> None:
        self._receive = receive
        self._limits = limits
        self._encoding = headers.get("content-encoding", "identity").strip().lower()
        self._length = int(headers.get("content-length", "0"))
        self.complete = "transfer-encoding" not in headers and not self._length

    def check(self) -> None:
        """Refuse a body by what its headers say.

        Raises:
            TooLargeError: If it is too long.
            HttpError: If it is packed in a way that is not known here.
        """
        if self._length > self._limits.size:
            raise self._too_large(f"the body has {self._length} bytes")
        if self._encoding not in _WINDOW and self._encoding != "identity":
            raise HttpError(
                415,
                f"a body with Content-Encoding {self._encoding[:100]!r} cannot be read",
                allowed="gzip, deflate, identity; one of them",
                headers={"accept-encoding": "gzip, deflate"},
            )

    async def read(self, lease: Lease) -> bytes:
        """All of it, unpacked.

        Raises:
            TooLargeError: If it is too long, packed or unpacked.
            OverloadError: If all bodies together are.
            UsageError: If it cannot be unpacked.
            HttpError: If it comes too slowly.
            ClientGoneError: If the client left.
        """
        if self.complete:
            return b""
        parts = []
        async for chunk in self.chunks():
            lease.take(len(chunk))
            parts.append(chunk)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    async def chunks(self) -> AsyncIterator[bytes]:
        """Its pieces as they come, unpacked; errors are those of `read`."""
        unpacked = 0
        source = self._packed() if self._encoding == "identity" else self._unpacked()
        async for chunk in source:
            unpacked += len(chunk)
            if unpacked > self._limits.size:
                raise self._too_large("the body is too long")
            yield chunk

    async def _packed(self) -> AsyncIterator[bytes]:
        """What comes from the client, counted and timed."""
        loop = asyncio.get_running_loop()
        end = loop.time() + self._limits.seconds
        size = 0
        while not self.complete:
            try:
                async with asyncio.timeout_at(min(end, loop.time() + self._limits.stall)):
                    message = await self._receive()
            except TimeoutError:
                raise HttpError(
                    408,
                    f"the body did not come in time; {size} bytes did",
                    allowed=f"{self._limits.seconds:g} s",
                ) from None
            if message["type"] == "http.disconnect":
                raise ClientGoneError
            chunk: bytes = message.get("body", b"")
            self.complete = not message.get("more_body", False)
            size += len(chunk)
            if size > self._limits.size:
                raise self._too_large("the body is too long")
            if chunk:
                yield chunk

    async def _unpacked(self) -> AsyncIterator[bytes]:
        """What the client packed, in slices, so that a small body cannot become a large one."""
        unpacker: zlib._Decompress | None = None
        async for chunk in self._packed():
            if unpacker is None:
                unpacker = zlib.decompressobj(self._window(chunk))
            rest = chunk
            while rest:
                if unpacker.eof:
                    raise UsageError("the packed body goes on after its end")
                try:
                    out = unpacker.decompress(rest, SLICE)
                except zlib.error as error:
                    raise UsageError(
                        f"the body is not what Content-Encoding {self._encoding!r} says: {error}"
                    ) from error
                rest = unpacker.unconsumed_tail or unpacker.unused_data
                if out:
                    yield out
                if rest:
                    await asyncio.sleep(0)
        if unpacker is not None and not unpacker.eof:
            for out in iter(lambda: unpacker.decompress(b"", SLICE), b""):
                yield out
            if not unpacker.eof:
                raise UsageError("the packed body ends too early")

    def _window(self, start: bytes) -> int:
        """What zlib is told; some clients send "deflate" without the zlib header it should have."""
        if self._encoding == "deflate" and start[0] & 0x0F != 8:
            return -15
        return _WINDOW[self._encoding]

    def _too_large(self, what: str) -> TooLargeError:
        return TooLargeError(what, allowed=f"{self._limits.size} bytes, unpacked")

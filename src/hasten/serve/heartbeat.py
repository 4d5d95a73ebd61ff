"""Sign of life on a stream that is silent while a prompt waits or is read."""

from __future__ import annotations

import asyncio
from asyncio import TimerHandle
from collections.abc import Awaitable, Callable

__all__ = ["Heartbeat"]


class Heartbeat:
    """Sends pieces of a stream, and something that clients skip where none came for a while.

    Proxies and clients give up on connections that are silent, often after a minute.

    Args:
        send: Sends a piece; returns when the client can take more.
        beat: What is sent in between.
        seconds: A beat comes after one to two times as many without a piece.
    """

    def __init__(
        self, send: Callable[[bytes], Awaitable[None]], beat: bytes, seconds: float
    ) -> None:
        self._send = send
        self._beat = beat
        self._seconds = seconds
        self._silent = False
        self._sending = False
        self._loop = asyncio.get_running_loop()
        self._timer: TimerHandle | None = None
        self._beating: asyncio.Task[None] | None = None

    def start(self) -> None:
        """The headers are sent."""
        if self._beat:
            self._timer = self._loop.call_later(self._seconds, self._tick)

    async def send(self, piece: bytes) -> None:
        """Sends a piece of the stream itself."""
        self._silent = False
        self._sending = True
        await self._send(piece)
        self._sending = False

    async def stop(self) -> None:
        """Nothing comes any more but the end."""
        if self._timer is not None:
            self._timer.cancel()
        if self._beating is not None:
            self._beating.cancel()
            await asyncio.wait({self._beating})

    def _tick(self) -> None:
        # What the client does not take needs no company.
        if self._silent and not self._sending:
            self._beating = self._loop.create_task(self.send(self._beat))
        self._silent = True
        self._timer = self._loop.call_later(self._seconds, self._tick)

"""What a request yields, on the server's side of the worker."""

from __future__ import annotations

import asyncio
from asyncio import Future
from collections.abc import Callable
from typing import Self

from hasten.errors import HastenError
from hasten.types import Output, Request

__all__ = ["OutputStream"]


class OutputStream:
    """What a request yields, as it comes; `EngineProcess.submit` makes it.

    Each item holds what came since the last one, which is what one step gave where the reader keeps
    up. Iteration ends after the last output of all `n`, or after `cancel`.

    Args:
        request: What was asked.
        leave: Called when nothing more is wanted.
    """

    def __init__(self, request: Request, leave: Callable[[], None]) -> None:
        self.request = request
        self._leave = leave
        self._left = request.sampling.n
        self._ready: list[Output] = []
        self._error: HastenError | None = None
        self._waiter: Future[None] | None = None

    def cancel(self) -> None:
        """Ends the request; its slot is free within one step. Further calls do nothing."""
        if self._left:
            self._left = 0
            self._ready.clear()
            self._wake()
            self._leave()

    def add(self, output: Output) -> bool:
        """Takes what came; whether the request is complete."""
        if output.finish_reason is not None and self._left:
            self._left -= 1
        self._ready.append(output)
        self._wake()
        return not self._left

    def fail(self, error: HastenError) -> None:
        """Nothing more comes."""
        if self._left:
            self._left = 0
            self._error = error
            self._wake()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> list[Output]:
        """What came since the last call.

        Raises:
            EngineLostError: The worker ended before the request did.
            GenerationError: An output is too large to get here.
        """
        while not self._ready:
            if self._error is not None:
                raise self._error
            if not self._left:
                raise StopAsyncIteration
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter
        ready, self._ready = self._ready, []
        return ready

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

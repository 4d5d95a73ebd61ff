"""One computation, and the requests that follow it."""

from __future__ import annotations

import asyncio
import time
from asyncio import Future
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Literal, Self

from hasten.errors import DeadlineError
from hasten.types import Output, Request, TokenLogprobs

__all__ = ["Budget", "Flight", "Follower"]


class Budget:
    """Bytes that all that is kept of what is in flight may take.

    Args:
        total: Of all together.
        each: Of one flight.
    """

    def __init__(self, total: int, each: int) -> None:
        self.used = 0
        self.total = total
        self.each = each


class Flight:
    """What the engine gives for a request, passed on to all who asked for the same.

    What came is kept, so that others can join, until it takes more than it may.

    Args:
        priority: Of the request that is computed; more urgent ones do not join.
        budget: What may be kept.
        abandon: Called when the last follower leaves before the end.

    Attributes:
        priority: As given.
        source: Where the outputs come from, once they do.
    """

    def __init__(self, priority: int, budget: Budget, abandon: Callable[[], None]) -> None:
        self.priority = priority
        self.source: Literal["hit", "miss"] | None = None
        self._budget = budget
        self._abandon = abandon
        self._kept: list[Output] | None = []
        self._bytes = 0
        self._followers: set[Follower] = set()
        self._ended = False

    @property
    def open(self) -> bool:
        """Whether others can join: all that came is still there, and there is a follower."""
        return self._kept is not None and (self._ended or bool(self._followers))

    @property
    def kept(self) -> Sequence[Output] | None:
        """What came so far; None where it was too much to keep."""
        return self._kept

    def join(self, request: Request) -> Follower:
        """Another request gets what came, and what will come."""
        follower = Follower(request, self._leave)
        if self.source is not None:
            follower.accept()
        follower.give(self._kept or ())
        if self._ended:
            follower.end(None)
        else:
            self._followers.add(follower)
        return follower

    def accept(self, source: Literal["hit", "miss"]) -> None:
        """The engine has the request, or its answer was found."""
        self.source = source
        for follower in self._followers:
            follower.accept()

    def give(self, outputs: Sequence[Output]) -> None:
        """Passes outputs on."""
        self._keep(outputs)
        for follower in self._followers:
            follower.give(outputs)

    def end(self, error: Exception | None) -> None:
        """Nothing more comes."""
        self._ended = True
        if error is not None:
            self.forget()
        followers, self._followers = self._followers, set()
        for follower in followers:
            follower.end(error)

    def forget(self) -> None:
        """Keeps no longer what came."""
        self._budget.used -= self._bytes
        self._bytes = 0
        self._kept = None

    def _keep(self, outputs: Sequence[Output]) -> None:
        if self._kept is None:
            return
        more = sum(map(_weigh, outputs))
        self._bytes += more
        self._budget.used += more
        self._kept += outputs
        if self._bytes > self._budget.each or self._budget.used > self._budget.total:
            self.forget()

    def _leave(self, follower: Follower) -> None:
        self._followers.discard(follower)
        if not self._followers and not self._ended:
            self.forget()
            self._abandon()


class Follower:
    """What one request gets: an `OutputStream` whose outputs may have been made for another.

    Args:
        request: What was asked; its deadline is its own.
        leave: Called once when nothing more is wanted, if that is before the end.
    """

    def __init__(self, request: Request, leave: Callable[[Follower], None]) -> None:
        self._id = request.id
        self._leave = leave
        self._accepted = False
        self._over = False
        self._error: Exception | None = None
        self._ready: list[Output] = []
        self._waiter: Future[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        if request.deadline is not None:
            left = max(0.0, request.deadline - time.monotonic())
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(left, self._expire)

    def accept(self) -> None:
        """The request is valid, and on its way."""
        self._accepted = True
        self._wake()

    def give(self, outputs: Iterable[Output]) -> None:
        """Takes what came."""
        self._ready += outputs
        self._wake()

    def end(self, error: Exception | None) -> None:
        """Nothing more comes."""
        self._over = True
        self._error = error
        if self._timer is not None:
            self._timer.cancel()
        self._wake()

    def cancel(self) -> None:
        """Wants nothing more; further calls do nothing."""
        self._ready.clear()
        if not self._over:
            self.end(None)
            self._leave(self)
        self._error = None

    async def accepted(self) -> None:
        """Waits until the engine has the request, or the answer was found.

        Raises:
            HastenError: It was refused, or its deadline passed.
        """
        while not self._accepted:
            if self._error is not None:
                raise self._error
            await self._change()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> list[Output]:
        """What came since the last call.

        Raises:
            DeadlineError: The request's own deadline passed.
            EngineLostError: The engine's process ended before the request did.
        """
        while not self._ready:
            if self._error is not None:
                raise self._error
            if self._over:
                raise StopAsyncIteration
            await self._change()
        ready, self._ready = self._ready, []
        return [o if o.request_id == self._id else replace(o, request_id=self._id) for o in ready]

    async def _change(self) -> None:
        self._waiter = asyncio.get_running_loop().create_future()
        await self._waiter

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _expire(self) -> None:
        self.end(
            DeadlineError(
                "the request did not end in the time that it had",
                do="ask for fewer tokens, set a longer timeout, or try when the server is idle",
            )
        )
        self._leave(self)


def _weigh(output: Output) -> int:
    """About how many bytes an output takes."""
    entries = (*output.logprobs, *output.prompt_logprobs)
    return 256 + len(output.text) + 32 * len(output.tokens) + sum(map(_weigh_entry, entries))


def _weigh_entry(entry: TokenLogprobs) -> int:
    return 160 + 120 * len(entry.top)

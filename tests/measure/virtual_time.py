"""An event loop whose time passes only while everybody sleeps, so that tests of time are exact."""

from __future__ import annotations

import asyncio
import selectors


class _Impatient(selectors.SelectSelector):
    """Does not wait: what would have been waited is added to the time."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 1000.0

    def select(self, timeout=None):
        assert timeout is not None, "nobody will ever wake this loop"
        self.now += max(0.0, timeout)
        return super().select(0)


class VirtualPolicy(asyncio.DefaultEventLoopPolicy):
    """Makes such loops; their time goes on from one to the next."""

    def __init__(self) -> None:
        super().__init__()
        self._selector = _Impatient()

    def clock(self) -> float:
        return self._selector.now

    def new_event_loop(self):
        now = self._selector.now
        self._selector = _Impatient()
        self._selector.now = now
        loop = asyncio.SelectorEventLoop(self._selector)
        loop.time = self.clock
        loop._clock_resolution = 1e-9
        return loop

"""Whether the server lives, whether it can answer, and what it tells operators.

Live means that the event loop answers. Ready means more: a token came out of each engine a moment
ago, or one comes when asked for. A process that exists proves nothing.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Mapping
from typing import Protocol

from hasten import __version__
from hasten.serve.endpoint import Call, Reply, Route
from hasten.serve.telemetry.engines import Engine

__all__ = ["ROUTES", "Health", "HealthDialect", "TestedEngine"]

_RECENT = 10.0
"""Seconds for which a token, or a test, proves that an engine works."""
_TEST_SECONDS = 5.0
"""A self-test takes no longer, or it has failed."""


class TestedEngine(Engine, Protocol):
    """What is asked of an engine; an `EngineProcess` is one."""

    @property
    def last_token(self) -> float | None:
        """When its last output came, in seconds of `time.monotonic`."""

    async def self_test(self, timeout: float) -> bool:  # noqa: ASYNC109 - the engine's to keep
        """Whether a token, or a vector, comes out of it."""


class _Test:
    """Self-tests of one engine: one at a time, and none where the last is recent."""

    def __init__(self, engine: TestedEngine) -> None:
        self.engine = engine
        self._running: asyncio.Task[str | None] | None = None
        self._when = 0.0
        self._failure: str | None = "was not tested"

    async def failure(self, now: float, recent: float, limit: float) -> str | None:
        """What is wrong with it, None for nothing."""
        if self._running is None and now - self._when > recent:
            self._running = asyncio.get_running_loop().create_task(self._run(limit))
        if self._running is not None:
            # Who asks may leave; who else asks still wants to know.
            return await asyncio.shield(self._running)
        return self._failure

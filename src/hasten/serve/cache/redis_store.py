"""Answers in a Redis that several servers may share. While it is away, nothing is found."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from hasten.errors import MissingDependencyError, UsageError

if TYPE_CHECKING:
    from redis.asyncio import Redis

__all__ = ["RedisStore"]

_log = logging.getLogger(__name__)

_PREFIX = b"hasten:answer:"
_SECONDS = 0.25
_REST = 5.0


class RedisStore:
    """Keeps values in a Redis, whose own limit and policy bound them all.

    A request waits `timeout` for it at most; after a failure it is left alone for `rest`.

    Args:
        url: As in "redis://user:password@host:6379/0", "rediss://…" or "unix://…".
        seconds: How long a value is kept.
        largest: Bytes of the largest value that is kept, or read.
        timeout: Seconds that one question may take.
        rest: Seconds without questions after one that failed.

    Raises:
        MissingDependencyError: The package redis is not installed.
        UsageError: The URL cannot be used.
    """

    entries = 0
    size = 0
    evictions = 0

    def __init__(
        self,
        url: str,
        seconds: float,
        largest: int,
        *,
        timeout: float = _SECONDS,
        rest: float = _REST,
    ) -> None:
        self.failures = 0
        self._redis = _connect(url, timeout)
        self._milliseconds = max(1, round(seconds * 1000))
        self._largest = largest
        self._timeout = timeout
        self._rest = rest
        self._away_until: float | None = None
        self._told: set[str] = set()

    async def get(self, key: bytes) -> bytes | None:
        """See `Store.get`."""
        # Not GET, which would read a value of any length into memory.
        found: bytes | None = await self._ask(
            lambda: self._redis.getrange(_name(key), 0, self._largest)
        )
        return found if found and len(found) <= self._largest else None

    async def put(self, key: bytes, value: bytes) -> None:
        """See `Store.put`."""
        if len(value) <= self._largest:
            await self._ask(lambda: self._redis.set(_name(key), value, px=self._milliseconds))

    async def close(self) -> None:
        """See `Store.close`."""
        await self._redis.aclose()

    async def _ask(self, question: Callable[[], Any]) -> Any:  # noqa: ANN401 - Redis has no types
        """The answer to a question; None where Redis is away."""
        from redis import RedisError, ResponseError

        if self._away_until is not None and time.monotonic() < self._away_until:
            return None
        try:
            async with asyncio.timeout(self._timeout):
                answer = await question()
        except ResponseError as error:  # it is there, and does not do this one thing
            self._tell(error)
            return None
        except (RedisError, OSError, ValueError) as error:
            self._tell(error)
            self._away_until = time.monotonic() + self._rest
            return None
        if self._away_until is not None:
            _log.info("the Redis of the response cache answers again")
            self._away_until = None
            self._told.clear()
        return answer

    def _tell(self, error: Exception) -> None:
        """Logs each kind of error once; without its text, which may hold the URL."""
        self.failures += 1
        kind = type(error).__name__
        if kind not in self._told:
            self._told.add(kind)
            _log.warning(
                "the Redis of the response cache gives no answers (%s); they are computed", kind
            )


def _name(key: bytes) -> bytes:
    return _PREFIX + key.hex().encode()


def _connect(url: str, timeout: float) -> Redis:
    try:
        from redis.asyncio import Redis
        from redis.asyncio.retry import Retry
        from redis.backoff import NoBackoff
    except ImportError as error:
        raise MissingDependencyError(
            "a response cache in Redis needs the package redis", do="pip install 'hasten[redis]'"
        ) from error
    try:
        return Redis.from_url(
            url,
            socket_timeout=timeout,
            socket_connect_timeout=timeout,
            retry=Retry(NoBackoff(), 0),
        )
    except ValueError as error:
        raise UsageError(
            "the URL of the response cache cannot be used",
            allowed="redis://…, rediss://… or unix://…",
        ) from error

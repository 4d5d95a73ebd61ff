"""The response cache: exact, and only for those who asked for one.

What an answer depends on makes its key, so a hit is what the engine would compute again. Requests
for an answer that is being computed follow that computation; it ends when all of them have left.
"""

from __future__ import annotations

import asyncio
from asyncio import Task
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol

from hasten.errors import EngineLostError, ModelFileError
from hasten.serve.cache.flight import Budget, Flight
from hasten.serve.cache.key import Fingerprints
from hasten.serve.cache.store import MemoryStore, Store
from hasten.serve.cache.stored import decode_answer, encode_answer, is_complete
from hasten.serve.jobs import CacheState
from hasten.serve.settings import ServerSettings
from hasten.types import Output, Request, SamplingParams

if TYPE_CHECKING:
    from hasten.serve.registry import Served

__all__ = ["AnswerCache", "CacheStatistics", "Outputs", "open_store"]

LARGEST = 4 << 20
"""Bytes of the largest answer that is kept."""

IN_FLIGHT = 64 << 20
"""Bytes that are kept of all answers together that are being computed."""


class Outputs(Protocol):
    """What a request yields, as `OutputStream` does."""

    def __aiter__(self) -> AsyncIterator[list[Output]]: ...

    def cancel(self) -> None:
        """Ends the request; further calls do nothing."""
        ...


@dataclass(frozen=True, slots=True)
class CacheStatistics:
    """What the cache has done and holds.

    Attributes:
        hits: Requests whose answer was there.
        joined: Requests whose answer was being computed for another.
        misses: Requests that were computed.
        evictions: Answers that went to make room; of a Redis they are not known.
        entries: Answers in memory.
        bytes: What they take.
        in_flight: Answers that are being computed.
        failures: How often the Redis could not be asked.
    """

    hits: int
    joined: int
    misses: int
    evictions: int
    entries: int
    bytes: int
    in_flight: int
    failures: int


class AnswerCache:
    """Keeps answers, and shares those that are being computed.

    Args:
        settings: Whether, where and for how long answers are kept.
        store: Keeps them; made from the settings where it is not given.
    """

    def __init__(self, settings: ServerSettings, store: Store | None = None) -> None:
        self._store = open_store(settings) if store is None else store
        self._sampled = settings.cache_sampled
        self._fingerprints = Fingerprints()
        self._budget = Budget(IN_FLIGHT, LARGEST)
        self._flights: dict[bytes, Flight] = {}
        self._tasks: set[Task[None]] = set()
        self._counts: dict[CacheState, int] = {"hit": 0, "joined": 0, "miss": 0, "off": 0}

    async def submit(
        self, served: Served, request: Request, *, tenant: str, wanted: bool
    ) -> tuple[CacheState, Outputs]:
        """Finds a request's answer, or joins its computation, or starts it.

        Args:
            served: The model.
            request: What is asked.
            tenant: Others get none of its answers.
            wanted: Whether the answer may be another's.

        Returns:
            Where the answer comes from, and the answer as it comes.

        Raises:
            HastenError: As `EngineProcess.submit`.
        """
        key = await self._key(served, request, tenant) if wanted else None
        if key is None:
            return "off", await served.engine.submit(request)
        flight = self._flights.get(key)
        joins = flight is not None and flight.open and flight.priority <= request.priority
        if flight is None or not joins:
            flight = self._start(key, served, request)
        follower = flight.join(request)
        try:
            await follower.accepted()
        except BaseException:
            follower.cancel()
            raise
        state: CacheState = "joined" if joins else "miss"
        if flight.source == "hit":
            state = "hit"
        self._counts[state] += 1
        return state, follower

    def statistics(self) -> CacheStatistics:
        """What it has done and holds."""
        store, counts = self._store, self._counts
        return CacheStatistics(
            counts["hit"],
            counts["joined"],
            counts["miss"],
            0 if store is None else store.evictions,
            0 if store is None else store.entries,
            0 if store is None else store.size,
            len(self._flights),
            0 if store is None else store.failures,
        )

    async def close(self) -> None:
        """Ends what is being computed, and lets go of the store."""
        for flight in self._flights.values():
            flight.end(EngineLostError("the server ends"))
        self._flights.clear()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._store is not None:
            await self._store.close()

    async def _key(self, served: Served, request: Request, tenant: str) -> bytes | None:
        if self._store is None or not (self._sampled or _is_deterministic(request.sampling)):
            return None
        try:
            return await self._fingerprints.of(served, request, tenant)
        except (ModelFileError, OSError):
            return None  # files that went away since they were loaded; the engine still answers

    def _start(self, key: bytes, served: Served, request: Request) -> Flight:
        def abandon() -> None:
            self._forget(key, flight)
            task.cancel()

        flight = Flight(request.priority, self._budget, abandon)
        task = asyncio.create_task(self._fly(key, flight, served, request))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        self._flights[key] = flight
        return flight

    def _forget(self, key: bytes, flight: Flight) -> None:
        flight.forget()
        if self._flights.get(key) is flight:
            del self._flights[key]

    async def _fly(self, key: bytes, flight: Flight, served: Served, request: Request) -> None:
        """Finds or computes an answer, and passes it on; errors go to those who follow."""
        try:
            found = await self._find(key, request.sampling.n)
            if found is not None:
                flight.accept("hit")
                flight.give(found)
                flight.end(None)
                return
            await self._compute(flight, served, request)
            flight.end(None)
            kept = flight.kept
            if self._store is not None and kept and is_complete(kept, request.sampling.n):
                await self._store.put(key, encode_answer(key, kept))
        except Exception as error:  # told to those who follow; this task has no other reader
            flight.end(error)
        finally:
            self._forget(key, flight)

    async def _find(self, key: bytes, n: int) -> list[Output] | None:
        value = None if self._store is None else await self._store.get(key)
        return None if value is None else decode_answer(key, value, n)

    async def _compute(self, flight: Flight, served: Served, request: Request) -> None:
        # Each follower has a deadline of its own, which is not the computation's.
        stream = await served.engine.submit(replace(request, deadline=None))
        try:
            flight.accept("miss")
            async for outputs in stream:
                flight.give(outputs)
        finally:
            stream.cancel()


def open_store(settings: ServerSettings) -> Store | None:
    """Where the settings keep answers; None where they keep none.

    Raises:
        MissingDependencyError: They name a Redis, and the package redis is not installed.
        UsageError: Its URL cannot be used.
    """
    place = settings.response_cache
    if isinstance(place, str):
        from hasten.serve.cache.redis_store import RedisStore

        return RedisStore(place, settings.cache_seconds, LARGEST)
    return MemoryStore(place, settings.cache_seconds) if place else None


def _is_deterministic(sampling: SamplingParams) -> bool:
    return sampling.temperature == 0 or sampling.seed is not None

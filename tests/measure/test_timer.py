from __future__ import annotations

import asyncio
import time
from pathlib import Path

import pytest

from hasten.measure.timer import Timer


def slept(seconds: float, times: int, *, real: bool = True) -> list[float]:
    async def sleep() -> list[float]:
        found = []
        with Timer(real=real) as timer:
            for _ in range(times):
                started = time.perf_counter()
                await timer.sleep(seconds)
                found.append(time.perf_counter() - started)
        return found

    return asyncio.run(sleep())


def descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def test_it_never_wakes_early():
    assert min(slept(0.0025, 40)) >= 0.0025
    assert min(slept(0.0025, 5, real=False)) >= 0.0025


def test_it_is_nearer_than_asyncios_sleep():
    """The best of many: asyncio's waits whole milliseconds, at least 3 of them here."""
    assert min(slept(0.00205, 100)) < 0.0030
    assert max(slept(0, 5)) < 1
    assert max(slept(-1, 5)) < 1


def test_others_run_meanwhile_and_nothing_stays_open():
    async def sleep() -> int:
        ticks = 0

        async def tick() -> None:
            nonlocal ticks
            while True:
                await asyncio.sleep(0.001)
                ticks += 1

        ticking = asyncio.create_task(tick())
        with Timer() as timer:
            await timer.sleep(0.1)
        ticking.cancel()
        return ticks

    before = descriptors()
    assert asyncio.run(sleep()) > 3
    assert descriptors() == before


def test_a_sleep_that_is_cancelled_wakes_nobody_else():
    async def sleep() -> float:
        with Timer() as timer:
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(timer.sleep(0.02), 0.005)
            started = time.perf_counter()
            await timer.sleep(0.05)
            return time.perf_counter() - started

    assert asyncio.run(sleep()) >= 0.05

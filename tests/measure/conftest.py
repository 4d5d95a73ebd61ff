"""A target with a clock of its own, so that times in tests are exact."""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from hasten.errors import HastenError
from hasten.measure.records import Answer, Clock
from hasten.measure.workload import Item, Workload

sys.path.insert(0, str(Path(__file__).parent))

from virtual_time import VirtualPolicy


class FakeTarget:
    """Takes 1 s for a first token and 0.1 s for each further one, on its own clock."""

    def __init__(self) -> None:
        self.now = 100.0
        self.prompts: list[Item] = []
        self.fail_on: set[int] = set()
        self.interrupt_after: tuple[int, int] | None = None  # (request, tokens)
        self.stop_after: int | None = None
        self.cut_after: int | None = None
        self.closed = 0
        self.opened = 0

    def clock(self) -> float:
        return self.now

    def describe(self):
        return {"kind": "fake", "model": "fake"}

    async def __aenter__(self):
        self.opened += 1
        return self

    async def __aexit__(self, *_):
        self.opened -= 1

    async def send(self, work: Item, answer: Answer) -> None:
        await asyncio.sleep(0)
        index = len(self.prompts)
        self.prompts.append(work)
        answer.prompt_tokens = len(work.prompt) if isinstance(work.prompt, tuple) else None
        try:
            for token in range(work.output_tokens):
                if index in self.fail_on:
                    raise HastenError("the target is broken")
                if self.interrupt_after == (index, token):
                    signal.raise_signal(signal.SIGINT)
                    await asyncio.sleep(10)
                if token == self.cut_after:
                    return
                self.now += 1.0 if token == 0 else 0.1
                answer.arrive(1, text="a", model_seconds=0.05)
                if token + 1 == self.stop_after:
                    answer.stopped = True
                    return
        finally:
            self.closed += 1


@pytest.fixture
def target() -> FakeTarget:
    return FakeTarget()


@pytest.fixture
def make_workload() -> Callable[..., Workload]:
    def make(requests: int, warmup: int = 0, output: int = 3, prompt: int = 4) -> Workload:
        items = [Item((index,) * prompt, output) for index in range(requests + warmup)]
        return Workload("made up", 0, tuple(items[requests:]), tuple(items[:requests]))

    return make


@pytest.fixture
def virtual_clock() -> Iterator[Clock]:
    """Time that passes only while everybody sleeps, in event loops of this test."""
    policy = VirtualPolicy()
    asyncio.set_event_loop_policy(policy)
    yield policy.clock
    asyncio.set_event_loop_policy(None)

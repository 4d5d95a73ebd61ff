"""A target with a clock of its own, so that times in tests are exact."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import pytest

from hasten.errors import HastenError
from hasten.measure.workload import Item, Workload
from hasten.types import Output, SamplingParams


class FakeTarget:
    """Takes 1 s for a first token and 0.1 s for each further one, on its own clock."""

    def __init__(self) -> None:
        self.now = 100.0
        self.prompts: list[tuple[int, ...]] = []
        self.fail_on: set[int] = set()
        self.interrupt_after: tuple[int, int] | None = None  # (request, tokens)
        self.stop_after: int | None = None
        self.closed = 0

    def clock(self) -> float:
        return self.now

    def generate(self, prompt: Sequence[int], sampling: SamplingParams) -> Iterator[Output]:
        index = len(self.prompts)
        self.prompts.append(tuple(prompt))
        try:
            for token in range(sampling.max_tokens):
                if index in self.fail_on:
                    raise HastenError("the target is broken")
                if self.interrupt_after == (index, token):
                    raise KeyboardInterrupt
                self.now += 1.0 if token == 0 else 0.1
                stopped = not sampling.ignore_eos and token + 1 == self.stop_after
                last = stopped or token + 1 == sampling.max_tokens
                reason = ("stop" if stopped else "length") if last else None
                yield Output("x", (token,), "a", reason, 0.05)
                if stopped:
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

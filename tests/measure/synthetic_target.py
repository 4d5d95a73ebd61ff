"""A target whose every delay is known, on whatever clock the event loop has."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field

from hasten.measure.records import Answer
from hasten.measure.targets.target import TargetError
from hasten.measure.workload import Item


@dataclass(frozen=True)
class Plan:
    """How one request goes.

    Attributes:
        first: Seconds until the first token.
        events: (seconds after the one before, tokens) of further events.
        tail: Seconds between the last token and an event without any; None for no such event.
        fails_after: Events of tokens after which it fails; None for never.
    """

    first: float = 0.05
    events: tuple[tuple[float, int], ...] = ((0.01, 1),) * 3
    tail: float | None = None
    fails_after: int | None = None

    @property
    def tokens(self) -> int:
        return 1 + sum(tokens for _, tokens in self.events)

    @property
    def span(self) -> float:
        return sum(gap for gap, _ in self.events)


@dataclass
class SyntheticTarget:
    """Answers by plan; `plan_of` gets the number of the request."""

    plan_of: Callable[[int], Plan] = field(default=lambda number: Plan())
    sent: int = 0

    def describe(self):
        return {"kind": "synthetic"}

    async def __aenter__(self):
        return self

    async def __aexit__(self, *_):
        pass

    async def send(self, work: Item, answer: Answer) -> None:
        plan = self.plan_of(self.sent)
        self.sent += 1
        answer.prompt_tokens = len(work.prompt)
        for number, (gap, tokens) in enumerate(((plan.first, 1), *plan.events)):
            if plan.fails_after == number:
                raise TargetError(f"broke after {number} events")
            await asyncio.sleep(gap)
            answer.arrive(tokens, text="x" * tokens)
        if plan.tail is not None:
            await asyncio.sleep(plan.tail)
            answer.arrive(0)


@dataclass
class QueueTarget:
    """One server that takes requests in turn, and stalls before every so many."""

    service: float
    stall: float
    every: int
    sent: int = 0
    free_at: float = 0.0

    def describe(self):
        return {"kind": "queue"}

    async def __aenter__(self):
        self.sent, self.free_at = 0, 0.0
        return self

    async def __aexit__(self, *_):
        pass

    async def send(self, work: Item, answer: Answer) -> None:
        now = asyncio.get_running_loop().time()
        self.sent += 1
        start = max(now, self.free_at)
        if self.sent % self.every == 0:
            start += self.stall
        self.free_at = start + self.service
        await asyncio.sleep(self.free_at - now)
        answer.arrive(work.output_tokens)

"""Loads that drive a target: clients in closed loops, or requests by the clock.

The load only takes times; what they mean stands in `metrics`. A request counts from when it was to
be sent, so that a target or a client that holds it up cannot hide that (coordinated omission).
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field

from hasten.errors import HastenError
from hasten.measure.arrivals import ClosedLoop, OpenLoop, Pattern
from hasten.measure.records import Answer, Clock, Record, Status
from hasten.measure.targets.target import Target
from hasten.measure.timer import Timer
from hasten.measure.workload import Chat, Item, Message, Session, Tensors, Work, Workload

__all__ = ["LoadResult", "make_record", "run_load"]


@dataclass(frozen=True, slots=True)
class LoadResult:
    """What a load measured.

    Attributes:
        records: Requests that count, in the order they were to be sent.
        window: Seconds from the first intended send to the end of the last request.
        interrupted: The user stopped it; the records are those of before.
        out_of_time: The limit of duration was reached before all requests were sent.
        warmup_failures: Reasons of requests that failed during the warm-up.
    """

    records: tuple[Record, ...]
    window: float
    interrupted: bool
    out_of_time: bool
    warmup_failures: tuple[str, ...]


def run_load(
    target: Target,
    workload: Workload,
    pattern: Pattern | None = None,
    *,
    duration: float | None = None,
    clock: Clock = time.perf_counter,
    on_progress: Callable[[int], None] | None = None,
    on_warm: Callable[[], Awaitable[None]] | None = None,
    on_start: Callable[[], None] | None = None,
) -> LoadResult:
    """Sends the requests of a workload and waits for all answers.

    The warm-up runs first, with as many clients as a closed loop has, else one. A request that
    fails is recorded as failed and the load goes on. Ctrl-C ends it and keeps what was measured;
    the requests under way are recorded as truncated.

    Args:
        target: What is measured; it is opened and closed again.
        workload: What to ask for.
        pattern: When to send; None for one client in a closed loop.
        duration: Seconds after which no further request is sent; None for no limit.
        clock: Monotonic clock in seconds.
        on_progress: Called with the number of requests that have ended.
        on_warm: Awaited after the warm-up, before `on_start`.
        on_start: Called between the warm-up and the first request that counts.
    """
    load = _Load(target, clock, on_progress)
    return asyncio.run(load.run(workload, pattern or ClosedLoop(), duration, on_warm, on_start))


@dataclass(slots=True)
class _Load:
    target: Target
    clock: Clock
    on_progress: Callable[[int], None] | None
    records: list[Record] = field(default_factory=list)
    sent: int = 0
    ended: int = 0
    out_of_time: bool = False

    async def run(
        self,
        workload: Workload,
        pattern: Pattern,
        duration: float | None,
        on_warm: Callable[[], Awaitable[None]] | None,
        on_start: Callable[[], None] | None,
    ) -> LoadResult:
        """See `run_load`."""
        warmup: list[Record] = []
        interrupted = False
        try:
            async with self.target:
                clients = pattern.concurrency if isinstance(pattern, ClosedLoop) else 1
                show, self.on_progress = self.on_progress, None
                try:
                    await self._closed(deque(workload.warmup), clients, None)
                finally:
                    warmup, self.records = self.records, []
                    self.sent = self.ended = 0
                self.on_progress = show
                if on_warm is not None:
                    await on_warm()
                if on_start is not None:
                    on_start()
                end = None if duration is None else self.clock() + duration
                if isinstance(pattern, ClosedLoop):
                    await self._closed(deque(workload.items), pattern.concurrency, end)
                else:
                    await self._open(iter(workload.items), pattern, end)
        except (asyncio.CancelledError, KeyboardInterrupt):
            interrupted = True
        records = sorted(self.records, key=lambda record: record.intended_send)
        return LoadResult(
            records=tuple(records),
            window=max(r.end for r in records) - records[0].intended_send if records else 0.0,
            interrupted=interrupted,
            out_of_time=self.out_of_time,
            warmup_failures=tuple(record.reason for record in warmup if record.reason),
        )

    async def _closed(self, items: deque[Work], clients: int, end: float | None) -> None:
        async def client() -> None:
            while items:
                if end is not None and self.clock() >= end:
                    self.out_of_time = True
                    return
                await self._do(items.popleft(), self.clock())

        async with asyncio.TaskGroup() as group:
            for _ in range(clients):
                group.create_task(client())

    async def _open(self, items: Iterator[Work], pattern: OpenLoop, end: float | None) -> None:
        started = self.clock()
        room = asyncio.Semaphore(pattern.max_in_flight) if pattern.max_in_flight else None

        async def one(work: Work, intended: float) -> None:
            if room is None:
                await self._do(work, intended)
                return
            async with room:
                await self._do(work, intended)

        with Timer(real=self.clock is time.perf_counter) as timer:
            async with asyncio.TaskGroup() as group:
                for offset, work in zip(pattern.offsets(), items, strict=False):
                    intended = started + offset
                    if end is not None and intended >= end:
                        self.out_of_time = True
                        break
                    await timer.sleep(intended - self.clock())
                    group.create_task(one(work, intended))

    async def _do(self, work: Work, intended: float) -> None:
        """Makes a request, or the requests of a session one after another."""
        if not isinstance(work, Session):
            await self._send(work, intended, keep_text=False)
        else:
            await self._talk(work, intended)
        self.ended += 1
        if self.on_progress is not None:
            self.on_progress(self.ended)

    async def _talk(self, session: Session, intended: float) -> None:
        messages: list[Message] = []
        if session.system is not None:
            messages.append({"role": "system", "content": session.system})
        for number, turn in enumerate(session.turns):
            if number:
                intended = self.clock() + turn.pause
                await asyncio.sleep(turn.pause)
            messages.append({"role": "user", "content": turn.text})
            item = Item(Chat(tuple(messages)), turn.output_tokens)
            answer = await self._send(item, intended, keep_text=True)
            if answer is None:
                return
            messages.append({"role": "assistant", "content": answer.text})

    async def _send(
        self, work: Item | Tensors, intended: float, *, keep_text: bool
    ) -> Answer | None:
        """Makes one request and keeps its record, even if Ctrl-C ends it; None if it failed."""
        answer = Answer(self.clock, keep_text)
        number, sent = self.sent, self.clock()
        self.sent += 1
        failure, interrupted = None, True
        try:
            await self.target.send(work, answer)
            interrupted = False
        except HastenError as error:
            failure, interrupted = str(error), False
        finally:
            self.records.append(
                make_record(
                    f"request-{number}",
                    work,
                    answer,
                    times=(intended, sent, self.clock()),
                    failure=failure,
                    interrupted=interrupted,
                )
            )
        return answer if failure is None else None


def make_record(
    name: str,
    work: Item | Tensors,
    answer: Answer,
    *,
    times: tuple[float, float, float],
    failure: str | None = None,
    interrupted: bool = False,
) -> Record:
    """Judges a request that is over.

    Args:
        name: Of the request.
        work: What was asked for.
        answer: What came.
        times: When it was to be sent, was sent, and was over.
        failure: What went wrong, if anything.
        interrupted: It was not allowed to end.
    """
    status, reason = _outcome(work, answer, failure, interrupted=interrupted)
    intended, sent, end = times
    return Record(
        request_id=name,
        prompt_tokens=answer.prompt_tokens,
        intended_send=intended,
        sent=sent,
        end=end,
        events=tuple(answer.events),
        output_tokens=answer.counted_tokens,
        status=status,
        reason=reason,
        parts=answer.parts,
    )


def _outcome(
    work: Item | Tensors, answer: Answer, failure: str | None, *, interrupted: bool
) -> tuple[Status, str | None]:
    """Decides whether a request counts, and if not, why."""
    tokens = answer.counted_tokens
    if failure is not None:
        return "failed", failure
    if interrupted:
        return "truncated", f"interrupted after {tokens} tokens"
    if not answer.events or (isinstance(work, Item) and tokens == 0):
        return "failed", "no output"
    if isinstance(work, Item) and not answer.stopped and tokens < work.output_tokens:
        return "truncated", f"ended after {tokens} of {work.output_tokens} tokens"
    return "completed", None

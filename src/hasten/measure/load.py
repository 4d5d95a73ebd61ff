"""Loads that drive a target: a closed loop of one request at a time.

A target is whatever yields outputs for a prompt, here an engine in this process. The loop only
takes times; what they mean stands in `metrics`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from hasten.errors import HastenError
from hasten.measure.metrics import Event, Record, Status
from hasten.measure.workload import Item, Workload
from hasten.types import FinishReason, Output, SamplingParams

__all__ = ["LoadResult", "Target", "run_closed_loop"]

Clock = Callable[[], float]


class Target(Protocol):
    """What can be measured; `hasten.generation.Engine` is one."""

    def generate(self, prompt: Sequence[int], sampling: SamplingParams, /) -> Iterator[Output]:
        """Yield the outputs of one request; dropping the iterator cancels it."""
        ...


@dataclass(frozen=True, slots=True)
class LoadResult:
    """What a load measured.

    Attributes:
        records: Requests that count, in the order they were sent.
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


def run_closed_loop(
    target: Target,
    workload: Workload,
    *,
    ignore_eos: bool = True,
    duration: float | None = None,
    clock: Clock = time.perf_counter,
    on_progress: Callable[[int], None] | None = None,
    on_start: Callable[[], None] | None = None,
) -> LoadResult:
    """Send the requests of a workload one after another, each when the previous one has ended.

    A request that raises a `HastenError` is recorded as failed and the loop goes on. Ctrl-C ends
    the loop and keeps what was measured; the request it hit is recorded as truncated.

    Args:
        target: What is measured.
        workload: What to ask for.
        ignore_eos: Generate the whole length asked for, whatever the model says.
        duration: Seconds after which no further request is sent; None for no limit.
        clock: Monotonic clock in seconds.
        on_progress: Called between requests with the number done; its time is not measured.
        on_start: Called between the warm-up and the first request that counts.
    """
    warmup: list[Record] = []
    records: list[Record] = []
    interrupted = out_of_time = False
    try:
        for index, item in enumerate(workload.warmup):
            _send(target, f"warmup-{index}", item, ignore_eos, clock, warmup)
        if on_start is not None:
            on_start()
        started = clock()
        for index, item in enumerate(workload.items):
            out_of_time = duration is not None and clock() - started >= duration
            if out_of_time:
                break
            _send(target, f"request-{index}", item, ignore_eos, clock, records)
            if on_progress is not None:
                on_progress(index + 1)
    except KeyboardInterrupt:
        interrupted = True
    return LoadResult(
        records=tuple(records),
        window=records[-1].end - records[0].intended_send if records else 0.0,
        interrupted=interrupted,
        out_of_time=out_of_time,
        warmup_failures=tuple(record.reason or "" for record in warmup if record.reason),
    )


def _send(
    target: Target, request_id: str, item: Item, ignore_eos: bool, clock: Clock, log: list[Record]
) -> None:
    """Make one request and append its record to the log, even if Ctrl-C ends it."""
    sampling = SamplingParams(max_tokens=item.output_tokens, ignore_eos=ignore_eos)
    events: list[Event] = []
    finish: FinishReason | None = None
    failure: str | None = None
    interrupted = True
    intended = clock()
    try:
        for output in target.generate(item.prompt, sampling):
            events.append(Event(clock(), len(output.tokens), output.model_seconds))
            finish = output.finish_reason
        interrupted = False
    except HastenError as error:
        failure, interrupted = str(error), False
    finally:
        status, reason = _outcome(item, events, finish, failure, interrupted)
        log.append(
            Record(
                request_id=request_id,
                prompt_tokens=len(item.prompt),
                intended_send=intended,
                end=clock(),
                events=tuple(events),
                status=status,
                reason=reason,
            )
        )


def _outcome(
    item: Item,
    events: Sequence[Event],
    finish: FinishReason | None,
    failure: str | None,
    interrupted: bool,
) -> tuple[Status, str | None]:
    """Decide whether a request counts, and if not, why."""
    tokens = sum(event.tokens for event in events)
    if failure is not None:
        return "failed", failure
    if interrupted:
        return "truncated", f"interrupted after {tokens} tokens"
    if tokens == 0:
        return "failed", "no output"
    if finish != "stop" and tokens < item.output_tokens:
        return "truncated", f"ended after {tokens} of {item.output_tokens} tokens"
    return "completed", None

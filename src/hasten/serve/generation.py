"""A generation on its way: the engine's outputs become the events that protocols render."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field, replace
from typing import Protocol, Self

from hasten.errors import DeadlineError, GenerationError
from hasten.serve.formats import Part, Splitter
from hasten.serve.jobs import (
    Answer,
    CacheState,
    CallPiece,
    Ended,
    EndReason,
    Event,
    Job,
    Piece,
    Timing,
    Usage,
)
from hasten.serve.prompts import Prompt
from hasten.serve.registry import Served
from hasten.types import Output, TokenLogprobs

__all__ = ["Events", "Generation", "collect", "merge"]


class Events(Protocol):
    """An async iterator of events that can be left early."""

    @property
    def prompt_tokens(self) -> int:
        """Length of the prompt, or of all prompts together."""
        ...

    def __aiter__(self) -> Self: ...

    async def __anext__(self) -> Event: ...

    async def aclose(self) -> None:
        """Cancels what is not done."""
        ...


class Outputs(Protocol):
    """The engine's outputs for one request, or the cache's."""

    def __aiter__(self) -> AsyncIterator[list[Output]]: ...

    def cancel(self) -> None: ...


class Generation:
    """One job that an engine has accepted: an async iterator of events.

    Yields `Piece`s, an `Ended` for each output, and one `Usage` at last. Iterating raises
    `DeadlineError`, `GenerationError` or `EngineLostError` where the engine cannot go on.

    Args:
        job: What was asked.
        served: The model that runs it.
        prompt: What the engine reads.
        outputs: What the engine, or the cache, gives.
        cache: Where they come from.
        resources: Closed at the end, however it comes.
        gap: Told the seconds between consecutive events of the first output that carry tokens;
            None where no engine made them one after the other.
        finished: Told once at the end: the usage, why each output ended, and the error that ended
            the generation; the usage alone, without reasons, of one that was left early.

    Attributes:
        id: Of the job.
        model: The name that the model is served by.
        created: Unix time in seconds.
        prompt: Tokens of the prompt.
        prompt_text: Its text; empty where the client gave tokens.
        cache: "hit", "joined", "miss" or "off".
    """

    def __init__(
        self,
        job: Job,
        served: Served,
        prompt: Prompt,
        outputs: Outputs,
        cache: CacheState,
        resources: AsyncExitStack,
        gap: Callable[[float], None] | None,
        finished: Callable[[Usage, list[EndReason], Exception | None], None],
    ) -> None:
        self.id = job.id
        self.model = job.model
        self.created = int(time.time())
        self.prompt = prompt.tokens
        self.prompt_text = prompt.text
        self.cache: CacheState = cache
        self._served = served
        self._outputs = outputs
        self._resources = resources
        self._finished = finished
        self._tally = _Tally(job.received, served.load_seconds, len(prompt.tokens), gap)
        self._streams = [_Stream(index, prompt.splitter()) for index in range(job.sampling.n)]
        self._reasons: list[EndReason] = []
        self._closed = False
        self._events = self._run()

    @property
    def prompt_tokens(self) -> int:
        """Length of the prompt."""
        return len(self.prompt)

    def spell(self, token: int) -> bytes:
        """The bytes that a token adds to a text."""
        return self._served.spell(token)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Event:
        try:
            return await self._events.__anext__()
        except StopAsyncIteration:
            await self._close(None)
            raise
        except Exception as error:
            await self._close(error)
            raise

    async def aclose(self) -> None:
        """Cancels what is not done; may be called at any time."""
        await self._close(None)

    async def _close(self, error: Exception | None) -> None:
        if self._closed:
            return
        self._closed = True
        self._outputs.cancel()
        try:
            self._finished(self._usage(), self._reasons, error)
        finally:
            await self._resources.aclose()

    async def _run(self) -> AsyncIterator[Event]:
        async for outputs in self._outputs:
            for output in outputs:
                for event in self._translate(output):
                    yield event
        yield self._usage()

    def _translate(self, output: Output) -> Iterator[Event]:
        if output.finish_reason == "deadline":
            raise DeadlineError(
                "the request did not end in the time that it had",
                do="ask for fewer tokens, set a longer timeout, or try when the server is idle",
            )
        if output.finish_reason in ("error", "cancelled"):
            raise GenerationError(output.error or "the output was cancelled")
        stream = self._streams[output.index]
        piece = stream.read(output)
        self._tally.add(output, in_reasoning=stream.in_reasoning)
        yield piece
        if output.finish_reason is not None:
            reason: EndReason = "length" if output.finish_reason == "length" else "stop"
            if reason == "stop" and stream.calls > 0:
                reason = "tool_calls"
            self._reasons.append(reason)
            yield Ended(output.index, reason, output.stop)

    def _usage(self) -> Usage:
        return self._tally.usage()


class _Stream:
    """One output's text on its way to content, reasoning and calls."""

    def __init__(self, index: int, splitter: Splitter | None) -> None:
        self.index = index
        self.calls = 0
        self._splitter = splitter

    @property
    def in_reasoning(self) -> bool:
        return self._splitter is not None and self._splitter.in_reasoning

    def read(self, output: Output) -> Piece:
        if self._splitter is None:
            return _piece(output, output.text, "", ())
        parts = self._splitter.push(output.text) if output.text else []
        if output.finish_reason is not None:
            parts = [*parts, *self._splitter.finish()]
        if not parts:
            return _piece(output, "", "", ())
        calls = tuple(
            CallPiece(part.number, part.id, part.name, part.text)
            for part in parts
            if part.kind == "call"
        )
        self.calls = max([self.calls, *(call.number + 1 for call in calls)])
        return _piece(output, _joined(parts, "content"), _joined(parts, "reasoning"), calls)


def _joined(parts: Sequence[Part], kind: str) -> str:
    return "".join([part.text for part in parts if part.kind == kind])


def _piece(output: Output, content: str, reasoning: str, calls: tuple[CallPiece, ...]) -> Piece:
    return Piece(
        output.index,
        content,
        reasoning,
        calls,
        output.tokens,
        output.logprobs,
        output.prompt_logprobs,
    )


@dataclass
class _Tally:
    """What a generation has taken so far."""

    received: float
    load: float
    prompt_tokens: int
    gap: Callable[[float], None] | None
    cached_tokens: int = 0
    output_tokens: int = 0
    reasoning_tokens: int = 0
    prompt_seconds: float = 0.0
    decode_seconds: float = 0.0
    first: float | None = None
    last: float | None = None

    def add(self, output: Output, *, in_reasoning: bool) -> None:
        before, self.last = self.last, time.monotonic()
        if before is None:
            self.first = self.last
            self.prompt_seconds = output.model_seconds
            self.cached_tokens = output.cached_tokens
        elif output.index == 0:
            self.decode_seconds += output.model_seconds  # of n outputs, the steps are the same
            if self.gap is not None:
                self.gap(self.last - before)
        self.output_tokens += len(output.tokens)
        if in_reasoning:
            self.reasoning_tokens += len(output.tokens)

    def usage(self) -> Usage:
        ttft = None if self.first is None else self.first - self.received
        waited = 0.0 if ttft is None else ttft - self.load - self.prompt_seconds
        timing = Timing(
            total=(self.last or time.monotonic()) - self.received,
            load=self.load,
            queue=max(0.0, waited),
            prompt=self.prompt_seconds,
            decode=self.decode_seconds,
            ttft=ttft,
        )
        return Usage(
            self.prompt_tokens,
            self.cached_tokens,
            self.output_tokens,
            self.reasoning_tokens,
            timing,
        )


@dataclass
class _Growing:
    """One output while it is collected."""

    content: list[str] = field(default_factory=list)
    reasoning: list[str] = field(default_factory=list)
    calls: dict[int, CallPiece] = field(default_factory=dict)
    tokens: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprobs] = field(default_factory=list)
    prompt_logprobs: tuple[TokenLogprobs, ...] = ()
    end: Ended | None = None

    def add(self, piece: Piece) -> None:
        self.content.append(piece.content)
        self.reasoning.append(piece.reasoning)
        self.tokens += piece.tokens
        self.logprobs += piece.logprobs
        self.prompt_logprobs = self.prompt_logprobs or piece.prompt_logprobs
        for call in piece.calls:
            begun = self.calls.get(call.number)
            text = call.arguments if begun is None else begun.arguments + call.arguments
            self.calls[call.number] = replace(call, arguments=text)

    def answer(self, index: int) -> Answer:
        if self.end is None:
            raise GenerationError(f"output {index} never ended")
        return Answer(
            index,
            "".join(self.content),
            "".join(self.reasoning),
            tuple(self.calls[number] for number in sorted(self.calls)),
            tuple(self.tokens),
            tuple(self.logprobs),
            self.end.reason,
            self.end.stop,
            self.prompt_logprobs,
        )


async def collect(events: Events) -> tuple[list[Answer], Usage]:
    """Whole outputs, in order of their indices, for clients that do not stream."""
    growing: dict[int, _Growing] = {}
    usage: Usage | None = None
    try:
        async for event in events:
            match event:
                case Piece():
                    growing.setdefault(event.index, _Growing()).add(event)
                case Ended():
                    growing.setdefault(event.index, _Growing()).end = event
                case Usage():
                    usage = event
    finally:
        await events.aclose()
    if usage is None:
        raise GenerationError("the generation ended without its figures")
    return [growing[index].answer(index) for index in sorted(growing)], usage


def merge(generations: Sequence[Events], outputs: int) -> Events:
    """Several generations as one, for a request with several prompts.

    Args:
        generations: At least one.
        outputs: Of each (`n`): the indices of the k-th begin at k times this.
    """
    return generations[0] if len(generations) == 1 else _Merged(generations, outputs)


class _Merged:
    def __init__(self, generations: Sequence[Events], outputs: int) -> None:
        self.prompt_tokens = sum(one.prompt_tokens for one in generations)
        self._generations = generations
        self._queue: asyncio.Queue[Event | Exception] = asyncio.Queue(maxsize=64)
        self._tasks = [
            asyncio.create_task(self._pump(one, number * outputs))
            for number, one in enumerate(generations)
        ]
        self._usages: list[Usage] = []

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Event:
        while True:
            if len(self._usages) == len(self._tasks):
                await self.aclose()
                raise StopAsyncIteration
            event = await self._queue.get()
            if isinstance(event, Exception):
                await self.aclose()
                raise event
            if not isinstance(event, Usage):
                return event
            self._usages.append(event)
            if len(self._usages) == len(self._tasks):
                return _sum(self._usages)

    async def aclose(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for generation in self._generations:
            await generation.aclose()

    async def _pump(self, generation: Events, first: int) -> None:
        try:
            async for event in generation:
                if isinstance(event, Usage):
                    await self._queue.put(event)
                else:
                    await self._queue.put(replace(event, index=event.index + first))
        except Exception as error:  # told to whoever reads; the tasks have no other reader
            await self._queue.put(error)


def _sum(usages: Sequence[Usage]) -> Usage:
    """What several generations took together; the times are the longest."""
    times = [usage.timing for usage in usages]
    firsts = [time.ttft for time in times if time.ttft is not None]
    return Usage(
        sum(usage.prompt_tokens for usage in usages),
        sum(usage.cached_tokens for usage in usages),
        sum(usage.output_tokens for usage in usages),
        sum(usage.reasoning_tokens for usage in usages),
        Timing(
            total=max(time.total for time in times),
            load=max(time.load for time in times),
            queue=max(time.queue for time in times),
            prompt=max(time.prompt for time in times),
            decode=max(time.decode for time in times),
            ttft=min(firsts, default=None),
        ),
    )

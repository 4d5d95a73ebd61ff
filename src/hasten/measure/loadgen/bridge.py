"""The way from LoadGen's threads to a target and back.

LoadGen's log keeps the order of events within a thread only, and it crashes where a sample seems to
have ended before its first token. So its threads hand over to the event loop, and the loop alone
answers.
"""

from __future__ import annotations

import asyncio
import ctypes
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from threading import Thread, get_ident
from typing import Any

from hasten.errors import HastenError
from hasten.measure.load import make_record
from hasten.measure.loadgen.log import DETAIL
from hasten.measure.loadgen.settings import LoadGenSettings, for_loadgen
from hasten.measure.metrics import tpot
from hasten.measure.records import Answer, Record
from hasten.measure.targets.target import Target
from hasten.measure.workload import Item, Tensors

__all__ = ["Bridge"]


class _Answer(Answer):
    """Tells of its first token."""

    __slots__ = ("_on_first",)

    def __init__(self, on_first: Callable[[], None] | None, *, keep_text: bool) -> None:
        super().__init__(keep_text=keep_text)
        self._on_first = on_first

    def arrive(
        self,
        tokens: int = 0,
        *,
        text: str = "",
        model_seconds: float = 0.0,
        at: float | None = None,
    ) -> None:
        super().arrive(tokens, text=text, model_seconds=model_seconds, at=at)
        if tokens and self._on_first is not None:
            on_first, self._on_first = self._on_first, None
            on_first()


@dataclass(slots=True)
class Bridge:
    """Between LoadGen's threads and the target's event loop.

    Nothing may be raised in LoadGen's threads, for that ends the process, and each sample must be
    answered once, its first token before. So what goes wrong becomes the `problem`, from which on
    all is answered at once and nothing is sent.
    """

    lg: Any
    target: Target
    works: Sequence[Item | Tensors]
    settings: LoadGenSettings
    on_progress: Callable[[int], None] | None
    records: list[Record] = field(default_factory=list)
    outputs: dict[int, str] = field(default_factory=dict)
    problem: str | None = None
    interrupted: bool = False
    bug: BaseException | None = None
    _loop: asyncio.AbstractEventLoop = field(default_factory=asyncio.get_running_loop)
    _thread: int = field(default_factory=get_ident)
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)
    _open: set[int] = field(default_factory=set)
    _firsts: set[int] = field(default_factory=set)
    _held: list[int] = field(default_factory=list)
    _flushed: bool = False
    _room: asyncio.Semaphore | None = None

    async def run(self, rate: float, outstanding: int, folder: Path) -> None:
        """Lets LoadGen run to its end, in a thread of its own, since it blocks.

        Args:
            rate: Queries a second to send or to expect.
            outstanding: Unanswered queries with which a server run ends.
            folder: For its logs.
        """
        if self.settings.max_in_flight is not None:
            self._room = asyncio.Semaphore(self.settings.max_in_flight)
        (folder / DETAIL).unlink(missing_ok=True)
        ended = asyncio.Event()

        def drive() -> None:
            try:
                self._drive(for_loadgen(self.lg, self.settings, rate, outstanding), folder)
            except BaseException as error:  # raised below
                self.bug = error
            finally:
                with suppress(RuntimeError):
                    self._loop.call_soon_threadsafe(ended.set)

        Thread(target=drive, name="loadgen", daemon=True).start()
        try:
            await ended.wait()
        except asyncio.CancelledError:
            self.interrupted = True
            self._stop("interrupted by the user")
            await ended.wait()
        if self.bug is not None:
            raise self.bug

    @property
    def rate(self) -> float:
        """Samples a second that were answered."""
        if not self.records:
            return 0.0
        start = min(record.sent for record in self.records)
        return len(self.records) / max(1e-6, max(r.end for r in self.records) - start)

    def _drive(self, settings: Any, folder: Path) -> None:  # noqa: ANN401 - LoadGen has no types
        lg = self.lg
        sut = lg.ConstructSUT(self._issue, self._flush)
        count = len(self.works)
        qsl = lg.ConstructQSL(count, count, _nothing, _nothing)
        logs = lg.LogSettings()
        logs.log_output.outdir = str(folder)
        logs.log_output.copy_summary_to_stdout = False
        # A stray audit.config in the working directory would override the settings.
        no_audit = str(folder / "no-audit.config")
        lg.StartTestWithLogSettings(sut, qsl, settings, logs, no_audit)
        lg.DestroyQSL(qsl)
        lg.DestroySUT(sut)

    def _issue(self, queries: Sequence[Any]) -> None:
        """LoadGen's thread: samples to send."""
        now = time.perf_counter()
        samples = [(query.id, query.index) for query in queries]
        with suppress(RuntimeError):  # the loop was closed: a second Ctrl-C
            self._loop.call_soon_threadsafe(self._begin, samples, now)

    def _flush(self) -> None:
        """LoadGen's thread: no more will come."""
        with suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._release)

    def _begin(self, samples: Sequence[tuple[int, int]], now: float) -> None:
        if self.problem is not None:
            self._give_up([response for response, _ in samples])
            return
        for response, index in samples:
            self._open.add(response)
            task = self._loop.create_task(self._serve(response, index, now))
            self._tasks.add(task)
            task.add_done_callback(partial(self._over, response))

    def _over(self, response: int, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._stop(f"{type(error).__name__}: {error}")
            self.bug = error
        if response in self._open:  # such as where it was cancelled before it began
            self._give_up([response])

    async def _serve(self, response: int, index: int, intended: float) -> None:
        work = self.works[index]
        on_first = (lambda: self._first(response)) if self._tokens else None
        answer = _Answer(on_first, keep_text=self.settings.accuracy)
        failure, interrupted = None, False
        sent = time.perf_counter()
        try:
            if self._room is None:
                await self.target.send(work, answer)
            else:
                async with self._room:
                    sent = time.perf_counter()
                    await self.target.send(work, answer)
        except HastenError as error:
            failure = str(error)
        except asyncio.CancelledError:  # by `_stop`
            interrupted = True
        times = (intended, sent, time.perf_counter())
        record = make_record(
            f"sample-{index}", work, answer, times=times, failure=failure, interrupted=interrupted
        )
        self._end(response, index, answer, record)

    def _end(self, response: int, index: int, answer: Answer, record: Record) -> None:
        problem = None
        if record.status != "completed":
            problem = f"a request {record.status}: {record.reason}"
        elif self._tokens and tpot(record) is None:
            problem = "an answer came at once or has one token: LoadGen's TPOT would mean nothing"
        if problem is not None and self.problem is None:
            self._stop(problem)
        self.records.append(record)
        if self.problem is not None:
            self._give_up([response])
            return
        if self.settings.accuracy:
            self.outputs[index] = answer.text
        data = answer.text.encode(errors="replace") if self.settings.accuracy else b""
        self._complete(response, data, record.output_tokens)
        if self.on_progress is not None:
            self.on_progress(len(self.records))

    @property
    def _tokens(self) -> bool:
        return self.settings.tokens and not self.settings.accuracy

    def _first(self, response: int) -> None:
        """Tells of a first token once: a second time, or after the end, LoadGen crashes."""
        if get_ident() != self._thread:
            self._loop.call_soon_threadsafe(self._first, response)
        elif response not in self._firsts:
            self._firsts.add(response)
            self.lg.FirstTokenComplete([self.lg.QuerySampleResponse(response, 0, 0)])

    def _complete(self, response: int, data: bytes = b"", tokens: int = 2) -> None:
        buffer = ctypes.create_string_buffer(data, len(data)) if data else None  # LoadGen copies it
        view = (0, 0) if buffer is None else (ctypes.addressof(buffer), len(data))
        if self._tokens:
            self._first(response)
            answer = self.lg.QuerySampleResponse(response, *view, max(2, tokens))
        else:
            answer = self.lg.QuerySampleResponse(response, *view)
        self._open.discard(response)
        self.lg.QuerySamplesComplete([answer])

    def _stop(self, problem: str) -> None:
        """Sends nothing more and lets LoadGen end."""
        self.problem = self.problem or problem
        for task in self._tasks - {asyncio.current_task()}:
            task.cancel()

    def _give_up(self, responses: Sequence[int]) -> None:
        """Answers without an answer.

        A server run would go on to the end of its schedule, so its samples are held until LoadGen
        sees too many of them and ends.
        """
        if self.settings.scenario == "server" and not self._flushed:
            self._held += responses
            self._open.difference_update(responses)
            return
        for response in responses:
            self._complete(response)

    def _release(self) -> None:
        self._flushed = True
        held, self._held = self._held, []
        self._give_up(held)


def _nothing(samples: Sequence[int]) -> None:
    """All samples are in memory."""

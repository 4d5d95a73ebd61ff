"""One life of a worker process, seen from the server: its socket, and what is in flight there."""

from __future__ import annotations

import asyncio
import itertools
import signal
import socket
import subprocess
import sys
from asyncio import Future
from collections.abc import Callable, Iterator, Sequence
from time import monotonic
from typing import Self, cast

import numpy as np
from numpy.typing import NDArray

from hasten.errors import EngineLostError, UsageError
from hasten.serve.output_stream import OutputStream
from hasten.serve.quarantine import Content
from hasten.serve.wire import (
    Accepted,
    Cancel,
    Embed,
    Embedded,
    EngineInfo,
    EngineSpec,
    Fault,
    Frames,
    FromWorker,
    LoadAdapter,
    Open,
    Ping,
    Pong,
    Progress,
    Ready,
    Refused,
    Step,
    Submit,
    ToWorker,
    UnloadAdapter,
    WireError,
    decode_from_worker,
    encode,
    encode_request,
)
from hasten.types import EngineStatistics, Request

__all__ = ["Link", "texts_content"]

_PINGS = 4
"""In the time after which a worker counts as hung."""

_LAUNCH = 10 * _PINGS
"""Pings without an answer that a worker may have at its start."""

_FROM_OUTSIDE = (-signal.SIGKILL, -signal.SIGTERM)
"""Exit statuses of a process that others ended, or the kernel where memory ran out."""

_REAP_PAUSE = 0.002
"""Seconds between two looks at a process that is about to end."""


class Link(asyncio.Protocol):
    """A worker process and the connection to it; `open` makes it.

    Args:
        name: Of the model, for messages.
        process: Just started.
        opening: The first message to it.
        hang_seconds: A worker that answers nothing for so long is killed.
        stall_seconds: So is one that has work and ends no step for so long.

    Attributes:
        info: What the worker opened; None before.
        connected: Whether it can take anything.
        on_loss: Called at once when it cannot any more; what was in flight has failed then.
        on_done: Called with each request that ended well.
        ended: Done when the process is gone and reaped; tells why.
        crashed_with: What was in flight when it ended, if it ended by itself or hung; known from
            `ended` on.
        statistics: As of the last step.
        last_token: `time.monotonic` of the last token or vectors.
    """

    info: EngineInfo | None = None
    statistics: EngineStatistics | None = None
    last_token: float | None = None

    def __init__(
        self,
        name: str,
        process: subprocess.Popen[bytes],
        opening: bytes,
        hang_seconds: float,
        stall_seconds: float,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self.ended: Future[str] = self._loop.create_future()
        self._name = name
        self._process = process
        self._opening = opening
        self._hang_seconds = hang_seconds
        self._stall_seconds = stall_seconds
        self._transport: asyncio.Transport
        self._frames = Frames()
        self._numbers = itertools.count(1)
        self._opened: Future[EngineInfo] = self._loop.create_future()
        self._answers: dict[int, Future[Embedded | None]] = {}
        self._streams: dict[int, OutputStream] = {}
        self._texts: dict[int, Content] = {}
        self._cause: str | None = None
        self.connected = True
        self.on_loss: Callable[[], None] = lambda: None
        self.on_done: Callable[[Content], None] = lambda _: None
        self.crashed_with: tuple[Content, ...] = ()
        self._stopping = False
        self._heard = False
        self._pong = Pong(0, False)
        self._watcher: asyncio.Task[None]
        self._ending: asyncio.Task[None]

    @classmethod
    async def open(
        cls,
        name: str,
        spec: EngineSpec,
        *,
        hang_seconds: float,
        stall_seconds: float,
    ) -> Self:
        """Starts a worker and waits until it is ready.

        Args:
            name: Of the model, for messages.
            spec: What to run.
            hang_seconds: As of the class.
            stall_seconds: As of the class.

        Raises:
            HastenError: What the worker met, or EngineLostError where it could not tell.
        """
        try:
            opening = encode(Open(spec))
        except WireError as error:
            raise UsageError(f"the options cannot be used: {error}") from error
        loop = asyncio.get_running_loop()
        ours, theirs = socket.socketpair()
        with theirs:
            try:
                process = _start(theirs.fileno())
            except OSError as error:
                ours.close()
                raise EngineLostError(f"no process can be started: {error}") from error
        try:
            _, link = await loop.create_unix_connection(
                lambda: cls(name, process, opening, hang_seconds, stall_seconds), sock=ours
            )
        except BaseException:
            ours.close()
            process.kill()
            process.wait()
            raise
        try:
            link.info = await link._opened
        except BaseException:
            await link.stop(0)
            raise
        return link

    async def submit(self, request: Request) -> OutputStream:
        """Has a request generated, once the engine accepts it.

        Raises:
            HastenError: What the engine refused it with, or EngineLostError.
        """
        number = next(self._numbers)
        stream = self._streams[number] = OutputStream(request, lambda: self._cancel(number))
        try:
            await self._ask(number, lambda: Submit(number, encode_request(request)))
        except BaseException:
            self._streams.pop(number, None)
            raise
        return stream

    async def embed(
        self, texts: Sequence[str] | Sequence[Sequence[int]], dimensions: int | None, truncate: bool
    ) -> tuple[NDArray[np.float32], int]:
        """Vectors float32 [n, dimensions] of texts, and how many tokens they have.

        Raises:
            HastenError: What the embedder refused them with, or EngineLostError.
        """
        number = next(self._numbers)
        listed = [text if isinstance(text, str) else list(text) for text in texts]
        self._texts[number] = content = texts_content(texts)
        try:
            found = await self._ask(number, lambda: Embed(number, listed, dimensions, truncate))
        finally:
            self._texts.pop(number, None)
        if found is None:
            raise TypeError("texts were accepted rather than embedded")
        self.on_done(content)
        vectors = np.frombuffer(found.vectors, "<f4").reshape(-1, found.dimensions)
        return vectors, found.tokens

    def in_flight(self) -> Iterator[Content]:
        """What is generated from and embedded now."""
        yield from (stream.request for stream in self._streams.values())
        yield from self._texts.values()

    async def load_adapter(self, name: str, path: str) -> None:
        """Has the engine load a LoRA adapter; a HastenError as `Engine.load_adapter`."""
        number = next(self._numbers)
        await self._ask(number, lambda: LoadAdapter(number, name, path))

    async def unload_adapter(self, name: str) -> None:
        """Has the engine unload it; a HastenError as `Engine.unload_adapter`."""
        number = next(self._numbers)
        await self._ask(number, lambda: UnloadAdapter(number, name))

    async def stop(self, seconds: float) -> None:
        """Ends the process, by force where it takes longer than so many seconds to end itself."""
        self._stopping = True
        self._fail_all()
        if self.connected and seconds > 0:
            self._transport.write_eof()
            await asyncio.wait([self.ended], timeout=seconds)
        if not self.ended.done():
            self._process.kill()
            await asyncio.wait([self.ended])

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Called by the event loop."""
        self._transport = cast("asyncio.Transport", transport)
        self._transport.write(self._opening)
        self._watcher = self._loop.create_task(self._watch())

    def data_received(self, data: bytes) -> None:
        """Called by the event loop."""
        self._heard = True
        try:
            for frame in self._frames.feed(data):
                self._take(decode_from_worker(frame))
        except WireError as error:
            self._kill(f"it sent what is no message: {error}")
            self._transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        """Called by the event loop when the process ends, or has closed the socket."""
        self.connected = False
        self.crashed_with = () if self._stopping else tuple(self.in_flight())
        self._fail_all()
        self.on_loss()
        self._ending = self._loop.create_task(self._end())

    def _take(self, message: FromWorker) -> None:
        match message:
            case Step(outputs, statistics):
                self._step(outputs, statistics)
            case Accepted(number):
                self._answer(number, None)
            case Embedded(number):
                self.last_token = monotonic()
                self._answer(number, message)
            case Refused(number, fault):
                self._refuse(number, fault)
            case Pong():
                self._pong = message
            case Ready(info, statistics):
                self.statistics = statistics
                if not self._opened.done():
                    self._opened.set_result(info)
            case Fault():
                self._cause = message.what
                if not self._opened.done():
                    self._opened.set_exception(message.error())

    def _step(self, outputs: list[Progress], statistics: EngineStatistics) -> None:
        self.statistics = statistics
        for progress in outputs:
            if progress.tokens:
                self.last_token = monotonic()
            stream = self._streams.get(progress.number)
            if stream is not None and stream.add(progress.output(stream.request.id)):
                del self._streams[progress.number]
                self.on_done(stream.request)

    async def _ask(self, number: int, make: Callable[[], ToWorker]) -> Embedded | None:
        """Sends a message and waits for its answer; leaving early cancels what it asked for."""
        if not self.connected or self._stopping:
            raise self._loss()
        try:
            frame = encode(make())
        except WireError as error:
            raise UsageError(f"the request cannot be sent to the engine: {error}") from error
        answer: Future[Embedded | None] = self._loop.create_future()
        self._answers[number] = answer
        self._transport.write(frame)
        try:
            return await answer
        except asyncio.CancelledError:
            self._cancel(number)
            raise
        finally:
            self._answers.pop(number, None)

    def _answer(self, number: int, result: Embedded | None) -> None:
        answer = self._answers.pop(number, None)
        if answer is not None and not answer.done():
            answer.set_result(result)

    def _refuse(self, number: int, fault: Fault) -> None:
        answer = self._answers.pop(number, None)
        stream = self._streams.pop(number, None)
        if answer is not None and not answer.done():
            answer.set_exception(fault.error())
        elif stream is not None:
            stream.fail(fault.error())

    def _cancel(self, number: int) -> None:
        self._streams.pop(number, None)
        if self.connected and not self._stopping:
            self._transport.write(encode(Cancel(number)))

    def _loss(self) -> EngineLostError:
        if self._stopping:
            return EngineLostError(f"the model {self._name!r} was stopped")
        return EngineLostError(
            f"the process that ran {self._name!r} ended while the request was in it",
            do="send it again",
        )

    def _fail_all(self) -> None:
        for stream in self._streams.values():
            stream.fail(self._loss())
        self._streams.clear()
        for answer in self._answers.values():
            if not answer.done():
                answer.set_exception(self._loss())
        self._answers.clear()

    async def _watch(self) -> None:
        """Kills a worker that hangs.

        Silence is counted in pings without an answer rather than taken from a clock, for it may be
        this process that stood still. Before its first answer a worker imports what it needs, and
        gets longer.
        """
        silent = stalled = 0
        patience = _LAUNCH
        pause = self._hang_seconds / _PINGS
        while self.connected:
            before, self._heard = self._pong, False
            self._transport.write(encode(Ping()))
            await asyncio.sleep(pause)
            if self._heard:
                silent, patience = 0, _PINGS
            else:
                silent += 1
            still = self._pong.working and self._pong.steps == before.steps
            stalled = stalled + 1 if still else 0
            if silent >= patience:
                self._kill(f"it answered nothing for {silent * pause:g} s")
            elif stalled * pause >= self._stall_seconds:
                self._kill(f"it had work and ended no step for {self._stall_seconds:g} s")

    def _kill(self, cause: str) -> None:
        self._cause = cause
        self._process.kill()

    async def _end(self) -> None:
        """Makes sure that the process is gone, and leaves no zombie of it."""
        self._watcher.cancel()
        self._process.kill()  # most often it has ended; then this does nothing
        while (status := self._process.poll()) is None:
            await asyncio.sleep(_REAP_PAUSE)
        cause = self._cause or _describe(status)
        if self._cause is None and status in _FROM_OUTSIDE:
            self.crashed_with = ()
        if not self._opened.done():
            self._opened.set_exception(
                EngineLostError(f"the process that was to run {self._name!r} ended: {cause}")
            )
            self._opened.exception()  # nobody waits for it where `open` was left
        self.ended.set_result(cause)


def texts_content(texts: Sequence[str] | Sequence[Sequence[int]]) -> Content:
    """Texts to embed as what they are known by."""
    return tuple(text if isinstance(text, str) else tuple(text) for text in texts)


def _describe(status: int) -> str:
    """What an exit status says."""
    if status >= 0:
        return f"it exited with status {status}"
    cause = f"it was ended by {signal.Signals(-status).name}"
    hint = ", as the kernel does where memory runs out" if -status == signal.SIGKILL else ""
    return cause + hint


def _start(descriptor: int) -> subprocess.Popen[bytes]:
    """A worker on a socket; it inherits nothing else but the standard streams.

    It has a process group of its own, out of reach of the terminal's Ctrl-C, but no session: Linux
    shares out the time of a core among sessions first (sched_autogroup), and the server would have
    to wait for the next tick, 4 ms, before it could pass a token on. Nothing is imported from the
    working directory (-P).
    """
    return subprocess.Popen(  # noqa: S603
        [sys.executable, "-P", "-m", "hasten.serve.worker", str(descriptor)],
        stdin=subprocess.DEVNULL,
        stdout=2,
        pass_fds=[descriptor],
        process_group=0,
    )

"""An engine in a process of its own, which is started again when it ends."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from time import monotonic
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from hasten.errors import DeadlineError, EngineLostError, HastenError, OverloadError
from hasten.serve.link import Link, texts_content
from hasten.serve.output_stream import OutputStream
from hasten.serve.quarantine import Content, Quarantine
from hasten.serve.wire import EngineInfo, EngineSpec
from hasten.types import EngineStatistics, Request, SamplingParams

__all__ = [
    "EngineInfo",
    "EngineProcess",
    "EngineSpec",
    "EngineState",
    "OutputStream",
    "Supervision",
]

EngineState = Literal["starting", "ready", "restarting", "failed", "stopped"]

_LOG = logging.getLogger("hasten.serve.engine")
_FIRST_PAUSE = 0.5
"""Seconds before the second try of a row to start it; doubles with each."""

_SELF_TEST = "self-test"
_FOREMOST = -(1 << 31)
"""Priority of the self-test, before all requests."""


@dataclass(frozen=True, slots=True)
class Supervision:
    """How an engine is watched over; times in seconds.

    Attributes:
        hang: A worker that answers no ping for so long is killed.
        stall: So is one that has work and ends no step for so long; a step of a large model with
            long prompts may take minutes.
        wait: Requests wait so long for an engine that starts.
        waiting: So many of them; more are refused.
        steady: A worker that ran for so long, or gave any output, started well. After one that did
            not, the next is started at once, and later ones with growing pauses.
        longest_pause: Between two starts.
        tries: So many in a row that did not start well, and the engine counts as failed.
        rest: After which a failed one is tried again; `EngineProcess.start` does so at once.
        farewell: What a worker may take to end when asked to.
    """

    hang: float = 60.0
    stall: float = 300.0
    wait: float = 10.0
    waiting: int = 256
    steady: float = 10.0
    longest_pause: float = 30.0
    tries: int = 5
    rest: float = 60.0
    farewell: float = 5.0


class EngineProcess:
    """Runs an engine or embedder in a worker process, for one event loop.

    Args:
        spec: What to run.
        name: Of the model, for messages and logs.
        supervision: How it is watched over.

    Attributes:
        spec: What it runs; adapters that were loaded since are part of it.
        name: As given.
        state: Whether it takes requests: "ready" does, "starting" and "restarting" will.
        failure: Why the last try to start it failed, or why it ended; None while all is well.
        restarts: How often it was started again after it had ended by itself.
    """

    def __init__(
        self, spec: EngineSpec, *, name: str, supervision: Supervision | None = None
    ) -> None:
        self.spec = spec
        self.name = name
        self.state: EngineState = "stopped"
        self.failure: HastenError | None = None
        self.restarts = 0
        self._supervision = supervision or Supervision()
        self._link: Link | None = None
        self._task: asyncio.Task[None] | None = None
        self._changed = asyncio.Event()
        self._wanted = asyncio.Event()
        self._waiting = 0
        self._last_token: float | None = None
        self._quarantine = Quarantine()

    @property
    def info(self) -> EngineInfo | None:
        """What the worker opened; None while there is none."""
        return None if self._link is None else self._link.info

    @property
    def statistics(self) -> EngineStatistics | None:
        """As of the last step; counts begin anew with each worker. None for embedders."""
        return None if self._link is None else self._link.statistics

    @property
    def last_token(self) -> float | None:
        """`time.monotonic` when the last token or vectors came."""
        latest = None if self._link is None else self._link.last_token
        return self._last_token if latest is None else latest

    async def start(self) -> None:
        """Starts it and waits until it is ready; one that has failed is tried again.

        Raises:
            HastenError: What the worker met, or EngineLostError where it could not tell.
        """
        if self._task is None or self._task.done():
            self._set("starting")
            self._task = asyncio.create_task(self._supervise(), name=f"engine {self.name}")
        elif self.state == "failed":
            self._set("starting")
            self._wanted.set()
        await self._settled()
        if self.state == "failed" and self.failure is not None:
            raise self.failure
        if self.state != "ready":
            raise self._refusal()

    async def stop(self) -> None:
        """Ends it; requests in flight get an EngineLostError. It can be started again."""
        task, self._task = self._task, None
        self._set("stopped")
        if task is not None:
            task.cancel()
            await asyncio.wait([task])

    async def wait_ready(self, timeout: float | None = None) -> None:
        """Waits until it takes requests.

        Args:
            timeout: Seconds; None waits as long as it takes.

        Raises:
            EngineLostError: It does not in that time, or it has failed or was stopped.
        """
        try:
            async with asyncio.timeout(timeout):
                await self._settled()
        except TimeoutError:
            raise EngineLostError(
                f"{self.name!r} is starting, and not ready after {timeout:.3g} s",
                do="try again in a while",
            ) from None
        if self.state != "ready":
            raise self._refusal()

    async def submit(self, request: Request) -> OutputStream:
        """Queues a request; waits for a while where the engine starts.

        Raises:
            UsageError, CapacityError: The engine refused it, as `Engine.submit` does.
            EngineLostError: The engine is gone, and not back in time.
            OverloadError: Too many wait for it already.
            DeadlineError: The request's deadline passed meanwhile.
            GenerationError: The engine ended each time that this was in it.
        """
        link = await self._reach(request.deadline)
        if not _is_test(request):
            self._quarantine.check(request, link.in_flight())
        return await link.submit(request)

    async def embed(
        self,
        texts: Sequence[str] | Sequence[Sequence[int]],
        *,
        dimensions: int | None = None,
        truncate: bool = False,
    ) -> tuple[NDArray[np.float32], int]:
        """Turns texts into vectors; waits for a while where the embedder starts.

        Leaving early (cancelling the task) leaves out what has not been computed.

        Args:
            texts: Texts, or texts as tokens.
            dimensions: Keep the first so many; None keeps all.
            truncate: Cut texts that are too long, rather than refuse them.

        Returns:
            Vectors float32 [n, dimensions], and the tokens of all texts.

        Raises:
            HastenError: As `submit`, and as `Embedder.embed`.
        """
        link = await self._reach(None)
        self._quarantine.check(texts_content(texts), link.in_flight())
        return await link.embed(texts, dimensions, truncate)

    async def load_adapter(self, name: str, path: str) -> None:
        """Loads a LoRA adapter, into workers that are started later, too.

        Raises:
            HastenError: As `submit`, and as `Engine.load_adapter`.
        """
        link = await self._reach(None)
        await link.load_adapter(name, path)
        self.spec = replace(self.spec, adapters={**self.spec.adapters, name: path})

    async def unload_adapter(self, name: str) -> None:
        """Unloads a LoRA adapter.

        Raises:
            HastenError: As `submit`, and as `Engine.unload_adapter`.
        """
        link = await self._reach(None)
        await link.unload_adapter(name)
        kept = {key: path for key, path in self.spec.adapters.items() if key != name}
        self.spec = replace(self.spec, adapters=kept)

    async def self_test(self, timeout: float) -> bool:
        """Whether a token, or a vector, comes out of it within so many seconds."""
        try:
            async with asyncio.timeout(timeout):
                if self.spec.kind == "embed":
                    await self.embed([[0]])
                    return True
                sampling = SamplingParams(max_tokens=1, ignore_eos=True)
                request = Request(_SELF_TEST, (0,), sampling, priority=_FOREMOST)
                stream = await self.submit(request)
                try:
                    return any([output.tokens async for step in stream for output in step])
                finally:
                    stream.cancel()
        except (HastenError, TimeoutError):
            return False

    async def _reach(self, deadline: float | None) -> Link:
        """The worker, once there is one."""
        if self.state != "ready":
            await self._wait(deadline)
        if self._link is None:
            raise self._refusal()
        return self._link

    async def _wait(self, deadline: float | None) -> None:
        limit = self._supervision.waiting
        if self._waiting >= limit:
            raise OverloadError(
                f"{self._waiting} requests wait for {self.name!r} to start",
                retry_after=1.0,
                allowed=f"up to {limit}",
            )
        patience = self._supervision.wait
        left = patience if deadline is None else min(patience, max(0.0, deadline - monotonic()))
        self._waiting += 1
        try:
            await self.wait_ready(left)
        except EngineLostError:
            if deadline is not None and monotonic() >= deadline:
                raise DeadlineError(
                    f"the request's time ended while {self.name!r} started"
                ) from None
            raise
        finally:
            self._waiting -= 1

    async def _settled(self) -> None:
        while self.state in ("starting", "restarting"):
            await self._changed.wait()

    def _set(self, state: EngineState) -> None:
        self.state = state
        self._changed.set()
        self._changed = asyncio.Event()

    def _refusal(self) -> EngineLostError:
        if self.state == "failed":
            return EngineLostError(f"{self.name!r} cannot be started: {self.failure}")
        return EngineLostError(f"{self.name!r} is {self.state}", do="load it")

    async def _supervise(self) -> None:
        """Starts workers, one after another; ends where the very first cannot be started."""
        supervision = self._supervision
        fruitless = 0  # workers in a row that did not come about, or soon ended without output
        ready = False
        while True:
            link = await self._open()
            began = monotonic()
            if link is not None:
                ready = True
                await self._serve(link)
                self.restarts += 1
            elif not ready:
                self._set("failed")
                return
            steady = link is not None and monotonic() - began >= supervision.steady
            yielded = link is not None and link.last_token is not None
            fruitless = 0 if steady or yielded else fruitless + 1
            if fruitless >= supervision.tries:
                await self._rest()
                fruitless -= 1
            elif fruitless > 1:
                pause = _FIRST_PAUSE * 2.0 ** min(fruitless - 2, 16)
                await asyncio.sleep(min(pause, supervision.longest_pause))

    async def _open(self) -> Link | None:
        """A worker that is ready; None where there is a failure instead."""
        try:
            return await Link.open(
                self.name,
                self.spec,
                hang_seconds=self._supervision.hang,
                stall_seconds=self._supervision.stall,
            )
        except HastenError as error:
            _LOG.error("the engine of %r cannot be started: %s", self.name, error)
            self.failure = error
            return None

    async def _serve(self, link: Link) -> None:
        """Takes requests until the worker ends."""
        if link.connected:
            self._link = link
            self.failure = None
            link.on_loss = lambda: self._lose(link)
            link.on_done = self._quarantine.cleared
            self._set("ready")
            _LOG.info("the engine of %r is ready: %s", self.name, link.info)
        try:
            cause = await asyncio.shield(link.ended)
            _LOG.error("the engine of %r ended: %s", self.name, cause)
            self.failure = EngineLostError(f"the process that ran {self.name!r} ended: {cause}")
            blamed = [content for content in link.crashed_with if not _is_test(content)]
            if blamed:
                self._quarantine.crashed(blamed)
        finally:
            if self._link is link:
                self._forget()
            await link.stop(self._supervision.farewell)

    async def _rest(self) -> None:
        """Waits until another try is due."""
        self._set("failed")
        self._wanted.clear()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._supervision.rest):
                await self._wanted.wait()
        self._set("restarting")

    def _lose(self, link: Link) -> None:
        """Nothing more is sent there, from the moment that the worker ends."""
        if self._link is link:
            self._forget()
            self._set("restarting")

    def _forget(self) -> None:
        self._last_token = self.last_token
        self._link = None


def _is_test(content: Content) -> bool:
    """Whether it is the self-test, which is in flight at many a crash and causes none."""
    return isinstance(content, Request) and content.id == _SELF_TEST

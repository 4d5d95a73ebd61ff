"""Engines that come when they are asked for and go when nobody needs them.

A model that several names stand for runs once. What is used stays; what is idle goes when its time
is up, or when another model needs its memory, the one that was used longest ago first. What is to
go while it is used ends its requests first; meanwhile it takes no new ones, and those wait for the
model to be loaded again.
"""

from __future__ import annotations

import asyncio
import logging
import time
from asyncio import Event, Task, TimerHandle
from collections.abc import Callable, Coroutine, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from time import monotonic
from typing import Any

import msgspec

from hasten.errors import EngineLostError, HastenError, OverloadError
from hasten.generation.embedding import embedder_options
from hasten.generation.options import engine_options
from hasten.models.loading import load_model
from hasten.models.model import Model
from hasten.serve.engine_process import EngineProcess, EngineSpec
from hasten.serve.registry.info import State
from hasten.serve.registry.memory import (
    PROCESS_BYTES,
    MemoryBudget,
    Need,
    adapter_options,
    estimate,
)
from hasten.types import EngineOptions

__all__ = ["EnginePool", "Loaded", "Place", "StartEngine"]

StartEngine = Callable[[str, EngineSpec], EngineProcess]

_RETRY_SECONDS = 5.0
_FOR_EVER = 1e9
"""Seconds from which on a time is none."""
_LOG = logging.getLogger(__name__)


@dataclass(eq=False)
class Loaded:
    """An engine that runs, and the model in it.

    Attributes:
        place: Where it belongs.
        engine: The process.
        model: Its configuration, tokenizer and chat template; its weights are not read here.
        memory: Bytes that the process takes.
        users: How many use it.
        idle: Set while nobody does.
        last_used: In seconds of `time.monotonic`.
        expires: When it goes, in Unix seconds; None if nothing is planned.
        timer: Calls when that is.
        leaving: Ends when it is gone; None as long as it is to stay.
        spelling: What `spell` tells, by token.
        digest: Of the model's files, once somebody asked for it.
    """

    place: Place
    engine: EngineProcess
    model: Model
    memory: int
    users: int = 0
    idle: Event = field(default_factory=Event)
    last_used: float = field(default_factory=monotonic)
    expires: float | None = None
    timer: TimerHandle | None = None
    leaving: Task[None] | None = None
    spelling: list[bytes] | None = None
    digest: str | None = None

    def spell(self, token: int) -> bytes:
        """The bytes that a token adds to a text; the name of a special one.

        Raises:
            UnsupportedModelError: The tokenizer has a decoder that cannot be followed so.
        """
        if self.spelling is None:
            self.spelling = self.model.tokenizer.token_bytes(self.model.config.vocab_size)
        return self.spelling[token]


@dataclass(eq=False)
class Place:
    """Where the engine of a spec is, or will be.

    Attributes:
        name: What it is called, in logs and errors.
        spec: What to run.
        loaded: What is there.
        loading: Brings it.
        waiting: How many wait for it.
    """

    name: str
    spec: EngineSpec
    loaded: Loaded | None = None
    loading: Task[None] | None = None
    waiting: int = 0


class EnginePool:
    """Loads, shares and unloads engines; used from one event loop.

    Args:
        budget: Bytes for all engines together.
        keep_alive: Seconds for which an idle engine stays; None for ever.
        start_engine: Makes the process of a spec, which is not started yet.
    """

    def __init__(self, budget: int, keep_alive: float | None, start_engine: StartEngine) -> None:
        self._budget = MemoryBudget(budget)
        self._keep_alive = keep_alive
        self._start_engine = start_engine
        self._places: dict[bytes, Place] = {}
        self._coming: dict[bytes, Need] = {}
        self._live: set[Loaded] = set()
        self._making_room = asyncio.Lock()
        self._tasks: set[Task[Any]] = set()
        self._closed = False

    async def expect(self, specs: Sequence[EngineSpec]) -> None:
        """Notes what is loaded next, so that all of it finds room.

        Raises:
            HastenError: As `acquire`.
        """
        for spec in specs:
            _, _, need = await asyncio.to_thread(_read, spec, self._budget.total)
            self._coming[_key(spec)] = need

    async def acquire(self, name: str, spec: EngineSpec) -> Loaded:
        """The engine of a spec, loaded if need be; `release` it in the end.

        Args:
            name: What the model is called, in logs and errors.
            spec: What to run.

        Raises:
            CapacityError: It would not fit into the memory even if it were alone.
            OverloadError: It does not fit beside those that are in use.
            EngineLostError: The pool is closed.
            HastenError: It could not be loaded.
        """
        place = self._places.setdefault(_key(spec), Place(name, spec))
        place.waiting += 1
        try:
            while True:
                if self._closed:
                    raise _stopping(name)
                loaded = place.loaded
                if loaded is None:
                    if place.loading is None:
                        place.loading = self._spawn(self._load(place))
                    await _outcome(place.loading, name)
                elif loaded.leaving is not None:
                    await asyncio.wait({loaded.leaving})
                else:
                    return self._take(loaded)
        finally:
            place.waiting -= 1
            self._settle(place)

    def release(self, loaded: Loaded, keep_alive: float | None = None) -> None:
        """Ends a use of an engine.

        Args:
            loaded: What `acquire` returned.
            keep_alive: Seconds for which it stays if this was the last use; negative for ever, None
                takes the pool's own.
        """
        loaded.users -= 1
        loaded.last_used = monotonic()
        if loaded.users == 0:
            loaded.idle.set()
            if loaded.leaving is None:
                self._plan(loaded, self._keep_alive if keep_alive is None else keep_alive)

    async def unload(self, spec: EngineSpec) -> bool:
        """Ends the engine of a spec once its requests are done.

        Returns:
            Whether it is gone; it goes later where requests are in flight.
        """
        place = self._places.get(_key(spec))
        if place is None:
            return True
        if place.loaded is None:
            # Those who wait for it come first.
            self._spawn(self.drain(spec))
            return False
        leaving = self._retire(place.loaded)
        if place.loaded.users:
            return False
        await asyncio.wait({leaving})
        return True

    async def drain(self, spec: EngineSpec) -> None:
        """Ends the engine of a spec once its requests are done, and waits for that."""
        place = self._places.get(_key(spec))
        if place is not None and place.loading is not None:
            await asyncio.wait({place.loading})
        if place is not None and place.loaded is not None:
            await asyncio.wait({self._retire(place.loaded)})

    def state(self, spec: EngineSpec) -> State:
        """How it stands with the engine of a spec."""
        place = self._places.get(_key(spec))
        if place is None or place.loaded is None:
            return "loading" if place is not None and place.loading is not None else "known"
        if place.loaded.leaving is not None:
            return "unloading"
        state = place.loaded.engine.state
        return state if state in ("ready", "failed") else "restarting"

    def loaded(self, spec: EngineSpec) -> Loaded | None:
        """The engine of a spec, if there is one."""
        place = self._places.get(_key(spec))
        return None if place is None else place.loaded

    def engines(self) -> Sequence[Loaded]:
        """All that are loaded."""
        return tuple(self._live)

    async def close(self) -> None:
        """Ends all engines, used or not."""
        self._closed = True
        loading = [place.loading for place in self._places.values() if place.loading is not None]
        for task in loading:
            task.cancel()
        await asyncio.gather(*loading, return_exceptions=True)
        for loaded in tuple(self._live):
            self._retire(loaded)
            loaded.idle.set()
        # Whatever ends an engine is left to finish: only then its process is gone.
        while self._tasks:
            await asyncio.wait(self._tasks)

    def _take(self, loaded: Loaded) -> Loaded:
        loaded.users += 1
        loaded.idle.clear()
        _unplan(loaded)
        return loaded

    def _plan(self, loaded: Loaded, keep_alive: float | None) -> None:
        """Sets when an idle engine goes."""
        _unplan(loaded)
        if keep_alive is None or not 0 <= keep_alive < _FOR_EVER:
            return
        if keep_alive == 0:
            self._expire(loaded)
            return
        loaded.expires = time.time() + keep_alive
        loaded.timer = asyncio.get_running_loop().call_later(keep_alive, self._expire, loaded)

    def _expire(self, loaded: Loaded) -> None:
        if not loaded.users and not loaded.place.waiting and not self._closed:
            self._retire(loaded)

    def _settle(self, place: Place) -> None:
        """Looks after what nobody waits for any more."""
        loaded = place.loaded
        if place.waiting:
            return
        if loaded is None and place.loading is None:
            self._places.pop(_key(place.spec), None)
        elif loaded is not None and not loaded.users and loaded.leaving is None:
            # Those who waited for it left before they could use it.
            self._plan(loaded, self._keep_alive)

    def _retire(self, loaded: Loaded) -> Task[None]:
        if loaded.leaving is None:
            _unplan(loaded)
            loaded.leaving = self._spawn(self._end(loaded))
        return loaded.leaving

    async def _end(self, loaded: Loaded) -> None:
        await loaded.idle.wait()
        try:
            await loaded.engine.stop()
        finally:
            self._budget.release(loaded.place)
            self._live.discard(loaded)
            loaded.place.loaded = None
            self._settle(loaded.place)
        _LOG.info("unloaded %s", loaded.place.name)

    async def _load(self, place: Place) -> None:
        started = monotonic()
        try:
            place.loaded = await self._open(place)
            self._live.add(place.loaded)
        finally:
            place.loading = None
            if place.loaded is None:
                self._budget.release(place)
            self._settle(place)
        _LOG.info("loaded %s in %.2f s", place.name, monotonic() - started)

    async def _open(self, place: Place) -> Loaded:
        self._coming.pop(_key(place.spec), None)
        model, options, need = await asyncio.to_thread(_read, place.spec, self._budget.total)
        async with self._making_room:
            cache = await self._make_room(place.name, need)
            self._budget.hold(place, need.fixed + cache)
        if place.spec.kind == "generate":
            options = replace(options, kv_memory=cache)
        engine = self._start_engine(place.name, replace(place.spec, options=options))
        try:
            warming = asyncio.to_thread(_warm, model, place.spec)
            _, spelling = await asyncio.gather(engine.start(), warming)
        except BaseException:
            await engine.stop()
            raise
        if engine.info is not None:
            self._budget.hold(place, PROCESS_BYTES + sum(engine.info.memory.values()))
        loaded = Loaded(place, engine, model, self._budget.held(place), spelling=spelling)
        loaded.idle.set()
        return loaded

    async def _make_room(self, name: str, need: Need) -> int:
        """Unloads idle engines until there is room; returns bytes for the KV cache."""
        while (cache := self._budget.share(need, tuple(self._coming.values()))) is None:
            idle = [
                one
                for one in self._live
                if not one.users and (one.leaving is not None or not one.place.waiting)
            ]
            room = self._budget.free + sum(one.memory for one in idle)
            if room < need.fixed + need.least:
                missing = need.fixed + need.least
                raise OverloadError(
                    f"{name} needs {missing / 2**30:.2f} GiB, and requests to other models leave "
                    f"{max(0, room) / 2**30:.2f} GiB of {self._budget.total / 2**30:.2f} GiB",
                    retry_after=_RETRY_SECONDS,
                    do="try again later, or give the server more memory",
                )
            # What leaves already comes first.
            first = min(idle, key=lambda one: (one.leaving is None, one.last_used))
            await asyncio.wait({self._retire(first)})
        return cache

    def _spawn(self, work: Coroutine[Any, Any, None]) -> Task[None]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._finished)
        return task

    def _finished(self, task: Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            expected = isinstance(error, HastenError)
            _LOG.error("a model: %s", error, exc_info=None if expected else error)


async def _outcome(task: Task[None], name: str) -> None:
    """Waits for a task of others; raises what it raised."""
    await asyncio.wait({task})
    if task.cancelled():
        raise _stopping(name)
    task.result()


def _stopping(name: str) -> EngineLostError:
    return EngineLostError(f"{name}: the server is stopping")


def _unplan(loaded: Loaded) -> None:
    if loaded.timer is not None:
        loaded.timer.cancel()
    loaded.timer = loaded.expires = None


def _key(spec: EngineSpec) -> bytes:
    return msgspec.json.encode(spec, order="deterministic")


def _read(spec: EngineSpec, budget: int) -> tuple[Model, EngineOptions, Need]:
    """The model of a spec, how to run it, and what that takes."""
    model = load_model(spec.model)
    options = spec.options
    if options is None:
        options = embedder_options(model) if spec.kind == "embed" else engine_options(model)
    if spec.adapters:
        options = adapter_options(model, options, spec.adapters)
    return model, options, estimate(model, spec.kind, options, budget)


def _warm(model: Model, spec: EngineSpec) -> list[bytes] | None:
    """Makes what requests need of a model; an error of it is told to those that do need it."""
    if spec.kind == "embed":
        return None
    with suppress(HastenError):
        _ = model.tokenizer, model.chat_template
        return model.tokenizer.token_bytes(model.config.vocab_size)
    return None

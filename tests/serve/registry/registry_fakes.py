"""Engines that only say what they were asked to do."""

import asyncio
import contextlib
from dataclasses import dataclass, field

import pytest

from hasten.errors import CapacityError
from hasten.serve.engine_process import EngineInfo, EngineSpec
from hasten.types import EngineOptions

OPTIONS = EngineOptions(threads=1, max_context=32, max_sequences=2, chunk=32)


@dataclass(eq=False)
class FakeEngine:
    """Takes the memory that its options grant; starts and stops when it is let."""

    name: str
    spec: EngineSpec
    floor: "Floor"
    state: str = "stopped"
    info: EngineInfo | None = None

    async def start(self):
        self.state = "starting"
        self.floor.events.append(("start", self.name))
        await self.floor.starting.wait()
        if self.floor.failing:
            self.state = "failed"
            raise CapacityError(f"{self.name} met something")
        memory = {"kv_cache": self.spec.options.kv_memory or 0, **self.floor.memory}
        self.info = EngineInfo(1, 64, 48, None, 4, memory, "scalar", 1, "files", 0.1)
        self.state = "ready"
        self.floor.running.append(self)

    async def stop(self):
        self.state = "stopped"
        self.floor.events.append(("stop", self.name))
        await self.floor.stopping.wait()
        if self in self.floor.running:
            self.floor.running.remove(self)


@dataclass
class Floor:
    """Where fake engines run."""

    events: list = field(default_factory=list)
    running: list = field(default_factory=list)
    memory: dict = field(default_factory=dict)
    failing: bool = False
    starting: asyncio.Event = field(default_factory=asyncio.Event)
    stopping: asyncio.Event = field(default_factory=asyncio.Event)

    def __post_init__(self):
        self.starting.set()
        self.stopping.set()

    def engine(self, name, spec):
        return FakeEngine(name, spec, self)

    def count(self, what):
        return sum(event == what for event, _ in self.events)


async def until(condition):
    """Waits for something that is about to happen."""
    for _ in range(2000):
        if condition():
            return
        await asyncio.sleep(0.005)
    pytest.fail("it did not happen")


@contextlib.asynccontextmanager
async def serving(registry):
    """Closes a registry in the end."""
    try:
        yield registry
    finally:
        await registry.close()

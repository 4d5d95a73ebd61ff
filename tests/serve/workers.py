"""Engines in worker processes, on a model whose answers can be made to take a while."""

import asyncio
import json
import shutil
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from time import monotonic

from hasten.errors import HastenError
from hasten.serve.engine_process import EngineProcess, EngineSpec, Supervision
from hasten.types import EngineOptions, Request, SamplingParams

OPTIONS = EngineOptions(threads=1, max_context=100, max_sequences=4)
PROMPT = tuple(range(3, 20))
LONG = SamplingParams(max_tokens=1 << 20, ignore_eos=True)
"""An answer that does not end before the context does; seconds on a model of `lengthen`."""


def lengthen(model: Path, directory: Path) -> Path:
    """A copy of the model with a context that takes seconds to fill."""
    copy = shutil.copytree(model, directory / "long")
    config = json.loads((copy / "config.json").read_text())
    config["max_position_embeddings"] = 1 << 16
    (copy / "config.json").write_text(json.dumps(config))
    return copy


def spec_of(model, *, kind="generate", adapters=None, **options):
    """What to run, with the options that differ from `OPTIONS`."""
    fields = {name: getattr(OPTIONS, name) for name in OPTIONS.__slots__}
    return EngineSpec(str(model), kind, EngineOptions(**fields | options), adapters or {})


@asynccontextmanager
async def started(spec, **supervision):
    """A process that runs the spec; nothing of it is left afterwards."""
    files, processes = sockets(), children()
    engine = EngineProcess(spec, name="tiny", supervision=Supervision(**supervision))
    await engine.start()
    try:
        yield engine
    finally:
        await engine.stop()
    await asyncio.sleep(0.05)  # event loops close sockets a little later
    assert engine.state == "stopped"
    assert children() == processes
    assert sockets() == files


def children() -> set[int]:
    """Processes that this one has started and not reaped."""
    tasks = Path("/proc/self/task").iterdir()
    return {int(pid) for task in tasks for pid in (task / "children").read_text().split()}


def sockets() -> int:
    """Descriptors of this process that are sockets."""
    count = 0
    for descriptor in Path("/proc/self/fd").iterdir():
        with suppress(FileNotFoundError):  # the one that lists the directory
            count += str(descriptor.readlink()).startswith("socket:")
    return count


async def outputs_of(stream):
    """Everything that a stream yields."""
    return [output async for step in stream for output in step]


async def answer(engine, request):
    """All outputs of a request."""
    return await outputs_of(await engine.submit(request))


async def end_of(stream):
    """How a stream ended: the reason of the last output, or the error; and when."""
    reason = None
    try:
        async for step in stream:
            reason = step[-1].finish_reason
    except HastenError as error:
        return type(error), monotonic()
    return reason, monotonic()


async def until(condition, seconds=10):
    """Waits until something holds."""
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.005)


def request(number=0, **sampling):
    """A request of the usual prompt."""
    return Request(f"request {number}", PROMPT, SamplingParams(**sampling))

"""Starts an engine process, says which, and waits: `engine_owner.py MODEL loading|stepping`."""

import asyncio
import logging
import sys

from workers import LONG, PROMPT, children, spec_of

from hasten.serve.engine_process import EngineProcess
from hasten.types import Request


async def main(model, when):
    """Prints the worker's pid when the worker is where it should be."""
    engine = EngineProcess(spec_of(model, max_context=60_000), name="tiny")
    starting = asyncio.create_task(engine.start())
    if when == "stepping":
        await starting
        await anext(await engine.submit(Request("long", PROMPT, LONG)))
    while not children():
        await asyncio.sleep(0.001)
    print(*children(), flush=True)
    await asyncio.sleep(1000)


if __name__ == "__main__":
    logging.disable()
    asyncio.run(main(*sys.argv[1:]))

"""The cache in front of an engine in its own process."""

import asyncio
import os
import signal
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

sys.path.insert(0, str(Path(__file__).parents[1]))
from sources import read
from workers import LONG, PROMPT, lengthen, spec_of, started, until

from hasten.errors import EngineLostError
from hasten.serve.cache import AnswerCache
from hasten.serve.settings import ServerSettings
from hasten.types import Request, SamplingParams


async def digest():
    return "tiny"


def served_by(engine):
    return SimpleNamespace(engine=engine, digest=digest)


def ask(cache, engine, name, sampling):
    asked = Request(name, PROMPT, sampling)
    return cache.submit(served_by(engine), asked, tenant="", wanted=True)


def as_of(outputs, name):
    return [replace(o, request_id=name, model_seconds=0.0) for o in outputs]


def test_hits_and_joined_answers_equal_the_engine_s(tiny_model):
    sampling = SamplingParams(max_tokens=12, temperature=0.8, seed=3, n=2, logprobs=2)

    async def main():
        cache = AnswerCache(ServerSettings(response_cache=1 << 20))
        async with started(spec_of(tiny_model)) as engine:
            own = as_of((await read(await engine.submit(Request("a", PROMPT, sampling))))[0], "a")
            streams = await asyncio.gather(
                *(ask(cache, engine, f"{n}", sampling) for n in range(3))
            )
            assert [state for state, _ in streams] == ["miss", "joined", "joined"]
            answers = await asyncio.gather(*(read(stream) for _, stream in streams))
            await asyncio.sleep(0)
            state, stream = await ask(cache, engine, "9", sampling)
            assert state == "hit"
            answers.append(await read(stream))

        def ordered(outputs):
            # How the steps of the two outputs lie between each other is chance.
            found = sorted(as_of(outputs, "a"), key=lambda o: o.index)
            return [replace(o, cached_tokens=0) for o in found]

        for outputs, error in answers:
            assert error is None
            assert ordered(outputs) == ordered(own)
        await cache.close()

    asyncio.run(main())


def test_the_last_one_to_leave_frees_the_slot_and_a_killed_engine_ends_all(tiny_model, tmp_path):
    model = lengthen(tiny_model, tmp_path)

    async def main():
        cache = AnswerCache(ServerSettings(response_cache=1 << 20))
        async with started(spec_of(model, max_context=1 << 16)) as engine:
            streams = [(await ask(cache, engine, f"{n}", LONG))[1] for n in range(2)]
            await anext(streams[1])
            for stream in streams:
                stream.cancel()
            await until(lambda: engine.statistics is not None and engine.statistics.running == 0)
            streams = [(await ask(cache, engine, f"{n}", LONG))[1] for n in range(2)]
            reads = asyncio.gather(*map(read, streams))
            await asyncio.sleep(0)

            os.kill(engine.info.pid, signal.SIGKILL)
            for _, error in await reads:
                assert isinstance(error, EngineLostError)
        await cache.close()

    asyncio.run(main())

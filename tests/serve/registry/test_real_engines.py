"""The registry with engines in processes of their own, on a tiny model."""

import asyncio
import os
import signal
from dataclasses import replace

import pytest
from registry_fakes import OPTIONS, serving, until
from tiny_adapters import random_adapter

from hasten.errors import EngineLostError, HastenError, UsageError
from hasten.models import load_model
from hasten.serve.engine_process import EngineSpec
from hasten.serve.registry import ModelRegistry
from hasten.serve.settings import ServerSettings
from hasten.types import Request, SamplingParams

ONE_FITS = 100 << 20


@pytest.fixture
def real(tmp_path):
    def make(**settings):
        return ModelRegistry(replace(ServerSettings(data=tmp_path / "data"), **settings))

    return make


def request(name, tokens=20):
    sampling = SamplingParams(max_tokens=tokens, ignore_eos=True)
    return Request(name, (4, 5, 6), sampling)


async def answered(served, asked):
    stream = await served.engine.submit(asked)
    return [token async for step in stream for output in step for token in output.tokens]


def test_a_model_serves_many_then_makes_room_then_goes(real, spec):
    async def go():
        async with serving(real(memory=ONE_FITS, keep_alive=0.1)) as models:
            models.add("a", spec())
            models.add("b", spec(max_sequences=1), at_start=False)
            await models.start()

            async def ask(number):
                async with models.use("a") as served:
                    return await answered(served, request(f"{number}"))

            answers = await asyncio.gather(*(ask(number) for number in range(6)))
            assert len(answers[0]) == 20
            assert answers == [answers[0]] * 6
            info = models.describe("a")
            assert info.state == "ready"
            assert 64 << 20 < info.memory < ONE_FITS
            async with models.use("b") as served:
                assert models.describe("a").state == "known"
                assert await answered(served, request("c")) == answers[0]
            await until(lambda: models.running() == [])

    asyncio.run(go())


def test_unloading_while_it_answers_cuts_nothing(real, spec):
    async def go():
        async with serving(real()) as models:
            models.add("a", spec(), at_start=False)
            async with models.use("a") as served:
                stream = await served.engine.submit(request("a"))
                first = await anext(stream)
                assert not await models.unload("a")
                # On a busy machine all of it may have come at once.
                outputs = [*first, *[output async for step in stream for output in step]]
                assert len([token for output in outputs for token in output.tokens]) == 20
                assert outputs[-1].finish_reason == "length"
            await until(lambda: models.describe("a").state == "known")

    asyncio.run(go())


def test_what_the_worker_met_is_told_and_the_next_try_is_a_new_one(real, spec):
    async def go():
        async with serving(real()) as models:
            models.add("a", spec(isa="no such set"), at_start=False)
            for _ in range(2):
                with pytest.raises(UsageError, match="no such set"):
                    await models.load("a")
                assert models.describe("a").state == "known"

    asyncio.run(go())


def test_an_engine_that_is_killed_comes_back_in_its_place(real, spec):
    async def go():
        async with serving(real()) as models:
            models.add("a", spec(), at_start=False)
            async with models.use("a") as served:
                before = await answered(served, request("a"))
                pid = served.engine.info.pid
                stream = await served.engine.submit(request("b", 25))
                os.kill(pid, signal.SIGKILL)
                with pytest.raises(EngineLostError):
                    async for _ in stream:
                        pass
            async with models.use("a") as again:
                assert again.engine is served.engine
                assert await answered(again, request("c")) == before
                assert again.engine.info.pid != pid
            assert models.describe("a").state == "ready"

    asyncio.run(go())


@pytest.mark.model
def test_an_embedder_is_a_model_like_others(real):
    async def go():
        async with serving(real(memory=1 << 30)) as models:
            models.add("minilm", EngineSpec("minilm", "embed", replace(OPTIONS, max_context=None)))
            await models.start()
            async with models.use("minilm") as served:
                vectors, tokens = await served.engine.embed(["a text"])
                assert vectors.shape == (1, 384)
                assert tokens > 2
            info = models.describe("minilm")
            assert (info.kind, info.embedding_length, info.format) == ("embed", 384, "safetensors")

    asyncio.run(go())


def test_an_adapter_answers_under_its_own_name(real, spec, tiny_model, tmp_path):
    adapter = tmp_path / "adapter"
    random_adapter(adapter, load_model(tiny_model).config, rank=4)

    async def go():
        async with serving(real()) as models:
            models.add("a", replace(spec(), adapters={"tuned": str(adapter)}))
            await models.start()
            async with models.use("tuned") as served:
                tuned = await answered(served, replace(request("a"), adapter=served.adapter))
                plain = await answered(served, request("b"))
            assert served.adapter == "tuned"
            assert tuned != plain

    asyncio.run(go())


def test_a_broken_adapter_is_told(real, spec, tmp_path):
    async def go():
        async with serving(real()) as models:
            models.add("a", replace(spec(), adapters={"tuned": str(tmp_path)}))
            with pytest.raises(HastenError, match="adapter"):
                await models.start()

    asyncio.run(go())

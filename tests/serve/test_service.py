"""The service whole, with an engine in its own process: the response cache in front of it."""

import asyncio
import json
from contextlib import asynccontextmanager
from dataclasses import replace
from time import monotonic

import pytest

from hasten.errors import AccessError, DeadlineError
from hasten.serve.build import build_service
from hasten.serve.endpoint import Call
from hasten.serve.generation import collect
from hasten.serve.jobs import Client, Job
from hasten.serve.protocols.openai import ROUTES
from hasten.serve.settings import Limits, ServerSettings
from hasten.serve.wire import EngineSpec
from hasten.types import EngineOptions, SamplingParams

GREEDY = SamplingParams(max_tokens=8, temperature=0, ignore_eos=True)


@asynccontextmanager
async def running(model, data, **settings):
    spec = EngineSpec(str(model), options=EngineOptions(threads=1, max_context=100))
    service = build_service(ServerSettings(data=data, **settings), {"tiny": spec})
    try:
        await service.registry.start()
        yield service
    finally:
        await service.close()


async def ask(service, sampling=GREEDY, *, model="tiny", client=None, cache=True):
    job = Job("1", model, (1, 2, 3), sampling, client or Client(), monotonic(), cache=cache)
    generation = await service.generate(job)
    answers, usage = await collect(generation)
    return generation.cache, [answer.tokens for answer in answers], usage


async def leave(service):
    """Takes the first of an answer and goes."""
    long = replace(GREEDY, max_tokens=90)
    job = Job("1", "tiny", (1, 2, 3), long, Client(), monotonic())
    generation = await service.generate(job)
    await anext(generation)
    await generation.aclose()


def rendered(service):
    return b"".join(service.metrics.render()[0]).decode()


def test_answers_are_given_again(tiny_model, tmp_path):
    async def go():
        async with running(tiny_model, tmp_path, response_cache=1 << 20) as service:
            first, tokens, usage = await ask(service)
            assert (first, usage.output_tokens) == ("miss", 8)
            again = await ask(service)
            assert again[:2] == ("hit", tokens)
            assert again[2].output_tokens == 8
            assert again[2].timing.prompt == again[2].timing.decode == 0
            assert (await ask(service, client=Client(tenant="b")))[:2] == ("miss", tokens)
            assert (await ask(service, cache=False))[:2] == ("off", tokens)
            sampled = SamplingParams(max_tokens=8, temperature=1.0)
            assert [(await ask(service, sampled))[0] for _ in range(2)] == ["off", "off"]
            together = await asyncio.gather(
                *(ask(service, SamplingParams(max_tokens=9, temperature=0)) for _ in range(4))
            )
            assert [state for state, _, _ in together] == ["miss", "joined", "joined", "joined"]
            text = rendered(service)
            assert 'hasten_response_cache_total{model_name="tiny",result="hit"} 1.0' in text
            assert 'hasten_response_cache_total{model_name="tiny",result="joined"} 3.0' in text
            assert "hasten_response_cache_entries 3.0" in text
            assert "hasten_response_cache_in_flight 0.0" in text
            # One gap less than tokens; none of the answer that was there.
            assert 'hasten_itl_seconds_count{model_name="tiny"}' in text

    asyncio.run(go())


def test_a_hit_says_so_to_the_client(tiny_model, tmp_path):
    chat = next(route for route in ROUTES if route.path == "/v1/completions")
    body = b'{"model": "tiny", "prompt": [1, 2, 3], "max_tokens": 4, "temperature": 0}'

    async def go():
        async with running(tiny_model, tmp_path, response_cache=1 << 20) as service:
            states = []
            for headers in ({}, {}, {"cache-control": "no-cache"}):
                call = Call(service, Client(), "1", body, monotonic(), headers)
                states.append((await chat.endpoint(call)).headers.get("x-hasten-cache"))
            assert states == ["miss", "hit", None]

    asyncio.run(go())


def test_lines_of_batches_have_more_time_than_requests(tiny_model, tmp_path):
    limits = replace(Limits(), request_seconds=1e-4)

    async def go():
        async with running(tiny_model, tmp_path, limits=limits) as service:
            with pytest.raises(DeadlineError):
                await ask(service)
            _, _, usage = await ask(service, client=Client(batch=True))
            assert usage.output_tokens == 8

    asyncio.run(go())


def test_without_a_cache_everything_is_computed(tiny_model, tmp_path):
    async def go():
        async with running(tiny_model, tmp_path) as service:
            assert [(await ask(service))[0] for _ in range(2)] == ["off", "off"]

    asyncio.run(go())


def test_a_key_that_names_other_models_gets_none(tiny_model, tmp_path):
    async def go():
        async with running(tiny_model, tmp_path) as service:
            with pytest.raises(AccessError, match="may not use 'tiny'"):
                await ask(service, client=Client("bob", models=frozenset({"big"})))

    asyncio.run(go())


def test_names_of_one_model_share_its_queue_and_its_figures(tiny_model, tmp_path):
    async def go():
        async with running(tiny_model, tmp_path) as service:
            await service.registry.copy("tiny", "copy")
            await service.registry.copy("copy", "other")
            job = Job("1", "other", (1, 2, 3), GREEDY, Client(), monotonic())
            generation = await service.generate(job)
            assert service.admission.in_flight() == {"tiny": 1}
            await collect(generation)
            only = Client("bob", models=frozenset({"tiny"}))
            await ask(service, model="tiny:latest", client=only)
            text = rendered(service)
            assert 'hasten_itl_seconds_count{model_name="tiny"} 7.0' in text
            assert "tiny:latest" not in text

    asyncio.run(go())


@pytest.mark.parametrize("content", [True, False])
def test_traffic_is_recorded(tiny_model, tmp_path, content):
    path = tmp_path / "traffic.jsonl"

    async def go():
        async with running(tiny_model, tmp_path, record=path, record_content=content) as service:
            await ask(service)
            await ask(service, client=Client(batch=True))  # nobody's traffic
            await leave(service)
            await ask(service, replace(GREEDY, max_tokens=3, n=2, temperature=1.0))

    asyncio.run(go())
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [line["max_tokens"] for line in lines] == [8, 3]
    assert [line["tokens"] == [1, 2, 3] for line in lines] == [content] * 2
    assert [len(line["tokens"]) for line in lines] == [3, 3]
    assert lines[0]["at"] < lines[1]["at"]

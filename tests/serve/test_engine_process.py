"""An engine in its own process does what an engine does."""

import asyncio
import dataclasses
import json
import sys
from collections import Counter
from pathlib import Path
from time import monotonic

import numpy as np
import pytest

from hasten.errors import (
    CapacityError,
    EngineLostError,
    GenerationError,
    HastenError,
    ModelFileError,
    UsageError,
)
from hasten.generation import Engine
from hasten.generation.embedding import Embedder
from hasten.models import load_model
from hasten.serve.engine_process import EngineProcess, EngineSpec
from hasten.serve.generation_work import GenerationWork
from hasten.serve.wire import Refused, Step, Submit, WireError, encode, encode_request
from hasten.types import EngineOptions, Request, Structure

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parent.parent / "models"))
from tiny_adapters import random_pairs, save_pairs
from workers import (
    LONG,
    OPTIONS,
    PROMPT,
    answer,
    children,
    lengthen,
    outputs_of,
    request,
    spec_of,
    started,
    until,
)

SCHEMA = {"type": "object", "properties": {"a": {"type": "boolean"}}, "required": ["a"]}
SLOW_SCHEMA = {
    "type": "object",
    "properties": {f"p{i}": {"type": "string", "pattern": "(a|b)*c{1,30}"} for i in range(300)},
}


@pytest.fixture(scope="module")
def long_model(tiny_model, tmp_path_factory):
    return lengthen(tiny_model, tmp_path_factory.mktemp("long"))


def without_times(outputs):
    return [dataclasses.replace(output, model_seconds=0.0) for output in outputs]


def in_process(model, asked):
    """What an engine of this process yields for requests, each alone."""
    with Engine(load_model(model), OPTIONS) as engine:
        found = []
        for one in asked:
            engine.submit(one)
            outputs = []
            while engine.has_work:
                outputs += engine.step()
            found.append(without_times(outputs))
        return found


def test_outputs_are_those_of_an_engine(tiny_model):
    common = {"max_tokens": 12, "ignore_eos": True}
    asked = [
        request(0, **common),
        request(1, **common, temperature=1.0, seed=2**64 - 1, top_p=0.9, min_p=0.01),
        request(2, **common, temperature=1.0, seed=7, n=3, logprobs=2, prompt_logprobs=1),
        request(3, **common, repetition_penalty=1.3, logit_bias={5: 2.5, 7: -100.0}),
        request(4, **common, temperature=1.0, seed=3, stop=("a", "e", "bc")),
        request(5, max_tokens=40, structure=Structure("json_schema", json.dumps(SCHEMA))),
        request(6, max_tokens=12, structure=Structure("regex", "[a-c]{3}x")),
        dataclasses.replace(request(7, max_tokens=3), tenant="someone", priority=-3),
    ]

    async def scenario():
        async with started(spec_of(tiny_model)) as engine:
            one_by_one = [without_times(await answer(engine, one)) for one in asked]
            together = await asyncio.gather(*(answer(engine, one) for one in asked))
            return one_by_one, [without_times(outputs) for outputs in together]

    alone, together = asyncio.run(scenario())
    expected = in_process(tiny_model, asked)
    assert alone == expected
    for mine, theirs in zip(together, expected, strict=True):
        # Those of other steps come between, and what the prefix cache holds differs.
        by_index = [[o for o in mine if o.index == i] for i in range(3)]
        assert [
            [dataclasses.replace(o, cached_tokens=0) for o in outputs] for outputs in by_index
        ] == [
            [dataclasses.replace(o, cached_tokens=0) for o in theirs if o.index == i]
            for i in range(3)
        ]


def test_what_it_tells_of_itself(tiny_model):
    others = children()

    async def scenario():
        spec = EngineSpec(str(tiny_model))
        engine = EngineProcess(spec, name="tiny")
        assert (engine.state, engine.info, engine.statistics) == ("stopped", None, None)
        starting = asyncio.create_task(engine.start())
        await asyncio.sleep(0)
        assert engine.state == "starting"
        await starting
        assert engine.state == "ready"
        assert engine.info.pid in children()
        assert (engine.info.context, engine.info.vocab_size) == (
            128,
            load_model(tiny_model).config.vocab_size,
        )
        assert engine.info.dimensions is None
        assert set(engine.info.memory) >= {"weights", "kv_cache"}
        assert engine.statistics.running == 0
        assert engine.last_token is None
        await answer(engine, request(max_tokens=5, ignore_eos=True))
        assert engine.statistics.output_tokens == 5
        assert engine.statistics.finished == {"length": 1}
        assert 0 <= monotonic() - engine.last_token < 60
        await engine.start()  # once more does nothing
        await engine.stop()
        assert engine.info is None
        assert children() == others
        with pytest.raises(EngineLostError, match="'tiny' is stopped"):
            await engine.submit(request())
        await engine.start()
        assert await engine.self_test(10)
        await engine.stop()
        await engine.stop()

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("bad", "kind", "text"),
    [
        (Request("a", ()), UsageError, "the prompt is empty"),
        (Request("a", (1,) * 100), CapacityError, "the prompt has 100 tokens"),
        (Request("a", (1 << 40,)), UsageError, f"token {1 << 40} is not in the vocabulary"),
        (Request("a", (1 << 80,)), UsageError, "the request cannot be sent"),
        (request(temperature=-1.0), UsageError, "temperature is -1.0; allowed: 0 .greedy. to 100"),
        (request(max_tokens=1.5), UsageError, r"malformed: Expected `int`, got `float`"),
        (dataclasses.replace(request(), adapter="x"), UsageError, "no adapter 'x' is loaded"),
        (request(structure=Structure("regex", "(")), UsageError, "the regular expression cannot"),
        (request(seed=1 << 64), UsageError, "the request cannot be sent"),
    ],
)
def test_refusals_are_those_of_an_engine(engine_of_all, bad, kind, text):
    with pytest.raises(kind, match=text) as refused:
        engine_of_all(lambda engine: engine.submit(bad))
    assert type(refused.value) is kind


@pytest.fixture(scope="module")
def engine_of_all(tiny_model):
    """One process for tests that leave it as it was."""
    with asyncio.Runner() as runner:
        engine = EngineProcess(spec_of(tiny_model), name="tiny")
        runner.run(engine.start())
        pid = engine.info.pid

        def run(use):
            async def scenario():
                return await use(engine)

            return runner.run(scenario())

        yield run
        assert engine.info.pid == pid
        assert engine.restarts == 0
        runner.run(engine.stop())


def test_two_requests_may_have_the_same_id(engine_of_all):
    async def scenario(engine):
        two = [await engine.submit(request(max_tokens=count, ignore_eos=True)) for count in (3, 6)]
        return [await outputs_of(stream) for stream in two]

    short, longer = engine_of_all(scenario)
    assert (len(short), len(longer)) == (3, 6)
    assert {output.request_id for output in short + longer} == {"request 0"}


def test_a_deadline_ends_a_request(engine_of_all):
    async def scenario(engine):
        late = dataclasses.replace(request(max_tokens=50), deadline=monotonic())
        return await answer(engine, late)

    (output,) = engine_of_all(scenario)
    assert output.finish_reason == "deadline"


def test_a_slow_reader_gets_everything(engine_of_all):
    async def scenario(engine):
        stream = await engine.submit(request(max_tokens=50, ignore_eos=True))
        await until(lambda: engine.statistics.running == 0)
        return await outputs_of(stream)

    assert sum(len(output.tokens) for output in engine_of_all(scenario)) == 50


def test_a_request_that_is_cancelled_leaves_nothing(long_model):
    async def scenario():
        spec = spec_of(long_model, max_context=60_000, max_sequences=2, kv="int8")
        async with started(spec) as engine:
            asked = Request("long", PROMPT, dataclasses.replace(LONG, n=2))
            stream = await engine.submit(asked)
            await anext(stream)
            await until(lambda: engine.statistics.running == 2)
            waiting = asyncio.create_task(outputs_of(stream))
            await asyncio.sleep(0)
            stream.cancel()
            stream.cancel()
            await waiting
            assert [step async for step in stream] == []
            await until(lambda: engine.statistics.running == 0)
            assert engine.statistics.finished == {"cancelled": 2}
            assert engine.statistics.kv_blocks_used == 0
            # The task that submits is cancelled before the engine has accepted it, or just then.
            for turns in range(4):
                task = asyncio.create_task(engine.submit(asked))
                for _ in range(turns):
                    await asyncio.sleep(0)
                task.cancel()
                await asyncio.wait([task])
            assert await engine.self_test(10)
            await until(lambda: engine.statistics.running == engine.statistics.waiting == 0)

    asyncio.run(scenario())


def test_structures_that_compile_hold_nobody_up(long_model):
    structure = Structure("json_schema", json.dumps(SLOW_SCHEMA))

    async def scenario():
        spec = spec_of(long_model, max_context=60_000, max_sequences=4, kv="int8")
        async with started(spec) as engine:
            slow = [
                asyncio.create_task(engine.submit(request(number, structure=structure)))
                for number in range(6)
            ]
            await asyncio.sleep(0.05)
            assert await engine.self_test(10)
            done_before = sum(task.done() for task in slow)
            for task in slow:
                task.cancel()
            ended = await asyncio.gather(*slow, return_exceptions=True)
            for stream in ended:
                if not isinstance(stream, BaseException):
                    stream.cancel()
            assert done_before < 6
            await asyncio.sleep(1)
            await until(lambda: engine.statistics.running == engine.statistics.waiting == 0)
            assert engine.state == "ready"
            assert engine.restarts == 0

    asyncio.run(scenario())


def test_adapters(tiny_model, tmp_path):
    config = load_model(tiny_model).config
    for number in (1, 2):
        pairs = random_pairs(config, 70, number)
        save_pairs(tmp_path / str(number), pairs, lora_alpha=280)

    async def scenario():
        adapters = {"one": str(tmp_path / "1")}
        async with started(spec_of(tiny_model, adapters=adapters, max_adapters=2)) as engine:
            asked = request(max_tokens=8)
            plain = await answer(engine, asked)
            one = await answer(engine, dataclasses.replace(asked, adapter="one"))
            with pytest.raises(UsageError, match="an adapter 'one' is loaded already"):
                await engine.load_adapter("one", str(tmp_path / "2"))
            with pytest.raises(ModelFileError):
                await engine.load_adapter("three", str(tmp_path / "3"))
            await engine.load_adapter("two", str(tmp_path / "2"))
            two = await answer(engine, dataclasses.replace(asked, adapter="two"))
            texts = {"".join(o.text for o in outputs) for outputs in (plain, one, two)}
            assert len(texts) == 3
            await engine.unload_adapter("one")
            with pytest.raises(UsageError, match="no adapter 'one' is loaded; allowed: 'two'"):
                await engine.submit(dataclasses.replace(asked, adapter="one"))
            assert engine.spec.adapters == {"two": str(tmp_path / "2")}

    asyncio.run(scenario())


class NothingLeftError(Exception):
    """Ends a worker's loop."""


def test_outputs_too_large_for_a_message_end_their_own_request(tiny_model):
    sent = []

    def send(message):
        size = len(encode(message))
        if size > 2000:
            raise WireError(f"{size} bytes")
        sent.append(message)
        if isinstance(message, Step) and not work.working:
            raise NothingLeftError

    with Engine(load_model(tiny_model), OPTIONS) as engine:
        work = GenerationWork(engine, send)
        for number in range(1, 5):
            large = 20 if number == 2 else None
            asked = request(max_tokens=4, ignore_eos=True, prompt_logprobs=large, n=2)
            work.take(Submit(number, encode_request(asked)))
        with pytest.raises(NothingLeftError):
            work.run()
    (refused,) = [message for message in sent if isinstance(message, Refused)]
    assert refused.number == 2
    assert type(refused.fault.error()) is GenerationError
    ends = Counter(
        progress.number
        for message in sent
        if isinstance(message, Step)
        for progress in message.outputs
        if progress.finish_reason == "length"
    )
    assert ends == {1: 2, 3: 2, 4: 2}


def test_an_embedder(tiny_model):
    texts = ["hello", "a longer text, with more tokens", "x", "hello"]
    tokens = [[3, 4, 5], [6]]

    async def scenario():
        async with started(spec_of(tiny_model, kind="embed", kv="f32")) as engine:
            width = engine.info.dimensions
            together = await asyncio.gather(
                engine.embed(texts),
                engine.embed(texts[:1], dimensions=8),
                engine.embed(tokens),
                engine.embed(["y" * 200], truncate=True),
                engine.embed([]),
            )
            for bad, kind, text in [
                (["y" * 200], CapacityError, "text 1 has 200 tokens"),
                ([[]], UsageError, "text 1 has no tokens"),
                (["x", ""], UsageError, "text 2 has no tokens"),
                ([[1 << 40]], UsageError, "not in the vocabulary"),
                ([[-1]], UsageError, "not in the vocabulary"),
                (["x", [1]], UsageError, "some texts are tokens"),
                (["\ud800"], UsageError, "cannot be sent"),
            ]:
                with pytest.raises(kind, match=text):
                    await engine.embed(bad)
            with pytest.raises(UsageError, match=f"dimensions is 0; allowed: 1 to {width}"):
                await engine.embed(["x"], dimensions=0)
            with pytest.raises(UsageError, match="loaded to embed"):
                await engine.submit(request())
            assert await engine.self_test(10)
            assert engine.statistics is None
            assert engine.last_token is not None
            task = asyncio.create_task(engine.embed(["word " * 15] * 2000))
            await asyncio.sleep(0.1)
            assert (await engine.embed(["x"]))[1] == 1  # takes its turn in between
            assert not task.done()
            task.cancel()
            await asyncio.wait([task])
            return together

    (many, count), (few, _), (of_tokens, token_count), (cut, most), (none, zero) = asyncio.run(
        scenario()
    )
    options = EngineOptions(threads=1, max_context=100, kv="f32")
    with Embedder(load_model(tiny_model), options) as embedder:
        np.testing.assert_array_equal(many, embedder.embed(texts))
        np.testing.assert_array_equal(of_tokens, embedder.embed_tokens(tokens))
        np.testing.assert_array_equal(cut, embedder.embed(["y" * 200], truncate=True))
    with Embedder(load_model(tiny_model), options, dimensions=8) as embedder:
        np.testing.assert_array_equal(few, embedder.embed(texts[:1]))
    assert (count, token_count, most, zero) == (sum(map(len, texts)), 4, 100, 0)
    assert none.shape[0] == 0


@pytest.mark.model
def test_minilm():
    options = EngineOptions(threads=1, kv="f32")
    texts = ["A man is eating.", "Someone has lunch.", "It rains."]

    async def scenario():
        async with started(EngineSpec("minilm", "embed", options)) as engine:
            return await engine.embed(texts)

    vectors, count = asyncio.run(scenario())
    with Embedder(load_model("minilm"), options) as embedder:
        np.testing.assert_array_equal(vectors, embedder.embed(texts))
        assert count == sum(map(len, embedder.tokenize(texts)))


@pytest.mark.parametrize(
    ("changes", "kind", "text"),
    [
        ({"model": "/no/such/model"}, ModelFileError, "/no/such/model"),
        ({"options": EngineOptions(threads=-1)}, UsageError, "threads is -1"),
        ({"options": EngineOptions(kv_memory=1 << 70)}, UsageError, "the options cannot be used"),
        ({"options": EngineOptions(kv_memory=1 << 60)}, CapacityError, "."),
        ({"adapters": {"a": "/no/such/adapter"}}, ModelFileError, "/no/such/adapter"),
        ({"kind": "embed", "adapters": {"a": "b"}}, UsageError, "leave the adapters out"),
    ],
)
def test_a_start_that_fails_tells_why(tiny_model, changes, kind, text):
    others = children()

    async def scenario():
        spec = dataclasses.replace(spec_of(tiny_model), **changes)
        engine = EngineProcess(spec, name="tiny")
        with pytest.raises(kind, match=text) as failed:
            await engine.start()
        assert type(failed.value) is kind
        assert (engine.state, engine.failure) == ("failed", failed.value)
        assert children() == others
        with pytest.raises(EngineLostError, match="'tiny' cannot be started: "):
            await engine.submit(request())
        assert not await engine.self_test(1)
        with pytest.raises(HastenError):
            await engine.start()
        await engine.stop()

    asyncio.run(scenario())

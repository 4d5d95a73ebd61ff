"""An engine as a target gives what the engine gives, one request or several at once."""

import asyncio
import dataclasses
import time

import pytest

from hasten.errors import CapacityError, UsageError
from hasten.generation import Engine
from hasten.measure.arrivals import ClosedLoop
from hasten.measure.load import run_load
from hasten.measure.metrics import model_latency, tpot, ttft
from hasten.measure.records import Answer
from hasten.measure.targets.engine import EngineTarget
from hasten.measure.workload import Chat, Item, Tensors, Workload
from hasten.models import load_model
from hasten.types import EngineOptions, SamplingParams

OPTIONS = EngineOptions(threads=1, max_context=128)


@pytest.fixture
def engine(tiny_model):
    with Engine(load_model(str(tiny_model)), OPTIONS) as opened:
        yield opened


def workload(*prompts, tokens=8):
    return Workload("made up", None, (), tuple(Item(prompt, tokens) for prompt in prompts))


def test_tokens_are_those_of_the_engine(engine):
    prompts = [(1, 2, 3 + n) for n in range(6)]
    sampling = SamplingParams(max_tokens=8, ignore_eos=True)
    wanted = ["".join(o.text for o in engine.generate(p, sampling)) for p in prompts]

    async def ask():
        async with EngineTarget(engine) as target:
            answers = [Answer(keep_text=True) for _ in prompts]
            await asyncio.gather(
                *(target.send(Item(p, 8), a) for p, a in zip(prompts, answers, strict=True))
            )
            return answers

    answers = asyncio.run(ask())
    assert [answer.text for answer in answers] == wanted
    assert {answer.counted_tokens for answer in answers} == {8}
    assert {answer.prompt_tokens for answer in answers} == {3}


def test_a_load_over_it(engine):
    prompts = [(1, 2, 3 + n) for n in range(12)]
    target = EngineTarget(engine)
    for _ in range(2):  # a target may be opened again
        result = run_load(target, workload(*prompts), ClosedLoop(4))
        assert [record.status for record in result.records] == ["completed"] * 12
        for record in result.records:
            assert record.sent >= record.intended_send
            assert ttft(record) > 0
            assert tpot(record) > 0
            assert 0 < model_latency(record) <= record.end - record.sent
    assert not engine.has_work


def test_what_does_not_fit_fails_alone(engine):
    result = run_load(EngineTarget(engine), workload((1, 2), (1,) * 200, (3, 4)))
    assert [record.status for record in result.records] == ["completed", "failed", "completed"]


def test_whoever_leaves_leaves_nothing_behind(engine, monkeypatch):
    run = engine._executor.run

    def slowly(batch):
        time.sleep(0.01)
        return run(batch)

    monkeypatch.setattr(engine._executor, "run", slowly)

    async def leave():
        async with EngineTarget(engine) as target:
            left = Answer()
            leaving = asyncio.create_task(target.send(Item((1, 2), 100), left))
            while not left.events:
                await asyncio.sleep(0.001)
            leaving.cancel()
            with pytest.raises(asyncio.CancelledError):
                await leaving
            answer = Answer()
            await target.send(Item((1, 2), 3), answer)
            return left, answer

    left, answer = asyncio.run(leave())
    assert (left.counted_tokens < 100, answer.counted_tokens) == (True, 3)
    assert not engine.has_work


def test_texts_and_conversations(engine):
    text = workload("hello there")
    assert run_load(EngineTarget(engine), text).records[0].status == "completed"
    said = {"role": "user", "content": "hi"}
    chats = workload(Chat((said,)), Chat((said, said)))
    alone, several = run_load(EngineTarget(engine), chats).records
    assert alone.status == "completed"
    assert several.reason.endswith("no chat template to put a conversation in")


def test_an_engine_that_breaks_fails_what_waits(engine, monkeypatch):
    def broken(batch):
        raise CapacityError("no room")

    monkeypatch.setattr(engine._executor, "run", broken)
    result = run_load(EngineTarget(engine), workload((1, 2), (3, 4)), duration=5)
    assert result.records[0].status == "failed"
    assert "no room" in result.records[0].reason


def test_tensors_are_refused(engine):
    async def ask():
        async with EngineTarget(engine) as target:
            await target.send(Tensors({}), Answer())

    with pytest.raises(UsageError, match="not tensors"):
        asyncio.run(ask())


def test_the_description_is_what_was_given(engine):
    assert EngineTarget(engine).describe()["kind"] == "in-process"
    told = dict(EngineTarget(engine, description=dataclasses.asdict(OPTIONS)).describe())
    assert told["threads"] == 1

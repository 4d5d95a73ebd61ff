"""The echo: a process of its own that ends with the one that started it."""

import asyncio
import os

import pytest

from hasten.measure.arrivals import ClosedLoop
from hasten.measure.load import run_load
from hasten.measure.records import Answer
from hasten.measure.targets.echo import EchoTarget
from hasten.measure.targets.http import HttpClient
from hasten.measure.targets.target import TargetError
from hasten.measure.workload import Item, Workload


def test_a_load():
    target = EchoTarget()
    workload = Workload("echo", None, (), (Item("", 1),) * 500)
    for _ in range(2):
        result = run_load(target, workload, ClosedLoop(8))
        assert [one.status for one in result.records] == ["completed"] * 500
    with pytest.raises(ProcessLookupError):
        os.kill(target.pid, 0)


def test_it_must_be_open():
    with pytest.raises(TargetError, match="not open"):
        asyncio.run(EchoTarget().send(Item("", 1), Answer()))


def test_any_body_comes_back():
    async def go():
        async with EchoTarget() as target:
            client = HttpClient(target._client.url)
            body = os.urandom(300_000)
            replies = [await client.request("POST", "/x", body) for _ in range(2)]
            assert [reply.body for reply in replies] == [body] * 2
            await client.close()

    asyncio.run(go())


def test_it_ends_when_its_starter_does():
    async def go():
        async with EchoTarget() as target:
            process = target._process
            process.stdin.close()
            assert await asyncio.wait_for(process.wait(), 60) == 0
            with pytest.raises(TargetError):
                await target.send(Item("", 1), Answer())

    asyncio.run(go())

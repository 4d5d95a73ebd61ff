"""A request that ends every engine that it is in is found, and its companions are not blamed."""

import asyncio
import os
import signal
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hasten.errors import EngineLostError, GenerationError, OverloadError
from hasten.serve.quarantine import Quarantine
from hasten.types import Request, SamplingParams

sys.path.insert(0, str(Path(__file__).parent))
from workers import LONG, answer, end_of, lengthen, request, spec_of, started


class Clock:
    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


def content(number, name="a"):
    return Request(name, (number, 2, 3), SamplingParams(logit_bias={4: 1.0, 2: 0.5}), -number)


def test_what_was_in_two_crashes_alone_is_kept_out_for_a_while(clock):
    quarantine = Quarantine(clock)
    for _ in range(2):
        quarantine.check(content(1), ())
        quarantine.crashed([content(1, "x")])
    with pytest.raises(GenerationError, match="in 300 s"):
        quarantine.check(content(1, "y"), ())
    quarantine.check(content(2), ())
    quarantine.check(("a text",), ())
    clock.now += 301
    quarantine.check(content(1), ())
    quarantine.crashed([content(1), content(5)])
    with pytest.raises(GenerationError):
        quarantine.check(content(1), ())


def test_texts_to_embed_are_contents_too(clock):
    quarantine = Quarantine(clock)
    quarantine.crashed([("a", "b")])
    quarantine.crashed([("a", "b"), ((1, 2),)])
    with pytest.raises(GenerationError):
        quarantine.check(("a", "b"), ())
    quarantine.check(((1, 2),), ())


def test_suspects_are_let_in_one_at_a_time_and_cleared_by_ending_well(clock):
    quarantine = Quarantine(clock)
    both = [content(1), content(2)]
    for _ in range(2):
        quarantine.crashed(both)
    quarantine.check(content(1), [content(3)])
    with pytest.raises(OverloadError):
        quarantine.check(content(2), [content(1)])
    quarantine.check(content(3), [content(1)])
    quarantine.cleared(content(1))
    quarantine.check(content(1), [content(2)])


def test_crashes_far_apart_say_nothing(clock):
    quarantine = Quarantine(clock)
    for _ in range(5):
        quarantine.crashed([content(1)])
        clock.now += 601
        quarantine.check(content(1), ())


@given(st.integers(0, 6), st.randoms(use_true_random=False))
@settings(max_examples=40, deadline=None)
def test_the_one_that_does_it_is_found_and_no_other_is_blamed(companions, random):
    """All clients retry whatever happens to them, in any order; new ones come meanwhile."""
    clock = Clock()
    quarantine = Quarantine(clock)
    guilty = content(0)
    waiting = [guilty, *(content(number) for number in range(1, companions + 1))]
    crashes, came = 0, companions
    for _ in range(3 * companions + 8):
        clock.now += 1
        came += 1
        waiting.append(content(came))
        random.shuffle(waiting)
        inside = []
        for one in waiting:
            try:
                quarantine.check(one, inside)
            except OverloadError:
                continue
            except GenerationError:
                assert one is guilty
                continue
            inside.append(one)
        if guilty in inside:
            crashes += 1
            quarantine.crashed(inside)
        else:
            for one in inside:
                quarantine.cleared(one)
                waiting.remove(one)
    assert crashes <= 3
    assert waiting == [guilty]


@pytest.fixture(scope="module")
def long_spec(tiny_model, tmp_path_factory):
    model = lengthen(tiny_model, tmp_path_factory.mktemp("long"))
    return spec_of(model, max_context=60_000, max_sequences=4, kv="int8")


@pytest.mark.parametrize(("number", "refused"), [(signal.SIGSEGV, True), (signal.SIGKILL, False)])
def test_a_client_that_retries_ends_no_third_engine(long_spec, number, refused):
    """Processes that are killed from outside, or by the kernel for memory, blame nobody."""

    async def scenario():
        async with started(long_spec) as engine:
            for name in ("first", "second"):
                stream = await engine.submit(Request(name, (5, 6, 7), LONG))
                await anext(stream)
                os.kill(engine.info.pid, number)
                assert (await end_of(stream))[0] is EngineLostError
            again = Request("third", (5, 6, 7), LONG)
            if refused:
                with pytest.raises(GenerationError, match="each time that this request was in it"):
                    await engine.submit(again)
            else:
                (await engine.submit(again)).cancel()
            assert await answer(engine, request(max_tokens=3))
            assert await engine.self_test(10)

    asyncio.run(scenario())

"""Answers come from where they should, whole, and to those alone who may have them."""

import asyncio
import time
from dataclasses import fields, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sources import ANSWER, Model, output, read, request, settle

from hasten.errors import DeadlineError, EngineLostError, ModelFileError, UsageError
from hasten.serve.cache import AnswerCache
from hasten.serve.cache import answers as answers_module
from hasten.serve.settings import ServerSettings
from hasten.types import EngineOptions, SamplingParams, Structure

WHOLE = [o for batch in ANSWER for o in batch]


def cache_of(**options):
    return AnswerCache(ServerSettings(**{"response_cache": 1 << 20} | options))


async def ask(cache, model, asked, tenant="", wanted=True):
    """State, outputs and error of one request."""
    state, stream = await cache.submit(model, asked, tenant=tenant, wanted=wanted)
    return (state, *await read(stream))


def named(outputs, name, seconds=None):
    """Outputs as the request of a name gets them."""
    changes = {"request_id": name} | ({} if seconds is None else {"model_seconds": seconds})
    return [replace(o, **changes) for o in outputs]


def test_a_hit_is_the_same_answer():
    async def main():
        cache, model = cache_of(), Model(ANSWER)
        first = await ask(cache, model, request(1))
        await settle()
        second = await ask(cache, model, request(2))
        assert first == ("miss", named(WHOLE, "r1"), None)
        assert second == ("hit", named(WHOLE, "r2", 0.0), None)
        assert len(model.sources) == 1
        found = cache.statistics()
        assert (found.hits, found.misses, found.joined, found.entries) == (1, 1, 0, 1)
        assert (found.in_flight, found.evictions) == (0, 0)
        await cache.close()
        assert cache.statistics().bytes == 0

    asyncio.run(main())


OTHERS = {
    "max_tokens": 7, "temperature": 0.5, "top_k": 3, "top_p": 0.5, "min_p": 0.1, "seed": 8,
    "stop": ("x",), "ignore_eos": True, "stop_tokens": (4,), "repetition_penalty": 1.5,
    "presence_penalty": 0.5, "frequency_penalty": 0.5, "logit_bias": {3: 1.0}, "n": 2,
    "logprobs": 2, "prompt_logprobs": 1, "structure": Structure("regex", "a"), "keep_special": True,
}  # fmt: skip


def test_every_field_of_the_sampling_is_tried_below():
    assert set(OTHERS) == {field.name for field in fields(SamplingParams)}


def states(requests, **options):
    """What the cache says to (model, request, tenant) one after another."""

    async def main():
        cache = cache_of(**options)
        found = []
        for model, asked, tenant in requests:
            found.append((await ask(cache, model, asked, tenant))[0])
            await settle()
        return found

    return asyncio.run(main())


@pytest.mark.parametrize("name", OTHERS)
def test_each_field_of_the_sampling_makes_another_answer(name):
    async def main():
        cache, model = cache_of(), Model(ANSWER)
        plain = request(0, seed=7)
        other = replace(plain, sampling=replace(plain.sampling, **{name: OTHERS[name]}))
        for asked, wanted in ((plain, "miss"), (other, "miss"), (plain, "hit")):
            assert (await ask(cache, model, asked))[0] == wanted
            await settle()

    asyncio.run(main())


def test_what_else_makes_another_answer(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "adapter_config.json").write_text(name)
        (tmp_path / name / "adapter_model.safetensors").write_text("")
    first = Model(ANSWER, adapters={"l": str(tmp_path / "a"), "m": str(tmp_path / "a")})
    others = [
        (first, request(0, adapter="l"), ""),
        (first, request(0, adapter="m"), ""),
        (Model(ANSWER, adapters={"l": str(tmp_path / "b")}), request(0, adapter="l"), ""),
        (first, request(0), ""),
        (first, request(0), "other"),
        (first, request(0, prompt=(1, 2)), ""),
        (Model(ANSWER, digest="e"), request(0), ""),
        (Model(ANSWER, options=EngineOptions()), request(0), ""),
        (Model(ANSWER, options=EngineOptions(weights="int8")), request(0), ""),
    ]
    assert states(others) == ["miss"] * len(others)
    assert states([*others, *others])[len(others) :] == ["hit"] * len(others)


def test_an_adapter_that_changed_is_another(tmp_path):
    config, weights = tmp_path / "adapter_config.json", tmp_path / "adapter_model.safetensors"
    config.write_text("{}")
    weights.write_text("1")

    async def main():
        cache, model = cache_of(), Model(ANSWER, adapters={"l": str(tmp_path)})
        for text, wanted in (("1", "miss"), ("1", "hit"), ("22", "miss")):
            weights.write_text(text)
            assert (await ask(cache, model, request(0, adapter="l")))[0] == wanted
            await settle()

    asyncio.run(main())


def test_what_makes_no_other_answer():
    model = Model(ANSWER)
    bias = {"logit_bias": {5: 1, 3: 2}, "temperature": 0, "top_p": 1}
    same = {"logit_bias": {3: 2.0, 5: 1.0}, "temperature": -0.0, "top_p": 1.0}
    late = time.monotonic() + 99
    requests = [
        (model, request(0, **bias), ""),
        (model, request(1, **same, priority=3, deadline=late), ""),
        (Model(ANSWER, options=None), request(2, **bias), ""),
    ]
    assert states(requests) == ["miss", "hit", "hit"]
    threads = [Model(ANSWER, options=EngineOptions(threads=n, chunk=n * 64)) for n in (1, 2)]
    assert states([(one, request(0), "") for one in threads]) == ["miss", "hit"]


def test_only_repeatable_requests_unless_asked():
    model = Model(ANSWER)
    sampled = [(model, request(0, temperature=1.0), "")] * 2
    assert states(sampled) == ["off", "off"]
    assert states(sampled, cache_sampled=True) == ["miss", "hit"]
    seeded = [(model, request(0, temperature=1.0, seed=1), "")] * 2
    assert states(seeded) == ["miss", "hit"]
    assert states(seeded, response_cache=None) == ["off", "off"]


def test_a_request_that_wants_no_other_answer_gets_its_own():
    async def main():
        cache, model = cache_of(), Model(ANSWER)
        await ask(cache, model, request(1))
        await settle()
        state, outputs, _ = await ask(cache, model, request(2), wanted=False)
        assert (state, len(model.sources), len(outputs)) == ("off", 2, 3)
        found = cache.statistics()
        assert (found.hits, found.joined, found.misses) == (0, 0, 1)

    asyncio.run(main())


def test_files_that_went_away_switch_the_cache_off():
    model = Model(ANSWER, digest=ModelFileError("gone"))
    assert states([(model, request(0), "")]) == ["off"]
    missing = Model(ANSWER, adapters={"l": "/nowhere"})
    assert states([(missing, request(0, adapter="l"), "")]) == ["off"]


def test_answers_expire_and_the_oldest_make_room():
    model = Model(ANSWER)
    one = (model, request(1, prompt=(1,)), "")
    others = [(model, request(1, prompt=(n,)), "") for n in range(2, 20)]
    assert states([one, *others, one], response_cache=2000)[-1] == "miss"
    assert states([one, one], cache_seconds=0.0) == ["miss", "miss"]

    async def main():
        cache = cache_of(response_cache=2000)
        for _, asked, _ in others:
            await ask(cache, model, asked)
            await settle()
        found = cache.statistics()
        assert found.evictions == len(others) - found.entries > 0
        assert 0 < found.bytes <= 2000

    asyncio.run(main())


@pytest.mark.parametrize("last", ["cancelled", "error", "deadline", None])
def test_only_whole_answers_are_kept(last):
    broken = [ANSWER[0]] if last is None else [ANSWER[0], [output("", last)]]
    model = Model(broken)
    assert states([(model, request(0), ""), (model, request(0), "")]) == ["miss", "miss"]

    async def main():
        cache = cache_of()
        await ask(cache, model, request(0))
        await settle()
        assert cache.statistics().entries == 0

    asyncio.run(main())
    half = Model([ANSWER[0], [output("", "stop", 1)]])
    assert states([(half, request(0, n=2), "")] * 2) == ["miss", "miss"]
    both = Model([ANSWER[0], [output("", "stop", 1)], [output("", "length", 0)]])
    assert states([(both, request(0, n=2), "")] * 2) == ["miss", "hit"]


def test_the_same_request_in_flight_is_computed_once():
    async def main():
        cache, model = cache_of(), Model()
        asks = [asyncio.create_task(ask(cache, model, request(n))) for n in range(3)]
        await settle()
        (source,) = model.sources
        source.give(ANSWER[0])
        await settle()
        asks.append(asyncio.create_task(ask(cache, model, request(3))))
        await settle()
        assert cache.statistics().in_flight == 1
        source.give(ANSWER[1], None)
        answers = await asyncio.gather(*asks)
        assert [state for state, *_ in answers] == ["miss", "joined", "joined", "joined"]
        for number, (_, outputs, error) in enumerate(answers):
            assert (outputs, error) == (named(WHOLE, f"r{number}"), None)
        assert len(model.sources) == 1

    asyncio.run(main())


def test_others_go_on_when_the_first_leaves_and_the_last_ends_it():
    async def main():
        cache, model = cache_of(), Model()
        streams = [
            (await cache.submit(model, request(n), tenant="", wanted=True))[1] for n in range(3)
        ]
        (source,) = model.sources
        source.give(ANSWER[0])
        await settle()
        streams[0].cancel()
        streams[0].cancel()
        await settle()
        assert await read(streams[0]) == ([], None)
        assert not source.cancelled
        streams[1].cancel()
        await settle()
        assert not source.cancelled
        assert await anext(streams[2]) == named(ANSWER[0], "r2")
        streams[2].cancel()
        await settle()
        assert source.cancelled
        assert cache.statistics().in_flight == 0
        # Whoever asks now starts anew.
        state, stream = await cache.submit(model, request(4), tenant="", wanted=True)
        assert (state, len(model.sources)) == ("miss", 2)
        stream.cancel()

    asyncio.run(main())


def test_leaving_before_the_engine_has_accepted():
    async def main():
        cache, model = cache_of(), Model()
        model.gate.clear()
        for wait in (False, True):
            task = asyncio.create_task(ask(cache, model, request(0)))
            if wait:
                await settle()
            else:
                await asyncio.sleep(0)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            await settle()
            assert (cache.statistics().in_flight, model.sources) == (0, [])

    asyncio.run(main())


def test_what_the_engine_refuses_is_refused_to_all():
    async def main():
        cache, model = cache_of(), Model(refuse=UsageError("no"))
        found = await asyncio.gather(
            *(ask(cache, model, request(n)) for n in range(3)), return_exceptions=True
        )
        assert all(isinstance(error, UsageError) for error in found)
        assert cache.statistics().in_flight == 0
        assert cache.statistics().misses == 0

    asyncio.run(main())


def test_a_lost_engine_is_told_to_all_after_what_came():
    async def main():
        cache, model = cache_of(), Model()
        asks = [asyncio.create_task(ask(cache, model, request(n))) for n in range(2)]
        await settle()
        model.sources[0].give(ANSWER[0], EngineLostError("gone"))
        for number, (_, outputs, error) in enumerate(await asyncio.gather(*asks)):
            assert outputs == named(ANSWER[0], f"r{number}")
            assert isinstance(error, EngineLostError)
        again = asyncio.create_task(ask(cache, model, request(9)))
        await settle()
        model.sources[1].give(*ANSWER, None)
        assert (await again)[0] == "miss"

    asyncio.run(main())


def test_each_has_its_own_deadline():
    async def main():
        cache, model = cache_of(), Model()
        now = time.monotonic()
        deadlines = [now + 0.05, None, now + 0.02, now + 60]
        asks = [
            asyncio.create_task(ask(cache, model, request(n, deadline=d)))
            for n, d in enumerate(deadlines)
        ]
        for number in (2, 0):
            _, outputs, error = await asks[number]
            assert outputs == []
            assert isinstance(error, DeadlineError)
        (source,) = model.sources
        assert not source.cancelled
        assert source.asked.deadline is None
        source.give(*ANSWER, None)
        for number in (1, 3):
            assert (await asks[number])[1:] == (named(WHOLE, f"r{number}"), None)

    asyncio.run(main())


def test_a_deadline_after_the_end_is_none():
    """Also where the answer is read later than that."""

    async def main():
        cache, model = cache_of(), Model(ANSWER)
        asked = request(0, deadline=time.monotonic() + 0.05)
        _, stream = await cache.submit(model, asked, tenant="", wanted=True)
        await asyncio.sleep(0.08)
        assert await read(stream) == (named(WHOLE, "r0"), None)

    asyncio.run(main())


def test_the_last_deadline_ends_the_computation():
    async def main():
        cache, model = cache_of(), Model()
        late = request(0, deadline=time.monotonic() + 0.02)
        _, _, error = await ask(cache, model, late)
        assert isinstance(error, DeadlineError)
        await settle()
        assert model.sources[0].cancelled
        model.gate.clear()
        with pytest.raises(DeadlineError):
            await ask(cache, model, request(1, deadline=time.monotonic() + 0.02))
        assert cache.statistics().in_flight == 0

    asyncio.run(main())


def test_tenants_share_nothing():
    async def main():
        cache, model = cache_of(), Model()
        asks = [
            asyncio.create_task(ask(cache, model, request(n), tenant=tenant))
            for n, tenant in enumerate(["a", "b", "a"])
        ]
        await settle()
        assert len(model.sources) == 2
        for source in model.sources:
            source.give(*ANSWER, None)
        assert [state for state, *_ in await asyncio.gather(*asks)] == ["miss", "miss", "joined"]

    asyncio.run(main())


def test_a_more_urgent_request_does_not_wait_for_a_less_urgent_one():
    async def main():
        cache, model = cache_of(), Model()
        asks = [
            asyncio.create_task(ask(cache, model, request(n, priority=priority)))
            for n, priority in enumerate([5, 1, 9])
        ]
        await settle()
        assert [source.asked.priority for source in model.sources] == [5, 1]
        for source in model.sources:
            source.give(*ANSWER, None)
        assert [state for state, *_ in await asyncio.gather(*asks)] == ["miss", "miss", "joined"]
        assert cache.statistics().in_flight == 0

    asyncio.run(main())


@pytest.mark.parametrize("bound", ["LARGEST", "IN_FLIGHT"])
def test_what_is_too_much_to_keep_is_not_joined_and_not_stored(bound, monkeypatch):
    """Those who follow already get all of it."""
    monkeypatch.setattr(answers_module, bound, 2000)

    async def main():
        cache, model = cache_of(), Model()
        asks = [asyncio.create_task(ask(cache, model, request(n))) for n in range(2)]
        await settle()
        model.sources[0].give([output("x" * 100)])
        await settle()
        asks.append(asyncio.create_task(ask(cache, model, request(2))))
        await settle()
        assert len(model.sources) == 2
        for source in model.sources:
            source.give([output("x" * 100)], [output("", "stop")], None)
        answers = await asyncio.gather(*asks)
        assert [state for state, *_ in answers] == ["miss", "joined", "miss"]
        lengths = [sum(len(o.text) for o in outputs) for _, outputs, _ in answers]
        assert lengths == [200, 200, 100]
        await settle()
        assert cache._budget.used == 0
        assert cache.statistics().entries == 0

    asyncio.run(main())


def test_closing_ends_what_is_in_flight():
    async def main():
        cache, model = cache_of(), Model()
        task = asyncio.create_task(ask(cache, model, request(0)))
        await settle()
        await cache.close()
        _, outputs, error = await task
        assert outputs == []
        assert isinstance(error, EngineLostError)
        assert model.sources[0].cancelled

    asyncio.run(main())


steps = st.lists(
    st.one_of(
        st.just(("give",)),
        st.tuples(st.just("join"), st.integers(0, 3)),
        st.tuples(st.just("leave"), st.integers(0, 9)),
        st.tuples(st.just("read"), st.integers(0, 9)),
        st.just(("settle",)),
    ),
    max_size=30,
)


@settings(deadline=None, max_examples=150)
@given(steps, st.sampled_from(["end", "lost"]))
def test_followers_get_what_the_first_gets_however_it_interleaves(steps, end):
    """Those who stay to the end; and the engine's stream goes when all have left."""

    async def main():
        cache, model = cache_of(), Model()
        live, got, given_of = {}, {}, {}
        numbers = iter(range(1000))

        async def join():
            number = next(numbers)
            _, stream = await cache.submit(model, request(number), tenant="", wanted=True)
            live[number], got[number] = stream, []

        await join()
        for step in steps:
            match step:
                case ("give",) if model.sources and not model.sources[-1].cancelled:
                    source = model.sources[-1]
                    batch = [output(chr(97 + len(given_of.setdefault(source, []))))]
                    given_of[source] += batch
                    source.give(batch)
                case ("join", _):
                    await join()
                case ("leave", pick) if live:
                    number = sorted(live)[pick % len(live)]
                    live.pop(number).cancel()
                case ("read", pick) if live:
                    number = sorted(live)[pick % len(live)]
                    if live[number]._ready:
                        got[number] += await anext(live[number])
                case ("settle",):
                    await settle()
        await settle()
        assert sum(not source.cancelled for source in model.sources) == bool(live)
        if not live:
            assert cache.statistics().in_flight == 0
            return
        source = model.sources[-1]
        last = [output("", "stop")]
        source.give(last if end == "end" else EngineLostError("gone"), None)
        whole = given_of.get(source, []) + (last if end == "end" else [])
        for number, stream in live.items():
            rest, error = await read(stream)
            assert got[number] + rest == named(whole, f"r{number}")
            assert isinstance(error, EngineLostError) == (end == "lost")
        await settle()
        assert cache.statistics().in_flight == 0
        assert cache._budget.used == 0

    asyncio.run(main())

"""Engines come when they are asked for and go when nobody needs them; with engines that pretend."""

import asyncio
from dataclasses import replace
from shutil import copytree, rmtree

import pytest
from registry_fakes import serving, until

from hasten.errors import (
    CapacityError,
    EngineLostError,
    ModelFileError,
    NotFoundError,
    OverloadError,
    UsageError,
)
from hasten.serve.registry import pool

TWO_FIT = 160 << 20
ONE_FITS = 100 << 20


def test_a_model_is_loaded_when_it_is_asked_for_and_stays(registry, floor, spec):
    async def go():
        async with serving(registry()) as models:
            models.add("a", spec(), at_start=False)
            await models.start()
            assert models.describe("a").state == "known"
            async with models.use("a:latest") as served:
                assert served.name == "a"
                assert served.engine is floor.running[0]
                assert served.model.tokenizer.encode("ab") != []
                assert served.spell(3) == b" "
                assert served.load_seconds > 0
            async with models.use("a"):
                pass
            info = models.describe("a")
            assert (info.state, info.expires) == ("ready", None)
            assert [one.name for one in models.running()] == ["a"]
        assert floor.events == [("start", "a"), ("stop", "a")]

    asyncio.run(go())


def test_those_who_come_while_it_loads_wait_for_the_same_load(registry, floor, spec):
    async def go():
        async with serving(registry()) as models:
            models.add("a", spec(), at_start=False)
            floor.starting.clear()
            tasks = [asyncio.create_task(models.load("a")) for _ in range(20)]
            await until(lambda: floor.events)
            assert models.describe("a").state == "loading"
            tasks[0].cancel()
            floor.starting.set()
            done = await asyncio.gather(*tasks, return_exceptions=True)
            assert isinstance(done[0], asyncio.CancelledError)
            assert done[1:] == [None] * 19
            assert floor.count("start") == 1

    asyncio.run(go())


def test_a_load_that_nobody_waits_for_any_more_ends_as_if_it_had_been_used(registry, floor, spec):
    async def go():
        async with serving(registry(keep_alive=0.01)) as models:
            models.add("a", spec(), at_start=False)
            floor.starting.clear()
            task = asyncio.create_task(models.load("a"))
            await until(lambda: floor.events)
            task.cancel()
            floor.starting.set()
            await until(lambda: floor.count("stop"))
            assert models.describe("a").state == "known"

    asyncio.run(go())


def test_a_failed_load_tells_every_waiter_and_can_be_tried_again(registry, floor, spec):
    async def go():
        async with serving(registry()) as models:
            models.add("a", spec(), at_start=False)
            floor.failing = True
            loads = (models.load("a") for _ in range(5))
            errors = await asyncio.gather(*loads, return_exceptions=True)
            assert all(isinstance(error, CapacityError) for error in errors)
            assert models.describe("a").state == "known"
            floor.failing = False
            await models.load("a")
            assert models.describe("a").state == "ready"

    asyncio.run(go())


def test_a_file_that_has_gone_is_told(registry, floor, spec, tmp_path, tiny_model):
    async def go():
        copytree(tiny_model, tmp_path / "copy")
        async with serving(registry()) as models:
            models.add("a", replace(spec(), model=str(tmp_path / "copy")), at_start=False)
            await models.start()
            rmtree(tmp_path / "copy")
            with pytest.raises(ModelFileError):
                await models.load("a")
            assert floor.events == []

    asyncio.run(go())


@pytest.mark.parametrize(("keep_alive", "stays"), [(0, False), (0.02, False), (-1, True)])
def test_how_long_a_model_stays_is_up_to_the_request(registry, floor, spec, keep_alive, stays):
    async def go():
        async with serving(registry(keep_alive=1000)) as models:
            models.add("a", spec(), at_start=False)
            await models.load("a", keep_alive)
            if stays:
                assert models.describe("a").expires is None
                assert models.describe("a").state == "ready"
            else:
                await until(lambda: floor.count("stop"))
            await models.load("a")
            assert models.describe("a").expires is not None

    asyncio.run(go())


def test_a_model_in_use_does_not_expire(registry, floor, spec):
    async def go():
        async with serving(registry(keep_alive=0.01)) as models:
            models.add("a", spec(), at_start=False)
            await models.load("a")
            async with models.use("a"):
                await models.load("a", 0)
                await asyncio.sleep(0.05)
                assert floor.count("stop") == 0
            await until(lambda: floor.count("stop"))

    asyncio.run(go())


def test_unloading_lets_requests_end_and_later_ones_load_again(registry, floor, spec):
    async def go():
        async with serving(registry()) as models:
            models.add("a", spec(), at_start=False)
            assert await models.unload("a")
            async with models.use("a") as first:
                assert not await models.unload("a")
                assert models.describe("a").state == "unloading"
                later = asyncio.create_task(models.use("a").__aenter__())
                await asyncio.sleep(0.02)
                assert not later.done()
                assert first.engine.state == "ready"
            second = await later
            assert second.engine is not first.engine
            assert first.engine.state == "stopped"
            assert floor.events == [("start", "a"), ("stop", "a"), ("start", "a")]

    asyncio.run(go())


def test_unloading_while_it_loads_does_not_take_it_from_those_who_wait(registry, floor, spec):
    async def go():
        async with serving(registry()) as models:
            models.add("a", spec(), at_start=False)
            floor.starting.clear()
            waiting = asyncio.create_task(models.load("a"))
            await until(lambda: floor.events)
            assert not await models.unload("a")
            floor.starting.set()
            await waiting
            await until(lambda: floor.count("stop"))

    asyncio.run(go())


def test_what_was_used_longest_ago_makes_room(registry, floor, spec):
    async def go():
        async with serving(registry(memory=TWO_FIT)) as models:
            for number, name in enumerate("abc"):
                models.add(name, spec(max_sequences=number + 1), at_start=False)
            for name in "ab":
                await models.load(name)
            await models.load("a")
            await models.load("c")
            assert {engine.name for engine in floor.running} == {"a", "c"}
            assert floor.events[-2:] == [("stop", "b"), ("start", "c")]

    asyncio.run(go())


def test_what_is_in_use_makes_no_room(registry, floor, spec):
    async def go():
        async with serving(registry(memory=ONE_FITS)) as models:
            models.add("a", spec(), at_start=False)
            models.add("b", spec(max_sequences=1), at_start=False)
            async with models.use("a"):
                with pytest.raises(OverloadError, match=r"GiB of 0.10 GiB") as told:
                    await models.load("b")
                assert told.value.retry_after > 0
                assert floor.count("stop") == 0
            await models.load("b")
            assert [engine.name for engine in floor.running] == ["b"]

    asyncio.run(go())


def test_what_is_leaving_makes_room_without_another_leaving(registry, floor, spec):
    async def go():
        async with serving(registry(memory=TWO_FIT)) as models:
            for number, name in enumerate("abc"):
                models.add(name, spec(max_sequences=number + 1), at_start=False)
            await models.load("a")
            await models.load("b")
            floor.stopping.clear()
            leaving = asyncio.create_task(models.unload("b"))
            await until(lambda: floor.count("stop"))
            loading = asyncio.create_task(models.load("c"))
            await asyncio.sleep(0.05)
            assert floor.count("start") == 2
            floor.stopping.set()
            await asyncio.gather(leaving, loading)
            assert {engine.name for engine in floor.running} == {"a", "c"}

    asyncio.run(go())


def test_what_never_fits_is_refused_and_nothing_is_unloaded_for_it(registry, floor, spec):
    async def go():
        async with serving(registry(memory=ONE_FITS)) as models:
            models.add("a", spec(), at_start=False)
            models.add("b", spec(kv_memory=1 << 30), at_start=False)
            await models.load("a")
            with pytest.raises(CapacityError, match=r"1\.00 GiB"):
                await models.load("b")
            assert floor.count("stop") == 0

    asyncio.run(go())


def test_engines_that_take_more_than_was_estimated_count_as_what_they_take(registry, floor, spec):
    async def go():
        floor.memory = {"weights": 90 << 20}
        async with serving(registry(memory=TWO_FIT)) as models:
            models.add("a", spec(), at_start=False)
            models.add("b", spec(max_sequences=1), at_start=False)
            await models.load("a")
            assert models.describe("a").memory > 150 << 20
            await models.load("b")
            assert [engine.name for engine in floor.running] == ["b"]

    asyncio.run(go())


def test_caches_fit_what_the_budget_leaves(registry, floor, spec):
    async def go():
        memory = 200 << 20
        async with serving(registry(memory=memory)) as models:
            for number in range(2):
                models.add(str(number), spec(max_context=128, max_sequences=4000 + number))
            await models.start()
            caches = [engine.spec.options.kv_memory for engine in floor.running]
            assert len(caches) == 2
            assert all(cache > 16 << 20 for cache in caches)
            assert sum(caches) + 2 * (64 << 20) < memory

    asyncio.run(go())


def test_models_that_do_not_fit_together_are_loaded_as_they_are_asked_for(registry, floor, spec):
    async def go():
        async with serving(registry(memory=TWO_FIT)) as models:
            for number, name in enumerate("abc"):
                models.add(name, spec(max_sequences=number + 1))
            assert models.engines() == {"a": None, "b": None, "c": None}
            await models.start()
            assert models.engines() == {engine.name: engine for engine in floor.running}
            assert set(models.engines()) == {"a", "b"}
            await models.load("c")
            assert floor.count("start") == 3

    asyncio.run(go())


def test_a_model_that_cannot_be_loaded_fails_the_start(registry, floor, spec):
    async def go():
        floor.failing = True
        async with serving(registry()) as models:
            models.add("a", spec())
            with pytest.raises(CapacityError, match="met something"):
                await models.start()

    asyncio.run(go())


def test_names_of_one_engine_share_it(registry, floor, spec):
    async def go():
        async with serving(registry()) as models:
            models.add("a", spec(), at_start=False)
            await models.copy("a", "b")
            async with models.use("b") as second, models.use("a") as first:
                assert first.engine is second.engine
                assert (first.name, second.name) == ("a", "b")
            assert [info.name for info in models.running()] == ["a"]
            assert models.describe("b").state == "ready"

    asyncio.run(go())


def test_adapters_are_models_of_their_own_names(registry, floor, spec):
    async def go(monkeypatch):
        monkeypatch.setattr(pool, "adapter_options", lambda model, options, adapters: options)
        async with serving(registry()) as models:
            models.add("a", replace(spec(), adapters={"tuned": "/adapters/tuned"}), at_start=False)
            async with models.use("tuned") as tuned, models.use("a") as base:
                assert tuned.engine is base.engine
                assert (tuned.adapter, base.adapter) == ("tuned", None)
            info = models.describe("tuned")
            assert (info.adapter, info.parent, info.state) == ("tuned", "a", "ready")
            assert models.engines() == {"a": floor.running[0]}

    with pytest.MonkeyPatch.context() as patch:
        asyncio.run(go(patch))


def test_names_are_unique_and_unknown_ones_not_found(registry, spec):
    async def go():
        async with serving(registry()) as models:
            models.add("a", spec())
            with pytest.raises(UsageError, match="two models"):
                models.add("a:latest", spec(max_sequences=1))
            with pytest.raises(UsageError, match="no name"):
                models.add("../a", spec())
            for name in ("b", "../a", "/etc/passwd", "\0", "a" * 10_000):
                with pytest.raises(NotFoundError):
                    await models.load(name)
                with pytest.raises(NotFoundError):
                    models.describe(name)

    asyncio.run(go())


def test_closing_ends_loads_and_uses(registry, floor, spec):
    async def go():
        models = registry()
        models.add("a", spec(), at_start=False)
        models.add("b", spec(max_sequences=1), at_start=False)
        async with models.use("a"):
            floor.starting.clear()
            waiting = asyncio.create_task(models.load("b"))
            await until(lambda: floor.count("start") == 2)
            await models.close()
            assert floor.running == []
            with pytest.raises(EngineLostError):
                await waiting
        with pytest.raises(EngineLostError):
            await models.load("a")

    asyncio.run(go())


def test_closing_waits_for_what_ends_already(registry, floor, spec):
    async def go():
        models = registry()
        models.add("a", spec(), at_start=False)
        await models.load("a")
        floor.stopping.clear()
        unloading = asyncio.create_task(models.unload("a"))
        await until(lambda: floor.count("stop"))
        closing = asyncio.create_task(models.close())
        await asyncio.sleep(0.02)
        assert not closing.done()
        floor.stopping.set()
        await closing
        assert floor.events == [("start", "a"), ("stop", "a")]
        assert await unloading

    asyncio.run(go())


def test_many_users_of_few_places_leave_nothing_behind(registry, floor, spec):
    async def go():
        async with serving(registry(memory=TWO_FIT, keep_alive=0.01)) as models:
            for number, name in enumerate("abcd"):
                models.add(name, spec(max_sequences=number + 1), at_start=False)
            served = refused = 0

            async def client(number):
                nonlocal served, refused
                for step in range(10):
                    try:
                        async with models.use("abcd"[(number + step) % 4]) as one:
                            assert one.engine.state == "ready"
                            assert len(floor.running) <= 2
                            await asyncio.sleep(0.001)
                            assert one.engine.state == "ready"
                        served += 1
                    except OverloadError:
                        refused += 1
                        await asyncio.sleep(0.002)

            await asyncio.gather(*(client(number) for number in range(8)))
            assert served > 0
            assert served + refused == 80
            await until(lambda: not floor.running)
            assert models.running() == []

    asyncio.run(go())

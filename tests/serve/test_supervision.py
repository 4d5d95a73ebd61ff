"""A worker process that ends or hangs: what was in flight fails soon, and another takes over."""

import asyncio
import contextlib
import gc
import itertools
import os
import signal
import subprocess
import sys
from pathlib import Path
from time import monotonic, sleep

import pytest

from hasten.errors import DeadlineError, EngineLostError, OverloadError
from hasten.serve import link
from hasten.serve.engine_process import EngineProcess, EngineSpec, Supervision
from hasten.types import Request

sys.path.insert(0, str(Path(__file__).parent))
from workers import (
    LONG,
    PROMPT,
    answer,
    children,
    end_of,
    lengthen,
    request,
    spec_of,
    started,
    until,
)

HERE = Path(__file__).parent
SOON = 1.0  # seconds in which requests must end when the worker does


@pytest.fixture(scope="module")
def long_spec(tiny_model, tmp_path_factory):
    """Of an engine whose `LONG` answers take seconds."""
    model = lengthen(tiny_model, tmp_path_factory.mktemp("long"))
    return spec_of(model, max_context=60_000, max_sequences=4, kv="int8")


def kill_all_but(others):
    """Ends the workers of a test, which are all that this process started since."""
    for pid in children() - others:
        os.kill(pid, signal.SIGKILL)


def long_request(number=0):
    return Request(f"long {number}", PROMPT, LONG)


@pytest.fixture
def false_worker(monkeypatch):
    """Makes workers start that misbehave."""

    def choose(how):
        def start(descriptor):
            starts.append(monotonic())
            return subprocess.Popen(
                [sys.executable, HERE / "false_worker.py", how, str(descriptor)],
                pass_fds=[descriptor],
            )

        starts = []
        monkeypatch.setattr(link, "_start", start)
        return starts

    return choose


@pytest.mark.parametrize("signal_", [signal.SIGKILL, signal.SIGSEGV, signal.SIGABRT])
def test_a_worker_that_is_killed(long_spec, signal_):
    async def scenario():
        async with started(long_spec) as engine:
            streams = [await engine.submit(long_request(number)) for number in range(8)]
            await anext(streams[0])
            ends = [asyncio.create_task(end_of(stream)) for stream in streams]
            asking = asyncio.create_task(engine.submit(long_request(9)))
            await asyncio.sleep(0)
            os.kill(engine.info.pid, signal_)
            killed = monotonic()
            asking.add_done_callback(lambda _: times.append(monotonic()))
            times = []
            for kind, when in await asyncio.gather(*ends):
                assert kind is EngineLostError
                assert when - killed < SOON
            with contextlib.suppress(EngineLostError):
                (await asking).cancel()
            assert times[0] - killed < SOON
            assert engine.state == "restarting"
            assert len(await answer(engine, request(max_tokens=5, ignore_eos=True))) == 5
            assert (engine.state, engine.restarts) == ("ready", 1)
            assert engine.failure is None
            # What was read before the end stays readable; what follows is the error.
            with pytest.raises(EngineLostError, match="ended while the request was in it"):
                async for _ in streams[0]:
                    pass

    asyncio.run(scenario())


def test_texts_to_embed_when_the_worker_is_killed(tiny_model):
    async def scenario():
        async with started(spec_of(tiny_model, kind="embed")) as engine:
            task = asyncio.create_task(engine.embed(["word " * 15] * 5000))
            await asyncio.sleep(0.1)
            os.kill(engine.info.pid, signal.SIGKILL)
            killed = monotonic()
            with pytest.raises(EngineLostError):
                await task
            assert monotonic() - killed < SOON
            vectors, _ = await engine.embed(["word"])
            assert len(vectors) == 1

    asyncio.run(scenario())


def test_many_kills_under_load(long_spec):
    async def client(engine, number, ends, stop):
        while not stop.is_set():
            try:
                outputs = await answer(engine, request(number, max_tokens=300, ignore_eos=True))
            except EngineLostError:
                ends.append("lost")
            else:
                assert sum(len(output.tokens) for output in outputs) == 300
                ends.append("whole")

    async def scenario():
        ends, stop = [], asyncio.Event()
        async with started(long_spec) as engine:
            async with asyncio.TaskGroup() as group:
                for number in range(6):
                    group.create_task(client(engine, number, ends, stop))
                for kill in range(20):
                    await engine.wait_ready(10)
                    assert await engine.self_test(10)  # one that gave output is started at once
                    await asyncio.sleep(0.01 * kill)
                    if engine.info is not None:
                        os.kill(engine.info.pid, signal.SIGKILL)
                    await until(lambda kill=kill: engine.restarts > kill)
                stop.set()
            assert engine.restarts == 20
            assert await engine.self_test(10)
        assert ends.count("lost") >= 20
        assert ends.count("whole") >= 6

    asyncio.run(scenario())


@pytest.mark.parametrize("busy", [True, False])
def test_a_worker_that_stands_still_is_replaced(long_spec, busy):
    async def scenario():
        async with started(long_spec, hang=1.0) as engine:
            stream = await engine.submit(long_request())
            if not busy:
                stream.cancel()
            os.kill(engine.info.pid, signal.SIGSTOP)
            stopped = monotonic()
            await until(lambda: engine.state == "restarting")
            assert monotonic() - stopped < 5
            if busy:
                assert (await end_of(stream))[0] is EngineLostError
            assert await engine.self_test(10)
            assert engine.restarts == 1

    asyncio.run(scenario())


def test_a_worker_that_is_busy_is_left_alone(long_spec):
    async def scenario():
        async with started(long_spec, hang=1.5, stall=1.5) as engine:
            stream = await engine.submit(long_request())
            await asyncio.sleep(2.5)
            stream.cancel()
            assert engine.restarts == 0

    asyncio.run(scenario())


def test_a_server_that_stands_still_blames_no_worker(long_spec):
    async def scenario():
        async with started(long_spec, hang=1.5, stall=1.5) as engine:
            stream = await engine.submit(long_request())
            for _ in range(2):
                sleep(2)  # the event loop's thread
                await asyncio.sleep(0.01)
            stream.cancel()
            assert engine.restarts == 0

    asyncio.run(scenario())


def test_a_worker_whose_steps_do_not_end(false_worker):
    false_worker("accepts")

    async def scenario():
        async with started(EngineSpec("none"), hang=1.0, stall=1.0) as engine:
            await asyncio.sleep(1.5)  # nothing to do: nothing is wrong
            assert engine.restarts == 0
            stream = await engine.submit(request())
            kind, _ = await end_of(stream)
            assert kind is EngineLostError
            await engine.wait_ready(10)
            assert not await engine.self_test(0.2)

    asyncio.run(scenario())


@pytest.mark.parametrize("how", ["writes-nonsense", "lies-about-lengths"])
def test_a_worker_that_writes_no_messages(false_worker, how):
    false_worker(how)

    async def scenario():
        async with started(EngineSpec("none")) as engine:
            with pytest.raises(EngineLostError):
                await answer(engine, request())
            await until(lambda: engine.restarts == 1)

    asyncio.run(scenario())


def test_a_worker_that_does_not_end_when_asked(false_worker):
    false_worker("ignores-the-end")

    async def scenario():
        async with started(EngineSpec("none"), farewell=0.2) as engine:
            stream = await engine.submit(request())
            await engine.stop()
            with pytest.raises(EngineLostError, match="was stopped"):
                await anext(stream)

    asyncio.run(scenario())


def test_a_first_start_that_ends_without_a_word(false_worker):
    starts = false_worker("dies-at-once")
    others = children()

    async def scenario():
        engine = EngineProcess(EngineSpec("none"), name="none")
        with pytest.raises(EngineLostError, match="exited with status 3"):
            await engine.start()
        assert engine.state == "failed"
        assert len(starts) == 1
        assert children() == others

    asyncio.run(scenario())


def test_a_start_that_is_given_up(false_worker):
    false_worker("never-opens")
    others = children()

    async def scenario():
        engine = EngineProcess(EngineSpec("none"), name="none")
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.3):
                await engine.start()
        with pytest.raises(EngineLostError, match=r"not ready after 0\.1 s"):
            await engine.wait_ready(0.1)
        await engine.stop()
        assert children() == others

    asyncio.run(scenario())


def test_a_start_right_after_a_stop(long_spec):
    async def scenario():
        async with started(long_spec) as engine:
            for _ in range(3):
                stream = await engine.submit(long_request())
                pid = engine.info.pid
                stopping = asyncio.create_task(engine.stop())
                await asyncio.sleep(0)
                await engine.start()
                assert engine.info.pid != pid
                await stopping
                assert (await end_of(stream))[0] is EngineLostError
                assert engine.state == "ready"
            assert await engine.self_test(10)

    asyncio.run(scenario())


def test_workers_that_die_young_are_started_less_and_less_often(false_worker):
    starts = false_worker("dies-when-ready")

    async def scenario():
        engine = EngineProcess(
            EngineSpec("none"), name="none", supervision=Supervision(wait=0.2, tries=4)
        )
        starting = asyncio.create_task(engine.start())
        try:
            await until(lambda: engine.restarts == 3)
            with pytest.raises(EngineLostError, match="not ready"):
                await engine.submit(request())
            await until(lambda: engine.state == "failed")
            with pytest.raises(EngineLostError, match="exited with status 4"):
                await engine.submit(request())
        finally:
            await engine.stop()
            await asyncio.wait([starting])  # it was ready, for a moment

    asyncio.run(scenario())
    assert len(starts) == 4
    pauses = [later - earlier for earlier, later in itertools.pairwise(starts)]
    assert pauses[1] >= 0.5
    assert pauses[2] >= 1.0


def test_an_engine_that_cannot_be_started_again(false_worker):
    false_worker("accepts")

    async def scenario():
        others = children()
        async with started(EngineSpec("none"), tries=2, rest=1.0, steady=0.0) as engine:
            false_worker("dies-at-once")
            kill_all_but(others)
            await until(lambda: engine.state == "restarting")
            waiting = asyncio.create_task(engine.submit(request()))
            await until(lambda: engine.state == "failed")
            with pytest.raises(
                EngineLostError, match=r"cannot be started: .* exited with status 3"
            ):
                await waiting
            with pytest.raises(EngineLostError, match="cannot be started"):
                await engine.submit(request())
            with pytest.raises(EngineLostError, match="exited with status 3"):
                await engine.start()
            assert engine.state == "failed"
            false_worker("accepts")
            await engine.start()
            assert engine.state == "ready"
            false_worker("dies-at-once")
            kill_all_but(others)
            await until(lambda: engine.state == "failed")
            false_worker("accepts")
            await until(lambda: engine.state == "ready")  # by itself, after its rest

    asyncio.run(scenario())


def test_those_who_wait_for_a_start_are_bounded(false_worker):
    false_worker("accepts")

    async def scenario():
        others = children()
        async with started(EngineSpec("none"), wait=0.5, waiting=2) as engine:
            false_worker("never-opens")
            kill_all_but(others)
            await until(lambda: engine.state == "restarting")
            patient = asyncio.create_task(engine.submit(request()))
            hasty = Request("hasty", PROMPT, LONG, deadline=monotonic() + 0.1)
            late = asyncio.create_task(engine.submit(hasty))
            await asyncio.sleep(0)
            with pytest.raises(OverloadError, match="2 requests wait for 'tiny'"):
                await engine.submit(request())
            with pytest.raises(DeadlineError):
                await late
            with pytest.raises(EngineLostError, match=r"not ready after 0\.5 s"):
                await patient

    asyncio.run(scenario())


def alive(pid):
    """Whether a process runs; one whose end nobody has asked for yet does not."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state not in "ZX"


@pytest.mark.parametrize("when", ["loading", "stepping"])
def test_no_worker_outlives_its_server(long_spec, when):
    owner = subprocess.Popen(
        [sys.executable, HERE / "engine_owner.py", long_spec.model, when],
        stdout=subprocess.PIPE,
        text=True,
    )
    with owner:
        (pid,) = map(int, owner.stdout.readline().split())
        assert alive(pid)
        owner.kill()
        give_up = monotonic() + 5
        while alive(pid):
            assert monotonic() < give_up
            sleep(0.01)


def test_signals_of_the_terminal_end_no_worker(long_spec):
    async def scenario():
        async with started(long_spec) as engine:
            pid = engine.info.pid
            assert os.getpgid(pid) != os.getpgid(0)
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                os.kill(pid, number)
            assert await engine.self_test(10)
            assert engine.info.pid == pid

    asyncio.run(scenario())


def test_a_worker_inherits_its_socket_alone(long_spec):
    async def scenario():
        async with started(long_spec) as one, started(long_spec) as two:
            for engine in (one, two):
                directory = Path(f"/proc/{engine.info.pid}/fd")
                targets = []
                for link in directory.iterdir():
                    with contextlib.suppress(FileNotFoundError):  # closed in the meantime
                        targets.append(str(link.readlink()))
                assert len([target for target in targets if target.startswith("socket:")]) == 1

    asyncio.run(scenario())


def test_a_worker_needs_neither_server_nor_client():
    code = "import sys, hasten.serve.worker; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = {name.split(".")[0] for name in done.stdout.split()}
    assert not loaded & {"starlette", "uvicorn", "asyncio", "prometheus_client", "jinja2", "torch"}


def test_a_start_that_is_given_up_at_any_moment_leaves_nothing(long_spec):
    async def scenario():
        met = []
        asyncio.get_running_loop().set_exception_handler(lambda _, context: met.append(context))
        before = children()
        for pauses in range(8):
            engine = EngineProcess(long_spec, name="tiny")
            starting = asyncio.create_task(engine.start())
            for _ in range(pauses):
                await asyncio.sleep(0)
            starting.cancel()
            await asyncio.wait({starting})
            await engine.stop()
            await until(lambda: children() == before)
        assert met == []

    asyncio.run(scenario())


def test_a_start_that_is_given_up_leaves_nothing_behind(tiny_model):
    told = []

    async def main():
        asyncio.get_running_loop().set_exception_handler(lambda _, context: told.append(context))
        for turns in range(8):  # of the event loop, after which it is given up
            opening = link.Link.open("tiny", spec_of(tiny_model), hang_seconds=60, stall_seconds=60)
            task = asyncio.create_task(opening)
            for _ in range(turns):
                await asyncio.sleep(0)
            task.cancel()
            await asyncio.wait([task])
        await asyncio.sleep(0.05)
        gc.collect()

    asyncio.run(main())
    assert not told

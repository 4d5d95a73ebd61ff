"""Answers survive in memory and in a Redis; a Redis that is away is only missed."""

import asyncio
import hashlib
import logging
import socket
import threading
import time
from contextlib import contextmanager

import msgspec
import pytest
import redis
from fakeredis import TcpFakeServer
from hypothesis import given, settings
from hypothesis import strategies as st
from sources import ANSWER, Model, output, read, request, settle

from hasten.errors import UsageError
from hasten.serve.cache import AnswerCache
from hasten.serve.cache.redis_store import RedisStore
from hasten.serve.cache.store import MemoryStore
from hasten.serve.cache.stored import decode_answer, encode_answer
from hasten.serve.settings import ServerSettings
from hasten.types import Output, TokenLogprobs

KEY, OTHER = b"k" * 32, b"o" * 32
WHOLE = [o for batch in ANSWER for o in batch]


numbers = st.integers(0, 1 << 20)
entries = st.builds(
    TokenLogprobs,
    numbers,
    st.none() | st.floats(max_value=0, allow_nan=False),
    st.none() | numbers,
    st.lists(st.tuples(numbers, st.floats(-50, 0)), max_size=2).map(tuple),
)
outputs = st.builds(
    Output,
    st.just(""),
    st.lists(numbers, max_size=3).map(tuple),
    st.text(max_size=5),
    st.none(),
    st.just(0.0),
    st.integers(0, 2),
    numbers,
    st.lists(entries, max_size=2).map(tuple),
    st.lists(entries, max_size=2).map(tuple),
    st.none(),
    st.none() | st.text(max_size=3),
)


@settings(deadline=None)
@given(st.lists(outputs, max_size=6), st.integers(1, 3))
def test_an_answer_comes_back_as_it_was(steps, n):
    ends = [
        Output("", (), "", reason, 0.0, index)
        for index, reason in enumerate(["stop", "length", "stop"][:n])
    ]
    answer = [*steps, *ends]
    assert decode_answer(KEY, encode_answer(KEY, answer), n) == answer
    assert decode_answer(KEY, encode_answer(KEY, answer), n + 1) is None
    assert decode_answer(OTHER, encode_answer(KEY, answer), n) is None


@settings(deadline=None)
@given(st.data())
def test_a_damaged_answer_is_none(data):
    value = bytearray(encode_answer(KEY, WHOLE))
    place = data.draw(st.integers(0, len(value) - 1))
    value[place] ^= data.draw(st.integers(1, 255))
    assert decode_answer(KEY, bytes(value), 1) is None
    assert decode_answer(KEY, bytes(value[:place]), 1) is None


@given(st.binary(max_size=80))
def test_foreign_bytes_are_no_answer(value):
    assert decode_answer(KEY, value, 1) is None


@pytest.mark.parametrize(
    "body", [[], [[1]], {"a": 1}, [[["x"], 1]], [[[1], "a", "cancelled"]], None]
)
def test_well_kept_nonsense_is_no_answer(body):
    packed = msgspec.msgpack.encode(body)
    assert decode_answer(KEY, hashlib.sha256(KEY + packed).digest() + packed, 1) is None


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


def test_memory_forgets_by_time_and_by_use():
    async def main():
        clock = Clock()
        store = MemoryStore(3 * 356, 10.0, clock)
        for key in (b"a", b"b", b"c"):
            await store.put(key, b"x" * 100)
        assert await store.get(b"a") == b"x" * 100
        await store.put(b"d", b"x" * 100)
        assert await store.get(b"b") is None
        assert (store.entries, store.evictions, store.size) == (3, 1, 3 * 356)
        clock.now = 9.0
        await store.put(b"a", b"y")
        clock.now = 10.0
        assert await store.get(b"c") is None
        assert await store.get(b"a") == b"y"
        assert (store.entries, store.evictions) == (2, 1)
        await store.put(b"e", b"x" * 2000)
        assert await store.get(b"e") is None
        assert (store.entries, store.evictions) == (2, 1)

    asyncio.run(main())


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 400)), max_size=30))
def test_memory_counts_what_it_holds(puts):
    async def main():
        store = MemoryStore(1500, 10.0)
        for key, length in puts:
            await store.put(bytes([key]), b"x" * length)
            held = [await store.get(bytes([k])) for k in range(6)]
            found = [value for value in held if value is not None]
            assert store.size == sum(len(value) + 256 for value in found) <= 1500
            assert store.entries == len(found)

    asyncio.run(main())


@contextmanager
def serving(port=0):
    """The Redis protocol over a socket; yields its port."""
    made = TcpFakeServer(("127.0.0.1", port))
    made.daemon_threads = True
    thread = threading.Thread(target=made.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield made.server_address[1]
    finally:
        made.shutdown()
        made.server_close()
        thread.join()


@pytest.fixture
def server():
    with serving() as port:
        yield port


def settings_of(port, **options):
    return ServerSettings(**{"response_cache": f"redis://127.0.0.1:{port}/0"} | options)


def raw(port):
    return redis.Redis(port=port)


async def ask(cache, model, number=0):
    state, stream = await cache.submit(model, request(number), tenant="", wanted=True)
    found, error = await read(stream)
    await asyncio.sleep(0.05)
    assert error is None
    return state, "".join(o.text for o in found)


def test_servers_share_answers_in_a_redis(server):
    async def main():
        first, second = AnswerCache(settings_of(server)), AnswerCache(settings_of(server))
        assert await ask(first, Model(ANSWER)) == ("miss", "hello")
        other = Model()
        assert await ask(second, other) == ("hit", "hello")
        assert other.sources == []
        await first.close()
        await second.close()

    asyncio.run(main())
    with raw(server) as client:
        (key,) = client.keys()
        assert key.startswith(b"hasten:answer:")
        assert 0 < client.pttl(key) <= 3600_000


def test_an_answer_in_a_redis_expires(server):
    async def main():
        cache = AnswerCache(settings_of(server, cache_seconds=0.02))
        states = [(await ask(cache, Model(ANSWER)))[0] for _ in range(2)]
        assert states == ["miss", "miss"]
        await cache.close()

    asyncio.run(main())


@pytest.mark.parametrize("value", [b"", b"junk", b"x" * (5 << 20), "other", None])
def test_what_is_no_answer_in_a_redis_is_computed_again(server, value):
    """Bytes that are none, another's answer, or a value of another type."""

    async def main():
        cache = AnswerCache(settings_of(server))
        await ask(cache, Model(ANSWER))
        with raw(server) as client:
            (key,) = client.keys()
            if value is None:
                client.delete(key)
                client.lpush(key, "a")
            else:
                client.set(key, encode_answer(OTHER, WHOLE) if value == "other" else value)
        assert await ask(cache, Model(ANSWER)) == ("miss", "hello")
        await cache.close()

    asyncio.run(main())


def test_without_a_redis_answers_are_computed_and_it_is_told_once(caplog):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]

    async def main():
        cache = AnswerCache(settings_of(port, response_cache=f"redis://:secret@127.0.0.1:{port}"))
        for number in range(3):
            assert await ask(cache, Model(ANSWER), number) == ("miss", "hello")
        assert cache.statistics().failures == 1
        await cache.close()

    with caplog.at_level(logging.INFO):
        asyncio.run(main())
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    assert "Redis" in record.getMessage()
    assert "secret" not in caplog.text


def test_a_redis_that_says_nothing_costs_one_short_wait():
    with socket.create_server(("127.0.0.1", 0)) as silent:

        async def main():
            cache = AnswerCache(settings_of(silent.getsockname()[1]))
            begin = time.monotonic()
            for number in range(20):
                assert (await ask(cache, Model(ANSWER), number))[0] == "miss"
            assert time.monotonic() - begin < 4
            assert cache.statistics().failures == 1
            await cache.close()

        asyncio.run(main())


def test_a_redis_that_is_back_is_used_again(caplog):
    async def main():
        with serving() as port:
            store = RedisStore(f"redis://127.0.0.1:{port}", 60.0, 1 << 20, rest=0.05)
            await store.put(KEY, b"1")
            assert await store.get(KEY) == b"1"
        assert await store.get(KEY) is None
        with serving(port):
            await store.put(OTHER, b"2")  # left out
            await asyncio.sleep(0.06)
            assert await store.get(OTHER) is None
            await store.put(OTHER, b"2")
            assert await store.get(OTHER) == b"2"
            await store.put(OTHER, b"3" * ((1 << 20) + 1))
            assert await store.get(OTHER) == b"2"
            assert store.failures == 1
            await store.close()

    with caplog.at_level(logging.INFO, logger="hasten"):
        asyncio.run(main())
    assert [r.levelname for r in caplog.records] == ["WARNING", "INFO"]


def test_a_url_that_is_none_is_refused():
    with pytest.raises(UsageError, match="redis://") as caught:
        AnswerCache(ServerSettings(response_cache="http://user:secret@host"))
    assert "secret" not in str(caught.value)


def test_leaving_while_the_redis_is_asked_leaves_it_usable(server):
    async def main():
        cache = AnswerCache(settings_of(server))
        for number in range(20):
            task = asyncio.create_task(ask(cache, Model(ANSWER), number))
            await asyncio.sleep(0.0005 * (number % 4))
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        await settle()
        assert (await ask(cache, Model([[output("a", "stop")]]), 99))[1] in ("a", "hello")
        assert (await ask(cache, Model(ANSWER), 99))[0] == "hit"
        await cache.close()

    asyncio.run(main())

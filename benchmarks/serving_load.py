"""What the server stands: clients that leave, overload, engines that are killed."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import signal
import statistics
import time
from collections import Counter
from typing import Any

import numpy as np
from http_load import Connection, Reply, chat_body
from parts import Texts, report
from served import HOST, Server, serving
from serving_speed import STREAMS, through_http

__all__ = ["disconnects", "kills", "overload"]


def disconnects(options: argparse.Namespace) -> dict[str, Any]:
    """Many connections with clients that leave: each request ends, and nothing stays behind."""
    chance = random.Random(4)
    texts = Texts(5)

    async def client(server: Server, numbers: list[int], counts: Counter[str]) -> None:
        connection = Connection(HOST, server.port)
        while numbers:
            numbers.pop()
            leave = chance.choice([None, None, 0, 1, chance.randrange(2, 12)])
            stream = chance.random() < 0.7
            body = chat_body(options.model, texts.draw(6), chance.randrange(1, 16), stream=stream)
            reply = await connection.ask(body, leave_after=leave if stream or leave == 0 else None)
            counts[_kind(reply)] += 1
            if sum(counts.values()) % 1000 == 0:
                report(f"{sum(counts.values())} requests: {dict(counts)}")
        connection.close()

    async def run(server: Server) -> Counter[str]:
        counts: Counter[str] = Counter()
        numbers = list(range(options.requests))
        await asyncio.gather(*(client(server, numbers, counts) for _ in range(200)))
        return counts

    with serving(options.model, "--queue", "256") as server:
        asyncio.run(_warm(server, options.model, texts))
        before = server.memory(), server.descriptors()
        counts = asyncio.run(run(server))
        settled = _settle(server)
        after = server.memory(), server.descriptors()
        report(f"{dict(counts)}; running and waiting afterwards: {settled}")
        report(f"memory {before[0]} -> {after[0]}, descriptors {before[1]} -> {after[1]}")
    return {
        "requests": sum(counts.values()),
        "outcomes": counts,
        "left_behind": settled,
        "memory": [before[0], after[0]],
        "descriptors": [before[1], after[1]],
    }


async def _warm(server: Server, model: str, texts: Texts) -> None:
    await through_http(server, model, texts, STREAMS, 5.0)


def _settle(server: Server) -> float:
    """Sequences that the engine still holds some seconds after the last client went."""
    limit = time.monotonic() + 5
    while time.monotonic() < limit:
        held = server.metric("vllm:num_requests_running") + server.metric(
            "vllm:num_requests_waiting"
        )
        if held == 0:
            return 0.0
        time.sleep(0.1)
    return held


def _kind(reply: Reply) -> str:
    if reply.left:
        return "left"
    if reply.status == 200:
        if reply.failed_within:
            return "error in the stream"
        return "answered" if reply.done or b'"usage"' in reply.body else "cut off"
    return f"status {reply.status}" if reply.status else "no answer"


def overload(options: argparse.Namespace) -> dict[str, Any]:
    """Goodput at the capacity and at four times as many requests, open loop."""
    texts = Texts(6)

    async def at(server: Server, per_second: float, seconds: float) -> list[Reply]:
        idle: list[Connection] = []
        replies: list[Reply] = []

        async def one() -> None:
            connection = idle.pop() if idle else Connection(HOST, server.port)
            replies.append(await connection.ask(_short(options.model, texts)))
            idle.append(connection)

        tasks: list[asyncio.Task[None]] = []
        begin = time.monotonic()
        for number in range(int(per_second * seconds)):
            await asyncio.sleep(max(0.0, begin + number / per_second - time.monotonic()))
            tasks.append(asyncio.create_task(one()))
        await asyncio.gather(*tasks)
        for connection in idle:
            connection.close()
        return replies

    # A cache that is full before the load comes, so that what grows then has no bound.
    with serving(options.model, "--kv-memory", "256MiB") as server:
        asyncio.run(_warm(server, options.model, texts))
        closed = asyncio.run(_closed(server, options.model, texts, options.peak_seconds))
        peak = closed / options.peak_seconds
        report(f"capacity with {STREAMS} clients: {peak:.2f} requests/s")
        before = server.memory()
        begin = time.monotonic()
        replies = asyncio.run(at(server, 4 * peak, options.overload_seconds))
        seconds = max(reply.ended for reply in replies) - begin
        after = server.memory()
    good = [reply for reply in replies if reply.status == 200 and reply.done]
    refused = sorted(reply.ended - reply.sent for reply in replies if reply.status in (429, 503))
    others = Counter(_kind(r) for r in replies if r.status not in (200, 429, 503))
    result = {
        "capacity_per_s": peak,
        "offered_per_s": 4 * peak,
        "goodput_per_s": len(good) / seconds,
        "goodput_ratio": len(good) / seconds / peak,
        "answered": len(good),
        "refused": len(refused),
        "others": others,
        "refusal_ms": {
            "p50": 1000 * float(np.percentile(refused, 50)) if refused else None,
            "p99": 1000 * float(np.percentile(refused, 99)) if refused else None,
            "over_50": sum(seconds > 0.05 for seconds in refused),
            "max": 1000 * refused[-1] if refused else None,
        },
        "answer_s_p99": float(np.percentile([r.ended - r.sent for r in good], 99)),
        "memory": [before, after],
    }
    report(json.dumps(result))
    return result


def _short(model: str, texts: Texts) -> bytes:
    return chat_body(model, texts.draw(40), 32, temperature=0, ignore_eos=True)


async def _closed(server: Server, model: str, texts: Texts, seconds: float) -> int:
    """How many requests clients get answered, one after the other each, in so many seconds."""
    limit, answered = time.monotonic() + seconds, 0

    async def client() -> None:
        nonlocal answered
        connection = Connection(HOST, server.port)
        while time.monotonic() < limit:
            reply = await connection.ask(_short(model, texts))
            answered += reply.done and reply.ended <= limit
        connection.close()

    await asyncio.gather(*(client() for _ in range(2 * STREAMS)))
    return answered


def kills(options: argparse.Namespace) -> dict[str, Any]:
    """The engine killed again and again: each request ends with an answer or a clear error."""
    texts, chance = Texts(7), random.Random(8)
    counts: Counter[str] = Counter()
    delays: list[float] = []

    async def client(server: Server, stop: asyncio.Event) -> None:
        connection = Connection(HOST, server.port)
        while not stop.is_set():
            body = chat_body(options.model, texts.draw(20), 64, stream=chance.random() < 0.7)
            try:
                reply = await asyncio.wait_for(connection.ask(body), 60)
            except TimeoutError:
                counts["no end within 60 s"] += 1
                connection = Connection(HOST, server.port)
                continue
            counts[_kind(reply)] += 1
        connection.close()

    async def run(server: Server) -> None:
        stop = asyncio.Event()
        clients = [asyncio.create_task(client(server, stop)) for _ in range(STREAMS)]
        for number in range(options.kills):
            await asyncio.sleep(chance.uniform(0.2, 2.0))
            victims = await asyncio.to_thread(server.engines)
            for pid in victims:
                os.kill(pid, signal.SIGKILL)
            killed = time.monotonic()
            probe = Connection(HOST, server.port)
            while True:
                reply = await probe.ask(chat_body(options.model, "Hello", 1, stream=False))
                if reply.status == 200:
                    break
                counts[f"after a kill: {reply.status}"] += 1
                await asyncio.sleep(0.02)
            delays.append(time.monotonic() - killed)
            probe.close()
            report(f"kill {number + 1}: back after {delays[-1]:.2f} s; {dict(counts)}")
        stop.set()
        await asyncio.gather(*clients)

    with serving(options.model) as server:
        asyncio.run(run(server))
        settled = _settle(server)
    return {
        "kills": options.kills,
        "outcomes": counts,
        "back_after_s": {"median": statistics.median(delays), "max": max(delays)},
        "left_behind": settled,
    }

"""What the server adds to the engine, and what it stands.

    .venv/bin/python benchmarks/serving.py throughput latency
    .venv/bin/python benchmarks/serving.py disconnects overload kills --json build/serving.json

throughput   16 streaming clients through HTTP, and 16 requests in an engine alone, in turns
latency      time to the first token and gaps between tokens, both ways, in turns
disconnects  10,000 requests over 200 connections, of which a third leave at random
overload     requests at four times the capacity for two minutes
kills        the engine killed 50 times under load
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import signal
import statistics
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from http_load import Connection, Reply, chat_body
from served import HOST, Server, serving

from hasten.generation import Engine, engine_options
from hasten.machine import detect_machine
from hasten.measure.corpus import default_corpus
from hasten.models import load_model
from hasten.types import Request, SamplingParams

Part = Callable[[argparse.Namespace], dict[str, Any]]
STREAMS = 16
OUTPUT = 128
WORDS = 90
"""About 128 tokens of SmolLM2 with its template."""


class Texts:
    """Prompts that do not begin alike, so that no prefix is shared."""

    def __init__(self, seed: int) -> None:
        self._words = default_corpus().text.split()
        self._random = random.Random(seed)

    def draw(self, words: int = WORDS) -> str:
        """So many words from a random place."""
        begin = self._random.randrange(len(self._words) - words)
        return " ".join(self._words[begin : begin + words])


@dataclass(frozen=True)
class Times:
    """Token times of one request, in seconds of `time.monotonic`."""

    sent: float
    tokens: list[float]

    @property
    def ttft(self) -> float:
        """From sending to the first token."""
        return self.tokens[0] - self.sent

    @property
    def gaps(self) -> list[float]:
        """Between tokens."""
        return [b - a for a, b in zip(self.tokens, self.tokens[1:], strict=False)]


class InProcess:
    """The engine alone, with the same requests as the clients send."""

    def __init__(self, model: str) -> None:
        self._model = load_model(model)
        if self._model.chat_template is None:
            raise SystemExit(f"{model} has no chat template")
        self._template = self._model.chat_template
        self._engine = Engine(self._model, engine_options(self._model))
        self._texts = Texts(1)

    def run(self, streams: int, seconds: float) -> list[Times]:
        """So many requests at once, each followed by another, cut off after so long."""
        limit, number = time.monotonic() + seconds, 0
        running: dict[str, Times] = {}
        done: list[Times] = []

        def start() -> None:
            nonlocal number
            name, number = str(number), number + 1
            running[name] = Times(time.monotonic(), [])
            self._engine.submit(Request(name, self._prompt(), _sampling()))

        for _ in range(streams):
            start()
        while time.monotonic() < limit:
            outputs = self._engine.step()
            now = time.monotonic()
            for output in outputs:
                running[output.request_id].tokens.extend([now] * len(output.tokens))
                if output.finish_reason is not None:
                    done.append(running.pop(output.request_id))
                    start()
        for name in running:
            self._engine.cancel(name)
        while self._engine.has_work:
            self._engine.step()
        return [*done, *running.values()]

    def close(self) -> None:
        """Frees the engine."""
        self._engine.close()

    def _prompt(self) -> tuple[int, ...]:
        text = self._template.render([{"role": "user", "content": self._texts.draw()}])
        return tuple(self._model.tokenizer.encode(text, add_special=False))


def _sampling() -> SamplingParams:
    return SamplingParams(max_tokens=OUTPUT, ignore_eos=True)


async def through_http(
    server: Server, model: str, texts: Texts, streams: int, seconds: float
) -> list[Times]:
    """The same through the server, each stream over a connection of its own."""
    limit = time.monotonic() + seconds
    connections = [Connection(HOST, server.port) for _ in range(streams)]
    done: list[Times] = []

    async def stream(connection: Connection) -> None:
        while time.monotonic() < limit:
            reply = await connection.ask(_fixed(model, texts.draw()))
            if not reply.done and time.monotonic() < limit:
                raise RuntimeError(f"a request ended with {reply.status}: {reply.body[:300]!r}")
            # The first event opens the message; the last ones close it.
            times = [at for at, count in reply.events for _ in range(count)]
            done.append(Times(reply.sent, times[1 : OUTPUT + 1]))

    async def cut_off() -> None:
        await asyncio.sleep(seconds)
        for connection in connections:
            connection.close()

    await asyncio.gather(cut_off(), *map(stream, connections))
    return done


def _fixed(model: str, words: str) -> bytes:
    return chat_body(model, words, OUTPUT, temperature=0, ignore_eos=True)


def rate(done: Sequence[Times], seconds: float) -> float:
    """Tokens a second once the streams have come apart: in the last three quarters of a turn."""
    begin = min(one.sent for one in done) + seconds / 4
    end = begin + seconds * 3 / 4
    return sum(begin <= at < end for one in done for at in one.tokens) / (end - begin)


def throughput(options: argparse.Namespace) -> dict[str, Any]:
    """Tokens a second through HTTP beside the engine's own."""
    ratios, alone, served = [], [], []
    texts, engine = Texts(2), InProcess(options.model)
    with serving(options.model) as server:
        for number in range(options.rounds + 1):
            seconds = options.seconds
            ours = rate(engine.run(STREAMS, seconds), seconds)
            http = rate(
                asyncio.run(through_http(server, options.model, texts, STREAMS, seconds)), seconds
            )
            if number == 0:
                continue  # warm-up
            alone.append(ours)
            served.append(http)
            ratios.append(http / ours)
            report(f"engine {ours:.0f} tok/s, through HTTP {http:.0f}: {http / ours:.3f}")
    engine.close()
    return {
        "streams": STREAMS,
        "engine_tokens_per_s": statistics.median(alone),
        "http_tokens_per_s": statistics.median(served),
        "ratio": statistics.median(ratios),
        "ratios": ratios,
    }


def latency(options: argparse.Namespace) -> dict[str, Any]:
    """Percentiles of TTFT and of the gaps between tokens, both ways, for one stream and for 16."""
    result: dict[str, Any] = {}
    texts, engine = Texts(3), InProcess(options.model)
    with serving(options.model) as server:
        for streams in (1, STREAMS):
            both: dict[str, list[Times]] = {"engine": [], "http": []}
            for number in range(options.rounds + 1):
                ours = engine.run(streams, options.seconds)
                http = asyncio.run(
                    through_http(server, options.model, texts, streams, options.seconds)
                )
                if number > 0:
                    both["engine"] += ours
                    both["http"] += http
            figures = {name: _percentiles(done) for name, done in both.items()}
            added = {
                name: figures["http"][name] - figures["engine"][name] for name in figures["http"]
            }
            result[str(streams)] = figures | {"added": added}
            report(
                f"{streams} streams, added: "
                + ", ".join(f"{name} {1000 * value:.2f} ms" for name, value in added.items())
            )
    engine.close()
    return result


def _percentiles(done: Sequence[Times]) -> dict[str, float]:
    ttft = [one.ttft for one in done if one.tokens]
    gaps = [gap for one in done for gap in one.gaps]
    return {
        "ttft_p50": float(np.percentile(ttft, 50)),
        "ttft_p99": float(np.percentile(ttft, 99)),
        "itl_p50": float(np.percentile(gaps, 50)),
        "itl_p99": float(np.percentile(gaps, 99)),
    }


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
            body = chat_body(options.model, texts.draw(12), chance.randrange(1, 24), stream=stream)
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


def report(line: str) -> None:
    """Progress goes to stderr."""
    print(line, file=sys.stderr, flush=True)


def run_parts(parts: Mapping[str, Part], options: argparse.Namespace) -> dict[str, Any]:
    """Results of the parts of `options.parts`; each goes into `options.json` when it is there."""
    path: Path | None = options.json
    document: dict[str, Any] = {}
    results = {}
    if path is not None and path.exists():
        document = json.loads(path.read_text(encoding="utf-8"))
    for name in options.parts:
        result = results[name] = parts[name](options)
        document["machine"] = detect_machine().as_dict()
        document.setdefault("results", {})[name] = result
        if path is not None:
            path.write_text(json.dumps(document, indent=2, default=str) + "\n", encoding="utf-8")
        print(json.dumps({name: result}, indent=2, default=str), flush=True)
    return results


PARTS: dict[str, Part] = {
    "throughput": throughput,
    "latency": latency,
    "disconnects": disconnects,
    "overload": overload,
    "kills": kills,
}


def main() -> None:
    """Run the parts that are asked for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("parts", nargs="+", choices=list(PARTS))
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=20.0, help="of one turn")
    parser.add_argument("--requests", type=int, default=10_000, help="of disconnects")
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--peak-seconds", type=float, default=30.0)
    parser.add_argument("--overload-seconds", type=float, default=120.0)
    parser.add_argument(
        "--json", type=Path, help="to put results into, beside those of other parts"
    )
    options = parser.parse_args()
    run_parts(PARTS, options)


if __name__ == "__main__":
    main()

"""The server beside the engine alone: pieces of text a second, and when they come.

Pieces, not tokens: a character of several tokens, such as an emoji, is shown when it is whole, so
that a client cannot see its tokens come.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import random
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from http_load import Connection, chat_body
from numpy.typing import NDArray
from parts import Texts, report
from served import HOST, Server, serving

from hasten.generation import Engine, engine_options
from hasten.models import load_model
from hasten.types import Request, SamplingParams

__all__ = ["STREAMS", "latency", "through_http", "throughput"]

STREAMS = 16
OUTPUT = (64, 192)
"""Tokens of an answer, drawn: streams of equal lengths would begin and end together in an engine
that gets the next requests all at once, and come apart in one that gets them from clients."""
SHORT = 16
"""Tokens of an answer where times to the first one are compared."""
WARM_PAIRS = 5
DRAWS = 1000


@dataclass(frozen=True)
class Times:
    """When the pieces of one answer came, in seconds of `time.monotonic`."""

    sent: float
    pieces: list[float]

    @property
    def ttft(self) -> float:
        """From sending to the first piece."""
        return self.pieces[0] - self.sent

    @property
    def gaps(self) -> list[float]:
        """Between pieces."""
        return [b - a for a, b in zip(self.pieces, self.pieces[1:], strict=False)]


class InProcess:
    """The engine alone, with the same requests as the clients send."""

    def __init__(self, model: str) -> None:
        self._model = load_model(model)
        if self._model.chat_template is None:
            raise SystemExit(f"{model} has no chat template")
        self._template = self._model.chat_template
        self._engine = Engine(self._model, engine_options(self._model))
        self._texts = Texts(1)
        gc.freeze()  # the client's own pauses are nobody's latency

    def run(self, streams: int, seconds: float) -> list[Times]:
        """So many requests at once, each followed by another, cut off after so long."""
        limit, number, lengths = time.monotonic() + seconds, 0, random.Random(streams)
        running: dict[str, Times] = {}
        done: list[Times] = []

        def start() -> None:
            nonlocal number
            name, number = str(number), number + 1
            running[name] = Times(time.monotonic(), [])
            sampling = SamplingParams(max_tokens=lengths.randint(*OUTPUT), ignore_eos=True)
            self._engine.submit(Request(name, self._prompt(), sampling))

        for _ in range(streams):
            start()
        while time.monotonic() < limit:
            outputs = self._engine.step()
            now = time.monotonic()
            for output in outputs:
                if output.text:
                    running[output.request_id].pieces.append(now)
                if output.finish_reason is not None:
                    done.append(running.pop(output.request_id))
                    start()
        for name in running:
            self._engine.cancel(name)
        while self._engine.has_work:
            self._engine.step()
        return [*done, *running.values()]

    def run_one(self, words: str, tokens: int) -> Times:
        """One request alone."""
        times = Times(time.monotonic(), [])
        sampling = SamplingParams(max_tokens=tokens, ignore_eos=True)
        for output in self._engine.generate(self._tokens_of(words), sampling):
            if output.text:
                times.pieces.append(time.monotonic())
        return times

    def close(self) -> None:
        """Frees the engine."""
        self._engine.close()

    def _prompt(self) -> tuple[int, ...]:
        return self._tokens_of(self._texts.draw())

    def _tokens_of(self, words: str) -> tuple[int, ...]:
        text = self._template.render([{"role": "user", "content": words}])
        return tuple(self._model.tokenizer.encode(text, add_special=False))


async def through_http(
    server: Server, model: str, texts: Texts, streams: int, seconds: float
) -> list[Times]:
    """The same through the server, each stream over a connection of its own."""
    limit = time.monotonic() + seconds
    connections = [Connection(HOST, server.port) for _ in range(streams)]
    done: list[Times] = []
    lengths = random.Random(streams)

    async def stream(connection: Connection) -> None:
        while time.monotonic() < limit:
            tokens = lengths.randint(*OUTPUT)
            body = chat_body(model, texts.draw(), tokens, temperature=0, ignore_eos=True)
            reply = await connection.ask(body)
            if not reply.done and time.monotonic() < limit:
                raise RuntimeError(f"a request ended with {reply.status}: {reply.body[:300]!r}")
            done.append(Times(reply.sent, reply.pieces))

    async def cut_off() -> None:
        await asyncio.sleep(seconds)
        for connection in connections:
            connection.close()

    await asyncio.gather(cut_off(), *map(stream, connections))
    return done


def settled(done: Sequence[Times], seconds: float) -> list[Times]:
    """Requests that began once the streams had come apart: after the first quarter of a turn."""
    begin = min(one.sent for one in done) + seconds / 4
    return [one for one in done if one.sent >= begin]


def rate(done: Sequence[Times], seconds: float) -> float:
    """Pieces a second once the streams have come apart: in the last three quarters of a turn."""
    begin = min(one.sent for one in done) + seconds / 4
    end = begin + seconds * 3 / 4
    return sum(begin <= at < end for one in done for at in one.pieces) / (end - begin)


def throughput(options: argparse.Namespace) -> dict[str, Any]:
    """Pieces a second through HTTP beside the engine's own."""
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
            report(f"engine {ours:.0f} pieces/s, through HTTP {http:.0f}: {http / ours:.3f}")
    engine.close()
    return {
        "streams": STREAMS,
        "engine_pieces_per_s": statistics.median(alone),
        "http_pieces_per_s": statistics.median(served),
        "ratio": statistics.median(ratios),
        "ratios": ratios,
    }


def latency(options: argparse.Namespace) -> dict[str, Any]:
    """What HTTP adds to percentiles of TTFT and of the gaps between tokens.

    For one stream each request runs both ways, one right after the other, so that a machine whose
    speed changes changes both; for 16 streams turns alternate.
    """
    texts, engine = Texts(3), InProcess(options.model)
    with serving(options.model) as server:
        pairs = asyncio.run(_pairs(engine, server, options, texts))
        result = {"1": _added(*zip(*pairs, strict=True), paired=True)}
        ours: list[Times] = []
        http: list[Times] = []
        for number in range(options.rounds + 1):
            of_engine = engine.run(STREAMS, options.seconds)
            of_server = asyncio.run(
                through_http(server, options.model, texts, STREAMS, options.seconds)
            )
            if number > 0:
                ours += settled(of_engine, options.seconds)
                http += settled(of_server, options.seconds)
        result[str(STREAMS)] = _added(ours, http, paired=False)
    engine.close()
    return result


async def _pairs(
    engine: InProcess, server: Server, options: argparse.Namespace, texts: Texts
) -> list[tuple[Times, Times]]:
    """Times of the same requests, by the engine alone and through HTTP."""
    connection, pairs = Connection(HOST, server.port), []
    for number in range(options.pairs + WARM_PAIRS):
        words = texts.draw()
        body = chat_body(options.model, words, SHORT, temperature=0, ignore_eos=True)
        if number % 2:
            ours, reply = engine.run_one(words, SHORT), await connection.ask(body)
        else:
            reply, ours = await connection.ask(body), engine.run_one(words, SHORT)
        if number >= WARM_PAIRS:
            pairs.append((ours, Times(reply.sent, reply.pieces)))
    connection.close()
    return pairs


def _added(ours: Sequence[Times], http: Sequence[Times], *, paired: bool) -> dict[str, Any]:
    """Percentiles in seconds, and their differences with intervals of 95 % (bootstrap).

    Whole requests are drawn, as the gaps of one belong together; pairs of them where both sides
    answered the same ones, so that what differs from request to request cancels out.
    """
    chance = np.random.default_rng(9)
    result: dict[str, Any] = {}
    for metric in ("ttft", "itl"):
        both = [_samples(ours, metric), _samples(http, metric)]
        for percent in (50, 99):
            engine, served = (float(np.percentile(np.concatenate(one), percent)) for one in both)
            differences = []
            for _ in range(DRAWS):
                first = chance.integers(len(ours), size=len(ours))
                second = first if paired else chance.integers(len(http), size=len(http))
                drawn = [
                    np.percentile(np.concatenate([side[i] for i in chosen]), percent)
                    for side, chosen in zip(both, (first, second), strict=True)
                ]
                differences.append(drawn[1] - drawn[0])
            low, high = np.percentile(differences, (2.5, 97.5))
            result[f"{metric}_p{percent}"] = {
                "engine": engine,
                "http": served,
                "added": served - engine,
                "interval": [float(low), float(high)],
            }
            report(f"{len(ours)} requests, {metric} p{percent}: {result[f'{metric}_p{percent}']}")
    return result


def _samples(done: Sequence[Times], metric: str) -> list[NDArray[np.float64]]:
    if metric == "ttft":
        return [np.array([one.ttft] if one.pieces else []) for one in done]
    return [np.array(one.gaps) for one in done]

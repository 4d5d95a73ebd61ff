"""What the load measures of a server in another process that notes its own delays.

    .venv/bin/python benchmarks/measure_truth.py --json build/measure_truth.json

The server answers over a Unix socket: for each request a first token, gaps, several tokens in an
event, after planned delays. It notes when it sent each event, on the clock that all processes
share, so that what the machine adds to its delays is known, too: the way of a request to the server
and the server's waking are part of the latency that a client has, and so part of the truth. The
figures of the load are held against those: within 1 % or 0.2 ms.
"""

from __future__ import annotations

import argparse
import asyncio
import heapq
import json
import select
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import numpy as np

from hasten.measure.arrivals import ClosedLoop, Pattern, poisson
from hasten.measure.audit import send_lag
from hasten.measure.load import run_load
from hasten.measure.metrics import samples
from hasten.measure.records import Answer
from hasten.measure.targets.target import Target, TargetError
from hasten.measure.workload import Item, Tensors, Workload

PLANS = [
    (0.010, ((0.004, 1), (0.004, 1), (0.004, 1))),
    (0.025, ((0.003, 2), (0.012, 1))),
    (0.040, ((0.001, 1), (0.020, 2))),
    (0.005, ((0.006, 3),)),
    (0.015, ((0.008, 1), (0.008, 1), (0.008, 1))),
]
"""Seconds to the first token, then (seconds, tokens) of each event; 4 tokens each."""
PERCENTILES = (50, 90, 99)
SHARE, SECONDS = 0.01, 0.0002


def serve(path: str) -> None:
    """Answers one connection until it closes; a request is a line with its number.

    Prints for each request when each of its events was sent.
    """
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    listener.listen()
    print("ready", flush=True)
    connection, _ = listener.accept()
    due: list[tuple[float, int, str]] = []
    times: list[list[float]] = []
    rest = b""
    while True:
        while due and due[0][0] <= time.perf_counter():
            _, number, event = heapq.heappop(due)
            times[number].append(time.perf_counter())
            connection.sendall(event.encode())
        wait = max(0.0, due[0][0] - time.perf_counter()) if due else None
        if not select.select([connection], [], [], wait)[0]:
            continue
        data = connection.recv(65536)
        if not data:
            break
        came = time.perf_counter()
        *lines, rest = (rest + data).split(b"\n")
        for line in lines:
            times.append([])
            first, events = PLANS[int(line) % len(PLANS)]
            at = came
            for place, (gap, tokens) in enumerate(((first, 1), *events)):
                at += gap
                last = int(place == len(events))
                heapq.heappush(due, (at, int(line), f"{int(line)} {tokens} {last}\n"))
    print(json.dumps(times))


@dataclass
class Served:
    """That server; answers are noted when their bytes arrive."""

    path: str
    sent: int = 0
    _waiting: dict[int, tuple[Answer, asyncio.Future[None]]] = field(default_factory=dict)
    _transport: asyncio.WriteTransport | None = None

    def describe(self) -> Mapping[str, object]:
        """What it is."""
        return {"kind": "plan"}

    async def send(self, work: Item | Tensors, answer: Answer) -> None:
        """One request."""
        if self._transport is None:
            raise TargetError("not open")
        number, self.sent = self.sent, self.sent + 1
        done = asyncio.get_running_loop().create_future()
        self._waiting[number] = (answer, done)
        self._transport.write(b"%d\n" % number)
        await done

    def arrived(self, data: bytes) -> None:
        """Whole lines of answers."""
        for line in data.decode().splitlines():
            number, tokens, last = map(int, line.split())
            answer, done = self._waiting[number]
            answer.arrive(tokens)
            if last:
                del self._waiting[number]
                done.set_result(None)

    async def __aenter__(self) -> Target:
        loop = asyncio.get_running_loop()
        self._transport, _ = await loop.create_unix_connection(lambda: _Lines(self), self.path)
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._transport is not None:
            self._transport.close()


class _Lines(asyncio.Protocol):
    def __init__(self, target: Served) -> None:
        self._target = target
        self._rest = b""

    def data_received(self, data: bytes) -> None:
        whole, end, self._rest = (self._rest + data).rpartition(b"\n")
        self._target.arrived(whole + end)


def measure(pattern: Pattern, requests: int) -> dict[str, object]:
    """Runs the load and holds its figures against the plan."""
    with tempfile.TemporaryDirectory() as folder:
        path = f"{folder}/socket"
        command = [sys.executable, __file__, "--serve", path]
        with subprocess.Popen(command, stdout=subprocess.PIPE) as server:
            if server.stdout is None or server.stdout.readline() != b"ready\n":
                raise RuntimeError("the server did not start")
            workload = Workload("plan", None, (), (Item((1,), 4),) * requests)
            result = run_load(Served(path), workload, pattern)
            times = json.loads(server.stdout.read())
    intended = [one.intended_send for one in sorted(result.records, key=lambda one: one.sent)]
    truth = {
        "ttft": [events[0] - began for began, events in zip(intended, times, strict=True)],
        "tpot": [(events[-1] - events[0]) / 3 for events in times],
        "itl": [b - a for events in times for a, b in pairwise(events)],
        "e2e": [events[-1] - began for began, events in zip(intended, times, strict=True)],
    }
    found = samples(result.records)
    lag = send_lag(result.records)
    return {
        "pattern": dict(pattern.describe()),
        "requests": requests,
        "completed": sum(record.status == "completed" for record in result.records),
        "metrics": {name: against(np.array(found[name]) / 1000, truth[name]) for name in truth},
        "sent_late_p50_ms": None if lag is None else round(1000 * lag.p50, 4),
    }


def against(found: np.ndarray[tuple[int], np.dtype[np.float64]], truth: list[float]) -> object:
    """The mean and percentiles beside the true ones, in milliseconds, and whether they hold."""
    figures = {"mean": (float(found.mean()), float(np.mean(truth)))}
    for percent in PERCENTILES:
        figures[f"p{percent}"] = (
            float(np.percentile(found, percent)),
            float(np.percentile(truth, percent)),
        )
    return {
        name: {
            "found_ms": round(1000 * got, 4),
            "true_ms": round(1000 * wanted, 4),
            "holds": abs(got - wanted) <= max(SHARE * wanted, SECONDS),
        }
        for name, (got, wanted) in figures.items()
    }


def main() -> None:
    """Prints JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--requests", type=int, default=1000)
    parser.add_argument("--serve", metavar="SOCKET", help=argparse.SUPPRESS)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    if options.serve:
        serve(options.serve)
        return
    patterns: list[Pattern] = [ClosedLoop(1), ClosedLoop(4), poisson(100, seed=1)]
    report = [measure(pattern, options.requests) for pattern in patterns]
    text = json.dumps(report, indent=2)
    print(text)
    if options.json is not None:
        options.json.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

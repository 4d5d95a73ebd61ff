"""How many small requests a second the HTTP client of the load can make.

    python benchmarks/client_rate.py [--seconds 5] [--json FILE]

The client has one core and the echo server another. `client` is the client alone, by the number of
requests under way at once; `load` is `run_load` over it in a closed loop, records and all.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
import time
from pathlib import Path

from hasten.measure.arrivals import ClosedLoop
from hasten.measure.load import run_load
from hasten.measure.records import Answer
from hasten.measure.targets.echo import EchoTarget
from hasten.measure.workload import Item, Workload

CONCURRENCY = (1, 16, 64)
WARMUP = 200


class Pinned(EchoTarget):
    """An echo that has a core of its own."""

    async def __aenter__(self) -> Pinned:
        await super().__aenter__()
        first, second = sorted(os.sched_getaffinity(0))[:2]
        os.sched_setaffinity(self.pid, {second})
        os.sched_setaffinity(0, {first})
        return self


async def client_rate(concurrency: int, seconds: float) -> float:
    """Requests a second."""
    item = Item("", 1)
    done = 0

    async def client(end: float) -> None:
        nonlocal done
        while time.perf_counter() < end:
            await target.send(item, Answer())
            done += 1

    async with Pinned() as target:
        for _ in range(WARMUP):
            await target.send(item, Answer())
        begun = time.perf_counter()
        await asyncio.gather(*(client(begun + seconds) for _ in range(concurrency)))
        return done / (time.perf_counter() - begun)


def load_rate(concurrency: int, requests: int) -> float:
    """Requests a second of a whole load."""
    items = (Item("", 1),) * requests
    workload = Workload("echo", None, items[:WARMUP], items)
    result = run_load(Pinned(), workload, ClosedLoop(concurrency))
    failed = [record.reason for record in result.records if record.status != "completed"]
    if failed:
        raise SystemExit(f"{len(failed)} requests failed: {failed[0]}")
    return requests / result.window


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=5.0, help="for each figure")
    parser.add_argument("--json", type=Path, help="where the report goes besides the terminal")
    options = parser.parse_args()
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        sys.exit("the client and the server need a core each")
    report: dict[str, dict[str, float]] = {"client": {}, "load": {}}
    for concurrency in CONCURRENCY:
        os.sched_setaffinity(0, cores)
        rate = asyncio.run(client_rate(concurrency, options.seconds))
        report["client"][str(concurrency)] = round(rate, 1)
        os.sched_setaffinity(0, cores)
        rate = load_rate(concurrency, int(rate * options.seconds / 2))
        report["load"][str(concurrency)] = round(rate, 1)
    text = json.dumps({"requests_per_s": report, "seconds": options.seconds}, indent=2)
    print(text)
    if options.json is not None:
        options.json.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

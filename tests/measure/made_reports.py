"""Reports of requests whose times are given, as a bench would have written them."""

from __future__ import annotations

import json

import numpy as np

from hasten.machine import detect_machine
from hasten.measure.arrivals import ClosedLoop
from hasten.measure.load import LoadResult
from hasten.measure.memory import PeakRss
from hasten.measure.records import Event, Record
from hasten.measure.report import build_report
from hasten.measure.workload import Item, Workload


def made_records(ttfts, tpots, *, tokens=5, failed=0, gap=1.0):
    """One request a second, each with so many seconds to its first token and between tokens."""
    records = []
    for number, (first, each) in enumerate(zip(ttfts, tpots, strict=True)):
        sent = 100 + gap * number
        events = tuple(Event(sent + first + each * n, 1, first / 10) for n in range(tokens))
        wrong = number < failed
        records.append(
            Record(
                f"request-{number}",
                8,
                sent,
                sent + 0.001,
                events[-1].time,
                events,
                tokens,
                "failed" if wrong else "completed",
                "refused" if wrong else None,
            )
        )
    return tuple(records)


def made_result(records):
    window = max(r.end for r in records) - records[0].intended_send
    return LoadResult(records, window, False, False, ())


def made_report(records, *, goal=None, model="made", pattern=None, requests=None):
    workload = Workload("made up", 0, (), (Item((1, 2), 5),) * (requests or len(records)))
    return build_report(
        target={"kind": "made", "model": model},
        pattern=pattern or ClosedLoop(),
        workload=workload,
        machine=detect_machine(),
        result=made_result(records),
        peak=PeakRss(1 << 20, since_start=False),
        interference=None,
        goal=goal,
    )


def made_document(scale=1.0, *, seed=1, count=60, **more):
    """A report as it is read from JSON, with latencies that vary by 10 %."""
    draw = np.random.default_rng(seed)
    ttfts = scale * 0.1 * draw.lognormal(0, 0.1, count)
    tpots = scale * 0.01 * draw.lognormal(0, 0.1, count)
    failed = more.pop("failed", 0)
    records = made_records(ttfts, tpots, failed=failed)
    return json.loads(json.dumps(made_report(records, **more).as_dict(), allow_nan=False))

"""What a use of a model asks of it: named objectives, which a bench checks."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from hasten.errors import UsageError
from hasten.measure.metrics import e2e, tpot, ttft
from hasten.measure.records import Record

__all__ = ["GOALS", "Check", "Goal", "check", "goodput", "parse_bounds"]

Aim = Literal["latency", "throughput"]

_METRICS: Mapping[str, Callable[[Record], float | None]] = {"ttft": ttft, "tpot": tpot, "e2e": e2e}


@dataclass(frozen=True, slots=True)
class Goal:
    """Objectives of a use.

    Attributes:
        name: What the command line calls it.
        summary: What it is for.
        bounds: Milliseconds that "ttft", "tpot" and "e2e" of a request may take.
        aim: What counts more where all bounds are met.
        memory_bytes: Resident memory at most; None for no bound.
    """

    name: str
    summary: str
    bounds: Mapping[str, float]
    aim: Aim = "latency"
    memory_bytes: int | None = None

    def meets(self, record: Record) -> bool:
        """Whether a request completed within all bounds; what it does not define is met."""
        return record.status == "completed" and all(
            value is None or 1000 * value <= bound
            for metric, bound in self.bounds.items()
            for value in [_METRICS[metric](record)]
        )

    def as_dict(self) -> dict[str, object]:
        """JSON-ready values."""
        return {
            "name": self.name,
            "bounds_ms": dict(self.bounds),
            "aim": self.aim,
            "memory_bytes": self.memory_bytes,
        }


GOALS: Mapping[str, Goal] = {
    goal.name: goal
    for goal in (
        # The bounds of MLPerf Inference for Llama 2 70B, server and interactive.
        Goal("chat", "A person reads the answer while it comes.", {"ttft": 2000, "tpot": 200}),
        Goal("real-time", "A voice or an editor waits.", {"ttft": 450, "tpot": 40}),
        Goal("rewrite", "A person waits for the whole of a short text.", {"e2e": 2000}),
        Goal("batch", "Nobody waits: most tokens a second.", {}, "throughput"),
        Goal("mass", "Many short requests: most of them a second.", {"e2e": 10_000}, "throughput"),
        Goal("edge", "A small device.", {"ttft": 2000, "tpot": 200}, memory_bytes=1 << 30),
    )
}


@dataclass(frozen=True, slots=True)
class Check:
    """One objective of a goal beside what was measured.

    Attributes:
        what: The objective.
        bound: What it allows, with its unit.
        found: What was measured.
        met: Whether it holds.
    """

    what: str
    bound: str
    found: str
    met: bool

    def as_dict(self) -> dict[str, object]:
        """JSON-ready values."""
        return {"what": self.what, "bound": self.bound, "found": self.found, "met": self.met}


def goodput(records: Sequence[Record], goal: Goal, window: float) -> float | None:
    """Requests a second that met all objectives; None for an empty window."""
    return sum(map(goal.meets, records)) / window if window > 0 else None


def check(records: Sequence[Record], goal: Goal, memory_bytes: int) -> list[Check]:
    """Compares what was measured with a goal: 99 of 100 requests are to meet each bound.

    Args:
        records: All requests; those that failed meet nothing.
        goal: What was asked.
        memory_bytes: Resident memory at its peak.
    """
    checks = []
    for metric, bound in goal.bounds.items():
        values = [_METRICS[metric](one) if one.status == "completed" else None for one in records]
        late = sum(
            record.status != "completed" or (value is not None and 1000 * value > bound)
            for record, value in zip(records, values, strict=True)
        )
        share = 1 - late / len(records) if records else 0.0
        checks.append(
            Check(metric, f"{bound:g} ms for 99 %", f"met by {share:.1%}", met=share >= 0.99)
        )
    if goal.memory_bytes is not None:
        mebibytes = memory_bytes / 2**20
        checks.append(
            Check(
                "memory",
                f"{goal.memory_bytes / 2**20:.0f} MiB",
                f"{mebibytes:.0f} MiB",
                met=memory_bytes <= goal.memory_bytes,
            )
        )
    return checks


def parse_bounds(text: str) -> Goal:
    """Reads a goal of the user's own, as in "ttft=450,tpot=40" (milliseconds).

    Raises:
        UsageError: It is not written so.
    """
    bounds: dict[str, float] = {}
    for part in text.split(","):
        match = re.fullmatch(r"\s*(ttft|tpot|e2e)\s*=\s*([0-9]{1,9}(?:\.[0-9]{1,6})?)\s*", part)
        if match is None or match[1] in bounds or float(match[2]) <= 0:
            raise UsageError(
                f"objective {part!r:.40}",
                allowed=f"{', '.join(GOALS)}, or milliseconds as in ttft=450,tpot=40,e2e=2000",
            )
        bounds[match[1]] = float(match[2])
    return Goal(text, "As given.", bounds)

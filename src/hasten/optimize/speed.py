"""How fast a candidate ran, round by round, and how sure its advantage over the original is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from hasten.measure.metrics import e2e, tpot, ttft
from hasten.measure.records import Record
from hasten.measure.statistics import Interval, bootstrap_ratio_of_medians

__all__ = ["SPEED_FORMULAS", "Duel", "Effort", "RequestShape", "Timings", "speedup", "timings"]

SPEED_FORMULAS = {
    "e2e": "intended send -> last token; one request alone, in process; median of the rounds",
    "ttft": "intended send -> first token; median of the rounds",
    "tpot": "(last token - first token) / (output tokens - 1); median of the rounds",
    "prefill_tokens_per_s": "input tokens / median TTFT",
    "decode_tokens_per_s": "1 / median TPOT",
    "speedup": "median e2e of the original / median e2e of the candidate, in interleaved rounds;"
    " interval: 95 % percentiles of a bootstrap over rounds",
}


@dataclass(frozen=True, slots=True)
class RequestShape:
    """What is timed: one request alone with this many input and output tokens."""

    input_tokens: int
    output_tokens: int

    def __str__(self) -> str:
        return f"{self.input_tokens} tokens in, {self.output_tokens} out"


@dataclass(frozen=True, slots=True)
class Effort:
    """How long a race goes on: up to `rounds`, but after `least` only while `seconds` last."""

    rounds: int
    least: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Timings:
    """Seconds of each round, in the order of the rounds; as many of each kind."""

    shape: RequestShape
    ttft: tuple[float, ...]
    tpot: tuple[float, ...]
    e2e: tuple[float, ...]

    @property
    def latency(self) -> float:
        """Median end-to-end latency in seconds: the one number that the search minimises."""
        return float(np.median(self.e2e))

    def as_dict(self) -> dict[str, float]:
        """Medians as in reports; milliseconds and tokens per second."""
        first, each = float(np.median(self.ttft)), float(np.median(self.tpot))
        return {
            "rounds": len(self.e2e),
            "e2e_ms": self.latency * 1e3,
            "ttft_ms": first * 1e3,
            "tpot_ms": each * 1e3,
            "prefill_tokens_per_s": self.shape.input_tokens / first,
            "decode_tokens_per_s": 1 / each,
        }


@dataclass(frozen=True, slots=True)
class Duel:
    """A candidate and the original in the same rounds."""

    before: Timings
    after: Timings


def timings(shape: RequestShape, records: Sequence[Record]) -> Timings:
    """Takes the times out of the records of completed requests, one a round.

    Raises:
        ValueError: A request gave fewer than two tokens, so it has no TPOT.
    """
    found = [(ttft(record), tpot(record), e2e(record)) for record in records]
    complete = [(a, b, c) for a, b, c in found if a is not None and b is not None and c is not None]
    if len(complete) != len(found) or not found:
        raise ValueError(f"{len(complete)} of {len(found)} requests have every time")
    first, each, whole = zip(*complete, strict=True)
    return Timings(shape, first, each, whole)


def speedup(duel: Duel, *, seed: int) -> Interval:
    """How many times faster the candidate ran.

    A round is resampled as a pair: what slows the machine for a while slows both.
    """
    return bootstrap_ratio_of_medians(duel.before.e2e, duel.after.e2e, paired=True, seed=seed)

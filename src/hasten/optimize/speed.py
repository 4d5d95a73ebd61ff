"""How fast a candidate ran, round by round, and how sure its advantage over the original is."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from hasten.measure.load import LoadResult
from hasten.measure.metrics import e2e, tpot, ttft
from hasten.measure.records import Record
from hasten.measure.statistics import Interval, bootstrap_ratio_of_medians

__all__ = [
    "SPEED_FORMULAS",
    "Duel",
    "Effort",
    "RequestShape",
    "Round",
    "Timings",
    "one_round",
    "speedup",
]

SPEED_FORMULAS = {
    "round": "the requests of a use that run side by side, sent together, in process",
    "seconds": "first intended send -> last token of a round; median of the rounds",
    "e2e": "intended send -> last token; mean of a round's requests, median of the rounds",
    "ttft": "intended send -> first token; mean of a round's requests, median of the rounds",
    "tpot": "(last token - first token) / (output tokens - 1); mean of a round's requests, median "
    "of the rounds",
    "prefill_tokens_per_s": "input tokens / median TTFT, for one request alone",
    "decode_tokens_per_s": "1 / median TPOT, for one request alone",
    "output_tokens_per_s": "output tokens of a round / median seconds",
    "speedup": "median seconds of the original / median seconds of the candidate, in interleaved"
    " rounds; interval: 95 % percentiles of a bootstrap over rounds",
}


@dataclass(frozen=True, slots=True)
class RequestShape:
    """What a round is.

    Attributes:
        input_tokens: Of each prompt.
        output_tokens: Of each answer.
        concurrent: Requests sent together.
        shared: Tokens with which all prompts begin, as a system prompt does; a prefix cache that a
            candidate has holds them when a round begins.
    """

    input_tokens: int
    output_tokens: int
    concurrent: int = 1
    shared: int = 0

    def __str__(self) -> str:
        lengths = f"{self.input_tokens} tokens in, {self.output_tokens} out"
        return lengths if self.concurrent == 1 else f"{self.concurrent} at once, {lengths}"


@dataclass(frozen=True, slots=True)
class Effort:
    """How long a race goes on: up to `rounds`, but after `least` only while `seconds` last."""

    rounds: int
    least: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Round:
    """Seconds of one round: means over its requests, and of the whole."""

    ttft: float
    tpot: float
    e2e: float
    seconds: float


@dataclass(frozen=True, slots=True)
class Timings:
    """The rounds of a candidate, in their order."""

    shape: RequestShape
    rounds: tuple[Round, ...]

    @property
    def seconds(self) -> float:
        """Median seconds of a round: the one number that the search minimises."""
        return self.median("seconds")

    def median(self, what: str) -> float:
        """Of the rounds: "ttft", "tpot", "e2e" or "seconds"; in seconds."""
        return float(np.median([getattr(one, what) for one in self.rounds]))

    def as_dict(self) -> dict[str, float]:
        """Medians as in reports; milliseconds and tokens per second."""
        first, each = self.median("ttft"), self.median("tpot")
        found = {
            "rounds": len(self.rounds),
            "e2e_ms": self.median("e2e") * 1e3,
            "ttft_ms": first * 1e3,
            "tpot_ms": each * 1e3,
        }
        if self.shape.concurrent == 1:
            found |= {
                "prefill_tokens_per_s": self.shape.input_tokens / first,
                "decode_tokens_per_s": 1 / each,
            }
        tokens = self.shape.concurrent * self.shape.output_tokens
        return {**found, "output_tokens_per_s": tokens / self.seconds}

    def samples(self) -> list[list[float]]:
        """The rounds as JSON; `from_samples` reads them."""
        return [[one.ttft, one.tpot, one.e2e, one.seconds] for one in self.rounds]

    @classmethod
    def from_samples(cls, shape: RequestShape, samples: Sequence[Sequence[float]]) -> Timings:
        """The inverse of `samples`."""
        return cls(shape, tuple(Round(*one) for one in samples))


@dataclass(frozen=True, slots=True)
class Duel:
    """A candidate and the original in the same rounds."""

    before: Timings
    after: Timings


def one_round(result: LoadResult) -> Round:
    """The figures of a round whose requests all completed.

    Raises:
        ValueError: A request gave fewer than two tokens, so it has no TPOT.
    """
    first, each, whole = (_mean(map(metric, result.records)) for metric in (ttft, tpot, e2e))
    return Round(first, each, whole, _span(result.records))


def speedup(duel: Duel, *, seed: int) -> Interval:
    """How many times faster the candidate ran.

    A round is resampled as a pair: what slows the machine for a while slows both.
    """
    before, after = ([one.seconds for one in side.rounds] for side in (duel.before, duel.after))
    return bootstrap_ratio_of_medians(before, after, paired=True, seed=seed)


def _mean(values: Iterable[float | None]) -> float:
    found = list(values)
    known = [value for value in found if value is not None]
    if len(known) != len(found) or not known:
        raise ValueError(f"{len(known)} of {len(found)} requests have every time")
    return sum(known) / len(known)


def _span(records: Sequence[Record]) -> float:
    """First intended send to last token."""
    ends = [one.token_events[-1].time for one in records]
    return max(ends) - min(one.intended_send for one in records)

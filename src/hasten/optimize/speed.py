"""How fast a candidate ran, round by round, and how sure its advantage over the original is."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from hasten.measure.blocks import LEAST_BLOCKS, predict_block
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
    "block": "rounds of engines that were opened for it; the order of each round is drawn anew",
    "speedup": "median seconds of the original / median seconds of the candidate in the same block;"
    " geometric mean of the blocks; interval: where one more block falls with 95 %, by Student's "
    "prediction interval of the logarithms (of fewer than 3 blocks: percentiles of a bootstrap over"
    " rounds, which speaks of this one race)",
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
    """How long a race goes on.

    Attributes:
        rounds: At most, in all blocks together.
        least: Rounds that are run though the time is up, in all blocks together.
        seconds: After which no further round is begun; each block has its share.
        blocks: How often the engines are opened anew.
    """

    rounds: int
    least: int
    seconds: float
    blocks: int = 1

    def of_block(self) -> Effort:
        """The share of one block, which has at least one round."""
        rounds = max(1, self.rounds // self.blocks)
        return Effort(rounds, max(1, self.least // self.blocks), self.seconds / self.blocks)


@dataclass(frozen=True, slots=True)
class Round:
    """Seconds of one round: of each of its requests, and of the whole.

    Attributes:
        ttft: To the first token, of each request.
        tpot: For each token after it, of each request.
        e2e: To the last token, of each request.
        seconds: Of all of them together.
    """

    ttft: tuple[float, ...]
    tpot: tuple[float, ...]
    e2e: tuple[float, ...]
    seconds: float

    def mean(self, what: str) -> float:
        """Over the requests: "ttft", "tpot" or "e2e"; in seconds."""
        values = self.of(what)
        return sum(values) / len(values)

    def of(self, what: str) -> tuple[float, ...]:
        """Of each request: "ttft", "tpot" or "e2e"; in seconds."""
        values: tuple[float, ...] = getattr(self, what)
        return values


@dataclass(frozen=True, slots=True)
class Timings:
    """The rounds of a candidate, in their order.

    Attributes:
        shape: What a round is.
        blocks: Rounds of the same engines belong together.
    """

    shape: RequestShape
    blocks: tuple[tuple[Round, ...], ...]

    @property
    def rounds(self) -> list[Round]:
        """Of all blocks."""
        return [one for block in self.blocks for one in block]

    @property
    def seconds(self) -> float:
        """Median seconds of a round: the one number that the search minimises."""
        return float(np.median([one.seconds for one in self.rounds]))

    def median(self, what: str) -> float:
        """Of the rounds' means over their requests: "ttft", "tpot" or "e2e"; in seconds."""
        return float(np.median([one.mean(what) for one in self.rounds]))

    def requests(self, what: str) -> list[float]:
        """Of every request: "ttft", "tpot" or "e2e"; in seconds."""
        return [value for one in self.rounds for value in one.of(what)]

    def followed_by(self, other: Timings) -> Timings:
        """With the blocks that were run later."""
        return Timings(self.shape, self.blocks + other.blocks)

    def as_dict(self) -> dict[str, float]:
        """Medians as in reports; milliseconds and tokens per second."""
        first, each = self.median("ttft"), self.median("tpot")
        found = {
            "rounds": len(self.rounds),
            "blocks": len(self.blocks),
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

    def samples(self) -> list[list[list[Any]]]:
        """The rounds as JSON; `from_samples` reads them."""
        return [[[one.ttft, one.tpot, one.e2e, one.seconds] for one in b] for b in self.blocks]

    @classmethod
    def from_samples(cls, shape: RequestShape, samples: Sequence[Sequence[Any]]) -> Timings:
        """The inverse of `samples`."""
        blocks = (
            tuple(Round(tuple(a), tuple(b), tuple(c), seconds) for a, b, c, seconds in block)
            for block in samples
        )
        return cls(shape, tuple(blocks))


@dataclass(frozen=True, slots=True)
class Duel:
    """A candidate and the original in the same rounds."""

    before: Timings
    after: Timings

    def followed_by(self, other: Duel) -> Duel:
        """With the blocks that were run later."""
        return Duel(self.before.followed_by(other.before), self.after.followed_by(other.after))


def one_round(result: LoadResult) -> Round:
    """The figures of a round whose requests all completed.

    Raises:
        ValueError: A request gave fewer than two tokens, so it has no TPOT.
    """
    first, each, whole = (_known(map(metric, result.records)) for metric in (ttft, tpot, e2e))
    return Round(first, each, whole, _span(result.records))


def speedup(duel: Duel, *, seed: int) -> Interval:
    """How many times faster the candidate ran, and would run in one more block.

    Two sides are compared within a block: what slows the machine for a while slows both. Medians,
    since a round that the system held up tells of neither. Of fewer than `LEAST_BLOCKS` blocks the
    interval is a bootstrap over pairs of rounds, which speaks of this one race.
    """
    if len(duel.after.blocks) < LEAST_BLOCKS:
        before, after = ([one.seconds for one in side.rounds] for side in (duel.before, duel.after))
        return bootstrap_ratio_of_medians(before, after, paired=True, seed=seed)
    pairs = zip(duel.before.blocks, duel.after.blocks, strict=True)
    found = predict_block([math.log(_median(one) / _median(other)) for one, other in pairs])
    estimate, low, high = (math.exp(end) for end in (found.estimate, found.low, found.high))
    return Interval(estimate, low, high, found.confidence)


def _median(block: Sequence[Round]) -> float:
    return float(np.median([one.seconds for one in block]))


def _known(values: Iterable[float | None]) -> tuple[float, ...]:
    found = list(values)
    known = tuple(value for value in found if value is not None)
    if len(known) != len(found) or not known:
        raise ValueError(f"{len(known)} of {len(found)} requests have every time")
    return known


def _span(records: Sequence[Record]) -> float:
    """First intended send to last token."""
    ends = [one.token_events[-1].time for one in records]
    return max(ends) - min(one.intended_send for one in records)

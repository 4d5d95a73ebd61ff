"""Bounds on the slowest requests, and what was measured of them.

A percentile is shown by counting: of n requests k were later than the bound, so with 95 %
confidence at most such a share of all is (Clopper and Pearson). That it is at most 1 % takes 299
requests of which none is late, 473 with 1, 628 with 2; at most 5 % takes 59, 93, 124.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from hasten.errors import UsageError
from hasten.measure.goals import parse_bounds
from hasten.measure.statistics import allowed_late, minimum_samples
from hasten.measure.tails import percentile_bound, share_bound

__all__ = ["CONFIDENCE", "TAIL_FORMULAS", "TailBound", "TailFinding", "parse_tail", "rounds_to_run"]

CONFIDENCE = 0.95
"""One-sided, of each candidate that is measured."""

_MOST_LATE = 2
"""Where time allows, so many requests may be late: one hiccup of the system decides less."""

_LONGEST = 1e9
"""Milliseconds."""

TAIL_FORMULAS = {
    "tail": "requests of rounds of the candidate by itself, with engines opened anew about every"
    " half minute; late: over the bound; the bound is kept if the 95 % upper bound (one-sided, "
    "Clopper and Pearson) of the share of late requests is at most 1 - the percentile, and so at "
    "most the order statistic `within_ms` bounds the percentile; requests count as independent",
}


@dataclass(frozen=True, slots=True)
class TailBound:
    """What nearly all requests have to keep.

    Attributes:
        metric: "ttft", "tpot" or "e2e" of a request.
        percentile: The share of requests that are to keep it, in (0, 1).
        ms: The bound, in milliseconds.
    """

    metric: str
    percentile: float
    ms: float

    def __str__(self) -> str:
        title = _TITLES[self.metric]
        return f"{title} within {self.ms:g} ms for {100 * self.percentile:g} % of requests"

    def why_hopeless(self, seconds: Sequence[float]) -> str | None:
        """What a few requests show already: most of them are late; None if they are not."""
        middle = 1e3 * float(np.median(seconds))
        return f"{self}, but the median is {middle:.4g} ms" if middle > self.ms else None


_TITLES = {"ttft": "first token", "tpot": "each output token", "e2e": "latency"}


@dataclass(frozen=True, slots=True)
class TailFinding:
    """A bound beside the requests that were measured.

    Attributes:
        bound: What was asked.
        planned: How many requests were to be measured.
        requests: How many were.
        late: Of these, how many were over the bound.
        most_late: At most this share of all requests is late, with 95 % confidence.
        within_ms: The percentile is at most this, with 95 % confidence; None where so few requests
            bound it by nothing.
    """

    bound: TailBound
    planned: int
    requests: int
    late: int
    most_late: float
    within_ms: float | None

    @classmethod
    def of(cls, bound: TailBound, seconds: Sequence[float], planned: int) -> TailFinding:
        """Counts, where `seconds` holds the metric of each request, at least one."""
        times = [1e3 * one for one in seconds]
        late = sum(one > bound.ms for one in times)
        share = share_bound(late, len(times), CONFIDENCE)
        within = percentile_bound(times, bound.percentile, CONFIDENCE)
        return cls(bound, planned, len(times), late, share, within)

    @property
    def kept(self) -> bool:
        """Whether the requests show, with 95 % confidence, that the bound is kept."""
        return self.within_ms is not None and self.within_ms <= self.bound.ms

    @property
    def hopeless(self) -> bool:
        """Whether so many are late that as many requests as were planned could not show it."""
        allowed = allowed_late(self.planned, self.bound.percentile, CONFIDENCE)
        return self.late > (allowed or 0)

    def __str__(self) -> str:
        found = f"{self.bound}: {self.late} of {self.requests} were late"
        if self.kept:
            return f"{found}, which shows it; they show {self.within_ms:.4g} ms"
        words = f"{found}, so up to {100 * self.most_late:.2g} % of all may be (95 % confidence)"
        if self.within_ms is not None:
            return f"{words}; they show {self.within_ms:.4g} ms"
        least = minimum_samples(self.bound.percentile, 0, CONFIDENCE)
        return f"{words}; to show it takes {least} requests"

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready values."""
        figures = asdict(self)
        return {**figures.pop("bound"), **figures, "confidence": CONFIDENCE, "kept": self.kept}


def parse_tail(text: str, percentile: float) -> tuple[TailBound, ...]:
    """Reads milliseconds of the latency, as in "600", or of several, as in "ttft=450,e2e=600".

    Raises:
        UsageError: It is written otherwise.
    """
    if "=" in text:
        bounds: Mapping[str, float] = parse_bounds(text).bounds
    else:
        try:
            bounds = {"e2e": float(text)}
        except ValueError:
            bounds = {"e2e": math.nan}
    if not all(0 < one <= _LONGEST for one in bounds.values()):
        raise UsageError(
            f"bound {text!r:.40} for {100 * percentile:g} % of requests",
            allowed="milliseconds above 0, as in 600, or as in ttft=450,tpot=40,e2e=2000",
        )
    return tuple(TailBound(metric, percentile, ms) for metric, ms in bounds.items())


def rounds_to_run(
    tails: Sequence[TailBound], concurrent: int, round_seconds: float, seconds: float
) -> int:
    """How many rounds to run: enough for every bound and some late requests, if time allows.

    Args:
        tails: The bounds, at least one.
        concurrent: Requests of a round.
        round_seconds: That a round takes.
        seconds: That there are; where they do not even suffice for no late request, so many rounds
            are run all the same as fit.
    """
    fit = max(1, int(seconds / round_seconds)) if round_seconds > 0 else 1
    strictest = max(one.percentile for one in tails)
    wanted = [
        math.ceil(minimum_samples(strictest, late, CONFIDENCE) / concurrent)
        for late in range(_MOST_LATE + 1)
    ]
    return max((count for count in wanted if count <= fit), default=fit)

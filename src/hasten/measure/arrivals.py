"""When requests are sent: as answers come (closed loop), or by the clock (open loop).

A closed loop waits for the target, so a stall holds the next requests back and hides in the
figures; an open loop sends on, as users do.
"""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from hasten.errors import UsageError

__all__ = ["ClosedLoop", "OpenLoop", "Pattern", "constant", "gamma", "poisson", "ramp", "replay"]


@dataclass(frozen=True, slots=True)
class ClosedLoop:
    """So many clients, each of which sends its next request when the one before has ended."""

    concurrency: int = 1

    def __post_init__(self) -> None:
        if self.concurrency < 1:
            raise UsageError(f"{self.concurrency} clients", allowed="at least 1")

    def describe(self) -> Mapping[str, object]:
        """JSON-ready."""
        return {"name": "closed-loop", "concurrency": self.concurrency}


@dataclass(frozen=True, slots=True)
class OpenLoop:
    """Requests at times of their own.

    Attributes:
        description: JSON-ready: "name" and its parameters.
        offsets: Gives the times anew, in seconds from the beginning, never falling.
        max_in_flight: Requests under way at most; further ones wait, and count from when they were
            due. None for no limit.
    """

    description: Mapping[str, object]
    offsets: Callable[[], Iterator[float]]
    max_in_flight: int | None = None

    def describe(self) -> Mapping[str, object]:
        """JSON-ready."""
        return {**self.description, "max_in_flight": self.max_in_flight}


Pattern = ClosedLoop | OpenLoop


def constant(rate: float) -> OpenLoop:
    """Requests at equal distances.

    Args:
        rate: Requests a second.
    """
    _check_rate(rate)
    return OpenLoop(
        {"name": "constant", "rate": rate}, lambda: (number / rate for number in itertools.count())
    )


def poisson(rate: float, seed: int = 0) -> OpenLoop:
    """Requests that know nothing of each other: exponential distances.

    Args:
        rate: Requests a second, on average.
        seed: Of the distances.
    """
    _check_rate(rate)
    return OpenLoop(
        {"name": "poisson", "rate": rate, "seed": seed},
        lambda: _sums(seed, lambda draw: draw.expovariate(rate)),
    )


def gamma(rate: float, burstiness: float, seed: int = 0) -> OpenLoop:
    """Requests in bursts, or more evenly than at random: gamma distances.

    Args:
        rate: Requests a second, on average.
        burstiness: Squared coefficient of variation of the distances: 1 is Poisson, more comes in
            bursts, less is more even.
        seed: Of the distances.
    """
    _check_rate(rate)
    if not (math.isfinite(burstiness) and burstiness > 0):
        raise UsageError(f"a burstiness of {burstiness}", allowed="above 0; 1 is Poisson")
    shape, scale = 1 / burstiness, burstiness / rate
    return OpenLoop(
        {"name": "gamma", "rate": rate, "burstiness": burstiness, "seed": seed},
        lambda: _sums(seed, lambda draw: draw.gammavariate(shape, scale)),
    )


def ramp(first: float, last: float, seconds: float) -> OpenLoop:
    """Requests at a rate that changes evenly, and stays at the last one.

    Args:
        first: Requests a second at the beginning.
        last: Requests a second at the end.
        seconds: How long the change takes.
    """
    _check_rate(first)
    _check_rate(last)
    if not (math.isfinite(seconds) and seconds > 0):
        raise UsageError(f"a ramp of {seconds} s", allowed="above 0")

    def offset(number: int) -> float:
        """When the integral of the rate reaches a number."""
        slope = (last - first) / seconds
        whole = (first + last) / 2 * seconds
        if number >= whole:
            return seconds + (number - whole) / last
        # The smaller root of slope / 2 * t^2 + first * t = number, without cancellation.
        return 2 * number / (first + math.sqrt(first * first + 2 * slope * number))

    return OpenLoop(
        {"name": "ramp", "first": first, "last": last, "seconds": seconds},
        lambda: map(offset, itertools.count()),
    )


def replay(times: Sequence[float], speed: float = 1.0) -> OpenLoop:
    """Requests as they once came.

    Args:
        times: Seconds, in order.
        speed: 2 sends them twice as fast.
    """
    _check_rate(speed)
    if not times or any(b < a for a, b in itertools.pairwise(times)):
        raise UsageError("a trace needs times that do not fall")
    first = times[0]
    return OpenLoop(
        {"name": "replay", "requests": len(times), "speed": speed},
        lambda: ((time - first) / speed for time in times),
    )


def _sums(seed: int, distance: Callable[[random.Random], float]) -> Iterator[float]:
    """Running sums of distances; the first request comes after one, too."""
    draw, at = random.Random(seed), 0.0  # noqa: S311 - times of requests, not a secret
    while True:
        at += distance(draw)
        yield at


def _check_rate(rate: float) -> None:
    if not (math.isfinite(rate) and rate > 0):
        raise UsageError(f"a rate of {rate}", allowed="above 0")

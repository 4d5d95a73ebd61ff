"""Loads of growing size, up to the one that a target cannot take any more."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from hasten.errors import UsageError
from hasten.measure.report import BenchReport

__all__ = ["Saturation", "doubling", "find_saturation", "step_dict", "sweep"]

GAIN = 0.05
"""More clients that bring less than this much more throughput saturate a target."""
MOST_CLIENTS = 4096


@dataclass(frozen=True, slots=True)
class Saturation:
    """Where more load stopped to bring more throughput.

    Attributes:
        clients: The fewest clients with nearly the most throughput.
        requests_per_s: Throughput there.
        reached: Whether more clients than these were tried and brought nothing.
    """

    clients: int
    requests_per_s: float
    reached: bool

    def as_dict(self) -> dict[str, object]:
        """JSON-ready values."""
        return {
            "clients": self.clients,
            "requests_per_s": self.requests_per_s,
            "reached": self.reached,
        }


def sweep(
    measure: Callable[[int], BenchReport], clients: Iterator[int], *, until_saturated: bool
) -> list[tuple[int, BenchReport]]:
    """Measures with more and more clients in closed loops.

    Args:
        measure: Measures with so many clients.
        clients: Numbers to try, growing.
        until_saturated: End where twice a step brought less than 5 % more throughput.
    """
    steps: list[tuple[int, BenchReport]] = []
    for number in clients:
        steps.append((number, measure(number)))
        if until_saturated and _is_saturated([_rate(report) for _, report in steps]):
            break
        if not steps[-1][1].requests["completed"]:
            break
    return steps


def doubling(limit: int = MOST_CLIENTS) -> Iterator[int]:
    """Counts 1, 2, 4 and so on."""
    number = 1
    while number <= limit:
        yield number
        number *= 2


def find_saturation(steps: Sequence[tuple[int, BenchReport]]) -> Saturation:
    """Where throughput came within 5 % of its most.

    Raises:
        UsageError: No step completed a request.
    """
    rates = [(clients, _rate(report)) for clients, report in steps]
    most = max((rate for _, rate in rates), default=0.0)
    if most <= 0:
        raise UsageError("no request completed at any load")
    clients, rate = next(one for one in rates if one[1] >= most * (1 - GAIN))
    return Saturation(clients, rate, reached=clients < rates[-1][0])


def step_dict(report: BenchReport) -> Mapping[str, object]:
    """The part of a report that a sweep keeps of each load."""
    document = report.as_dict()
    return {name: document[name] for name in ("scenario", "metrics", "throughput", "requests")}


def _rate(report: BenchReport) -> float:
    return report.rates["requests_per_s"] or 0.0


def _is_saturated(rates: Sequence[float]) -> bool:
    return len(rates) > 2 and max(rates[-2:]) < max(rates[:-2]) * (1 + GAIN)

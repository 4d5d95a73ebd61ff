"""The highest rate at which a target keeps its bounds: the score of MLPerf's server scenario."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from hasten.errors import UsageError
from hasten.measure.loadgen.result import LoadGenResult
from hasten.measure.loadgen.run import run_loadgen
from hasten.measure.loadgen.settings import LoadGenSettings
from hasten.measure.targets.target import Target
from hasten.measure.workload import Workload

__all__ = ["ServerRate", "find_server_rate", "highest_passing"]

GROWTH = 2.0
LEAST_SHARE = 1 / 256
"""Of the first rate: below that, the search gives up."""


@dataclass(frozen=True, slots=True)
class ServerRate:
    """What a search found.

    Attributes:
        rate: Queries a second; None where no rate kept the bounds.
        tried: Every rate with what LoadGen said, in order.
    """

    rate: float | None
    tried: tuple[tuple[float, LoadGenResult], ...]

    @property
    def best(self) -> LoadGenResult | None:
        """The run at that rate."""
        return next((result for rate, result in self.tried if rate == self.rate), None)

    def as_dict(self) -> dict[str, object]:
        """JSON-ready values."""
        return {
            "rate": self.rate,
            "tried": [{"rate": rate, **result.as_dict()} for rate, result in self.tried],
        }


def find_server_rate(
    target: Target,
    workload: Workload,
    settings: LoadGenSettings,
    folder: Path,
    *,
    precision: float = 0.05,
    most_runs: int = 20,
    on_run: Callable[[float, LoadGenResult], None] | None = None,
) -> ServerRate:
    """Finds the highest Poisson rate at which LoadGen calls a server run valid.

    Rates double until one fails, and the gap is halved from there. A run is one draw: near the
    limit, chance decides.

    Args:
        target: What is measured; it is opened and closed again for each run.
        workload: See `run_loadgen`.
        settings: Of a server run with its bounds; the search begins at its rate.
        folder: For LoadGen's logs, in a folder for each run.
        precision: The search ends when the least rate that failed is above the highest that passed
            by no more than this share.
        most_runs: The search ends after so many, too.
        on_run: Called after each run.

    Raises:
        UsageError: The settings are not those of a server run.
        HastenError: See `run_loadgen`.
    """
    if settings.scenario != "server" or settings.accuracy or settings.rate is None:
        raise UsageError("a rate is searched with the server scenario, measuring")
    tried: list[tuple[float, LoadGenResult]] = []

    def passes(rate: float) -> bool:
        logs = folder / f"{len(tried) + 1:02}-rate-{rate:.4g}"
        result = run_loadgen(target, workload, replace(settings, rate=rate), logs)
        tried.append((rate, result))
        if on_run is not None:
            on_run(rate, result)
        if result.interrupted:
            raise KeyboardInterrupt
        return result.valid

    found = highest_passing(passes, settings.rate, precision=precision, most=most_runs)
    return ServerRate(found, tuple(tried))


def highest_passing(
    passes: Callable[[float], bool], first: float, *, precision: float, most: int
) -> float | None:
    """Finds the highest value that passes, if lower ones do whenever higher ones do.

    Args:
        passes: Tries a value.
        first: Where to begin, above 0.
        precision: Share of the result by which it may be too low.
        most: Values to try at most.

    Returns:
        A value that passed; None if none did down to 1/256 of the first.
    """
    if not (first > 0 and precision > 0 and most > 0):
        raise UsageError(f"a search with {first=}, {precision=}, {most=}", allowed="above 0")
    passed, failed, value = 0.0, math.inf, first
    for _ in range(most):
        if passes(value):
            passed = value
        else:
            failed = value
        if failed <= passed * (1 + precision) or failed <= first * LEAST_SHARE:
            break
        if passed and failed < math.inf:
            value = math.sqrt(passed * failed)
        else:
            value = value * GROWTH if passed else value / GROWTH
    return passed or None

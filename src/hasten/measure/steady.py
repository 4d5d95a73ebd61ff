"""Where the warm-up of a run ends: caches fill, clocks rise, batches build up.

MSER-5 finds it: of all beginnings, drop the one that leaves the least standard error of the mean,
over averages of five values. Sources: White, "An effective truncation heuristic for bias reduction
in simulation output", Simulation 69 (1997); White, Cobb and Spratt, "A comparison of five
steady-state truncation heuristics for simulation", Winter Simulation Conference 2000.

Two changes suit latencies. A single late request is a tail, not a beginning: values far out are
drawn in before the search (and nowhere else). And where the beginning does not differ from the rest
by more than chance, there was no warm-up: MSER alone always drops something.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = ["LEAST_VALUES", "SteadyState", "find_steady_state"]

BATCH = 5
LEAST_VALUES = 10 * BATCH
FAR_OUT = 5.0  # standard deviations of the second half, estimated by its median deviation
NORMAL = 1.4826  # standard deviation of a normal distribution over its median deviation
CHANCE = 4.0  # standard errors; more than usual, as the search picked the beginning


@dataclass(frozen=True, slots=True)
class SteadyState:
    """What the sequence of latencies says about the run.

    Attributes:
        n: Values looked at.
        warmup: How many of the first belong to the warm-up.
        settled: Whether the rest is steady; False where the figures still change in the second
            half, None where there are too few values to tell.
    """

    n: int
    warmup: int
    settled: bool | None

    def as_dict(self) -> dict[str, object]:
        """JSON-ready values."""
        return {"n": self.n, "warmup": self.warmup, "settled": self.settled}

    def describe(self) -> str:
        """One sentence for a report."""
        if self.settled is None:
            return f"{self.n} requests are too few to tell a warm-up (at least {LEAST_VALUES})"
        if not self.settled:
            return (
                f"no steady state in {self.n} requests: latencies still change in the second half; "
                "measure longer"
            )
        if self.warmup:
            return f"the first {self.warmup} of {self.n} requests were warm-up"
        return f"steady from the first of {self.n} requests"


def find_steady_state(values: ArrayLike) -> SteadyState:
    """Finds the end of the warm-up.

    Args:
        values: float [n], latencies in the order of the requests.
    """
    sequence = np.asarray(values, dtype=np.float64).reshape(-1)
    if sequence.size < LEAST_VALUES:
        return SteadyState(sequence.size, 0, None)
    means = _draw_in(sequence)[: sequence.size // BATCH * BATCH].reshape(-1, BATCH).mean(axis=1)
    cut = int(np.argmin(_errors(means)))
    if cut == 0 or not _differ(means[:cut], means[cut:]):
        return SteadyState(sequence.size, 0, settled=True)
    if cut > means.size // 2:
        return SteadyState(sequence.size, 0, settled=False)
    return SteadyState(sequence.size, cut * BATCH, settled=True)


def _draw_in(sequence: NDArray[np.float64]) -> NDArray[np.float64]:
    """Brings values far from the second half's median nearer, so that none decides alone."""
    half = sequence[sequence.size // 2 :]
    middle = float(np.median(half))
    spread = NORMAL * float(np.median(np.abs(half - middle)))
    if spread == 0:  # more than half of them are equal: nothing tells what is far
        return sequence
    return np.clip(sequence, middle - FAR_OUT * spread, middle + FAR_OUT * spread)


def _errors(means: NDArray[np.float64]) -> NDArray[np.float64]:
    """Squared standard error of the mean of what is left, by how much is dropped; float [k - 4]."""
    left = np.arange(means.size, 4, -1)
    backwards = (means - means.mean())[::-1]
    sums = np.cumsum(backwards)[::-1][: left.size]
    squares = np.cumsum(backwards**2)[::-1][: left.size]
    return (squares - sums**2 / left) / left**2


def _differ(first: NDArray[np.float64], rest: NDArray[np.float64]) -> bool:
    """Whether two parts differ by more than the batches' scatter explains."""
    scatter = float(rest.std(ddof=1))
    error = scatter * np.sqrt(1 / first.size + 1 / rest.size)
    return bool(abs(first.mean() - rest.mean()) > CHANCE * error)

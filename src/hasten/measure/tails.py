"""What a sample shows of the slowest requests: exact bounds at a confidence, few samples or many.

Nothing is assumed about the distribution, only that requests are independent of each other. Those
that run side by side share their fate, and so does what a machine slows down for a while: their
bounds are less sure than their number says.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from hasten.errors import UsageError
from hasten.measure.statistics import allowed_late, binomial_cdf

__all__ = ["percentile_bound", "share_bound"]

_HALVINGS = 60
"""Of an interval of width 1: beyond float64's precision."""


def percentile_bound(values: ArrayLike, percentile: float, confidence: float) -> float | None:
    """What a percentile is at most, with one-sided confidence: an order statistic of the sample.

    With n values of which t may be late (`allowed_late`), that is the value that t exceed: were
    the percentile above it, so few late ones were found with a chance of at most 1 - confidence.
    Source: Hahn and Meeker, Statistical Intervals, 1991.

    Args:
        values: float [n].
        percentile: As a fraction in (0, 1).
        confidence: In (0, 1).

    Returns:
        The bound; None if n is less than `minimum_samples(percentile, 0, confidence)`.
    """
    sample = np.sort(np.asarray(values, dtype=np.float64).reshape(-1))
    late = allowed_late(sample.size, percentile, confidence)
    return None if late is None else float(sample[sample.size - late - 1])


def share_bound(late: int, n: int, confidence: float) -> float:
    """The share of late requests is at most this, with one-sided confidence.

    It is at most 1 - percentile just where `late` is at most `allowed_late(n, percentile,
    confidence)`. Source: Clopper and Pearson, Biometrika 26, 1934.

    Raises:
        UsageError: The counts do not fit together.
    """
    if not 0 <= late <= n or n < 1:
        raise UsageError(f"{late} late of {n} requests")
    low, high = late / n, 1.0
    if late == n:
        return high
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        if middle < 1 and (middle <= 0 or binomial_cdf(late, n, middle) > 1 - confidence):
            low = middle
        else:
            high = middle
    return high

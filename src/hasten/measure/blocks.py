"""Intervals from blocks: measurements that were each begun anew.

Rounds of one process share where its memory lies, what the machine does meanwhile and the clock of
that minute, so more of them only tell more about that process. What varies most has to be repeated
at its own level. Source: Kalibera and Jones, "Rigorous benchmarking in reasonable time", ISMM 2013.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike

from hasten.errors import UsageError
from hasten.measure.statistics import Interval

__all__ = ["LEAST_BLOCKS", "predict_block", "students_t"]

LEAST_BLOCKS = 3
"""Of two blocks the interval would be 22 times as wide as they are apart."""

_HALVINGS = 100


def predict_block(values: ArrayLike, confidence: float = 0.95) -> Interval:
    """The mean of blocks, and where one more block falls with this confidence.

    That is Student's prediction interval, mean +- t s sqrt(1 + 1/n): what somebody meets who starts
    anew, and not how well the mean is known. It is exact for normal values that are independent;
    what moves more slowly than the blocks took is not in it. Source: Hahn and Meeker, Statistical
    Intervals, 1991.

    Args:
        values: float [n], one of each block, n >= 2.
        confidence: In (0, 1).

    Raises:
        UsageError: Fewer than two blocks.
    """
    sample = np.asarray(values, dtype=np.float64).reshape(-1)
    if sample.size < 2:
        raise UsageError(f"{sample.size} blocks for an interval", allowed="at least 2")
    mean = float(sample.mean())
    spread = float(sample.std(ddof=1)) * math.sqrt(1 + 1 / sample.size)
    half = students_t(confidence, sample.size - 1) * spread
    return Interval(mean, mean - half, mean + half, confidence)


def students_t(confidence: float, freedom: int) -> float:
    """The t that |T| stays below with this chance.

    Args:
        confidence: In (0, 1).
        freedom: Degrees of freedom, at least 1.

    Raises:
        UsageError: An argument is out of range.
    """
    if not 0 < confidence < 1 or freedom < 1:
        raise UsageError(f"Student's t of {confidence} with {freedom} degrees of freedom")
    low, high = 0.0, math.pi / 2  # of the angle whose tangent is t / sqrt(freedom)
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if _within(middle, freedom) < confidence else (low, middle)
    return math.tan(low) * math.sqrt(freedom)


def _within(angle: float, freedom: int) -> float:
    """P(|T| <= sqrt(freedom) tan(angle)); Abramowitz and Stegun, 26.7.3 and 26.7.4."""
    odd = freedom % 2
    term = math.cos(angle) if odd else 1.0
    total = 0.0
    for k in range(2 + odd, freedom + 1, 2):
        total += term
        term *= math.cos(angle) ** 2 * (k - 1) / k
    if odd:
        return 2 / math.pi * (angle + math.sin(angle) * total)
    return math.sin(angle) * total

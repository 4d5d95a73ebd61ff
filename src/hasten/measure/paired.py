"""Two models on the same items: how many right answers are lost, and how sure that is."""

from __future__ import annotations

import math
from fractions import Fraction
from statistics import NormalDist

import numpy as np
from numpy.typing import ArrayLike

from hasten.errors import UsageError
from hasten.measure.statistics import Interval, bootstrap_mean

__all__ = ["loss_of_scores", "mcnemar", "score_interval"]

_LEAST_DIFFERENT = 10
"""Fewer items that differ are too few to draw from: a bootstrap of them is too narrow."""

_STEPS = 60
"""Halvings of an interval of width 1: beyond float64's precision."""


def score_interval(lost: int, gained: int, items: int, confidence: float = 0.95) -> Interval:
    """Loss of right answers, as a share of the items, with Tango's score interval.

    It holds for small samples, and with no item lost or gained it does not collapse: its upper end
    is then z^2 / (n + z^2), much as the rule of three has it. Source: Tango, "Equivalence test and
    confidence interval for the difference in proportions for the paired-sample design",
    Statistics in Medicine 17, 1998.

    Args:
        lost: Items that only the original got right.
        gained: Items that only the candidate got right.
        items: All items.
        confidence: Of the interval, in (0, 1).

    Raises:
        UsageError: The counts do not fit together.
    """
    if lost < 0 or gained < 0 or items < 1 or lost + gained > items:
        raise UsageError(f"{lost} lost and {gained} gained of {items} items")
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    loss = (lost - gained) / items

    def end(low: float, high: float, level: float) -> float:
        """Where the statistic, which falls with the loss it supposes, reaches a level."""
        for _ in range(_STEPS):
            middle = (low + high) / 2
            above = _statistic(lost, gained, items, middle) > level
            low, high = (middle, high) if above else (low, middle)
        return (low + high) / 2

    return Interval(loss, end(-1.0, loss, z), end(loss, 1.0, -z), confidence)


def _statistic(lost: int, gained: int, items: int, loss: float) -> float:
    """Tango's score statistic for a supposed loss, strictly between -1 and 1."""
    a = 2 * items
    b = (2 * items - lost + gained) * loss - lost - gained
    c = -gained * loss * (1 - loss)
    # The share of gained items under that loss, by maximum likelihood.
    share = (math.sqrt(max(b * b - 4 * a * c, 0.0)) - b) / (2 * a)
    variance = items * max(2 * share + loss * (1 - loss), 0.0)
    distance = lost - gained - items * loss
    if variance == 0:
        return math.copysign(math.inf, distance) if distance else 0.0
    return distance / math.sqrt(variance)


def mcnemar(lost: int, gained: int) -> float:
    """Exact two-sided McNemar test: the p-value of "as many are lost as gained".

    Recommended for comparing two classifiers on one test set by Dietterich, "Approximate
    statistical tests for comparing supervised classification learning algorithms", Neural
    Computation 10, 1998 (there in its approximate form).
    """
    flips, fewer = lost + gained, min(lost, gained)
    tail = sum(math.comb(flips, k) for k in range(fewer + 1))
    chance = Fraction(2 * tail, 2**flips)
    return float(chance) if chance < 1 else 1.0


def loss_of_scores(
    before: ArrayLike, after: ArrayLike, *, confidence: float = 0.95, seed: int = 0
) -> Interval:
    """Mean loss of scores between 0 and 1, paired.

    Scores that are all 0 or 1 have `score_interval`. Others have a paired bootstrap, as long as at
    least 10 items differ; with fewer, every item that lost something counts as lost whole for the
    upper end, and every one that gained as gained whole for the lower, by `score_interval`, which
    is wider than need be and never collapses.

    Args:
        before: The original's scores, float [n].
        after: The candidate's, item by item.
        confidence: Of the interval, in (0, 1).
        seed: Of the bootstrap.

    Raises:
        UsageError: There are no items, or not as many of both.
    """
    first, second = (np.asarray(one, np.float64).reshape(-1) for one in (before, after))
    if first.size == 0 or first.size != second.size:
        raise UsageError(f"{first.size} scores before and {second.size} after")
    losses = first - second
    lost, gained = int((losses > 0).sum()), int((losses < 0).sum())
    whole = np.isin(np.concatenate([first, second]), (0.0, 1.0)).all()
    if whole:
        return score_interval(lost, gained, first.size, confidence)
    if lost + gained >= _LEAST_DIFFERENT:
        return bootstrap_mean(losses, confidence=confidence, seed=seed)
    low = score_interval(0, gained, first.size, confidence).low
    high = score_interval(lost, 0, first.size, confidence).high
    return Interval(float(losses.mean()), low, high, confidence)

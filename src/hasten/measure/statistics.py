"""What a sample supports: percentiles with a confidence bound, bootstrap intervals, interleaving.

Nothing here assumes a distribution: latencies are skewed, and perplexities of tokens more so.
"""

from __future__ import annotations

import functools
import math
import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from hasten.errors import UsageError

__all__ = [
    "PERCENTILES",
    "Interval",
    "Summary",
    "allowed_late",
    "binomial_cdf",
    "bootstrap_mean",
    "bootstrap_ratio_of_medians",
    "early_stopping_estimate",
    "interleave",
    "least_pairs",
    "minimum_samples",
    "signed_rank_interval",
    "summarize",
]

PERCENTILES = (50, 90, 95, 99)
CONFIDENCE = 0.99
RESAMPLES = 2000
CHUNK_ELEMENTS = 1 << 22  # resampled values held at once: 32 MiB of float64

Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class Summary:
    """A sample in figures; None where there is no sample, or too small a one.

    Attributes:
        unit: Unit of all figures but `n`.
        n: Sample size.
        mean: Arithmetic mean.
        std: Standard deviation with n - 1; None for n < 2.
        min: Least value.
        max: Greatest value.
        percentiles: One entry for each of `PERCENTILES`; None if n < `minimum_samples`.
    """

    unit: str
    n: int
    mean: float | None
    std: float | None
    min: float | None
    max: float | None
    percentiles: Mapping[int, float | None]

    def as_dict(self) -> dict[str, object]:
        """JSON-ready values under the names of the report contract."""
        return {
            "unit": self.unit,
            "n": self.n,
            "mean": self.mean,
            "std": self.std,
            "min": self.min,
            **{f"p{percent}": value for percent, value in self.percentiles.items()},
            "max": self.max,
        }


@dataclass(frozen=True, slots=True)
class Interval:
    """An estimate with its confidence interval."""

    estimate: float
    low: float
    high: float
    confidence: float

    def as_dict(self) -> dict[str, float]:
        """JSON-ready values."""
        return {
            "estimate": self.estimate,
            "low": self.low,
            "high": self.high,
            "confidence": self.confidence,
        }


def summarize(values: ArrayLike, unit: str) -> Summary:
    """Describe a sample; percentiles interpolate linearly between order statistics.

    Args:
        values: float [n], finite; n may be 0.
        unit: Unit of the values.

    Raises:
        ValueError: If a value is not finite.
    """
    sample = np.asarray(values, dtype=np.float64).reshape(-1)
    if not np.isfinite(sample).all():
        raise ValueError("a sample holds values that are not finite")
    n = sample.size
    supported = [percent for percent in PERCENTILES if n >= minimum_samples(percent / 100)]
    found = dict(zip(supported, np.percentile(sample, supported), strict=True)) if supported else {}
    return Summary(
        unit=unit,
        n=n,
        mean=float(sample.mean()) if n else None,
        std=float(sample.std(ddof=1)) if n > 1 else None,
        min=float(sample.min()) if n else None,
        max=float(sample.max()) if n else None,
        percentiles={
            percent: float(found[percent]) if percent in found else None for percent in PERCENTILES
        },
    )


@functools.cache
def minimum_samples(percentile: float, late: int = 0, confidence: float = CONFIDENCE) -> int:
    """Least sample size that bounds a percentile from above while `late` values exceed the bound.

    This is MLPerf's early-stopping rule: were a fraction of more than 1 - percentile above the
    bound, `late` or fewer of n would be found there with a probability of at most 1 - confidence.
    With 0 late, the largest value bounds the percentile; a smaller sample says nothing about it.
    Source: MLPerf Inference, loadgen/early_stopping.cc.

    Args:
        percentile: As a fraction in (0, 1), e.g. 0.99.
        late: Values above the bound.
        confidence: In (0, 1).

    Returns:
        The least n with P(X <= late) <= 1 - confidence for X ~ Binomial(n, 1 - percentile).

    Raises:
        ValueError: If an argument is out of range.
    """
    if not (0 < percentile < 1 and 0 < confidence < 1 and late >= 0):
        raise ValueError(f"out of range: {percentile=}, {late=}, {confidence=}")
    low, high = late, late + 1  # n = late never suffices, as P(X <= n) is 1
    while binomial_cdf(late, high, 1 - percentile) > 1 - confidence:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        if binomial_cdf(late, middle, 1 - percentile) > 1 - confidence:
            low = middle
        else:
            high = middle
    return high


def allowed_late(n: int, percentile: float, confidence: float = CONFIDENCE) -> int | None:
    """Most values above a bound with which `n` values still bound a percentile by it.

    The inverse of `minimum_samples`; None if not even 0 may exceed the bound.
    """
    if n < minimum_samples(percentile, 0, confidence):
        return None
    low, high = 0, n  # n late of n never suffice
    while high - low > 1:
        middle = (low + high) // 2
        if binomial_cdf(middle, n, 1 - percentile) > 1 - confidence:
            high = middle
        else:
            low = middle
    return low


def early_stopping_estimate(values: ArrayLike, percentile: float) -> float | None:
    """What MLPerf's early stopping reports for a percentile: a bound that holds at 99 %.

    With n values of which t may be late, that is the t-th largest one: t - 1 exceed it.

    Args:
        values: float [n].
        percentile: As a fraction in (0, 1).

    Returns:
        The bound; None if n is less than `minimum_samples(percentile, 1)`.
    """
    sample = np.sort(np.asarray(values, dtype=np.float64).reshape(-1))
    late = allowed_late(sample.size, percentile)
    return float(sample[sample.size - late]) if late else None


def binomial_cdf(k: int, n: int, p: float) -> float:
    """P(X <= k) for X ~ Binomial(n, p), summed in logarithms so that no term underflows."""
    return math.fsum(
        math.exp(
            math.lgamma(n + 1)
            - math.lgamma(i + 1)
            - math.lgamma(n - i + 1)
            + i * math.log(p)
            + (n - i) * math.log1p(-p)
        )
        for i in range(min(k, n) + 1)
    )


def bootstrap_mean(
    values: ArrayLike,
    *,
    block: int = 1,
    confidence: float = 0.95,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Interval:
    """Bootstrap the mean of a sample (percentile interval).

    For a paired comparison, pass the differences of the pairs.

    Args:
        values: float [n], n >= 1.
        block: Values that are drawn together, for neighbours that depend on each other, such as
            the tokens of one text.
        confidence: Of the interval, in (0, 1).
        resamples: Bootstrap samples.
        seed: Of the random generator.

    Raises:
        UsageError: If the sample is empty or the block is not positive.
    """
    sample = _sample(values)
    if block < 1:
        raise UsageError(f"bootstrap block {block}", allowed="at least 1")
    edges = np.arange(0, sample.size, block)
    sums = np.add.reduceat(sample, edges)
    counts = np.diff(np.append(edges, sample.size))
    means = np.concatenate(
        [
            sums[picks].sum(axis=1) / counts[picks].sum(axis=1)
            for picks in _picks(sums.size, resamples, np.random.default_rng(seed))
        ]
    )
    return _interval(float(sample.mean()), means, confidence)


def bootstrap_ratio_of_medians(
    numerator: ArrayLike,
    denominator: ArrayLike,
    *,
    paired: bool,
    confidence: float = 0.95,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Interval:
    """Bootstrap median(numerator) / median(denominator), e.g. a speed-up of latencies.

    Args:
        numerator: float [n], n >= 1.
        denominator: float [m], positive, m >= 1.
        paired: Draw the same rounds from both (then n = m), as for interleaved runs.
        confidence: Of the interval, in (0, 1).
        resamples: Bootstrap samples.
        seed: Of the random generator.

    Raises:
        UsageError: If a sample is empty, a denominator is not positive, or pairs do not match.
    """
    top, bottom = _sample(numerator), _sample(denominator)
    if paired and top.size != bottom.size:
        raise UsageError(f"paired samples of {top.size} and {bottom.size} values")
    if bottom.min() <= 0:
        raise UsageError("a ratio needs positive denominators")
    generator = np.random.default_rng(seed)
    ratios = []
    for picks in _picks(top.size, resamples, generator):
        other = picks
        if not paired:
            other = generator.integers(bottom.size, size=(len(picks), bottom.size))
        ratios.append(np.median(top[picks], axis=1) / np.median(bottom[other], axis=1))
    estimate = float(np.median(top) / np.median(bottom))
    return _interval(estimate, np.concatenate(ratios), confidence)


def signed_rank_interval(values: ArrayLike, confidence: float = 0.95) -> Interval:
    """Estimate the middle of a symmetric distribution, with no other assumption about it.

    The estimate is that of Hodges and Lehmann, the median of the averages of all pairs; the
    interval holds the values that Wilcoxon's signed-rank test does not refuse, so it is exact for
    any sample size, and a few wild values move it little. Source: Hollander, Wolfe and Chicken,
    Nonparametric Statistical Methods, sections 3.2 and 3.3.

    Args:
        values: float [n], independent of each other, n >= `least_pairs(confidence)`.
        confidence: At least this, in (0, 1).

    Raises:
        UsageError: If the sample is too small for the confidence.
    """
    sample = np.asarray(values, dtype=np.float64).reshape(-1)
    if sample.size < least_pairs(confidence):
        raise UsageError(
            f"{sample.size} values for an interval at {confidence:.1%} confidence",
            allowed=f"at least {least_pairs(confidence)}",
        )
    first, second = np.triu_indices(sample.size)
    averages = np.sort((sample[first] + sample[second]) / 2)
    # The distribution of the sum of the ranks of positive values: each rank counts or does not.
    chances = np.ones(1)
    for rank in range(1, sample.size + 1):
        none = np.zeros(rank)
        chances = (np.concatenate([chances, none]) + np.concatenate([none, chances])) / 2
    tail = (1 - confidence) / 2
    cut = int(np.searchsorted(np.cumsum(chances), tail * (1 + 1e-12), side="right"))
    low, high = averages[cut - 1], averages[averages.size - cut]
    return Interval(float(np.median(averages)), float(low), float(high), confidence)


def least_pairs(confidence: float) -> int:
    """Least sample size of a `signed_rank_interval`: the least n with 2 ** (1 - n) <= 1 - c.

    Raises:
        UsageError: If the confidence is not in (0, 1).
    """
    if not 0 < confidence < 1:
        raise UsageError(f"a confidence of {confidence}", allowed="above 0, below 1")
    return math.ceil(1 - math.log2((1 - confidence) * (1 + 1e-12)))


def _sample(values: ArrayLike) -> NDArray[np.float64]:
    sample = np.asarray(values, dtype=np.float64).reshape(-1)
    if sample.size == 0:
        raise UsageError("a bootstrap needs at least one value")
    return sample


def _picks(n: int, resamples: int, generator: np.random.Generator) -> Iterator[NDArray[np.int64]]:
    """Draw indices [resamples, n] with replacement, in parts of bounded size."""
    rows = max(1, CHUNK_ELEMENTS // n)
    for start in range(0, resamples, rows):
        yield generator.integers(n, size=(min(rows, resamples - start), n))


def _interval(estimate: float, draws: NDArray[np.float64], confidence: float) -> Interval:
    tail = (1 - confidence) / 2
    low, high = np.quantile(draws, [tail, 1 - tail])
    return Interval(estimate, float(low), float(high), confidence)


def interleave(
    candidates: Mapping[str, Callable[[], Result]], rounds: int, seed: int
) -> dict[str, list[Result]]:
    """Run each candidate once a round, in an order shuffled anew each round.

    A machine that slows down for a while then slows all of them, and none always runs first.

    Args:
        candidates: What to run, by name.
        rounds: How often each runs.
        seed: Of the order.

    Returns:
        The results of each candidate; entry i of each list is from round i.
    """
    order = random.Random(seed)  # noqa: S311 - an order of runs, not a secret
    results: dict[str, list[Result]] = {name: [] for name in candidates}
    names = list(candidates)
    for _ in range(rounds):
        order.shuffle(names)
        for name in names:
            results[name].append(candidates[name]())
    return results

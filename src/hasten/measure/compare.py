"""Is B faster than A? Two targets in interleaved rounds, and what may be said about their ratio.

Requests of one run depend on each other: they share a queue, a cache and the machine's mood. So
the unit is the round. In a round both targets do the same work, in an order that a coin decides,
and the logarithm of the ratio of their medians is one value. If the targets are alike, the coin
alone gives that value its sign, however the machine drifts; so values are symmetric about zero, and
the signed-rank interval, which assumes no more than that, is exact.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from hasten.errors import HastenError, UsageError
from hasten.measure.arrivals import Pattern
from hasten.measure.load import LoadResult, run_load
from hasten.measure.metrics import samples, throughput
from hasten.measure.records import Clock
from hasten.measure.statistics import Interval, interleave, least_pairs, signed_rank_interval
from hasten.measure.targets.target import Target
from hasten.measure.workload import Workload

__all__ = [
    "CONFIDENCE",
    "LATENCIES",
    "RATES",
    "Comparison",
    "Contrast",
    "Verdict",
    "compare",
    "contrast",
]

LATENCIES = ("ttft", "tpot", "itl", "e2e", "model_latency")
RATES = ("requests_per_s", "output_tokens_per_s")
CONFIDENCE = 0.99
"""So one comparison in a hundred of a target with itself says that they differ."""

Verdict = Literal["faster", "slower", "no difference shown"]


@dataclass(frozen=True, slots=True)
class Contrast:
    """What the rounds say about one metric.

    Attributes:
        metric: Its name.
        a: The median latency in milliseconds, or the rate, of each round of A.
        b: The same of B.
        ratio: B / A, with its interval.
        verdict: Of B; "no difference shown" where the interval holds 1.
    """

    metric: str
    a: tuple[float, ...]
    b: tuple[float, ...]
    ratio: Interval
    verdict: Verdict

    def as_dict(self) -> dict[str, object]:
        """JSON-ready values."""
        return {
            "metric": self.metric,
            "a": list(self.a),
            "b": list(self.b),
            "ratio": self.ratio.as_dict(),
            "verdict": self.verdict,
        }


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two targets, compared.

    Attributes:
        a: What A is.
        b: What B is.
        contrasts: One for each metric asked for.
        rounds: How many there were.
        requests: That completed, of A and of B.
        problems: Why the verdicts do not hold; none if they do.
    """

    a: Mapping[str, object]
    b: Mapping[str, object]
    contrasts: tuple[Contrast, ...]
    rounds: int
    requests: tuple[int, int]
    problems: tuple[str, ...]

    @property
    def valid(self) -> bool:
        """Whether the verdicts hold."""
        return not self.problems

    def as_dict(self) -> dict[str, object]:
        """JSON-ready values."""
        return {
            "a": dict(self.a),
            "b": dict(self.b),
            "contrasts": [one.as_dict() for one in self.contrasts],
            "rounds": self.rounds,
            "requests": list(self.requests),
            "valid": self.valid,
            "problems": list(self.problems),
        }


def compare(
    a: Target,
    b: Target,
    workloads: Sequence[Workload],
    pattern: Pattern | None = None,
    *,
    metrics: Sequence[str] = ("e2e",),
    confidence: float = CONFIDENCE,
    seed: int = 0,
    clock: Clock = time.perf_counter,
    on_progress: Callable[[int], None] | None = None,
) -> Comparison:
    """Runs two targets in turns and says whether B is faster than A.

    Ctrl-C gives the comparison up: one that ends when its user likes what it shows proves nothing.

    Args:
        a: What B is compared with.
        b: What the verdict is about. A server that is both A and B answers the second of each
            round from its caches.
        workloads: One a round, with different prompts; both targets get the same.
        pattern: When to send; None for one client in a closed loop.
        metrics: Of `LATENCIES` (medians) and `RATES`.
        confidence: That no verdict is wrong, all metrics together.
        seed: Of the order within each round.
        clock: Monotonic clock in seconds.
        on_progress: Called with the number of runs that have ended, two a round.

    Raises:
        UsageError: A metric is unknown, or there are too few rounds for the confidence.
        HastenError: A round tells nothing about a metric, such as where all requests failed.
    """
    _check(metrics, len(workloads), confidence)
    ended = 0

    def run(target: Target, works: Iterator[Workload]) -> LoadResult:
        nonlocal ended
        result = run_load(target, next(works), pattern, clock=clock)
        if result.interrupted:
            raise KeyboardInterrupt
        ended += 1
        if on_progress is not None:
            on_progress(ended)
        return result

    of_a, of_b = iter(workloads), iter(workloads)
    results = interleave(
        {"A": lambda: run(a, of_a), "B": lambda: run(b, of_b)}, len(workloads), seed
    )
    figures = {
        name: [
            [_figure(metric, result, name, n) for metric in metrics] for n, result in enumerate(of)
        ]
        for name, of in results.items()
    }
    each = 1 - (1 - confidence) / len(metrics)  # Bonferroni
    return Comparison(
        a=a.describe(),
        b=b.describe(),
        contrasts=tuple(
            contrast(
                metric, [one[n] for one in figures["A"]], [one[n] for one in figures["B"]], each
            )
            for n, metric in enumerate(metrics)
        ),
        rounds=len(workloads),
        requests=(_completed(results["A"]), _completed(results["B"])),
        problems=tuple(problem for name, of in results.items() for problem in _problems(name, of)),
    )


def contrast(
    metric: str, a: Sequence[float], b: Sequence[float], confidence: float = CONFIDENCE
) -> Contrast:
    """Compares the figures of rounds; entry i of both is from round i.

    Args:
        metric: Of `LATENCIES` or `RATES`.
        a: Positive.
        b: Positive, as many.
        confidence: Of the interval.

    Raises:
        UsageError: Figures do not match, are not positive, or are too few for the confidence.
    """
    if len(a) != len(b):
        raise UsageError(f"{len(a)} rounds of A, and {len(b)} of B")
    if not all(math.isfinite(value) and value > 0 for value in (*a, *b)):
        raise UsageError(f"{metric}: a ratio needs figures above 0")
    logs = signed_rank_interval(np.log(b) - np.log(a), confidence)
    ratio = Interval(
        math.exp(logs.estimate), math.exp(logs.low), math.exp(logs.high), logs.confidence
    )
    return Contrast(metric, tuple(a), tuple(b), ratio, _verdict(metric, ratio))


def _verdict(metric: str, ratio: Interval) -> Verdict:
    if ratio.low <= 1 <= ratio.high:
        return "no difference shown"
    return "faster" if (ratio.low > 1) == (metric in RATES) else "slower"


def _check(metrics: Sequence[str], rounds: int, confidence: float) -> None:
    unknown = [metric for metric in metrics if metric not in LATENCIES + RATES]
    if unknown or not metrics:
        allowed = ", ".join(LATENCIES + RATES)
        raise UsageError(f"metrics to compare: {', '.join(unknown) or 'none'}", allowed=allowed)
    least = least_pairs(1 - (1 - confidence) / len(metrics))
    if rounds < least:
        raise UsageError(
            f"{rounds} rounds show nothing at {confidence:.1%} confidence",
            allowed=f"at least {least}",
        )


def _figure(metric: str, result: LoadResult, name: str, number: int) -> float:
    if metric in RATES:
        rate = getattr(throughput(result.records, result.window), metric)
        found = [rate] if rate else []
    else:
        found = samples(result.records)[metric]
    if not found:
        reasons = {record.reason for record in result.records if record.reason}
        raise HastenError(
            f"round {number + 1} of {name} tells nothing about {metric}: "
            + (", ".join(sorted(reasons)) or "no request defines it")
        )
    return float(np.median(found))


def _completed(results: Sequence[LoadResult]) -> int:
    return sum(one.status == "completed" for result in results for one in result.records)


def _problems(name: str, results: Sequence[LoadResult]) -> Iterator[str]:
    records = [record for result in results for record in result.records]
    lost = [record for record in records if record.status != "completed"]
    if lost:
        yield (
            f"invalid: {len(lost)} of {len(records)} requests to {name} did not complete "
            f"({lost[0].reason}), so the figures stand for the others alone"
        )

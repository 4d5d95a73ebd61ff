"""How often `compare` says that two targets differ: when they do not, and when one is 5 % slower.

    .venv/bin/python benchmarks/ab_power.py --json build/ab_power.json

coverage   intervals of simulated rounds: how often they hold the true ratio, by kind of noise
simulated  whole comparisons over targets on a clock of their own, whose delays scatter, have tails
           and drift together: 200 of a target with itself, 50 with one that is 5 % slower
real       the same in real time over targets that sleep, on this machine with its own noise
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import random
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from hasten.measure.compare import CONFIDENCE, compare, contrast
from hasten.measure.records import Answer, Clock
from hasten.measure.targets.target import Target
from hasten.measure.workload import Item, Tensors, Workload

__all__ = ["Drift", "NoisyTarget", "compare_once", "coverage"]

ROUNDS = 48
REQUESTS = 12
SLOWDOWN = 1.05


@dataclass
class Drift:
    """A machine that both targets run on: its speed wanders, and sometimes it is slow for long.

    Attributes:
        seed: Of its moods.
        step: Standard deviation of the logarithm of the speed's change over one request.
        spell: Chance that a slow spell begins with a request; it lasts about a hundred of them.
    """

    seed: int
    step: float = 0.01
    spell: float = 0.002
    now: float = 1000.0
    _level: float = 0.0
    _slow: int = 0
    _random: random.Random = field(init=False)

    def __post_init__(self) -> None:
        self._random = random.Random(self.seed)

    def clock(self) -> float:
        """Its time, in seconds."""
        return self.now

    def delay(self, seconds: float) -> float:
        """What work of so many seconds takes now: skewed, with a tail."""
        draw = self._random
        self._level = 0.999 * self._level + draw.gauss(0, self.step)
        if self._slow == 0 and draw.random() < self.spell:
            self._slow = 1 + int(draw.expovariate(1 / 100))
        self._slow = max(0, self._slow - 1)
        tail = 3.0 if draw.random() < 0.02 else 1.0
        mood = math.exp(self._level) * (1.3 if self._slow else 1.0)
        return seconds * mood * tail * draw.lognormvariate(0, 0.10)


@dataclass
class NoisyTarget:
    """Takes a mean time a request, as the machine lets it."""

    drift: Drift
    seconds: float
    real: bool = False

    def describe(self) -> Mapping[str, object]:
        """What it is."""
        return {"kind": "synthetic", "seconds": self.seconds}

    async def send(self, work: Item | Tensors, answer: Answer) -> None:
        """One answer of one token."""
        seconds = self.drift.delay(self.seconds)
        if self.real:
            time.sleep(seconds)  # asyncio's own sleep rounds to milliseconds
        else:
            self.drift.now += seconds
        await asyncio.sleep(0)
        answer.arrive(1)

    async def __aenter__(self) -> Target:
        return self

    async def __aexit__(self, *_: object) -> None:
        pass


def compare_once(
    seed: int, ratio: float, *, rounds: int, requests: int, real: float | None = None
) -> tuple[str, float]:
    """One comparison of a target with one that takes `ratio` times as long.

    Args:
        seed: Of all that is drawn.
        ratio: True ratio of the times.
        rounds: Of the comparison.
        requests: Of each target in each round.
        real: Seconds a request in real time; None for a clock of its own.

    Returns:
        The verdict and the ratio found.
    """
    drift = Drift(seed)
    base = real or 0.01
    workload = Workload("made up", None, (), (Item((1,), 1),) * requests)
    clock: Clock = time.perf_counter if real else drift.clock
    found = compare(
        NoisyTarget(drift, base, real is not None),
        NoisyTarget(drift, base * ratio, real is not None),
        [workload] * rounds,
        seed=seed,
        clock=clock,
    ).contrasts[0]
    return found.verdict, found.ratio.estimate


NOISES: Mapping[str, Callable[[np.random.Generator, int], np.ndarray[Any, Any]]] = {
    "normal": lambda draw, n: draw.normal(0, 0.03, n),
    "heavy tails": lambda draw, n: 0.02 * draw.standard_t(2, n),
    "one round in ten far off": lambda draw, n: (
        draw.normal(0, 0.02, n) + draw.normal(0, 1, n) * (draw.random(n) < 0.1)
    ),
    # Of a drift, what comes second is always slower, by much or little: the coin gives the sign.
    "order decides": lambda draw, n: draw.exponential(0.05, n) * draw.choice([-1, 1], n),
}


def coverage(trials: int, rounds: int, seed: int = 0) -> dict[str, float]:
    """Share of intervals of simulated rounds that hold the true ratio, by kind of noise."""
    draw = np.random.default_rng(seed)
    found = {}
    for name, noise in NOISES.items():
        held = 0
        for _ in range(trials):
            drift = np.exp(np.cumsum(draw.normal(0, 0.1, rounds)))
            b = SLOWDOWN * drift * np.exp(noise(draw, rounds))
            ratio = contrast("e2e", list(drift), list(b)).ratio
            held += ratio.low <= SLOWDOWN <= ratio.high
        found[name] = held / trials
    return found


def _many(trials: int, ratio: float, seed: int, **how: Any) -> dict[str, object]:
    verdicts: Counter[str] = Counter()
    estimates = []
    started = time.perf_counter()
    for trial in range(trials):
        verdict, estimate = compare_once(seed + trial, ratio, **how)
        verdicts[verdict] += 1
        estimates.append(estimate)
        print(f"\r{trial + 1} of {trials}", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    return {
        "true_ratio": ratio,
        "comparisons": trials,
        **how,
        "verdicts": dict(verdicts),
        "median_estimate": float(np.median(estimates)),
        "largest_error": float(max(abs(estimate / ratio - 1) for estimate in estimates)),
        "seconds": round(time.perf_counter() - started, 1),
    }


def main() -> None:
    """Runs the parts that were asked for and prints JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "parts", nargs="*", default=["coverage", "simulated", "real"], metavar="PART"
    )
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--requests", type=int, default=REQUESTS)
    parser.add_argument("--trials", type=int, help="comparisons, instead of 200 and 50")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    alike, apart = (options.trials or 200, options.trials or 50)
    report: dict[str, object] = {
        "confidence": CONFIDENCE,
        "rounds": options.rounds,
        "requests": options.requests,
    }
    how = {"rounds": options.rounds, "requests": options.requests}
    if "coverage" in options.parts:
        report["coverage"] = coverage(20 * alike, options.rounds, options.seed)
    for part, real in (("simulated", None), ("real", 0.001)):
        if part in options.parts:
            report[part] = {
                "a_a": _many(alike, 1.0, options.seed, **how, real=real),
                "five_percent": _many(apart, SLOWDOWN, options.seed, **how, real=real),
            }
    text = json.dumps(report, indent=2)
    print(text)
    if options.json is not None:
        options.json.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

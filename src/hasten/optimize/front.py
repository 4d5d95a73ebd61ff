"""The Pareto front of speed and loss: what nothing else beats at both."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, TypeVar

from hasten.measure.accuracy import Accuracy
from hasten.measure.statistics import Interval

__all__ = ["pareto_front"]


class Measured(Protocol):
    """What the front needs of a trial."""

    speedup: Interval | None

    @property
    def accuracy(self) -> Accuracy | None:
        """Against the original."""
        ...


T = TypeVar("T", bound=Measured)


def pareto_front(trials: Sequence[T]) -> list[T]:
    """Those trials than which no other is as fast and as accurate, the most accurate first.

    Accuracy is the KL divergence. Of several that are equal in both, the first counts; what was
    not measured in both ways is left out.
    """
    points = [
        (trial, trial.accuracy.kl.estimate, trial.speedup.estimate)
        for trial in trials
        if trial.accuracy is not None and trial.speedup is not None
    ]
    front: list[T] = []
    fastest = 0.0
    for trial, _, speed in sorted(points, key=lambda point: (point[1], -point[2])):
        if speed > fastest:
            front.append(trial)
            fastest = speed
    return front

"""Shows of one candidate after the other whether nearly all of its requests keep their bounds."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Protocol

from hasten.optimize.candidates import Candidate
from hasten.optimize.objective import Objective
from hasten.optimize.speed import Timings
from hasten.optimize.tail import TailFinding, rounds_to_run
from hasten.optimize.trial import Trial

__all__ = ["Repeater", "TailSearch"]

_PORTION = 30.0
"""Seconds after which engines are opened anew, and from where a stopped search goes on."""


class Repeater(Protocol):
    """What times a candidate by itself."""

    def repeat(
        self,
        candidate: Candidate,
        rounds: int,
        seconds: float,
        number: int,
        on_round: Callable[[float], None],
    ) -> Timings:
        """Times a block: so many rounds while so many seconds last, at least one.

        `number` counts the blocks of a candidate; `on_round` is told the share that is done.
        """
        ...

    def seconds(self) -> float:
        """Seconds since the search began."""
        ...


class TailSearch:
    """Finds the best candidate that keeps an objective's bounds on nearly all requests.

    Args:
        laboratory: Times candidates.
        objective: Has the bounds.
        seconds: For each candidate.
        tell: Told what is done, and the share of a candidate that is done.
    """

    def __init__(
        self,
        laboratory: Repeater,
        objective: Objective,
        seconds: float,
        tell: Callable[[str, float], None],
    ) -> None:
        self._lab = laboratory
        self._tails = objective.tails
        self._shape = objective.shape
        self._seconds = seconds
        self._tell = tell

    def choose(self, trials: Sequence[Trial]) -> tuple[Trial, str | None]:
        """Measures one after the other, as each takes minutes, and refuses what does not keep them.

        It ends with the first that keeps them, or of which time did not suffice to show either: it
        would not for one that is slower. Where none keeps them none is refused.

        Args:
            trials: The best first; at least one.

        Returns:
            The choice, and what speaks against it where none is shown to keep the bounds.
        """
        missed: list[tuple[Trial, str]] = []
        for trial in trials:
            if trial.timings is not None:
                trial.tails = self.measure(trial.candidate, trial.timings.seconds)
            if all(one.kept for one in trial.tails):
                break
            missed.append((trial, "; ".join(str(one) for one in trial.tails if not one.kept)))
            if not any(one.hopeless for one in trial.tails):
                break
        else:
            return missed[0]
        for other, reason in missed:
            if other is trial:
                return trial, reason
            other.refuse(f"outside the objective: {reason}")
        return trial, None

    def measure(self, candidate: Candidate, round_seconds: float) -> tuple[TailFinding, ...]:
        """Runs as many rounds as it takes, in portions, while it can succeed and time lasts.

        Args:
            candidate: What runs.
            round_seconds: That a round takes, about.

        Returns:
            What was found of each bound.
        """
        if not self._tails:
            return ()
        planned = rounds_to_run(self._tails, self._shape.concurrent, round_seconds, self._seconds)
        portion = max(1, int(_PORTION / round_seconds))
        deadline = self._lab.seconds() + self._seconds
        found = Timings(self._shape, ())
        findings: tuple[TailFinding, ...] = ()
        while len(found.rounds) < planned and not any(one.hopeless for one in findings):
            left = deadline - self._lab.seconds()
            if findings and left <= 0:
                break
            done, number = len(found.rounds), len(found.blocks)
            count = min(portion, planned - done)
            tell = functools.partial(self._tell_rounds, candidate, done, count, planned)
            found = found.followed_by(self._lab.repeat(candidate, count, left, number, tell))
            findings = tuple(
                TailFinding.of(one, found.requests(one.metric), planned * self._shape.concurrent)
                for one in self._tails
            )
        return findings

    def _tell_rounds(
        self, candidate: Candidate, done: int, count: int, planned: int, share: float
    ) -> None:
        done += round(share * count)
        self._tell(f"{candidate.label}: {done} of {planned} rounds", done / planned)

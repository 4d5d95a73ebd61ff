"""What a search knows of one candidate, and the words for its decisions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from hasten.measure.accuracy import Accuracy
from hasten.measure.statistics import Interval
from hasten.optimize.candidates import Candidate
from hasten.optimize.claims import Claim
from hasten.optimize.gate import Measured
from hasten.optimize.speed import Timings
from hasten.optimize.tail import TailFinding

__all__ = [
    "Status",
    "Trial",
    "best_first",
    "divergence",
    "is_far_behind",
    "why_not_faster",
    "why_slower",
]

Status = Literal["original", "open", "refused", "slower", "passed", "chosen"]


@dataclass(slots=True)
class Trial:
    """What is known about a candidate so far; filled phase by phase.

    Attributes:
        candidate: What was tried.
        status: "open" until it is decided; "slower" did not reach the last race, "passed" did and
            is inside the budget.
        reason: Why it was refused, or passed without being chosen.
        screened: What was measured on the calibration text, and on items for the search.
        proved: What was measured on the evaluation text, and on items kept for the proof.
        claim: What was measured of steps that say they change nothing; None without such steps, or
            if it did not come to that.
        timings: From the last race in which it ran.
        speedup: Over the original in the same race.
        tails: What was measured of bounds on nearly all requests.
        weights_bytes: Bytes of weights.
        memory_bytes: All bytes of its engine.
    """

    candidate: Candidate
    status: Status = "open"
    reason: str = ""
    screened: Measured | None = None
    proved: Measured | None = None
    claim: Claim | None = None
    timings: Timings | None = None
    speedup: Interval | None = None
    tails: tuple[TailFinding, ...] = ()
    weights_bytes: int | None = None
    memory_bytes: int | None = None

    @property
    def evidence(self) -> Measured | None:
        """The best there is."""
        return self.proved or self.screened

    @property
    def accuracy(self) -> Accuracy | None:
        """The best evidence on text."""
        return None if self.evidence is None else self.evidence.text

    @property
    def rank(self) -> float:
        """For sorting, the fastest first: by speed-up, which holds across races; inf unknown."""
        return float("inf") if self.speedup is None else -self.speedup.estimate

    def refuse(self, reason: str) -> None:
        """Takes the candidate out."""
        self.status, self.reason = "refused", reason


_FAR_BEHIND = 1.25
"""How many times slower that is."""

_TIE = 0.05
"""Medians nearer than this are taken as equally fast; the more accurate candidate is preferred.

A mixture with 0.2 % fewer bytes came out 2.5 % ahead in a quiet race: that near, races do not tell.
"""


def best_first(trials: Sequence[Trial]) -> list[Trial]:
    """By speed, and of those that are equally fast as the fastest the more accurate first."""
    left = sorted(trials, key=lambda trial: trial.rank)
    found = []
    while left:
        tied = [trial for trial in left if trial.rank <= left[0].rank * (1 - _TIE)]
        found.append(min(tied, key=divergence))
        left.remove(found[-1])
    return found


def divergence(trial: Trial) -> float:
    """KL of the best evidence; infinite without any."""
    return float("inf") if trial.accuracy is None else trial.accuracy.kl.estimate


def is_far_behind(trial: Trial, leader: Trial) -> bool:
    """Whether a candidate is so much slower than another that it need not be looked at longer."""
    return trial.rank * _FAR_BEHIND > leader.rank


def why_not_faster(trial: Trial) -> str:
    """The reason of a candidate that gains nothing."""
    ratio = trial.speedup
    if ratio is None:
        return "not timed"
    return (
        f"not faster than the original: {ratio.estimate:.2f} times its speed"
        f" [{ratio.low:.2f}, {ratio.high:.2f}]"
    )


def why_slower(trial: Trial, leader: Trial) -> str:
    """The reason of a candidate that another beats."""
    times = [0.0 if one.speedup is None else one.speedup.estimate for one in (trial, leader)]
    return (
        f"{times[0]:.2f} times the original's speed, against {times[1]:.2f} of"
        f" {leader.candidate.label}"
    )

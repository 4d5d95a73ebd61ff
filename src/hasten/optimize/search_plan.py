"""How much a search measures."""

from __future__ import annotations

from dataclasses import dataclass

from hasten.optimize.candidates import Candidate
from hasten.optimize.objective import Objective
from hasten.optimize.speed import Effort, RequestShape

__all__ = ["SearchPlan"]

_ANY = Objective("as given", RequestShape(128, 64))
_PROBE = Effort(rounds=3, least=2, seconds=30.0)
_FINAL = Effort(rounds=9, least=3, seconds=75.0, blocks=3)


@dataclass(frozen=True, slots=True)
class SearchPlan:
    """How much is measured.

    Attributes:
        threads: Threads of the original and of the candidates.
        candidates: What to try first; KV formats, threads and mixtures follow from the best.
        objective: What is timed, and the bounds to keep.
        changed: Candidates with passes; tried if they are predicted to be worth it.
        asked: Candidates with passes that are tried whatever is predicted.
        pass_seconds: Time in which candidates of `changed` may be begun.
        probe: The first race.
        final: One half of the last race; the proofs are between the two.
        finalists: Of these, how many reach the last race.
        mixed_seconds: Time for mixed precision; 0 leaves it out.
        isas: Other instruction sets that the leader is tried with, beside running op by op; None
            tries neither.
        tail_seconds: Time to show that a candidate keeps bounds on nearly all requests.
        seed: Of bootstrap intervals.
    """

    threads: int
    candidates: tuple[Candidate, ...]
    objective: Objective = _ANY
    changed: tuple[Candidate, ...] = ()
    asked: tuple[Candidate, ...] = ()
    pass_seconds: float = 300.0
    probe: Effort = _PROBE
    final: Effort = _FINAL
    finalists: int = 3
    mixed_seconds: float = 75.0
    isas: tuple[str, ...] | None = None
    tail_seconds: float = 300.0
    seed: int = 0

"""The proof of a search's finalists: what they lose, and whether exact steps are exact."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from hasten.errors import HastenError
from hasten.optimize.candidates import Candidate
from hasten.optimize.claims import Claim
from hasten.optimize.gate import Budget, Measured, proof_confidence
from hasten.optimize.trial import Trial, is_far_behind, why_slower

__all__ = ["Prover", "prove_finalists"]


class Prover(Protocol):
    """What a proof asks of a laboratory; `confidence` is that of its intervals."""

    def prove(self, candidate: Candidate, confidence: float) -> Measured:
        """Accuracy against the original on what is kept for the proof."""
        ...

    def hold(self, candidate: Candidate, confidence: float) -> Claim:
        """What the candidate's steps that say they change nothing change after all.

        Raises:
            HastenError: That cannot be measured.
        """
        ...


def prove_finalists(
    faster: Sequence[Trial],
    prover: Prover,
    budget: Budget,
    tell: Callable[[str, float], None],
) -> None:
    """Decides about each finalist: it passed, it was refused, or it is slower than one that passed.

    Args:
        faster: Those that are faster than the original, the fastest first.
        prover: Measures.
        budget: What may be lost.
        tell: Told which candidate is looked at, and the share of them that is done.
    """
    confidence = proof_confidence(len(faster))
    best: Trial | None = None
    for index, trial in enumerate(faster):
        if best is not None and is_far_behind(trial, best):
            trial.status, trial.reason = "slower", why_slower(trial, best)
            continue
        tell(trial.candidate.label, index / len(faster))
        trial.proved = prover.prove(trial.candidate, confidence)
        outside = budget.why_refused(trial.proved) or _why_not_as_claimed(trial, prover, confidence)
        if outside is not None:
            trial.refuse(outside)
        else:
            trial.status, best = "passed", best or trial


def _why_not_as_claimed(trial: Trial, prover: Prover, confidence: float) -> str | None:
    """Which step that says it changes nothing does not keep to that, or None."""
    exact = [step.label for step in trial.candidate.steps if step.exact]
    if not exact:
        return None
    try:
        trial.claim = prover.hold(trial.candidate, confidence)
    except HastenError as error:
        return f"{' + '.join(exact)}: whether it changes nothing cannot be told: {error.what}"
    return trial.claim.why_refused

"""Whether steps that say they change nothing keep to that; docs/accuracy.md has the reasons.

Beside a budget a fault may be small. So such a step is held to its claim in two ways: the candidate
must lose no more than the same candidate without the step does, position by position; and where
both run in float32 the step must compute the same, but for the order of sums.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from hasten.measure.accuracy import Accuracy, PairedSamples, summarize, summarize_excess
from hasten.optimize.gate import Budget

__all__ = ["CLAIM_FORMULAS", "Claim", "hold_to_claim"]

CLAIM_FORMULAS = {
    "claim: excess": "KL of the candidate less that of the same candidate without its steps that"
    " say they change nothing, same positions; middle and interval by signed ranks of blocks of 64",
    "claim: float32": "KL(model before the step || model after it), both run in float32",
}


@dataclass(frozen=True, slots=True)
class Claim:
    """What was measured of the steps of a candidate that say they change nothing.

    Attributes:
        steps: What they are called.
        excess: What the candidate loses more than without them, as `summarize_excess` has it.
        float32: The model after each step against the model before it, as far as they were looked
            at: nothing is measured after the first that is refused.
    """

    steps: tuple[str, ...]
    excess: Accuracy
    float32: tuple[Accuracy, ...] = ()

    @property
    def refusals(self) -> Mapping[str, str]:
        """What does not hold: which step by which figures, under "excess" or "float32"."""
        found = {}
        if (reason := Budget.of_excess().why_refused(self.excess)) is not None:
            found["excess"] = (
                f"{' + '.join(self.steps)}: says that it changes nothing, but more may be lost than"
                f" by the same candidate without it: {reason}"
            )
        for step, accuracy in zip(self.steps, self.float32, strict=False):
            if (reason := Budget.of_exactness().why_refused(accuracy)) is not None:
                found["float32"] = (
                    f"{step}: says that it changes nothing, but changes what is computed in"
                    f" float32: {reason}"
                )
        return found

    @property
    def why_refused(self) -> str | None:
        """What does not hold, or None."""
        return "; ".join(self.refusals.values()) or None

    def as_dict(self) -> dict[str, Any]:
        """As JSON."""
        return {
            "steps": list(self.steps),
            "excess": self.excess.as_dict(),
            "float32": [one.as_dict() for one in self.float32],
            "limits": {
                "excess": Budget.of_excess().kl,
                "float32": Budget.of_exactness().kl,
            },
        }


def hold_to_claim(
    samples: PairedSamples,
    beside: PairedSamples,
    exact: Sequence[tuple[str, Callable[[], PairedSamples]]],
    *,
    seed: int,
    confidence: float = 0.95,
) -> Claim:
    """Measures what steps that say they change nothing change after all.

    Args:
        samples: The candidate as it would be served, against the original.
        beside: The same candidate without these steps, on the same windows.
        exact: What each step is called, and what compares the models before and after it in
            float32; that is only asked where nothing was found before.
        seed: Of intervals.
        confidence: Of intervals, in (0, 1).

    Raises:
        UsageError: The samples are of different windows, or too few for the confidence.
    """
    steps = tuple(step for step, _ in exact)
    more = summarize_excess(samples, beside, seed=seed, confidence=confidence)
    claim = Claim(steps, more)
    for _, compare in exact:
        if claim.refusals:
            break
        found = summarize(compare(), seed=seed, confidence=confidence)
        claim = replace(claim, float32=(*claim.float32, found))
    return claim

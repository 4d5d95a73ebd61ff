"""The gate: whether a measured accuracy lies inside the owner's budget, interval included.

This is a non-inferiority test. A candidate passes only when the *upper* end of the interval of
its loss is inside the budget, so a small sample makes the gate stricter, never laxer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from hasten.measure.accuracy import Accuracy
from hasten.measure.statistics import Interval

__all__ = ["Budget", "Criterion", "Finding"]


_IN_HAND = 0.8
"""Share of the budget that an estimate may fill, so that its interval has room."""


@dataclass(frozen=True, slots=True)
class Criterion:
    """One way of counting what was lost.

    Attributes:
        name: Key in JSON.
        title: As a reader calls it.
        unit: Appended to figures.
        digits: Decimals of figures.
        loss: The loss with its interval; 0 is none, more is worse.
    """

    name: str
    title: str
    unit: str
    digits: int
    loss: Callable[[Accuracy], Interval]


@dataclass(frozen=True, slots=True)
class Finding:
    """A criterion, its limit, and what was measured."""

    criterion: Criterion
    limit: float
    loss: Interval

    @property
    def inside(self) -> bool:
        """Whether the upper end of the interval is inside the budget."""
        return self.loss.high <= self.limit

    @property
    def hopeless(self) -> bool:
        """Whether even the lower end is outside, so that a larger sample would not help."""
        return self.loss.low > self.limit

    def __str__(self) -> str:
        digits, unit = self.criterion.digits, self.criterion.unit
        value, low, high = (
            f"{end:.{digits}f}" for end in (self.loss.estimate, self.loss.low, self.loss.high)
        )
        return (
            f"{self.criterion.title} {value}{unit} ({low} to {high}), budget {self.limit:g}{unit}"
        )


def _perplexity_loss(accuracy: Accuracy) -> Interval:
    ratio = accuracy.perplexity_ratio
    value, low, high = ((end - 1) * 100 for end in (ratio.estimate, ratio.low, ratio.high))
    return Interval(value, low, high, ratio.confidence)


def _disagreement(accuracy: Accuracy) -> Interval:
    agreement = accuracy.top1_agreement
    ends = (agreement.estimate, agreement.high, agreement.low)
    value, low, high = ((1 - end) * 100 for end in ends)
    return Interval(value, low, high, agreement.confidence)


PERPLEXITY = Criterion("perplexity_percent", "rise of perplexity", " %", 2, _perplexity_loss)
KL = Criterion("kl", "KL divergence", "", 4, lambda accuracy: accuracy.kl)
TOP1 = Criterion("top1_percent", "changed likeliest tokens", " %", 1, _disagreement)


@dataclass(frozen=True, slots=True)
class Budget:
    """The most that may be lost; None leaves a criterion unchecked.

    The defaults let pass what keeps a model's own 4-bit groups with activations quantised in
    groups (SmolLM2: perplexity +0.3 to 0.5 %, KL 0.003 to 0.006, disagreement 4 to 5 %), and
    refuse rounding to coarser groups (KL 0.28, disagreement 28 %).

    Attributes:
        perplexity_percent: Rise of perplexity over the original, in per cent.
        kl: KL(original || candidate) in nats per token.
        top1_percent: Share of positions whose likeliest token changed, in per cent.
    """

    perplexity_percent: float | None = 1.0
    kl: float | None = 0.02
    top1_percent: float | None = 6.0

    def findings(self, accuracy: Accuracy) -> Iterator[Finding]:
        """Holds each criterion that has a limit against what was measured."""
        for criterion, limit in self.limits():
            yield Finding(criterion, limit, criterion.loss(accuracy))

    def limits(self) -> list[tuple[Criterion, float]]:
        """The criteria that are checked, KL first."""
        pairs = ((KL, self.kl), (PERPLEXITY, self.perplexity_percent), (TOP1, self.top1_percent))
        return [(criterion, limit) for criterion, limit in pairs if limit is not None]

    def admits(self, accuracy: Accuracy) -> bool:
        """Whether every criterion is inside its limit with its interval."""
        return all(finding.inside for finding in self.findings(accuracy))

    def expects(self, accuracy: Accuracy) -> bool:
        """Whether a larger sample will probably admit it: estimates with a fifth in hand."""
        return all(
            finding.loss.estimate <= _IN_HAND * finding.limit for finding in self.findings(accuracy)
        )

    def why_refused(self, accuracy: Accuracy) -> str | None:
        """What is outside the budget, with figures, or None when it is admitted."""
        outside = [str(finding) for finding in self.findings(accuracy) if not finding.inside]
        return "; ".join(outside) or None

    def why_hopeless(self, accuracy: Accuracy) -> str | None:
        """What is outside the budget beyond the doubt of a small sample, or None."""
        outside = [str(finding) for finding in self.findings(accuracy) if finding.hopeless]
        return "; ".join(outside) or None

    def as_dict(self) -> dict[str, Any]:
        """As JSON: the limit of each criterion, null where unchecked."""
        return {
            "perplexity_percent": self.perplexity_percent,
            "kl": self.kl,
            "top1_percent": self.top1_percent,
        }

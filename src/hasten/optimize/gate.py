"""The gate: whether a measured accuracy lies inside the owner's budget, interval included.

This is a non-inferiority test. A candidate passes only when the *upper* end of the interval of
its loss is inside the budget, so a small sample makes the gate stricter, never laxer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any, Generic, TypeVar

from hasten.measure.accuracy import Accuracy
from hasten.measure.statistics import Interval
from hasten.measure.tasks.compare import TaskAccuracy

__all__ = ["Budget", "Criterion", "Evidence", "Finding", "Measured", "proof_confidence"]


_IN_HAND = 0.8
"""Share of the budget that an estimate may fill, so that its interval has room."""

_ERROR = 0.05
"""Chance that the interval of any finalist's proof leaves out the true loss."""

Kind = TypeVar("Kind", Accuracy, TaskAccuracy)


@dataclass(frozen=True, slots=True)
class Measured:
    """Evidence of both kinds; None where there is none."""

    text: Accuracy | None = None
    tasks: TaskAccuracy | None = None


Evidence = Accuracy | TaskAccuracy | Measured
"""What was measured of a candidate: on text, on labelled items, or both."""


@dataclass(frozen=True, slots=True)
class Criterion(Generic[Kind]):
    """One way of counting what was lost.

    Attributes:
        name: Key in JSON.
        title: As a reader calls it.
        unit: Appended to figures.
        digits: Decimals of figures.
        evidence: The kind of evidence that shows it.
        loss: The loss with its interval; 0 is none, more is worse.
    """

    name: str
    title: str
    unit: str
    digits: int
    evidence: type[Kind]
    loss: Callable[[Kind], Interval]


@dataclass(frozen=True, slots=True)
class Finding:
    """A criterion, its limit, and what was measured."""

    criterion: Criterion[Any]
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
        form = f".{digits}f" if self.limit >= 10.0**-digits else ".1e"
        ends = (self.loss.estimate, self.loss.low, self.loss.high)
        value, low, high = (f"{end:{form}}" for end in ends)
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


def _points(accuracy: TaskAccuracy) -> Interval:
    loss = accuracy.loss
    return Interval(100 * loss.estimate, 100 * loss.low, 100 * loss.high, loss.confidence)


_KL = Criterion("kl", "KL divergence", "", 4, Accuracy, lambda accuracy: accuracy.kl)
_PERPLEXITY = Criterion(
    "perplexity_percent", "rise of perplexity", " %", 2, Accuracy, _perplexity_loss
)
_TOP1 = Criterion("top1_percent", "changed likeliest tokens", " %", 1, Accuracy, _disagreement)
_TASKS = Criterion("task_points", "right answers lost", " points", 2, TaskAccuracy, _points)


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
        task_points: Right answers to labelled items lost, in points: per cent of the items.
    """

    perplexity_percent: float | None = 1.0
    kl: float | None = 0.02
    top1_percent: float | None = 6.0
    task_points: float | None = None

    @classmethod
    def of_excess(cls) -> Budget:
        """For a change that says it changes nothing, beside the same formats without it.

        Hold `hasten.measure.accuracy.summarize_excess` to it. Where activations are rounded,
        harmless changes round them otherwise: on 1,024 tokens of SmolLM2 another order of heads
        moves KL by 0.0001 nats, another order of channels by 0.0001 to 0.0005 (their groups share
        scales), each +-0.0003. What is less than this limit shows in float32.
        """
        return cls(perplexity_percent=None, kl=0.001, top1_percent=None)

    @classmethod
    def of_exactness(cls) -> Budget:
        """For a change that says it changes nothing, where both models run in float32.

        There is nothing to average away: of SmolLM2 in another order of channels or heads rounding
        leaves 3e-9 nats; its RoPE base times 1.005 costs 8e-7.
        """
        return cls(perplexity_percent=None, kl=1e-7, top1_percent=None)

    def findings(self, evidence: Evidence) -> Iterator[Finding]:
        """Holds each criterion that has a limit and was measured against its limit."""
        for criterion, limit in self.limits():
            found = _of_kind(evidence, criterion)
            if found is not None:
                yield Finding(criterion, limit, criterion.loss(found))

    def limits(self) -> list[tuple[Criterion[Any], float]]:
        """The criteria that are checked, KL first."""
        pairs: tuple[tuple[Criterion[Any], float | None], ...] = (
            (_KL, self.kl),
            (_PERPLEXITY, self.perplexity_percent),
            (_TOP1, self.top1_percent),
            (_TASKS, self.task_points),
        )
        return [(criterion, limit) for criterion, limit in pairs if limit is not None]

    def admits(self, evidence: Evidence) -> bool:
        """Whether every criterion was measured and is inside its limit with its interval."""
        return self.why_refused(evidence) is None

    def expects(self, evidence: Evidence) -> bool:
        """Whether a larger sample will probably admit it: estimates with a fifth in hand.

        Of criteria that were not measured nothing is said.
        """
        return all(
            finding.loss.estimate <= _IN_HAND * finding.limit for finding in self.findings(evidence)
        )

    def why_refused(self, evidence: Evidence) -> str | None:
        """What is outside the budget, with figures, or None when it is admitted."""
        outside = [str(finding) for finding in self.findings(evidence) if not finding.inside]
        outside += [
            f"{criterion.title} not measured, budget {limit:g}{criterion.unit}"
            for criterion, limit in self.limits()
            if _of_kind(evidence, criterion) is None
        ]
        return "; ".join(outside) or None

    def why_hopeless(self, evidence: Evidence) -> str | None:
        """What is outside the budget beyond the doubt of a small sample, or None."""
        outside = [str(finding) for finding in self.findings(evidence) if finding.hopeless]
        return "; ".join(outside) or None

    def as_dict(self) -> dict[str, Any]:
        """As JSON: the limit of each criterion, null where unchecked."""
        return asdict(self)


def proof_confidence(finalists: int) -> float:
    """Confidence of each finalist's intervals, so that all of them hold together with 95 %.

    Bonferroni's correction: were each proved at 95 %, the best of several might be the luckiest.
    Several criteria of one candidate need none, since it has to meet all of them.
    """
    return 1 - _ERROR / max(1, finalists)


def _of_kind(evidence: Evidence, criterion: Criterion[Kind]) -> Kind | None:
    """The part of the evidence that shows a criterion."""
    parts = (evidence.text, evidence.tasks) if isinstance(evidence, Measured) else (evidence,)
    return next((part for part in parts if isinstance(part, criterion.evidence)), None)

"""A candidate's answers beside the original's, on the same items."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from hasten.errors import UsageError
from hasten.measure.paired import loss_of_scores, mcnemar, score_interval
from hasten.measure.statistics import Interval
from hasten.measure.tasks.run import ItemResult, TaskResults

__all__ = ["FEW_ITEMS", "TASK_FORMULAS", "Flip", "TaskAccuracy", "compare_results", "what_few_show"]

FEW_ITEMS = 20
"""With fewer items than this hardly anything can be shown."""

NEAR_TIE = 0.5
"""Nats between the original's two likeliest first tokens below which a flip is a near tie."""

TASK_FORMULAS = {
    "score": "mean score of the items: the share of right answers, where each is right or wrong",
    "loss": "score of the original - score of the candidate, same items",
    "interval": "95 %: Tango's score interval of paired proportions where items are right or wrong;"
    " else a paired bootstrap over items, or, with fewer than 10 that differ, Tango's with each of"
    " them counted whole",
    "mcnemar_p": "exact two-sided McNemar test: chance of so uneven a split of lost and gained"
    " items if both models were equally good",
    "first_token_flips": "share of generated answers whose first token changed; a near tie if the"
    f" original held its own less than {NEAR_TIE:g} nats likelier than any other",
}


@dataclass(frozen=True, slots=True)
class Flip:
    """An item whose score changed."""

    line: int
    prompt: str
    expected: Any
    before: ItemResult
    after: ItemResult

    def as_dict(self) -> Mapping[str, object]:
        """JSON-ready values."""
        return {
            "line": self.line,
            "prompt": self.prompt,
            "expected": self.expected,
            "score_before": self.before.score,
            "score_after": self.after.score,
            "before": self.before.text,
            "after": self.after.text,
        }


@dataclass(frozen=True, slots=True)
class TaskAccuracy:
    """What a candidate loses on labelled items.

    Attributes:
        items: How many.
        reference_score: Mean score of the original.
        score: Mean score of the candidate.
        loss: The first less the second, with its interval.
        lost: Items with a lower score than the original's.
        gained: Items with a higher one.
        mcnemar_p: Where items are right or wrong: see `TASK_FORMULAS`; None for other scores.
        flips: The items that were lost or gained, the lost ones first.
        generated: Items whose answer was generated.
        changed_first: Those of them whose first token changed.
        near_ties: Those of these that the original had nearly decided otherwise.
    """

    items: int
    reference_score: float
    score: float
    loss: Interval
    lost: int
    gained: int
    mcnemar_p: float | None
    flips: tuple[Flip, ...] = ()
    generated: int = 0
    changed_first: int = 0
    near_ties: int = 0

    def as_dict(self) -> dict[str, Any]:
        """As JSON, with the names that `TASK_FORMULAS` explains; flips are written apart."""
        return {
            "items": self.items,
            "reference_score": self.reference_score,
            "score": self.score,
            "loss": self.loss.as_dict(),
            "lost": self.lost,
            "gained": self.gained,
            "mcnemar_p": self.mcnemar_p,
            "first_token_flips": {
                "generated": self.generated,
                "changed": self.changed_first,
                "near_ties": self.near_ties,
            },
        }


def compare_results(
    reference: TaskResults, candidate: TaskResults, *, confidence: float = 0.95, seed: int = 0
) -> TaskAccuracy:
    """Holds a candidate's results to the original's.

    Args:
        reference: Of the original.
        candidate: On the same items.
        confidence: Of the interval.
        seed: Of the bootstrap, where there is one.

    Raises:
        UsageError: The results are those of different items.
    """
    tasks = reference.tasks.tasks
    if candidate.tasks.tasks != tasks:
        raise UsageError("the two models answered different items")
    pairs = list(zip(tasks, reference.items, candidate.items, strict=True))
    flips = [
        Flip(task.line, task.asked, task.wanted, before, after)
        for task, before, after in pairs
        if before.score != after.score
    ]
    flips.sort(key=lambda flip: (flip.after.score > flip.before.score, flip.line))
    lost = sum(flip.after.score < flip.before.score for flip in flips)
    gained = len(flips) - lost
    generated = [(before, after) for _, before, after in pairs if not before.logprobs]
    changed = [one for one, other in generated if one.tokens[:1] != other.tokens[:1]]
    return TaskAccuracy(
        items=len(tasks),
        reference_score=reference.mean,
        score=candidate.mean,
        loss=loss_of_scores(
            [before.score for _, before, _ in pairs],
            [after.score for _, _, after in pairs],
            confidence=confidence,
            seed=seed,
        ),
        lost=lost,
        gained=gained,
        mcnemar_p=mcnemar(lost, gained) if reference.binary and candidate.binary else None,
        flips=tuple(flips),
        generated=len(generated),
        changed_first=len(changed),
        near_ties=sum(one.gap is not None and one.gap < NEAR_TIE for one in changed),
    )


def what_few_show(items: int) -> str | None:
    """What so few items cannot show, in words; None if there are enough."""
    if items >= FEW_ITEMS:
        return None
    least = score_interval(0, 0, items).high * 100
    return (
        f"{items} items show little: even if not one answer changes, up to {least:.0f} points of"
        " right answers may be lost, with 95 % confidence"
    )

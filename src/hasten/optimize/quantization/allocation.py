"""Which format each group of matrices gets, so that all together lose least for their bytes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from hasten.generation.formats import MatrixFormat

__all__ = ["Choice", "allocate"]


@dataclass(frozen=True, slots=True)
class Choice:
    """A format that a group of matrices may have, its bytes, and what it costs (nats a token)."""

    form: MatrixFormat
    nbytes: int
    loss: float


def allocate(groups: Sequence[Sequence[Choice]], most: int) -> list[Choice]:
    """One choice for each group, with little loss in all.

    From the smallest choices on, the step that saves most loss a byte is taken again and again, as
    long as it fits (a greedy answer to the multiple-choice knapsack problem: Sinha and Zoltners
    1979, "The multiple-choice knapsack problem"). What one format for all would lose is looked at,
    too, so the result never loses more than that.

    Args:
        groups: The choices of each; none is empty.
        most: Bytes that all together may have; the smallest choices fit.
    """
    tried = [_greedy(groups, most)]
    for form in dict.fromkeys(choice.form for choices in groups for choice in choices):
        alike = [one for choices in groups for one in choices if one.form == form]
        if len(alike) == len(groups) and _bytes(alike) <= most:
            tried.append(alike)
    return min(tried, key=_loss)


def _greedy(groups: Sequence[Sequence[Choice]], most: int) -> list[Choice]:
    chosen = [min(choices, key=lambda one: one.nbytes) for choices in groups]
    left = most - _bytes(chosen)
    while True:
        steps = [
            ((now.loss - one.loss) / (one.nbytes - now.nbytes), index, one)
            for index, (now, choices) in enumerate(zip(chosen, groups, strict=True))
            for one in choices
            if 0 < one.nbytes - now.nbytes <= left and one.loss < now.loss
        ]
        if not steps:
            return chosen
        _, index, best = max(steps, key=lambda step: step[0])
        left -= best.nbytes - chosen[index].nbytes
        chosen[index] = best


def _bytes(choices: Sequence[Choice]) -> int:
    return sum(one.nbytes for one in choices)


def _loss(choices: Sequence[Choice]) -> float:
    return sum(one.loss for one in choices)

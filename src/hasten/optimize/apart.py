"""Refuses a proof on what the search has seen, be it text or labelled items."""

from __future__ import annotations

from collections.abc import Sequence

from hasten.measure.corpus import Windows
from hasten.measure.overlap import check_apart
from hasten.measure.tasks.items import TaskSet
from hasten.measure.tasks.run import prompt_tokens
from hasten.models import Model

__all__ = ["Data", "check_data_apart"]

Data = Windows | TaskSet


def check_data_apart(model: Model, seen: Sequence[Data], proof: Sequence[Data]) -> None:
    """Holds every part of the search's data against every part of the proof's.

    Args:
        model: Says how items become tokens.
        seen: What the search looks at: calibration text, items.
        proof: What the result is proved on.

    Raises:
        UsageError: They share an item, a window, or 50 tokens in a row that are no boilerplate.
    """
    known = [(part.name, _tokens(model, part)) for part in seen]
    for part in proof:
        tokens = _tokens(model, part)
        for name, texts in known:
            check_apart(texts, tokens, (name, part.name))


def _tokens(model: Model, part: Data) -> list[tuple[int, ...]]:
    if isinstance(part, Windows):
        return list(part.ids)
    return [prompt_tokens(model, task) for task in part.tasks]

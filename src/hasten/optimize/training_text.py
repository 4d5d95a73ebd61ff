"""Text that passes with a teacher learn from: as much of the search's half as there is."""

from __future__ import annotations

import hashlib
from dataclasses import replace

from hasten.measure.corpus import Corpus, Windows, cut_windows
from hasten.measure.overlap import shared_runs
from hasten.models import Model

__all__ = ["cut_training_text"]

_MOST = 1 << 19
"""Tokens; healing sees a few tens of thousands in its time."""


def cut_training_text(model: Model, half: Corpus, proof: Windows) -> Windows:
    """Windows of the search's half that share no run of tokens with the proof.

    Args:
        model: Whose tokenizer cuts them.
        half: The text that the search may look at.
        proof: What the result is proved on; the text's windows are as long.

    Raises:
        UsageError: The text is too short.
    """
    found = cut_windows(half, model.tokenizer, tokens=_MOST, context=proof.context)
    seen = set(shared_runs(proof.ids, found.ids))
    kept = tuple(ids for place, ids in enumerate(found.ids) if place not in seen)
    digest = hashlib.sha256(repr(kept).encode()).hexdigest()
    return replace(found, ids=kept, digest=digest)

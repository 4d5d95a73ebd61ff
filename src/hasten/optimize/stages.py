"""How far a search has come, in words and as a share of the whole."""

from __future__ import annotations

from collections.abc import Callable, Mapping

__all__ = ["Progress", "Stages"]

Progress = Callable[[str, float], None]
"""Told what is being done, and the share of the whole search that is done."""

_VERBS = {
    "screen": "accuracy of",
    "probe": "speed of",
    "mix": "mixed precision:",
    "passes": "changed model:",
    "vary": "variant",
    "race": "race of",
    "prove": "proof of",
    "again": "second race of",
    "front": "proof of",
    "claim": "claim of",
    "tail": "slowest requests of",
}


class Stages:
    """The stages of a search, in their order.

    Args:
        weights: How long each takes, beside the others.
        progress: Told what is being done.

    Attributes:
        share: Of the search that is done.
    """

    def __init__(self, weights: Mapping[str, float], progress: Progress) -> None:
        total = sum(weights.values())
        self._width = {stage: weight / total for stage, weight in weights.items()}
        self._start: dict[str, float] = {}
        start = 0.0
        for stage, width in self._width.items():
            self._start[stage] = start
            start += width
        self._progress = progress
        self._slot = (0.0, 0.0)
        self.share = 0.0

    def tell(self, stage: str, detail: str, share: float, slot: float = 0.0) -> None:
        """Says what a stage does now.

        Args:
            stage: A key of the weights.
            detail: What it is done to.
            share: Of the stage that is done.
            slot: Of the stage, how much this will take; `tell_pass` counts within it.
        """
        width = self._width[stage]
        self.share = max(self.share, min(1.0, self._start[stage] + share * width))
        self._slot = (self.share, slot * width)
        self._progress(f"{_VERBS[stage]} {detail}", self.share)

    def tell_pass(self, doing: str, share: float) -> None:
        """Passes on how far a pass has come, which is within the slot told of last.

        Args:
            doing: What the pass does.
            share: Of the pass.
        """
        start, width = self._slot
        self.share = max(self.share, start + share * width)
        self._progress(doing, self.share)

    def done(self) -> None:
        """The end."""
        self.share = 1.0
        self._progress("done", 1.0)

"""The windows that a student learns from, and those that are held out to measure it."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from hasten.errors import UsageError
from hasten.measure.corpus import Windows

__all__ = ["Lessons", "cut_lessons"]

_LENGTH = 256
_MOST_HELD_OUT = 16

Tokens = NDArray[np.int64]


class Lessons:
    """Windows of one length in an order that the seed and the number of the step say.

    So there is no state of a generator to save: the order of step n is the same after a resumption.

    Args:
        windows: int64 [windows, tokens].
        held_out: Share of them to hold out, at least one.
        seed: Chooses those, and the order of the others.

    Attributes:
        held_out: int64 [windows, tokens].
        length: Tokens of a window.
        largest: The largest token id.
    """

    def __init__(self, windows: Tokens, held_out: float, seed: int) -> None:
        self._seed = seed
        order = np.random.default_rng([seed, 0]).permutation(len(windows))
        count = min(_MOST_HELD_OUT, max(1, round(held_out * len(windows))))
        self.held_out = windows[np.sort(order[:count])]
        self._windows = windows[np.sort(order[count:])]
        self.length = int(windows.shape[1])
        self.largest = int(windows.max())

    def __len__(self) -> int:
        return len(self._windows)

    def batch(self, number: int, size: int) -> Tokens:
        """Windows of one pass; all are seen once before any is seen again.

        Args:
            number: Of the pass, from 0.
            size: Windows of a pass.

        Returns:
            int64 [size, tokens].
        """
        places = number * size + np.arange(size)
        rounds, within = np.divmod(places, len(self._windows))
        orders = {
            one: np.random.default_rng([self._seed, 1 + one]).permutation(len(self._windows))
            for one in np.unique(rounds).tolist()
        }
        chosen = [orders[one][place] for one, place in zip(rounds.tolist(), within, strict=True)]
        return self._windows[chosen]


def cut_lessons(windows: Windows, *, length: int, held_out: float, seed: int) -> Lessons:
    """Cuts windows into pieces of one length; what is left over is dropped.

    Args:
        windows: Text.
        length: Tokens of a piece; 0 for 256, or the longest window if that is shorter.
        held_out: Share to hold out.
        seed: Of the order.

    Raises:
        UsageError: It gives fewer than two pieces.
    """
    longest = max((len(ids) for ids in windows.ids), default=0)
    length = length or min(_LENGTH, longest)
    pieces = [
        ids[start : start + length]
        for ids in windows.ids
        for start in range(0, len(ids) - length + 1, max(length, 1))
    ]
    if length < 2 or len(pieces) < 2:
        raise UsageError(
            f"{windows.name} gives {len(pieces) if length > 1 else 0} windows of {max(length, 2)}"
            f" tokens to learn from",
            allowed="at least 2: one to learn from and one to measure by",
            do="give a longer text" if longest >= length else "give longer windows or less length",
        )
    return Lessons(np.asarray(pieces, np.int64), held_out, seed)

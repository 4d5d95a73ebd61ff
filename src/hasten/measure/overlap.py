"""Keeps what a search looks at apart from what its result is proved on."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from hasten.errors import UsageError

__all__ = ["RUN", "check_apart", "shared_runs"]

RUN = 50
"""Tokens in a row that no two texts share by chance."""

_BOILERPLATE = 0.1
"""A run that more than this share of the texts of a side hold says nothing of what was seen: a
system prompt, or examples before every question."""

_FACTOR = np.uint64(0x9E3779B97F4A7C15)


def check_apart(
    seen: Iterable[Sequence[int]], proof: Iterable[Sequence[int]], names: tuple[str, str]
) -> None:
    """Refuses a proof on what the search has seen.

    Args:
        seen: Token ids of each window or prompt that the search looks at.
        proof: Of each that the proof is made on.
        names: What the user calls the two.

    Raises:
        UsageError: The two share a text, or 50 tokens in a row that are no boilerplate.
    """
    shared = shared_runs(seen, proof)
    if shared:
        raise UsageError(
            f"{len(shared)} texts of {names[1]} are in {names[0]}, too, in whole or by {RUN} tokens"
            f" in a row; the first is number {shared[0] + 1}",
            do="prove on data that the search does not see",
        )


def shared_runs(seen: Iterable[Sequence[int]], proof: Iterable[Sequence[int]]) -> list[int]:
    """Which texts of the proof share 50 tokens in a row, or the whole text, with one that was seen.

    Runs in over a tenth of the proof's texts (and in two of them at least) do not count, as long as
    the text holds others.

    Returns:
        Their indices, ascending.
    """
    known = [_runs(text) for text in seen]
    runs = [_runs(text) for text in proof]
    if not known or not runs:
        return []
    every = np.concatenate(runs)
    owner = np.repeat(np.arange(len(runs)), [len(one) for one in runs])
    _, place, counts = np.unique(every, return_inverse=True, return_counts=True)
    telling = counts[place] <= max(1.0, _BOILERPLATE * len(runs))
    # A text that is boilerplate throughout is compared by that.
    telling |= ~np.isin(owner, owner[telling])
    hits = telling & np.isin(every, np.concatenate(known))
    return [int(index) for index in np.unique(owner[hits])]


def _runs(tokens: Sequence[int]) -> NDArray[np.uint64]:
    """A 64-bit hash of each run of 50 tokens, or of the whole text if it is shorter; each once."""
    ids = np.asarray(tokens, np.uint64) + np.uint64(1)
    size = min(RUN, len(ids))
    if size == 0:
        return np.empty(0, np.uint64)
    with np.errstate(over="ignore"):
        factors = np.cumprod(np.full(size, _FACTOR))
        views = np.lib.stride_tricks.sliding_window_view(ids, size)
        mixed = views * factors
        mixed ^= mixed >> np.uint64(29)  # so that sums of other tokens do not come out the same
        return np.unique(mixed.sum(axis=1, dtype=np.uint64))

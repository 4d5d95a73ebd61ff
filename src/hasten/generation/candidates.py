"""Which tokens may come next, and how likely each is: temperature, top-k, top-p and min-p.

Definitions and order are those of transformers' logits warpers: temperature, then top-k, top-p
and min-p, each on what the one before left. A vocabulary is too large to be sorted for every
token, so the fast functions here partition first and sort only what can matter; `plain_candidates`
says the same by sorting everything, and a test holds the two to each other.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from hasten.types import SamplingParams

__all__ = ["candidates", "draw", "largest", "plain_candidates"]

Ids = NDArray[np.intp]
Logits = NDArray[np.float32]
Weights = NDArray[np.float32]

_BLOCK = 512
_COLDEST = 1e-6


def candidates(logits: Logits, params: SamplingParams) -> tuple[Ids | None, Weights]:
    """Tokens that may be drawn, in order of their ids, and their weights.

    Args:
        logits: float32 [vocab]; -inf for tokens that are not allowed.
        params: A temperature above 0, and the filters.

    Returns:
        Ids [n], None for the whole vocabulary, and weights [n]: probabilities up to a common
        factor, with 1 for the likeliest token.
    """
    peak = logits.max()
    ids: Ids | None = None
    if 0 < params.top_k < len(logits):
        ids = np.sort(largest(logits, params.top_k))
    elif params.top_p == 1 and params.min_p > 0:
        # A little below the bound, which the weights decide exactly.
        reach = params.temperature * (1e-3 - math.log(params.min_p))
        ids = np.flatnonzero(logits >= peak - np.float32(reach))
    weights = _weigh(logits if ids is None else logits[ids], peak, params.temperature)
    if params.top_p < 1:
        kept = _nucleus(weights, params.top_p)
        ids, weights = _keep(ids, weights, kept)
    if params.min_p > 0:
        ids, weights = _keep(ids, weights, np.flatnonzero(weights >= np.float32(params.min_p)))
    return ids, weights


def plain_candidates(logits: Logits, params: SamplingParams) -> tuple[Ids, Weights]:
    """What `candidates` returns, found by sorting the vocabulary."""
    weights = _weigh(logits, logits.max(), params.temperature)
    ranked = np.argsort(-logits, kind="stable")
    if params.top_k > 0:
        ranked = ranked[: params.top_k]
    if params.top_p < 1:
        total = weights[np.sort(ranked)].sum(dtype=np.float64)
        reached = np.cumsum(weights[ranked], dtype=np.float64)
        ranked = ranked[: int(np.searchsorted(reached, params.top_p * total)) + 1]
    if params.min_p > 0:
        ranked = ranked[weights[ranked] >= np.float32(params.min_p)]
    ids = np.sort(ranked)
    return ids, weights[ids]


def draw(weights: Weights, uniform: float) -> int:
    """The index that a number in [0, 1) falls on, each with its weight's share of the sum.

    Sums of blocks come first: adding up a whole vocabulary one by one takes ten times as long.
    """
    sums = np.add.reduceat(weights, np.arange(0, len(weights), _BLOCK), dtype=np.float64)
    block, rest = _fall(sums, uniform * float(sums.sum()))
    begin = block * _BLOCK
    index, _ = _fall(weights[begin : begin + _BLOCK].astype(np.float64), rest)
    return begin + index


def largest(values: Logits, count: int) -> Ids:
    """Ids of the `count` largest of at least as many values, largest first, ties by id."""
    bound = _lower_bound(values, count)
    ids = np.flatnonzero(values >= bound)
    found = values[ids]
    if len(ids) > 4 * count:
        exact = np.partition(found, -count)[-count]
        ids = ids[found >= exact]
        found = values[ids]
    return ids[np.argsort(-found, kind="stable")[:count]]


def _lower_bound(values: Logits, count: int) -> np.float32:
    """A value that at least `count` values reach, and not many more."""
    columns = len(values) // 32
    if columns <= 2 * count:
        return np.float32(np.partition(values, -count)[-count])
    # Maxima of disjoint groups: `count` of them reach the bound, so as many values do.
    maxima = values[: columns * 32].reshape(32, columns).max(axis=0)
    return np.float32(np.partition(maxima, -count)[-count])


def _weigh(logits: Logits, peak: np.float32, temperature: float) -> Weights:
    with np.errstate(over="ignore", under="ignore"):
        scaled = (logits - peak) * np.float32(1 / max(temperature, _COLDEST))
        weights: Weights = np.exp(scaled)
    return weights


def _nucleus(weights: Weights, top_p: float) -> Ids:
    """Indices of the fewest likeliest tokens that hold `top_p` of the sum; ties by index.

    The token that crosses the bound stays, so there is always one.
    """
    total = float(weights.sum(dtype=np.float64))
    # Those below this bound hold less than 1 - top_p together, so none of them is needed.
    floor = 0.999 * (1 - top_p) * total / len(weights)
    ids = np.flatnonzero(weights >= np.float32(floor))
    found = weights[ids]
    ranked = np.sort(found)[::-1]
    reached = np.cumsum(ranked, dtype=np.float64)
    count = min(int(np.searchsorted(reached, top_p * total)) + 1, len(ranked))
    last = ranked[count - 1]
    kept = found > last
    ties = np.flatnonzero(found == last)
    kept[ties[: count - int(np.count_nonzero(kept))]] = True
    nucleus: Ids = ids[kept]
    return nucleus


def _keep(ids: Ids | None, weights: Weights, kept: Ids) -> tuple[Ids, Weights]:
    return (kept if ids is None else ids[kept]), weights[kept]


def _fall(weights: NDArray[np.float64], target: float) -> tuple[int, float]:
    """The first index at which the running sum passes the target, and what is left before it."""
    reached = np.cumsum(weights)
    # Rounding may put the target at the end of the sum; a weight of 0 is never drawn.
    last = int(np.searchsorted(reached, reached[-1], side="left"))
    index = min(int(np.searchsorted(reached, target, side="right")), last)
    return index, target - (float(reached[index - 1]) if index else 0.0)

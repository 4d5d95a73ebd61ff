"""Which tokens may come next, and how likely each is: temperature, top-k, top-p and min-p.

Definitions and order are those of transformers' logits warpers: temperature, then top-k, top-p
and min-p, each on what the one before left. A vocabulary is too large to be sorted for every
token, so the fast functions here partition first and sort only what can matter; `plain_candidates`
says the same by sorting everything, and a test holds the two to each other.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from hasten.kernels.softmax import SUM_BLOCK, Softmax, softmax_weights
from hasten.types import SamplingParams

__all__ = ["Candidates", "candidates", "draw", "largest", "plain_candidates"]

Ids = NDArray[np.intp]
Logits = NDArray[np.float32]
Weights = NDArray[np.float32]

_COLDEST = 1e-6


class Candidates(NamedTuple):
    """Tokens that may be drawn, in order of their ids.

    Attributes:
        ids: int [n]; None for the whole vocabulary.
        weights: float32 [n], probabilities up to a common factor, with 1 for the likeliest token.
        sums: float64, sums of `SUM_BLOCK` weights each; None where there are few.
    """

    ids: Ids | None
    weights: Weights
    sums: NDArray[np.float64] | None


def candidates(
    logits: Logits, params: SamplingParams, softmax: Softmax = softmax_weights
) -> Candidates:
    """Narrows the vocabulary to what a request's filters leave.

    Args:
        logits: float32 [vocab]; -inf for tokens that are not allowed.
        params: A temperature above 0, and the filters.
        softmax: What to compute weights with.
    """
    peak = float(logits.max())
    scale = 1 / max(params.temperature, _COLDEST)
    ids: Ids | None = None
    if 0 < params.top_k < len(logits):
        ids = np.sort(largest(logits, params.top_k))
    elif params.top_p == 1 and params.min_p > 0:
        # A little below the bound, which the weights decide exactly.
        reach = (1e-3 - math.log(params.min_p)) / scale
        ids = np.flatnonzero(logits >= np.float32(peak - reach))
    weights, sums = softmax(logits if ids is None else logits[ids], peak, scale)
    found = Candidates(ids, weights, sums if ids is None else None)
    if params.top_p < 1:
        found = _keep(found, _nucleus(weights, float(sums.sum()), params.top_p))
    if params.min_p > 0:
        found = _keep(found, np.flatnonzero(found.weights >= np.float32(params.min_p)))
    return found


def plain_candidates(
    logits: Logits, params: SamplingParams, softmax: Softmax = softmax_weights
) -> tuple[Ids, Weights]:
    """The ids and weights that `candidates` returns, found by sorting the vocabulary."""
    peak, scale = float(logits.max()), 1 / max(params.temperature, _COLDEST)
    weights, _ = softmax(logits, peak, scale)
    ids = np.argsort(-logits, kind="stable")
    if params.top_k > 0:
        ids = ids[: params.top_k]
    ids = np.sort(ids)
    if params.top_p < 1:
        _, sums = softmax(logits[ids], peak, scale)
        ranked = ids[np.argsort(-weights[ids], kind="stable")]
        reached = np.cumsum(weights[ranked], dtype=np.float64)
        count = int(np.searchsorted(reached, params.top_p * float(sums.sum()))) + 1
        ids = np.sort(ranked[:count])
    if params.min_p > 0:
        ids = ids[weights[ids] >= np.float32(params.min_p)]
    return ids, weights[ids]


def draw(found: Candidates, uniform: float) -> int:
    """The index that a number in [0, 1) falls on, each with its weight's share of the sum.

    Sums of blocks come first: adding up a whole vocabulary one by one takes ten times as long.
    """
    if found.sums is None:
        reached = np.cumsum(found.weights, dtype=np.float64)
        return _fall(reached, uniform * float(reached[-1]))
    reached = np.cumsum(found.sums)
    target = uniform * float(reached[-1])
    block = _fall(reached, target)
    target -= float(reached[block - 1]) if block else 0.0
    begin = block * SUM_BLOCK
    inside = np.cumsum(found.weights[begin : begin + SUM_BLOCK], dtype=np.float64)
    return begin + _fall(inside, target)


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


def _nucleus(weights: Weights, total: float, top_p: float) -> Ids:
    """Indices of the fewest likeliest tokens that hold `top_p` of the sum; ties by index.

    The token that crosses the bound stays, so there is always one.
    """
    # Tokens below this weight hold less than 1 - top_p together, so none of them is needed.
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


def _keep(found: Candidates, kept: Ids) -> Candidates:
    ids = kept if found.ids is None else found.ids[kept]
    return Candidates(ids, found.weights[kept], None)


def _fall(reached: NDArray[np.float64], target: float) -> int:
    """The first index at which a running sum passes the target."""
    # Rounding may put the target at the end of the sum; a weight of 0 is never drawn.
    last = int(np.searchsorted(reached, reached[-1], side="left"))
    return min(int(np.searchsorted(reached, target, side="right")), last)

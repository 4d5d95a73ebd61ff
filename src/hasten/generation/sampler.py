"""From logits to the next token."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from hasten.errors import UsageError
from hasten.types import SamplingParams

__all__ = ["check_sampling", "make_generator", "probabilities", "sample"]


def check_sampling(params: SamplingParams) -> None:
    """Refuses values out of range.

    Raises:
        UsageError: Names the value and what is allowed.
    """
    checks = [
        ("max_tokens", params.max_tokens >= 1, "1 or more"),
        ("temperature", 0 <= params.temperature <= 100, "0 (greedy) to 100"),
        ("top_k", params.top_k >= 0, "0 (all) or more"),
        ("top_p", 0 < params.top_p <= 1, "above 0, at most 1"),
        ("min_p", 0 <= params.min_p < 1, "0 or more, below 1"),
        ("seed", params.seed is None or 0 <= params.seed < 2**64, "0 to 2^64 - 1"),
        ("stop", all(params.stop), "strings that are not empty"),
    ]
    for name, fine, allowed in checks:
        if not fine:  # also where the value is NaN
            raise UsageError(f"{name} is {getattr(params, name)!r}", allowed=allowed)


def make_generator(params: SamplingParams) -> np.random.Generator:
    """A random stream of the request's own, so that a seed gives the same text in any batch."""
    return np.random.Generator(np.random.Philox(params.seed))


def sample(
    logits: NDArray[np.float32], params: SamplingParams, generator: np.random.Generator
) -> int:
    """The next token from logits [vocab]; draws one number from the generator unless greedy."""
    if params.temperature == 0:
        return int(np.argmax(logits))
    tokens, weights = probabilities(logits, params)
    cumulative = np.cumsum(weights)
    index = int(np.searchsorted(cumulative, generator.random() * cumulative[-1], side="right"))
    return int(tokens[min(index, len(tokens) - 1)])


def probabilities(
    logits: NDArray[np.float32], params: SamplingParams
) -> tuple[NDArray[np.intp], NDArray[np.float64]]:
    """Candidates and their probabilities after temperature, top-k, top-p and min-p, in that order.

    Returns:
        Token ids, likeliest first (ties: lowest id first), and their probabilities, which sum to 1.
    """
    scaled = logits.astype(np.float64) / max(params.temperature, 1e-6)
    tokens = _largest(scaled, params.top_k)
    weights = np.exp(scaled[tokens] - scaled[tokens[0]])
    weights /= weights.sum()
    if params.top_p < 1:
        # The token that crosses the threshold stays; there is always one.
        keep = int(np.searchsorted(np.cumsum(weights), params.top_p)) + 1
        tokens, weights = tokens[:keep], weights[:keep]
    if params.min_p > 0:
        kept = weights >= params.min_p * weights[0]
        tokens, weights = tokens[kept], weights[kept]
    return tokens, weights / weights.sum()


def _largest(scaled: NDArray[np.float64], top_k: int) -> NDArray[np.intp]:
    """Ids of the k largest (all if k is 0), largest first, ties by id."""
    if 0 < top_k < len(scaled):
        threshold = np.partition(scaled, -top_k)[-top_k]
        ids = np.flatnonzero(scaled >= threshold)
    else:
        ids = np.arange(len(scaled))
    order = np.argsort(-scaled[ids], kind="stable")
    ranked = ids[order]
    return ranked[:top_k] if top_k > 0 else ranked

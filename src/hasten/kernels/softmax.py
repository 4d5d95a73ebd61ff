"""Weights of a row of logits: its softmax before the division by the sum.

The native twin is `hasten._native.Softmax`. An element's weight does not depend on its place in the
row.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

__all__ = ["SUM_BLOCK", "Softmax", "softmax_weights"]

Softmax = Callable[
    [NDArray[np.float32], float, float], tuple[NDArray[np.float32], NDArray[np.float64]]
]
"""What `softmax_weights` is, and its native twin."""

SUM_BLOCK = 512
"""Values of one sum (kSumBlock in csrc/kernels/kernels.h)."""


def softmax_weights(
    x: NDArray[np.float32], peak: float, scale: float
) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
    """Computes exp((x - peak) * scale).

    Args:
        x: float32 [n], values up to `peak`, -inf among them.
        peak: The largest value.
        scale: Above 0; one over the temperature.

    Returns:
        float32 [n], 1 for the largest value; float64 [ceil(n / SUM_BLOCK)], their sums by blocks.
    """
    with np.errstate(over="ignore", under="ignore"):
        weights: NDArray[np.float32] = np.exp((x - np.float32(peak)) * np.float32(scale))
    starts = np.arange(0, len(x), SUM_BLOCK)
    return weights, np.add.reduceat(weights, starts, dtype=np.float64)

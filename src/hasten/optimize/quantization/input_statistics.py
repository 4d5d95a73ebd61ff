"""How large the inputs of a product's columns are on the calibration text."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["input_importance", "input_magnitude"]

_LEAST = 0.01


def input_magnitude(inputs: NDArray[np.float32]) -> NDArray[np.float64]:
    """Mean of |x| [columns] of inputs [tokens, columns]."""
    found: NDArray[np.float64] = np.abs(inputs).mean(axis=0, dtype=np.float64)
    return found


def input_importance(inputs: NDArray[np.float32]) -> NDArray[np.float64]:
    """Mean of x^2 [columns] as a share of its mean over the columns, and a hundredth more.

    So the weights of a column whose input was never seen still count a little.
    """
    found: NDArray[np.float64] = np.square(inputs, dtype=np.float64).mean(axis=0)
    return found / (float(found.mean()) or 1.0) + _LEAST

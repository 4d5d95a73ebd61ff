"""The second moments of a product's inputs, which least squares and low rank work with."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from hasten.errors import UnsupportedModelError

__all__ = ["damped", "gram_of"]


def gram_of(inputs: NDArray[np.float32]) -> NDArray[np.float64]:
    """X^T X, float64 [columns, columns], of the inputs X [tokens, columns] of a product.

    Raises:
        UnsupportedModelError: They are not finite.
    """
    wide = inputs.astype(np.float64)
    gram: NDArray[np.float64] = wide.T @ wide
    if not np.isfinite(gram).all():
        raise UnsupportedModelError("the model computes values that are not finite")
    return gram


def damped(gram: NDArray[np.float64], ridge: float) -> NDArray[np.float64]:
    """The gram of the inputs and of a little noise, which keeps a short text from being fitted.

    Args:
        gram: Of the inputs.
        ridge: What is added to the diagonal, as a share of its mean; more than 0.

    Returns:
        A positive definite matrix; the unit matrix where all inputs are zero.
    """
    return gram + np.eye(len(gram)) * (ridge * np.trace(gram) / len(gram) or 1.0)

"""The second moments of a product's inputs, which least squares and low rank work with."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from hasten.errors import UnsupportedModelError, UsageError

__all__ = ["check_ridge", "damped", "gram_of"]

_LARGEST_RIDGE = 100.0


def check_ridge(ridge: float) -> None:
    """Refuses a ridge that `damped` cannot use.

    Raises:
        UsageError: It is out of range.
    """
    if not 0 < ridge <= _LARGEST_RIDGE:
        raise UsageError(f"a ridge of {ridge}", allowed=f"more than 0, at most {_LARGEST_RIDGE:g}")


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

"""What the inputs of a product on the calibration text say about its columns."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from hasten.errors import HastenError
from hasten.models.ops import Linear

__all__ = ["input_importance", "input_magnitude", "input_squares"]

Values = Mapping[str, NDArray[np.float32]]


def input_squares(op: Linear, values: Values) -> NDArray[np.float64]:
    """X X' [columns, columns] over all tokens.

    Raises:
        HastenError: The inputs are not finite, or their squares exceed float32.
    """
    inputs = values[op.source]
    with np.errstate(over="ignore", invalid="ignore"):
        squares = inputs.T @ inputs
    if not np.isfinite(squares).all():
        raise HastenError(
            f"the inputs of {op.weights[0]} on the calibration text are NaN or too large",
            do="check that the model computes text (`hasten eval`)",
        )
    return squares.astype(np.float64)


def input_magnitude(op: Linear, values: Values) -> NDArray[np.float64]:
    """Mean of |x| [columns] over all tokens."""
    found: NDArray[np.float64] = np.abs(values[op.source]).mean(axis=0, dtype=np.float64)
    return found


def input_importance(op: Linear, values: Values) -> NDArray[np.float64]:
    """Mean of x^2 [columns] over all tokens, and a hundredth of what the columns have on average.

    So the weights of a column whose input was never seen still count a little.
    """
    found: NDArray[np.float64] = np.square(values[op.source], dtype=np.float64).mean(axis=0)
    return found + 0.01 * float(found.mean())

"""Rounding with feedback: the error of each column is made up for by the columns after it.

GPTQ (Frantar et al. 2022, https://arxiv.org/abs/2210.17323) minimises |(W - Q) X| over the inputs X
of a product, column by column. With H = X X' = (I + U) D (I + U)', where U is strictly upper
triangular and D diagonal, what GPTQ rounds in column k is W_k + sum over j < k of (W_j - Q_j) U_jk:
the same numbers (Chee et al. 2023, https://arxiv.org/abs/2307.13304, theorem 6) without an inverse.

Matrices are transposed here, since columns are what is worked on: [columns, rows], float64.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from hasten.optimize.quantization.rounding import Grid

__all__ = ["Hessian", "Rounded", "output_error", "round_with_feedback"]

Array = NDArray[np.float64]
Real = NDArray[np.floating[Any]]

_SPAN = 16
"""Columns whose errors are passed on one by one; the others get them all at once, in a product."""


@dataclass(frozen=True, slots=True)
class Hessian:
    """How errors in the columns of a matrix count in what the product yields.

    Attributes:
        matrix: X X' with damping, [columns, columns].
        upper: I + U.
        diagonal: D.
    """

    matrix: Array
    upper: Array
    diagonal: Array

    @classmethod
    def of(cls, squares: Array, damping: float) -> Self:
        """From X X' [columns, columns].

        `damping` times the median of its diagonal is added to the diagonal. With fewer tokens than
        would do, H says more than is so of the text to come: errors are then made up for that will
        not be there. (The paper adds 0.01 of the mean, which a few channels of large inputs rule.)
        """
        matrix = squares.astype(np.float64)
        index = np.arange(len(matrix))
        sizes = matrix[index, index]
        matrix[index, index] += damping * (np.median(sizes[sizes > 0]) if sizes.any() else 0.0)
        # The errors of a column that met no input at all count for themselves.
        matrix[index, index] = np.where(matrix[index, index] > 0, matrix[index, index], 1.0)
        root = np.linalg.cholesky(matrix[::-1, ::-1])[::-1, ::-1]
        scale = root[index, index]
        return cls(matrix, np.ascontiguousarray(root / scale), scale * scale)


@dataclass(frozen=True, slots=True)
class Rounded:
    """A rounded matrix: codes [columns, rows]; scales and minimums [groups, rows]."""

    codes: Array
    scales: Array
    minimums: Array

    @classmethod
    def empty(cls, columns: int, rows: int, group: int) -> Self:
        """All zeros."""
        groups = columns // group
        return cls(np.zeros((columns, rows)), np.zeros((groups, rows)), np.zeros((groups, rows)))


def round_with_feedback(
    weights: Array, squares: Array, grid: Grid, *, damping: float, order: bool
) -> Rounded:
    """GPTQ for one matrix, or for several with the same inputs side by side.

    Args:
        weights: [columns, rows]; the group divides the columns.
        squares: X X' [columns, columns] of the inputs.
        grid: What codes stand for.
        damping: As for `Hessian.of`.
        order: Takes the groups, and the columns of each, with the largest inputs first, while many
            columns are left that can make up for their errors. All stay where they are.
    """
    count, group = len(squares), grid.form.group
    turn = _largest_first(np.diag(squares), group) if order else np.arange(count)
    hessian = Hessian.of(squares[np.ix_(turn, turn)], damping)
    found = Rounded.empty(count, weights.shape[1], group)
    columns = weights[turn]
    off = np.zeros_like(columns)
    for begin in range(0, count, group):
        span = slice(begin, begin + group)
        owed = hessian.upper[:begin, span].T @ off[:begin]
        # What the weights become if the rest of the group may be any numbers.
        now = columns[span] + np.linalg.solve(hessian.upper[span, span].T, owed)
        scale, low = grid.fit(now.T[:, None, :], hessian.diagonal[None, span])
        place = turn[begin] // group
        found.scales[place], found.minimums[place] = scale[:, 0], low[:, 0]
        for first in range(begin, begin + group, _SPAN):
            ahead = slice(first, begin + group)
            before = slice(begin, first)
            some = owed[first - begin :] + hessian.upper[before, ahead].T @ off[before]
            _round_columns(found, columns, off, some, first, turn, hessian.upper, grid)
    return found


def output_error(off: Real, squares: Real) -> float:
    """Sum of squares of what an error W - Q [columns, rows] changes in the products."""
    return float(np.vdot(off, squares @ off))


def _largest_first(inputs: Array, group: int) -> NDArray[np.intp]:
    """Columns in the order of their groups' largest inputs, and inside each of their own."""
    sizes = inputs.reshape(-1, group)
    groups = np.argsort(-sizes.max(axis=1), kind="stable")
    inside = np.argsort(-sizes[groups], axis=1, kind="stable")
    return (groups[:, None] * group + inside).reshape(-1)


def _round_columns(
    found: Rounded,
    columns: Array,
    off: Array,
    owed: Array,
    first: int,
    turn: NDArray[np.intp],
    upper: Array,
    grid: Grid,
) -> None:
    """Rounds the columns from `first` on, one after another, each with the errors before it."""
    for k in range(first, min(first + _SPAN, len(columns))):
        place = turn[k]
        group = place // grid.form.group
        scale, low = found.scales[group], found.minimums[group]
        codes = grid.encode(columns[k] + owed[k - first], scale, low)
        found.codes[place] = codes
        off[k] = columns[k] - grid.decode(codes, scale, low)
        last = min(first + _SPAN, len(columns))
        owed[k + 1 - first : last - first] += upper[k, k + 1 : last, None] * off[k]

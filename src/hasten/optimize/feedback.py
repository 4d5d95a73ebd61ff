"""Rounding with feedback: the error of each column is made up for by the columns after it.

GPTQ (Frantar et al. 2022, https://arxiv.org/abs/2210.17323) minimises |(W - Q) X| over the inputs X
of a product, column by column. With H = X X' = (I + U) D (I + U)', where U is strictly upper
triangular and D diagonal, what GPTQ rounds in column k is W_k + sum over j < k of (W_j - Q_j) U_jk:
the same numbers (Chee et al. 2023, https://arxiv.org/abs/2307.13304, theorem 6) without an inverse.

Matrices are transposed here, since columns are what is worked on: [columns, rows], float64.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

from hasten.optimize.rounding import Grid

__all__ = ["Hessian", "Rounded", "output_error", "round_with_feedback"]

Array = NDArray[np.float64]

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

        `damping` times the mean of its diagonal is added to the diagonal, so that columns whose
        inputs were hardly seen stay near their weights.
        """
        matrix = squares.astype(np.float64)
        index = np.arange(len(matrix))
        matrix[index, index] += damping * matrix[index, index].mean()
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
        order: Takes the columns with the largest inputs first, while many are left that can make
            up for their errors. Columns stay in their groups, whose scales are found beforehand;
            otherwise they are found when the group's turn comes, from what its weights are then.
    """
    count, group = len(squares), grid.form.group
    turn = np.argsort(-np.diag(squares), kind="stable") if order else np.arange(count)
    hessian = Hessian.of(squares[np.ix_(turn, turn)], damping)
    found = Rounded.empty(count, weights.shape[1], group)
    if order:
        _fit_all(found, weights, np.diag(squares), grid, damping)
    columns = weights[turn]
    off = np.zeros_like(columns)
    for begin in range(0, count, group):
        span = slice(begin, begin + group)
        owed = hessian.upper[:begin, span].T @ off[:begin]
        if not order:
            # What the weights become if the rest of the group may be any numbers.
            now = columns[span] + np.linalg.solve(hessian.upper[span, span].T, owed)
            scale, low = grid.fit(now.T[:, None, :], hessian.diagonal[None, span])
            found.scales[begin // group], found.minimums[begin // group] = scale[:, 0], low[:, 0]
        for first in range(begin, begin + group, _SPAN):
            ahead = slice(first, begin + group)
            before = slice(begin, first)
            some = owed[first - begin :] + hessian.upper[before, ahead].T @ off[before]
            _round_columns(found, columns, off, some, first, turn, hessian.upper, grid)
    return found


def output_error(off: Array, squares: Array) -> float:
    """Sum of squares of what an error W - Q [columns, rows] changes in the products."""
    return float(np.einsum("ij,ij->", off, squares @ off))


def _fit_all(found: Rounded, weights: Array, inputs: Array, grid: Grid, damping: float) -> None:
    """Finds the scales of all groups from the weights as they are."""
    rows, group = weights.shape[1], grid.form.group
    importance = (inputs + damping * inputs.mean()).reshape(-1, group)
    scales, minimums = grid.fit(weights.T.reshape(rows, -1, group), importance)
    found.scales[:], found.minimums[:] = scales.T, minimums.T


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

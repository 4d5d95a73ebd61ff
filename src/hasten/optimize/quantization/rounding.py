"""From real values to the codes of a group: where its scale and minimum lie, and to which code.

Scales and minimums hold values of half precision, as the kernels have them, so that what is
computed with them is what will run. Values may be float32 or float64; results are of their type.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from hasten.generation.formats import MatrixFormat
from hasten.kernels.quantization import BLOCK, QuantizedMatrix, pack_nibbles

__all__ = ["Grid", "pad_columns", "round_nearest"]

Array = NDArray[np.floating[Any]]
Pair = tuple[Array, Array]

_SHRINKS = (0.95, 0.9, 0.85, 0.8, 0.75, 0.7)
"""Shares of a group's range that are tried beside the whole: what lies outside is clipped."""
_REFITS = 2
_HALF = float(np.finfo(np.float16).max)
_CHUNK = 1 << 16
"""Values worked on at a time, so that they stay in the cache."""


@dataclass(frozen=True, slots=True)
class Grid:
    """The values that codes of a format stand for: scale * (code - zero) + minimum.

    Attributes:
        form: The format: int8, or int4 with or without minimum, in groups.
    """

    form: MatrixFormat

    @property
    def bits(self) -> Literal[4, 8]:
        """4 or 8."""
        return 8 if self.form.kind == "int8" else 4

    @property
    def codes(self) -> tuple[int, int, int]:
        """Lowest and highest code, and the code of zero where there is no minimum."""
        if self.bits == 8:
            return -127, 127, 0
        return 0, 15, 0 if self.form.minimum else 8

    def reach(self, values: Array) -> Pair:
        """Scale and minimum whose codes reach from a group's lowest to its highest value.

        Args:
            values: [rows, groups, columns of a group].

        Returns:
            Scales and minimums [rows, groups].
        """
        return self._span(np.minimum(values.min(axis=2), 0), np.maximum(values.max(axis=2), 0))

    def fit(self, values: Array, weight: Array) -> Pair:
        """Scale and minimum with the least weighted squared error that a search finds.

        Ranges from the whole to 70 % of it are tried; from the best one on, codes and the scale and
        minimum of least squares are found in turn, as llama.cpp's `make_qkx2_quants` does.

        Args:
            values: [rows, groups, columns of a group].
            weight: How much an error counts, [groups, columns of a group].

        Returns:
            Scales and minimums [rows, groups].
        """
        low, high = np.minimum(values.min(axis=2), 0), np.maximum(values.max(axis=2), 0)
        best = self._span(low, high)
        error = self._error(values, weight, best)
        for shrink in _SHRINKS:
            tried = self._span(low * shrink, high * shrink)
            best, error = self._better(values, weight, (best, error), tried)
        for _ in range(_REFITS):
            tried = self._least_squares(values, weight, best)
            best, error = self._better(values, weight, (best, error), tried)
        return best

    def encode(self, values: Array, scale: Array, minimum: Array) -> Array:
        """The nearest codes; the arguments broadcast."""
        low, high, zero = self.codes
        inverse = np.divide(1, scale, out=np.zeros_like(scale), where=scale != 0)
        codes = (values - minimum) * inverse
        np.rint(codes, out=codes)
        codes += zero
        return np.clip(codes, low, high, out=codes)

    def decode(self, codes: Array, scale: Array, minimum: Array) -> Array:
        """What codes stand for; the arguments broadcast."""
        return (codes - self.codes[2]) * scale + minimum

    def pack(
        self, shape: tuple[int, int], codes: Array, scales: Array, minimums: Array
    ) -> QuantizedMatrix:
        """The matrix as the kernels take it.

        Args:
            shape: Rows and columns of the matrix.
            codes: [rows, padded columns].
            scales: [rows, groups].
            minimums: [rows, groups]; not looked at where the format has none.
        """
        stored = codes.astype(np.int8) if self.bits == 8 else pack_nibbles(codes.astype(np.uint8))
        low = minimums.astype(np.float16) if self.form.minimum else None
        half = scales.astype(np.float16)
        return QuantizedMatrix(self.bits, shape, self.form.group, stored, half, low)

    def _span(self, low: Array, high: Array) -> Pair:
        """Scale and minimum whose codes reach from `low` (at most 0) to `high` (at least 0)."""
        first, last, zero = self.codes
        if self.form.minimum:
            return _half((high - low) / (last - first)), _half(low)
        if self.bits == 8:
            return _half(np.maximum(-low, high) / last), np.zeros_like(low)
        # Eight codes lie below zero and seven above: the larger side gets the eight.
        return _half(np.where(-low >= high, -low, -high) / (zero - first)), np.zeros_like(low)

    def _error(self, values: Array, weight: Array, pair: Pair) -> Array:
        scale, low = pair[0][:, :, None], pair[1][:, :, None]
        off = self.decode(self.encode(values, scale, low), scale, low)
        off -= values
        return np.asarray(np.einsum("rgc,rgc,gc->rg", off, off, weight))

    def _better(
        self, values: Array, weight: Array, best: tuple[Pair, Array], tried: Pair
    ) -> tuple[Pair, Array]:
        """The better pair of each group, and its error."""
        (scale, low), error = best
        found = self._error(values, weight, tried)
        wins = found < error
        pair = np.where(wins, tried[0], scale), np.where(wins, tried[1], low)
        return pair, np.where(wins, found, error)

    def _least_squares(self, values: Array, weight: Array, pair: Pair) -> Pair:
        """The best scale and minimum for the codes that a pair gives."""
        codes = self.encode(values, pair[0][:, :, None], pair[1][:, :, None])
        codes -= self.codes[2]
        weighted = codes * weight
        square = np.einsum("rgc,rgc->rg", weighted, codes)
        cross = np.einsum("rgc,rgc->rg", weighted, values)
        if not self.form.minimum:
            return _half(_divide(cross, square)), pair[1]
        first, total = weighted.sum(axis=2), weight.sum(axis=1)
        mass = np.einsum("rgc,gc->rg", values, weight)
        scale = _half(_divide(total * cross - first * mass, total * square - first * first))
        return scale, _half(_divide(mass - scale * first, np.broadcast_to(total, mass.shape)))


def round_nearest(
    values: NDArray[np.float32], form: MatrixFormat, importance: Array | None = None
) -> QuantizedMatrix:
    """Rounds to nearest.

    Args:
        values: float32 [rows, columns], finite.
        form: A format of `Grid` whose group divides the padded columns.
        importance: [columns]: scales and minimums are searched for the least squared error,
            weighted by it; None lets codes reach from the lowest to the highest value.
    """
    grid, (rows, columns) = Grid(form), values.shape
    padded = pad_columns(values)
    groups = padded.shape[1] // form.group
    weight = None if importance is None else pad_columns(importance[None]).reshape(groups, -1)
    step = max(1, _CHUNK // padded.shape[1])
    pieces = []
    for begin in range(0, rows, step):
        chunk = padded[begin : begin + step].reshape(-1, groups, form.group)
        scale, low = grid.reach(chunk) if weight is None else grid.fit(chunk, weight)
        codes = grid.encode(chunk, scale[:, :, None], low[:, :, None])
        pieces.append((codes.reshape(len(chunk), -1), scale, low))
    codes, scales, minimums = (np.concatenate([piece[i] for piece in pieces]) for i in range(3))
    return grid.pack((rows, columns), codes, scales, minimums)


def pad_columns(values: Array) -> Array:
    """Zeros after the last column, up to a multiple of 32 columns."""
    return np.pad(values, ((0, 0), (0, -values.shape[1] % BLOCK)))


def _half(values: Array) -> Array:
    return np.clip(values, -_HALF, _HALF).astype(np.float16).astype(values.dtype)


def _divide(a: Array, b: Array) -> Array:
    return np.divide(a, b, out=np.zeros_like(a), where=b > 0)

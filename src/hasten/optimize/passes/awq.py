"""AWQ: scales the inputs that matter before rounding to nearest.

Lin et al. 2023, https://arxiv.org/abs/2306.00978. The error that rounding a weight makes grows with
the input that it meets. So the columns with large inputs are multiplied by s > 1 before rounding,
and what computes those inputs yields them divided by s: see `hasten.optimize.quantization.folding`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from hasten.generation.formats import MatrixFormat
from hasten.generation.reference import ReferenceExecutor
from hasten.kernels.quantization import dequantize
from hasten.models import Model, architectures
from hasten.models.ops import Linear, Op
from hasten.models.weights import DenseTensor, QuantizedTensor, StoredTensor
from hasten.optimize.calibration import calibrate
from hasten.optimize.passes.interface import Need, Workshop, parameters_of
from hasten.optimize.quantization.feedback import output_error
from hasten.optimize.quantization.folding import Fold, find_folds, fold
from hasten.optimize.quantization.gram import gram_of
from hasten.optimize.quantization.input_statistics import (
    input_importance,
    input_magnitude,
)
from hasten.optimize.quantization.integer_weights import IntegerWeights, rounded_vocabulary
from hasten.optimize.quantization.rounding import round_nearest
from hasten.optimize.quantization.shelf import Shelf, fingerprint

__all__ = ["PASS", "AwqWeights"]

Array = NDArray[np.float64]

_QUIET = 1e-4
"""Inputs count at least this share of the largest one, so that a silent one is not blown up."""


@dataclass(frozen=True, slots=True)
class AwqWeights(IntegerWeights):
    """Scales, then rounds to nearest.

    Attributes:
        steps: Exponents of the mean input that are tried: 0 (no scale), 1/steps, ... below 1.
        clip: Scales and minimums of groups are searched for the least squared error, weighted by
            the inputs, so that outliers may be clipped.
        rounds: False leaves the scaled matrices in float32, for a pass that rounds them after.
    """

    steps: int = 10
    clip: bool = True
    rounds: bool = True

    name: ClassVar[str] = "awq"
    needs: ClassVar[frozenset[Need]] = frozenset({"calibration"})

    def __post_init__(self) -> None:
        # The base by its name: `super()` does not work in a dataclass with slots.
        IntegerWeights.__post_init__(self)
        if not 1 <= self.steps <= 1000:
            raise ValueError(f"steps is {self.steps}; allowed: 1 to 1000")

    @property
    def exact(self) -> bool:
        """Scales alone leave the function of the model as it is."""
        return not self.rounds

    @property
    def label(self) -> str:
        """A few words with its parameters, for tables."""
        return f"AWQ {self.form}{self.extent}" if self.rounds else f"AWQ scales for {self.form}"

    def why_unfit(self, model: Model) -> str | None:
        """Why it cannot change this model, or None."""
        reason = IntegerWeights.why_unfit(self, model)
        if reason is None and not _folds(self, model):
            return "nothing before its matrices can take a scale of their inputs over"
        return reason

    def formats(self, model: Model) -> dict[str, MatrixFormat]:
        """The formats of the matrices that change."""
        if self.rounds:
            return IntegerWeights.formats(self, model)
        return dict.fromkeys(self.chosen(model), MatrixFormat("f32"))

    def apply(self, model: Model, workshop: Workshop) -> Model:
        """The model with scales folded in and its matrices rounded.

        Raises:
            UsageError: It does not fit the model.
            UnsupportedModelError: The model computes NaN or infinite values on the text.
        """
        self.check_fit(model)
        search = _Search(self, model, workshop)
        calibrate(model, workshop.calibration, search.visit)
        weights: dict[str, StoredTensor] = dict(model.weights)
        for place, scale in search.scales:
            names = (*place.columns, *place.rows)
            values = {name: weights[name].to_float32() for name in names}
            for name, scaled in fold(values, place, scale).items():
                weights[name] = DenseTensor(name, "F32", scaled)
        config = replace(model.config, rearranged=True)
        if not self.rounds:
            return model.derive(weights, config)
        for name in self.chosen(model):
            importance = search.importance[name] if self.clip else None
            matrix = round_nearest(weights[name].to_float32(), self.form, importance)
            weights[name] = QuantizedTensor(name, matrix)
        return model.derive(weights | rounded_vocabulary(model, self.vocabulary), config)


class _Search:
    """Finds the scales of one model as the calibration comes to the places for them."""

    def __init__(self, step: AwqWeights, model: Model, workshop: Workshop) -> None:
        self.scales: list[tuple[Fold, Array]] = []
        self.importance: dict[str, NDArray[np.float32]] = {}
        self._step = step
        self._chosen = set(step.chosen(model))
        self._places = {place.source: place for place in _folds(step, model)}
        self._count = len(self._places)
        self._spread: dict[str, Array] = {}
        self._progress = workshop.progress
        key = fingerprint(model, workshop.calibration, parameters_of(step))
        self._shelf = Shelf(workshop.directory, key)

    def visit(
        self, executor: ReferenceExecutor, op: Op, values: Mapping[str, NDArray[np.float32]]
    ) -> None:
        """Looks at the inputs of a product, and finds their scale when they are new."""
        if not isinstance(op, Linear) or op.weights[0] not in self._chosen:
            return
        place = self._places.pop(op.source, None)
        if place is not None:
            self._progress(f"AWQ {', '.join(place.columns)}", len(self.scales) / self._count)
            scale = self._scale(place, executor, op, values)
            self.scales.append((place, scale))
            self._spread[op.source] = place.spread(scale)
        importance = input_importance(values[op.source]) / self._spread.get(op.source, 1.0) ** 2
        self.importance |= dict.fromkeys(op.weights, importance.astype(np.float32))

    def _scale(
        self,
        place: Fold,
        executor: ReferenceExecutor,
        op: Linear,
        values: Mapping[str, NDArray[np.float32]],
    ) -> Array:
        """The scale that was found before the pass was killed, or else is found now."""
        kept = self._shelf.take(place.columns[0])
        if kept is not None:
            return kept["scale"]
        scale = self._find(place, executor, op, values)
        self._shelf.put(place.columns[0], {"scale": scale})
        return scale

    def _find(
        self,
        place: Fold,
        executor: ReferenceExecutor,
        op: Linear,
        values: Mapping[str, NDArray[np.float32]],
    ) -> Array:
        """The scale of a place with the least error of what its products yield."""
        gram = gram_of(values[op.source])
        squares = (gram / (np.trace(gram) or 1.0)).astype(np.float32)
        size = place.pooled(input_magnitude(values[op.source]))
        size = np.maximum(size, _QUIET * size.max()) if size.max() > 0 else np.ones_like(size)
        matrices = [executor.weight(name) for name in place.columns]
        best, least = np.ones_like(size), math.inf
        for number in range(self._step.steps):
            scale = size ** (number / self._step.steps)
            scale /= np.sqrt(scale.max() * scale.min())
            wide = place.spread(scale)
            error = sum(
                _error(one, wide, squares.astype(np.float32), self._step.form) for one in matrices
            )
            if error < least:
                best, least = scale, error
        return best


def _folds(step: AwqWeights, model: Model) -> list[Fold]:
    """The places all of whose products are rounded."""
    chosen = set(step.chosen(model))
    folds = find_folds(architectures.build(model.config), model.config)
    return [place for place in folds if chosen.issuperset(place.columns)]


def _error(
    matrix: NDArray[np.float32], scale: Array, squares: NDArray[np.float32], form: MatrixFormat
) -> float:
    """What rounding the scaled matrix costs."""
    wide = scale.astype(np.float32)
    off = matrix - dequantize(round_nearest(matrix * wide, form)) / wide
    return output_error(off.T, squares)


PASS = AwqWeights

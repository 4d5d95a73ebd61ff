"""GPTQ: rounds weights so that what the products yield on a text changes least.

Frantar et al. 2022, https://arxiv.org/abs/2210.17323; `hasten.optimize.quantization.feedback` says
how.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from hasten.generation.reference import ReferenceExecutor
from hasten.kernels.quantization import QuantizedMatrix
from hasten.models import Model, architectures
from hasten.models.config import ModelConfig
from hasten.models.ops import Linear, Op
from hasten.models.weights import QuantizedTensor
from hasten.optimize.calibration import calibrate
from hasten.optimize.passes.interface import Need, Workshop, parameters_of
from hasten.optimize.quantization.feedback import round_with_feedback
from hasten.optimize.quantization.gram import gram_of
from hasten.optimize.quantization.integer_weights import IntegerWeights
from hasten.optimize.quantization.rounding import Grid, pad_columns
from hasten.optimize.quantization.shelf import Shelf, fingerprint

__all__ = ["PASS", "GptqWeights"]


@dataclass(frozen=True, slots=True)
class GptqWeights(IntegerWeights):
    """Rounds column by column; later columns make up for the errors of earlier ones.

    Products run in the order of the model, each with the inputs that the rounded ones before it
    give. Memory is that of the model in float32 twice, and of the text's values.

    Attributes:
        damping: Share of the median square of inputs that is added to that of each: more for less
            text; see `Hessian.of`.
        order: Rounds the columns with the largest inputs first; costs nothing when the model runs.
    """

    damping: float = 0.5
    order: bool = True

    name: ClassVar[str] = "gptq"
    needs: ClassVar[frozenset[Need]] = frozenset({"calibration"})

    def __post_init__(self) -> None:
        # The base by its name: `super()` does not work in a dataclass with slots.
        IntegerWeights.__post_init__(self)
        if not 1e-6 <= self.damping <= 1e6:
            raise ValueError(f"damping is {self.damping}; allowed: 1e-6 to 1e6")

    @property
    def label(self) -> str:
        """A few words with its parameters, for tables."""
        return f"GPTQ {self.form}{self.extent}" + ("" if self.order else ", columns in order")

    def apply(self, model: Model, workshop: Workshop) -> Model:
        """The model with rounded matrices.

        Raises:
            UsageError: It does not fit the model.
            UnsupportedModelError: The model computes NaN or infinite values on the text.
        """
        self.check_fit(model)
        run = _Run(self, model, workshop)
        calibrate(model, workshop.calibration, run.visit)
        return model.derive({**model.weights, **self.rounded_vocabulary(model), **run.done})


class _Run:
    """Rounds the matrices of one model as the calibration comes to them."""

    def __init__(self, step: GptqWeights, model: Model, workshop: Workshop) -> None:
        self.done: dict[str, QuantizedTensor] = {}
        self._step = step
        self._chosen = set(step.chosen(model))
        self._waiting = _by_input(model.config, self._chosen)
        self._grid = Grid(step.form)
        self._progress = workshop.progress
        key = fingerprint(model, workshop.calibration, parameters_of(step))
        self._shelf = Shelf(workshop.directory, key)

    def visit(
        self, executor: ReferenceExecutor, op: Op, values: Mapping[str, NDArray[np.float32]]
    ) -> None:
        """Rounds all matrices that read a value when the first of them is about to run."""
        names = self._waiting.pop(op.source, None) if isinstance(op, Linear) else None
        if not isinstance(op, Linear) or names is None:
            return
        for name in names:
            self._progress(f"GPTQ {name}", len(self.done) / len(self._chosen))
        weights = [executor.weight(name) for name in names]
        joint = QuantizedTensor(op.source, self._rounded(names[0], weights, op, values))
        begin = 0
        for name, matrix in zip(names, weights, strict=True):
            end = begin + len(matrix)
            self.done[name] = joint.take_rows(name, begin, end)
            executor.replace_weight(name, self.done[name].to_float32())
            begin = end

    def _rounded(
        self,
        name: str,
        weights: Sequence[NDArray[np.float32]],
        op: Linear,
        values: Mapping[str, NDArray[np.float32]],
    ) -> QuantizedMatrix:
        """Matrices with the same inputs as one, the rows of each after those of the other."""
        shape = sum(len(matrix) for matrix in weights), op.columns
        kept = self._shelf.take(name)
        if kept is not None:
            return QuantizedMatrix(self._grid.bits, shape, self._step.group, **kept)
        whole = pad_columns(np.concatenate(weights).astype(np.float64))
        squares = gram_of(values[op.source])
        found = round_with_feedback(
            np.ascontiguousarray(whole.T),
            np.pad(squares, (0, whole.shape[1] - op.columns)),
            self._grid,
            damping=self._step.damping,
            order=self._step.order,
        )
        matrix = self._grid.pack(shape, found.codes.T, found.scales.T, found.minimums.T)
        self._shelf.put(name, _arrays(matrix))
        return matrix


def _by_input(config: ModelConfig, chosen: Collection[str]) -> dict[str, list[str]]:
    """The chosen matrices that read each value, by its name."""
    found: dict[str, list[str]] = {}
    for op in architectures.build(config).ops:
        if isinstance(op, Linear):
            names = found.setdefault(op.source, [])
            names += [name for name in op.weights if name in chosen and name not in names]
    return {source: names for source, names in found.items() if names}


def _arrays(matrix: QuantizedMatrix) -> dict[str, NDArray[Any]]:
    arrays: dict[str, NDArray[Any]] = {"codes": matrix.codes, "scales": matrix.scales}
    return arrays if matrix.minimums is None else {**arrays, "minimums": matrix.minimums}


PASS = GptqWeights

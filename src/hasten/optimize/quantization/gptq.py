"""GPTQ over a whole model: matrices in the order in which they run, each in a format of its own.

Frantar et al. 2022, https://arxiv.org/abs/2210.17323; `hasten.optimize.quantization.feedback` has
the arithmetic of one matrix.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hasten.generation.formats import MatrixFormat
from hasten.generation.reference import ReferenceExecutor
from hasten.kernels.quantization import QuantizedMatrix
from hasten.models import Model, architectures
from hasten.models.config import ModelConfig
from hasten.models.ops import Linear, Op
from hasten.models.weights import QuantizedTensor
from hasten.optimize.calibration import calibrate
from hasten.optimize.passes.interface import Workshop
from hasten.optimize.quantization.feedback import round_with_feedback
from hasten.optimize.quantization.gram import gram_of
from hasten.optimize.quantization.rounding import Grid, pad_columns
from hasten.optimize.quantization.shelf import Shelf, fingerprint

__all__ = ["check_damping", "products_by_input", "round_in_turn"]


def check_damping(damping: float) -> None:
    """Refuses a damping that is out of range.

    Raises:
        ValueError: Says what is allowed.
    """
    if not 1e-6 <= damping <= 1e6:
        raise ValueError(f"damping is {damping}; allowed: 1e-6 to 1e6")


def round_in_turn(
    model: Model,
    formats: Mapping[str, MatrixFormat],
    workshop: Workshop,
    *,
    damping: float,
    order: bool,
) -> dict[str, QuantizedTensor]:
    """Rounds matrices in the order of the model, with the inputs that rounded ones before give.

    Memory is that of the model in float32 twice, and of the text's values. Finished matrices are
    kept in the workshop's directory.

    Args:
        model: With the matrices as they are before.
        formats: Of the matrices to round, by name.
        workshop: Gives the text and the directory, and is told the matrix and the share done.
        damping: Share of the median square of inputs that is added to that of each.
        order: Rounds the columns with the largest inputs first.

    Raises:
        UnsupportedModelError: The model computes NaN or infinite values on the text.
    """
    if not formats:
        return {}
    run = _Run(model, formats, workshop, damping, order)
    calibrate(model, workshop.calibration, run.visit)
    return run.done


class _Run:
    """Rounds the matrices of one model as the calibration comes to them."""

    def __init__(
        self,
        model: Model,
        formats: Mapping[str, MatrixFormat],
        workshop: Workshop,
        damping: float,
        order: bool,
    ) -> None:
        self.done: dict[str, QuantizedTensor] = {}
        self._formats = formats
        self._damping = damping
        self._order = order
        self._waiting = products_by_input(model.config, formats)
        self._progress = workshop.progress
        parameters = {
            "formats": {name: str(form) for name, form in formats.items()},
            "damping": damping,
            "order": order,
        }
        key = fingerprint(model, workshop.calibration, parameters)
        self._shelf = Shelf(workshop.directory, key)

    def visit(
        self, executor: ReferenceExecutor, op: Op, values: Mapping[str, NDArray[np.float32]]
    ) -> None:
        """Rounds all matrices that read a value when the first of them is about to run."""
        names = self._waiting.pop(op.source, None) if isinstance(op, Linear) else None
        if not isinstance(op, Linear) or names is None:
            return
        for name in names:
            self._progress(f"GPTQ {name}", len(self.done) / len(self._formats))
        for form in dict.fromkeys(self._formats[name] for name in names):
            alike = [name for name in names if self._formats[name] == form]
            self._round(alike, form, executor, values[op.source])

    def _round(
        self,
        names: Sequence[str],
        form: MatrixFormat,
        executor: ReferenceExecutor,
        inputs: NDArray[np.float32],
    ) -> None:
        """Rounds matrices with the same inputs and format as one."""
        weights = [executor.weight(name) for name in names]
        joint = QuantizedTensor(names[0], self._rounded(names[0], weights, Grid(form), inputs))
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
        grid: Grid,
        inputs: NDArray[np.float32],
    ) -> QuantizedMatrix:
        """Matrices with the same inputs as one, the rows of each after those of the other."""
        shape = sum(len(matrix) for matrix in weights), inputs.shape[1]
        kept = self._shelf.take(name)
        if kept is not None:
            return QuantizedMatrix(grid.bits, shape, grid.form.group, **kept)
        whole = pad_columns(np.concatenate(weights).astype(np.float64))
        found = round_with_feedback(
            np.ascontiguousarray(whole.T),
            np.pad(gram_of(inputs), (0, whole.shape[1] - inputs.shape[1])),
            grid,
            damping=self._damping,
            order=self._order,
        )
        matrix = grid.pack(shape, found.codes.T, found.scales.T, found.minimums.T)
        self._shelf.put(name, _arrays(matrix))
        return matrix


def products_by_input(config: ModelConfig, chosen: Collection[str]) -> dict[str, list[str]]:
    """The chosen matrices that read each value, by its name, in the order of the model."""
    found: dict[str, list[str]] = {}
    for op in architectures.build(config).ops:
        if isinstance(op, Linear):
            names = found.setdefault(op.source, [])
            names += [name for name in op.weights if name in chosen and name not in names]
    return {source: names for source, names in found.items() if names}


def _arrays(matrix: QuantizedMatrix) -> dict[str, NDArray[Any]]:
    arrays: dict[str, NDArray[Any]] = {"codes": matrix.codes, "scales": matrix.scales}
    return arrays if matrix.minimums is None else {**arrays, "minimums": matrix.minimums}

"""The pass that changes weight formats: what it changes, and the tensors it leaves."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hasten.generation.formats import MatrixFormat, choose_formats, quantize_as
from hasten.kernels.quantization import QuantizedMatrix
from hasten.models import Model
from hasten.models.weights import DenseTensor, StoredTensor
from hasten.optimize.candidates import Candidate, matrix_shapes

__all__ = ["QuantizeWeights", "lossless"]

Weight = QuantizedMatrix | StoredTensor | NDArray[Any]


@dataclass(frozen=True, slots=True)
class QuantizeWeights:
    """Rounds matrices to nearest; a file's own codes stay where they have the format already.

    Attributes:
        candidate: Says the format of each matrix.
    """

    candidate: Candidate

    name = "quantize"

    def parameters(self) -> dict[str, Any]:
        """What it takes to do it again, as in the recipe."""
        return {
            "pass": self.name,
            "method": "round to nearest",
            "weights": self.candidate.weights,
            "overrides": dict(self.candidate.overrides),
        }

    def apply(self, model: Model) -> dict[str, Weight]:
        """All tensors of the model, in the formats that the candidate ran in."""
        formats = choose_formats(
            model.weights, matrix_shapes(model.weights), self.candidate.options(1)
        )
        return {
            name: _convert(tensor, formats[name]) if name in formats else tensor.to_float32()
            for name, tensor in model.weights.items()
        }

    def keep(self, model: Model) -> dict[str, Weight]:
        """All tensors as the files hold them, in what an artefact can store without loss."""
        return {name: lossless(tensor) for name, tensor in model.weights.items()}


def _convert(tensor: StoredTensor, form: MatrixFormat) -> Weight:
    if form.kind == "f32":
        return tensor.to_float32()
    if form.kind == "bf16":
        return DenseTensor(tensor.name, "BF16", _round_to_bf16(tensor.to_float32()))
    return quantize_as(tensor, form)


def lossless(tensor: StoredTensor) -> Weight:
    """A tensor as the files hold it, in what an artefact can store without loss."""
    if isinstance(tensor, DenseTensor):
        return tensor
    carried = tensor.quantized()
    return tensor.to_float32() if carried is None else carried


def _round_to_bf16(values: NDArray[np.float32]) -> NDArray[np.uint16]:
    """Bits of the nearest bfloat16, ties to even."""
    bits = np.ascontiguousarray(values).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)

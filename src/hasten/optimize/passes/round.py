"""Rounds weights to the nearest codes of an integer format, without a look at any text."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from hasten.models import Model
from hasten.models.weights import QuantizedTensor
from hasten.optimize.passes.interface import Need, Workshop
from hasten.optimize.quantization.integer_weights import IntegerWeights, rounded_vocabulary
from hasten.optimize.quantization.rounding import round_nearest

__all__ = ["PASS", "RoundWeights"]


@dataclass(frozen=True, slots=True)
class RoundWeights(IntegerWeights):
    """Rounds to nearest.

    Attributes:
        search: Scales and minimums are searched for the least squared error of each group; else
            the codes reach from its lowest to its highest value.
    """

    search: bool = False

    name: ClassVar[str] = "round"
    needs: ClassVar[frozenset[Need]] = frozenset()
    exact: ClassVar[bool] = False

    @property
    def label(self) -> str:
        """A few words with its parameters, for tables."""
        return f"round to {self.form}{self.extent}" + (", searched" if self.search else "")

    def apply(self, model: Model, workshop: Workshop) -> Model:
        """The model with rounded matrices.

        Raises:
            UsageError: It does not fit the model.
            ModelFileError: A weight is NaN or infinite.
        """
        self.check_fit(model)
        weights = dict(model.weights) | rounded_vocabulary(model, self.vocabulary)
        names = self.chosen(model)
        for index, name in enumerate(names):
            workshop.progress(f"rounding {name}", index / len(names))
            values = model.weights[name].to_float32()
            alike = np.ones(values.shape[1], np.float32) if self.search else None
            matrix = round_nearest(values, self.form, alike)
            weights[name] = QuantizedTensor(name, matrix)
        return model.derive(weights)


PASS = RoundWeights

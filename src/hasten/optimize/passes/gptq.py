"""GPTQ: rounds weights so that what the products yield on a text changes least.

Frantar et al. 2022, https://arxiv.org/abs/2210.17323; `hasten.optimize.quantization.gptq` says how.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from hasten.models import Model
from hasten.optimize.passes.interface import Need, Workshop
from hasten.optimize.quantization.gptq import check_damping, round_in_turn
from hasten.optimize.quantization.integer_weights import IntegerWeights, rounded_vocabulary

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
    exact: ClassVar[bool] = False

    def __post_init__(self) -> None:
        # The base by its name: `super()` does not work in a dataclass with slots.
        IntegerWeights.__post_init__(self)
        check_damping(self.damping)

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
        formats = dict.fromkeys(self.chosen(model), self.form)
        rounded = round_in_turn(model, formats, workshop, damping=self.damping, order=self.order)
        vocabulary = rounded_vocabulary(model, self.vocabulary)
        return model.derive({**model.weights, **vocabulary, **rounded})


PASS = GptqWeights

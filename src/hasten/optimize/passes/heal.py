"""The pass that lets a model learn from the original what earlier passes took from it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from hasten.generation.torch_extra import require_torch
from hasten.models import Model, architectures
from hasten.models.ops import Linear
from hasten.optimize.distillation.settings import DistillSettings
from hasten.optimize.passes.interface import Need, Prediction, Workshop

__all__ = ["PASS", "Heal", "predict_trained"]


@dataclass(frozen=True, slots=True)
class Heal(DistillSettings):
    """Distils the original into the model that it is given; the fields are the settings of that.

    What is trained becomes float32 or bfloat16, so a pass that quantises comes after it.
    """

    name: ClassVar[str] = "heal"
    needs: ClassVar[frozenset[Need]] = frozenset({"training", "calibration"})
    exact: ClassVar[bool] = False

    @property
    def label(self) -> str:
        """What is not as by default."""
        return "healed" + (f" ({self.changes})" if self.changes else "")

    def why_unfit(self, model: Model) -> str | None:
        """It has no logits."""
        if model.config.encoder is not None or model.config.output != "logits":
            return f"a model of type {model.config.model_type} has no logits to learn"
        return None

    def predict(self, model: Model) -> Prediction:
        """It saves nothing: what is trained becomes floats."""
        return predict_trained(model, model, self)

    def apply(self, model: Model, workshop: Workshop) -> Model:
        """The model with healed weights; see `hasten.optimize.distillation.distill` for errors."""
        require_torch("healing")
        from hasten.optimize.distillation.distill import distill

        return distill(
            model,
            workshop.original,
            workshop.training,
            self,
            workshop.directory,
            workshop.progress,
            seed=workshop.seed,
        )


PASS = Heal


def predict_trained(before: Model, student: Model, settings: DistillSettings) -> Prediction:
    """A student, whose trained matrices are floats, in place of a model."""
    width = 4 if settings.result == "f32" else 2
    ours, theirs = _products(student), _products(before)
    read = sum(
        width * count if settings.trains(name) else student.weights[name].nbytes
        for name, count in ours.items()
    )
    return Prediction(
        weight_bytes=read / sum(before.weights[name].nbytes for name in theirs),
        operations=sum(ours.values()) / sum(theirs.values()),
    )


def _products(model: Model) -> dict[str, int]:
    """Values of each matrix that a token is multiplied with."""
    ops = [op for op in architectures.build(model.config).ops if isinstance(op, Linear)]
    return {op.weights[0]: op.rows[0] * op.columns for op in ops}

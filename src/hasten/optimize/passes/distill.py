"""The pass that puts another, smaller model in the place of the original, which teaches it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from hasten.errors import HastenError, UsageError
from hasten.generation.torch_extra import require_torch
from hasten.models import Model, load_model
from hasten.optimize.distillation.settings import DistillSettings
from hasten.optimize.passes.heal import predict_trained
from hasten.optimize.passes.interface import Need, Prediction, Workshop

__all__ = ["PASS", "Distill"]


@dataclass(frozen=True, slots=True)
class Distill(DistillSettings):
    """Distils the original into a student; the other fields are the settings of that.

    Attributes:
        student: What `load_model` takes: its path, or its name.
        digest: SHA-256 that its files must have, as `Model.digest` says; empty takes any.
    """

    student: str = ""
    digest: str = ""

    name: ClassVar[str] = "distill"
    needs: ClassVar[frozenset[Need]] = frozenset({"training", "calibration"})
    exact: ClassVar[bool] = False

    @property
    def label(self) -> str:
        """Which student, and what is not as by default."""
        return f"{self.student} taught" + (f" ({self.changes})" if self.changes else "")

    def why_unfit(self, model: Model) -> str | None:
        """The student is not there, or has another vocabulary."""
        if model.config.encoder is not None or model.config.output != "logits":
            return f"a model of type {model.config.model_type} has no logits to teach"
        try:
            student = self._load()
        except HastenError as error:
            return str(error)
        sizes = [one.config.vocab_size for one in (student, model)]
        if sizes[0] != sizes[1]:
            return f"the student knows {sizes[0]} tokens and the model {sizes[1]}"
        return None

    def predict(self, model: Model) -> Prediction:
        """The student in place of the model."""
        return predict_trained(model, self._load(), self)

    def apply(self, model: Model, workshop: Workshop) -> Model:
        """The student after its lessons; see `hasten.optimize.distillation.distill` for errors."""
        require_torch("distillation")
        from hasten.optimize.distillation.distill import distill

        return distill(
            self._load(),
            workshop.original,
            workshop.training,
            self,
            workshop.directory,
            workshop.progress,
            seed=workshop.seed,
        )

    def _load(self) -> Model:
        if not self.student:
            raise UsageError("distillation without a student", do="give its path or name")
        found = load_model(self.student)
        if self.digest and found.digest() != self.digest:
            raise UsageError(
                f"the files of {self.student} have changed",
                do="give those of the recipe, whose SHA-256 is " + self.digest,
            )
        return found


PASS = Distill

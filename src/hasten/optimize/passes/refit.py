"""The pass that corrects what is left of a model, without training, to follow the original.

As ReplaceMe puts a linear map in the place of removed layers (Shopkhoev et al. 2025,
https://arxiv.org/abs/2505.02819): here each layer's last product is the map, and each is found with
the inputs that the corrected ones before it give.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from hasten.errors import UsageError
from hasten.generation.torch_extra import require_torch
from hasten.models import Model, architectures
from hasten.optimize.distillation.settings import DistillSettings
from hasten.optimize.passes.heal import predict_trained
from hasten.optimize.passes.interface import Need, Prediction, Workshop
from hasten.optimize.pruning.structure import stream_writers, why_no_decoder
from hasten.optimize.quantization.gram import check_ridge

__all__ = ["PASS", "Refit"]

_MOST = 1 << 24


@dataclass(frozen=True, slots=True)
class Refit:
    """Corrects the last product of each layer (`down_proj`) by least squares.

    What is corrected becomes float32, so a pass that quantises comes after it; a layer that
    follows the original as it is, as all before the first change do, keeps its tensor.

    Attributes:
        tokens: Of the text, at most.
        ridge: See `hasten.optimize.quantization.gram.damped`: keeps the correction of a matrix
            small where the text says little.
        layers: The original's layer that each layer stands for; empty finds them.

    Raises:
        UsageError: A value is out of range.
    """

    tokens: int = 16384
    ridge: float = 0.3
    layers: tuple[int, ...] = ()

    name: ClassVar[str] = "refit"
    needs: ClassVar[frozenset[Need]] = frozenset({"training", "calibration"})
    exact: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_ridge(self.ridge)
        if not 1 <= self.tokens <= _MOST:
            raise UsageError(f"refit with {self.tokens} tokens", allowed=f"1 to {_MOST}")

    @property
    def label(self) -> str:
        """On how much text."""
        return f"refitted on {self.tokens} tokens"

    def why_unfit(self, model: Model) -> str | None:
        """An encoder, or layers that do not end with a product."""
        if (reason := why_no_decoder(model.config)) is not None:
            return reason
        if stream_writers(architectures.build(model.config)) is None:
            return (
                f"layers of type {model.config.model_type} do not end with a product that is added"
                " to what goes through all layers"
            )
        return None

    def predict(self, model: Model) -> Prediction:
        """Corrected products become floats; taken to be all of them."""
        writers = stream_writers(architectures.build(model.config)) or []
        names = tuple(writer.product.weights[0] for writer in writers)
        return predict_trained(model, model, DistillSettings(train=names))

    def apply(self, model: Model, workshop: Workshop) -> Model:
        """The corrected model; see `hasten.optimize.distillation.follow.follow` for errors."""
        if (reason := self.why_unfit(model)) is not None:
            raise UsageError(reason)
        require_torch("refitting")
        from hasten.optimize.distillation.follow import follow

        return follow(model, self, workshop)


PASS = Refit

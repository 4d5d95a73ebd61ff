"""The pass that removes attention heads: key/value heads with the query heads that read them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from hasten.errors import UsageError
from hasten.models import Model, architectures
from hasten.models.config import ModelConfig
from hasten.optimize.passes.interface import Need, Prediction, Workshop
from hasten.optimize.pruning.narrowing import attention_insides, narrow
from hasten.optimize.pruning.structure import predict_shapes, why_no_decoder
from hasten.optimize.quantization.gram import check_ridge

__all__ = ["PASS", "PruneHeads"]


@dataclass(frozen=True, slots=True)
class PruneHeads:
    """Removes the same number of head groups from each layer: those that add least to the stream.

    Attributes:
        groups: Key/value heads to remove from each layer.
        reconstruct: Correct the output projection by least squares (see `pruning.narrowing`).
        ridge: See `damped`.

    Raises:
        UsageError: A value is out of range.
    """

    groups: int = 1
    reconstruct: bool = True
    ridge: float = 0.1

    name: ClassVar[str] = "prune_heads"
    needs: ClassVar[frozenset[Need]] = frozenset({"calibration"})
    exact: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if self.groups < 1:
            raise UsageError(f"{self.groups} head groups to remove", allowed="1 or more")
        check_ridge(self.ridge)

    @property
    def label(self) -> str:
        """How many groups, and whether the rest is left as it is."""
        words = f"{self.groups} head group{'s' * (self.groups != 1)} fewer"
        return words + ("" if self.reconstruct else ", uncorrected")

    def why_unfit(self, model: Model) -> str | None:
        """An encoder, or too few heads."""
        config = model.config
        if (reason := why_no_decoder(config)) is not None:
            return reason
        if self.groups >= config.num_kv_heads:
            return f"{self.groups} of {config.num_kv_heads} key/value heads cannot go"
        return None

    def predict(self, model: Model) -> Prediction:
        """The projections of attention become narrower."""
        return predict_shapes(model, self._narrowed(model.config))

    def apply(self, model: Model, workshop: Workshop) -> Model:
        """The model with fewer heads."""
        if (reason := self.why_unfit(model)) is not None:
            raise UsageError(reason)
        kv_heads = model.config.num_kv_heads
        weights = narrow(
            model,
            attention_insides(architectures.build(model.config), kv_heads),
            kv_heads - self.groups,
            workshop,
            reconstruct=self.reconstruct,
            ridge=self.ridge,
        )
        return model.derive(weights, self._narrowed(model.config))

    def _narrowed(self, config: ModelConfig) -> ModelConfig:
        kept = config.num_kv_heads - self.groups
        heads = config.num_heads // config.num_kv_heads * kept
        return replace(config, num_heads=heads, num_kv_heads=kept)


PASS = PruneHeads

"""The pass that removes channels of the feed-forward blocks: those that add least to the stream."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from hasten.errors import UsageError
from hasten.kernels.quantization import BLOCK
from hasten.models import Model, architectures
from hasten.models.config import ModelConfig
from hasten.optimize.passes.interface import Need, Prediction, Workshop
from hasten.optimize.pruning.narrowing import feed_forward_insides, narrow
from hasten.optimize.pruning.structure import predict_shapes, why_no_decoder
from hasten.optimize.quantization.gram import check_ridge

__all__ = ["PASS", "PruneChannels"]


@dataclass(frozen=True, slots=True)
class PruneChannels:
    """Removes the same number of channels from each feed-forward block.

    Those stay whose activation on the calibration text times their column of the last product has
    the largest squares: Wanda's score (Sun et al. 2023, https://arxiv.org/abs/2306.11695), over
    whole columns.

    Attributes:
        share: Of the channels to remove, in (0, 1); see `multiple`.
        reconstruct: Correct the columns that stay by least squares (see `pruning.narrowing`).
        multiple: The channels that stay are the nearest multiple of this, itself one of 32: weight
            formats need groups that divide them.
        ridge: See `damped`.

    Raises:
        UsageError: A value is out of range.
    """

    share: float
    reconstruct: bool = True
    multiple: int = 64
    ridge: float = 1.0

    name: ClassVar[str] = "prune_channels"
    needs: ClassVar[frozenset[Need]] = frozenset({"calibration"})
    exact: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if not 0 < self.share < 1:
            raise UsageError(f"a share of {self.share} of the channels", allowed="between 0 and 1")
        if self.multiple < BLOCK or self.multiple % BLOCK:
            raise UsageError(
                f"channels in multiples of {self.multiple}", allowed=f"multiples of {BLOCK}"
            )
        check_ridge(self.ridge)

    @property
    def label(self) -> str:
        """The share, and whether the rest is left as it is."""
        return f"{self.share:.0%} of channels fewer" + ("" if self.reconstruct else ", uncorrected")

    def why_unfit(self, model: Model) -> str | None:
        """An encoder, or nothing to remove."""
        config = model.config
        if (reason := why_no_decoder(config)) is not None:
            return reason
        if self._keep(config) >= config.intermediate_size:
            return (
                f"{self.share:.0%} of {config.intermediate_size} channels leave as many, in"
                f" multiples of {self.multiple}"
            )
        return None

    def predict(self, model: Model) -> Prediction:
        """The feed-forward blocks become narrower."""
        return predict_shapes(model, self._narrowed(model.config))

    def apply(self, model: Model, workshop: Workshop) -> Model:
        """The model with narrower feed-forward blocks."""
        if (reason := self.why_unfit(model)) is not None:
            raise UsageError(reason)
        weights = narrow(
            model,
            feed_forward_insides(architectures.build(model.config)),
            self._keep(model.config),
            workshop,
            reconstruct=self.reconstruct,
            ridge=self.ridge,
        )
        return model.derive(weights, self._narrowed(model.config))

    def _keep(self, config: ModelConfig) -> int:
        wanted = (1 - self.share) * config.intermediate_size
        return max(1, round(wanted / self.multiple)) * self.multiple

    def _narrowed(self, config: ModelConfig) -> ModelConfig:
        return replace(config, intermediate_size=self._keep(config))


PASS = PruneChannels

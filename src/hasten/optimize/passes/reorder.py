"""The pass that puts like channels of the feed-forward blocks side by side."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from hasten.errors import UnsupportedModelError, UsageError
from hasten.generation.reference import ReferenceExecutor
from hasten.models import Model, architectures
from hasten.models.ops import Linear, Op
from hasten.models.weights import DenseTensor, StoredTensor
from hasten.optimize.calibration import calibrate
from hasten.optimize.passes.interface import Need, Prediction, Workshop
from hasten.optimize.pruning.narrowing import Inside, feed_forward_insides, written_units

__all__ = ["PASS", "ReorderChannels", "reordered"]


@dataclass(frozen=True, slots=True)
class ReorderChannels:
    """Sorts the channels of each feed-forward block by the mean square of what runs through them.

    Nothing else changes: a channel's rows in the products before, and its column in the product
    after, move along. Formats with groups of columns then give channels of like size one scale, of
    activations and of weights, as in Yuan et al. 2023, "RPTQ", https://arxiv.org/abs/2304.01089.
    """

    name: ClassVar[str] = "reorder"
    needs: ClassVar[frozenset[Need]] = frozenset({"calibration"})
    exact: ClassVar[bool] = True

    @property
    def label(self) -> str:
        """What it does."""
        return "channels reordered"

    def why_unfit(self, model: Model) -> str | None:
        """No gated feed-forward blocks, or groups of codes that another order would tear apart.

        Whole groups could be moved, but that would change nothing for what is rounded later.
        """
        insides = feed_forward_insides(architectures.build(model.config))
        if not insides:
            return f"a model of type {model.config.model_type} has no gated feed-forward blocks"
        for inside in insides:
            reader = model.weights[inside.reader.weights[0]]
            if not isinstance(reader, DenseTensor):
                return (
                    f"{reader.name} holds groups of codes ({reader.encoding}), which another order"
                    " of columns would tear apart; it needs floating point"
                )
        return None

    def predict(self, model: Model) -> Prediction:
        """Nothing is saved."""
        return Prediction()

    def apply(self, model: Model, workshop: Workshop) -> Model:
        """The model with its channels in another order.

        Raises:
            UsageError: It does not fit the model.
            UnsupportedModelError: The model computes NaN or infinite values on the text.
        """
        if (reason := self.why_unfit(model)) is not None:
            raise UsageError(reason)
        insides = feed_forward_insides(architectures.build(model.config))
        waiting = {inside.reader: inside for inside in insides}
        weights = dict(model.weights)

        def look(
            executor: ReferenceExecutor, op: Op, values: Mapping[str, NDArray[np.float32]]
        ) -> None:
            if not isinstance(op, Linear) or op not in waiting:
                return
            done = 1 - len(waiting) / len(insides)
            workshop.progress(f"order of the columns of {op.weights[0]}", done)
            size = np.square(values[op.source], dtype=np.float64).mean(axis=0)
            if not np.isfinite(size).all():
                raise UnsupportedModelError("the model computes values that are not finite")
            order = np.argsort(-size, kind="stable")
            weights.update(reordered(weights, waiting.pop(op), order))

        calibrate(model, workshop.calibration, look)
        return model.derive(weights, replace(model.config, rearranged=True))


def reordered(
    weights: Mapping[str, StoredTensor], inside: Inside, order: NDArray[np.intp]
) -> dict[str, StoredTensor]:
    """The tensors of a feed-forward block when its channel order[i] has become channel i.

    Args:
        weights: By name.
        inside: The block.
        order: int [channels], a permutation.
    """
    name = inside.reader.weights[0]
    columns = weights[name].select_columns(name, order)
    return {**written_units(weights, inside, order), name: columns}


PASS = ReorderChannels

"""The pass that removes whole layers: those that change the residual stream least.

Men et al. 2024, "ShortGPT: Layers in Large Language Models are More Redundant Than You Expect",
https://arxiv.org/abs/2403.03853.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from hasten.errors import UnsupportedModelError, UsageError
from hasten.generation.reference import ReferenceExecutor
from hasten.measure.corpus import Windows
from hasten.models import Model, architectures
from hasten.models.config import ModelConfig
from hasten.models.ops import Op, output_of
from hasten.optimize.calibration import calibrate
from hasten.optimize.passes.interface import Need, Prediction, Workshop
from hasten.optimize.pruning.structure import (
    layer_of,
    predict_shapes,
    residual_stream,
    why_no_decoder,
    with_layer,
)

__all__ = ["PASS", "PruneLayers", "block_influence", "without_layers"]


@dataclass(frozen=True, slots=True)
class PruneLayers:
    """Removes layers and leaves the others as they are.

    Attributes:
        count: How many, those of least influence, never the first or the last; 0 with `layers`.
        layers: Which, counted from 0; empty with `count`.
        iterative: With `count`: measures anew after each layer that was removed.

    Raises:
        UsageError: Not exactly one of `count` and `layers` is given, or a number is out of range.
    """

    count: int = 0
    layers: tuple[int, ...] = ()
    iterative: bool = False

    name: ClassVar[str] = "prune_layers"
    needs: ClassVar[frozenset[Need]] = frozenset({"calibration"})
    exact: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if self.count < 0 or (self.count > 0) == bool(self.layers):
            raise UsageError(
                f"prune_layers with count {self.count} and layers {list(self.layers)}",
                allowed="either a count of 1 or more, or a list of layers",
            )
        if min(self.layers, default=0) < 0 or len(set(self.layers)) < len(self.layers):
            raise UsageError(
                f"prune_layers with layers {list(self.layers)}",
                allowed="numbers of layers from 0, each once",
            )

    @property
    def label(self) -> str:
        """How many layers go, or which."""
        if self.layers:
            return "without layers " + ", ".join(map(str, sorted(self.layers)))
        one_by_one = ", one by one" if self.iterative else ""
        return f"{self.count} layer{'s' * (self.count != 1)} fewer{one_by_one}"

    def why_unfit(self, model: Model) -> str | None:
        """An encoder, or too few layers."""
        config = model.config
        if config.encoder is not None:
            return (
                f"a model of type {config.model_type} is an encoder; layers of decoders are removed"
            )
        if self.layers:
            if max(self.layers) >= config.num_layers:
                return f"there is no layer {max(self.layers)}; the model has {config.num_layers}"
            return "no layer would be left" if len(self.layers) == config.num_layers else None
        if self.count > config.num_layers - 2:
            return (
                f"{self.count} of {config.num_layers} layers cannot go, since the first and the"
                " last stay"
            )
        return None

    def predict(self, model: Model) -> Prediction:
        """Any layers of a decoder are of one size."""
        gone = self.layers or range(self.count)
        return predict_shapes(model, _without(model.config, gone))

    def apply(self, model: Model, workshop: Workshop) -> Model:
        """The model without those layers."""
        if (reason := self.why_unfit(model)) is not None:
            raise UsageError(reason)
        gone = self.layers or self._choose(model, workshop)
        workshop.progress(f"without layers {', '.join(map(str, sorted(gone)))}", 1.0)
        return without_layers(model, gone)

    def _choose(self, model: Model, workshop: Workshop) -> list[int]:
        gone: list[int] = []
        at_once = 1 if self.iterative else self.count
        while len(gone) < self.count:
            workshop.progress("measuring the influence of each layer", len(gone) / self.count)
            kept = [layer for layer in range(model.config.num_layers) if layer not in gone]
            influence = block_influence(without_layers(model, gone), workshop.calibration)
            inner = sorted(range(1, len(kept) - 1), key=lambda place: influence[place])
            gone += [kept[place] for place in inner[:at_once]]
        return gone


PASS = PruneLayers


def block_influence(model: Model, windows: Windows) -> list[float]:
    """How much each layer of a decoder changes the residual stream (ShortGPT, section 3).

    Args:
        model: A decoder.
        windows: Text.

    Returns:
        For each layer 1 - the mean over all tokens of the cosine between the stream before and
        after it; 0 for a layer that changes nothing.

    Raises:
        UnsupportedModelError: It is an encoder, or its values are not finite.
    """
    if (reason := why_no_decoder(model.config)) is not None:
        raise UnsupportedModelError(reason)
    stream = residual_stream(architectures.build(model.config))
    influence: list[float] = []
    before: list[NDArray[np.float32]] = []

    def look(_: ReferenceExecutor, op: Op, values: Mapping[str, NDArray[np.float32]]) -> None:
        if (name := stream.get(output_of(op))) is None:
            return
        if before:
            influence.append(1 - _mean_cosine(before.pop(), values[name]))
        before.append(values[name])

    calibrate(model, windows, look)
    if not np.isfinite(influence).all():
        raise UnsupportedModelError("the model computes values that are not finite")
    return influence


def without_layers(model: Model, gone: Collection[int]) -> Model:
    """The model without some of its layers; those after them are numbered anew.

    Args:
        model: A decoder.
        gone: Numbers of layers; at least one other is left.
    """
    names = _renamed(model.weights, model.config.num_layers, gone)
    weights = {
        new: tensor.take_rows(new, 0, tensor.shape[0])
        for name, tensor in model.weights.items()
        if (new := names.get(name)) is not None
    }
    return model.derive(weights, _without(model.config, gone))


def _renamed(names: Iterable[str], layers: int, gone: Collection[int]) -> dict[str, str]:
    """The new name of each tensor or module that stays."""
    kept = [layer for layer in range(layers) if layer not in gone]
    places = {None: 0} | {layer: place for place, layer in enumerate(kept)}
    return {
        name: with_layer(name, places[layer_of(name)]) for name in names if layer_of(name) in places
    }


def _without(config: ModelConfig, gone: Collection[int]) -> ModelConfig:
    types = tuple(one for layer, one in enumerate(config.layer_types) if layer not in gone)
    # What is left may be all of one kind, which configurations say without a list.
    alike = len(set(types)) < 2
    full = alike and "full_attention" in types
    names = _renamed((module for module, _ in config.factored), config.num_layers, gone)
    return replace(
        config,
        num_layers=config.num_layers - len(gone),
        layer_types=() if alike else types,
        sliding_window=None if full else config.sliding_window,
        factored=tuple((names[one], rank) for one, rank in config.factored if one in names),
        rearranged=True,
    )


def _mean_cosine(a: NDArray[np.float32], b: NDArray[np.float32]) -> float:
    """The mean over rows; a row of zeros is like none other."""
    products = np.einsum("tw,tw->t", a, b, dtype=np.float64)
    squares = np.einsum("tw,tw->t", a, a, dtype=np.float64)
    squares *= np.einsum("tw,tw->t", b, b, dtype=np.float64)
    return float(np.mean(products / np.sqrt(np.maximum(squares, np.finfo(np.float64).tiny))))

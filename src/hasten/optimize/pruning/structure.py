"""Where the layers of a model begin and end, and what a model of other shapes would save."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from hasten.models import Model, architectures
from hasten.models.config import ModelConfig
from hasten.models.graph import Graph
from hasten.models.inventory import tensors_of
from hasten.models.ops import Add, Linear, Scale, Select, output_of
from hasten.optimize.passes.interface import Prediction

__all__ = [
    "Writer",
    "corresponding_layers",
    "layer_of",
    "predict_shapes",
    "residual_stream",
    "stream_writers",
    "why_no_decoder",
    "with_layer",
]

_LAYER: Final = re.compile(r"(model\.layers\.)(\d+)(\..+)")


def why_no_decoder(config: ModelConfig) -> str | None:
    """Why a pass for decoders cannot change a model, or None."""
    if config.encoder is None:
        return None
    return f"a model of type {config.model_type} is an encoder; this pass changes decoders"


def layer_of(tensor: str) -> int | None:
    """The number of the layer that a tensor of a decoder belongs to; None outside the layers."""
    match = _LAYER.fullmatch(tensor)
    return None if match is None else int(match[2])


def with_layer(tensor: str, layer: int) -> str:
    """The name of the same tensor in another layer; a name outside the layers stays."""
    return _LAYER.sub(rf"\g<1>{layer}\g<3>", tensor)


def residual_stream(graph: Graph) -> dict[str, str]:
    """The residual stream of a decoder: before each layer in order, and after the last.

    Returns:
        Names of the values, by the output of the first op that reads each.
    """
    found: dict[str, str] = {}
    begun: set[int | None] = {None}
    for op in graph.ops:
        layers = {layer_of(name) for name in tensors_of(op, 0)}
        if isinstance(op, Select) or not layers <= begun:
            found[output_of(op)] = graph.inputs(op)[0]
        begun |= layers
    return found


@dataclass(frozen=True, slots=True)
class Writer:
    """The last product of a layer that is added to the residual stream.

    Attributes:
        product: The product.
        factor: What multiplies it before it is added.
    """

    product: Linear
    factor: float


def stream_writers(graph: Graph) -> list[Writer] | None:
    """The last writer of each layer of a decoder; None if a layer ends with something else."""
    producers = {output_of(op): op for op in graph.ops}
    found = []
    for name in list(residual_stream(graph).values())[1:]:
        total = producers[name]
        if not isinstance(total, Add):
            return None
        added = producers[total.b]
        factor = added.factor if isinstance(added, Scale) else 1.0
        product = producers[added.source] if isinstance(added, Scale) else added
        if not isinstance(product, Linear):
            return None
        found.append(Writer(product, factor))
    return found


def predict_shapes(model: Model, config: ModelConfig) -> Prediction:
    """What a model of another configuration saves.

    A matrix counts with the bytes a value of the model's own matrix of that name, so what is
    predicted holds as long as the formats stay.
    """
    values = {name: math.prod(tensor.shape) for name, tensor in model.weights.items()}
    density = {name: model.weights[name].nbytes / count for name, count in values.items()}
    for module, _ in set(config.factored) - set(model.config.factored):
        for part in ("down", "up"):
            density[f"{module}.{part}.weight"] = density[f"{module}.weight"]
    before, after = _products(model.config), _products(config)
    return Prediction(
        weight_bytes=_weighted(after, density) / _weighted(before, density),
        operations=sum(after.values()) / sum(before.values()),
    )


def _products(config: ModelConfig) -> dict[str, int]:
    """Values of each matrix that a token is multiplied with."""
    ops = [op for op in architectures.build(config).ops if isinstance(op, Linear)]
    return {op.weights[0]: op.rows[0] * op.columns for op in ops}


def _weighted(values: Mapping[str, int], density: Mapping[str, float]) -> float:
    return sum(count * density[name] for name, count in values.items())


def corresponding_layers(student: Model, teacher: Model) -> tuple[int, ...] | None:
    """The teacher's layer that each layer of a student was made of; None if that is not to be seen.

    Passes that remove parts of a model leave the vectors of the norms of what stays, so a layer is
    known by them.
    """
    signs = [_signs(model) for model in (student, teacher)]
    found: list[int] = []
    for sign in signs[0]:
        after = found[-1] + 1 if found else 0
        same = [place for place in range(after, len(signs[1])) if signs[1][place] == sign]
        if not sign or not same:
            return None
        found.append(same[0])
    return tuple(found)


def _signs(model: Model) -> list[bytes]:
    """The norms' vectors of each layer."""
    signs = [b""] * model.config.num_layers
    for name, tensor in model.weights.items():
        layer = layer_of(name)
        if layer is not None and name.endswith("layernorm.weight"):
            signs[layer] += tensor.to_float32().tobytes()
    return signs

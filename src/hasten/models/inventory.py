"""Which tensors a model must have, and of what shape."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

from hasten.errors import ModelFileError
from hasten.models import architectures
from hasten.models.config import ModelConfig
from hasten.models.ops import AddRow, Embed, EmbedPosition, LayerNorm, Linear, Op, RmsNorm
from hasten.models.weights import StoredTensor

__all__ = ["check_inventory", "tensor_shapes", "tensors_of"]

_Tensor = TypeVar("_Tensor", bound=StoredTensor)
_IGNORED_SUFFIXES = (".rotary_emb.inv_freq",)
"""Buffers that older checkpoints carry and that follow from the configuration."""


def tensor_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor that the family's graph uses, in the order it uses them."""
    shapes: dict[str, tuple[int, ...]] = {}
    for op in architectures.build(config).ops:
        shapes |= tensors_of(op, config.vocab_size)
    return shapes


def tensors_of(op: Op, vocab_size: int) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor that an op of an unfused graph uses."""
    match op:
        case Embed():
            return {op.weight: (vocab_size, op.width)}
        case EmbedPosition() | AddRow():
            return {op.weight: (op.rows, op.width)}
        case LayerNorm():
            return {op.weight: (op.width,), op.bias: (op.width,)}
        case RmsNorm():
            return {op.weight: (op.width // op.heads,)}
        case Linear():
            matrices = zip(op.weights, op.rows, strict=True)
            biases = zip(op.biases, op.rows, strict=False)
            return {
                **{name: (rows, op.columns) for name, rows in matrices},
                **{name: (rows,) for name, rows in biases},
            }
    return {}


def check_inventory(config: ModelConfig, found: Mapping[str, _Tensor]) -> dict[str, _Tensor]:
    """The tensors that the configuration implies, after a check of their shapes.

    A tensor that the configuration does not know is an error, because leaving it out (a bias, an
    extra norm) would change what the model computes.

    Raises:
        ModelFileError: A tensor is missing, superfluous or of another shape.
    """
    shapes = tensor_shapes(config)
    for name, shape in shapes.items():
        if name not in found:
            raise ModelFileError(
                f"tensor {name!r} is missing; the configuration implies one of shape {list(shape)}"
            )
        if found[name].shape != shape:
            raise ModelFileError(
                f"tensor {name!r} has shape {list(found[name].shape)}, "
                f"but the configuration implies {list(shape)}"
            )
    for name in found.keys() - shapes.keys():
        unused_head = name == "lm_head.weight" and (
            config.tie_embeddings or config.output == "hidden"
        )
        if not unused_head and not name.endswith(_IGNORED_SUFFIXES):
            raise ModelFileError(
                f"tensor {name!r} has no place in a {config.model_type} model of this configuration"
            )
    return {name: found[name] for name in shapes}

"""Scales of a product's inputs that what comes before it can take over.

diag(1 / s) in a norm's weight, or in the rows of another product, and diag(s) in the columns that
read them leave the function of a model as it is. Where that can be done is read from the graph.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hasten.models.config import ModelConfig
from hasten.models.graph import Graph
from hasten.models.ops import (
    Attention,
    GeluMul,
    KvWrite,
    LayerNorm,
    Linear,
    Op,
    RmsNorm,
    SiluMul,
    output_of,
)

__all__ = ["Fold", "find_folds", "fold"]

Values = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Fold:
    """A place where a scale of inputs can go.

    Attributes:
        source: Name of the value that is scaled.
        columns: The matrices whose columns take s.
        rows: The vectors and matrices whose entries or rows take 1 / s.
        offset: What the norm adds to its weight; 0 for a product.
        heads: (query heads, key/value heads) where each head of the product before is read by
            several query heads, so that their columns have the same scale; else (1, 1).
    """

    source: str
    columns: tuple[str, ...]
    rows: tuple[str, ...]
    offset: float = 0.0
    heads: tuple[int, int] = (1, 1)

    def pooled(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """One value for each entry of `rows`: the mean over the columns that share a scale."""
        query, key = self.heads
        means: NDArray[np.float64] = values.reshape(key, query // key, -1).mean(axis=1)
        return means.reshape(-1)

    def spread(self, scale: NDArray[np.float64]) -> NDArray[np.float64]:
        """The scale of each column, from that of each entry of `rows`."""
        query, key = self.heads
        heads = np.repeat(scale.reshape(key, 1, -1), query // key, axis=1)
        return heads.reshape(-1)


def find_folds(graph: Graph, config: ModelConfig) -> list[Fold]:
    """The places of a graph, in the order of the values they scale."""
    readers: dict[str, list[Op]] = {}
    uses: dict[str, int] = {}
    for op in graph.ops:
        for name in graph.inputs(op):
            readers.setdefault(name, []).append(op)
        for name in _tensors(op):
            uses[name] = uses.get(name, 0) + 1
    producers = {output_of(op): op for op in graph.ops}
    written = {op.layer: op for op in graph.ops if isinstance(op, KvWrite)}
    found = []
    for source, ops in readers.items():
        products = [op for op in ops if isinstance(op, Linear)]
        if source == graph.output or len(products) != len(ops):
            continue
        columns = tuple(name for op in products for name in op.weights)
        place = _place(producers[source], producers, readers, written, config)
        # A tensor that is used elsewhere, too, would change what is computed there.
        if place is not None and all(uses[name] == 1 for name in (*columns, *place[0])):
            found.append(Fold(source, columns, *place))
    return found


def fold(
    tensors: Mapping[str, Values], place: Fold, scale: NDArray[np.float64]
) -> dict[str, Values]:
    """The tensors of a place after the scale.

    Args:
        tensors: By name.
        place: Where.
        scale: Of each entry of `place.rows`, above 0.
    """
    wide = place.spread(scale)
    found = {name: (tensors[name] * wide).astype(np.float32) for name in place.columns}
    for name in place.rows:
        values = tensors[name].astype(np.float64)
        divisor = scale if values.ndim == 1 else scale[:, None]
        found[name] = ((values + place.offset) / divisor - place.offset).astype(np.float32)
    return found


def _place(
    producer: Op,
    producers: Mapping[str, Op],
    readers: Mapping[str, Sequence[Op]],
    written: Mapping[int, KvWrite],
    config: ModelConfig,
) -> tuple[tuple[str, ...], float, tuple[int, int]] | None:
    """What takes the inverse of a scale of what `producer` yields: the fields of a `Fold`."""
    match producer:
        case RmsNorm(heads=1):
            return (producer.weight,), producer.offset, (1, 1)
        case LayerNorm():
            return (producer.weight, producer.bias), 0.0, (1, 1)
        case SiluMul() | GeluMul():
            before, heads = producers[producer.up], (1, 1)
        case Attention():
            before = producers[written[producer.layer].value]
            heads = (producer.heads, config.num_kv_heads)
        case _:
            return None
    if not isinstance(before, Linear) or len(readers[before.out]) != 1:
        return None
    return (*before.weights, *before.biases), 0.0, heads


def _tensors(op: Op) -> tuple[str, ...]:
    match op:
        case Linear():
            return (*op.weights, *op.biases)
        case LayerNorm():
            return (op.weight, op.bias)
        case _:
            weight = getattr(op, "weight", None)
            return () if weight is None else (weight,)

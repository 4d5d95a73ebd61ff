"""Makes the inside of blocks narrower: channels of a feed-forward block, heads of attention.

In both, a few products write the inside of the block and one product reads it. A unit of it (a
channel; a key/value head with its query heads) is removed as rows of the former and columns of the
latter, and the columns that stay can be corrected so that the product's outputs on a text change
least, a linear least-squares problem (as in Frantar and Alistarh 2022, "Optimal Brain Compression",
https://arxiv.org/abs/2208.11580, and Kurtic et al. 2023, "ZipLM", https://arxiv.org/abs/2302.04089).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hasten.generation.reference import ReferenceExecutor
from hasten.models import Model
from hasten.models.graph import Graph
from hasten.models.ops import Attention, GeluMul, KvWrite, Linear, Op, SiluMul, output_of
from hasten.models.weights import DenseTensor, StoredTensor
from hasten.optimize.calibration import calibrate
from hasten.optimize.passes.interface import Workshop
from hasten.optimize.quantization.gram import damped, gram_of

__all__ = [
    "Inside",
    "attention_insides",
    "feed_forward_insides",
    "least_squares",
    "narrow",
    "written_units",
]

Array = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Inside:
    """The inside of a block.

    Attributes:
        writers: Products whose rows are divided among the units, in the order of the units.
        reader: The product whose columns are divided so.
        units: How many there are.
    """

    writers: tuple[Linear, ...]
    reader: Linear
    units: int


def feed_forward_insides(graph: Graph) -> list[Inside]:
    """Gated feed-forward blocks, whose units are channels."""
    producers, readers = _producers(graph), _readers(graph)
    found = []
    for op in graph.ops:
        if isinstance(op, SiluMul | GeluMul):
            writers = tuple(_product_before(name, graph, producers) for name in (op.gate, op.up))
            found.append(Inside(writers, readers[op.out], op.width))
    return found


def attention_insides(graph: Graph, kv_heads: int) -> list[Inside]:
    """Attention, whose units are key/value heads with the query heads that read them."""
    producers, readers = _producers(graph), _readers(graph)
    stored = {op.layer: op for op in graph.ops if isinstance(op, KvWrite)}
    found = []
    for op in graph.ops:
        if isinstance(op, Attention):
            names = (op.source, stored[op.layer].key, stored[op.layer].value)
            writers = tuple(_product_before(name, graph, producers) for name in names)
            found.append(Inside(writers, readers[op.out], kv_heads))
    return found


def narrow(
    model: Model,
    insides: Sequence[Inside],
    keep: int,
    workshop: Workshop,
    *,
    reconstruct: bool,
    ridge: float,
) -> dict[str, StoredTensor]:
    """The tensors of the model with fewer units in each block, chosen on the calibration text.

    One block after another, so that a later one is looked at, and corrected, with what those before
    it compute now.

    Args:
        model: The model.
        insides: The blocks, in the order in which the graph runs them.
        keep: Units that stay in each.
        workshop: Gives the text.
        reconstruct: Correct the columns that stay.
        ridge: See `least_squares`.

    Raises:
        UnsupportedModelError: The model computes values that are not finite.
    """
    by_reader = {inside.reader.out: inside for inside in insides}
    kept: dict[str, NDArray[np.intp]] = {}
    changed: dict[str, StoredTensor] = {}

    def look(executor: ReferenceExecutor, op: Op, values: Mapping[str, Array]) -> None:
        inside = by_reader.get(output_of(op))
        if inside is None:
            return
        workshop.progress(f"block {len(kept) + 1} of {len(insides)}", len(kept) / len(insides))
        name = inside.reader.weights[0]
        matrix = executor.weight(name)
        gram = gram_of(values[inside.reader.source])
        units = _heaviest(gram, matrix, inside.units, keep)
        columns = _members(units, inside.reader.columns // inside.units)
        masked = np.zeros_like(matrix)
        masked[:, columns] = matrix[:, columns]
        if reconstruct:
            masked[:, columns] += least_squares(gram, matrix, columns, ridge)
        executor.replace_weight(name, masked)
        kept[inside.reader.out] = units
        changed[name] = DenseTensor(name, "F32", np.ascontiguousarray(masked[:, columns]))

    calibrate(model, workshop.calibration, look)
    for inside in insides:
        changed |= written_units(model.weights, inside, kept[inside.reader.out])
    workshop.progress(f"{keep} of {insides[0].units} stay", 1.0)
    return {**model.weights, **changed}


def written_units(
    weights: Mapping[str, StoredTensor], inside: Inside, units: NDArray[np.intp]
) -> dict[str, StoredTensor]:
    """The tensors that write the inside of a block, with these of its units in this order."""
    changed = {}
    for writer in inside.writers:
        rows = _members(units, writer.rows[0] // inside.units)
        for name in writer.weights + writer.biases:
            changed[name] = weights[name].select_rows(name, rows)
    return changed


def least_squares(
    gram: NDArray[np.float64], matrix: Array, columns: NDArray[np.intp], ridge: float
) -> Array:
    """What to add to the columns that stay, so that they stand in for those that go.

    Args:
        gram: float64 [columns, columns], X^T X of the inputs X.
        matrix: float32 [rows, columns].
        columns: Those that stay.
        ridge: The squares of what is added count too, by as much: see `damped`.

    Returns:
        D, float32 [rows, those that stay], which minimises
        |X_stay D^T - X_gone W_gone^T|^2 + ridge * mean(diagonal of the gram) * |D|^2.
    """
    gone = np.setdiff1d(np.arange(len(gram)), columns)
    system = damped(gram, ridge)[np.ix_(columns, columns)]
    target = gram[np.ix_(columns, gone)] @ matrix[:, gone].T.astype(np.float64)
    found: Array = np.linalg.solve(system, target).T.astype(np.float32)
    return found


def _heaviest(gram: NDArray[np.float64], matrix: Array, units: int, keep: int) -> NDArray[np.intp]:
    """The units whose part of the outputs has the largest squares, in ascending order."""
    width = len(gram) // units
    parts = matrix.astype(np.float64).reshape(len(matrix), units, width)
    blocks = np.stack([gram[i : i + width, i : i + width] for i in range(0, len(gram), width)])
    energy = np.einsum("ruw,uwv,ruv->u", parts, blocks, parts, optimize=True)
    heaviest: NDArray[np.intp] = np.sort(np.argsort(-energy, kind="stable")[:keep])
    return heaviest


def _members(units: NDArray[np.intp], width: int) -> NDArray[np.intp]:
    """The rows or columns of units of this width."""
    members: NDArray[np.intp] = (units[:, None] * width + np.arange(width)).reshape(-1)
    return members


def _producers(graph: Graph) -> dict[str, Op]:
    return {output_of(op): op for op in graph.ops}


def _readers(graph: Graph) -> dict[str, Linear]:
    """The product that reads each value; the last, if several do."""
    return {op.source: op for op in graph.ops if isinstance(op, Linear)}


def _product_before(name: str, graph: Graph, producers: Mapping[str, Op]) -> Linear:
    """The product behind a value: before norms of its heads and RoPE, which work in each head."""
    op = producers[name]
    while not isinstance(op, Linear):
        op = producers[graph.inputs(op)[0]]
    return op

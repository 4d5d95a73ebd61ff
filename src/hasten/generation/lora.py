"""LoRA adapters in the native executor: their matrices in the layout of the fused products."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from hasten import _native
from hasten.generation.formats import product_rows
from hasten.kernels.lora import LORA_PANEL
from hasten.models.lora import LoraWeight
from hasten.models.ops import Linear, LoraShrink

__all__ = ["LoraSites"]


class LoraSites:
    """The products of a program that adapters change.

    Args:
        program: Under construction.
        form: Of the adapters' matrices, "f32" or "bf16".
    """

    def __init__(self, program: _native.Program, form: str) -> None:
        self._program = program
        self._form = form
        self._numbers: dict[str, int] = {}
        self._sites: list[tuple[int, Linear, NDArray[np.int32] | None]] = []

    def shrink(self, op: LoraShrink, source: int, out: int) -> None:
        """Adds the op to the program, from one buffer to another."""
        self._numbers[op.out] = self._program.lora_shrink(source, out)

    def expand(self, op: Linear, order: NDArray[np.int32] | None) -> int:
        """The site of a product, -1 without one.

        Args:
            op: The product.
            order: Which column of the matrix each column of its input is; None if they are equal.
        """
        if op.lora is None:
            return -1
        number = self._numbers[op.lora]
        self._sites.append((number, op, order))
        return number

    def load(self, slot: int, weights: Mapping[str, LoraWeight]) -> None:
        """Puts an adapter into a slot of every site; waits for a run of the program to end."""
        pairs = [_pack_pair(op, weights, order, self._form) for _, op, order in self._sites]
        for (site, _, _), pair in zip(self._sites, pairs, strict=True):
            self._program.set_adapter(site, slot, pair)


def _pack_pair(
    op: Linear, weights: Mapping[str, LoraWeight], order: NDArray[np.int32] | None, form: str
) -> _native.LoraPair | None:
    """What an adapter adds to one product of the lowered graph, or None if nothing.

    The A of the product's tensors lie one after another, the B at the tensors' own rows, so that a
    panel of 16 rows multiplies with the A x of the tensors in it alone. Tensors that share an A
    (the parts of one tensor of the file) share its rows.
    """
    parts = [(i, weights[name]) for i, name in enumerate(op.weights) if name in weights]
    if not parts:
        return None
    targets, rows = product_rows(op.rows, gated=op.gated)
    firsts = _place_ranks([weight for _, weight in parts])
    rank = max(first + weight.rank for first, (_, weight) in zip(firsts, parts, strict=True))
    a, scales = np.zeros((rank, op.columns), np.float32), np.zeros(rank, np.float32)
    b = np.zeros((rows, rank), np.float32)
    spans = np.full((-(-rows // LORA_PANEL), 2), (rank, 0), np.int32)
    for first, (i, weight) in zip(firsts, parts, strict=True):
        end = first + weight.rank
        a[first:end], scales[first:end] = weight.a, weight.scale
        b[targets[i], first:end] = weight.b
        panels = np.unique(targets[i] // LORA_PANEL)
        spans[panels, 0] = np.minimum(spans[panels, 0], first)
        spans[panels, 1] = np.maximum(spans[panels, 1], end)
    spans[:, 0] = np.minimum(spans[:, 0], spans[:, 1])
    if order is not None:
        a = np.ascontiguousarray(a[:, order])
    return _native.LoraPair(form, a, b, scales, spans)


def _place_ranks(weights: list[LoraWeight]) -> list[int]:
    """The first row of each A in the A of the whole product."""
    firsts: list[int] = []
    end = 0
    for i, weight in enumerate(weights):
        twin = next((k for k in range(i) if weights[k].a is weight.a), None)
        firsts.append(end if twin is None else firsts[twin])
        end += weight.rank if twin is None else 0
    return firsts

"""Runs the calibration text through a model once, and shows what each op is given."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

from hasten.generation.kvcache import blocks_for
from hasten.generation.reference import ReferenceExecutor
from hasten.measure.corpus import Windows
from hasten.models import Model
from hasten.models.ops import Op
from hasten.types import Batch

__all__ = ["Visitor", "calibrate"]


Visitor = Callable[[ReferenceExecutor, Op, Mapping[str, NDArray[np.float32]]], None]


def calibrate(model: Model, windows: Windows, visit: Visitor) -> None:
    """Runs all windows in one batch, in float32 and op by op.

    So an op's inputs are there for all tokens at once, and a weight that is replaced is what the
    ops after it are computed with: one run visits the model in the order that GPTQ needs.

    Args:
        model: Whose graph to run.
        windows: The tokens.
        visit: Given the executor, each op before it runs, and the values that are alive by name,
            float32 [tokens of all windows, width]; it must not change those.
    """
    batch, blocks = _one_batch(windows)
    executor = ReferenceExecutor(model, blocks, windows.context)
    with executor.observe(lambda op, values: visit(executor, op, values)):
        executor.run(batch)


def _one_batch(windows: Windows) -> tuple[Batch, int]:
    """All windows as sequences of one batch, logits of each one's last token; and its KV blocks."""
    lengths = [len(window) for window in windows.ids]
    counts = [blocks_for(length) for length in lengths]
    tables = np.full((len(lengths), max(counts)), -1, np.int32)
    first = 0
    for row, count in enumerate(counts):
        tables[row, :count] = np.arange(first, first + count)
        first += count
    starts = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    positions = np.concatenate([np.arange(length, dtype=np.int32) for length in lengths])
    tokens = np.concatenate([np.asarray(window, np.int32) for window in windows.ids])
    return Batch(tokens, positions, starts, tables, starts[1:] - 1), first

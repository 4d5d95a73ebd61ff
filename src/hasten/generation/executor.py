"""What every executor offers, and the choice of one."""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from hasten.models.model import Model
from hasten.types import Batch, EngineOptions

__all__ = ["Executor", "make_executor"]


class Executor(Protocol):
    """Runs batches of one model; holds its packed weights and the KV cache."""

    isa: str
    threads: int
    formats: dict[str, str]
    memory: dict[str, int]

    def run(self, batch: Batch) -> NDArray[np.float32]:
        """Output of the graph for the batch's `logit_rows`; the tokens' keys and values stay.

        Logits [rows, vocab], or last hidden states [rows, hidden] of a model that ends with them.
        """
        ...


def make_executor(model: Model, options: EngineOptions, blocks: int, context: int) -> Executor:
    """The executor that the options name.

    Args:
        model: Whose weights to bind.
        options: Which executor, and how.
        blocks: KV blocks to hold.
        context: Positions of the longest sequence.
    """
    if options.executor == "reference":
        from hasten.generation.reference import ReferenceExecutor

        return ReferenceExecutor(model, blocks, context)
    from hasten.generation.native import NativeExecutor

    return NativeExecutor(model, options, blocks, context)

"""What the ops of an executor took, summed over steps by phase; and what those steps computed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from hasten.errors import UsageError
from hasten.models.graph import Graph
from hasten.types import Batch

__all__ = ["OpTimes", "Phase", "PhaseTimes", "ProfiledExecutor", "phase_of"]

Phase = Literal["prefill", "decode", "mixed"]


def phase_of(batch: Batch) -> Phase:
    """Whether a batch reads prompts, decodes (a token of each sequence), or does both."""
    if len(batch.tokens) == len(batch.starts) - 1:
        return "decode"
    return "mixed" if (np.diff(batch.starts) == 1).any() else "prefill"


class PhaseTimes:
    """Of all steps of one phase.

    Args:
        ops: How many the graph has.

    Attributes:
        ops: float64 [2, ops]: seconds of each op on the thread that leads, and those of them that
            it waited for other threads.
        seconds: Of the calls of the executor, which hold those of the ops.
        steps: How many there were.
        tokens: That they computed.
        rows: Of them those whose logits were wanted.
        sequences: That took part, counted anew in each step.
        positions: How many tokens were at each position.
        ends: How often a sequence had its last token of a step at each position.
    """

    def __init__(self, ops: int) -> None:
        self.ops: NDArray[np.float64] = np.zeros((2, ops))
        self.seconds = 0.0
        self.steps = self.tokens = self.rows = self.sequences = 0
        self.positions: Counter[int] = Counter()
        self.ends: Counter[int] = Counter()

    def add(self, batch: Batch, seconds: float) -> None:
        """Counts a step whose call took so many seconds."""
        self.seconds += seconds
        self.steps += 1
        self.tokens += len(batch.tokens)
        self.rows += len(batch.logit_rows)
        self.sequences += len(batch.starts) - 1
        positions = batch.positions.tolist()
        self.positions.update(positions)
        self.ends.update([positions[start - 1] for start in batch.starts[1:].tolist()])


class OpTimes:
    """What a profile of an executor holds.

    Args:
        graph: That the executor runs.

    Attributes:
        graph: As given.
        phases: Those that there were.
    """

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.phases: dict[Phase, PhaseTimes] = {}

    def of(self, batch: Batch) -> PhaseTimes:
        """Where the step of a batch is counted."""
        phase = phase_of(batch)
        if phase not in self.phases:
            self.phases[phase] = PhaseTimes(len(self.graph.ops))
        return self.phases[phase]


class ProfiledExecutor:
    """What executors have in common that can tell the time of their ops.

    Attributes:
        graph: What runs.
    """

    graph: Graph
    _times: OpTimes | None = None

    @contextmanager
    def profile(self) -> Iterator[OpTimes]:
        """Measures each op of each step while the block runs, into what it yields.

        Raises:
            UsageError: Another profile is being taken.
        """
        if self._times is not None:
            raise UsageError("a profile of this executor is being taken", do="let it end first")
        self._times = OpTimes(self.graph)
        try:
            yield self._times
        finally:
            self._times = None

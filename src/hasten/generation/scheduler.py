"""Which tokens of which sequences the next executor call computes."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

import numpy as np

from hasten.errors import CapacityError
from hasten.generation.kvcache import BlockPool, blocks_for
from hasten.generation.sampler import make_generator
from hasten.generation.text import TextStream
from hasten.types import Batch, Request

__all__ = ["Scheduler", "Sequence"]


@dataclass(slots=True)
class Sequence:
    """A request on its way through the engine.

    Attributes:
        request: As it was submitted.
        text: Its detokeniser and stop strings.
        tokens: Prompt and output so far.
        computed: Tokens whose keys and values are in the cache.
        blocks: KV blocks it owns.
        model_seconds: Executor time since its last output: a long prompt takes several calls.
        generator: Its random stream.
    """

    request: Request
    text: TextStream
    tokens: list[int]
    computed: int = 0
    blocks: list[int] = field(default_factory=list)
    model_seconds: float = 0.0
    generator: np.random.Generator = field(init=False)

    def __post_init__(self) -> None:
        self.generator = make_generator(self.request.sampling)

    @property
    def generated(self) -> int:
        """Output tokens so far."""
        return len(self.tokens) - len(self.request.prompt)


class Scheduler:
    """First come, first served; running sequences go on while prompts are read in chunks.

    A sequence owns the blocks for its longest possible output from the start, so that a running one
    is never without memory.

    Args:
        pool: The KV blocks.
        context: Longest sequence, prompt and output.
        max_sequences: Sequences that run at once.
        budget: Most tokens of one executor call.
    """

    def __init__(self, pool: BlockPool, context: int, max_sequences: int, budget: int) -> None:
        self._pool = pool
        self._context = context
        self._max_sequences = max_sequences
        self._budget = budget
        self.waiting: deque[Sequence] = deque()
        self.running: list[Sequence] = []

    @property
    def has_work(self) -> bool:
        """Whether a request waits or runs."""
        return bool(self.waiting or self.running)

    def schedule(self) -> tuple[Batch, list[Sequence]]:
        """The next batch, and the sequences whose tokens it holds in their order.

        Raises:
            CapacityError: No sequence runs and the next one finds no room.
        """
        self._admit()
        shares: list[tuple[Sequence, int]] = []
        budget = self._budget
        # One token of every sequence that generates comes before the long prompts.
        for sequence in sorted(self.running, key=lambda s: len(s.tokens) - s.computed):
            count = min(len(sequence.tokens) - sequence.computed, budget)
            if count > 0:
                shares.append((sequence, count))
                budget -= count
        if not shares:
            needed = blocks_for(self._longest(self.waiting[0]))
            raise CapacityError(
                f"the next request needs {needed} KV blocks and {self._pool.free} are free",
                do="finish or close the iterator of the score() call that holds the others",
            )
        return _batch(shares), [sequence for sequence, _ in shares]

    def finish(self, sequence: Sequence) -> None:
        """Takes a sequence out and its blocks back."""
        if sequence in self.running:
            self.running.remove(sequence)
            self._pool.give_back(sequence.blocks)
            sequence.blocks = []
        else:
            self.waiting.remove(sequence)

    def find(self, request_id: str) -> Sequence | None:
        """The waiting or running sequence of a request."""
        for sequence in (*self.running, *self.waiting):
            if sequence.request.id == request_id:
                return sequence
        return None

    def _admit(self) -> None:
        while self.waiting and len(self.running) < self._max_sequences:
            sequence = self.waiting[0]
            needed = blocks_for(self._longest(sequence))
            if needed > self._pool.free:
                return
            sequence.blocks = self._pool.take(needed)
            self.running.append(self.waiting.popleft())

    def _longest(self, sequence: Sequence) -> int:
        """Positions that a sequence can come to."""
        request = sequence.request
        return min(len(request.prompt) + request.sampling.max_tokens, self._context)


def _batch(shares: list[tuple[Sequence, int]]) -> Batch:
    tokens: list[int] = []
    positions: list[int] = []
    starts = [0]
    logit_rows = []
    for sequence, count in shares:
        begin, end = sequence.computed, sequence.computed + count
        tokens += sequence.tokens[begin:end]
        positions += range(begin, end)
        starts.append(len(tokens))
        if end == len(sequence.tokens):
            logit_rows.append(len(tokens) - 1)
    tables = np.full((len(shares), max(len(s.blocks) for s, _ in shares)), -1, np.int32)
    for row, (sequence, _) in enumerate(shares):
        tables[row, : len(sequence.blocks)] = sequence.blocks
    return Batch(
        np.asarray(tokens, np.int32),
        np.asarray(positions, np.int32),
        np.asarray(starts, np.int32),
        tables,
        np.asarray(logit_rows, np.int32),
    )

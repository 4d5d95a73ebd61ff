"""Which tokens of which sequences the next executor call computes."""

from __future__ import annotations

import heapq
from bisect import bisect_right, insort
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from operator import attrgetter

import numpy as np

from hasten.errors import CapacityError
from hasten.generation.blockpool import BlockPool
from hasten.generation.kvcache import KV_BLOCK, blocks_for
from hasten.generation.pacing import Pacer
from hasten.generation.sequence import Sequence
from hasten.types import Batch

__all__ = ["Plan", "Scheduler", "make_batch"]

_ORDER = attrgetter("order")


@dataclass(frozen=True, slots=True)
class Plan:
    """What one step computes.

    Attributes:
        batch: For the executor.
        shares: Tokens of each sequence in it, in its order.
        decoding: Sequences that decode.
    """

    batch: Batch
    shares: Mapping[Sequence, int]
    decoding: int


class Scheduler:
    """Runs sequences by priority, then by arrival, side by side as far as slots and blocks go.

    A step holds a token of every sequence that decodes, and as much of the prompts as its budget
    and the pacer leave room for. Sequences take blocks as they grow. Where blocks run short, the
    last sequence in the order gives all of its own back and waits; what it has is computed again
    later. The first in the order is never the one, so there is always one that comes to its end.

    Args:
        pool: The KV blocks.
        max_sequences: Sequences that run at once.
        budget: Most tokens of one executor call.
        pacer: Limits prompt tokens while sequences decode.
        prefix_cache: Share full blocks of equal beginnings.
    """

    def __init__(
        self,
        pool: BlockPool,
        max_sequences: int,
        budget: int,
        pacer: Pacer,
        *,
        prefix_cache: bool = True,
    ) -> None:
        self._pool = pool
        self._max_sequences = min(max_sequences, budget)
        self._budget = budget
        self._pacer = pacer
        self._prefix_cache = prefix_cache
        self._shares: dict[Sequence, int] = {}
        self._timed: dict[Sequence, float] = {}
        self.waiting: list[Sequence] = []
        self.running: list[Sequence] = []
        self.preemptions = 0

    @property
    def has_work(self) -> bool:
        """Whether a sequence waits or runs."""
        return bool(self.waiting or self.running)

    def add(self, sequence: Sequence) -> None:
        """Lets a sequence wait for its turn."""
        insort(self.waiting, sequence, key=_ORDER)
        if sequence.request.deadline is not None:
            self._timed[sequence] = sequence.request.deadline

    def remove(self, sequence: Sequence) -> None:
        """Takes a sequence out and its blocks back."""
        self._timed.pop(sequence, None)
        if sequence.running:
            self._stop(sequence)
        else:
            self.waiting.remove(sequence)

    def expired(self, now: float) -> list[Sequence]:
        """Sequences whose deadline has passed."""
        return [one for one, deadline in self._timed.items() if deadline <= now]

    def schedule(self) -> Plan:
        """What to compute next; at least one sequence must wait or run.

        Raises:
            CapacityError: No sequence runs and the next one finds no room.
        """
        self._shares = {}
        for sequence in sorted((s for s in self.running if s.remaining == 1), key=_ORDER):
            # One before it in the order may have taken its blocks.
            if sequence.running and self._grow(sequence, 1):
                self._shares[sequence] = 1
        decoding = len(self._shares)
        limit = self._pacer.limit(decoding, self._count_waiting())
        room = self._budget - decoding
        self._read_prompts(room if limit is None else min(room, limit))
        if not self._shares:
            needed = blocks_for(len(self.waiting[0].tokens))
            raise CapacityError(
                f"the next request needs {needed} KV blocks and {self._pool.free} are free",
                do="finish or close the iterator of the score() call that holds the others",
            )
        decoding = sum(sequence.remaining == 1 for sequence in self._shares)
        return Plan(make_batch(self._shares), self._shares, decoding)

    def update(self, plan: Plan, seconds: float) -> None:
        """Notes that a plan was carried out, in so many seconds."""
        self._pacer.record(plan.decoding, len(plan.batch.tokens) - plan.decoding, seconds)
        for sequence, count in plan.shares.items():
            full = sequence.computed // KV_BLOCK
            sequence.computed += count
            sequence.model_seconds += seconds
            if self._prefix_cache and sequence.computed // KV_BLOCK > full:
                names = sequence.names.up_to(sequence.tokens, sequence.computed // KV_BLOCK)
                for block, name in zip(sequence.blocks[full:], names[full:], strict=False):
                    self._pool.set_name(block, name)

    def _count_waiting(self) -> int:
        """Sequences without a first token that are as urgent as the most urgent that decodes."""
        urgent = min((s.request.priority for s in self._shares), default=0)
        waiting = bisect_right(self.waiting, urgent, key=lambda s: s.request.priority)
        reading = sum(s.remaining > 1 and s.request.priority <= urgent for s in self.running)
        return waiting + reading

    def _read_prompts(self, room: int) -> None:
        """Gives the room of this step to prompts, in order; takes waiting sequences in."""
        reading = sorted((s for s in self.running if s.remaining > 1), key=_ORDER)
        if not (reading or self.waiting):
            return
        computing: set[bytes] = set()
        admitting, deferred = True, 0
        for sequence in heapq.merge(reading, list(self.waiting), key=_ORDER):
            if room <= 0:
                return
            if not sequence.running:
                admitting = admitting and self._slot_for(sequence, deferred)
                if not admitting:
                    continue
            names = self._shareable(sequence)
            self._share_prefix(sequence, names)
            if self._comes_next_step(sequence, names, computing):
                deferred += not sequence.running
                continue
            if not (sequence.running or self._admit(sequence)):
                admitting = False
                continue
            count = min(sequence.remaining, room)
            if self._grow(sequence, count):
                self._shares[sequence] = count
                room -= count
                end = blocks_for(sequence.computed + count)
                computing.update(names[sequence.computed // KV_BLOCK : end])

    def _shareable(self, sequence: Sequence) -> list[bytes]:
        """Names of the blocks that others may have; the last token is computed, for its logits."""
        if not (self._prefix_cache and sequence.reads_cache):
            return []
        return sequence.names.up_to(sequence.tokens, (len(sequence.tokens) - 1) // KV_BLOCK)

    def _share_prefix(self, sequence: Sequence, names: list[bytes]) -> None:
        """Takes blocks that others computed in place of a sequence's next ones."""
        if sequence.computed % KV_BLOCK:
            return
        for name in names[sequence.computed // KV_BLOCK :]:
            block = self._pool.share(name)
            if block is None:
                return
            sequence.blocks.append(block)
            sequence.computed += KV_BLOCK
            sequence.cached_tokens += KV_BLOCK

    def _comes_next_step(
        self, sequence: Sequence, names: list[bytes], computing: set[bytes]
    ) -> bool:
        """Whether another computes a sequence's next block in this very step, to be shared then."""
        if sequence.computed % KV_BLOCK:
            return False
        begin = sequence.computed // KV_BLOCK
        if computing.isdisjoint(names[begin : begin + 1]):
            return False
        if not sequence.running:
            self._let_go(sequence)
        return True

    def _let_go(self, sequence: Sequence) -> None:
        """Takes back what a sequence holds that does not run."""
        self._pool.give_back(sequence.blocks)
        sequence.blocks = []
        sequence.computed = sequence.cached_tokens = 0

    def _lower(self, sequence: Sequence) -> list[Sequence]:
        """Running sequences of lower priority than another's, in order."""
        priority = sequence.request.priority
        return sorted((s for s in self.running if s.request.priority > priority), key=_ORDER)

    def _slot_for(self, sequence: Sequence, deferred: int) -> bool:
        """Whether a waiting sequence would get a slot, beside those that come a step later."""
        return len(self.running) + deferred < self._max_sequences or bool(self._lower(sequence))

    def _admit(self, sequence: Sequence) -> bool:
        """Gives a waiting sequence a slot, if need be in place of those of lower priority."""
        lower = self._lower(sequence)
        if not self._fits(sequence, lower):
            self._let_go(sequence)
            return False
        while len(self.running) >= self._max_sequences or not self._fits(sequence, ()):
            self._preempt(lower.pop())
        self.waiting.remove(sequence)
        self.running.append(sequence)
        sequence.running = True
        return True

    def _fits(self, sequence: Sequence, without: list[Sequence] | tuple[()]) -> bool:
        """Whether its known tokens find blocks, and one is left for each that runs to grow.

        Args:
            sequence: One that waits.
            without: Running sequences that would give their blocks back.
        """
        held = Counter(block for one in without for block in one.blocks)
        free = self._pool.free + sum(self._pool.holders(b) == n for b, n in held.items())
        staying = [one for one in self.running if one not in without]
        for one in (sequence, *staying):
            free -= blocks_for(len(one.tokens)) - len(one.blocks)
        return free >= len(staying)

    def _grow(self, sequence: Sequence, count: int) -> bool:
        """Takes the blocks for so many more tokens; False where it had to give up its own."""
        needed = blocks_for(sequence.computed + count) - len(sequence.blocks)
        while needed > self._pool.free:
            last = max(self.running, key=_ORDER)
            self._preempt(last)
            if last is sequence:
                return False
        sequence.blocks += self._pool.take(needed)
        return True

    def _preempt(self, sequence: Sequence) -> None:
        """Lets a running sequence wait again, with its tokens and without its blocks."""
        self._shares.pop(sequence, None)
        self._stop(sequence)
        sequence.preemptions += 1
        self.preemptions += 1
        self.add(sequence)

    def _stop(self, sequence: Sequence) -> None:
        self.running.remove(sequence)
        sequence.running = False
        self._let_go(sequence)


def make_batch(shares: Mapping[Sequence, int]) -> Batch:
    """Puts the next tokens of sequences side by side.

    Args:
        shares: How many of each; those with all of their tokens get logits, and those of which
            the request wants the prompt's log probabilities.
    """
    tokens: list[int] = []
    positions: list[int] = []
    starts = [0]
    logit_rows = []
    for sequence, count in shares.items():
        begin, end = sequence.computed, sequence.computed + count
        tokens += sequence.tokens[begin:end]
        positions += range(begin, end)
        offset = starts[-1] - begin
        logit_rows += [offset + position for position in sequence.logit_positions(begin, end)]
        starts.append(len(tokens))
    tables = np.full((len(shares), max(len(s.blocks) for s in shares)), -1, np.int32)
    for row, sequence in enumerate(shares):
        tables[row, : len(sequence.blocks)] = sequence.blocks
    slots = [-1 if s.adapter is None else s.adapter.slot for s in shares]
    return Batch(
        np.asarray(tokens, np.int32),
        np.asarray(positions, np.int32),
        np.asarray(starts, np.int32),
        tables,
        np.asarray(logit_rows, np.int32),
        np.asarray(slots, np.int32) if max(slots) >= 0 else None,
    )

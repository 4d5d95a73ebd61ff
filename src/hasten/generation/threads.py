"""How many threads read a prompt, and how many decode: by what a few layers take on each.

Reading a prompt is bound by arithmetic and gains from every core. Decoding streams the weights once
a token, which fewer threads may do as fast, and the others then only cost waiting and power. Cores
that share their units (SMT siblings) may help or hurt. So where there is a choice it is raced on
layers of the model itself, for some tens of milliseconds, and where the race is unclear the default
stays: every physical core for both.

Results are the same bits on any number of threads, so this is a matter of speed alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import cycle
from statistics import median
from time import perf_counter
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from hasten.generation.kvcache import blocks_for
from hasten.machine import available_cores, physical_cores
from hasten.models.graph import Graph
from hasten.models.ops import Attention
from hasten.types import EngineOptions

if TYPE_CHECKING:
    from hasten import _native

__all__ = ["LayerClock", "ThreadChoice", "choose_threads", "race", "thread_limit", "time_ops"]

Measure = Callable[[int, int], float]
"""Seconds of a piece of work of so many tokens on so many threads."""

PREFILL_TOKENS = 32
ROUNDS = 7
LEAST_ROUNDS = 3
BUDGET = 0.025
"""Seconds that one race may take."""
PIECE = 0.7e-3
"""Seconds that one measurement should take at least: far longer than waking a thread."""
CLEAR_GAIN = 0.95
"""More threads than the default must take at most this share of its time."""
TIE = 1.02
"""Numbers of threads whose times differ by less are equally fast; the least of them is taken."""


@dataclass(frozen=True, slots=True)
class ThreadChoice:
    """Threads of an executor, and why so many.

    Attributes:
        prefill: Threads of a step with many tokens; no step has more.
        decode: Threads of a step with one token.
        reason: For the user.
        times: Seconds of a piece of decoding by number of threads, where it was measured.
    """

    prefill: int
    decode: int
    reason: str
    times: Mapping[int, float] = field(default_factory=dict)

    def for_tokens(self, tokens: int) -> int:
        """Threads of a step.

        With t tokens, a thread computes up to t times as long for each byte of the weights that it
        reads, so up to t times as many threads are kept busy by the same bandwidth.
        """
        return min(self.prefill, self.decode * tokens)

    def as_dict(self) -> dict[str, object]:
        """JSON-ready values."""
        return {
            "prefill": self.prefill,
            "decode": self.decode,
            "reason": self.reason,
            "measured_s": {str(count): seconds for count, seconds in self.times.items()},
        }


def thread_limit(options: EngineOptions) -> int:
    """Most threads that a run may use."""
    return max(options.threads or available_cores(), options.decode_threads or 1)


def choose_threads(
    options: EngineOptions,
    measure: Measure,
    *,
    cores: int | None = None,
    physical: int | None = None,
) -> ThreadChoice:
    """Chooses by the options, else by the cores and a race.

    Args:
        options: `threads` and `decode_threads`; what is given is taken and not measured.
        measure: Times a piece of the model.
        cores: Logical cores under the quota, None to ask the machine.
        physical: Physical ones among them, likewise.
    """
    if options.threads is not None:
        return ThreadChoice(options.threads, options.decode_threads or options.threads, "as given")
    cores = cores or available_cores()
    physical = physical or min(cores, physical_cores())
    prefill, reason = physical, f"{physical} physical of {cores} usable cores"
    if cores > physical:
        times = race(lambda threads: measure(PREFILL_TOKENS, threads), [physical, cores])
        prefill = _decide(times, physical)
        reason += f", {prefill} for prompts ({_describe(times)})"
    if options.decode_threads is not None:
        decode = options.decode_threads
        return ThreadChoice(max(prefill, decode), decode, f"{reason}, decoding as given")
    candidates = _decode_candidates(physical)
    if len(candidates) == 1:
        return ThreadChoice(prefill, physical, reason)
    times = race(lambda threads: measure(1, threads), candidates)
    decode = _decide(times, physical)
    seconds = {threads: median(found) for threads, found in times.items() if found}
    reason += f", {decode} for decoding ({_describe(times)})"
    return ThreadChoice(prefill, decode, reason, seconds)


def race(
    measure: Callable[[int], float],
    candidates: Sequence[int],
    *,
    budget: float = BUDGET,
    clock: Callable[[], float] = perf_counter,
) -> dict[int, list[float]]:
    """Seconds of each candidate, in rounds in which each has one turn.

    Rounds alternate in direction, so that a machine that slows down slows all of them. The default,
    which is the first, has an uncounted turn before.

    Args:
        measure: Seconds on a number of threads.
        candidates: Numbers of threads.
        budget: Seconds after which no further round begins.
        clock: What the budget counts by.
    """
    times: dict[int, list[float]] = {threads: [] for threads in candidates}
    end = clock() + budget
    measure(candidates[0])
    for number in range(ROUNDS):
        if clock() >= end:
            break
        for threads in candidates if number % 2 == 0 else reversed(candidates):
            times[threads].append(measure(threads))
    return times


def _decide(times: Mapping[int, Sequence[float]], default: int) -> int:
    """The fewest threads among the fastest; the default where the race does not tell.

    Each is held against the default within the same round, so drift cancels out.
    """
    if len(times[default]) < LEAST_ROUNDS:
        return default
    shares = {
        threads: median(one / base for one, base in zip(found, times[default], strict=True))
        for threads, found in times.items()
    }
    fair = {
        threads: share
        for threads, share in shares.items()
        if share <= (1.0 if threads <= default else CLEAR_GAIN)
    }
    fastest = min(fair.values())
    return min(threads for threads, share in fair.items() if share <= fastest * TIE)


def _decode_candidates(most: int) -> list[int]:
    """Every physical core, then fewer, as far as to a quarter."""
    fewer = (most * eighths // 8 for eighths in (8, 6, 4, 3, 2))
    return list(dict.fromkeys(threads for threads in fewer if threads >= min(2, most)))


def _describe(times: Mapping[int, Sequence[float]]) -> str:
    if any(len(found) < LEAST_ROUNDS for found in times.values()):
        return "too slow to measure"
    parts = (f"{threads}: {median(found) * 1e3:.2f} ms" for threads, found in times.items())
    return "measured " + ", ".join(parts)


class LayerClock:
    """Times layers of a bound program, others each time, so that caches hold what they would.

    Args:
        program: With all its ops; nothing but position 0.. of its first KV block is written.
        graph: Whose ops it runs.
        limit: Most tokens of a run.
    """

    def __init__(self, program: _native.Program, graph: Graph, limit: int) -> None:
        self._program = program
        self._limit = limit
        marks = [i for i, op in enumerate(graph.ops) if isinstance(op, Attention)]
        self._marks = marks if len(marks) > 1 else [0, len(graph.ops)]
        self._output = np.empty((0, program.output_width), np.float32)
        self._layers: dict[int, int] = {}
        self._next = cycle(range(len(self._marks) - 1))

    def __call__(self, tokens: int, threads: int) -> float:
        """Seconds a layer of so many tokens on so many threads."""
        tokens = min(tokens, self._limit)
        if tokens not in self._layers:
            # Twice: the first run starts the threads.
            seconds = [self._time(tokens, threads, 1) for _ in range(2)][1]
            self._layers[tokens] = max(1, math.ceil(PIECE / seconds))
        return self._time(tokens, threads, self._layers[tokens])

    def _time(self, tokens: int, threads: int, layers: int) -> float:
        seconds = 0.0
        for _ in range(layers):
            i = next(self._next)
            ops = range(self._marks[i], self._marks[i + 1])
            seconds += time_ops(self._program, ops, tokens, threads, self._output)
        return seconds / layers


def time_ops(
    program: _native.Program, ops: range, tokens: int, threads: int, output: NDArray[np.float32]
) -> float:
    """Seconds of some ops of a program on the first tokens of a sequence.

    Args:
        program: With all its ops; the first KV block of its cache is written.
        ops: Numbers of the ops, one after the other.
        tokens: Of the sequence.
        threads: That take part.
        output: Float32 [rows, width]; of so many of the last tokens.
    """
    rows = np.arange(tokens, dtype=np.int32)
    starts = np.asarray([0, tokens], np.int32)
    tables = np.zeros((1, blocks_for(tokens)), np.int32)
    logit_rows = rows[tokens - len(output) :]
    return program.time(
        np.zeros_like(rows), rows, starts, tables, logit_rows, output, ops.start, ops.stop, threads
    )

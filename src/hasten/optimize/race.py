"""Times candidates with real engines: interleaved rounds, in blocks with engines of their own."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace

import numpy as np

from hasten.errors import HastenError
from hasten.generation import Engine
from hasten.measure.arrivals import ClosedLoop
from hasten.measure.load import run_load
from hasten.measure.statistics import interleave
from hasten.measure.targets.engine import EngineTarget
from hasten.measure.workload import Item, Workload
from hasten.optimize.candidates import Candidate
from hasten.optimize.speed import Duel, Effort, RequestShape, Round, Timings, one_round

__all__ = ["Track"]

Prompts = Sequence[tuple[int, ...]]
Share = Callable[[float], None]

_WARMUP_TOKENS = 4
"""What a warm-up has to answer: it runs all code and touches all memory once."""


class Track:
    """Where candidates are timed.

    Candidates, and the original if it fits twice, are opened anew for every block. What does not
    fit into memory together is run in heats, the original in each.

    Args:
        opened: Opens an engine; this closes it.
        memory: Bytes that a candidate's engine holds.
        standing: The original's engine, which is open all the time.
        prompts: Those of a round to warm up, then those of several rounds.
        shape: The timed requests.
        memory_limit: Bytes that all engines together may take, without the one that stands.
        seed: Of the order in a round.
    """

    def __init__(
        self,
        opened: Callable[[Candidate], Engine],
        memory: Callable[[Candidate], int],
        standing: Engine,
        *,
        prompts: Prompts,
        shape: RequestShape,
        memory_limit: int,
        seed: int,
    ) -> None:
        self._opened = opened
        self._memory = memory
        self._standing = standing
        self._prompts = prompts
        self._shape = shape
        self._memory_limit = memory_limit
        self._seed = seed

    def race(
        self, candidates: Sequence[Candidate], effort: Effort, on_round: Share
    ) -> dict[Candidate, Duel]:
        """Times candidates in interleaved rounds.

        Args:
            candidates: The original first.
            effort: For all heats together.
            on_round: Told the share that is done.
        """
        first, *others = candidates
        room = self._memory_limit - self._memory(first)
        reopen = room >= max(map(self._memory, others), default=0)
        heats = list(self._heats(others, room if reopen else self._memory_limit))
        share = replace(effort, seconds=effort.seconds / len(heats)).of_block()
        found: dict[Candidate, Duel] = {}
        for index, heat in enumerate(heats):
            blocks: dict[Candidate, list[tuple[Round, ...]]] = {}
            for number in range(effort.blocks):
                place = index * effort.blocks + number
                tell = functools.partial(_portion, on_round, place, len(heats) * effort.blocks)
                timed = self._block(first, heat, share, number, tell, reopen=reopen)
                for candidate, block in timed.items():
                    blocks.setdefault(candidate, []).append(block)
            timings = {one: Timings(self._shape, tuple(rounds)) for one, rounds in blocks.items()}
            found |= {one: Duel(timings[first], after) for one, after in timings.items()}
        return found

    def repeat(
        self, candidate: Candidate, rounds: int, seconds: float, number: int, on_round: Share
    ) -> Timings:
        """Times one candidate by itself: a block of rounds, of which at least one is run.

        Args:
            candidate: What to time.
            rounds: How often, at most.
            seconds: After which no further round is begun.
            number: Of the block; says which prompts are taken.
            on_round: Told the share that is done.
        """
        deadline = time.perf_counter() + seconds
        found: list[Round] = []
        with self._opened(candidate) as engine:
            self._warm_up(candidate, engine)
            while len(found) < rounds and (not found or time.perf_counter() < deadline):
                prompts = self._round_prompts(number * rounds + len(found))
                found.append(self._time(candidate, engine, prompts))
                on_round(len(found) / rounds)
        return Timings(self._shape, (tuple(found),))

    def _heats(self, candidates: Sequence[Candidate], room: int) -> Iterator[list[Candidate]]:
        """Splits a field so that each heat fits."""
        heat: list[Candidate] = []
        used = 0
        for candidate in candidates:
            size = self._memory(candidate)
            if heat and used + size > room:
                yield heat
                heat, used = [], 0
            heat.append(candidate)
            used += size
        yield heat

    def _block(
        self,
        first: Candidate,
        heat: Sequence[Candidate],
        effort: Effort,
        number: int,
        on_round: Share,
        *,
        reopen: bool,
    ) -> dict[Candidate, tuple[Round, ...]]:
        """Opens, warms up and times; in another order each time, as memory may depend on it."""
        deadline = time.perf_counter() + effort.seconds
        rounds: dict[str, list[Round]] = {}
        with ExitStack() as stack:
            engines = {} if reopen else {first: self._standing}
            closed = [one for one in (first, *heat) if one not in engines]
            order = np.random.default_rng([self._seed, number]).permutation(len(closed))
            engines |= {closed[at]: stack.enter_context(self._opened(closed[at])) for at in order}
            for one, engine in engines.items():
                self._warm_up(one, engine)
            for step in range(effort.rounds):
                if step >= effort.least and time.perf_counter() > deadline:
                    break
                for label, results in self._round(engines, number * effort.rounds + step).items():
                    rounds.setdefault(label, []).extend(results)
                on_round((step + 1) / effort.rounds)
        return {one: tuple(rounds[one.label]) for one in engines}

    def _round(self, engines: Mapping[Candidate, Engine], number: int) -> dict[str, list[Round]]:
        """Times the same prompts once on each engine, in an order of its own."""
        prompts = self._round_prompts(number)
        runs = {
            one.label: functools.partial(self._time, one, engine, prompts)
            for one, engine in engines.items()
        }
        return interleave(runs, 1, self._seed + number)

    def _round_prompts(self, number: int) -> Prompts:
        count = self._shape.concurrent
        prompts = self._prompts[count:]
        return [prompts[(number * count + i) % len(prompts)] for i in range(count)]

    @property
    def _warmup(self) -> Prompts:
        return self._prompts[: self._shape.concurrent]

    def _warm_up(self, candidate: Candidate, engine: Engine) -> None:
        """A round whose answers are short."""
        tokens = min(_WARMUP_TOKENS, self._shape.output_tokens)
        self._time(candidate, engine, self._warmup, tokens)

    def _time(
        self,
        candidate: Candidate,
        engine: Engine,
        prompts: Prompts,
        output_tokens: int | None = None,
    ) -> Round:
        """Runs one round; a prefix cache holds what all prompts share, and no prompt as a whole."""
        tokens = self._shape.output_tokens if output_tokens is None else output_tokens
        if candidate.prefix_cache:
            engine.forget_prefixes()
            self._run(engine, self._warmup[:1], tokens)
        return self._run(engine, prompts, tokens)

    def _run(self, engine: Engine, prompts: Prompts, output_tokens: int) -> Round:
        items = tuple(Item(prompt, output_tokens) for prompt in prompts)
        workload = Workload("race", None, (), items)
        result = run_load(EngineTarget(engine), workload, ClosedLoop(len(items)))
        if result.interrupted:
            raise KeyboardInterrupt
        for record in result.records:
            if record.status != "completed":
                raise HastenError(f"a timed request did not complete: {record.reason}")
        return one_round(result)


def _portion(on_round: Share, index: int, count: int, share: float) -> None:
    """Reports a share of one block as a share of all."""
    on_round((index + share) / count)

"""Where the time of an engine goes: clocks around its parts while a profile is taken."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable
from time import perf_counter
from typing import TYPE_CHECKING, ParamSpec, TypeVar

from hasten.generation.op_times import OpTimes, Phase, phase_of

if TYPE_CHECKING:
    from hasten.generation.engine import Engine
    from hasten.generation.executor import Executor
    from hasten.generation.intake import Intake
    from hasten.generation.scheduler import Plan, Scheduler
    from hasten.generation.sequence import Sequence
    from hasten.types import Output, Request

__all__ = ["PARTS", "EngineProfile", "Stopwatch"]

P = ParamSpec("P")
R = TypeVar("R")
PARTS = ("scheduling", "model", "sampling", "detokenising", "engine")
"""Of a step; "engine" is what the engine itself does around the others."""


class Stopwatch:
    """Sums the seconds of named parts, each without the parts inside it; for one thread.

    Methods are clocked where they are, on their objects, so that objects without clocks pay
    nothing.

    Attributes:
        seconds: By part.
    """

    def __init__(self, clock: Callable[[], float] = perf_counter) -> None:
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self._clock = clock
        self._inside: list[float] = []
        self._attached: list[tuple[object, str]] = []

    def timed(self, part: str, call: Callable[P, R]) -> Callable[P, R]:
        """A call that counts to a part."""

        def clocked(*arguments: P.args, **named: P.kwargs) -> R:
            self._inside.append(0.0)
            started = self._clock()
            try:
                return call(*arguments, **named)
            finally:
                seconds = self._clock() - started
                self.seconds[part] += seconds - self._inside.pop()
                if self._inside:
                    self._inside[-1] += seconds

        return clocked

    def replace(self, owner: object, method: str, call: Callable[..., object]) -> None:
        """Puts a call in the place of an object's method, until `detach`."""
        setattr(owner, method, call)
        self._attached.append((owner, method))

    def attach(self, owner: object, part: str, *methods: str) -> None:
        """Clocks methods of an object."""
        for method in methods:
            self.replace(owner, method, self.timed(part, getattr(owner, method)))

    def detach(self) -> None:
        """Gives all objects their methods back."""
        while self._attached:
            delattr(*self._attached.pop())


class EngineProfile:
    """Where the time of an engine's steps went, by phase.

    Args:
        ops: Of the executor.

    Attributes:
        ops: As given.
        steps: Seconds of whole steps, by phase.
        parts: Seconds by phase and part (see `PARTS`); those of a phase add up to `steps`.
        intake: Seconds in `submit`: checking requests and making their sequences.
        queue: Seconds that each sequence waited for the first step that it took part in.
    """

    def __init__(self, ops: OpTimes) -> None:
        self.ops = ops
        self.steps: defaultdict[Phase, float] = defaultdict(float)
        self.parts: defaultdict[Phase, dict[str, float]] = defaultdict(
            lambda: dict.fromkeys(PARTS, 0.0)
        )
        self.queue: list[float] = []
        self._watch = Stopwatch()
        self._arrivals: dict[Sequence, float] = {}
        self._phase: Phase | None = None

    @property
    def intake(self) -> float:
        """See the class."""
        return self._watch.seconds["intake"]

    def attach(
        self,
        engine: Engine,
        scheduler: Scheduler,
        executor: Executor,
        intake: Intake,
        sequences: Iterable[Sequence],
    ) -> None:
        """Clocks an engine, its parts, and sequences in flight and to come, until `detach`."""
        watch = self._watch
        for sequence in sequences:
            self._clock(sequence)
        watch.attach(executor, "model", "run")
        watch.attach(engine, "scheduling", "_take_in")
        watch.attach(engine, "intake", "submit")
        watch.attach(scheduler, "scheduling", "update")
        schedule = watch.timed("scheduling", scheduler.schedule)
        watch.replace(scheduler, "schedule", self._noting_plans(schedule))
        watch.replace(intake, "sequences", self._clocking_sequences(intake.sequences))
        watch.replace(engine, "step", self._by_phase(watch.timed("engine", engine.step)))

    def detach(self) -> None:
        """Ends the profile."""
        self._watch.detach()

    def _noting_plans(self, schedule: Callable[[], Plan]) -> Callable[[], Plan]:
        def scheduled() -> Plan:
            plan = schedule()
            now = perf_counter()
            self._phase = phase_of(plan.batch)
            for sequence in plan.shares:
                arrival = self._arrivals.pop(sequence, None)
                if arrival is not None:
                    self.queue.append(now - arrival)
            return plan

        return scheduled

    def _clocking_sequences(
        self, make: Callable[[Request], list[Sequence]]
    ) -> Callable[[Request], list[Sequence]]:
        def sequences(request: Request) -> list[Sequence]:
            made = make(request)
            for sequence in made:
                self._clock(sequence)
                self._arrivals[sequence] = perf_counter()
            return made

        return sequences

    def _clock(self, sequence: Sequence) -> None:
        self._watch.attach(sequence.sampler, "sampling", "choose")
        self._watch.attach(sequence.text, "detokenising", "push", "finish")

    def _by_phase(self, step: Callable[[], list[Output]]) -> Callable[[], list[Output]]:
        def stepped() -> list[Output]:
            before = dict(self._watch.seconds)
            started = perf_counter()
            outputs = step()
            seconds = perf_counter() - started
            phase, self._phase = self._phase, None
            if phase is not None:
                self.steps[phase] += seconds
                found = self.parts[phase]
                for part in PARTS:
                    found[part] += self._watch.seconds[part] - before.get(part, 0.0)
            return outputs

        return stepped

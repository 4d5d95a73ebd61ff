"""Measures candidates with real engines, keeping an eye on memory."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Self

import numpy as np
from numpy.typing import NDArray

from hasten.errors import HastenError
from hasten.generation import Engine
from hasten.generation.formats import MatrixFormat, choose_formats
from hasten.measure.accuracy import Accuracy, Reference, summarize
from hasten.measure.arrivals import ClosedLoop
from hasten.measure.corpus import Windows
from hasten.measure.interference import Interference, between, read_cpu_times
from hasten.measure.load import run_load
from hasten.measure.statistics import interleave
from hasten.measure.targets.engine import EngineTarget
from hasten.measure.tasks.compare import compare_results
from hasten.measure.tasks.items import TaskSet
from hasten.measure.tasks.run import TaskResults, run_tasks
from hasten.measure.tasks.scoring import ScoreFunction
from hasten.measure.workload import Item, Workload
from hasten.models import Model
from hasten.optimize.candidates import (
    Candidate,
    MatrixShapes,
    matrix_shapes,
    original,
    why_unfit,
)
from hasten.optimize.gate import Measured
from hasten.optimize.passes.interface import Pass, Prediction
from hasten.optimize.prediction import predict_passes
from hasten.optimize.sensitivity import Part, bytes_saved, mix, parts_of
from hasten.optimize.speed import Duel, Effort, RequestShape, Round, Timings, one_round

__all__ = ["EngineLaboratory", "Material", "TaskMaterial"]


_MOST_SHARED = 0.1
"""Share of the processor that others may use in a race before the report says so."""


@dataclass(frozen=True, slots=True)
class TaskMaterial:
    """Labelled items.

    Attributes:
        search: That the search looks at.
        proof: That only the last proof sees.
        score: Judges answers to items with an `expected` value; None if there are none.
    """

    search: TaskSet
    proof: TaskSet
    score: ScoreFunction | None = None


@dataclass(frozen=True, slots=True)
class Material:
    """What candidates are measured on.

    Attributes:
        calibration: Windows that the search looks at as often as it likes.
        evaluation: Windows that only the last proof sees.
        prompts: Prompts of the timed requests, all of one length: those of a round to warm up, then
            those of several rounds.
        shape: The timed requests.
        tasks: Labelled items, if the user gave some.
        training_text: Text for passes that train; nothing of the proof is in it.
    """

    calibration: Windows
    evaluation: Windows
    prompts: tuple[tuple[int, ...], ...]
    shape: RequestShape
    tasks: TaskMaterial | None = None
    training_text: Windows | None = None


class EngineLaboratory:
    """A `Laboratory` of engines in this process; a context manager.

    The original stays open; candidates are opened when they are measured and closed after. A race
    whose engines do not fit into memory together is run in heats, the original in each.

    Args:
        model: Gives the model after passes, none of them being the original.
        context: Tokens of the longest sequence.
        material: Texts and prompts.
        threads: Threads of the original.
        memory_limit: Bytes that all engines and kept logits together may take.
        seed: Of intervals and of the order in a race.
    """

    def __init__(
        self,
        model: Callable[[Sequence[Pass[Model]]], Model],
        *,
        context: int,
        material: Material,
        threads: int,
        memory_limit: int,
        seed: int,
    ) -> None:
        self._model = model
        self._context = context
        self._material = material
        self._threads = threads
        self._memory_limit = memory_limit
        self._seed = seed
        self.remarks: list[str] = []
        self._began = time.perf_counter()
        self._screened: dict[Candidate, Measured] = {}
        self._answered: dict[str, TaskResults] = {}
        self._memory: dict[Candidate, Mapping[str, int]] = {}

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            self._original = stack.enter_context(self._open(original(self._threads)))
            self._calibration = self._reference(self._material.calibration)
            self._evaluation = self._reference(self._material.evaluation)
            one = self._material.calibration
            first = Windows(one.name, one.digest, one.ids[:1], one.context)
            self._glimpse = self._reference(first)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def why_unfit(self, candidate: Candidate) -> str | None:
        """Why a pass or a group size does not fit the model, or None.

        Raises:
            HastenError: A pass before another could not be applied.
        """
        for number, step in enumerate(candidate.steps):
            reason = step.why_unfit(self._model(candidate.steps[:number]))
            if reason is not None:
                return reason
        return why_unfit(candidate.weights, self._shapes(candidate))

    def formats(self, candidate: Candidate) -> dict[str, MatrixFormat]:
        """The format that each matrix would run in, without opening an engine."""
        weights = self._model(candidate.steps).weights
        return choose_formats(weights, matrix_shapes(weights), candidate.options(1))

    def screen(self, candidate: Candidate) -> Measured:
        """Accuracy on the calibration text and the items of the search."""
        if candidate not in self._screened:
            known = self._material.tasks
            items = None if known is None else known.search
            self._screened[candidate] = self._measure(self._calibration, items, candidate)
        return self._screened[candidate]

    def glance(self, candidate: Candidate) -> Accuracy:
        """Accuracy on the first calibration window."""
        with self._open(candidate) as engine:
            return self._compare(self._glimpse, engine)

    def prove(self, candidate: Candidate, confidence: float) -> Measured:
        """Accuracy on the evaluation text and the items of the proof."""
        known = self._material.tasks
        items = None if known is None else known.proof
        return self._measure(self._evaluation, items, candidate, confidence)

    def race(
        self,
        candidates: Sequence[Candidate],
        effort: Effort,
        on_round: Callable[[float], None],
    ) -> dict[Candidate, Duel]:
        """Times candidates in interleaved rounds; the first is the original."""
        found: dict[Candidate, Duel] = {}
        began = read_cpu_times()
        heats = list(self._heats(candidates[1:]))
        for index, heat in enumerate(heats):
            measured = self._run_heat(
                candidates[0],
                heat,
                replace(effort, seconds=effort.seconds / len(heats)),
                functools.partial(_portion, on_round, index, len(heats)),
            )
            before = measured[candidates[0]]
            found |= {one: Duel(before, after) for one, after in measured.items()}
        self._note_disturbance(between(began, read_cpu_times()), len(candidates))
        return found

    def memory(self, candidate: Candidate) -> Mapping[str, int]:
        """Bytes of weights, KV cache and buffers of a candidate that has been opened."""
        return self._memory[candidate]

    def weights_bytes(self, candidate: Candidate) -> int:
        """Bytes of weights of a candidate that has been opened."""
        return self._memory[candidate]["weights"]

    def memory_bytes(self, candidate: Candidate) -> int:
        """All bytes of a candidate that has been opened."""
        return sum(self._memory[candidate].values())

    def remember(self, candidate: Candidate, memory: Mapping[str, int]) -> None:
        """Takes note of the bytes of a candidate that an earlier run opened."""
        self._memory.setdefault(candidate, dict(memory))

    def parts(self, base: Candidate, coarse: str) -> dict[Part, int]:
        """The parts whose formats may be mixed, each with the bytes that `coarse` saves."""
        shapes = self._shapes(base)
        parts = parts_of(shapes)
        before, after = self.formats(base), self.formats(mix(base, coarse, parts))
        return bytes_saved(parts, shapes, before, after)

    def predict(self, candidate: Candidate) -> Prediction:
        """What the candidate's passes say that they save of the original."""
        return predict_passes(self._model(()), candidate.steps)

    @property
    def shape(self) -> RequestShape:
        """The timed requests."""
        return self._material.shape

    def seconds(self) -> float:
        """Seconds since the laboratory was made."""
        return time.perf_counter() - self._began

    def answers(self, engine: Engine) -> NDArray[np.float32]:
        """Logits of an engine on the first calibration window, to compare two engines bit by bit.

        Returns:
            float32 [n, vocab].
        """
        window = self._material.calibration.ids[0]
        return np.concatenate([logits.copy() for _, logits in engine.score(window)])

    def open(self, candidate: Candidate) -> Engine:
        """Opens a candidate; the caller closes it."""
        return self._open(candidate)

    def _shapes(self, candidate: Candidate) -> MatrixShapes:
        return matrix_shapes(self._model(candidate.steps).weights)

    def _open(self, candidate: Candidate) -> Engine:
        options = candidate.options(self._context, self.shape.concurrent)
        engine = Engine(self._model(candidate.steps), options)
        self._memory[candidate] = dict(engine.memory)
        return engine

    def _reference(self, windows: Windows) -> Reference:
        return Reference(
            self._original,
            windows,
            vocab_size=self._model(()).config.vocab_size,
            keep_bytes=self._memory_limit // 8,
        )

    def _measure(
        self,
        reference: Reference,
        items: TaskSet | None,
        candidate: Candidate,
        confidence: float = 0.95,
    ) -> Measured:
        with self._open(candidate) as engine:
            text = self._compare(reference, engine, confidence)
            if items is None:
                return Measured(text)
            answers = self._answer(engine, items)
            return Measured(
                text,
                compare_results(
                    self._originals(items), answers, confidence=confidence, seed=self._seed
                ),
            )

    def _compare(self, reference: Reference, engine: Engine, confidence: float = 0.95) -> Accuracy:
        return summarize(reference.compare(engine), seed=self._seed, confidence=confidence)

    def _originals(self, items: TaskSet) -> TaskResults:
        """The original's answers, found once."""
        if items.name not in self._answered:
            self._answered[items.name] = self._answer(self._original, items)
        return self._answered[items.name]

    def _answer(self, engine: Engine, items: TaskSet) -> TaskResults:
        known = self._material.tasks
        return run_tasks(engine, items, function=None if known is None else known.score)

    def _heats(self, candidates: Sequence[Candidate]) -> Iterator[list[Candidate]]:
        """Splits a field so that each heat, with the original, fits into half the memory."""
        room = self._memory_limit // 2
        heat: list[Candidate] = []
        used = 0
        for candidate in candidates:
            size = sum(self._memory[candidate].values())
            if heat and used + size > room:
                yield heat
                heat, used = [], 0
            heat.append(candidate)
            used += size
        yield heat

    def _run_heat(
        self,
        first: Candidate,
        heat: Sequence[Candidate],
        effort: Effort,
        on_round: Callable[[float], None],
    ) -> dict[Candidate, Timings]:
        rounds: dict[str, list[Round]] = {}
        with ExitStack() as stack:
            engines = {first: self._original}
            engines |= {one: stack.enter_context(self._open(one)) for one in heat}
            for one, engine in engines.items():
                self._time(one, engine, self._warmup)
            deadline = self.seconds() + effort.seconds
            for number in range(effort.rounds):
                if number >= effort.least and self.seconds() > deadline:
                    break
                for label, results in self._one_round(engines, number).items():
                    rounds.setdefault(label, []).extend(results)
                on_round((number + 1) / effort.rounds)
        return {one: Timings(self.shape, tuple(rounds[one.label])) for one in engines}

    def _one_round(
        self, engines: Mapping[Candidate, Engine], number: int
    ) -> dict[str, list[Round]]:
        """Times the same prompts once on each engine, in an order of its own."""
        count = self.shape.concurrent
        prompts = self._material.prompts[count:]
        chosen = [prompts[(number * count + i) % len(prompts)] for i in range(count)]
        runs = {
            one.label: functools.partial(self._time, one, engine, chosen)
            for one, engine in engines.items()
        }
        return interleave(runs, 1, self._seed + number)

    def _note_disturbance(self, shared: Interference | None, candidates: int) -> None:
        if shared is not None and shared.others + shared.steal > _MOST_SHARED:
            self.remarks.append(
                f"others used {shared.others + shared.steal:.0%} of the processor while"
                f" {candidates} candidates raced, so their figures are worse than they need be"
            )

    @property
    def _warmup(self) -> Sequence[tuple[int, ...]]:
        return self._material.prompts[: self.shape.concurrent]

    def _time(
        self, candidate: Candidate, engine: Engine, prompts: Sequence[tuple[int, ...]]
    ) -> Round:
        """Runs one round; a prefix cache holds what all prompts share, and no prompt as a whole."""
        if candidate.prefix_cache:
            engine.forget_prefixes()
            self._run(engine, self._warmup[:1])
        return self._run(engine, prompts)

    def _run(self, engine: Engine, prompts: Sequence[tuple[int, ...]]) -> Round:
        items = tuple(Item(prompt, self.shape.output_tokens) for prompt in prompts)
        workload = Workload("race", None, (), items)
        result = run_load(EngineTarget(engine), workload, ClosedLoop(len(items)))
        if result.interrupted:
            raise KeyboardInterrupt
        for record in result.records:
            if record.status != "completed":
                raise HastenError(f"a timed request did not complete: {record.reason}")
        return one_round(result)


def _portion(on_round: Callable[[float], None], index: int, count: int, share: float) -> None:
    """Reports a share of one heat as a share of all."""
    on_round((index + share) / count)

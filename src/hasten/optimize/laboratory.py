"""Measures candidates with real engines, keeping an eye on memory."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Self

import numpy as np
from numpy.typing import NDArray

from hasten.generation import Engine
from hasten.generation.formats import MatrixFormat, choose_formats
from hasten.measure.accuracy import (
    Accuracy,
    PairedSamples,
    Reference,
    compare_logits,
    summarize,
)
from hasten.measure.corpus import Windows
from hasten.measure.interference import CpuTimes, between, read_cpu_times
from hasten.measure.tasks.compare import compare_results
from hasten.measure.tasks.items import TaskSet
from hasten.measure.tasks.run import TaskResults, run_tasks
from hasten.measure.tasks.scoring import ScoreFunction
from hasten.models import Model
from hasten.optimize.candidates import (
    Candidate,
    MatrixShapes,
    matrix_shapes,
    original,
    why_unfit,
)
from hasten.optimize.claims import Claim, hold_to_claim
from hasten.optimize.gate import Measured
from hasten.optimize.passes.interface import Pass, Prediction
from hasten.optimize.prediction import predict_passes
from hasten.optimize.race import Track
from hasten.optimize.sensitivity import Part, bytes_saved, mix, parts_of
from hasten.optimize.speed import Duel, Effort, RequestShape, Timings

__all__ = ["EngineLaboratory", "Material", "TaskMaterial"]

Steps = tuple[Pass[Model], ...]


_MOST_SHARED = 0.1
"""Share of the processor that others may use in a race before the report says so."""

_EXACT_TOKENS = 128
"""Tokens on which a step that says it changes nothing is looked at in float32."""


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

    The original stays open; candidates are opened when they are measured and closed after.

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
        self._samples: dict[tuple[Reference, Candidate], PairedSamples] = {}
        self._exact: dict[Steps, PairedSamples] = {}
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
            return summarize(self._glimpse.compare(engine), seed=self._seed)

    def prove(self, candidate: Candidate, confidence: float) -> Measured:
        """Accuracy on the evaluation text and the items of the proof."""
        known = self._material.tasks
        items = None if known is None else known.proof
        return self._measure(self._evaluation, items, candidate, confidence)

    def hold(self, candidate: Candidate, confidence: float) -> Claim:
        """Holds the steps that say they change nothing to that, on what is kept for the proof."""
        steps = candidate.steps
        exact = [
            (step.label, functools.partial(self._in_float32, steps[:number], steps[: number + 1]))
            for number, step in enumerate(steps)
            if step.exact
        ]
        served, beside = map(self._proof_samples, (candidate, candidate.without_exact))
        return hold_to_claim(served, beside, exact, seed=self._seed, confidence=confidence)

    def race(
        self,
        candidates: Sequence[Candidate],
        effort: Effort,
        on_round: Callable[[float], None],
    ) -> dict[Candidate, Duel]:
        """Times candidates in interleaved rounds; the first is the original."""
        began = read_cpu_times()
        found = self._track().race(candidates, effort, on_round)
        self._note_disturbance(began, f"{len(candidates)} candidates raced")
        return found

    def repeat(
        self,
        candidate: Candidate,
        rounds: int,
        seconds: float,
        number: int,
        on_round: Callable[[float], None],
    ) -> Timings:
        """Times one candidate by itself; see `Track.repeat`."""
        began = read_cpu_times()
        found = self._track().repeat(candidate, rounds, seconds, number, on_round)
        self._note_disturbance(began, f"{candidate.label} ran by itself")
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
        return _logits(engine, self._material.calibration.ids[0])

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
            samples = self._samples[reference, candidate] = reference.compare(engine)
            text = summarize(samples, seed=self._seed, confidence=confidence)
            if items is None:
                return Measured(text)
            answers = self._answer(engine, items)
            return Measured(
                text,
                compare_results(
                    self._originals(items), answers, confidence=confidence, seed=self._seed
                ),
            )

    def _proof_samples(self, candidate: Candidate) -> PairedSamples:
        """Of a candidate on the evaluation text, which its proof may have left."""
        key = self._evaluation, candidate
        if key not in self._samples:
            with self._open(candidate) as engine:
                self._samples[key] = self._evaluation.compare(engine)
        return self._samples[key]

    def _in_float32(self, before: Steps, after: Steps) -> PairedSamples:
        """The model after some passes against that after others, both run in float32."""
        if after not in self._exact:
            ids = self._material.evaluation.ids[0][:_EXACT_TOKENS]
            reference, changed = map(self._float32_logits, (before, after), (ids, ids))
            targets = np.asarray(ids[1:], np.int64)
            self._exact[after] = compare_logits(reference[:-1], changed[:-1], targets)
        return self._exact[after]

    def _float32_logits(self, steps: Steps, ids: Sequence[int]) -> NDArray[np.float32]:
        with self._open(replace(original(self._threads), steps=steps)) as engine:
            return _logits(engine, ids)

    def _originals(self, items: TaskSet) -> TaskResults:
        """The original's answers, found once."""
        if items.name not in self._answered:
            self._answered[items.name] = self._answer(self._original, items)
        return self._answered[items.name]

    def _answer(self, engine: Engine, items: TaskSet) -> TaskResults:
        known = self._material.tasks
        return run_tasks(engine, items, function=None if known is None else known.score)

    def _track(self) -> Track:
        return Track(
            self._open,
            self.memory_bytes,
            self._original,
            prompts=self._material.prompts,
            shape=self.shape,
            memory_limit=self._memory_limit // 2,
            seed=self._seed,
        )

    def _note_disturbance(self, began: CpuTimes | None, what: str) -> None:
        shared = between(began, read_cpu_times())
        if shared is None or any(what in remark for remark in self.remarks):
            return
        if shared.others + shared.steal > _MOST_SHARED:
            self.remarks.append(
                f"others used {shared.others + shared.steal:.0%} of the processor while {what}, so"
                " the figures are worse than they need be"
            )


def _logits(engine: Engine, ids: Sequence[int]) -> NDArray[np.float32]:
    return np.concatenate([logits.copy() for _, logits in engine.score(ids)])

"""Measures candidates with real engines, keeping an eye on memory."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Self

import numpy as np
from numpy.typing import NDArray

from hasten.errors import HastenError
from hasten.generation.formats import MatrixFormat, choose_formats
from hasten.measure.accuracy import Accuracy, Reference, summarize
from hasten.measure.corpus import Windows
from hasten.measure.interference import Interference, between, read_cpu_times
from hasten.measure.load import run_load
from hasten.measure.records import Record
from hasten.measure.statistics import interleave
from hasten.measure.targets.engine import EngineTarget
from hasten.measure.workload import Item, Workload
from hasten.models.weights import StoredTensor
from hasten.optimize.candidates import Candidate, matrix_shapes, original, why_unfit
from hasten.optimize.sensitivity import Part, bytes_saved, mix, parts_of
from hasten.optimize.speed import Duel, Effort, RequestShape, Timings, timings

if TYPE_CHECKING:
    from hasten.generation import Engine

__all__ = ["EngineLaboratory", "Material"]


_MOST_SHARED = 0.1
"""Share of the processor that others may use in a race before the report says so."""


@dataclass(frozen=True, slots=True)
class Material:
    """What candidates are measured on.

    Attributes:
        calibration: Windows that the search looks at as often as it likes.
        evaluation: Windows that only the last proof sees.
        prompts: Prompts of the timed requests, one a round and one to warm up; all of one length.
        shape: Lengths of the timed request.
    """

    calibration: Windows
    evaluation: Windows
    prompts: tuple[tuple[int, ...], ...]
    shape: RequestShape


class EngineLaboratory:
    """A `Laboratory` of engines in this process; a context manager.

    The original stays open; candidates are opened when they are measured and closed after. A race
    whose engines do not fit into memory together is run in heats, the original in each.

    Args:
        open_engine: Makes an engine that runs the model as a candidate says.
        weights: The model's tensors.
        vocab_size: Columns of a logits row.
        material: Texts and prompts.
        threads: Threads of the original.
        memory_limit: Bytes that all engines and kept logits together may take.
        seed: Of intervals and of the order in a race.
    """

    def __init__(
        self,
        open_engine: Callable[[Candidate], Engine],
        *,
        weights: Mapping[str, StoredTensor],
        vocab_size: int,
        material: Material,
        threads: int,
        memory_limit: int,
        seed: int,
    ) -> None:
        self._open_engine = open_engine
        self._weights = weights
        self._shapes = matrix_shapes(weights)
        self._vocab_size = vocab_size
        self._material = material
        self._threads = threads
        self._memory_limit = memory_limit
        self._seed = seed
        self.remarks: list[str] = []
        self._began = time.perf_counter()
        self._screened: dict[Candidate, Accuracy] = {}
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
        """Why a group size does not fit the matrices, or None."""
        return why_unfit(candidate.weights, self._shapes)

    def formats(self, candidate: Candidate) -> dict[str, MatrixFormat]:
        """The format that each matrix would run in, without opening an engine."""
        return choose_formats(self._weights, self._shapes, candidate.options(1))

    def screen(self, candidate: Candidate) -> Accuracy:
        """Accuracy on the calibration text."""
        if candidate not in self._screened:
            self._screened[candidate] = self._compare(self._calibration, candidate)
        return self._screened[candidate]

    def glance(self, candidate: Candidate) -> Accuracy:
        """Accuracy on the first calibration window."""
        return self._compare(self._glimpse, candidate)

    def prove(self, candidate: Candidate) -> Accuracy:
        """Accuracy on the evaluation text."""
        return self._compare(self._evaluation, candidate)

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

    def parts(self, base: Candidate, coarse: str) -> dict[Part, int]:
        """The parts whose formats may be mixed, each with the bytes that `coarse` saves."""
        parts = parts_of(self._shapes)
        before, after = self.formats(base), self.formats(mix(base, coarse, parts))
        return bytes_saved(parts, self._shapes, before, after)

    @property
    def shape(self) -> RequestShape:
        """Lengths of the timed request."""
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

    def _open(self, candidate: Candidate) -> Engine:
        engine = self._open_engine(candidate)
        self._memory[candidate] = dict(engine.memory)
        return engine

    def _reference(self, windows: Windows) -> Reference:
        return Reference(
            self._original,
            windows,
            vocab_size=self._vocab_size,
            keep_bytes=self._memory_limit // 8,
        )

    def _compare(self, reference: Reference, candidate: Candidate) -> Accuracy:
        with self._open(candidate) as engine:
            return summarize(reference.compare(engine), seed=self._seed)

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
        records: dict[str, list[Record]] = {}
        with ExitStack() as stack:
            engines = {first: self._original}
            engines |= {one: stack.enter_context(self._open(one)) for one in heat}
            for engine in engines.values():
                self._time(engine, self._material.prompts[0])
            deadline = self.seconds() + effort.seconds
            for number in range(effort.rounds):
                if number >= effort.least and self.seconds() > deadline:
                    break
                for label, results in self._one_round(engines, number).items():
                    records.setdefault(label, []).extend(results)
                on_round((number + 1) / effort.rounds)
        return {one: timings(self.shape, records[one.label]) for one in engines}

    def _one_round(
        self, engines: Mapping[Candidate, Engine], number: int
    ) -> dict[str, list[Record]]:
        """Times the same prompt once on each engine, in an order of its own."""
        prompts = self._material.prompts[1:]
        prompt = prompts[number % len(prompts)]
        runs = {
            one.label: functools.partial(self._time, engine, prompt)
            for one, engine in engines.items()
        }
        return interleave(runs, 1, self._seed + number)

    def _note_disturbance(self, shared: Interference | None, candidates: int) -> None:
        if shared is not None and shared.others + shared.steal > _MOST_SHARED:
            self.remarks.append(
                f"others used {shared.others + shared.steal:.0%} of the processor while"
                f" {candidates} candidates raced, so their figures are worse than they need be"
            )

    def _time(self, engine: Engine, prompt: tuple[int, ...]) -> Record:
        item = Item(prompt, self._material.shape.output_tokens)
        result = run_load(EngineTarget(engine), Workload("race", None, (), (item,)))
        if result.interrupted:
            raise KeyboardInterrupt
        record = result.records[0]
        if record.status != "completed":
            raise HastenError(f"a timed request did not complete: {record.reason}")
        return record


def _portion(on_round: Callable[[float], None], index: int, count: int, share: float) -> None:
    """Reports a share of one heat as a share of all."""
    on_round((index + share) / count)

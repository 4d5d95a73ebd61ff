"""What the search may propose: a weight format, a KV format and a number of threads."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

from hasten.kernels.quantization import BLOCK
from hasten.models import Model
from hasten.optimize.passes.interface import Pass, parameters_of
from hasten.optimize.speed import RequestShape
from hasten.types import EngineOptions, KvFormat

__all__ = [
    "Candidate",
    "MatrixShapes",
    "Operators",
    "matrix_shapes",
    "operator_choices",
    "original",
    "settings_for",
    "thread_counts",
    "uniform_candidates",
    "vocabulary_candidates",
    "vocabulary_matrices",
    "why_unfit",
]

MatrixShapes = Mapping[str, tuple[int, int]]
"""Names and shapes (rows, columns) of a model's matrices."""

FORMATS = ("carried", "int8:32", "int8:64", "int8", "int4:32", "int4:64", "int4:128", "bf16")
QUICK_FORMATS = ("carried", "int8:32", "int4:32", "int4:64")

_GROUPED = re.compile(r"int([48])(?::(\d+))?")


class _Stored(Protocol):
    @property
    def shape(self) -> tuple[int, ...]: ...


@dataclass(frozen=True, slots=True)
class Operators:
    """How a graph's operators are computed; weights and graph stay what they are.

    Attributes:
        fuse: Neighbours run as one where there is a kernel for that.
        isa: Instruction set of the kernels; None for the best of the machine.
    """

    fuse: bool = True
    isa: str | None = None

    @property
    def labels(self) -> list[str]:
        """What is not usual, in words."""
        found = [] if self.fuse else ["op by op"]
        return found if self.isa is None else [*found, f"{self.isa} kernels"]

    def settings(self) -> dict[str, Any]:
        """Fields of `EngineOptions`; what the engine leaves to its defaults is not in it."""
        found: dict[str, Any] = {} if self.fuse else {"fuse": False}
        return found if self.isa is None else {**found, "isa": self.isa}


@dataclass(frozen=True, slots=True)
class Candidate:
    """One way to run the model: passes that change it, and settings that run it.

    Attributes:
        weights: Format of every matrix that has no override.
        kv: Format of the KV cache.
        threads: Worker threads.
        overrides: (tensor name, format) pairs, sorted by name.
        mixed: For a mixed-precision candidate, what was mixed, in words.
        steps: Passes in the order in which they are applied, before the weights are rounded.
        chunk: Most tokens of an executor call; None leaves the engine's default.
        sequences: Most sequences side by side; None for all of a round.
        prefix_cache: Requests that begin alike share what was computed for their beginning.
        operators: How operators are computed.
    """

    weights: str
    kv: KvFormat
    threads: int
    overrides: tuple[tuple[str, str], ...] = ()
    mixed: str = ""
    steps: tuple[Pass[Model], ...] = ()
    chunk: int | None = None
    sequences: int | None = None
    prefix_cache: bool = False
    operators: Operators = Operators()

    @property
    def label(self) -> str:
        """Short name, unique among the candidates of a search."""
        parts = [one.label for one in self.steps]
        parts += [self.mixed or self.weights, f"KV {self.kv}"]
        parts.append(f"{self.threads} thread{'s' * (self.threads != 1)}")
        if self.chunk is not None:
            parts.append(f"steps of {self.chunk} tokens")
        if self.sequences is not None:
            parts.append(f"{self.sequences} at once")
        if self.prefix_cache:
            parts.append("prefix cache")
        return ", ".join(parts + self.operators.labels)

    @property
    def is_exact(self) -> bool:
        """Whether it is the original: every matrix in float32, and no pass."""
        return self.weights == "f32" and not self.overrides and not self.steps

    @property
    def without_exact(self) -> Candidate:
        """The same without the steps that say they change nothing."""
        return replace(self, steps=tuple(step for step in self.steps if not step.exact))

    def options(self, max_context: int, sequences: int = 1) -> EngineOptions:
        """Engine options of this candidate on the native executor.

        Packed weights are not kept, since most candidates are never run again.

        Args:
            max_context: Tokens of the longest sequence.
            sequences: That run side by side where the candidate does not say.
        """
        options = EngineOptions(
            weights=self.weights,
            overrides=dict(self.overrides),
            kv=self.kv,
            threads=self.threads,
            max_context=max_context,
            max_sequences=self.sequences or sequences,
            prefix_cache=self.prefix_cache,
            keep_weights=False,
            **self.operators.settings(),
        )
        return options if self.chunk is None else replace(options, chunk=self.chunk)

    def settings(self) -> dict[str, Any]:
        """As in JSON reports; what the engine leaves to its defaults is not in it."""
        settings: dict[str, Any] = {
            "weights": self.weights,
            "overrides": dict(self.overrides),
            "kv": self.kv,
            "threads": self.threads,
        }
        if self.chunk is not None:
            settings["chunk"] = self.chunk
        if self.sequences is not None:
            settings["max_sequences"] = self.sequences
        if self.prefix_cache:
            settings["prefix_cache"] = True
        return {**settings, **self.operators.settings()}

    def passes(self) -> list[dict[str, Any]]:
        """The passes as in recipes."""
        return [dict(parameters_of(one)) for one in self.steps]

    def with_kv(self, kv: KvFormat) -> Candidate:
        """The same with another KV format."""
        return replace(self, kv=kv)

    def with_threads(self, threads: int) -> Candidate:
        """The same with another number of threads."""
        return replace(self, threads=threads)


def original(threads: int) -> Candidate:
    """The model as transformers computes it: float32 throughout."""
    return Candidate("f32", "f32", threads)


def uniform_candidates(threads: int, formats: Sequence[str]) -> list[Candidate]:
    """One candidate a weight format, KV in bf16, all threads."""
    return [Candidate(name, "bf16", threads) for name in formats]


def vocabulary_candidates(
    threads: int, formats: Sequence[str], names: Iterable[str]
) -> list[Candidate]:
    """Candidates whose embedding and output projection take 4 bits too.

    An engine keeps those two at int8 where the others become int4, since 4 bits cost most there;
    they also are the largest matrices of a small model, so it is worth measuring.

    Args:
        threads: Worker threads.
        formats: Formats of the other matrices.
        names: The matrices that hold the vocabulary.
    """
    overrides = tuple(sorted((name, "int4:32") for name in names))
    return [
        Candidate(name, "bf16", threads, overrides, f"{name}, vocabulary int4:32")
        for name in formats
        if overrides
    ]


def thread_counts(cores: int) -> list[int]:
    """Fewer threads worth trying: halves of the cores, down to one."""
    counts = []
    while cores > 1:
        cores //= 2
        counts.append(cores)
    return counts


def settings_for(base: Candidate, shape: RequestShape) -> list[Candidate]:
    """Other ways to run the same weights, as far as the requests give them something to do.

    Larger steps read weights less often for the same prompts, fewer sequences side by side keep
    more of the cache for each, and a prefix cache saves the part of prompts that they share.
    """
    varied = []
    if shape.concurrent > 1:
        varied += [replace(base, chunk=chunk) for chunk in (256, 1024)]
        varied.append(replace(base, sequences=shape.concurrent // 2))
    if shape.shared:
        varied.append(replace(base, prefix_cache=True))
    return varied


def operator_choices(base: Candidate, isas: Iterable[str]) -> list[Candidate]:
    """The same with operators computed otherwise: without fusion, or by other kernels.

    Fused operators save memory traffic and calls, wider vectors save instructions; a machine may
    lose what that gains to its clock, so it is measured.

    Args:
        base: What is varied.
        isas: Other instruction sets of this machine.
    """
    choices = [Operators(fuse=False), *(Operators(isa=isa) for isa in isas)]
    return [replace(base, operators=one) for one in choices]


def matrix_shapes(weights: Mapping[str, _Stored]) -> dict[str, tuple[int, int]]:
    """The two-dimensional tensors of a model."""
    return {
        name: (stored.shape[0], stored.shape[1])
        for name, stored in weights.items()
        if len(stored.shape) == 2
    }


def vocabulary_matrices(shapes: MatrixShapes, vocab_size: int) -> list[str]:
    """Names of the matrices with a row a token: embedding and output projection."""
    return [name for name, (rows, _) in shapes.items() if rows == vocab_size]


def why_unfit(weights: str, shapes: MatrixShapes) -> str | None:
    """Says which matrix's columns a group size does not divide, or None when all fit."""
    match = _GROUPED.fullmatch(weights)
    if match is None or match[2] is None:
        return None
    group = int(match[2])
    for name, (_, columns) in shapes.items():
        padded = -(-columns // BLOCK) * BLOCK
        if padded % group:
            return f"groups of {group} do not divide the {columns} columns of {name}"
    return None

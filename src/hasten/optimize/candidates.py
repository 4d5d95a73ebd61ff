"""What the search may propose: a weight format, a KV format and a number of threads."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

from hasten.kernels.quantization import BLOCK
from hasten.types import EngineOptions, KvFormat

__all__ = [
    "Candidate",
    "MatrixShapes",
    "matrix_bytes",
    "matrix_shapes",
    "original",
    "thread_counts",
    "uniform_candidates",
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
class Candidate:
    """One way to run the model.

    Attributes:
        weights: Format of every matrix that has no override.
        kv: Format of the KV cache.
        threads: Worker threads.
        overrides: (tensor name, format) pairs, sorted by name.
        mixed: For a mixed-precision candidate, what was mixed, in words.
    """

    weights: str
    kv: KvFormat
    threads: int
    overrides: tuple[tuple[str, str], ...] = ()
    mixed: str = ""

    @property
    def label(self) -> str:
        """Short name, unique among the candidates of a search."""
        weights = self.mixed or self.weights
        return f"{weights}, KV {self.kv}, {self.threads} thread{'s' * (self.threads != 1)}"

    def options(self, max_context: int) -> EngineOptions:
        """Engine options of this candidate on the native executor."""
        return EngineOptions(
            weights=self.weights,
            overrides=dict(self.overrides),
            kv=self.kv,
            threads=self.threads,
            max_context=max_context,
        )

    def settings(self) -> dict[str, Any]:
        """As in JSON reports."""
        return {
            "weights": self.weights,
            "overrides": dict(self.overrides),
            "kv": self.kv,
            "threads": self.threads,
        }

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


def thread_counts(cores: int) -> list[int]:
    """Fewer threads worth trying: halves of the cores, down to one."""
    counts = []
    while cores > 1:
        cores //= 2
        counts.append(cores)
    return counts


def matrix_shapes(weights: Mapping[str, _Stored]) -> dict[str, tuple[int, int]]:
    """The two-dimensional tensors of a model."""
    return {
        name: (stored.shape[0], stored.shape[1])
        for name, stored in weights.items()
        if len(stored.shape) == 2
    }


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


def matrix_bytes(weights: str, shapes: Iterable[tuple[int, int]]) -> int | None:
    """Bytes of matrices in a format, or None for "carried", which only the file knows."""
    cells = [(rows, -(-columns // BLOCK) * BLOCK) for rows, columns in shapes]
    if weights in ("f32", "bf16"):
        return sum(rows * columns for rows, columns in cells) * (4 if weights == "f32" else 2)
    match = _GROUPED.fullmatch(weights)
    if match is None:
        return None
    bits = int(match[1])
    total = 0
    for rows, columns in cells:
        group = int(match[2] or columns)
        # A float16 scale a group, and for int4 a float16 minimum beside it.
        total += rows * columns * bits // 8 + rows * (columns // group) * (4 if bits == 4 else 2)
    return total

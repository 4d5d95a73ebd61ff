"""What is to be made faster: the requests that are timed, and the bounds that they must keep."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from hasten.errors import UsageError
from hasten.measure.goals import GOALS, Goal
from hasten.optimize.speed import RequestShape, Timings
from hasten.optimize.tail import TailBound

__all__ = ["SHAPES", "Objective", "objective_of"]

SHAPES: Mapping[str, RequestShape] = {
    "chat": RequestShape(128, 64),
    "real-time": RequestShape(64, 32),
    "rewrite": RequestShape(256, 256),
    "batch": RequestShape(128, 128, 16),
    "mass": RequestShape(128, 16, 16),
    "edge": RequestShape(128, 64),
}
"""Requests that stand for a use where the user gives no lengths."""

_TITLES = {"ttft": "time to first token", "tpot": "time per output token", "e2e": "latency"}


@dataclass(frozen=True, slots=True)
class Objective:
    """The seconds of a round are to be least, as far as these bounds are kept.

    Attributes:
        name: Of the use, or "as given".
        shape: The requests of a round.
        bounds: Milliseconds that the medians of "ttft", "tpot" and "e2e" may take.
        least_throughput: Output tokens a second at least; None for no bound.
        most_memory: Bytes of weights, KV cache and buffers at most; None for no bound.
        tails: What nearly all requests have to keep; takes many requests to show.
    """

    name: str
    shape: RequestShape
    bounds: Mapping[str, float] = field(default_factory=dict)
    least_throughput: float | None = None
    most_memory: int | None = None
    tails: tuple[TailBound, ...] = ()

    def shortfalls(self, timings: Timings, memory: int | None) -> Iterator[str]:
        """The bounds that a candidate does not keep, in words.

        Of bounds on nearly all requests only those that most requests break: a race is too short
        to show that they are kept.

        Args:
            timings: Of its rounds.
            memory: Bytes that it holds; None where that is not known.
        """
        for metric, bound in self.bounds.items():
            found = 1e3 * timings.median(metric)
            if found > bound:
                yield f"{_TITLES[metric]} {found:.4g} ms, bound {bound:g} ms"
        for tail in self.tails:
            hopeless = tail.why_hopeless(timings.requests(tail.metric))
            if hopeless is not None:
                yield hopeless
        throughput = timings.as_dict()["output_tokens_per_s"]
        if self.least_throughput is not None and throughput < self.least_throughput:
            yield f"{throughput:.4g} output tokens/s, bound {self.least_throughput:g}"
        if self.most_memory is not None and memory is not None and memory > self.most_memory:
            yield f"{memory / 2**20:.0f} MiB of memory, bound {self.most_memory / 2**20:.0f} MiB"

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready values."""
        return {
            "name": self.name,
            "input_tokens": self.shape.input_tokens,
            "output_tokens": self.shape.output_tokens,
            "concurrent": self.shape.concurrent,
            "shared_tokens": self.shape.shared,
            "bounds_ms": dict(self.bounds),
            "tail_bounds": [asdict(one) for one in self.tails],
            "least_output_tokens_per_s": self.least_throughput,
            "most_memory_bytes": self.most_memory,
        }


def objective_of(
    name: str = "chat",
    *,
    input_tokens: int | None = None,
    output_tokens: int | None = None,
    concurrent: int | None = None,
    shared: int = 0,
    bounds: Mapping[str, float] | None = None,
    least_throughput: float | None = None,
    most_memory: int | None = None,
    tails: tuple[TailBound, ...] = (),
) -> Objective:
    """The objective of a use, changed where the user says otherwise.

    Args:
        name: A key of `hasten.measure.goals.GOALS`.
        input_tokens: Of a request.
        output_tokens: Of a request.
        concurrent: Requests of a round.
        shared: Tokens with which all prompts begin.
        bounds: Milliseconds, beside or in the place of the use's own.
        least_throughput: Output tokens a second.
        most_memory: Bytes.
        tails: What nearly all requests have to keep.

    Raises:
        UsageError: Prompts would share more tokens than they have.
    """
    goal: Goal = GOALS[name]
    usual = SHAPES[name]
    shape = RequestShape(
        input_tokens or usual.input_tokens,
        output_tokens or usual.output_tokens,
        concurrent or usual.concurrent,
        shared,
    )
    if shared >= shape.input_tokens:
        raise UsageError(
            f"prompts of {shape.input_tokens} tokens cannot share {shared}",
            allowed=f"fewer than {shape.input_tokens}",
        )
    return Objective(
        name,
        shape,
        {**goal.bounds, **(bounds or {})},
        least_throughput,
        goal.memory_bytes if most_memory is None else most_memory,
        tails,
    )

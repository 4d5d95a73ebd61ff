"""What traffic is like: how it comes, how long requests are, what they have in common."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from hasten.errors import UsageError
from hasten.measure.statistics import Summary, summarize
from hasten.measure.workload import Item, Workload

__all__ = ["BLOCK", "Traffic", "describe"]

BLOCK = 16
"""Tokens that a prefix is compared by: KV blocks of engines are of this size, or of twice it."""


@dataclass(frozen=True, slots=True)
class Traffic:
    """A description of requests.

    Attributes:
        requests: How many.
        seconds: From the first to the last; None where no times are known, as with all that follows
            from them.
        rate: Requests a second.
        burstiness: Squared coefficient of variation of the distances: 1 for Poisson arrivals, more
            for bursts. None for fewer than two distances.
        busiest_second: Most requests within one second.
        input_tokens: Lengths of prompts.
        output_tokens: Lengths of answers.
        shared_prefix: Share of the prompts' tokens, in whole blocks of 16, that begin a prompt
            before, too: what an unbounded prefix cache would save.
        repeated: Share of requests whose whole prompt came before: what an answer cache could save.
    """

    requests: int
    seconds: float | None
    rate: float | None
    burstiness: float | None
    busiest_second: int | None
    input_tokens: Summary
    output_tokens: Summary
    shared_prefix: float
    repeated: float

    def as_dict(self) -> dict[str, object]:
        """JSON-ready values."""
        return {
            "requests": self.requests,
            "seconds": self.seconds,
            "rate": self.rate,
            "burstiness": self.burstiness,
            "busiest_second": self.busiest_second,
            "input_tokens": self.input_tokens.as_dict(),
            "output_tokens": self.output_tokens.as_dict(),
            "shared_prefix": self.shared_prefix,
            "repeated": self.repeated,
        }


def describe(workload: Workload) -> Traffic:
    """Describes a workload whose prompts are tokens, as `hasten serve --record` keeps them.

    Raises:
        UsageError: A prompt is a text, whose tokens are not known.
    """
    prompts: list[tuple[int, ...]] = []
    outputs: list[int] = []
    for work in workload.items:
        if not isinstance(work, Item) or not isinstance(work.prompt, tuple):
            raise UsageError(
                f"{workload.source} holds texts, whose tokens are not known",
                do="describe a file that `hasten serve --record` wrote",
            )
        prompts.append(work.prompt)
        outputs.append(work.output_tokens)
    shared, repeated = _in_common(prompts)
    seconds = rate = burstiness = busiest = None
    if workload.times is not None:
        seconds, rate, burstiness, busiest = _arrivals(workload.times)
    return Traffic(
        requests=len(prompts),
        seconds=seconds,
        rate=rate,
        burstiness=burstiness,
        busiest_second=busiest,
        input_tokens=summarize([len(prompt) for prompt in prompts], "tokens"),
        output_tokens=summarize(outputs, "tokens"),
        shared_prefix=shared,
        repeated=repeated,
    )


def _arrivals(
    times: Sequence[float],
) -> tuple[float, float | None, float | None, int]:
    gaps = np.array([later - earlier for earlier, later in pairwise(times)])
    seconds = times[-1] - times[0]
    rate = len(gaps) / seconds if seconds > 0 else None
    burstiness = None
    if len(gaps) > 1 and gaps.mean() > 0:
        burstiness = float(gaps.var() / gaps.mean() ** 2)
    at = np.array(times)
    busiest = int((np.searchsorted(at, at + 1.0) - np.arange(len(at))).max())
    return seconds, rate, burstiness, busiest


def _in_common(prompts: Sequence[tuple[int, ...]]) -> tuple[float, float]:
    """Shares of tokens and of whole prompts that came before."""
    beginnings: set[bytes] = set()
    whole: set[tuple[int, ...]] = set()
    shared = repeated = tokens = 0
    for prompt in prompts:
        tokens += len(prompt)
        repeated += prompt in whole
        whole.add(prompt)
        chain, known = b"", True
        for start in range(0, len(prompt) - BLOCK + 1, BLOCK):
            block = np.array(prompt[start : start + BLOCK], dtype="<i8").tobytes()
            chain = hashlib.blake2b(chain + block, digest_size=16).digest()
            known = known and chain in beginnings
            shared += BLOCK if known else 0
            beginnings.add(chain)
    return (shared / tokens if tokens else 0.0), (repeated / len(prompts) if prompts else 0.0)

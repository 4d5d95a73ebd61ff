"""Where the time of requests to a server goes: queue, prefill, decode, the rest, the network.

A server that counts for Prometheus tells sums over all its requests, so the difference of two
readings is that of a load, if nobody else used the server in between. Ollama's answers tell their
own times.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from hasten.measure.metrics import e2e
from hasten.measure.records import Record

__all__ = ["COUNTERS", "ServerTimes", "Totals", "find_server_times", "named_parts"]

Totals = Mapping[str, float]
"""Counters by name, each summed over its labels."""

PARTS = ("queue", "prefill", "decode")
DIALECTS = (
    {
        "e2e": "hasten_e2e_seconds",
        "queue": "hasten_queue_seconds",
        "prefill": "hasten_prefill_seconds",
        "decode": "hasten_decode_seconds",
    },
    {
        "e2e": "vllm:e2e_request_latency_seconds",
        "queue": "vllm:request_queue_time_seconds",
        "prefill": "vllm:request_prefill_time_seconds",
        "decode": "vllm:request_decode_time_seconds",
    },
)
"""What servers call the histograms of each part."""
COUNTERS = frozenset(
    f"{name}_{what}" for names in DIALECTS for name in names.values() for what in ("sum", "count")
)
"""All that is to be read of a server."""


@dataclass(frozen=True, slots=True)
class ServerTimes:
    """Means over requests, in milliseconds, that add up to the client's end-to-end time.

    Attributes:
        queue: Waiting in the server; None where it does not tell, as for the next two: then it is
            part of `rest`.
        prefill: Reading prompts.
        decode: Computing tokens after the first.
        rest: Of the server.
        network: The client's end-to-end time less the server's: network, HTTP, and both ends of it.
        requests: How many.
    """

    queue: float | None
    prefill: float | None
    decode: float | None
    rest: float
    network: float
    requests: int

    def as_dict(self) -> dict[str, float | int | None]:
        """As it stands in a report."""
        return {
            "queue_ms": self.queue,
            "prefill_ms": self.prefill,
            "decode_ms": self.decode,
            "rest_ms": self.rest,
            "network_ms": self.network,
            "requests": self.requests,
        }


def named_parts(document: Mapping[str, float | None]) -> list[tuple[str, float]]:
    """The parts of `ServerTimes.as_dict` that are known, by names for a reader."""
    names = {
        "queue_ms": "queue",
        "prefill_ms": "prefill",
        "decode_ms": "decode",
        "rest_ms": "rest of the server",
        "network_ms": "network and HTTP",
    }
    return [(name, mean) for key, name in names.items() if (mean := document[key]) is not None]


def find_server_times(
    records: Sequence[Record], counters: tuple[Totals, Totals] | None
) -> tuple[ServerTimes | None, str | None]:
    """What the server's counters tell of a load, or else its answers.

    Args:
        records: All requests of the load.
        counters: Before and after it; None where the server publishes none.

    Returns:
        The times, or None and, where the server counted something else than these requests, a note.
    """
    note = None
    if counters is not None:
        times, note = _of_counters(records, *counters)
        if times is not None:
            return times, None
    times = _of_answers([record for record in records if record.status == "completed"])
    return times, None if times is not None else note


def _of_counters(
    records: Sequence[Record], before: Totals, after: Totals
) -> tuple[ServerTimes | None, str | None]:
    for names in DIALECTS:
        grown = {part: _growth(name, before, after) for part, name in names.items()}
        seconds, counted = grown.pop("e2e") or (0.0, 0)
        if not counted:
            continue
        told = {part: found for part, found in grown.items() if found is not None}
        counts = (counted, *(count for _, count in told.values()))
        odd = next((count for count in counts if count != len(records)), None)
        if odd is not None:
            why = f"the server counted {odd} requests, {len(records)} were sent"
            return None, f"no times of the server: {why}; others used it, or requests failed"
        if any(record.status != "completed" for record in records):
            return None, "no times of the server: requests failed or were truncated"
        return _account(records, seconds, {part: sum_ for part, (sum_, _) in told.items()}), None
    return None, None


def _growth(name: str, before: Totals, after: Totals) -> tuple[float, int] | None:
    """Seconds and requests that a histogram grew by; None where there is none."""
    total, count = f"{name}_sum", f"{name}_count"
    if total not in after or count not in after:
        return None
    return after[total] - before.get(total, 0.0), round(after[count] - before.get(count, 0.0))


def _of_answers(completed: Sequence[Record]) -> ServerTimes | None:
    """From what each answer told of itself; a part that took no time may be missing in some."""
    if not completed or not all("total" in record.parts for record in completed):
        return None
    told = {
        part: math.fsum(record.parts.get(part, 0.0) for record in completed)
        for part in PARTS
        if any(part in record.parts for record in completed)
    }
    return _account(completed, math.fsum(record.parts["total"] for record in completed), told)


def _account(
    records: Sequence[Record], seconds: float, parts: Mapping[str, float]
) -> ServerTimes | None:
    """Means, given sums over all requests of the server's times."""
    spent = [value for record in records if (value := e2e(record)) is not None]
    if len(spent) != len(records):
        return None
    each = 1000 / len(records)
    means = {part: each * sum_ for part, sum_ in parts.items()}
    return ServerTimes(
        queue=means.get("queue"),
        prefill=means.get("prefill"),
        decode=means.get("decode"),
        rest=each * (seconds - math.fsum(parts.values())),
        network=1000 * fmean(spent) - each * seconds,
        requests=len(records),
    )

"""Metrics of single requests: one definition each, printed beside every figure.

All times are seconds on one monotonic clock. A metric that a request does not define (TPOT of a
single token, any latency of a failed request) is absent from the sample, never 0.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from hasten.measure.records import Record
from hasten.measure.statistics import Summary, summarize

__all__ = [
    "FORMULAS",
    "Throughput",
    "decode_rate",
    "e2e",
    "itl",
    "latencies",
    "model_latency",
    "peak_output_rate",
    "prefill_rate",
    "samples",
    "throughput",
    "tokens_per_event",
    "tpot",
    "ttft",
]

FORMULAS = {
    "ttft": "first event that carries a token - intended send",
    "itl": "gap between consecutive output events that carry tokens; an event may carry several",
    "tpot": "(last token - first token) / (tokens - 1) per request; undefined for one token, or "
    "where all tokens came at once",
    "e2e": "last output event - intended send",
    "model_latency": "sum over a request of the time inside the executor",
    "requests_per_s": "completed requests / measured window",
    "output_tokens_per_s": "output tokens of completed requests / measured window",
    "total_tokens_per_s": "prompt and output tokens of completed requests / measured window",
    "prefill_tokens_per_s": "sum of prompt tokens / sum of TTFT, over completed requests",
    "decode_tokens_per_s": "sum of (tokens - 1) / sum of (last token - first token), "
    "over completed requests with two tokens or more",
    "goodput_requests_per_s": "completed requests that met all bounds of the goal / window",
    "queue_ms, prefill_ms, decode_ms": "the server's own: what the sums of its histograms grew by "
    "from before the first request that counts to after the last, or its answers told, / requests",
    "rest_ms": "mean end-to-end time by the server - the parts that it tells",
    "network_ms": "mean e2e - mean end-to-end time by the server: network, HTTP, both ends of it, "
    "and what the client sent late",
    "window": "intended send of the first measured request to the end of the last one",
    "intended_send": "closed loop: the moment that a request before ended; open loop: the moment "
    "that the schedule said",
    "percentile": "linear interpolation between order statistics; null unless n reaches the count "
    "that bounds it at 99 % confidence (p50 7, p90 44, p95 90, p99 459)",
    "truncated": "requests that ended before the output asked for; they count in no metric",
}


@dataclass(frozen=True, slots=True)
class Throughput:
    """Completed work per second of the measured window; None for an empty window.

    The total is None, too, where a prompt's length is not known.
    """

    requests_per_s: float | None
    output_tokens_per_s: float | None
    total_tokens_per_s: float | None


def ttft(record: Record) -> float | None:
    """Time to first token, in seconds."""
    events = record.token_events
    return events[0].time - record.intended_send if events else None


def itl(record: Record) -> list[float]:
    """Gaps between consecutive events that carry tokens, in seconds."""
    times = [event.time for event in record.token_events]
    return [later - earlier for earlier, later in pairwise(times)]


def tpot(record: Record) -> float | None:
    """Time per output token after the first, in seconds.

    None for fewer than two tokens, and where all came at once: nothing tells them apart in time.
    """
    events = record.token_events
    if record.output_tokens < 2 or len(events) < 2:
        return None
    return (events[-1].time - events[0].time) / (record.output_tokens - 1)


def e2e(record: Record) -> float | None:
    """Time from the intended send to the last output event, in seconds."""
    return record.events[-1].time - record.intended_send if record.events else None


def model_latency(record: Record) -> float | None:
    """Time inside the executor, in seconds; None where the target does not tell it."""
    return sum(event.model_seconds for event in record.events) or None


def latencies(records: Sequence[Record]) -> dict[str, Summary]:
    """Summarise the latencies of the completed requests, in milliseconds.

    Returns:
        Summaries of "ttft", "tpot", "itl", "e2e" and "model_latency".
    """
    return {name: summarize(values, "ms") for name, values in samples(records).items()}


def samples(records: Sequence[Record]) -> dict[str, list[float]]:
    """Latencies of the completed requests, in milliseconds and in their order.

    Returns:
        Values of "ttft", "tpot", "itl", "e2e" and "model_latency", where a request defines them.
    """
    completed = _completed(records)
    single: dict[str, Callable[[Record], float | None]] = {
        "ttft": ttft,
        "tpot": tpot,
        "e2e": e2e,
        "model_latency": model_latency,
    }
    found = {
        name: [1000 * value for record in completed if (value := metric(record)) is not None]
        for name, metric in single.items()
    }
    found["itl"] = [1000 * gap for record in completed for gap in itl(record)]
    return {name: found[name] for name in ("ttft", "tpot", "itl", "e2e", "model_latency")}


def throughput(records: Sequence[Record], window: float) -> Throughput:
    """Completed work over the measured window.

    Args:
        records: All requests of the window; failed and truncated ones count as time alone.
        window: Seconds.
    """
    if window <= 0:
        return Throughput(None, None, None)
    completed = _completed(records)
    output = sum(record.output_tokens for record in completed)
    prompts = [record.prompt_tokens for record in completed if record.prompt_tokens is not None]
    total = (sum(prompts) + output) / window if len(prompts) == len(completed) else None
    return Throughput(len(completed) / window, output / window, total)


def peak_output_rate(records: Sequence[Record]) -> float | None:
    """Output tokens per second of completed requests in the busiest part of the window.

    Parts are equal and of a second or a little more (the whole window if it is shorter), so that
    the peak is never below the mean over the same window. Tokens count when they arrive, however
    many an event carries.

    Args:
        records: All requests of the window.

    Returns:
        The rate; None for an empty window.
    """
    if not records:
        return None
    start = min(record.intended_send for record in records)
    window = max(record.end for record in records) - start
    if window <= 0:
        return None
    parts = [0] * max(1, int(window))
    for record in _completed(records):
        for event in record.token_events:
            place = int((event.time - start) / window * len(parts))
            parts[min(place, len(parts) - 1)] += event.tokens
    return max(parts) * len(parts) / window


def prefill_rate(records: Sequence[Record]) -> float | None:
    """Prompt tokens per second until the first token; None without a completed request."""
    firsts = [
        (record.prompt_tokens, first)
        for record in _completed(records)
        if record.prompt_tokens is not None and (first := ttft(record)) is not None
    ]
    seconds = sum(first for _, first in firsts)
    return sum(tokens for tokens, _ in firsts) / seconds if seconds > 0 else None


def decode_rate(records: Sequence[Record]) -> float | None:
    """Output tokens per second after the first; None if no request has two tokens."""
    tokens, seconds = 0, 0.0
    for record in _completed(records):
        events = record.token_events
        if record.output_tokens > 1 and len(events) > 1:
            tokens += record.output_tokens - 1
            seconds += events[-1].time - events[0].time
    return tokens / seconds if seconds > 0 else None


def tokens_per_event(records: Sequence[Record]) -> float | None:
    """Mean number of tokens that an output event carried, over completed requests."""
    events = [event for record in _completed(records) for event in record.token_events]
    return sum(event.tokens for event in events) / len(events) if events else None


def _completed(records: Sequence[Record]) -> list[Record]:
    return [record for record in records if record.status == "completed"]

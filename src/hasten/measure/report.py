"""The bench report: one JSON document by the contract `hasten.bench/1`, and its table."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from hasten.errors import UsageError
from hasten.machine import Machine
from hasten.measure.arrivals import Pattern
from hasten.measure.audit import Audit
from hasten.measure.goals import Check, Goal, check, goodput
from hasten.measure.load import LoadResult
from hasten.measure.memory import PeakRss
from hasten.measure.metrics import (
    FORMULAS,
    decode_rate,
    e2e,
    latencies,
    model_latency,
    prefill_rate,
    throughput,
    tokens_per_event,
    tpot,
    ttft,
)
from hasten.measure.records import Record
from hasten.measure.server_times import ServerTimes, Totals, find_server_times
from hasten.measure.statistics import PERCENTILES, Summary, minimum_samples
from hasten.measure.steady import find_steady_state
from hasten.measure.workload import Workload

__all__ = ["COLUMNS", "SCHEMA", "BenchReport", "build_report", "columns", "write_csv"]

SCHEMA = "hasten.bench/1"


@dataclass(frozen=True, slots=True)
class BenchReport:
    """What a benchmark found.

    Attributes:
        target: What was measured and how it ran.
        scenario: When requests were sent.
        workload: What was asked for.
        machine: Where.
        metrics: A summary of each latency, in milliseconds.
        rates: Named figures per second; None where the sample defines none.
        requests: Numbers of completed, failed and truncated requests.
        records: Every request, in the order in which they were to be sent.
        peak: Largest resident set of the target; None where it is not known.
        server_times: Where the time went, as the server tells; None where it does not.
        audit: Of the run itself.
        goal: What was asked of the target; None for nothing.
        checks: Objectives of the goal beside what was measured.
        window: Seconds that were measured.
        valid: Whether the figures stand for the target alone.
        notes: What a reader must know, beginning with why the report is not valid.
    """

    target: Mapping[str, object]
    scenario: Mapping[str, object]
    workload: Workload
    machine: Machine
    metrics: Mapping[str, Summary]
    rates: Mapping[str, float | None]
    requests: Mapping[str, int]
    records: tuple[Record, ...]
    peak: PeakRss | None
    server_times: ServerTimes | None
    audit: Audit
    goal: Goal | None
    checks: tuple[Check, ...]
    window: float
    valid: bool
    notes: tuple[str, ...]

    def as_dict(self) -> dict[str, object]:
        """The document of the contract."""
        return {
            "schema": SCHEMA,
            "target": dict(self.target),
            "scenario": {**self.scenario, "window_s": self.window},
            "workload": self.workload.as_dict(),
            "machine": self.machine.as_dict(),
            "metrics": {name: summary.as_dict() for name, summary in self.metrics.items()},
            "throughput": dict(self.rates),
            "requests": dict(self.requests),
            "memory": {"peak_rss_bytes": None if self.peak is None else self.peak.size_bytes},
            "server_times": None if self.server_times is None else self.server_times.as_dict(),
            "audit": self.audit.as_dict(),
            "goal": None if self.goal is None else self.goal.as_dict(),
            "checks": [one.as_dict() for one in self.checks],
            "records": columns(self.records),
            "formulas": FORMULAS,
            "valid": self.valid,
            "notes": list(self.notes),
        }

    def latency_rows(self) -> list[list[str]]:
        """Rows of the latency table: name, n, mean, percentiles, greatest; in milliseconds."""
        return [
            [
                name,
                str(summary.n),
                _cell(summary.mean),
                *(_cell(summary.percentiles[percent]) for percent in PERCENTILES),
                _cell(summary.max),
            ]
            for name, summary in self.metrics.items()
        ]


def build_report(
    *,
    target: Mapping[str, object],
    pattern: Pattern,
    workload: Workload,
    machine: Machine,
    result: LoadResult,
    peak: PeakRss | None,
    audit: Audit,
    goal: Goal | None = None,
    counters: tuple[Totals, Totals] | None = None,
) -> BenchReport:
    """Turn what a load measured into a report."""
    metrics = latencies(result.records)
    memory = None if peak is None else peak.size_bytes
    rates = throughput(result.records, result.window)
    counts = Counter(record.status for record in result.records)
    problems = [*_problems(result), *audit.problems]
    times, doubt = find_server_times(result.records, counters)
    return BenchReport(
        target=target,
        scenario=pattern.describe(),
        workload=workload,
        machine=machine,
        metrics=metrics,
        rates={
            "requests_per_s": rates.requests_per_s,
            "output_tokens_per_s": rates.output_tokens_per_s,
            "total_tokens_per_s": rates.total_tokens_per_s,
            "prefill_tokens_per_s": prefill_rate(result.records),
            "decode_tokens_per_s": decode_rate(result.records),
            **_goodput(result, goal),
        },
        requests={name: counts[name] for name in ("completed", "failed", "truncated")},
        records=result.records,
        peak=peak,
        server_times=times,
        audit=audit,
        goal=goal,
        checks=() if goal is None else tuple(check(result.records, goal, memory)),
        window=result.window,
        valid=not problems,
        notes=(*problems, *_remarks(result, metrics, peak, audit), *([doubt] if doubt else [])),
    )


def _goodput(result: LoadResult, goal: Goal | None) -> dict[str, float | None]:
    if goal is None:
        return {}
    return {"goodput_requests_per_s": goodput(result.records, goal, result.window)}


def columns(records: Sequence[Record]) -> dict[str, list[object]]:
    """Requests as columns of a table, times in milliseconds but for `intended_s`.

    Returns:
        A value for each request in each column; None where a request does not define one, as one
        that failed defines no latency.
    """
    begin = records[0].intended_send if records else 0.0
    rows = [_row(record, begin) for record in records]
    return {name: [row[name] for row in rows] for name in COLUMNS}


def write_csv(records: Sequence[Record], path: Path) -> None:
    """Writes the requests as CSV, one a line; a value that is not defined is empty.

    Raises:
        UsageError: The file cannot be written.
    """
    table = columns(records)
    try:
        with path.open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(table)
            writer.writerows(zip(*table.values(), strict=True))
    except OSError as error:
        raise UsageError(f"cannot write {path}: {error.strerror}") from error


COLUMNS = (
    *("request_id", "status", "reason", "prompt_tokens", "output_tokens", "intended_s", "lag_ms"),
    *("ttft_ms", "tpot_ms", "e2e_ms", "model_ms"),
)


def _row(record: Record, begin: float) -> dict[str, object]:
    """Latencies only of what completed, as in the metrics."""
    counts = record.status == "completed"

    def milliseconds(metric: Callable[[Record], float | None]) -> float | None:
        value = metric(record) if counts else None
        return None if value is None else round(1000 * value, 4)

    return {
        "request_id": record.request_id,
        "status": record.status,
        "reason": record.reason,
        "prompt_tokens": record.prompt_tokens,
        "output_tokens": record.output_tokens,
        "intended_s": round(record.intended_send - begin, 6),
        "lag_ms": round(1000 * (record.sent - record.intended_send), 4),
        "ttft_ms": milliseconds(ttft),
        "tpot_ms": milliseconds(tpot),
        "e2e_ms": milliseconds(e2e),
        "model_ms": milliseconds(model_latency),
    }


def _problems(result: LoadResult) -> list[str]:
    """Say why the figures do not stand for what was asked."""
    problems = []
    completed = sum(record.status == "completed" for record in result.records)
    if result.interrupted:
        problems.append("partial: interrupted by the user")
    if not completed:
        problems.append("invalid: no request completed")
    return problems


def _remarks(
    result: LoadResult,
    metrics: Mapping[str, Summary],
    peak: PeakRss | None,
    audit: Audit,
) -> list[str]:
    """Say what else a reader must know."""
    remarks = [*_reasons(result)]
    small: dict[str, list[str]] = {}
    for name, summary in metrics.items():
        missing = [percent for percent, value in summary.percentiles.items() if value is None]
        if summary.n and missing:
            needs = ", ".join(f"p{p} needs {minimum_samples(p / 100)}" for p in missing)
            small.setdefault(f"n = {summary.n} is too small a sample: {needs}", []).append(name)
    remarks += [f"{', '.join(names)}: {why}" for why, names in small.items()]
    per_event = tokens_per_event(result.records)
    if per_event is not None:
        remarks.append(f"itl: an output event carried {per_event:.2f} tokens on average")
    if result.out_of_time:
        remarks.append("the limit of duration ended the run before all requests were sent")
    if peak is not None and peak.since_start:
        remarks.append("peak memory since the process began: the kernel would not reset the mark")
    steady = find_steady_state([value for r in _completed(result) if (value := e2e(r)) is not None])
    if steady.warmup or steady.settled is False:
        remarks.append(steady.describe())
    shared = audit.interference
    if shared is not None:
        remarks.append(f"processor time: others {shared.others:.1%}, hypervisor {shared.steal:.1%}")
    return [*remarks, *audit.notes]


def _completed(result: LoadResult) -> list[Record]:
    return [record for record in result.records if record.status == "completed"]


def _reasons(result: LoadResult) -> list[str]:
    """Name each reason for requests that do not count, once."""
    reasons = Counter(
        f"{record.status}: {record.reason}"
        for record in result.records
        if record.status != "completed"
    )
    reasons.update(f"failed in the warm-up: {reason}" for reason in result.warmup_failures)
    return [f"{count} x {reason}" for reason, count in reasons.items()]


def _cell(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"

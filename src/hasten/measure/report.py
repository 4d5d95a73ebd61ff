"""The bench report: one JSON document by the contract `hasten.bench/1`, and its table."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from hasten.machine import Machine
from hasten.measure.interference import Interference
from hasten.measure.load import LoadResult
from hasten.measure.memory import PeakRss
from hasten.measure.metrics import (
    FORMULAS,
    decode_rate,
    latencies,
    prefill_rate,
    throughput,
    tokens_per_event,
)
from hasten.measure.statistics import PERCENTILES, Summary, minimum_samples
from hasten.measure.workload import Workload

__all__ = ["SCHEMA", "BenchReport", "build_report"]

SCHEMA = "hasten.bench/1"


@dataclass(frozen=True, slots=True)
class BenchReport:
    """What a benchmark found.

    Attributes:
        target: What was measured and how it ran.
        workload: What was asked for.
        machine: Where.
        metrics: A summary of each latency, in milliseconds.
        rates: Named figures per second; None where the sample defines none.
        requests: Numbers of completed, failed and truncated requests.
        peak: Largest resident set.
        window: Seconds that were measured.
        valid: Whether the figures stand for the target alone.
        notes: What a reader must know, beginning with why the report is not valid.
    """

    target: Mapping[str, object]
    workload: Workload
    machine: Machine
    metrics: Mapping[str, Summary]
    rates: Mapping[str, float | None]
    requests: Mapping[str, int]
    peak: PeakRss
    window: float
    valid: bool
    notes: tuple[str, ...]

    def as_dict(self) -> dict[str, object]:
        """The document of the contract."""
        return {
            "schema": SCHEMA,
            "target": dict(self.target),
            "scenario": {"name": "single-stream", "concurrency": 1, "window_s": self.window},
            "workload": self.workload.as_dict(),
            "machine": self.machine.as_dict(),
            "metrics": {name: summary.as_dict() for name, summary in self.metrics.items()},
            "throughput": dict(self.rates),
            "requests": dict(self.requests),
            "memory": {"peak_rss_bytes": self.peak.size_bytes},
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
    workload: Workload,
    machine: Machine,
    result: LoadResult,
    peak: PeakRss,
    interference: Interference | None,
) -> BenchReport:
    """Turn what a load measured into a report."""
    metrics = latencies(result.records)
    rates = throughput(result.records, result.window)
    counts = Counter(record.status for record in result.records)
    problems = _problems(result, interference)
    return BenchReport(
        target=target,
        workload=workload,
        machine=machine,
        metrics=metrics,
        rates={
            "requests_per_s": rates.requests_per_s,
            "output_tokens_per_s": rates.output_tokens_per_s,
            "total_tokens_per_s": rates.total_tokens_per_s,
            "prefill_tokens_per_s": prefill_rate(result.records),
            "decode_tokens_per_s": decode_rate(result.records),
        },
        requests={name: counts[name] for name in ("completed", "failed", "truncated")},
        peak=peak,
        window=result.window,
        valid=not problems,
        notes=(*problems, *_remarks(result, metrics, peak, interference)),
    )


def _problems(result: LoadResult, interference: Interference | None) -> list[str]:
    """Say why the figures do not stand for the target alone."""
    problems = []
    completed = sum(record.status == "completed" for record in result.records)
    if result.interrupted:
        problems.append("partial: interrupted by the user")
    if not completed:
        problems.append("invalid: no request completed")
    if interference is not None:
        problems += interference.problems()
    return problems


def _remarks(
    result: LoadResult,
    metrics: Mapping[str, Summary],
    peak: PeakRss,
    interference: Interference | None,
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
    if peak.since_start:
        remarks.append("peak memory since the process began: the kernel would not reset the mark")
    if interference is None:
        remarks.append("other load on the machine is not known: the run was too short to tell")
    else:
        remarks.append(
            f"processor time: others {interference.others:.1%}, hypervisor {interference.steal:.1%}"
        )
    return remarks


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

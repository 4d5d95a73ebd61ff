"""Whether a later report is slower than an earlier one: a gate for continuous integration."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hasten.errors import UsageError
from hasten.measure.compare import Verdict
from hasten.measure.report import SCHEMA
from hasten.measure.statistics import Interval, bootstrap_ratio_of_medians

__all__ = ["Change", "compare_reports", "read_report", "regressions"]

MAX_BYTES = 1 << 30
METRICS = ("ttft", "tpot", "e2e")
LEAST = 7
"""Requests at least: fewer bound no median."""


@dataclass(frozen=True, slots=True)
class Change:
    """One latency in two reports.

    Attributes:
        metric: "ttft", "tpot" or "e2e".
        before: Median in the earlier report, in milliseconds.
        after: Median in the later one.
        ratio: Of the medians, later over earlier; its interval is a bootstrap over requests.
        verdict: "slower" or "faster" where the interval leaves 1 out.
    """

    metric: str
    before: float
    after: float
    ratio: Interval
    verdict: Verdict

    def __str__(self) -> str:
        low, high = self.ratio.low, self.ratio.high
        return (
            f"{self.metric}: {self.before:.2f} -> {self.after:.2f} ms, ratio "
            f"{self.ratio.estimate:.3f} [{low:.3f}, {high:.3f}]: {self.verdict}"
        )

    def as_dict(self) -> dict[str, object]:
        """JSON-ready values."""
        return {
            "metric": self.metric,
            "before_ms": self.before,
            "after_ms": self.after,
            "ratio": self.ratio.as_dict(),
            "verdict": self.verdict,
        }


def read_report(path: Path) -> dict[str, Any]:
    """Reads a report of `hasten bench`.

    Raises:
        UsageError: It cannot be read, or is none.
    """
    try:
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
        if len(content) > MAX_BYTES:
            raise UsageError(f"{path} is too long", allowed=f"{MAX_BYTES} bytes")
        document = json.loads(content)
    except OSError as error:
        raise UsageError(f"cannot read the report {path}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{path} is not JSON: {error}") from error
    schema = document.get("schema") if isinstance(document, dict) else None
    if schema != SCHEMA:
        raise UsageError(
            f"{path} has the schema {schema!r:.40}",
            allowed=f"{SCHEMA!r}, as `hasten bench --json` writes it",
        )
    return dict(document)


def compare_reports(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[Change]:
    """What became of the medians of latencies that both reports hold.

    The intervals tell how sure the medians of these two runs are. What the machine does on another
    day they do not know; interleaved runs do.

    Raises:
        UsageError: The reports have no latency in common, or measured different workloads.
    """
    for part in ("workload", "scenario"):
        first, second = (_identity(one, part) for one in (before, after))
        if first != second:
            raise UsageError(
                f"the reports have different {part}s: {first} and {second}",
                do="measure again with the options of the earlier report",
            )
    changes = []
    for metric in METRICS:
        old, new = _column(before, metric), _column(after, metric)
        if len(old) >= LEAST and len(new) >= LEAST and old.min() > 0 and new.min() > 0:
            ratio = bootstrap_ratio_of_medians(new, old, paired=False)
            verdict: Verdict = (
                "slower" if ratio.low > 1 else "faster" if ratio.high < 1 else "no difference shown"
            )
            medians = float(np.median(old)), float(np.median(new))
            changes.append(Change(metric, *medians, ratio, verdict))
    if not changes:
        raise UsageError(
            f"the reports have no latency in common of {LEAST} completed requests or more",
            do="measure again with --json, and with more --requests",
        )
    return changes


def regressions(before: Mapping[str, Any], after: Mapping[str, Any], tolerance: float) -> list[str]:
    """What became worse by more than a tolerance, in words; empty where nothing did.

    Args:
        before: The earlier report.
        after: The later one.
        tolerance: As a fraction: 0.05 lets a median grow by 5 %. A latency is worse if the whole
            interval of its ratio lies beyond that.
    """
    found = [
        f"{one}; allowed {1 + tolerance:.3f}"
        for one in compare_reports(before, after)
        if one.ratio.low > 1 + tolerance
    ]
    old, new = (_failed_share(one) for one in (before, after))
    if new > old:
        found.append(f"requests that did not complete: {old:.1%} -> {new:.1%}")
    return found


def _identity(document: Mapping[str, Any], part: str) -> dict[str, Any]:
    """What was asked for, without what came of it."""
    found = dict(document.get(part) or {})
    found.pop("window_s", None)
    return found


def _failed_share(document: Mapping[str, Any]) -> float:
    counts = document.get("requests") or {}
    total = sum(counts.values())
    return 1 - counts.get("completed", 0) / total if total else 0.0


def _column(document: Mapping[str, Any], metric: str) -> np.ndarray:
    values = (document.get("records") or {}).get(f"{metric}_ms") or []
    return np.array([value for value in values if value is not None], dtype=float)

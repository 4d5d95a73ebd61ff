"""What MLPerf's LoadGen writes into `mlperf_log_detail.txt` and `mlperf_log_accuracy.json`."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from hasten.errors import HastenError

__all__ = ["DETAIL", "Detail", "read_accuracy", "read_detail"]

DETAIL = "mlperf_log_detail.txt"
ACCURACY = "mlperf_log_accuracy.json"
MARK = ":::MLLOG "
PERCENTILE = re.compile(
    r"result_(?P<kind>first_token_|time_per_output_token_|)(?P<percent>[0-9.]+)_percentile_"
    r"(?P<unit>latency_ns|ns|per_query_latency_ns)"
)
KINDS = {"first_token_": "ttft", "time_per_output_token_": "tpot", "": "latency"}


@dataclass(frozen=True, slots=True)
class Detail:
    """A detail log.

    Attributes:
        values: The last value of each key.
        errors: Messages of entries that LoadGen marked as errors.
    """

    values: Mapping[str, object]
    errors: tuple[str, ...]

    def number(self, key: str) -> float | None:
        """A figure; None where LoadGen did not write it."""
        value = self.values.get(key)
        return float(value) if isinstance(value, int | float) else None

    def flag(self, key: str) -> bool | None:
        """Whether a condition was met; None where LoadGen did not write it."""
        value = self.values.get(key)
        return None if value is None else value in (True, "true", 1)

    def percentiles(self) -> dict[str, dict[float, float]]:
        """Latencies in milliseconds by percent, as LoadGen counts them.

        Returns:
            "latency", of whole queries in the multi-stream scenario ("query"); "ttft" and "tpot"
            where token latencies were on.
        """
        found: dict[str, dict[float, float]] = {}
        for key in self.values:
            match = PERCENTILE.fullmatch(key)
            value = self.number(key)
            if match and value is not None:
                query = match["unit"] == "per_query_latency_ns"
                kind = "query" if query else KINDS[match["kind"]]
                found.setdefault(kind, {})[float(match["percent"])] = value / 1e6
        return found


def read_detail(folder: Path) -> Detail:
    """Reads a detail log.

    Raises:
        HastenError: There is none, or it is not one.
    """
    values: dict[str, object] = {}
    errors = []
    for entry in _entries(folder / DETAIL):
        values[str(entry.get("key"))] = entry.get("value")
        metadata = entry.get("metadata")
        if isinstance(metadata, dict) and metadata.get("is_error"):
            errors.append(str(entry.get("value")))
    return Detail(values, tuple(errors))


def read_accuracy(folder: Path) -> dict[int, bytes]:
    """Answers by the number of the sample, from a run for accuracy.

    Raises:
        HastenError: There is no such log, or it is not one.
    """
    path = folder / ACCURACY
    try:
        return {
            int(entry["qsl_idx"]): bytes.fromhex(entry["data"])
            for entry in json.loads(path.read_bytes())
        }
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise HastenError(f"{path}: not LoadGen's log of answers ({error})") from error


def _entries(path: Path) -> Iterator[dict[str, object]]:
    try:
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith(MARK):
                yield json.loads(line.removeprefix(MARK))
    except (OSError, ValueError) as error:
        raise HastenError(f"{path}: not LoadGen's detail log ({error})") from error

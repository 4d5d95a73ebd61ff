"""What the response cache holds, read from it when somebody asks."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from hasten.serve.cache import CacheStatistics

__all__ = ["AnswerCollector"]


class AnswerCollector(Collector):
    """Reads the response cache at the moment of a scrape.

    Args:
        read: What it has done and holds.
    """

    def __init__(self, read: Callable[[], CacheStatistics]) -> None:
        self._read = read

    def collect(self) -> Iterable[Metric]:
        """Gauges of what it holds; what was asked of it is counted for each request."""
        now = self._read()
        yield GaugeMetricFamily(
            "hasten_response_cache_entries", "Answers kept in memory.", now.entries
        )
        yield GaugeMetricFamily("hasten_response_cache_bytes", "What they take.", now.bytes)
        yield GaugeMetricFamily(
            "hasten_response_cache_in_flight",
            "Answers that are being computed, for one request or several.",
            now.in_flight,
        )
        yield CounterMetricFamily(
            "hasten_response_cache_evictions",
            "Answers in memory that went to make room.",
            now.evictions,
        )
        yield CounterMetricFamily(
            "hasten_response_cache_failures",
            "How often the Redis could not be asked.",
            now.failures,
        )

"""What LoadGen is asked for."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

from hasten.errors import UsageError
from hasten.measure.statistics import minimum_samples

__all__ = ["LoadGenSettings", "Scenario", "for_loadgen"]

Scenario = Literal["single-stream", "multi-stream", "server", "offline"]

PERCENTILES = (0.5, 0.9, 0.95, 0.97, 0.99, 0.999)
"""Those that LoadGen reports."""
LATE = 4
"""Late queries that a server run of the default length may have."""


@dataclass(frozen=True, slots=True)
class LoadGenSettings:
    """What LoadGen is asked for.

    Attributes:
        scenario: "single-stream": the next query on completion; "multi-stream": the same with
            several samples a query; "server": queries by a Poisson process; "offline": all samples
            at once.
        accuracy: Send every sample once and log the answers, rather than measure.
        tokens: Measure the first token and the time per token, too.
        seconds: That the run lasts at least; MLPerf's rules ask for 600.
        queries: That are made at least; None for what early stopping needs.
        percentile: Of the latency, as a fraction; None for 0.9 (single-stream) or 0.99.
        rate: Queries a second: what is sent (server), else what LoadGen is to expect; None for
            what the warm-up lets expect.
        latency_bound: Seconds that the percentile may take (server without `tokens`).
        ttft_bound: Seconds that the percentile of the first token may take (server with `tokens`).
        tpot_bound: Seconds that the percentile of a further token may take (likewise).
        samples_per_query: In the multi-stream scenario.
        max_in_flight: Requests under way at most; None for no limit.
        seed: Of samples and schedule.
    """

    scenario: Scenario
    accuracy: bool = False
    tokens: bool = False
    seconds: float = 10.0
    queries: int | None = None
    percentile: float | None = None
    rate: float | None = None
    latency_bound: float | None = None
    ttft_bound: float | None = None
    tpot_bound: float | None = None
    samples_per_query: int = 8
    max_in_flight: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if self.quantile not in PERCENTILES:
            allowed = ", ".join(map(str, PERCENTILES))
            raise UsageError(f"percentile {self.percentile}", allowed=allowed)
        if not (math.isfinite(self.seconds) and self.seconds > 0):
            raise UsageError(f"a run of {self.seconds} s", allowed="above 0")
        for name in ("queries", "samples_per_query", "max_in_flight"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UsageError(f"{name}: {value}", allowed="at least 1")
        for name in ("rate", "latency_bound", "ttft_bound", "tpot_bound"):
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and value > 0):
                raise UsageError(f"{name}: {value}", allowed="above 0")
        if self.scenario == "server":
            needed = [
                "rate",
                *(("ttft_bound", "tpot_bound") if self.tokens else ("latency_bound",)),
            ]
            missing = [name for name in needed if getattr(self, name) is None]
            if missing:
                raise UsageError(f"the server scenario needs {' and '.join(missing)}")

    @property
    def quantile(self) -> float:
        """The percentile that counts, as a fraction."""
        if self.percentile is not None:
            return self.percentile
        return 0.9 if self.scenario == "single-stream" else 0.99

    @property
    def least_queries(self) -> int:
        """How many are made at least."""
        if self.queries is not None:
            return self.queries
        if self.scenario == "offline":
            return 1
        return minimum_samples(self.quantile, LATE if self.scenario == "server" else 1)


def for_loadgen(
    lg: Any,  # noqa: ANN401 - LoadGen has no types
    asked: LoadGenSettings,
    rate: float,
    outstanding: int,
) -> Any:  # noqa: ANN401 - as above
    """The same in LoadGen's words.

    Args:
        lg: Its module.
        asked: What is asked for.
        rate: Queries a second to send or to expect.
        outstanding: Unanswered queries with which a server run ends.
    """
    settings = lg.TestSettings()
    scenarios = {
        "single-stream": lg.TestScenario.SingleStream,
        "multi-stream": lg.TestScenario.MultiStream,
        "server": lg.TestScenario.Server,
        "offline": lg.TestScenario.Offline,
    }
    settings.scenario = scenarios[asked.scenario]
    settings.mode = lg.TestMode.AccuracyOnly if asked.accuracy else lg.TestMode.PerformanceOnly
    settings.use_token_latencies = asked.tokens and not asked.accuracy
    settings.min_duration_ms = math.ceil(1000 * asked.seconds)
    settings.min_query_count = asked.least_queries
    settings.qsl_rng_seed = settings.sample_index_rng_seed = asked.seed + 1
    settings.schedule_rng_seed = asked.seed + 1
    if asked.scenario == "single-stream":
        settings.single_stream_expected_latency_ns = _nanoseconds(1 / rate)
        settings.single_stream_target_latency_percentile = asked.quantile
    elif asked.scenario == "multi-stream":
        settings.multi_stream_expected_latency_ns = _nanoseconds(1 / rate)
        settings.multi_stream_target_latency_percentile = asked.quantile
        settings.multi_stream_samples_per_query = asked.samples_per_query
    elif asked.scenario == "offline":
        settings.offline_expected_qps = rate
    else:
        settings.server_target_qps = rate
        settings.server_target_latency_percentile = asked.quantile
        settings.server_max_async_queries = outstanding
        if asked.latency_bound is not None:
            settings.server_target_latency_ns = _nanoseconds(asked.latency_bound)
        if asked.ttft_bound is not None:
            settings.ttft_latency = _nanoseconds(asked.ttft_bound)
        if asked.tpot_bound is not None:
            settings.tpot_latency = _nanoseconds(asked.tpot_bound)
    return settings


def _nanoseconds(seconds: float) -> int:
    return max(1, round(1e9 * seconds))

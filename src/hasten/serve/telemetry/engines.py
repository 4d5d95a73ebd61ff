"""What the engines do, read from them when somebody asks: nothing is counted along the way."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Protocol

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from hasten.types import EngineStatistics

__all__ = ["Engine", "EngineCollector"]


class Engine(Protocol):
    """What is read of an engine; an `EngineProcess` is one."""

    @property
    def state(self) -> str:
        """What it does: "ready" when it takes requests."""

    @property
    def statistics(self) -> EngineStatistics | None:
        """As of its last step; None before the first."""

    @property
    def restarts(self) -> int:
        """How often its process was started anew."""


class _Total:
    """A counter that outlives the process that counts.

    What the process counted after the last look and before its end is lost.
    """

    def __init__(self) -> None:
        self._before = 0
        self._last = 0
        self._life: object = None

    @property
    def value(self) -> int:
        """The sum over all lives."""
        return self._before + self._last

    def read(self, life: object, value: int) -> None:
        """What the present life has counted."""
        if life != self._life or value < self._last:
            self._before += self._last
        self._life, self._last = life, value


_COUNTERS = {
    "vllm:prefix_cache_queries": (
        "prompt_tokens",
        "Tokens of prompts that were looked up in the prefix cache.",
    ),
    "vllm:prefix_cache_hits": ("cached_tokens", "Those of them that the prefix cache held."),
    "hasten_preemptions": (
        "preemptions",
        "How often a sequence gave its KV blocks back to be computed again later.",
    ),
    "hasten_engine_steps": ("steps", "Calls of the executor."),
    "hasten_engine_output_tokens": (
        "output_tokens",
        "Tokens sampled, those of requests that failed or whose client left included.",
    ),
}
_GAUGES = {
    "vllm:num_requests_running": "Sequences that the engine works on.",
    "vllm:num_requests_waiting": "Sequences that wait for it; while it starts, all of them.",
    "vllm:kv_cache_usage_perc": "KV blocks that sequences hold / all KV blocks, 0 to 1.",
    "hasten_engine_ready": "1 while the engine takes requests, 0 while it starts or has failed.",
}


class EngineCollector(Collector):
    """Reads engines at the moment of a scrape.

    Args:
        engines: Those of the models that are loaded, or should be, by model.
        in_flight: Sequences that were admitted and have not ended, by model.
    """

    def __init__(
        self,
        engines: Callable[[], Mapping[str, Engine]],
        in_flight: Callable[[], Mapping[str, int]],
    ) -> None:
        self._engines = engines
        self._in_flight = in_flight
        self._totals: dict[str, dict[str, _Total]] = {}

    def collect(self) -> Iterable[Metric]:
        """Gauges of what is loaded; counters of what ever was, so that none goes backwards."""
        engines, in_flight = self._engines(), self._in_flight()
        yield GaugeMetricFamily("hasten_models_loaded", "Models with an engine.", len(engines))
        yield _family(
            "hasten_sequences_in_flight",
            "Sequences that were admitted and have not ended, those of batches included.",
            in_flight,
        )
        yield from self._gauges(engines, in_flight)
        yield _blocks(engines)
        yield from self._counters(engines)

    def _gauges(
        self, engines: Mapping[str, Engine], in_flight: Mapping[str, int]
    ) -> Iterator[Metric]:
        families = {
            name: GaugeMetricFamily(name, text, labels=["model_name"])
            for name, text in _GAUGES.items()
        }
        for model, engine in engines.items():
            now = _present(engine)
            values = (0, in_flight.get(model, 0), 0.0, 0)
            if now is not None:
                values = (now.running, now.waiting, now.kv_blocks_used / max(now.kv_blocks, 1), 1)
            elif engine.state == "ready":
                values = (0, 0, 0.0, 1)
            for family, value in zip(families.values(), values, strict=True):
                family.add_metric([model], value)
        yield from families.values()

    def _counters(self, engines: Mapping[str, Engine]) -> Iterator[Metric]:
        for model, engine in engines.items():
            self._count("hasten_engine_restarts", model, id(engine), engine.restarts)
            if engine.statistics is not None:
                life = (id(engine), engine.restarts)
                for name, (attribute, _) in _COUNTERS.items():
                    self._count(name, model, life, getattr(engine.statistics, attribute))
        texts = {name: text for name, (_, text) in _COUNTERS.items()}
        texts["hasten_engine_restarts"] = "How often an engine's process was started anew."
        for name, text in texts.items():
            family = CounterMetricFamily(name, text, labels=["model_name"])
            for model, total in self._totals.get(name, {}).items():
                family.add_metric([model], total.value)
            yield family

    def _count(self, name: str, model: str, life: object, value: int) -> None:
        self._totals.setdefault(name, {}).setdefault(model, _Total()).read(life, value)


def _present(engine: Engine) -> EngineStatistics | None:
    """What the engine does now; statistics of a process that ended say nothing of it."""
    return engine.statistics if engine.state == "ready" else None


def _family(name: str, text: str, values: Mapping[str, float]) -> GaugeMetricFamily:
    family = GaugeMetricFamily(name, text, labels=["model_name"])
    for model, value in values.items():
        family.add_metric([model], value)
    return family


def _blocks(engines: Mapping[str, Engine]) -> GaugeMetricFamily:
    family = GaugeMetricFamily(
        "hasten_kv_blocks",
        'KV blocks: "used" by sequences, "cached" for prompts that begin alike, "free".',
        labels=["model_name", "state"],
    )
    for model, engine in engines.items():
        now = _present(engine)
        if now is not None:
            used, cached = now.kv_blocks_used, now.kv_blocks_cached
            family.add_metric([model, "used"], used)
            family.add_metric([model, "cached"], cached)
            family.add_metric([model, "free"], now.kv_blocks - used - cached)
    return family

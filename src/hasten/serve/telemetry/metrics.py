"""Metrics for Prometheus, in a registry of their own: several servers can live in one process.

One definition each, which stands in its HELP text. A request that does not define a metric, such as
the time per output token of one token, is absent from it, never 0. Label values are names of models
that the server knows, protocols, statuses and reasons: never what a client makes up.
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from prometheus_client import CollectorRegistry, Counter, Gauge, ProcessCollector
from prometheus_client.core import Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

from hasten import __version__
from hasten.serve.cache import CacheStatistics
from hasten.serve.jobs import EndReason, Usage
from hasten.serve.telemetry.answers import AnswerCollector
from hasten.serve.telemetry.distribution import Distribution
from hasten.serve.telemetry.engines import Engine, EngineCollector

__all__ = ["Metrics"]

_MOST_MODELS = 256
"""Models with series of their own; the rest share those of "other"."""

_REQUEST = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)
"""Bounds in seconds for what takes a request's time."""
_TOKEN = (
    *(0.001, 0.0025, 0.005, 0.0075, 0.01, 0.015, 0.02, 0.03, 0.04, 0.05),
    *(0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 0.75, 1, 2.5),
)
"""Bounds in seconds for what takes a token's time."""


class _Family(Collector):
    """What is encoded alone."""

    def __init__(self, metrics: Sequence[Metric]) -> None:
        self._metrics = metrics

    def collect(self) -> Iterable[Metric]:
        return self._metrics


class Metrics:
    """All metrics of one server.

    Args:
        engines: Those of the models that are loaded or should be, by model; read at each scrape.
        in_flight: Sequences that were admitted and have not ended, by model.
        connections: How many are open.
        answers: What the response cache holds; None where there is none.
    """

    def __init__(
        self,
        engines: Callable[[], Mapping[str, Engine]] = dict,
        in_flight: Callable[[], Mapping[str, int]] = dict,
        connections: Callable[[], int] = lambda: 0,
        answers: Callable[[], CacheStatistics] | None = None,
    ) -> None:
        self._registry = CollectorRegistry()
        self._token_counters: dict[str, list[Counter]] = {}
        self._declare_times()
        self._declare_counts()
        gauge = Gauge("hasten_connections", "Open connections.", registry=self._registry)
        gauge.set_function(connections)
        labels = ("version", "python")
        build = Gauge("hasten_build_info", "Always 1.", labels, registry=self._registry)
        build.labels(__version__, platform.python_version()).set(1)
        self._registry.register(EngineCollector(engines, in_flight))
        if answers is not None:
            self._registry.register(AnswerCollector(answers))
        ProcessCollector(registry=self._registry)

    def _declare_times(self) -> None:
        self._ttft = self._time(
            "hasten_ttft_seconds",
            _REQUEST,
            "Time to first token: arrival of the request to its first token.",
        )
        self._tpot = self._time(
            "hasten_tpot_seconds",
            _TOKEN,
            "Time per output token of a request: (last token - first token) / (tokens - 1); "
            "of requests with one output of two tokens or more, not from the response cache.",
        )
        self._itl = self._time(
            "hasten_itl_seconds",
            _TOKEN,
            "Inter-token latency: gap between consecutive output events of a request, of the first "
            "output where there are several; not from the response cache.",
        )
        self._e2e = self._time(
            "hasten_e2e_seconds", _REQUEST, "Arrival of the request to its last token, or vector."
        )
        self._queue = self._time(
            "hasten_queue_seconds",
            _REQUEST,
            "Arrival of the request to its first token, less waiting for the model to be loaded "
            "and time inside the executor.",
        )
        self._model = self._time(
            "hasten_model_seconds",
            _REQUEST,
            "Model latency: time inside the executor for a request, without queue, tokenizer or "
            "network.",
        )

        self._prefill = self._time(
            "hasten_prefill_seconds", _REQUEST, "Time inside the executor until the first token."
        )
        self._decode = self._time(
            "hasten_decode_seconds", _REQUEST, "Time inside the executor after the first token."
        )

    def _declare_counts(self) -> None:
        self._tokens = [
            self._count(
                "hasten_prompt_tokens", "Tokens of the prompts of requests that were answered."
            ),
            self._count("hasten_cached_tokens", "Those of them that the prefix cache held."),
            self._count(
                "hasten_output_tokens", "Tokens of the outputs of requests that were answered."
            ),
        ]
        self._requests = self._count(
            "hasten_requests",
            "HTTP requests that ended, by the status of their response; 499 where the client left "
            "before it.",
            "protocol",
            "status",
        )
        self._outputs = self._count("hasten_outputs", "Outputs that ended, by reason.", "reason")
        self._failures = self._count(
            "hasten_failures",
            "Jobs that ended with an error after the engine had them, by error; they count in no "
            "time and no tokens.",
            "error",
        )
        self._truncations = self._count(
            "hasten_truncations",
            'Outputs cut at their limit or at the end of the context (reason "length").',
        )
        self._disconnects = self._count(
            "hasten_disconnects", "Requests whose client left before the end of the answer."
        )
        self._answers = self._count(
            "hasten_response_cache",
            'Requests that the response cache was asked for: "hit" was in it, "joined" was just '
            'being computed, "miss" was not.',
            "result",
        )
        self._rejections = Counter(
            "hasten_rejections",
            "Requests refused so as not to be overloaded, by reason.",
            ("reason",),
            registry=self._registry,
        )

    def _time(self, name: str, bounds: Sequence[float], text: str) -> Distribution:
        distribution = Distribution(name, text, bounds)
        self._registry.register(distribution)
        return distribution

    def _count(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(name, text, ("model_name", *labels), registry=self._registry)

    def gap(self, model: str, seconds: float) -> None:
        """The time between two events of a request that carry tokens; cheap enough for each."""
        self._itl.add(self._name(model), seconds)

    def generated(
        self, model: str, usage: Usage, reasons: Sequence[EndReason], cache: str = "off"
    ) -> None:
        """A job ended well.

        Args:
            model: The name it was served under.
            usage: The last event of its generation.
            reasons: Why its outputs ended, one each.
            cache: What the response cache said: "hit", "joined", "miss" or "off".
        """
        model, timing = self._name(model), usage.timing
        tokens = (usage.prompt_tokens, usage.cached_tokens, usage.output_tokens)
        for counter, count in zip(self._token_counters[model], tokens, strict=True):
            counter.inc(count)
        self._e2e.add(model, timing.total)
        self._queue.add(model, timing.queue)
        self._model.add(model, timing.prompt + timing.decode)
        self._prefill.add(model, timing.prompt)
        self._decode.add(model, timing.decode)
        if timing.ttft is not None:
            self._ttft.add(model, timing.ttft)
            if usage.output_tokens > 1 and len(reasons) == 1 and cache != "hit":
                between = timing.total - timing.ttft
                self._tpot.add(model, between / (usage.output_tokens - 1))
        for reason in reasons:
            self._outputs.labels(model, reason).inc()
            if reason == "length":
                self._truncations.labels(model).inc()
        if cache != "off":
            self._answers.labels(model, cache).inc()

    def embedded(self, model: str, prompt_tokens: int, total: float) -> None:
        """Texts became vectors, in so many seconds since the request came."""
        model = self._name(model)
        self._token_counters[model][0].inc(prompt_tokens)
        self._e2e.add(model, total)

    def failed(self, model: str, error: Exception) -> None:
        """A job ended with an error after it had begun."""
        self._failures.labels(self._name(model), type(error).__name__).inc()

    def answered(
        self, protocol: str, model: str, status: int, *, disconnected: bool = False
    ) -> None:
        """An HTTP request is over.

        Args:
            protocol: Such as "openai".
            model: A name that the server knows, "" where there was none.
            status: Of the response; 0 where there was none.
            disconnected: The client left before the end of the answer.
        """
        model = self._name(model) if model else ""
        self._requests.labels(model, protocol, str(status or 499)).inc()
        if disconnected:
            self._disconnects.labels(model).inc()

    def refused(self, reason: str) -> None:
        """A request was refused; `Admission` says why, the front has reasons of its own."""
        self._rejections.labels(reason).inc()

    def render(self, accept: str = "") -> tuple[Iterator[bytes], str]:
        """Its text, one metric at a time so that others can run in between, and its content type.

        Args:
            accept: The Accept header; Prometheus' text format unless it asks for OpenMetrics.
        """
        encode, content_type = choose_encoder(accept)
        return self._encoded(encode), content_type

    def _encoded(self, encode: Callable[[Collector], bytes]) -> Iterator[bytes]:
        end = encode(_Family([]))  # OpenMetrics has a last line
        for metric in self._registry.collect():
            yield encode(_Family([metric])).removesuffix(end)
        yield end

    def _name(self, model: str) -> str:
        """The label of a model."""
        if model not in self._token_counters:
            model = model if len(self._token_counters) < _MOST_MODELS else "other"
            self._token_counters[model] = [counter.labels(model) for counter in self._tokens]
        return model

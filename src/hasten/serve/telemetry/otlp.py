"""Spans over OpenTelemetry's SDK; imported only where traces are asked for.

Attributes follow OpenTelemetry's semantic conventions for HTTP servers and for generative AI; the
times of the engine's phases have the names that vLLM gives them (gen_ai.latency.*).
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from urllib.parse import urlsplit

from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import SERVICE_NAME, SERVICE_VERSION, Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from opentelemetry.util.types import AttributeValue

from hasten import __version__
from hasten.errors import UsageError
from hasten.serve.jobs import MAX_OUTPUT
from hasten.serve.telemetry.observed import Observed

__all__ = ["OtlpTracer", "exporter_to"]

_LOG = logging.getLogger("hasten.serve.traces")
_SEND_SECONDS = 5.0
"""For one batch, retries included."""


class _Quiet(SpanExporter):
    """Says once that the collector does not answer, and once that it does again."""

    def __init__(self, exporter: SpanExporter) -> None:
        self._exporter = exporter
        self._failing = False
        self.closing = False

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        if self.closing and self._failing:
            return SpanExportResult.FAILURE  # closing waits for one batch, not for all
        result = self._exporter.export(spans)
        failed = result is not SpanExportResult.SUCCESS
        if failed != self._failing:
            self._failing = failed
            message = (
                "traces are dropped: the collector does not take them"
                if failed
                else "traces are sent again"
            )
            _LOG.warning(message)
        return result

    def shutdown(self) -> None:
        self._exporter.shutdown()

    def force_flush(self, timeout_millis: int = 30000) -> bool:
        return self._exporter.force_flush(timeout_millis)


def exporter_to(url: str) -> SpanExporter:
    """What sends spans to a collector.

    Args:
        url: Of the collector; /v1/traces is appended where the URL has no path.

    Raises:
        UsageError: It is no URL of HTTP.
    """
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise UsageError(f"{url!r} is no URL of a collector", allowed="http://host:4318")
    if parts.path in ("", "/"):
        parts = parts._replace(path="/v1/traces")
    # The exporter logs every failure, and so does its queue.
    logging.getLogger("opentelemetry").propagate = False
    logging.getLogger("opentelemetry").addHandler(logging.NullHandler())
    return OTLPSpanExporter(parts.geturl(), timeout=_SEND_SECONDS)


class OtlpTracer:
    """Makes spans and hands them to an exporter from a thread of its own; full queues drop them.

    Args:
        exporter: Where they go.
    """

    def __init__(self, exporter: SpanExporter) -> None:
        # What stands in OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES wins.
        own = Resource({SERVICE_NAME: "hasten", SERVICE_VERSION: __version__})
        detected = {
            name: value
            for name, value in Resource.create().attributes.items()
            if not str(value).startswith("unknown_service")
        }
        self._provider = TracerProvider(
            resource=own.merge(Resource(detected)), shutdown_on_exit=False
        )
        self._exporter = _Quiet(exporter)
        self._provider.add_span_processor(BatchSpanProcessor(self._exporter))
        self._tracer = self._provider.get_tracer("hasten.serve", __version__)
        self._context = TraceContextTextMapPropagator()

    def record(self, observed: Observed, headers: Mapping[str, str]) -> str:
        """A span of kind server from the arrival of the request until now; none for routine."""
        if observed.routine:
            return ""
        began = time.time_ns() - int((time.monotonic() - observed.received) * 1e9)
        span = self._tracer.start_span(
            f"{observed.method} {observed.route}".rstrip(),
            context=self._context.extract(headers),
            kind=trace.SpanKind.SERVER,
            start_time=began,
        )
        if span.is_recording():
            span.set_attributes(_http(observed) | _generation(observed))
            for usage in observed.usages:
                if usage.timing.ttft is not None:
                    span.add_event("first token", timestamp=began + int(usage.timing.ttft * 1e9))
            if observed.status >= 500:
                span.set_status(trace.StatusCode.ERROR)
        span.end()
        return trace.format_trace_id(span.get_span_context().trace_id)

    def close(self) -> None:
        """Sends what is left, for a few seconds at most."""
        self._exporter.closing = True
        self._provider.shutdown()


def _http(observed: Observed) -> dict[str, AttributeValue]:
    attributes: dict[str, AttributeValue] = {
        "http.request.method": observed.method,
        "url.path": observed.path,
        "gen_ai.request.id": observed.id,
    }
    if observed.route:
        attributes["http.route"] = observed.route
    if observed.status:
        attributes["http.response.status_code"] = observed.status
    if observed.client:
        attributes["enduser.id"] = observed.client
    if observed.disconnected:
        attributes["hasten.disconnected"] = True
    if observed.error is not None:
        attributes["error.type"] = type(observed.error).__name__
    return attributes


def _generation(observed: Observed) -> dict[str, AttributeValue]:
    if not observed.model:
        return {}
    attributes: dict[str, AttributeValue] = {
        "gen_ai.provider.name": "hasten",
        "gen_ai.operation.name": observed.operation,
        "gen_ai.request.model": observed.model,
        "hasten.response_cache": observed.cache,
    }
    if (sampling := observed.sampling) is not None:
        attributes |= {
            "gen_ai.request.temperature": sampling.temperature,
            "gen_ai.request.top_p": sampling.top_p,
            "gen_ai.request.choice.count": sampling.n,
        }
        if sampling.max_tokens < MAX_OUTPUT:
            attributes["gen_ai.request.max_tokens"] = sampling.max_tokens
    if observed.reasons:
        attributes["gen_ai.response.finish_reasons"] = list(observed.reasons)
    if observed.usages:
        attributes |= _usage(observed)
    return attributes


def _usage(observed: Observed) -> dict[str, AttributeValue]:
    """Sums over the jobs of a request, of tokens and of engine time; the latest of ends."""
    timings = [usage.timing for usage in observed.usages]
    attributes: dict[str, AttributeValue] = {
        "gen_ai.usage.input_tokens": observed.prompt_tokens,
        "gen_ai.usage.cache_read.input_tokens": observed.cached_tokens,
        "gen_ai.usage.output_tokens": observed.output_tokens,
        "gen_ai.latency.time_in_queue": max(timing.queue for timing in timings),
        "gen_ai.latency.time_in_model_prefill": sum(timing.prompt for timing in timings),
        "gen_ai.latency.time_in_model_decode": sum(timing.decode for timing in timings),
        "gen_ai.latency.e2e": max(timing.total for timing in timings),
        "hasten.load_seconds": max(timing.load for timing in timings),
    }
    ttfts = [timing.ttft for timing in timings if timing.ttft is not None]
    if ttfts:
        attributes["gen_ai.latency.time_to_first_token"] = min(ttfts)
    return attributes

"""Traces: one span a request, or none at all; the code that is traced sees no difference."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from hasten.errors import MissingDependencyError
from hasten.serve.telemetry.observed import Observed

__all__ = ["NoTracer", "Span", "Tracer", "open_tracer"]


class Span(Protocol):
    """A request under way."""

    trace_id: str
    """32 hexadecimal digits, "" where nothing is traced."""

    def end(self, observed: Observed) -> None:
        """The request is over."""


class Tracer(Protocol):
    """What makes spans."""

    def start(self, observed: Observed, headers: Mapping[str, str]) -> Span:
        """A request came; its traceparent header (W3C Trace Context) names what it is part of."""

    def close(self) -> None:
        """Sends what is left, for a few seconds at most; blocks meanwhile."""


class _NoSpan:
    trace_id = ""

    def end(self, observed: Observed) -> None:
        pass


class NoTracer:
    """Traces nothing."""

    _SPAN = _NoSpan()

    def start(self, observed: Observed, headers: Mapping[str, str]) -> Span:
        """Nothing."""
        return self._SPAN

    def close(self) -> None:
        """Nothing."""


def open_tracer(url: str | None) -> Tracer:
    """What sends traces to an OpenTelemetry collector, by OTLP over HTTP.

    Args:
        url: Of the collector, such as "http://localhost:4318"; None traces nothing.

    Raises:
        MissingDependencyError: OpenTelemetry is not installed.
    """
    if url is None:
        return NoTracer()
    try:
        from hasten.serve.telemetry.otlp import OtlpTracer, exporter_to
    except ModuleNotFoundError as error:
        if not (error.name or "").startswith("opentelemetry"):
            raise
        raise MissingDependencyError(
            "traces need OpenTelemetry, which is not installed", do="pip install 'hasten[traces]'"
        ) from error
    return OtlpTracer(exporter_to(url))

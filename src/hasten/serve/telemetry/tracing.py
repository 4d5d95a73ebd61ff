"""Traces: one span a request, or none at all; the code that is traced sees no difference."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from hasten.errors import MissingDependencyError
from hasten.serve.telemetry.observed import Observed

__all__ = ["NoTracer", "Tracer", "open_tracer"]


class Tracer(Protocol):
    """What keeps spans."""

    def record(self, observed: Observed, headers: Mapping[str, str]) -> str:
        """A request is over.

        Args:
            observed: What became of it.
            headers: Names in lower case; traceparent (W3C Trace Context) says what trace the
                request is part of.

        Returns:
            The trace, as 32 hexadecimal digits; "" where nothing is traced.
        """

    def close(self) -> None:
        """Sends what is left, for a few seconds at most; blocks meanwhile."""


class NoTracer:
    """Traces nothing."""

    def record(self, observed: Observed, headers: Mapping[str, str]) -> str:
        """Nothing."""
        return ""

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

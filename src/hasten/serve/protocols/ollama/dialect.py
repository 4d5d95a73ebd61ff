"""Errors as Ollama tells them: ``{"error": "..."}``, in a response or as a line of a stream."""

from __future__ import annotations

from hasten.errors import HastenError
from hasten.serve.protocols.streaming import encode

__all__ = ["DIALECT", "OllamaDialect", "error_line"]


class OllamaDialect:
    """Errors of the routes of this package."""

    def error(self, status: int, error: Exception, request_id: str) -> bytes:
        """The JSON body of an error response."""
        return encode({"error": _text(error, request_id)})


DIALECT = OllamaDialect()


def error_line(error: Exception, request_id: str) -> bytes:
    """The line that ends a stream where an error did."""
    return encode({"error": _text(error, request_id)}) + b"\n"


def _text(error: Exception, request_id: str) -> str:
    if isinstance(error, HastenError):
        return str(error)
    return f"the server failed at request {request_id} through a fault of its own; see its log"

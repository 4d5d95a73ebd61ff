"""Errors as Anthropic tells them: a type, a text and the request they belong to."""

from __future__ import annotations

from typing import Any

from hasten.errors import HastenError
from hasten.serve.protocols.streaming import encode
from hasten.serve.status import status_of

__all__ = ["DIALECT", "AnthropicDialect", "error_event"]

_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
}


class AnthropicDialect:
    """Errors of the routes of this package."""

    def error(self, status: int, error: Exception, request_id: str) -> bytes:
        """The JSON body of an error response."""
        return encode(_told(status, error, request_id))


DIALECT = AnthropicDialect()


def error_event(error: Exception, request_id: str) -> bytes:
    """The event that ends a stream where an error did."""
    told = encode(_told(status_of(error), error, request_id))
    return b"event: error\ndata: " + told + b"\n\n"


def _told(status: int, error: Exception, request_id: str) -> dict[str, Any]:
    kind = _TYPES.get(status, "invalid_request_error" if status < 500 else "api_error")
    text = "the server failed through a fault of its own; see its log"
    if isinstance(error, HastenError):
        text = str(error)
    return {"type": "error", "error": {"type": kind, "message": text}, "request_id": request_id}

"""Errors as OpenAI tells them: ``{"error": {"message", "type", "param", "code"}}``."""

from __future__ import annotations

from hasten import errors
from hasten.serve.protocols.reading import FieldError
from hasten.serve.protocols.streaming import encode
from hasten.serve.status import status_of

__all__ = [
    "DIALECT",
    "OpenAIDialect",
    "error_object",
    "explain",
    "stream_error",
]

_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    409: "conflict_error",
    429: "rate_limit_error",
}
_CODES: dict[type[Exception], str] = {
    errors.AuthenticationError: "invalid_api_key",
    errors.RateLimitError: "rate_limit_exceeded",
    errors.OverloadError: "server_overloaded",
    errors.EngineLostError: "engine_lost",
    errors.DeadlineError: "timeout",
}


class OpenAIDialect:
    """Errors of the routes of this package."""

    def error(self, status: int, error: Exception, request_id: str) -> bytes:
        """The JSON body of an error response."""
        return encode(error_object(status, error, request_id))


DIALECT = OpenAIDialect()


def error_object(
    status: int, error: Exception, request_id: str
) -> dict[str, dict[str, str | None]]:
    """What an error's body, or its event in a stream, holds.

    Args:
        status: Of HTTP; the type follows from it.
        error: What went wrong.
        request_id: Named where the error itself must not be told.
    """
    kind = _TYPES.get(status, "invalid_request_error" if status < 500 else "server_error")
    return {
        "error": {
            "message": explain(error, request_id),
            "type": kind,
            "param": error.field or None if isinstance(error, FieldError) else None,
            "code": _code(error),
        }
    }


def explain(error: Exception, request_id: str) -> str:
    """What a client may read about an error: nothing of those that are bugs of ours."""
    if isinstance(error, errors.HastenError):
        return str(error)
    return f"the server failed in a way that is its own fault; its log says more on {request_id}"


def stream_error(error: Exception, request_id: str) -> bytes:
    """The event that tells of an error inside a stream."""
    return b"data: " + encode(error_object(status_of(error), error, request_id)) + b"\n\n"


def _code(error: Exception) -> str | None:
    return next((_CODES[kind] for kind in type(error).__mro__ if kind in _CODES), None)

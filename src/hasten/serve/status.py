"""What an error means in HTTP."""

from __future__ import annotations

from collections.abc import Mapping

from hasten import errors

__all__ = ["HttpError", "retry_after", "status_of"]


class HttpError(errors.HastenError):
    """A request that is wrong as HTTP, whatever it asks for: its method, its encoding, its pace.

    Args:
        status: Of the response.
        what: What was wrong, with the value that was found.
        allowed: What would have been accepted.
        do: What to do about it.
        headers: Of the response.
    """

    def __init__(
        self,
        status: int,
        what: str,
        *,
        allowed: str | None = None,
        do: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(what, allowed=allowed, do=do)
        self.status = status
        self.headers = headers or {}


_STATUS: dict[type[Exception], int] = {
    errors.UsageError: 400,
    errors.CapacityError: 400,
    errors.AuthenticationError: 401,
    errors.AccessError: 403,
    errors.NotFoundError: 404,
    errors.TooLargeError: 413,
    errors.RateLimitError: 429,
    errors.OverloadError: 503,
    errors.EngineLostError: 503,
    errors.DeadlineError: 504,
    errors.GenerationError: 500,
    errors.ModelFileError: 500,
    errors.UnsupportedModelError: 500,
    errors.MissingDependencyError: 501,
}


def status_of(error: Exception) -> int:
    """The status of a response that tells of an error; 500 for what is a bug of ours."""
    if isinstance(error, HttpError):
        return error.status
    return next((_STATUS[kind] for kind in type(error).__mro__ if kind in _STATUS), 500)


def retry_after(error: Exception) -> float | None:
    """Seconds after which another try makes sense; None where it never does."""
    if isinstance(error, errors.OverloadError):
        return error.retry_after
    return 1.0 if isinstance(error, errors.EngineLostError) else None

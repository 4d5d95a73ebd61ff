"""What an error means in HTTP."""

from __future__ import annotations

from hasten import errors

__all__ = ["retry_after", "status_of"]

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
    return next((_STATUS[kind] for kind in type(error).__mro__ if kind in _STATUS), 500)


def retry_after(error: Exception) -> float | None:
    """Seconds after which another try makes sense; None where it never does."""
    if isinstance(error, errors.OverloadError):
        return error.retry_after
    return 1.0 if isinstance(error, errors.EngineLostError) else None

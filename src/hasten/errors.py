"""Every error that a user can see.

An error says what was wrong (with the offending value), what is allowed, and what to do.
The command line prints it as one line and exits with `exit_status`; nothing else is caught there,
so an exception that is not a `HastenError` is a bug of ours and shows its traceback.
"""

from __future__ import annotations

__all__ = [
    "AccessError",
    "AuthenticationError",
    "CapacityError",
    "DeadlineError",
    "EngineLostError",
    "GenerationError",
    "HastenError",
    "MissingDependencyError",
    "ModelFileError",
    "NotFoundError",
    "OverloadError",
    "RateLimitError",
    "TooLargeError",
    "UnsupportedModelError",
    "UsageError",
]


class HastenError(Exception):
    """Something the user can act on.

    Args:
        what: What was wrong, with the value that was found.
        allowed: What would have been accepted, if that can be said shortly.
        do: What to do about it.
    """

    exit_status = 1

    def __init__(self, what: str, *, allowed: str | None = None, do: str | None = None) -> None:
        self.what = what
        self.allowed = allowed
        self.do = do
        parts = [what]
        if allowed is not None:
            parts.append(f"allowed: {allowed}")
        if do is not None:
            parts.append(do)
        super().__init__("; ".join(parts))


class UsageError(HastenError):
    """The call itself is wrong: an unknown option, a value out of range."""

    exit_status = 2


class ModelFileError(HastenError):
    """A model file is missing, truncated, or says something about itself that is not true."""


class UnsupportedModelError(HastenError):
    """The model is well formed, but of a family, encoding or variant that Hasten does not run."""


class CapacityError(HastenError):
    """The request does not fit: prompt longer than the context, or not enough memory."""


class GenerationError(HastenError):
    """An output cannot go on, such as where no token continues its structure."""


class MissingDependencyError(HastenError):
    """An optional package is needed for this and is not installed."""


class AuthenticationError(HastenError):
    """A request without a valid API key."""


class AccessError(HastenError):
    """A request that this client, host or origin may not make."""


class NotFoundError(HastenError):
    """A request names a model, file, batch or path that does not exist here."""


class TooLargeError(HastenError):
    """A request is larger than the server reads: its body, its headers, what they unpack to."""


class OverloadError(HastenError):
    """The server has as much to do as it may have.

    Args:
        what: What was full, with the figure.
        retry_after: Seconds after which another try makes sense.
        allowed: How much may wait.
        do: What to do about it.
    """

    def __init__(
        self, what: str, *, retry_after: float, allowed: str | None = None, do: str | None = None
    ) -> None:
        super().__init__(what, allowed=allowed, do=do)
        self.retry_after = retry_after


class RateLimitError(OverloadError):
    """This client has used up what it may use for now."""


class DeadlineError(HastenError):
    """A request did not end in the time that it had."""


class EngineLostError(HastenError):
    """The process that ran a model ended while a request was in it, or cannot be started."""

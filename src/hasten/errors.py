"""Every error that a user can see.

An error says what was wrong (with the offending value), what is allowed, and what to do.
The command line prints it as one line and exits with `exit_status`; nothing else is caught there,
so an exception that is not a `HastenError` is a bug of ours and shows its traceback.
"""

from __future__ import annotations

__all__ = [
    "CapacityError",
    "GenerationError",
    "HastenError",
    "MissingDependencyError",
    "ModelFileError",
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

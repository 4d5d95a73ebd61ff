"""Times as Ollama tells them: in UTC, which the encoder writes as RFC 3339 wants it."""

from __future__ import annotations

from datetime import UTC, datetime

__all__ = ["NEVER", "instant", "now"]

NEVER = datetime(9999, 12, 31, tzinfo=UTC)
"""When a model expires that stays loaded for ever."""


def instant(unix_seconds: float) -> datetime:
    """A moment, to the microsecond."""
    return datetime.fromtimestamp(unix_seconds, UTC)


def now() -> datetime:
    """The present."""
    return datetime.now(UTC)

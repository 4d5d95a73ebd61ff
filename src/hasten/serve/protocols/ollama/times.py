"""Times as Ollama writes them (RFC 3339, UTC)."""

from __future__ import annotations

import time
from datetime import UTC, datetime

__all__ = ["NEVER", "instant", "now"]

NEVER = "9999-12-31T23:59:59Z"
"""When a model expires that stays loaded for ever."""


def instant(unix_seconds: float) -> str:
    """A moment, to the microsecond."""
    moment = datetime.fromtimestamp(unix_seconds, UTC)
    return moment.isoformat(timespec="microseconds").replace("+00:00", "Z")


def now() -> str:
    """The present."""
    return instant(time.time())

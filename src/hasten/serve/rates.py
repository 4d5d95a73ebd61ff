"""How fast things may go, and how fast they go; times are seconds on one monotonic clock."""

from __future__ import annotations

import math

__all__ = ["Bucket", "Pace"]

_ROUNDING = 1e-6
"""Seconds that sums of times may be off; who comes back when told is let in."""


class Bucket:
    """A token bucket: holds up to a minute's worth and fills evenly.

    So in any T seconds at most `per_minute` * (1 + T / 60) tokens are taken, as long as each is
    asked for first. Kept as the time at which the bucket will be full again (the generic cell rate
    algorithm, ITU-T I.371), which makes debts and times to wait exact.

    Args:
        per_minute: Tokens a minute, at least 1; the bucket begins full.
    """

    def __init__(self, per_minute: int) -> None:
        if per_minute < 1:
            raise ValueError(f"a bucket of {per_minute} tokens a minute never fills")
        self._period = 60.0 / per_minute
        self._full_at = -math.inf

    def wait(self, now: float, tokens: int) -> float:
        """Seconds until it holds so many tokens, 0 where it does; for 0 tokens, until debts end."""
        delay = max(self._full_at - now, 0.0) + tokens * self._period - 60.0
        return delay if delay > _ROUNDING else 0.0

    def take(self, now: float, tokens: int) -> None:
        """Takes tokens out, into debt if need be."""
        self._full_at = max(self._full_at, now) + tokens * self._period


class Pace:
    """How fast sequences end while there are any: an exponentially weighted mean over time.

    Weighted by time rather than by event, so that sequences which end together count as what they
    are.
    """

    _MEMORY = 30.0
    """Seconds after which what was seen weighs 1/e."""

    def __init__(self) -> None:
        self._ended = 0.0
        self._seconds = 0.0
        self._since = 0.0

    def begin(self, now: float) -> None:
        """The first sequence came after a time without any, which does not count."""
        self._since = now

    def end(self, now: float, sequences: int) -> None:
        """So many sequences ended."""
        elapsed = now - self._since
        weight = math.exp(-elapsed / self._MEMORY)
        self._ended = self._ended * weight + sequences
        self._seconds = self._seconds * weight + elapsed
        self._since = now

    def estimate(self, now: float, sequences: int) -> float:
        """Seconds until so many more have ended, from 1 to 60."""
        each = (self._seconds + now - self._since) / max(self._ended, 1.0)
        return min(max(sequences * each, 1.0), 60.0)

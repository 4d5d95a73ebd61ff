"""Requests that are in the engine whenever it crashes, found and kept out for a while.

A client that is told that the engine was lost sends its request again, and if that request is what
ended the engine, it ends the next one, and all that is in it, too. Which of those in flight it was
cannot be seen after one crash. What was in flight at two crashes in a row is suspected; if that is
one request, it is refused for a while. If there are several, they are let in one at a time, so that
the next crash tells them apart; one that ends well is cleared.

Requests are the same if their content is (prompt, sampling and adapter, or texts), whoever sends
them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from time import monotonic

from hasten.errors import GenerationError, OverloadError
from hasten.types import Request

__all__ = ["Content", "Quarantine"]

Content = Request | tuple[str | tuple[int, ...], ...]
"""What is generated from, or the texts that are embedded."""

_MEMORY = 600.0
"""Seconds after which a crash says nothing about the next one."""
_KEPT_OUT = 300.0
_RETRY = 1.0


class Quarantine:
    """Remembers what was in flight at crashes of one engine.

    Args:
        clock: In seconds.
    """

    def __init__(self, clock: Callable[[], float] = monotonic) -> None:
        self._clock = clock
        self._crashed = -_MEMORY
        self._last: frozenset[bytes] = frozenset()
        self._suspects: set[bytes] = set()
        self._until: dict[bytes, float] = {}

    def check(self, content: Content, in_flight: Iterable[Content]) -> None:
        """Refuses what ends the engine.

        Args:
            content: Of a request that wants in.
            in_flight: Of those that are in.

        Raises:
            GenerationError: It was in the engine alone of all at its last crashes.
            OverloadError: It may be what ended the engine, and so may another that is in it now.
        """
        now = self._clock()
        if now >= self._crashed + _MEMORY:
            self._suspects.clear()
            self._last = frozenset()
        if not self._suspects and not self._until:
            return
        digest = _digest(content)
        until = self._until.get(digest, now)
        if until > now:
            raise GenerationError(
                "the engine ended each time that this request was in it",
                do=f"change the request, or send it again in {until - now:.0f} s",
            )
        self._until.pop(digest, None)
        if digest in self._suspects and not self._suspects.isdisjoint(map(_digest, in_flight)):
            raise OverloadError(
                "the engine ended twice while this request was in it, and others like it are tried "
                "one at a time now",
                retry_after=_RETRY,
                do="send it again",
            )

    def cleared(self, content: Content) -> None:
        """A request ended well."""
        if self._suspects:
            self._suspects.discard(_digest(content))

    def crashed(self, in_flight: Iterable[Content]) -> None:
        """The engine ended with these in it."""
        now = self._clock()
        found = frozenset(map(_digest, in_flight))
        before = self._last if now < self._crashed + _MEMORY else frozenset()
        again = found & before
        # Those that were let in one at a time tell more than those that came by chance.
        again = again & self._suspects or again
        if len(again) == 1:
            (guilty,) = again
            self._until[guilty] = now + _KEPT_OUT
            self._suspects.clear()
        else:
            self._suspects |= again
        self._until = {one: until for one, until in self._until.items() if until > now}
        self._last, self._crashed = found, now


def _digest(content: Content) -> bytes:
    if isinstance(content, Request):
        told = repr((content.prompt, content.sampling, content.adapter))
    else:
        told = repr(content)
    return hashlib.sha256(told.encode()).digest()

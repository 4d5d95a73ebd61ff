"""A generation, or other work, as the bytes of a response while it runs."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Generic, Protocol, Self, TypeVar

import msgspec

from hasten.errors import HastenError

__all__ = ["COMMENT", "EventRenderer", "EventStream", "Events", "encode"]

_Event_co = TypeVar("_Event_co", covariant=True)
_Event_contra = TypeVar("_Event_contra", contravariant=True)
_Event = TypeVar("_Event")

COMMENT = b": still here\n\n"
"""What readers of server-sent events skip."""

_ENCODER = msgspec.json.Encoder()


def encode(value: object) -> bytes:
    r"""JSON text on one line, whatever counts as the end of a line.

    Some clients (httpx's `iter_lines`) split at U+0085, U+2028 and U+2029 too, so these are
    escaped; they can stand inside strings only.
    """
    text = _ENCODER.encode(value)
    if text.isascii():
        return text
    text = text.replace(b"\xc2\x85", b"\\u0085")
    return text.replace(b"\xe2\x80\xa8", b"\\u2028").replace(b"\xe2\x80\xa9", b"\\u2029")


class Events(Protocol[_Event_co]):
    """What happens: a generation, or anything else that goes on for a while."""

    def __aiter__(self) -> AsyncIterator[_Event_co]: ...

    async def aclose(self) -> None:
        """Cancels what is not done."""
        ...


class EventRenderer(Protocol[_Event_contra]):
    """Turns events into the text of a stream; keeps what earlier events said."""

    def begin(self) -> bytes:
        """What comes before anything happened; may be nothing."""
        ...

    def event(self, event: _Event_contra) -> bytes:
        """What an event says; may be nothing."""
        ...

    def failure(self, error: Exception) -> bytes:
        """What is told of an error, and the end."""
        ...


class EventStream(Generic[_Event]):
    """The body of a streamed reply.

    Not an async generator, for closing one that was never started would not close the generation.
    An error ends the stream in the protocol's own words; one that is a bug of ours is raised after
    them, for the log.

    Args:
        events: What happens; closed with the stream.
        renderer: Turns it into text.
    """

    def __init__(self, events: Events[_Event], renderer: EventRenderer[_Event]) -> None:
        self._source = events
        self._events = aiter(events)
        self._renderer = renderer
        self._begun = False
        self._over = False
        self._bug: Exception | None = None

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> bytes:
        if not self._begun:
            self._begun = True
            if text := self._renderer.begin():
                return text
        while not self._over:
            try:
                if text := self._renderer.event(await anext(self._events)):
                    return text
            except StopAsyncIteration:
                await self.aclose()
            except Exception as error:  # told in the stream, then raised
                await self.aclose()
                self._bug = None if isinstance(error, HastenError) else error
                return self._renderer.failure(error)
        if self._bug is not None:
            bug, self._bug = self._bug, None
            raise bug
        raise StopAsyncIteration

    async def aclose(self) -> None:
        """Ends the stream and cancels the work behind it; may be called again."""
        self._over = True
        await self._source.aclose()

"""A streaming HTTP client that costs little, so that what it measures is the server.

Parsing every event as JSON would take more of the two cores than the server does; so events are
counted in the bytes, and only the last piece of a reply is kept.
"""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass, field
from time import monotonic
from typing import Any

__all__ = ["Connection", "Reply", "chat_body"]

_EVENT = b"data: "
_PIECE = b'"content":'
_END = b"0\r\n\r\n"


@dataclass
class Reply:
    """What came back for one request.

    Attributes:
        status: Of HTTP; 0 where the connection ended without one.
        sent: When the request was sent, in seconds of `time.monotonic`.
        events: When each part of the reply came, and how many pieces of text it held. A stream's
            first piece is the opening of its message, an empty one.
        done: The reply is whole: a stream ended with [DONE], a body with its last byte.
        left: The client went away on purpose.
        body: The reply without its head, where it is no stream; its last piece where it is one.
    """

    status: int = 0
    sent: float = 0.0
    events: list[tuple[float, int]] = field(default_factory=list)
    done: bool = False
    left: bool = False
    body: bytes = b""

    @property
    def ended(self) -> float:
        """When the last piece came; when the request was sent where none did."""
        return self.events[-1][0] if self.events else self.sent

    @property
    def pieces(self) -> list[float]:
        """When each piece of a stream's text came. A character of several tokens is one piece."""
        return [at for at, count in self.events for _ in range(count)][1:]

    @property
    def failed_within(self) -> bool:
        """Whether the stream told of an error."""
        return self.status == 200 and b'"error"' in self.body


def chat_body(model: str, words: str, tokens: int, **more: Any) -> bytes:
    """The body of a streamed chat completion."""
    messages = [{"role": "user", "content": words}]
    body = {"model": model, "messages": messages, "max_tokens": tokens, "stream": True, **more}
    return json.dumps(body).encode()


class Connection(asyncio.Protocol):
    """One kept-alive connection; one request at a time."""

    def __init__(self, host: str, port: int) -> None:
        self._host, self._port = host, port
        self._transport: asyncio.Transport | None = None
        self._reply = Reply()
        self._finished: asyncio.Future[None] | None = None
        self._head = b""
        self._length: int | None = None
        self._leave_after: int | None = None
        self._seen = 0

    async def ask(
        self, body: bytes, path: str = "/v1/chat/completions", *, leave_after: int | None = None
    ) -> Reply:
        """Sends one request and waits for the whole reply.

        Args:
            body: JSON.
            path: Of the endpoint.
            leave_after: Close the connection after so many pieces; 0 right after sending.
        """
        loop = asyncio.get_running_loop()
        if self._transport is None or self._transport.is_closing():
            transport, _ = await loop.create_connection(lambda: self, self._host, self._port)
            self._transport = transport
        self._reply = reply = Reply(sent=monotonic())
        self._head, self._length, self._seen = b"", None, 0
        self._leave_after = leave_after
        self._finished = loop.create_future()
        head = (
            f"POST {path} HTTP/1.1\r\nHost: {self._host}:{self._port}\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        self._transport.write(head.encode() + body)
        if leave_after == 0:
            self._leave()
        await self._finished
        return reply

    def close(self) -> None:
        """Closes the connection."""
        if self._transport is not None:
            self._transport.abort()

    def data_received(self, data: bytes) -> None:
        """Counts what came."""
        reply, now = self._reply, monotonic()
        if reply.status == 0:
            self._head += data
            head, found, data = self._head.partition(b"\r\n\r\n")
            if not found:
                return
            reply.status = int(head[9:12])
            lower = head.lower()
            if b"content-length:" in lower:
                self._length = int(lower.split(b"content-length:", 1)[1].split(b"\r\n", 1)[0])
        if self._length is not None:
            reply.body += data
            if len(reply.body) >= self._length:
                reply.events.append((now, 0))
                self._finish(done=True)
            return
        if _EVENT in data:
            count = data.count(_PIECE)
            reply.events.append((now, count))
            reply.body = data
            self._seen += count
        if self._leave_after is not None and self._seen >= self._leave_after:
            self._leave()
        elif data.endswith(_END):
            self._finish(done=b"[DONE]" in reply.body)

    def connection_lost(self, exc: Exception | None) -> None:
        """Ends the request that was under way."""
        self._transport = None
        self._finish(done=False)

    def _leave(self) -> None:
        self._reply.left = True
        self.close()
        self._finish(done=False)

    def _finish(self, *, done: bool) -> None:
        if self._finished is not None and not self._finished.done():
            self._reply.done = done
            self._finished.set_result(None)

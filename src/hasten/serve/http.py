"""HTTP/1.1 as uvicorn speaks it with httptools, held to limits and to one reading of a request.

What uvicorn leaves open is closed here: how long heads, trailers and idleness may last, how many
bytes they may have, how many requests may wait behind one another on a connection, how many
connections there may be, and how long a client may take nothing. Requests that two readers could
understand differently are refused, for one of the readers may be a proxy that checks them.
"""

from __future__ import annotations

import asyncio
import re
from typing import Any, cast

import httptools
import uvicorn
from uvicorn.protocols.http.httptools_impl import (
    STATUS_LINE,
    HttpToolsProtocol,
    RequestResponseCycle,
)
from uvicorn.server import ServerState

from hasten.serve.app import App, PlainDialect
from hasten.serve.settings import Limits
from hasten.serve.status import HttpError

__all__ = ["HttpConfig", "HttpProtocol"]

MAX_HEADERS = 128
MAX_PIPELINED = 8
LINGER_SECONDS = 2.0
"""How long a refused client may go on sending, so that it gets to read why."""

_ONCE = frozenset(
    {
        b"authorization",
        b"content-encoding",
        b"content-length",
        b"content-type",
        b"host",
        b"origin",
        b"transfer-encoding",
        b"x-api-key",
    }
)
_LENGTH = re.compile(rb"[0-9]{1,18}")
_H2C = re.compile(rb"\r\nupgrade:[ \t]*h2c[ \t]*(?=\r\n)", re.IGNORECASE)


class HttpConfig(uvicorn.Config):
    """What uvicorn's protocol is told; everything that it could guess is said.

    Args:
        app: The application.
    """

    def __init__(self, app: App) -> None:
        self.limits: Limits = app.settings.limits
        self.metrics = app.observer.metrics
        super().__init__(
            app,
            http=HttpProtocol,
            ws="none",
            lifespan="off",
            interface="asgi3",
            log_config=None,
            access_log=False,
            proxy_headers=False,
            server_header=False,
            timeout_keep_alive=cast(int, self.limits.idle_seconds),
        )
        self.load()


class HttpProtocol(HttpToolsProtocol):
    """One connection.

    Attributes:
        running: The request whose response is being made, or was made last.
    """

    config: HttpConfig

    def __init__(
        self,
        config: HttpConfig,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self.running: RequestResponseCycle | None = None
        self._limits = config.limits
        self._wire: asyncio.Transport  # once there is a connection
        self._in_head = False
        self._between = True  # requests
        self._head_bytes = 0
        self._quiet_bytes = 0  # since a request, or a piece of its body, was complete
        self._deaf = False
        self._closing = False
        self._refusal: bytes | None = None
        self._timer: asyncio.TimerHandle | None = None  # for the head, later for closing
        self._write_timer: asyncio.TimerHandle | None = None

    # The connection

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """As asyncio calls it."""
        self._wire = cast(asyncio.Transport, transport)
        open_now = len(self.connections)
        # uvicorn closes through this, wherever it does.
        super().connection_made(cast(asyncio.Transport, _Lingering(self._wire, self)))
        if open_now >= 2 * self._limits.connections:
            self._wire.abort()
        elif open_now >= self._limits.connections:
            self.config.metrics.refused("connections")
            self._refuse(
                HttpError(
                    503,
                    "the server has as many connections as it may",
                    allowed=f"{self._limits.connections} at once",
                    do="try again, over connections that are kept open",
                    headers={"retry-after": "1"},
                )
            )
        else:
            self._await_request()

    def connection_lost(self, exc: Exception | None) -> None:
        """As asyncio calls it."""
        self._closing = self._deaf = True
        self._stop_timers()
        self.pipeline.clear()
        if self.running is not None and not self.running.response_complete:
            self.running.disconnected = True
            self.running.message_event.set()
        super().connection_lost(exc)

    def abort(self) -> None:
        """End the connection now, and with it what was done for the client."""
        self._wire.abort()

    def _await_request(self) -> None:
        self.timeout_keep_alive_task = self.loop.call_later(
            self._limits.idle_seconds, self.timeout_keep_alive_handler
        )

    def close(self) -> None:
        """Close once what was written is sent, but not without bound.

        A socket that is closed while its client still sends is reset, and the client loses what it
        has not read yet; so such a client is listened to for a while.
        """
        if self._closing:
            return
        self._closing = self._deaf = True
        self._stop_timers()
        if self._refusal is not None or (self.running is not None and self.running.more_body):
            if self._wire.can_write_eof():
                self._wire.write_eof()
            self.flow.resume_reading()
            self._timer = self.loop.call_later(LINGER_SECONDS, self._wire.abort)
        else:
            self._wire.close()
            self._timer = self.loop.call_later(self._limits.write_seconds, self._wire.abort)

    def is_closing(self) -> bool:
        """Whether it will not be used any more."""
        return self._closing or self._wire.is_closing()

    def _stop_timers(self) -> None:
        self._unset_keepalive_if_required()
        for timer in (self._timer, self._write_timer):
            if timer is not None:
                timer.cancel()
        self._timer = self._write_timer = None

    # Reading

    def data_received(self, data: bytes) -> None:
        """As asyncio calls it."""
        if self._deaf:
            return
        if self._between and b"h2c" in data:
            data = _without_h2c(data)
        self._quiet_bytes += len(data)
        try:
            self.parser.feed_data(data)
            if self._quiet_bytes > self._limits.headers:
                raise self._headers_too_large()
        except HttpError as error:
            self._refuse(error)
        except httptools.HttpParserUpgrade:
            # Refused when the head was complete, before anything could be lost.
            pass
        except httptools.HttpParserError as error:
            cause = error.__context__
            if not isinstance(cause, HttpError):
                cause = HttpError(400, f"the request is not HTTP/1.1: {error}")
            self._refuse(cause)
        if self._in_head and self._timer is None and not self._deaf:
            self._timer = self.loop.call_later(self._limits.header_seconds, self._head_is_late)

    def on_message_begin(self) -> None:
        """As httptools calls it."""
        self._unset_keepalive_if_required()
        self._in_head = True
        self._between = False
        self._head_bytes = 0
        super().on_message_begin()

    def on_url(self, url: bytes) -> None:
        """As httptools calls it."""
        self._count_head(len(url))
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        """As httptools calls it, for headers and for trailers, which nobody reads."""
        self._count_head(len(name) + len(value) + 4)
        if self._in_head:
            if len(self.headers) >= MAX_HEADERS:
                raise self._headers_too_large()
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """As httptools calls it."""
        self._check_head()
        if self.pipeline and len(self.pipeline) >= MAX_PIPELINED:
            raise HttpError(
                429,
                "too many requests wait behind one another on a connection",
                allowed=f"{MAX_PIPELINED}",
                headers={"retry-after": "1"},
            )
        self._in_head = False
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        super().on_headers_complete()
        # uvicorn stops reading where requests wait, and would not see the client leave.
        self.flow.resume_reading()

    def on_body(self, body: bytes) -> None:
        """As httptools calls it."""
        self._quiet_bytes = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        """As httptools calls it."""
        self._quiet_bytes = 0
        self._between = True
        super().on_message_complete()

    def _count_head(self, count: int) -> None:
        self._head_bytes += count
        if self._head_bytes > self._limits.headers:
            raise self._headers_too_large()

    def _headers_too_large(self) -> HttpError:
        return HttpError(
            431,
            "the headers are too large",
            allowed=f"{self._limits.headers} bytes and {MAX_HEADERS} of them",
        )

    def _head_is_late(self) -> None:
        self._refuse(
            HttpError(
                408,
                "the headers did not come in time",
                allowed=f"{self._limits.header_seconds:g} s",
            )
        )

    def _check_head(self) -> None:
        """Refuse a head that somebody else could read otherwise."""
        version = self.parser.get_http_version()
        if version not in ("1.0", "1.1"):
            raise HttpError(505, f"HTTP/{version} is not spoken here", allowed="HTTP/1.1")
        if not self.url.startswith(b"/") or b"#" in self.url:
            raise HttpError(400, "the target of a request is a path that begins with /")
        if self.parser.should_upgrade():
            raise HttpError(400, "no other protocol is spoken here", do="leave out Upgrade")
        single: dict[bytes, bytes] = {}
        for name, value in self.headers:
            if name in _ONCE and single.setdefault(name, value) is not value:
                raise HttpError(400, f"the header {name.decode('ascii')} is there twice")
        if version == "1.1" and b"host" not in single:
            raise HttpError(400, "the request has no Host header")
        length, coding = single.get(b"content-length"), single.get(b"transfer-encoding")
        if length is not None and not _LENGTH.fullmatch(length):
            raise HttpError(400, "Content-Length is no number")
        if coding is None:
            return
        if length is not None or version == "1.0":
            raise HttpError(400, "Transfer-Encoding and Content-Length or HTTP/1.0 exclude it")
        if coding.lower() != b"chunked":
            raise HttpError(501, "the Transfer-Encoding is not known", allowed="chunked")

    # Writing

    def pause_writing(self) -> None:
        """As asyncio calls it when the client does not keep up."""
        super().pause_writing()
        self._watch_writing()

    def resume_writing(self) -> None:
        """As asyncio calls it when the client has caught up."""
        if self._write_timer is not None:
            self._write_timer.cancel()
            self._write_timer = None
        super().resume_writing()

    def _watch_writing(self) -> None:
        waiting = self._wire.get_write_buffer_size()
        self._write_timer = self.loop.call_later(
            self._limits.write_seconds, self._cut_stalled, waiting
        )

    def _cut_stalled(self, waiting: int) -> None:
        if self._wire.get_write_buffer_size() >= waiting:
            self._wire.abort()
        else:
            self._watch_writing()

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:  # noqa: ANN401
        self.running = cycle
        super()._start_asgi_task(cycle, app)

    def on_response_complete(self) -> None:
        """As uvicorn calls it."""
        super().on_response_complete()
        if self._refusal is not None and not self.pipeline and not self._in_response():
            self._write_refusal()

    def _in_response(self) -> bool:
        return self.running is not None and not self.running.response_complete

    def _refuse(self, error: HttpError) -> None:
        """Answer a request that never became one, after those before it; then close.

        Nothing behind it is read: where it ends is not known.
        """
        self._deaf = True
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._refusal = _response(error)
        broken = None if self._in_head or self._between else self.cycle
        if broken is not None:
            # The request is already known: it is waiting, or being answered while it still comes.
            if self.pipeline and self.pipeline[0][0] is broken:
                self.pipeline.popleft()
            elif broken.response_started:
                self.transport.close()
                return
            broken.disconnected = True
            broken.message_event.set()
            if broken is self.running:
                self.running = None
        if not self.pipeline and not self._in_response():
            self._write_refusal()

    def _write_refusal(self) -> None:
        if self._refusal is not None and not self._closing:
            self._wire.write(self._refusal)
            self.close()


class _Lingering:
    """A transport as uvicorn uses it, whose closing is the protocol's."""

    def __init__(self, wire: asyncio.Transport, protocol: HttpProtocol) -> None:
        self.write = wire.write
        self.get_extra_info = wire.get_extra_info
        self.pause_reading = wire.pause_reading
        self.resume_reading = wire.resume_reading
        self.close = protocol.close
        self.is_closing = protocol.is_closing


def _without_h2c(data: bytes) -> bytes:
    """Take an offer of HTTP/2 out of a head, as a server may that does not speak it.

    Java's client makes it with every request; httptools would drop the body of such a request.
    """
    end = data.find(b"\r\n\r\n")
    return data if end < 0 else _H2C.sub(b"", data[: end + 2]) + data[end + 2 :]


def _response(error: HttpError) -> bytes:
    """A whole response that tells of an error before any path is known."""
    body = PlainDialect().error(error.status, error, "")
    head = [
        STATUS_LINE[error.status],
        b"content-type: application/json\r\ncontent-length: %d\r\n" % len(body),
        *(f"{name}: {value}\r\n".encode("latin-1") for name, value in error.headers.items()),
        b"connection: close\r\n\r\n",
    ]
    return b"".join(head) + body

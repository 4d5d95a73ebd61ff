"""An HTTP/1.1 client for load: little work a request, and the time of each arrival.

A connection carries one request at a time and is kept for the next one. What arrives is stamped
before it is parsed, so that several pieces that came together carry the same time.
"""

from __future__ import annotations

import asyncio
import re
import ssl
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self, cast
from urllib.parse import urlsplit

import httptools

from hasten.errors import HastenError, UsageError
from hasten.measure.records import Clock
from hasten.measure.targets.target import TargetError

__all__ = ["HttpClient", "HttpOptions", "HttpTarget", "Reply", "Sink"]

Sink = Callable[[bytes, float], None]
"""Takes a piece of a body and when it arrived; what it raises ends the request."""

_PLAIN = re.compile(r"[\x20-\x7e\t]*")
_FRAMED = (b"content-length", b"transfer-encoding")


@dataclass(frozen=True, slots=True)
class HttpOptions:
    """How requests are made, and what they may take.

    Attributes:
        headers: Sent with each request.
        key: Sent as a bearer key.
        connect_seconds: Until a connection stands, TLS included.
        quiet_seconds: For which a server may send nothing while it owes an answer.
        total_seconds: For a whole request; None for no limit.
        ca_file: Certificates to trust instead of the system's.
        max_head: Bytes of the names and values of an answer's headers.
        max_body: Bytes of an answer's body, streamed or not.
    """

    headers: Mapping[str, str] = field(default_factory=dict)
    key: str | None = None
    connect_seconds: float = 10.0
    quiet_seconds: float = 300.0
    total_seconds: float | None = None
    ca_file: str | None = None
    max_head: int = 64 * 1024
    max_body: int = 256 * 2**20

    @property
    def all_headers(self) -> dict[str, str]:
        """The headers and the key's."""
        key = {} if self.key is None else {"Authorization": f"Bearer {self.key}"}
        return {**self.headers, **key}


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer.

    Attributes:
        status: As HTTP numbers it.
        headers: Names in lower case.
        body: Empty where it was streamed to a sink.
        at: When its last byte arrived.
    """

    status: int
    headers: dict[str, str]
    body: bytes
    at: float


class HttpClient:
    """Connections to one server, as many as requests are under way at once.

    Args:
        url: "http://" or "https://", host, port, and a path that stands before all others.
        options: How requests are made.

    Raises:
        UsageError: The URL is not one, or a header has characters that it may not have.
    """

    def __init__(self, url: str, options: HttpOptions | None = None) -> None:
        self._options = options or HttpOptions()
        self.url = url
        self._host, self._port, tls, self._prefix = _split(url)
        self._tls = _context(self._options.ca_file) if tls else None
        name = f"[{self._host}]" if ":" in self._host else self._host
        headers = {"Host": f"{name}:{self._port}", **self._options.all_headers}
        self._head = _header_lines(headers)
        self._idle: list[_Connection] = []

    async def request(
        self,
        method: str,
        path: str,
        body: bytes = b"",
        *,
        headers: Mapping[str, str] | None = None,
        sink: Sink | None = None,
        clock: Clock = time.perf_counter,
    ) -> Reply:
        """Makes a request and waits for the end of its answer. Being cancelled, it hangs up.

        A request that a kept connection turns out to be closed for, before a byte of the answer
        came, is sent again over a new one.

        Args:
            method: "GET" or "POST".
            path: Quoted, from "/" on.
            body: JSON, unless a header says otherwise.
            headers: Besides those of the options.
            sink: Gets the body of an answer of status 2xx as it arrives.
            clock: Tells the time of arrivals.

        Raises:
            TargetError: There is no connection or answer, or it is none of HTTP/1.1.
        """
        more = headers or ({"Content-Type": "application/json"} if body else {})
        line = f"{method} {self._prefix}{path} HTTP/1.1\r\n"
        length = f"Content-Length: {len(body)}\r\n" if body or method == "POST" else ""
        message = b"".join(
            (line.encode(), self._head, length.encode(), _header_lines(more), b"\r\n", body)
        )
        connection = self._kept()
        if connection is not None:
            try:
                return await self._exchange(connection, message, sink, clock)
            except TargetError:
                if connection.heard or not connection.hung_up:
                    raise
        return await self._exchange(await self._connect(), message, sink, clock)

    async def close(self) -> None:
        """Closes the connections; a later request opens new ones."""
        while self._idle:
            self._idle.pop().abort()
        await asyncio.sleep(0)  # in which they close

    def _kept(self) -> _Connection | None:
        """The connection that was used last, if one is kept; those that were closed are not."""
        while self._idle:
            connection = self._idle.pop()
            if not connection.closed:
                return connection
        return None

    async def _exchange(
        self, connection: _Connection, message: bytes, sink: Sink | None, clock: Clock
    ) -> Reply:
        reply = await connection.exchange(message, sink, clock)
        if not connection.closed:
            self._idle.append(connection)
        return reply

    async def _connect(self) -> _Connection:
        where = f"{self._host}:{self._port}"
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(self._options.connect_seconds):
                _, connection = await loop.create_connection(
                    lambda: _Connection(where, self._options, loop),
                    self._host,
                    self._port,
                    ssl=self._tls,
                )
        except TimeoutError as error:
            seconds = self._options.connect_seconds
            raise TargetError(f"no connection to {where} within {seconds:g} s") from error
        except (OSError, UnicodeError) as error:  # UnicodeError: a host name that is none
            raise TargetError(
                f"no connection to {where}: {error}", do="is the server running there?"
            ) from error
        return connection


class HttpTarget:
    """What targets over HTTP have in common: a `client`.

    Args:
        url: Of the server.
        options: How requests are made.
    """

    def __init__(self, url: str, options: HttpOptions | None = None) -> None:
        self.client = HttpClient(url, options)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.client.close()


class _Connection(asyncio.Protocol):
    """One connection.

    Attributes:
        closed: It carries no further request.
        heard: Something of the answer to the last request arrived.
        hung_up: The server closed it, rather than this side.
    """

    def __init__(self, where: str, options: HttpOptions, loop: asyncio.AbstractEventLoop) -> None:
        self.closed = self.heard = self.hung_up = False
        self._where = where
        self._options = options
        self._loop = loop
        self._parser = httptools.HttpResponseParser(self)
        self._waiting: asyncio.Future[Reply] | None = None
        self._timer: asyncio.TimerHandle | None = None

    async def exchange(self, message: bytes, sink: Sink | None, clock: Clock) -> Reply:
        """Sends a request and waits for the end of its answer."""
        self._waiting = self._loop.create_future()
        self._sink, self._clock = sink, clock
        self.heard = self._in_body = self._streams = False
        self._status = self._head_bytes = self._body_bytes = 0
        self._loose = 0  # bytes that came since one of the body: the parser may hold them all
        self._headers: list[tuple[bytes, bytes]] = []
        self._pieces: list[bytes] = []
        self._begun = self._moved = self._loop.time()
        if self._timer is None:
            self._watch()
        self._transport.write(message)
        try:
            return await self._waiting
        except BaseException:
            self.abort()
            raise
        finally:
            self._waiting = None

    def abort(self) -> None:
        """Closes it now."""
        self.closed = True
        self._transport.abort()

    # As asyncio calls it

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """It stands."""
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        """Something arrived."""
        if self._waiting is None or self._waiting.done():  # nobody asked for anything
            self.abort()
            return
        self._at = self._clock()
        self._moved = self._loop.time()
        self._loose += len(data)
        self.heard = True
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            self._fail(TargetError(f"{self._where} switches to another protocol"))
        except httptools.HttpParserError as error:
            cause = error.__context__
            said = TargetError(f"{self._where} does not answer in HTTP/1.1: {error}")
            self._fail(cause if isinstance(cause, Exception) else said)
        if self._loose > self._options.max_head:
            self._fail(self._too_large("head", self._options.max_head))

    def connection_lost(self, exc: Exception | None) -> None:
        """It is closed."""
        self.hung_up = not self.closed
        self.closed = True
        if self._timer is not None:
            self._timer.cancel()
        if self._waiting is None or self._waiting.done():
            return
        ends_so = not any(name.lower() in _FRAMED for name, _ in self._headers)
        if self._in_body and ends_so and exc is None:
            self._complete()
            return
        part = "in the middle of" if self.heard else "before"
        why = "" if exc is None else f": {exc}"
        self._fail(TargetError(f"{self._where} closed the connection {part} its answer{why}"))

    # As the parser calls it

    def on_message_begin(self) -> None:
        """A head begins."""
        if self._waiting is None or self._waiting.done():
            raise TargetError(f"{self._where} sent more than was asked for")

    def on_header(self, name: bytes, value: bytes) -> None:
        """A header is complete."""
        self._head_bytes += len(name) + len(value)
        if self._head_bytes > self._options.max_head:
            raise self._too_large("head", self._options.max_head)
        self._headers.append((name, value))

    def on_headers_complete(self) -> None:
        """A head is complete."""
        self._status = self._parser.get_status_code()
        if self._status >= 200:  # those before only announce it
            self._in_body = True
            self._streams = self._sink is not None and self._status < 300
            self._keep = self._parser.should_keep_alive()

    def on_body(self, body: bytes) -> None:
        """A piece of a body."""
        self._loose = 0
        self._body_bytes += len(body)
        if self._body_bytes > self._options.max_body:
            raise self._too_large("body", self._options.max_body)
        if self._streams and self._sink is not None:
            self._sink(body, self._at)
        else:
            self._pieces.append(body)

    def on_message_complete(self) -> None:
        """An answer is complete."""
        if self._in_body:
            self._complete()
        else:
            self._headers.clear()

    def _complete(self) -> None:
        if self._waiting is None or self._waiting.done():
            return
        headers = {k.decode("latin-1").lower(): v.decode("latin-1") for k, v in self._headers}
        self._waiting.set_result(Reply(self._status, headers, b"".join(self._pieces), self._at))
        # An answer before the end of the request leaves the rest of it in the way of the next.
        if not self._keep or self._transport.get_write_buffer_size():
            self.abort()

    def _fail(self, error: Exception) -> None:
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_exception(error)
        self.abort()

    def _too_large(self, part: str, limit: int) -> HastenError:
        return TargetError(f"the {part} of {self._where}'s answer is larger than {limit} bytes")

    def _watch(self) -> None:
        """Ends a request that is out of time, or looks again when it would be."""
        self._timer = None
        if self._waiting is None or self._waiting.done():
            return
        quiet, total = self._options.quiet_seconds, self._options.total_seconds
        now = self._loop.time()
        if now - self._moved >= quiet:
            self._fail(TargetError(f"{self._where} sent nothing for {quiet:g} s"))
        elif total is not None and now - self._begun >= total:
            self._fail(TargetError(f"{self._where} did not end its answer within {total:g} s"))
        else:
            due = self._moved + quiet
            due = due if total is None else min(due, self._begun + total)
            self._timer = self._loop.call_at(due, self._watch)


def _split(url: str) -> tuple[str, int, bool, str]:
    """Host, port, whether it is TLS, and the path without a slash at its end."""
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise UsageError(f"{url!r} is not a URL: {error}") from error
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise UsageError(f"{url!r} is not the URL of a server", allowed="http://HOST:PORT")
    if parts.username is not None or parts.query or parts.fragment:
        raise UsageError(
            f"{url!r} has a user, a query or a fragment", allowed="http://HOST:PORT/PATH"
        )
    if not parts.path.isascii() or not parts.path.isprintable() or " " in parts.path:
        raise UsageError(f"the path of {url!r} is not quoted", do="write %20 for a space")
    tls = parts.scheme == "https"
    return parts.hostname, port or (443 if tls else 80), tls, parts.path.rstrip("/")


def _context(ca_file: str | None) -> ssl.SSLContext:
    try:
        return ssl.create_default_context(cafile=ca_file)
    except OSError as error:
        raise UsageError(f"the certificates in {ca_file} cannot be read: {error}") from error


def _header_lines(headers: Mapping[str, str]) -> bytes:
    for name, value in headers.items():
        if not _PLAIN.fullmatch(value) or not _PLAIN.fullmatch(name):
            raise UsageError(f"the header {name!r} has characters that a header may not have")
    return "".join(f"{name}: {value}\r\n" for name, value in headers.items()).encode()

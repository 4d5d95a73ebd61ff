"""The server as an ASGI application: requests become calls, replies become responses.

What happens to a request, in order: its host and its page are checked, its client is found, its
route is found, its body is read, its endpoint answers, the reply goes back. Whatever fails before
the reply begins is told in the dialect of the path. From the end of the body on the connection is
watched: a client that leaves cancels what was done for it.
"""

from __future__ import annotations

import asyncio
import logging
import math
import re
import secrets
import time
import traceback
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, MutableMapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl

import msgspec

from hasten.errors import DeadlineError, HastenError, UsageError
from hasten.serve.auth import Authenticator
from hasten.serve.body import Body, BodyLimits, BodyMemory, ClientGoneError, Lease
from hasten.serve.browser import BrowserGuard
from hasten.serve.endpoint import Call, Reply, Route
from hasten.serve.heartbeat import Heartbeat
from hasten.serve.jobs import Client
from hasten.serve.routing import Match, Router
from hasten.serve.status import HttpError, retry_after, status_of
from hasten.serve.telemetry.observed import Observed

if TYPE_CHECKING:
    from hasten.serve.service import Service

__all__ = ["App", "PlainDialect"]

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

BODIES_AT_ONCE = 8
"""Memory for bodies, in bodies of the largest size."""

MAX_QUERY_FIELDS = 64

_log = logging.getLogger(__name__)
_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")


class PlainDialect:
    """Errors where no protocol has its own way of telling them."""

    def error(self, status: int, error: Exception, request_id: str) -> bytes:
        """As `hasten.serve.endpoint.Dialect.error`."""
        told = str(error) if isinstance(error, HastenError) else "internal error"
        kind = "server_error" if status >= 500 else "invalid_request_error"
        body = {"message": told, "type": kind, "param": None, "code": None}
        return msgspec.json.encode({"error": body})


@dataclass(slots=True)
class Exchange:
    """One request on its way through the server; filled step by step.

    Attributes:
        scope: Of ASGI.
        receive: Of ASGI.
        headers: Names in lower case; values of equal names joined.
        seen: What is told about it afterwards.
        body: Of the request.
        watch: Sees the client leave.
        cors: Headers of the response for a web page that may ask.
    """

    scope: Scope
    receive: Receive
    headers: dict[str, str]
    seen: Observed
    body: Body
    watch: Watch
    cors: dict[str, str] = field(default_factory=dict)


class App:
    """An ASGI application over routes.

    Args:
        service: What answers.
        routes: All of them by the name of their protocol; two for one place are an error.

    Raises:
        ValueError: If routes collide.
    """

    def __init__(self, service: Service, routes: Mapping[str, Iterable[Route]]) -> None:
        self.service = service
        self.settings = settings = service.settings
        self.observer = service.observer
        self.router = Router(routes, PlainDialect())
        self._guard = BrowserGuard(settings)
        self._authenticator = Authenticator(settings.keys)
        self._bodies = BodyMemory(BODIES_AT_ONCE * settings.limits.body)
        self._ids: set[str] = set()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request, as ASGI calls it."""
        if scope["type"] != "http":
            raise ValueError(f"{scope['type']!r} is not spoken here")
        headers = _read_headers(scope["headers"])
        seen = Observed(
            id=self._new_id(headers.get("x-request-id", "")),
            method=scope["method"],
            path=scope["raw_path"].decode("latin-1"),
            received=time.monotonic(),
        )
        watch = Watch(receive)
        body = Body(receive, headers, self._body_limits(None))
        exchange = Exchange(scope, receive, headers, seen, body, watch)
        self._ids.add(seen.id)
        try:
            with self.observer.request(seen, headers):
                await self._serve(exchange, send)
        except asyncio.CancelledError:
            if not watch.client_gone:
                raise
            watch.forgive()
        finally:
            watch.stop()
            self._ids.discard(seen.id)

    async def _serve(self, exchange: Exchange, send: Send) -> None:
        try:
            with self._bodies.lease() as lease:
                reply = await self._answer(exchange, lease)
                await self._send(reply, exchange, send)
        except ClientGoneError:
            exchange.seen.disconnected = True

    async def _answer(self, exchange: Exchange, lease: Lease) -> Reply:
        """The reply of the endpoint, or one that tells what is wrong."""
        try:
            headers, method = exchange.headers, exchange.seen.method
            self._guard.check_host(headers.get("host"))
            exchange.cors = self._guard.check_origin(headers.get("origin"))
            preflight = self._guard.preflight(method, headers)
            if preflight is not None:
                return preflight
            client, match = self._authenticate(exchange)
            call = await self._read(exchange, client, match, lease)
            return await match.route.endpoint(call)
        except ClientGoneError:
            raise
        except Exception as error:
            return self._tell(error, exchange)

    def _authenticate(self, exchange: Exchange) -> tuple[Client, Match]:
        """Find the client and the route; a client without a key learns nothing about routes."""
        peer = exchange.scope.get("client")
        match: Match | HastenError
        try:
            match = self.router.find(exchange.seen.method, exchange.seen.path)
        except HastenError as error:
            match = error
        open_to_all = isinstance(match, Match) and match.route.open
        client = self._authenticator.client(exchange.headers, peer and peer[0], open_to_all)
        exchange.seen.client = client.name
        if not isinstance(match, Match):
            raise match
        exchange.seen.protocol, exchange.seen.route = match.protocol, match.route.path
        self._authenticator.check(client, match.route)
        return client, match

    async def _read(self, exchange: Exchange, client: Client, match: Match, lease: Lease) -> Call:
        """The call, with its body, or with the pieces of its body as they come."""
        route = match.route
        exchange.body = body = Body(exchange.receive, exchange.headers, self._body_limits(route))
        body.check()
        content, chunks = b"", None
        if route.streams_body:
            chunks = _then_watch(body, exchange.watch)
        else:
            content = await body.read(lease)
            exchange.watch.start()
        return Call(
            service=self.service,
            client=client,
            id=exchange.seen.id,
            body=content,
            received=exchange.seen.received,
            headers=exchange.headers,
            path=match.path,
            query=_read_query(exchange.scope["query_string"]),
            chunks=chunks,
        )

    def _body_limits(self, route: Route | None) -> BodyLimits:
        limits = self.settings.limits
        if route is not None and route.streams_body:
            return BodyLimits(
                route.max_body or limits.upload, limits.body_seconds, limits.request_seconds
            )
        size = limits.body if route is None else route.max_body or limits.body
        return BodyLimits(size, limits.body_seconds, limits.body_seconds)

    def _tell(self, error: Exception, exchange: Exchange) -> Reply:
        """The reply that tells of an error."""
        status = status_of(error)
        exchange.seen.error = error
        if not isinstance(error, HastenError):
            _log.error("a request met a bug", exc_info=error)
        # Frames hold the body, and what they hold holds the error: memory that only the garbage
        # collector would find.
        traceback.clear_frames(error.__traceback__)
        error.__traceback__ = None
        headers = dict(error.headers) if isinstance(error, HttpError) else {}
        if status == 401:
            headers["www-authenticate"] = "Bearer"
        wait = retry_after(error)
        if wait is not None:
            headers["retry-after"] = str(max(1, math.ceil(wait)))
            headers["retry-after-ms"] = str(max(0, math.ceil(wait * 1000)))
        if isinstance(error, DeadlineError):
            headers["x-should-retry"] = "false"  # or clients ask again for what took too long
        dialect = self.router.dialect(exchange.seen.path)
        return Reply(dialect.error(status, error, exchange.seen.id), status=status, headers=headers)

    async def _send(self, reply: Reply, exchange: Exchange, send: Send) -> None:
        exchange.seen.status = reply.status
        if isinstance(reply.body, bytes):
            exchange.watch.stop()
            await send(_start(reply, exchange, len(reply.body)))
            await send({"type": "http.response.body", "body": reply.body})
            return
        pieces = reply.body
        try:
            if exchange.scope["http_version"] == "1.0":  # it knows no chunks
                whole = b"".join([piece async for piece in pieces])
                await send(_start(reply, exchange, len(whole)))
                await send({"type": "http.response.body", "body": whole, "more_body": True})
            else:
                await send(_start(reply, exchange, None))
                if exchange.seen.method != "HEAD":
                    await self._stream(pieces, reply.beat, send)
        except Exception as error:
            # Ending without the last chunk tells the client that something is missing.
            exchange.seen.error = error
            _log.error("a reply broke off", exc_info=error)
            return
        finally:
            close = getattr(pieces, "aclose", None)
            if close is not None:
                await close()
        exchange.watch.stop()
        await send({"type": "http.response.body", "body": b""})

    async def _stream(self, pieces: AsyncIterator[bytes], beat: bytes, send: Send) -> None:
        async def send_piece(piece: bytes) -> None:
            await send({"type": "http.response.body", "body": piece, "more_body": True})

        heart = Heartbeat(send_piece, beat, self.settings.limits.beat_seconds)
        heart.start()
        try:
            async for piece in pieces:
                await heart.send(piece)
        finally:
            await heart.stop()

    def _new_id(self, wanted: str) -> str:
        """The client's own id for its request, where it can be used, else a new one."""
        if _ID.fullmatch(wanted) and wanted not in self._ids:
            return wanted
        return secrets.token_hex(12)


class Watch:
    """Cancels the task that made it when the client leaves."""

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self._owner = asyncio.current_task()
        self._watcher: asyncio.Task[None] | None = None
        self.client_gone = False

    def start(self) -> None:
        """Watch from now on: all of the body was read."""
        self._watcher = asyncio.create_task(self._wait())

    def stop(self) -> None:
        """The end of the reply is no departure."""
        if self._watcher is not None:
            self._watcher.cancel()

    def forgive(self) -> None:
        """The cancellation has done its work."""
        if self._owner is not None:
            self._owner.uncancel()

    async def _wait(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self.client_gone = True
        if self._owner is not None:
            self._owner.cancel()


async def _then_watch(body: Body, watch: Watch) -> AsyncIterator[bytes]:
    async for chunk in body.chunks():
        yield chunk
    watch.start()


def _read_headers(pairs: Iterable[tuple[bytes, bytes]]) -> dict[str, str]:
    headers: dict[str, str] = {}
    for raw_name, raw_value in pairs:
        name, value = raw_name.decode("latin-1"), raw_value.decode("latin-1")
        headers[name] = f"{headers[name]}, {value}" if name in headers else value
    return headers


def _read_query(query: bytes) -> dict[str, str]:
    if not query:
        return {}
    try:
        pairs = parse_qsl(
            query.decode("latin-1"), keep_blank_values=True, max_num_fields=MAX_QUERY_FIELDS
        )
    except ValueError as error:
        raise UsageError(
            "the query holds too many fields", allowed=f"{MAX_QUERY_FIELDS} of them"
        ) from error
    return dict(pairs)


def _start(reply: Reply, exchange: Exchange, length: int | None) -> Message:
    """The first message of a response.

    Args:
        reply: What goes back.
        exchange: To which request.
        length: Bytes of the body; None if it comes in pieces.
    """
    headers = {
        "x-request-id": exchange.seen.id,
        "request-id": exchange.seen.id,  # where Anthropic's clients look for it
        "x-content-type-options": "nosniff",
    }
    if length != 0:
        headers["content-type"] = reply.content_type
    if length is None:
        headers["cache-control"] = "no-cache"
        headers["x-accel-buffering"] = "no"  # a proxy that collects pieces would spoil them
    elif reply.status != 204:
        headers["content-length"] = str(length)
    if not exchange.body.complete:
        headers["connection"] = "close"
    return {
        "type": "http.response.start",
        "status": reply.status,
        "headers": [
            (name.encode("latin-1"), _one_line(value).encode("latin-1"))
            for name, value in (headers | exchange.cors | dict(reply.headers)).items()
        ],
    }


def _one_line(value: str) -> str:
    """A header's value that ends where it should, whatever of the client's is in it."""
    if value.isascii() and value.isprintable():
        return value
    return "".join(one if one.isascii() and one.isprintable() else "?" for one in value)

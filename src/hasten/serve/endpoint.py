"""What an endpoint is: a call in, a reply out, no socket.

The HTTP front turns requests into calls and replies into responses; a batch makes calls of its own.
So an endpoint is tested, and used, without a server.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from hasten.serve.jobs import Client

if TYPE_CHECKING:
    from hasten.serve.service import Service

__all__ = ["Call", "Dialect", "Endpoint", "Reply", "Route"]


@dataclass(frozen=True, slots=True)
class Call:
    """One request, read and authenticated; filled by the HTTP front or a batch.

    Attributes:
        service: What answers.
        client: Who asks.
        id: Of the request; the reply carries it as x-request-id and request-id.
        body: The decompressed body; empty for routes that stream it.
        headers: Names in lower case.
        path: Values of the placeholders of the route's path.
        query: Values behind the question mark; the last of a name counts.
        received: When the request came, in seconds of `time.monotonic`.
        chunks: The body as it comes, for routes that stream it.
    """

    service: Service
    client: Client
    id: str
    body: bytes
    received: float
    headers: Mapping[str, str] = field(default_factory=dict)
    path: Mapping[str, str] = field(default_factory=dict)
    query: Mapping[str, str] = field(default_factory=dict)
    chunks: AsyncIterator[bytes] | None = None


@dataclass(frozen=True, slots=True)
class Reply:
    """What goes back; filled by an endpoint.

    Attributes:
        body: All of it, or its pieces as they come. Leaving the iteration early (`aclose`) cancels
            the work behind it. An endpoint that streams has made sure before it returns that the
            job is valid and admitted; what goes wrong later is told inside the stream.
        status: Of HTTP.
        content_type: Of the body.
        headers: Further ones.
        beat: What may be sent between the pieces of the body where none comes for long.
    """

    body: bytes | AsyncIterator[bytes]
    status: int = 200
    content_type: str = "application/json"
    headers: Mapping[str, str] = field(default_factory=dict)
    beat: bytes = b""


Endpoint = Callable[[Call], Awaitable[Reply]]


class Dialect(Protocol):
    """How a protocol tells errors."""

    def error(self, status: int, error: Exception, request_id: str) -> bytes:
        """The JSON body of an error response.

        Args:
            status: Of HTTP, as `hasten.serve.status` chose it.
            error: A `HastenError`, or any other exception, which is a bug of ours and whose text
                must not leave the server.
            request_id: To be named where the protocol has a place for it.
        """
        ...


@dataclass(frozen=True, slots=True)
class Route:
    """A place in the server; protocols list theirs.

    Attributes:
        method: Of HTTP.
        path: With placeholders, as in "/v1/models/{model:path}".
        endpoint: What answers.
        dialect: How errors are told there.
        summary: One line for the published schema.
        request: The `msgspec.Struct` of the body, for the published schema; None without a body.
        open: Answered without an API key; health alone is.
        admin: Needs a client with `Client.admin`.
        streams_body: The endpoint reads the body from `Call.chunks`, for uploads.
        max_body: Bytes of the decompressed body; None takes the server's own limit.
        gives: Media types of what comes back where all is well, for the published schema; empty
            where nothing but headers does.
    """

    method: str
    path: str
    endpoint: Endpoint
    dialect: Dialect
    summary: str
    request: type | None = None
    open: bool = False
    admin: bool = False
    streams_body: bool = False
    max_body: int | None = None
    gives: tuple[str, ...] = ("application/json",)

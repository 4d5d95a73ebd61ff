"""What targets over gRPC have in common: a channel, and its errors in our words."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlsplit

from hasten.errors import MissingDependencyError, UsageError
from hasten.measure.targets.http import HttpOptions
from hasten.measure.targets.messages import Message, declare, parse
from hasten.measure.targets.target import TargetError

__all__ = ["GrpcTarget"]


class GrpcTarget:
    """A channel to a service.

    Args:
        url: "grpc://" or, with TLS, "grpcs://", host and port.
        options: How requests are made: its key, headers, times and bound of bodies hold here, too.
        service: With its package.
        messages: Their declaration, see `declare`.

    Raises:
        UsageError: The URL is not one.
        MissingDependencyError: grpcio or protobuf is not installed.
    """

    def __init__(
        self, url: str, options: HttpOptions | None, *, service: str, messages: str
    ) -> None:
        self._url = url
        self._where, self._tls = _split(url)
        self._options = options or HttpOptions()
        self._service = service
        self._messages: Mapping[str, type[Message]] = declare(service.rpartition(".")[0], messages)
        self._grpc = _import_grpc()
        self._channel: Any = None
        self._calls: dict[str, Any] = {}

    async def __aenter__(self) -> Self:
        limit = self._options.max_body
        settings = [
            ("grpc.max_receive_message_length", limit),
            ("grpc.max_send_message_length", -1),
            # Targets have connections of their own.
            ("grpc.use_local_subchannel_pool", 1),
        ]
        make = self._grpc.aio
        if self._tls:
            self._channel = make.secure_channel(self._where, self._credentials(), settings)
        else:
            self._channel = make.insecure_channel(self._where, settings)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._calls.clear()
        channel, self._channel = self._channel, None
        await channel.close()

    async def _call(self, method: str, request: Message) -> bytes:
        """Calls a method and gives its reply, to be read with `_read`.

        Raises:
            TargetError: It failed; the status and the server's words are in the message.
        """
        call = self._calls.get(method)
        if call is None:
            call = self._calls[method] = self._channel.unary_unary(
                f"/{self._service}/{method}",
                request_serializer=type(request).SerializeToString,
            )
        total, quiet = self._options.total_seconds, self._options.quiet_seconds
        headers = self._options.all_headers
        try:
            reply: bytes = await call(
                request,
                timeout=quiet if total is None else min(total, quiet),
                metadata=[(name.lower(), value) for name, value in headers.items()],
            )
        except self._grpc.RpcError as error:
            status, details = error.code().name, error.details()
            raise TargetError(f"gRPC status {status}: {details}") from error
        return reply

    def _read(self, kind: str, data: bytes) -> Message:
        """Reads a message; TargetError where it is malformed."""
        return parse(self._messages[kind], data)

    def _credentials(self) -> Any:  # noqa: ANN401 - gRPC has no types
        path = self._options.ca_file
        try:
            roots = None if path is None else Path(path).read_bytes()
        except OSError as error:
            raise UsageError(f"the certificates in {path} cannot be read: {error}") from error
        return self._grpc.ssl_channel_credentials(roots)


def _import_grpc() -> Any:  # noqa: ANN401 - as above
    try:
        import grpc.aio  # type: ignore[import-untyped]
    except ImportError as error:
        raise MissingDependencyError(
            "gRPC targets need the package grpcio", do="pip install 'hasten[grpc]'"
        ) from error
    return grpc


def _split(url: str) -> tuple[str, bool]:
    """Host with port, and whether it is TLS."""
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise UsageError(f"{url!r} is not a URL: {error}") from error
    if parts.scheme not in ("grpc", "grpcs") or not parts.hostname or port is None or parts.path:
        raise UsageError(f"{url!r} is not the URL of a gRPC server", allowed="grpc://HOST:PORT")
    return parts.netloc, parts.scheme == "grpcs"

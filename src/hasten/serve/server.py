"""The server: listens, hands connections to the protocol, and ends without cutting answers."""

from __future__ import annotations

import asyncio
import errno
import logging
import signal
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from email.utils import formatdate
from typing import cast

from uvicorn.server import ServerState

from hasten.errors import UsageError
from hasten.serve.app import App
from hasten.serve.http import HttpConfig, HttpProtocol
from hasten.serve.settings import ServerSettings

__all__ = ["Server", "tls_context"]

_LOG = logging.getLogger(__name__)

END_SECONDS = 2.0
"""How long requests that were cut off may take to clean up."""

POLL_SECONDS = 0.02
BACKLOG = 1024
_ACCEPT_TURNS = 3
"""Of the event loop, from a connection that was accepted to one that can be closed."""


class Server:
    """Listens for an application.

    Args:
        app: What answers.

    Attributes:
        port: Of TCP, once it listens.
    """

    def __init__(self, app: App) -> None:
        self._app = app
        self._settings = app.settings
        self._state = ServerState()
        self._listener: asyncio.Server | None = None
        self._stop = asyncio.Event()
        self._stop_now = asyncio.Event()
        self._ticker: asyncio.TimerHandle | None = None
        self.port = 0

    @property
    def url(self) -> str:
        """Where clients find it."""
        scheme = "https" if self._settings.certificate else "http"
        host = self._settings.host
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104
        return f"{scheme}://{f'[{host}]' if ':' in host else host}:{self.port}"

    @property
    def connections(self) -> int:
        """How many are open."""
        return len(self._state.connections)

    async def start(self) -> None:
        """Begin to listen.

        Raises:
            UsageError: If the address cannot be had or the TLS files cannot be used.
        """
        config = HttpConfig(self._app)
        context = tls_context(self._settings)
        loop = asyncio.get_running_loop()

        def protocol() -> HttpProtocol:
            return HttpProtocol(config, self._state, {}, loop)

        handshake = self._settings.limits.header_seconds
        try:
            self._listener = await loop.create_server(
                protocol,
                sock=_bind(self._settings),
                ssl=context,
                backlog=BACKLOG,
                ssl_handshake_timeout=None if context is None else handshake,
            )
        except OSError as error:
            raise _cannot_listen(self._settings, error) from error
        self.port = self._listener.sockets[0].getsockname()[1]
        self._tick()
        _LOG.info("listening at %s", self.url)

    async def serve(self) -> None:
        """Serve until `stop` is called, then end as it says."""
        await self._stop.wait()
        await self._drain()

    def stop(self) -> None:
        """End: no new requests, those in flight go on for `drain_seconds`; called again: at once.

        Call it in the event loop's thread; it may be used as a signal handler of the loop.
        """
        if self._stop.is_set():
            self._stop_now.set()
        self._stop.set()

    def stop_on_signals(self) -> None:
        """Let SIGTERM and SIGINT call `stop`; for the main thread, inside its event loop."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.stop)

    @property
    def stopping(self) -> asyncio.Event:
        """Set once `stop` was called."""
        return self._stop

    async def _drain(self) -> None:
        """Let requests in flight end, within bounds, and then everything else."""
        loop = asyncio.get_running_loop()
        end = loop.time() + self._settings.drain_seconds
        self._app.service.admission.drain()
        await self._stop_listening(loop)
        connections, tasks = self._state.connections, self._state.tasks
        while (connections or tasks) and loop.time() < end and not self._stop_now.is_set():
            for connection in list(connections):
                connection.shutdown()  # now if it is idle, else with its response
            await asyncio.sleep(POLL_SECONDS)
        for connection in list(connections):
            cast(HttpProtocol, connection).abort()
        if tasks:
            await asyncio.wait(set(tasks), timeout=END_SECONDS)
        for task in list(tasks):
            task.cancel()
        if self._ticker is not None:
            self._ticker.cancel()
        await self._app.service.close()

    async def _stop_listening(self, loop: asyncio.AbstractEventLoop) -> None:
        """Accept nothing more, then close: what was just accepted still needs the listener."""
        if self._listener is None:
            return
        for listening in self._listener.sockets:
            loop.remove_reader(listening.fileno())
        for _ in range(_ACCEPT_TURNS):
            await asyncio.sleep(0)
        self._listener.close()

    def _tick(self) -> None:
        """Write the date that responses carry, once a second."""
        date = formatdate(time.time(), usegmt=True).encode()
        self._state.default_headers = [(b"date", date)]
        self._ticker = asyncio.get_running_loop().call_later(1.0, self._tick)

    @contextmanager
    def in_thread(self) -> Iterator[str]:
        """Serve in a thread of its own while the block runs.

        Yields:
            The server's URL.
        """
        started: Future[asyncio.AbstractEventLoop] = Future()

        async def run() -> None:
            try:
                await self.start()
            except BaseException as error:
                started.set_exception(error)
                return
            started.set_result(asyncio.get_running_loop())
            await self.serve()

        def main() -> None:
            asyncio.run(run())

        thread = threading.Thread(target=main, name="hasten-server", daemon=True)
        thread.start()
        loop = started.result()
        try:
            yield self.url
        finally:
            loop.call_soon_threadsafe(self.stop)
            thread.join()


def tls_context(settings: ServerSettings) -> ssl.SSLContext | None:
    """What TLS needs; None for a server without.

    Raises:
        UsageError: If one of the files is missing or wrong.
    """
    certificate, key = settings.certificate, settings.private_key
    if certificate is None and key is None:
        return None
    if certificate is None or key is None:
        raise UsageError("TLS needs a certificate and its private key", do="give both")
    for path in (certificate, key):
        try:
            path.open("rb").close()
        except OSError as error:
            raise UsageError(f"cannot read {str(path)!r}: {error.strerror}") from error
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        # Without one OpenSSL would ask for the password of a key on the terminal.
        context.load_cert_chain(certificate, key, password="")
    except (ssl.SSLError, ValueError) as error:
        raise UsageError(
            f"{str(certificate)!r} and {str(key)!r} are no certificate and its key: {error}",
            allowed="a PEM file with the chain, and one with its key, without password",
        ) from error
    return context


def _bind(settings: ServerSettings) -> socket.socket:
    """A socket on the address; the first one where a name has several."""
    found = socket.getaddrinfo(
        settings.host, settings.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )
    family, kind, protocol, _, address = found[0]
    listener = socket.socket(family, kind, protocol)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        listener.bind(address)
        listener.setblocking(False)
    except BaseException:
        listener.close()
        raise
    return listener


def _cannot_listen(settings: ServerSettings, error: OSError) -> UsageError:
    place = f"port {settings.port} of {settings.host}"
    if error.errno == errno.EADDRINUSE:
        return UsageError(f"{place} is taken", do="choose another --port, or end what uses it")
    if error.errno == errno.EACCES:
        return UsageError(f"{place} may not be used", do="choose a --port of at least 1024")
    return UsageError(f"cannot listen on {place}: {error.strerror}", do="choose another --host")

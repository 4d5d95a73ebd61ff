"""Starting, TLS, and ending without cutting answers."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import signal
import socket
import ssl
import subprocess
import sys
import time
from pathlib import Path

import pytest
import trustme

from hasten.errors import UsageError
from hasten.serve.app import App
from hasten.serve.server import Server, tls_context
from hasten.serve.settings import ServerSettings

HERE = Path(__file__).parent
HOST = b"Host: 127.0.0.1\r\n"

SERVER = """
import asyncio, runpy, sys
fakes = runpy.run_path(sys.argv[1])
from hasten.serve.app import App
from hasten.serve.server import Server
from hasten.serve.settings import ServerSettings

async def main():
    service = fakes["FakeService"](ServerSettings(port=0, drain_seconds=float(sys.argv[2])))
    server = Server(App(service, fakes["ROUTES"]))
    await server.start()
    server.stop_on_signals()
    print(server.port, flush=True)
    await server.serve()
    print(service.draining, service.events, flush=True)

asyncio.run(main())
"""


class Child:
    """A server in a process of its own, which signals can end."""

    def __init__(self, drain):
        command = [sys.executable, "-c", SERVER, str(HERE / "conftest.py"), str(drain)]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        self.port = int(self.process.stdout.readline())

    def stream(self, query):
        client = socket.create_connection(("127.0.0.1", self.port), timeout=20)
        client.sendall(f"GET /v1/stream?{query} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".encode())
        assert client.recv(1000).startswith(b"HTTP/1.1 200")
        return client

    def signal(self, number=signal.SIGTERM):
        self.process.send_signal(number)

    def end(self):
        """Its last line; it must end by itself, with success."""
        assert self.process.wait(20) == 0
        return self.process.stdout.read().strip()


@pytest.fixture
def child():
    children = []

    def start(drain=30):
        children.append(Child(drain))
        return children[-1]

    yield start
    for one in children:
        one.process.kill()
        one.process.wait()
        one.process.stdout.close()


def rest(client):
    received = b""
    try:
        while piece := client.recv(65536):
            received += piece
    except ConnectionError:
        pass
    client.close()
    return received


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_what_is_in_flight_is_finished(child, number):
    running = child()
    idle = socket.create_connection(("127.0.0.1", running.port))
    client = running.stream("count=100&pause=0.01")
    running.signal(number)
    assert idle.recv(1) == b""  # at once
    idle.close()
    with pytest.raises(ConnectionError):
        socket.create_connection(("127.0.0.1", running.port)).recv(1)
    received = rest(client)
    assert received.endswith(b"data: 99\n\n\r\n0\r\n\r\n")
    assert running.end() == "True ['stream closed', 'closed']"


def test_what_does_not_end_is_cut(child):
    running = child(drain=0.3)
    client = running.stream("pause=0.01")
    started = time.monotonic()
    running.signal()
    assert not rest(client).endswith(b"0\r\n\r\n")
    assert running.end() == "True ['stream closed', 'closed']"
    assert time.monotonic() - started < 10


def test_a_second_signal_ends_at_once(child):
    running = child(drain=60)
    client = running.stream("pause=0.01")
    started = time.monotonic()
    running.signal()
    time.sleep(0.2)
    running.signal(signal.SIGINT)
    rest(client)
    assert running.end() == "True ['stream closed', 'closed']"
    assert time.monotonic() - started < 10


def test_a_reader_that_stalls_does_not_hold_the_end_up(child):
    running = child(drain=0.5)
    client = running.stream("pause=0&size=100000")
    time.sleep(0.5)  # by now nothing more fits between the two
    running.signal()
    assert running.end() == "True ['stream closed', 'closed']"
    client.close()


def test_a_port_that_is_taken(fake_service):
    def start(**settings):
        asyncio.run(Server(App(fake_service(ServerSettings(**settings)), {})).start())

    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(UsageError, match=f"port {port} of 127.0.0.1 is taken; .*--port"):
            start(port=port)
    with pytest.raises(UsageError, match="--host"):
        start(host="192.0.2.1", port=0)
    with pytest.raises(UsageError, match="--host"):
        start(host="name.invalid", port=0)


@pytest.mark.parametrize("turns", range(8))
def test_a_connection_that_comes_with_the_end_is_closed(fake_service, turns):
    """However far the event loop has come with it: else it is left open, which is a warning."""
    clients = []

    async def main():
        server = Server(App(fake_service(ServerSettings(port=0)), {}))
        await server.start()
        clients.append(socket.create_connection(("127.0.0.1", server.port), timeout=5))
        for _ in range(turns):
            await asyncio.sleep(0)
        server.stop()
        await server.serve()

    asyncio.run(main())
    gc.collect()
    with clients[0] as client, contextlib.suppress(ConnectionError):
        assert client.recv(1) == b""


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    directory = tmp_path_factory.mktemp("tls")
    authority = trustme.CA()
    issued = authority.issue_cert("localhost", "127.0.0.1")
    authority.cert_pem.write_to_path(str(directory / "ca.pem"))
    issued.private_key_pem.write_to_path(str(directory / "key.pem"))
    for blob in issued.cert_chain_pems:
        blob.write_to_path(str(directory / "cert.pem"), append=True)
    other = trustme.CA().issue_cert("localhost")
    other.private_key_pem.write_to_path(str(directory / "other.pem"))
    (directory / "text.pem").write_text("hello")
    return directory


def tls(directory):
    return {"certificate": directory / "cert.pem", "private_key": directory / "key.pem"}


def test_tls(front, certificate):
    running = front(**tls(certificate), limits={"header_seconds": 0.5, "idle_seconds": 0.5})
    context = ssl.create_default_context(cafile=str(certificate / "ca.pem"))
    assert running.url.startswith("https://")

    def connect(context):
        raw = socket.create_connection(("127.0.0.1", running.port), timeout=5)
        return context.wrap_socket(raw, server_hostname="localhost")

    with connect(context) as client:
        assert client.version() in ("TLSv1.2", "TLSv1.3")
        for _ in range(2):
            client.sendall(b"GET /v1/stream?count=2 HTTP/1.1\r\n" + HOST + b"\r\n")
            received = b""
            while not received.endswith(b"0\r\n\r\n"):
                received += client.recv(65536)
        assert b"data: 1" in received
        # What is refused in the middle can be read to its end here too.
        client.sendall(b"POST /v1/small HTTP/1.1\r\n" + HOST + b"Content-Length: 50\r\n\r\n12345")
        received = b""
        while b"}" not in received:
            received += client.recv(65536)
        assert received.startswith(b"HTTP/1.1 413")
    with connect(context) as client:
        client.sendall(b"GET /v1/stream HTTP/1.1\r\n" + HOST + b"\r\n")
        client.recv(1000)
    assert running.service.saw("stream closed")
    old = ssl.create_default_context(cafile=str(certificate / "ca.pem"))
    for end in ("minimum_version", "maximum_version"):
        with pytest.warns(DeprecationWarning, match="TLSv1_1 is deprecated"):
            setattr(old, end, ssl.TLSVersion.TLSv1_1)
    with pytest.raises((ssl.SSLError, ConnectionError)):
        connect(old)
    # Somebody who speaks no TLS, or nothing at all, is not waited for.
    for said in (b"GET / HTTP/1.1\r\n\r\n", b"", b"\x16\x03\x01"):
        client = running.connect()
        client.send(said)
        assert client.closed()


@pytest.mark.parametrize(
    ("files", "error"),
    [
        ({"certificate": "cert.pem"}, "give both"),
        ({"private_key": "key.pem"}, "give both"),
        ({"certificate": "none.pem", "private_key": "key.pem"}, "none.pem': No such file"),
        ({"certificate": "cert.pem", "private_key": "none.pem"}, "none.pem': No such file"),
        ({"certificate": "text.pem", "private_key": "key.pem"}, "are no certificate and its key"),
        ({"certificate": "cert.pem", "private_key": "text.pem"}, "are no certificate and its key"),
        ({"certificate": "cert.pem", "private_key": "other.pem"}, "are no certificate and its key"),
    ],
)
def test_tls_files_that_are_wrong(certificate, files, error):
    settings = ServerSettings(**{name: certificate / file for name, file in files.items()})
    with pytest.raises(UsageError) as caught:
        tls_context(settings)
    assert error in str(caught.value)


def test_addresses(front):
    running = front(host="::1")
    with socket.create_connection(("::1", running.port)) as client:
        client.sendall(b"GET /v1/models HTTP/1.1\r\nHost: [::1]\r\n\r\n")
        assert client.recv(100).startswith(b"HTTP/1.1 200")
    assert running.url == f"http://[::1]:{running.port}"


def test_no_socket_is_left_behind(front):
    def descriptors():
        return len(os.listdir("/proc/self/fd"))  # noqa: PTH208

    running = front()
    before = descriptors()
    for _ in range(20):
        running.request("GET", "/v1/models")
        running.ask(b"nonsense\r\n\r\n")
        connection = running.connect()
        connection.send(b"GET /v1/stream HTTP/1.1\r\n" + HOST + b"\r\n")
        connection.close()
    running._clients.close()
    end = time.monotonic() + 10
    # A connection counts no longer a moment before its socket is closed, and other tests' files
    # may close meanwhile.
    while (running.server.connections or descriptors() > before) and time.monotonic() < end:
        time.sleep(0.01)
    assert running.server.connections == 0
    assert descriptors() <= before

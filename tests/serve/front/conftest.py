"""A server with endpoints of its own, on a real socket, and a client that sends bytes."""

from __future__ import annotations

import asyncio
import json
import sys
import threading
import time
from contextlib import ExitStack, closing, contextmanager
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest

from hasten.errors import OverloadError, UsageError
from hasten.serve.app import App, PlainDialect
from hasten.serve.endpoint import Reply, Route
from hasten.serve.server import Server
from hasten.serve.settings import Limits, ServerSettings
from hasten.serve.telemetry.metrics import Metrics
from hasten.serve.telemetry.observer import Observer

sys.path.insert(0, str(Path(__file__).parents[1]))
from raw_client import Connection, request_bytes

DIALECT = PlainDialect()


class OtherDialect:
    def error(self, status, error, request_id):
        return json.dumps({"other": str(error), "id": request_id}).encode()


class Question(msgspec.Struct):
    text: str
    count: int = 1


class FakeService:
    """Keeps what its endpoints saw."""

    def __init__(self, settings):
        self.settings = settings
        self.metrics = Metrics()
        self.observer = Observer(self.metrics)
        self.admission = self
        self.calls = []
        self.events = []
        self.draining = False
        self.release = threading.Event()

    def drain(self):
        self.draining = True

    async def close(self):
        self.events.append("closed")

    def saw(self, event, seconds=5.0):
        """Whether something happened, be it a moment later."""
        end = time.monotonic() + seconds
        while event not in self.events and time.monotonic() < end:
            time.sleep(0.005)
        return event in self.events


async def echo(call):
    call.service.calls.append(call)
    return Reply(json.dumps({"length": len(call.body), "model": call.path.get("model")}).encode())


async def wait(call):
    """Answers when the test says so."""
    call.service.events.append("waiting")
    try:
        while not call.service.release.is_set():
            await asyncio.sleep(0.01)
    except asyncio.CancelledError:
        call.service.events.append("cancelled")
        raise
    return Reply(b'{"done": true}')


async def stream(call):
    """Ticks; how often is in the query."""

    async def ticks():
        try:
            for number in range(int(call.query.get("count", "1000000000"))):
                await asyncio.sleep(float(call.query.get("pause", "0.005")))
                yield b"data: %d%s\n\n" % (number, b"." * int(call.query.get("size", "0")))
                if call.query.get("break") == str(number):
                    raise RuntimeError("secret")
        finally:
            call.service.events.append("stream closed")

    beat = call.query.get("beat", "").encode()
    return Reply(ticks(), content_type="text/event-stream", beat=beat)


async def upload(call):
    size = 0
    async for chunk in call.chunks:
        size += len(chunk)
    return Reply(b"%d" % size)


async def fail(call):
    match call.query.get("how"):
        case "bug":
            raise RuntimeError("secret")
        case "full":
            raise OverloadError("full", retry_after=0.25)
        case _:
            raise UsageError("wrong", allowed="right")


ROUTES = {
    "test": [
        Route("POST", "/v1/echo", echo, DIALECT, "Count bytes", request=Question),
        Route("POST", "/v1/small", echo, DIALECT, "Count few bytes", max_body=10),
        Route("GET", "/v1/models", echo, DIALECT, "List"),
        Route("GET", "/v1/models/{model:path}", echo, DIALECT, "Show"),
        Route("GET", "/v1/wait", wait, DIALECT, "Wait"),
        Route("POST", "/v1/wait", wait, DIALECT, "Wait"),
        Route("GET", "/v1/stream", stream, DIALECT, "Tick"),
        Route("POST", "/v1/files", upload, DIALECT, "Upload", streams_body=True),
        Route("GET", "/v1/fail", fail, DIALECT, "Fail"),
    ],
    "other": [
        Route("POST", "/api/delete", echo, OtherDialect(), "Delete", admin=True),
        Route("GET", "/health/live", echo, OtherDialect(), "Live", open=True),
    ],
}


class Front:
    """The server, what it runs, and clients of it."""

    def __init__(self, server, service, clients):
        self.server, self.service, self._clients = server, service, clients
        self.port = server.port
        self.url = server.url

    def connect(self):
        connection = Connection(self.port)
        self._clients.callback(connection.close)
        return connection

    def ask(self, data):
        """What one connection answers first."""
        with closing(Connection(self.port)) as connection:
            connection.send(data)
            return connection.response()

    def request(self, method, path, body=b"", **headers):
        with closing(Connection(self.port)) as connection:
            connection.send(request_bytes(method, path, body, **headers))
            return connection.response(method)


@contextmanager
def run_front(routes=ROUTES, limits=None, **settings):
    made = ServerSettings(port=0, limits=replace(Limits(), **(limits or {})), **settings)
    service = FakeService(made)
    server = Server(App(service, routes))
    with ExitStack() as clients, server.in_thread():
        yield Front(server, service, clients)


@pytest.fixture(scope="session", name="run_front")
def _run_front():
    return run_front


@pytest.fixture(scope="session")
def fake_service():
    return FakeService


@pytest.fixture
def front():
    """Starts servers: `front(limits={...}, **settings)`."""
    with ExitStack() as stack:

        def start(**settings):
            return stack.enter_context(run_front(**settings))

        yield start
        stack.close()


@pytest.fixture(scope="module")
def shared():
    """One server with the usual settings for tests that leave it as it is."""
    with run_front() as front:
        yield front

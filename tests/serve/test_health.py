import asyncio
import json
import time
from types import SimpleNamespace

import pytest
from prometheus_client.parser import text_string_to_metric_families

from hasten import __version__
from hasten.errors import EngineLostError, UsageError
from hasten.serve.endpoint import Call
from hasten.serve.health import ROUTES, Health, HealthDialect
from hasten.serve.jobs import Client
from hasten.serve.settings import ServerSettings
from hasten.serve.telemetry.metrics import Metrics

STRANGER = Client(admin=False)


class FakeEngine:
    """An engine whose self-test does as it is told."""

    def __init__(self, result=True, *, state="ready", last_token=None):
        self.result = result
        self.state = state
        self.last_token = last_token
        self.statistics = None
        self.restarts = 0
        self.tests = 0
        self.go = asyncio.Event()
        self.go.set()

    async def self_test(self, timeout):
        self.tests += 1
        await self.go.wait()
        if isinstance(self.result, Exception):
            raise self.result
        return self.result


class Server:
    """What health asks, and what asks health."""

    def __init__(self, engines=None, keys=None, limit=5.0):
        self.engines = {} if engines is None else engines
        self.draining = False
        self.service = SimpleNamespace(
            health=Health(lambda: self.engines, lambda: self.draining, limit=limit),
            metrics=Metrics(lambda: self.engines),
            settings=ServerSettings(keys=keys or {}),
        )

    async def get(self, path, client=STRANGER, **headers):
        (route,) = [route for route in ROUTES if route.path == path]
        call = Call(self.service, client, "id", b"", time.monotonic(), headers)
        reply = await route.endpoint(call)
        assert isinstance(reply.body, bytes)
        return reply

    async def ready(self, client=STRANGER):
        reply = await self.get("/health/ready", client)
        return reply.status, json.loads(reply.body)


def run(coroutine):
    return asyncio.run(asyncio.wait_for(coroutine, 20))


def test_only_health_is_open():
    opened = {route.path for route in ROUTES if route.open}
    assert opened == {"/health", "/health/live", "/health/ready"}
    assert {route.path for route in ROUTES} - opened == {"/metrics", "/version"}


def test_a_working_engine_is_ready():
    async def check():
        engine = FakeEngine()
        server = Server({"m": engine})
        assert await server.ready() == (200, {"status": "ready"})
        reply = await server.get("/health")
        assert (reply.status, reply.body) == (200, b"")

    run(check())


def test_a_fresh_token_needs_no_test():
    async def check():
        engine = FakeEngine(result=False, last_token=time.monotonic())
        assert (await Server({"m": engine}).ready())[0] == 200
        assert engine.tests == 0

    run(check())


@pytest.mark.parametrize(
    ("engine", "reason"),
    [
        (lambda: None, "it is not loaded"),
        (lambda: FakeEngine(state="starting"), "its engine is starting"),
        (lambda: FakeEngine(state="failed", last_token=time.monotonic()), "its engine is failed"),
        (lambda: FakeEngine(result=False), "no token came out of a self-test"),
        (lambda: FakeEngine(EngineLostError("the process ended")), "the process ended"),
        (lambda: FakeEngine(KeyError("secret")), "the self-test failed"),
        (lambda: FakeEngine(result=False, last_token=time.monotonic() - 60), "no token came out"),
    ],
)
def test_an_engine_that_does_not_work_is_named(engine, reason):
    async def check():
        server = Server({"good": FakeEngine(), "bad": engine()})
        status, body = await server.ready()
        assert status == 503
        assert body["status"] == "not ready"
        assert list(body["problems"]) == ["bad"]
        assert reason in body["problems"]["bad"]
        reply = await server.get("/health")
        assert (reply.status, reply.body) == (503, b"")

    run(check())


def test_a_hung_engine_is_not_ready_while_the_server_lives():
    async def check():
        engine = FakeEngine(last_token=time.monotonic() - 60)
        engine.go.clear()
        server = Server({"m": engine}, limit=0.05)
        status, body = await server.ready()
        assert (status, body["problems"]["m"]) == (503, "no token came within 0.05 s")
        assert (await server.get("/health/live")).status == 200

    run(check())


def test_tests_are_shared_and_remembered():
    async def check():
        engine = FakeEngine()
        engine.go.clear()
        server = Server({"m": engine})
        waiting = [asyncio.ensure_future(server.ready()) for _ in range(20)]
        await asyncio.sleep(0)
        waiting[0].cancel()  # who asked first may leave
        await asyncio.sleep(0)
        engine.go.set()
        assert [status for status, _ in await asyncio.gather(*waiting[1:])] == [200] * 19
        assert (await server.ready())[0] == 200
        assert engine.tests == 1
        server.engines["m"] = FakeEngine(result=False)  # another engine proves itself
        assert (await server.ready())[0] == 503

    run(check())


def test_a_proof_does_not_last():
    async def check():
        engine = FakeEngine()
        health = Health(lambda: {"m": engine}, lambda: False, recent=0.0)
        assert await health.problems() == {}
        engine.result = False
        assert list(await health.problems()) == ["m"]
        assert engine.tests == 2

    run(check())


def test_a_server_that_shuts_down_is_alive_but_not_ready():
    async def check():
        server = Server({"m": FakeEngine()})
        server.draining = True
        status, body = await server.ready()
        assert (status, body["problems"]) == (503, {"server": "it is shutting down"})
        assert (await server.get("/health/live")).status == 200

    run(check())


def test_a_server_without_models_is_ready():
    assert run(Server().ready()) == (200, {"status": "ready"})


def test_strangers_learn_no_names_of_models():
    async def check():
        key = Client(name="ops")
        server = Server({"secret-model": None}, keys={"00": key})
        assert await server.ready(STRANGER) == (503, {"status": "not ready"})
        assert "secret-model" in (await server.ready(key))[1]["problems"]

    run(check())


def test_metrics_are_as_prometheus_reads_them():
    async def check():
        server = Server({"m": FakeEngine()})
        reply = await server.get("/metrics")
        assert reply.content_type.startswith("text/plain; version=0.0.4")
        families = {f.name for f in text_string_to_metric_families(reply.body.decode())}
        assert "vllm:num_requests_running" in families
        wanted = await server.get("/metrics", accept="application/openmetrics-text")
        assert wanted.content_type.startswith("application/openmetrics-text")
        assert wanted.body.endswith(b"# EOF\n")

    run(check())


def test_the_version_is_told():
    reply = run(Server().get("/version"))
    assert json.loads(reply.body) == {"version": __version__}


def test_errors_have_a_shape_and_bugs_no_text():
    told = json.loads(HealthDialect().error(400, UsageError("wrong"), "r"))
    assert told == {"status": "error", "error": "wrong", "request_id": "r"}
    assert b"secret" not in HealthDialect().error(500, KeyError("secret"), "r")

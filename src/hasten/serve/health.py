"""Whether the server lives, whether it can answer, and what it tells operators.

Live means that the event loop answers. Ready means more: a token came out of each engine a moment
ago, or one comes when it is asked for. That a process exists proves nothing.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Callable, Mapping
from typing import Protocol

from hasten import __version__
from hasten.errors import HastenError
from hasten.serve.endpoint import Call, Reply, Route
from hasten.serve.telemetry.engines import Engine

__all__ = ["ROUTES", "Health", "HealthDialect", "TestedEngine"]

_LOG = logging.getLogger("hasten.serve.health")


class TestedEngine(Engine, Protocol):
    """What is asked of an engine; an `EngineProcess` is one."""

    @property
    def last_token(self) -> float | None:
        """When its last output came, in seconds of `time.monotonic`."""

    async def self_test(self, timeout: float) -> bool:
        """Whether a token, or a vector, comes out of it in so many seconds."""


class _Test:
    """Self-tests of one engine: one at a time, and none where the last is recent."""

    def __init__(self, engine: TestedEngine) -> None:
        self.engine = engine
        self._running: asyncio.Task[str | None] | None = None
        self._ended: float | None = None
        self._failure: str | None = None

    async def failure(self, recent: float, limit: float) -> str | None:
        """What is wrong, None for nothing."""
        if self._running is None:
            if self._ended is not None and time.monotonic() - self._ended < recent:
                return self._failure
            self._running = asyncio.get_running_loop().create_task(self._run(limit))
        # Who asked first may leave; the others still want to know.
        return await asyncio.shield(self._running)

    async def _run(self, limit: float) -> str | None:
        try:
            passed = await asyncio.wait_for(self.engine.self_test(limit), limit)
            self._failure = None if passed else "no token came out of a self-test"
        except TimeoutError:
            self._failure = f"no token came within {limit:g} s"
        except HastenError as error:
            self._failure = str(error)
        except Exception:
            _LOG.exception("a self-test met a bug")
            self._failure = "the self-test failed"
        finally:
            self._ended = time.monotonic()
            self._running = None
        return self._failure


class Health:
    """Knows whether requests would be answered.

    Args:
        engines: By model: of those that are loaded, and of those that should be, None where such
            a model has no engine yet.
        draining: Whether the server refuses everything.
        recent: Seconds for which a token or a self-test proves that an engine works, and a failed
            test that it does not.
        limit: Seconds that a self-test may take.
    """

    def __init__(
        self,
        engines: Callable[[], Mapping[str, TestedEngine | None]],
        draining: Callable[[], bool],
        *,
        recent: float = 5.0,
        limit: float = 5.0,
    ) -> None:
        self._engines = engines
        self._draining = draining
        self._recent = recent
        self._limit = limit
        self._tests: dict[str, _Test] = {}

    async def problems(self) -> dict[str, str]:
        """What keeps the server from being ready: by model, "server" for all; empty if it is."""
        if self._draining():
            return {"server": "it is shutting down"}
        engines = self._engines()
        self._tests = {
            name: self._test(name, engine) for name, engine in engines.items() if engine is not None
        }
        found = await asyncio.gather(*map(self._problem, engines.keys(), engines.values()))
        return {name: what for name, what in zip(engines, found, strict=True) if what is not None}

    def _test(self, name: str, engine: TestedEngine) -> _Test:
        test = self._tests.get(name)
        return test if test is not None and test.engine is engine else _Test(engine)

    async def _problem(self, name: str, engine: TestedEngine | None) -> str | None:
        if engine is None:
            return "it is not loaded"
        if engine.state != "ready":
            return f"its engine is {engine.state}"
        last = engine.last_token
        if last is not None and time.monotonic() - last < self._recent:
            return None
        return await self._tests[name].failure(self._recent, self._limit)


class HealthDialect:
    """Errors as plainly as the answers."""

    def error(self, status: int, error: Exception, request_id: str) -> bytes:
        """As `hasten.serve.endpoint.Dialect.error`."""
        what = str(error) if isinstance(error, HastenError) else "internal error"
        return _json({"status": "error", "error": what, "request_id": request_id})


def _json(body: object) -> bytes:
    return json.dumps(body).encode()


async def _live(call: Call) -> Reply:
    return Reply(_json({"status": "live"}))


async def _ready(call: Call) -> Reply:
    problems = await call.service.health.problems()
    body: dict[str, object] = {"status": "not ready" if problems else "ready"}
    # A load balancer has no key, and names of models are nobody else's business.
    if problems and (call.client.name or not call.service.settings.keys):
        body["problems"] = problems
    return Reply(_json(body), 503 if problems else 200)


async def _health(call: Call) -> Reply:
    problems = await call.service.health.problems()
    return Reply(b"", 503 if problems else 200)


async def _version(call: Call) -> Reply:
    return Reply(_json({"version": __version__}))


async def _metrics(call: Call) -> Reply:
    pieces, content_type = call.service.metrics.render(call.headers.get("accept", ""))
    text = []
    for piece in pieces:
        text.append(piece)
        await asyncio.sleep(0)  # streams go on between two metrics
    return Reply(b"".join(text), content_type=content_type)


_DIALECT = HealthDialect()
ROUTES = [
    Route("GET", "/health/live", _live, _DIALECT, "Whether the server runs", open=True),
    Route("GET", "/health/ready", _ready, _DIALECT, "Whether it can answer", open=True),
    Route(
        *("GET", "/health", _health, _DIALECT, "As /health/ready, without a body"),
        open=True,
        gives=(),
    ),
    Route(
        *("GET", "/metrics", _metrics, _DIALECT, "Metrics for Prometheus"),
        gives=("text/plain", "application/openmetrics-text"),
    ),
    Route("GET", "/version", _version, _DIALECT, "The server's version"),
]
"""What machines that look after the server ask."""

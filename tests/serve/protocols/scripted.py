"""A service that plays what a test wrote down, and a way to ask it without a socket."""

import asyncio
import time
from contextlib import suppress

import numpy as np

from hasten.errors import NotFoundError
from hasten.serve.endpoint import Call, Reply
from hasten.serve.jobs import Client, Embeddings, Ended, Piece, Timing, Usage
from hasten.serve.registry import ModelInfo, PullProgress
from hasten.serve.settings import ServerSettings
from hasten.serve.status import status_of

USAGE = Usage(7, 3, 5, 2, Timing(1.5, 0.25, 0.125, 0.5, 0.625, 0.875))


def model(name="tiny", **changes):
    facts = {
        "kind": "generate",
        "path": "/models/tiny",
        "size": 1000,
        "digest": "ab" * 32,
        "modified": 1_700_000_000.5,
        "family": "llama",
        "parameters": 134_515_008,
        "quantization": "Q4_1",
        "format": "gguf",
        "context": 2048,
        "max_position": 8192,
        "embedding_length": 576,
        "template": "{{ messages }}",
        "capabilities": ("completion", "tools", "thinking"),
        "state": "ready",
        "memory": 4000,
    }
    return ModelInfo(name=name, **{**facts, **changes})


class ScriptedGeneration:
    """Plays events; an exception among them is raised."""

    id = "gen-1"
    model = "tiny"
    created = 1_700_000_000
    cache = "miss"

    def __init__(self, events):
        self.prompt = tuple(range(USAGE.prompt_tokens))
        self.prompt_tokens = len(self.prompt)
        self.closed = False
        self._events = iter(events)

    def spell(self, token):
        return b"\xe2" if token == 0 else chr(96 + token).encode()

    def __aiter__(self):
        return self

    async def __anext__(self):
        for event in self._events:
            if isinstance(event, BaseException):
                raise event
            return event
        raise StopAsyncIteration

    async def aclose(self):
        self.closed = True


class ScriptedRegistry:
    def __init__(self, models):
        self.models = {info.name: info for info in models}
        self.done = []
        self.steps = []

    def describe(self, name):
        found = self.models.get(name.removesuffix(":latest"))
        if found is None:
            raise NotFoundError(f"there is no model {name!r}")
        return found

    def list(self):
        return list(self.models.values())

    def running(self):
        return self.list()

    async def digest(self, name):
        return "cd" * 32

    async def load(self, name, keep_alive=None):
        self.done.append(("load", name, keep_alive))

    async def unload(self, name):
        self.done.append(("unload", name))

    async def copy(self, source, destination):
        self.describe(source)
        self.done.append(("copy", source, destination))

    async def delete(self, name):
        self.describe(name)
        self.done.append(("delete", name))

    async def pull(self, name):
        self.done.append(("pull", name))
        for step in self.steps:
            if isinstance(step, Exception):
                raise step
            yield step

    async def create(self, name, **given):
        self.done.append(("create", name, given))
        self.describe(given["source"] or "tiny")
        yield PullProgress("reading")
        yield PullProgress("success")


class ScriptedService:
    def __init__(self, *events, models=None):
        self.settings = ServerSettings()
        self.registry = ScriptedRegistry(models or [model()])
        self.jobs = []
        self.generations = []
        self.events = events

    async def generate(self, job):
        self.jobs.append(job)
        if self.events and isinstance(self.events[0], Exception):
            raise self.events[0]
        self.generations.append(ScriptedGeneration(self.events))
        return self.generations[-1]

    async def embed(self, job):
        self.jobs.append(job)
        vectors = tuple(np.arange(3, dtype="<f4").tobytes() for _ in job.texts)
        return Embeddings(vectors, 3, 4, 0.25, 0.5)

    async def count(self, job):
        self.jobs.append(job)
        return 11


def said(*texts, reason="stop", stop=None):
    """The events of a plain answer."""
    return [*(Piece(content=text, tokens=(1,)) for text in texts), Ended(0, reason, stop), USAGE]


def call(service, body=b"", *, client=None, headers=None, path=None, chunks=None):
    return Call(
        service=service,
        client=client or Client(),
        id="req-1",
        body=body,
        received=time.monotonic(),
        headers=headers or {},
        path=path or {},
        chunks=chunks,
    )


def find_route(routes, method, path):
    """The route of a path, and the values of its placeholders."""
    for route in routes:
        pattern, given = route.path.split("/"), path.split("/")
        pairs = list(zip(pattern, given, strict=False))
        names = {p[1:-1].partition(":")[0]: g for p, g in pairs if p.startswith("{")}
        plain = all(p == g for p, g in pairs if not p.startswith("{"))
        if route.method == method and plain and len(pattern) == len(given):
            return route, names
    raise LookupError(f"no route for {method} {path}")


async def respond(routes, service, method, path, body=b"", **more):
    """Status, headers and body of a response, as a server would send it."""
    route, names = find_route(routes, method, path)

    async def chunks():
        yield body

    upload = {"chunks": chunks()} if route.streams_body else {}
    asked = call(service, b"" if upload else body, path=names, **upload, **more)
    try:
        reply = await route.endpoint(asked)
    except Exception as error:
        status = status_of(error)
        headers = {"content-type": "application/json"}
        return status, headers, route.dialect.error(status, error, asked.id)
    return reply.status, {"content-type": reply.content_type, **reply.headers}, await whole(reply)


async def whole(reply: Reply) -> bytes:
    if isinstance(reply.body, bytes):
        return reply.body
    body = b""
    with suppress(ZeroDivisionError):  # what tests raise for a bug of the server's
        async for piece in reply.body:
            body += piece
    return body


def handler(routes, service, response, *, base=""):
    """What httpx's `MockTransport` takes: requests of a real client, answered in process."""

    def handle(request):
        asked = respond(
            routes,
            service,
            request.method,
            request.url.path.removeprefix(base),
            request.read(),
            headers={name.lower(): value for name, value in request.headers.items()},
        )
        status, headers, body = asyncio.run(asked)
        return response(status, headers=headers, content=body)

    return handle

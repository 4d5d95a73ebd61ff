"""A service that replays given events, and how tests ask it."""

import asyncio
import json
from dataclasses import dataclass, field
from types import SimpleNamespace

from hasten.serve.endpoint import Call
from hasten.serve.jobs import Client, Embeddings, Ended, Piece, Timing, Usage
from hasten.serve.protocols.openai import ROUTES
from hasten.serve.response_store import ResponseStore
from hasten.serve.settings import ServerSettings

USAGE = Usage(7, 3, 5, 2, Timing(0.5, 0.0, 0.1, 0.1, 0.3, 0.2))


def spell(token):
    """Tokens of these tests are letters; those above 127 are single bytes."""
    return bytes([token])


class Scripted:
    """A generation that replays events; an exception among them is raised."""

    def __init__(self, job, events):
        self.id, self.model, self.created, self.cache = job.id, job.model, 1700000000, "off"
        text = job.prompt if isinstance(job.prompt, str) else ""
        self.prompt = tuple(text.encode()) or (
            job.prompt if isinstance(job.prompt, tuple) else (1,) * USAGE.prompt_tokens
        )
        self.prompt_text, self.prompt_tokens = text, len(self.prompt)
        self.events, self.closed, self.spell = list(events), 0, spell

    def __aiter__(self):
        return self

    async def __anext__(self):
        if not self.events or self.closed:
            raise StopAsyncIteration
        event = self.events.pop(0)
        if isinstance(event, Exception):
            raise event
        return event

    async def aclose(self):
        self.closed += 1


class FakeRegistry:
    """Knows every model, and nothing about it."""

    def describe(self, name):
        return SimpleNamespace(name=name, overrides={})


@dataclass
class FakeService:
    """Keeps what it was asked; an exception as script is raised at once."""

    script: list = field(default_factory=list)
    settings: ServerSettings = field(default_factory=ServerSettings)
    jobs: list = field(default_factory=list)
    generations: list = field(default_factory=list)
    registry: object = field(default_factory=FakeRegistry)
    vectors: Embeddings | None = None
    responses: ResponseStore = field(default_factory=ResponseStore)

    async def generate(self, job):
        script = self.script[len(self.jobs) % len(self.script)] if self.script else []
        self.jobs.append(job)
        if isinstance(script, Exception):
            raise script
        self.generations.append(Scripted(job, script))
        return self.generations[-1]

    async def count(self, job):
        self.jobs.append(job)
        return USAGE.prompt_tokens

    async def embed(self, job):
        self.jobs.append(job)
        return self.vectors


def said(*texts, reason="stop", stop=None, usage=USAGE):
    """The events of one output with these pieces of text."""
    return [*(Piece(content=text, tokens=(1,)) for text in texts), Ended(0, reason, stop), usage]


def call_of(service, body, *, client=None, headers=None, path=None):
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    return Call(
        service, client or Client(), "r1", data, 100.0, headers=headers or {}, path=path or {}
    )


def ask(service, place, body=None, *, method="POST", **options):
    """The reply of an endpoint: its status and body, the text of streams joined."""

    async def answer():
        route = next(r for r in ROUTES if (r.method, r.path) == (method, place))
        reply = await route.endpoint(call_of(service, body if body is not None else b"", **options))
        if not isinstance(reply.body, bytes):
            chunks = [chunk async for chunk in reply.body]
            return SimpleNamespace(body=b"".join(chunks), chunks=chunks, headers=reply.headers)
        return SimpleNamespace(body=reply.body, headers=reply.headers, json=json.loads(reply.body))

    return asyncio.run(answer())


def events_of(body):
    """The data of each server-sent event; the last is "[DONE]"."""
    assert body.endswith(b"\n\n")
    for event in body.decode().split("\n\n")[:-1]:
        lines = event.splitlines()  # of any kind: none may be inside the JSON text
        assert lines[-1].startswith("data: ")
        assert len(lines) == 1 or (len(lines) == 2 and lines[0].startswith("event: "))
        data = lines[-1].removeprefix("data: ")
        yield data if data == "[DONE]" else json.loads(data)

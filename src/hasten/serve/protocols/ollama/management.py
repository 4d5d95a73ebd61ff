"""Endpoints that change which models there are: pull, push, create, copy and delete."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from typing import TYPE_CHECKING, Any

from hasten.errors import ModelFileError, UnsupportedModelError, UsageError
from hasten.serve.endpoint import Call, Reply
from hasten.serve.protocols.ollama.dialect import error_line
from hasten.serve.protocols.ollama.generation import NDJSON
from hasten.serve.protocols.ollama.models import named_model
from hasten.serve.protocols.ollama.options import read_options
from hasten.serve.protocols.ollama.schema import (
    CopyRequest,
    CreateRequest,
    NamedRequest,
    TransferRequest,
)
from hasten.serve.protocols.reading import extra_headers, read
from hasten.serve.protocols.streaming import EventStream, encode

if TYPE_CHECKING:
    from hasten.serve.registry import PullProgress

__all__ = ["copy", "create", "delete", "pull", "push"]

_TO_BEGIN = 2
"""Steps of which the first says what is looked up, and the second that it was found."""


async def pull(call: Call) -> Reply:
    """Downloads a model from a Hub, telling how far it is."""
    request, ignored = read(call.body, TransferRequest)
    progress = call.service.registry.pull(named_model(request))
    return await _progress(call, request.stream, progress, ignored)


async def push(call: Call) -> Reply:
    """Refuses: this server publishes nothing."""
    request, _ = read(call.body, TransferRequest)
    raise UsageError(
        f"{named_model(request)!r} cannot be pushed: this server publishes no models",
        do="upload its files with the Hub's own tools",
    )


async def create(call: Call) -> Reply:
    """Makes a model of another one, or of uploaded files, with settings of its own."""
    request, ignored = read(call.body, CreateRequest)
    name = named_model(request)
    _refuse(request)
    overrides, unheeded = _overrides(request)
    progress = call.service.registry.create(
        name, source=request.source, files=request.files or {}, overrides=overrides
    )
    return await _progress(call, request.stream, progress, ignored + unheeded)


async def copy(call: Call) -> Reply:
    """Gives a model a second name."""
    request, ignored = read(call.body, CopyRequest)
    await call.service.registry.copy(request.source, request.destination)
    return Reply(b"", headers=extra_headers(ignored))


async def delete(call: Call) -> Reply:
    """Forgets a model."""
    request, ignored = read(call.body, NamedRequest)
    await call.service.registry.delete(named_model(request))
    return Reply(b"", headers=extra_headers(ignored))


def _refuse(request: CreateRequest) -> None:
    if request.quantize:
        raise UsageError(
            "quantize is given: the server does not quantise",
            do="run `hasten optimize` and serve what it makes",
        )
    if request.template:
        raise UsageError(
            "template is given: a Go template cannot be run here",
            do="leave it out: the model's own template is used",
        )
    if request.adapters:
        raise UsageError(
            "adapters are given: they are loaded when the server starts",
            do="start the server with the adapter",
        )
    if bool(request.source) == bool(request.files):
        raise UsageError(
            "a model is made of another one or of files",
            allowed="either from, a model's name, or files, digests of uploads by file name",
        )


def _overrides(request: CreateRequest) -> tuple[dict[str, Any], list[str]]:
    """What the new model sets, as later requests to it read it."""
    overrides: dict[str, Any] = {}
    ignored: list[str] = []
    if request.system:
        overrides["system"] = request.system
    if request.license:
        lines = [request.license] if isinstance(request.license, str) else request.license
        overrides["license"] = "\n".join(lines)
    if request.parameters:
        _, ignored = read_options(request.parameters, place="parameters")
        given = request.parameters.items()
        overrides["parameters"] = {name: value for name, value in given if value is not None}
    if request.messages:
        overrides["messages"] = [
            {"role": message.role, "content": message.content or ""} for message in request.messages
        ]
    return overrides, ignored


async def _progress(
    call: Call, stream: bool | None, progress: AsyncGenerator[PullProgress], ignored: list[str]
) -> Reply:
    """Waits for the first steps, so that what cannot begin is an error and no stream."""
    headers = extra_headers(ignored)
    try:
        begun = [step async for step in _first(progress, _TO_BEGIN)]
        if stream is not False:
            lines = EventStream(progress, _ProgressWriter(begun, call.id))
            return Reply(lines, content_type=NDJSON, headers=headers)
        async for _ in progress:
            pass
    except (ModelFileError, UnsupportedModelError) as error:
        # The client chose the files, so the fault is not the server's.
        raise UsageError(error.what, allowed=error.allowed, do=error.do) from error
    return Reply(encode({"status": "success"}), headers=headers)


async def _first(progress: AsyncGenerator[PullProgress], count: int) -> AsyncIterator[PullProgress]:
    for _ in range(count):
        step = await anext(progress, None)
        if step is None:
            return
        yield step


class _ProgressWriter:
    """Writes the steps of a pull or a creation; the last of them says "success"."""

    def __init__(self, begun: Sequence[PullProgress], request_id: str) -> None:
        self._begun = begun
        self._request_id = request_id

    def begin(self) -> bytes:
        return b"".join(map(self.event, self._begun))

    def event(self, event: PullProgress) -> bytes:
        told = {
            "status": event.status,
            "digest": event.digest,
            "total": event.total,
            "completed": event.completed,
        }
        return encode({name: value for name, value in told.items() if value is not None}) + b"\n"

    def failure(self, error: Exception) -> bytes:
        return error_line(error, self._request_id)

"""Endpoints that generate: /api/generate and /api/chat."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from hasten.errors import AccessError
from hasten.serve.endpoint import Call, Reply
from hasten.serve.generation import collect
from hasten.serve.protocols.ollama.jobs import Asked, chat_job, generate_job, kept_alive
from hasten.serve.protocols.ollama.models import find_model
from hasten.serve.protocols.ollama.rendering import ChatWriter, GenerateWriter, Writer
from hasten.serve.protocols.ollama.schema import ChatRequest, GenerateRequest
from hasten.serve.protocols.ollama.times import now
from hasten.serve.protocols.reading import extra_headers, read
from hasten.serve.protocols.streaming import EventStream, encode

if TYPE_CHECKING:
    from hasten.serve.registry import ModelInfo

__all__ = ["NDJSON", "chat", "generate"]

NDJSON = "application/x-ndjson"


async def generate(call: Call) -> Reply:
    """Answers or continues a text; without one, loads or unloads the model."""
    request, ignored = read(call.body, GenerateRequest)
    info = find_model(call, request.model)
    asked = generate_job(call, request, info)
    ignored += asked.ignored
    if not request.prompt:
        return await _load(call, request, info, ignored, {"response": ""})
    return await _run(call, request, asked, ignored, GenerateWriter)


async def chat(call: Call) -> Reply:
    """Answers a conversation; without messages, loads or unloads the model."""
    request, ignored = read(call.body, ChatRequest)
    info = find_model(call, request.model)
    asked = chat_job(call, request, info)
    ignored += asked.ignored
    if not request.messages:
        said = {"message": {"role": "assistant", "content": ""}}
        return await _load(call, request, info, ignored, said)
    return await _run(call, request, asked, ignored, ChatWriter)


async def _run(
    call: Call,
    request: GenerateRequest | ChatRequest,
    asked: Asked,
    ignored: list[str],
    kind: type[Writer],
) -> Reply:
    generation = await call.service.generate(asked.job)
    writer = kind(request.model, call.id, generation.spell)
    headers = extra_headers(ignored, generation.cache)
    if request.stream is not False:
        return Reply(EventStream(generation, writer), content_type=NDJSON, headers=headers)
    answers, usage = await collect(generation)
    return Reply(writer.whole(answers[0], usage), headers=headers)


async def _load(
    call: Call,
    request: GenerateRequest | ChatRequest,
    info: ModelInfo,
    ignored: list[str],
    said: dict[str, Any],
) -> Reply:
    keep_alive, _ = kept_alive(call, request.keep_alive)
    if request.keep_alive is not None and not call.client.admin:
        raise AccessError("this API key may not say how long a model stays loaded")
    if keep_alive == 0:
        await call.service.registry.unload(info.name)
    else:
        await call.service.registry.load(info.name, keep_alive)
    reason = "unload" if keep_alive == 0 else "load"
    told = {
        "model": request.model,
        "created_at": now(),
        **said,
        "done": True,
        "done_reason": reason,
    }
    # One line is a stream too, so clients that read one are content.
    return Reply(encode(told) + b"\n", headers=extra_headers(ignored))

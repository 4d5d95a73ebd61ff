"""Endpoints: /v1/messages and /v1/messages/count_tokens."""

from __future__ import annotations

from hasten.serve.endpoint import Call, Reply
from hasten.serve.generation import collect
from hasten.serve.protocols.anthropic.jobs import count_job, message_job, unheeded
from hasten.serve.protocols.anthropic.rendering import PING, MessageWriter
from hasten.serve.protocols.anthropic.schema import CountRequest, MessageRequest
from hasten.serve.protocols.reading import extra_headers, read
from hasten.serve.protocols.streaming import EventStream, encode

__all__ = ["count_tokens", "messages"]


async def messages(call: Call) -> Reply:
    """Answers a conversation."""
    request, ignored = read(call.body, MessageRequest)
    job = message_job(call, request)
    generation = await call.service.generate(job)
    prompt_tokens = len(generation.prompt)
    writer = MessageWriter(request.model, call.id, prompt_tokens, request.max_tokens)
    headers = extra_headers([*ignored, *unheeded(request)], generation.cache)
    if request.stream:
        stream = EventStream(generation, writer)
        return Reply(stream, content_type="text/event-stream", headers=headers, beat=PING)
    answers, usage = await collect(generation)
    return Reply(writer.whole(answers[0], usage), headers=headers)


async def count_tokens(call: Call) -> Reply:
    """The length of the prompt that a conversation makes."""
    request, ignored = read(call.body, CountRequest)
    tokens = await call.service.count(count_job(call, request))
    return Reply(encode({"input_tokens": tokens}), headers=extra_headers(ignored))

"""/v1/responses, as far as it is about text."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from functools import partial
from typing import Any

import msgspec

from hasten.serve.endpoint import Call, Reply
from hasten.serve.generation import collect
from hasten.serve.jobs import Ended, Job, Piece
from hasten.serve.protocols.made import begin_conversation
from hasten.serve.protocols.ollama.parameters import fill_sampling
from hasten.serve.protocols.openai.listing import list_page
from hasten.serve.protocols.openai.parsing import asked_priority, read_request
from hasten.serve.protocols.openai.responses_answer import ResponseWriter
from hasten.serve.protocols.openai.responses_input import (
    input_items,
    read_response,
    show_items,
)
from hasten.serve.protocols.openai.responses_schema import (
    InputItem,
    ResponsesRequest,
    TextFormat,
)
from hasten.serve.protocols.openai.sampling import base_sampling, format_structure
from hasten.serve.protocols.openai.schema import JsonSchema, ResponseFormat
from hasten.serve.protocols.reading import FieldError, cache_wanted, extra_headers
from hasten.serve.protocols.streaming import COMMENT, EventStream, encode
from hasten.serve.response_store import StoredResponse

__all__ = [
    "count_input",
    "create_response",
    "delete_response",
    "list_input",
    "read_job",
    "show_response",
]

_ITEMS = msgspec.json.Decoder(list[InputItem])


class _Output(msgspec.Struct):
    output: list[InputItem]


_OUTPUT = msgspec.json.Decoder(_Output)


async def create_response(call: Call) -> Reply:
    """Answers what the input says."""
    parsed = read_request(call.body, ResponsesRequest)
    request = parsed.request
    job = read_job(request, call)
    generation = await call.service.generate(job)
    # The id of the request may be the client's, and this one must be nobody else's.
    name = f"resp_{secrets.token_hex(16)}"
    writer = ResponseWriter(
        request,
        sampling=job.sampling,
        id=name,
        request_id=call.id,
        created=generation.created,
        model=generation.model,
        spell=None if job.sampling.logprobs is None else generation.spell,
        keep=_keeper(call, request),
    )
    headers = extra_headers(parsed.ignored, generation.cache)
    if request.stream:
        stream = EventStream(generation, writer)
        return Reply(stream, content_type="text/event-stream", headers=headers, beat=COMMENT)
    (answer,), usage = await collect(generation)
    writer.event(
        Piece(
            content=answer.content,
            reasoning=answer.reasoning,
            calls=answer.calls,
            logprobs=answer.logprobs,
        )
    )
    writer.event(Ended(0, answer.reason, answer.stop))
    writer.event(usage)
    return Reply(encode(writer.response), headers=headers)


async def count_input(call: Call) -> Reply:
    """The length of the prompt that an input makes."""
    parsed = read_request(call.body, ResponsesRequest)
    tokens = await call.service.count(read_job(parsed.request, call))
    body = {"object": "response.input_tokens", "input_tokens": tokens}
    return Reply(encode(body), headers=extra_headers(parsed.ignored))


async def show_response(call: Call) -> Reply:
    """A response that was made before."""
    if call.query.get("stream", "").lower() == "true":
        raise FieldError("stream", "a response that is complete is not streamed", do="leave it out")
    return Reply(call.service.responses.get(call.client.tenant, call.path["response"]).response)


async def delete_response(call: Call) -> Reply:
    """Forgets a response."""
    name = call.path["response"]
    call.service.responses.delete(call.client.tenant, name)
    return Reply(encode({"id": name, "object": "response", "deleted": True}))


async def list_input(call: Call) -> Reply:
    """What a response was made of."""
    name = call.path["response"]
    stored = call.service.responses.get(call.client.tenant, name)
    items = show_items(_ITEMS.decode(stored.items), f"in_{name.partition('_')[2]}")
    return list_page(items, call.query, dict, default=20, most=100)


def read_job(request: ResponsesRequest, call: Call) -> Job:
    """What is to be generated.

    Raises:
        HastenError: The request asks for what is not supported, not allowed, or too much, or goes
            on from a response that is not kept.
    """
    included = "message.output_text.logprobs" in (request.include or ())
    logprobs = request.top_logprobs or 0 if included or request.top_logprobs else None
    text_format = request.text.format if request.text else None
    conversation = read_response(request, _earlier(request, call), call.service.settings.limits)
    sampling = base_sampling(
        request,
        max_tokens=request.max_output_tokens,
        logprobs=logprobs,
        structure=format_structure(_response_format(text_format), "text.format.schema"),
    )
    overrides = call.service.registry.describe(request.model).overrides
    return Job(
        id=call.id,
        model=request.model,
        prompt=begin_conversation(conversation, overrides),
        sampling=fill_sampling(sampling, request, overrides),
        client=call.client,
        received=call.received,
        timeout=request.timeout,
        priority=asked_priority(request, call),
        cache=cache_wanted(call.headers),
    )


def _earlier(request: ResponsesRequest, call: Call) -> list[InputItem]:
    """Input and output of the responses that a request goes on from, the oldest first."""
    turns: list[list[InputItem]] = []
    previous, count = request.previous_response_id, 0
    while previous is not None and count <= call.service.settings.limits.messages:
        stored = call.service.responses.get(call.client.tenant, previous)
        output = _OUTPUT.decode(stored.response).output
        # The arguments of a call that was cut short, or is broken, are no JSON.
        finished = [i for i in output if (i.type, i.status) != ("function_call", "incomplete")]
        turn = [*_ITEMS.decode(stored.items), *finished]
        turns.append(turn)
        count += max(1, len(turn))
        previous = stored.previous
    return [item for turn in reversed(turns) for item in turn]


def _response_format(asked: TextFormat | None) -> ResponseFormat | None:
    if asked is None:
        return None
    return ResponseFormat(asked.type, JsonSchema(asked.schema_, asked.name))


def _keeper(call: Call, request: ResponsesRequest) -> Callable[[dict[str, Any]], None]:
    """What keeps a response where the client may come back to it."""
    if request.store is False:
        return lambda response: None
    items = encode(input_items(request))
    return partial(_keep, call, request.previous_response_id, items)


def _keep(call: Call, previous: str | None, items: bytes, response: dict[str, Any]) -> None:
    stored = StoredResponse(response["id"], previous, items, encode(response))
    call.service.responses.keep(call.client.tenant, stored)

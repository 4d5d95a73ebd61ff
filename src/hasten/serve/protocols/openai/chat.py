"""POST /v1/chat/completions."""

from __future__ import annotations

from hasten.serve.endpoint import Call, Reply
from hasten.serve.generation import collect
from hasten.serve.jobs import Job
from hasten.serve.protocols.made import begin_conversation
from hasten.serve.protocols.ollama.parameters import fill_sampling
from hasten.serve.protocols.openai.answer import AnswerForm
from hasten.serve.protocols.openai.chat_answer import ChatChunks, render_chat
from hasten.serve.protocols.openai.conversation import read_conversation
from hasten.serve.protocols.openai.parsing import asked_priority, read_request
from hasten.serve.protocols.openai.sampling import full_sampling
from hasten.serve.protocols.openai.schema import ChatRequest
from hasten.serve.protocols.reading import FieldError, cache_wanted, check_count, extra_headers
from hasten.serve.protocols.streaming import COMMENT, EventStream

__all__ = ["chat", "read_chat"]


async def chat(call: Call) -> Reply:
    """Continues a conversation."""
    parsed = read_request(call.body, ChatRequest)
    request = parsed.request
    generation = await call.service.generate(read_chat(request, call))
    options = request.stream_options
    form = AnswerForm(
        id=f"chatcmpl-{call.id}",
        request_id=call.id,
        created=generation.created,
        model=generation.model,
        spell=generation.spell if request.logprobs else None,
        include_usage=bool(options and options.include_usage),
        continuous_usage=bool(options and options.continuous_usage_stats),
        prompt_tokens=generation.prompt_tokens,
        functions=request.functions is not None,
    )
    headers = extra_headers(parsed.ignored, generation.cache)
    if request.stream:
        stream = EventStream(generation, ChatChunks(form))
        return Reply(stream, content_type="text/event-stream", headers=headers, beat=COMMENT)
    answers, usage = await collect(generation)
    return Reply(render_chat(form, answers, usage), headers=headers)


def read_chat(request: ChatRequest, call: Call) -> Job:
    """What is to be generated.

    Raises:
        HastenError: The request asks for what is not supported, not allowed, or too much.
    """
    limits = call.service.settings.limits
    check_count(request.n or 1, limits.outputs, "n", "outputs")
    if request.top_logprobs is not None and not request.logprobs:
        raise FieldError("top_logprobs", "logprobs is not true", do="set logprobs")
    asked = request.max_completion_tokens
    sampling = full_sampling(
        request,
        max_tokens=request.max_tokens if asked is None else asked,
        logprobs=request.top_logprobs or 0 if request.logprobs else None,
    )
    overrides = call.service.registry.describe(request.model).overrides
    return Job(
        id=call.id,
        model=request.model,
        prompt=begin_conversation(read_conversation(request, limits), overrides),
        sampling=fill_sampling(sampling, request, overrides),
        client=call.client,
        received=call.received,
        timeout=request.timeout,
        priority=asked_priority(request, call),
        cache=cache_wanted(call.headers),
    )

"""POST /v1/completions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from hasten.serve.endpoint import Call, Reply
from hasten.serve.generation import Generation, collect, merge
from hasten.serve.jobs import Job
from hasten.serve.protocols.ollama.parameters import fill_sampling
from hasten.serve.protocols.openai.answer import AnswerForm
from hasten.serve.protocols.openai.completion_answer import (
    CompletionChunks,
    Echo,
    render_completion,
)
from hasten.serve.protocols.openai.parsing import (
    asked_priority,
    read_prompts,
    read_request,
)
from hasten.serve.protocols.openai.sampling import full_sampling
from hasten.serve.protocols.openai.schema import CompletionRequest
from hasten.serve.protocols.reading import FieldError, cache_wanted, check_count, extra_headers
from hasten.serve.protocols.streaming import COMMENT, EventStream

__all__ = ["completions", "read_completion"]

_DEFAULT_TOKENS = 16
"""OpenAI's, for completions alone."""


async def completions(call: Call) -> Reply:
    """Continues texts."""
    parsed = read_request(call.body, CompletionRequest)
    request = parsed.request
    jobs = read_completion(request, call)
    generations = await _generate_all(call, jobs)
    echoes = []
    if request.echo:
        silent = request.max_tokens == 0
        echoes = [Echo(_prompt_text(generation), silent) for generation in generations]
    options = request.stream_options
    first = generations[0]
    form = AnswerForm(
        id=f"cmpl-{call.id}",
        request_id=call.id,
        created=first.created,
        model=first.model,
        spell=None if request.logprobs is None else first.spell,
        include_usage=bool(options and options.include_usage),
        continuous_usage=bool(options and options.continuous_usage_stats),
        prompt_tokens=sum(generation.prompt_tokens for generation in generations),
    )
    cache = first.cache if len(generations) == 1 else "off"
    headers = extra_headers(parsed.ignored, cache)
    outputs = request.n or 1
    generation = merge(generations, outputs)
    if request.stream:
        stream = EventStream(generation, CompletionChunks(form, echoes, outputs))
        return Reply(stream, content_type="text/event-stream", headers=headers, beat=COMMENT)
    answers, usage = await collect(generation)
    return Reply(render_completion(form, echoes, outputs, answers, usage), headers=headers)


def read_completion(request: CompletionRequest, call: Call) -> list[Job]:
    """What is to be generated, one job a prompt.

    Raises:
        HastenError: The request asks for what is not supported, not allowed, or too much.
    """
    limits = call.service.settings.limits
    prompts: Sequence[str | tuple[int, ...]] = read_prompts(request.prompt, "prompt")
    outputs = request.n or 1
    check_count(len(prompts), limits.prompts, "prompt", "prompts")
    check_count(outputs * len(prompts), limits.outputs, "n", "outputs of all prompts")
    if request.best_of not in (None, outputs):
        raise FieldError("best_of", f"{request.best_of}, and n is {outputs}", allowed="the same")
    asked = _DEFAULT_TOKENS if request.max_tokens is None else request.max_tokens
    if asked == 0 and not request.echo:
        raise FieldError("max_tokens", "0", allowed="1 or more, or 0 with echo")
    sampling = full_sampling(request, max_tokens=max(asked, 1), logprobs=request.logprobs)
    overrides = call.service.registry.describe(request.model).overrides
    sampling = fill_sampling(sampling, request, overrides)
    if request.echo and request.logprobs is not None:
        if request.stream and outputs > 1:
            raise FieldError(
                "echo",
                "a stream of several outputs cannot show the prompt's logprobs",
                do="leave out one of stream, n, echo and logprobs",
            )
        sampling = replace(sampling, prompt_logprobs=request.logprobs)
    return [
        Job(
            id=call.id if len(prompts) == 1 else f"{call.id}-{number}",
            model=request.model,
            prompt=prompt,
            sampling=sampling,
            client=call.client,
            received=call.received,
            timeout=request.timeout,
            priority=asked_priority(request, call),
            cache=cache_wanted(call.headers),
            split=False,
        )
        for number, prompt in enumerate(prompts)
    ]


async def _generate_all(call: Call, jobs: list[Job]) -> list[Generation]:
    """All of them, or none: one that is refused takes the others back."""
    generations: list[Generation] = []
    try:
        for job in jobs:
            generation = await call.service.generate(job)
            generations.append(generation)
    except BaseException:
        for generation in generations:
            await generation.aclose()
        raise
    return generations


def _prompt_text(generation: Generation) -> str:
    if generation.prompt_text:
        return generation.prompt_text
    return b"".join(map(generation.spell, generation.prompt)).decode("utf-8", "replace")

"""From what Anthropic's clients ask to jobs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hasten.errors import UsageError
from hasten.serve.endpoint import Call
from hasten.serve.jobs import Job
from hasten.serve.protocols.anthropic.conversation import read_conversation
from hasten.serve.protocols.anthropic.schema import (
    AdaptiveThinking,
    CountRequest,
    EnabledThinking,
    MessageRequest,
)
from hasten.serve.protocols.made import begin_conversation
from hasten.serve.protocols.ollama.parameters import fill_sampling
from hasten.serve.protocols.reading import cache_wanted, check_count
from hasten.serve.protocols.streaming import encode
from hasten.types import SamplingParams, Structure

__all__ = ["count_job", "message_job", "unheeded"]


def message_job(call: Call, request: MessageRequest) -> Job:
    """The job of a message to be answered.

    Raises:
        UsageError: The request asks for what cannot be done.
        NotFoundError: There is no such model.
    """
    for name in ("container", "mcp_servers"):
        if getattr(request, name):
            raise UsageError(f"{name} is given: the server runs no tools", do="leave it out")
    overrides = call.service.registry.describe(request.model).overrides
    sampling = SamplingParams(
        max_tokens=request.max_tokens,
        temperature=1.0 if request.temperature is None else request.temperature,
        top_p=1.0 if request.top_p is None else request.top_p,
        top_k=request.top_k or 0,
        stop=tuple(request.stop_sequences or ()),
        structure=_structure(request),
    )
    return _job(call, request, fill_sampling(sampling, request, overrides), overrides)


def count_job(call: Call, request: CountRequest) -> Job:
    """The job whose prompt is to be counted.

    Raises:
        UsageError: The messages cannot be told to a model.
        NotFoundError: There is no such model.
    """
    overrides = call.service.registry.describe(request.model).overrides
    return _job(call, request, SamplingParams(max_tokens=1), overrides)


def unheeded(request: CountRequest) -> list[str]:
    """Names of fields that are known, and have no effect here."""
    thinking = request.thinking
    hidden = isinstance(thinking, EnabledThinking | AdaptiveThinking) and thinking.display
    return ["thinking.display"] if hidden == "omitted" else []


def _job(
    call: Call, request: CountRequest, sampling: SamplingParams, overrides: Mapping[str, Any]
) -> Job:
    limits = call.service.settings.limits
    check_count(len(request.messages), limits.messages, "messages", "messages")
    check_count(len(request.tools or ()), limits.tools, "tools", "tools")
    return Job(
        id=call.id,
        model=request.model,
        prompt=begin_conversation(read_conversation(request), overrides),
        sampling=sampling,
        client=call.client,
        received=call.received,
        cache=cache_wanted(call.headers),
    )


def _structure(request: MessageRequest) -> Structure | None:
    if request.output_config is None or request.output_config.format is None:
        return None
    return Structure("json_schema", encode(request.output_config.format.schema).decode())

"""From what Ollama's clients ask to jobs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from hasten.errors import UsageError
from hasten.serve.endpoint import Call
from hasten.serve.jobs import Conversation, Job
from hasten.serve.protocols.made import begin_conversation
from hasten.serve.protocols.ollama.options import (
    read_keep_alive,
    read_options,
    read_sampling,
    read_structure,
)
from hasten.serve.protocols.ollama.schema import (
    ChatRequest,
    GenerateRequest,
    Message,
    Tool,
    ToolCall,
)
from hasten.serve.protocols.reading import cache_wanted, check_count

if TYPE_CHECKING:
    from hasten.serve.registry import ModelInfo

__all__ = ["Asked", "chat_job", "generate_job", "kept_alive"]

_NO_PARAMETERS = {"type": "object", "properties": {}}


@dataclass(frozen=True, slots=True)
class Asked:
    """What a request comes to.

    Attributes:
        job: To be run.
        ignored: Names of what in the request has no effect.
    """

    job: Job
    ignored: list[str]


def generate_job(call: Call, request: GenerateRequest, info: ModelInfo) -> Asked:
    """The job of a text to be answered, or with `raw`, to be continued.

    Raises:
        UsageError: The request asks for what cannot be done.
    """
    _refuse_images(request.images)
    if request.template:
        raise UsageError(
            "template is given: a Go template cannot be run here",
            do="leave it out, or send the whole prompt with raw",
        )
    if request.suffix:
        raise UsageError("suffix is given: no model here fills gaps", do="leave it out")
    if request.context:
        raise UsageError(
            "context is given: no answer of this server carries one",
            do="leave it out, and send the conversation to /api/chat",
        )
    if not request.raw:
        return _job(call, request, info, _answered(request, info))
    if request.system:
        raise UsageError("system is given with raw", do="write it into the prompt")
    if request.think:
        raise UsageError("think is given with raw", do="leave one of them out")
    return _job(call, request, info, request.prompt or "")


def _answered(request: GenerateRequest, info: ModelInfo) -> Conversation:
    asked = Conversation(
        [{"role": "user", "content": request.prompt or ""}], extra=_thinking(request, info)
    )
    system = request.system
    begun = begin_conversation(asked, info.overrides, system=system is None)
    if not system:
        return begun
    return replace(begun, messages=[{"role": "system", "content": system}, *begun.messages])


def chat_job(call: Call, request: ChatRequest, info: ModelInfo) -> Asked:
    """The job of a conversation.

    Raises:
        UsageError: The request asks for what cannot be done.
    """
    limits = call.service.settings.limits
    check_count(len(request.messages or ()), limits.messages, "messages", "messages")
    check_count(len(request.tools or ()), limits.tools, "tools", "tools")
    messages = [_message(one, place) for place, one in enumerate(request.messages or ())]
    last = messages[-1] if messages else {}
    conversation = Conversation(
        messages,
        tools=[_tool(tool) for tool in request.tools or ()],
        extra=_thinking(request, info),
        continue_last=last.get("role") == "assistant" and "tool_calls" not in last,
    )
    return _job(call, request, info, begin_conversation(conversation, info.overrides))


def _job(
    call: Call,
    request: GenerateRequest | ChatRequest,
    info: ModelInfo,
    prompt: Conversation | str,
) -> Asked:
    given = {name: value for name, value in (request.options or {}).items() if value is not None}
    options, ignored = read_options({**info.overrides.get("parameters", {}), **given})
    if options.num_ctx is not None and options.num_ctx > info.context:
        ignored.append("options.num_ctx")
    if options.repeat_penalty is not None and options.repeat_last_n not in (None, 0, -1):
        ignored.append("options.repeat_last_n")
    logprobs = (request.top_logprobs or 0) if request.logprobs else None
    keep_alive, unheeded = kept_alive(call, request.keep_alive)
    job = Job(
        id=call.id,
        model=info.name,
        prompt=prompt,
        sampling=read_sampling(options, read_structure(request.format), logprobs),
        client=call.client,
        received=call.received,
        keep_alive=keep_alive,
        cache=cache_wanted(call.headers),
    )
    return Asked(job, ignored + unheeded)


def kept_alive(call: Call, value: float | str | None) -> tuple[float | None, list[str]]:
    """For how long the model stays loaded afterwards: only who may unload it can say.

    Returns:
        Seconds as in `Job`, and the field's name where it is not heeded.

    Raises:
        UsageError: It is no duration.
    """
    seconds = read_keep_alive(value)
    if seconds is None or call.client.admin:
        return seconds, []
    return None, ["keep_alive"]


def _thinking(request: GenerateRequest | ChatRequest, info: ModelInfo) -> dict[str, Any]:
    think = request.think
    if think is None or think == "":
        return {}
    if think is False:
        return {"enable_thinking": False}
    if "thinking" not in info.capabilities:
        raise UsageError(f"{info.name!r} does not support thinking", do="leave think out")
    if think is True:
        return {"enable_thinking": True}
    return {"enable_thinking": True, "reasoning_effort": think}


def _message(message: Message, place: int) -> dict[str, Any]:
    _refuse_images(message.images)
    told: dict[str, Any] = {"role": message.role, "content": message.content or ""}
    if message.thinking:
        told["reasoning_content"] = message.thinking
    if message.tool_calls:
        told["tool_calls"] = [
            _call(call, f"call_{place}_{number}") for number, call in enumerate(message.tool_calls)
        ]
    if message.tool_name:
        told["name"] = message.tool_name
    if message.tool_call_id:
        told["tool_call_id"] = message.tool_call_id
    return told


def _call(call: ToolCall, unnamed: str) -> dict[str, Any]:
    function = {"name": call.function.name, "arguments": call.function.arguments}
    return {"id": call.id or unnamed, "type": "function", "function": function}


def _tool(tool: Tool) -> Mapping[str, Any]:
    function = tool.function
    return {
        "type": "function",
        "function": {
            "name": function.name,
            "description": function.description or "",
            "parameters": function.parameters or _NO_PARAMETERS,
        },
    }


def _refuse_images(images: Sequence[str] | None) -> None:
    if images:
        raise UsageError("images are given: the models here read text", do="leave them out")

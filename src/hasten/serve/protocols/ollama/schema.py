"""What Ollama's clients send. Fields that are None were not sent, or sent as null."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from msgspec import Meta, Struct, field

__all__ = [
    "CalledFunction",
    "ChatRequest",
    "CopyRequest",
    "CreateRequest",
    "EmbedRequest",
    "EmbeddingsRequest",
    "GenerateRequest",
    "Message",
    "NamedRequest",
    "Options",
    "ShowRequest",
    "Tool",
    "ToolCall",
    "ToolFunction",
    "TransferRequest",
]

_INT64 = (1 << 63) - 1

Name = Annotated[str, Meta(min_length=1, max_length=512)]
Whole = Annotated[int, Meta(ge=-_INT64 - 1, le=_INT64)]
Duration = int | float | str
Think = bool | Literal["low", "medium", "high", "max", ""]
Object = dict[str, Any]
Format = Literal["", "json"] | Object


class Options(Struct):
    """Those options of a request, or parameters of a created model, that have an effect here."""

    num_ctx: Whole | None = None
    num_predict: Whole | None = None
    temperature: float | None = None
    top_k: Whole | None = None
    top_p: float | None = None
    min_p: float | None = None
    seed: Whole | None = None
    stop: list[str] | str | None = None
    repeat_penalty: float | None = None
    repeat_last_n: Whole | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None


class CalledFunction(Struct):
    """What an earlier answer called."""

    name: str
    arguments: Object = {}
    index: Whole | None = None


class ToolCall(Struct):
    """A call in an earlier answer."""

    function: CalledFunction
    id: str | None = None


class Message(Struct):
    """One message of a conversation."""

    role: Literal["system", "user", "assistant", "tool"]
    content: str | None = None
    thinking: str | None = None
    images: list[str] | None = None
    tool_calls: list[ToolCall] | None = None
    tool_name: str | None = None
    tool_call_id: str | None = None


class ToolFunction(Struct):
    """What a tool is for and what it takes."""

    name: Annotated[str, Meta(min_length=1, max_length=256)]
    description: str | None = None
    parameters: Object | None = None


class Tool(Struct):
    """Something that the answer may call."""

    function: ToolFunction
    type: Literal["function"] = "function"


class _Generating(Struct, kw_only=True):
    model: Name
    stream: bool | None = None
    format: Format | None = None
    options: Object | None = None
    keep_alive: Duration | None = None
    think: Think | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Meta(ge=0, le=20)] | None = None


class GenerateRequest(_Generating, kw_only=True):
    """Of /api/generate."""

    prompt: str | None = None
    suffix: str | None = None
    system: str | None = None
    template: str | None = None
    context: list[Whole] | None = None
    raw: bool | None = None
    images: list[str] | None = None


class ChatRequest(_Generating, kw_only=True):
    """Of /api/chat."""

    messages: list[Message] | None = None
    tools: list[Tool] | None = None


class EmbedRequest(Struct, kw_only=True):
    """Of /api/embed."""

    model: Name
    input: str | list[str] | None = None
    truncate: bool | None = None
    dimensions: Annotated[int, Meta(ge=0, le=1 << 20)] | None = None
    keep_alive: Duration | None = None
    options: Object | None = None


class EmbeddingsRequest(Struct, kw_only=True):
    """Of /api/embeddings."""

    model: Name
    prompt: str | None = None
    keep_alive: Duration | None = None
    options: Object | None = None


class NamedRequest(Struct, kw_only=True):
    """Of an endpoint that takes a model's name; older clients send it as `name`."""

    model: str | None = None
    name: str | None = None


class ShowRequest(NamedRequest, kw_only=True):
    """Of /api/show."""

    verbose: bool | None = None


class TransferRequest(NamedRequest, kw_only=True):
    """Of /api/pull and /api/push."""

    stream: bool | None = None
    insecure: bool | None = None


class CopyRequest(Struct, kw_only=True):
    """Of /api/copy."""

    source: Name
    destination: Name


class CreateRequest(NamedRequest, kw_only=True):
    """Of /api/create."""

    stream: bool | None = None
    source: str | None = field(default=None, name="from")
    files: dict[str, str] | None = None
    adapters: dict[str, str] | None = None
    template: str | None = None
    license: str | list[str] | None = None
    system: str | None = None
    parameters: Object | None = None
    messages: list[Message] | None = None
    quantize: str | None = None

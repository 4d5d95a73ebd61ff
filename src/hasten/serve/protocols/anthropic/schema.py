"""What Anthropic's clients send. Fields that are None were not sent, or sent as null."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from msgspec import Meta, Struct

__all__ = [
    "AdaptiveThinking",
    "AnyTool",
    "AutoTool",
    "CountRequest",
    "DisabledThinking",
    "DocumentBlock",
    "EnabledThinking",
    "ImageBlock",
    "JsonFormat",
    "Message",
    "MessageRequest",
    "NamedTool",
    "NoTool",
    "OutputConfig",
    "RedactedThinkingBlock",
    "TextBlock",
    "ThinkingBlock",
    "Tool",
    "ToolResultBlock",
    "ToolUseBlock",
]

Object = dict[str, Any]


class TextBlock(Struct, tag_field="type", tag="text"):
    """A text."""

    text: str


class ImageBlock(Struct, tag_field="type", tag="image"):
    """A picture, which no model here reads."""


class DocumentBlock(Struct, tag_field="type", tag="document"):
    """A document, which no model here reads."""


class ThinkingBlock(Struct, tag_field="type", tag="thinking"):
    """Reasoning of an earlier answer; its signature is not looked at."""

    thinking: str


class RedactedThinkingBlock(Struct, tag_field="type", tag="redacted_thinking"):
    """Reasoning that another server hid."""


class ToolUseBlock(Struct, tag_field="type", tag="tool_use"):
    """A call in an earlier answer."""

    id: str
    name: str
    input: Object


class ToolResultBlock(Struct, tag_field="type", tag="tool_result"):
    """What a call came to."""

    tool_use_id: str
    content: str | list[TextBlock | ImageBlock | DocumentBlock] | None = None
    is_error: bool | None = None


Block = (
    TextBlock
    | ImageBlock
    | DocumentBlock
    | ThinkingBlock
    | RedactedThinkingBlock
    | ToolUseBlock
    | ToolResultBlock
)


class Message(Struct):
    """One message of a conversation."""

    role: Literal["user", "assistant", "system"]
    content: str | list[Block]


class Tool(Struct):
    """Something that the answer may call."""

    name: Annotated[str, Meta(min_length=1, max_length=256)]
    input_schema: Object
    description: str | None = None
    type: Literal["custom"] | None = None


class AutoTool(Struct, tag_field="type", tag="auto"):
    """The model decides whether it calls a tool."""

    disable_parallel_tool_use: bool | None = None


class AnyTool(Struct, tag_field="type", tag="any"):
    """The answer calls a tool."""

    disable_parallel_tool_use: bool | None = None


class NamedTool(Struct, tag_field="type", tag="tool"):
    """The answer calls this tool."""

    name: str
    disable_parallel_tool_use: bool | None = None


class NoTool(Struct, tag_field="type", tag="none"):
    """The answer calls no tool."""


class EnabledThinking(Struct, tag_field="type", tag="enabled"):
    """Reason first."""

    budget_tokens: Annotated[int, Meta(ge=1, le=1 << 31)] | None = None
    display: Literal["summarized", "omitted"] | None = None


class AdaptiveThinking(Struct, tag_field="type", tag="adaptive"):
    """Reason first where it helps: the model decides."""

    display: Literal["summarized", "omitted"] | None = None


class DisabledThinking(Struct, tag_field="type", tag="disabled"):
    """Answer at once."""


class JsonFormat(Struct, tag_field="type", tag="json_schema"):
    """The answer is JSON of this schema."""

    schema: Object


class OutputConfig(Struct):
    """How the answer is to be."""

    effort: Literal["low", "medium", "high", "xhigh", "max"] | None = None
    format: JsonFormat | None = None


class CountRequest(Struct, kw_only=True):
    """Of /v1/messages/count_tokens: what makes up a prompt."""

    model: Annotated[str, Meta(min_length=1, max_length=512)]
    messages: list[Message]
    system: str | list[TextBlock] | None = None
    tools: list[Tool] | None = None
    tool_choice: AutoTool | AnyTool | NamedTool | NoTool | None = None
    thinking: EnabledThinking | AdaptiveThinking | DisabledThinking | None = None
    output_config: OutputConfig | None = None


class MessageRequest(CountRequest, kw_only=True):
    """Of /v1/messages."""

    max_tokens: Annotated[int, Meta(ge=1, le=1 << 31)]
    stream: bool | None = None
    stop_sequences: list[str] | None = None
    temperature: Annotated[float, Meta(ge=0, le=1)] | None = None
    top_p: Annotated[float, Meta(gt=0, le=1)] | None = None
    top_k: Annotated[int, Meta(ge=0, le=1 << 31)] | None = None
    metadata: Object | None = None
    service_tier: str | None = None
    cache_control: Object | None = None
    container: Any = None
    mcp_servers: list[Any] | None = None

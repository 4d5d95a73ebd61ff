"""What clients send to /v1/responses, with the bounds of each field."""

from __future__ import annotations

from types import MappingProxyType
from typing import Annotated, Literal

from msgspec import Meta, Struct

from hasten.serve.protocols.openai.schema import (
    ContentPart,
    Effort,
    Generating,
    LogprobCount,
    Object,
    Positive,
    ToolName,
)

__all__ = [
    "AskedReasoning",
    "InputItem",
    "ResponseTool",
    "ResponseToolChoice",
    "ResponsesRequest",
    "TextConfig",
    "TextFormat",
]

Identifier = Annotated[str, Meta(max_length=256)]


class InputItem(Struct):
    """Something that was said or done before; which fields count depends on the type."""

    type: str | None = None
    id: Identifier | None = None
    role: Literal["system", "developer", "user", "assistant"] | None = None
    content: str | list[ContentPart] | None = None
    summary: list[ContentPart] | None = None
    call_id: Identifier | None = None
    name: str | None = None
    arguments: str | None = None
    output: str | list[ContentPart] | None = None
    status: str | None = None


class ResponseTool(Struct):
    """A tool that the model may use; functions alone are supported."""

    type: str
    name: ToolName | None = None
    description: str | None = None
    parameters: Object | None = None
    strict: bool | None = None


class ResponseToolChoice(Struct, omit_defaults=True):
    """Demands one tool, or restricts them."""

    type: str
    name: ToolName | None = None
    mode: Literal["auto", "required"] | None = None
    tools: list[ResponseToolChoice] | None = None


class TextFormat(Struct, rename={"schema_": "schema"}, omit_defaults=True):
    """What the text must look like."""

    type: Literal["text", "json_object", "json_schema"]
    name: str | None = None
    description: str | None = None
    schema_: Object | bool | None = None
    strict: bool | None = None


class TextConfig(Struct):
    """How the text is to be."""

    format: TextFormat | None = None
    verbosity: Literal["low", "medium", "high"] | None = None


class AskedReasoning(Struct):
    """How much to reason."""

    effort: Effort | None = None
    summary: str | None = None


class ResponsesRequest(Generating, kw_only=True):
    """POST /v1/responses."""

    REFUSED = MappingProxyType(
        {
            **Generating.REFUSED,
            **dict.fromkeys(("conversation", "prompt"), ()),
            "background": (False,),
            "context_management": ([],),
        }
    )
    HARMLESS = Generating.HARMLESS | {"max_tool_calls", "stream_options", "truncation"}

    input: str | Annotated[list[InputItem], Meta(min_length=1)]
    instructions: str | None = None
    tools: list[ResponseTool] | None = None
    tool_choice: Literal["none", "auto", "required"] | ResponseToolChoice | None = None
    parallel_tool_calls: bool | None = None
    text: TextConfig | None = None
    max_output_tokens: Positive | None = None
    reasoning: AskedReasoning | None = None
    include: Annotated[list[str], Meta(max_length=64)] | None = None
    top_logprobs: LogprobCount | None = None
    store: bool | None = None
    previous_response_id: Identifier | None = None
    metadata: (
        Annotated[
            dict[Annotated[str, Meta(max_length=64)], Annotated[str, Meta(max_length=512)]],
            Meta(max_length=16),
        ]
        | None
    ) = None
    user: Annotated[str, Meta(max_length=512)] | None = None

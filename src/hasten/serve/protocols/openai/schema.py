"""What clients of OpenAI's protocol send, with the bounds of each field.

Fields are those of OpenAI and, below them, the extensions that clients know from vLLM. Clients send
null for what they leave out, so every optional field takes it. `REFUSED` and `HARMLESS` name
further fields of the protocol; any other name is ignored, and the reply says so.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Annotated, Any, ClassVar, Literal

from msgspec import Meta, Struct

__all__ = [
    "AllowedTools",
    "ApiRequest",
    "AskedMessage",
    "AskedTool",
    "CallText",
    "ChatRequest",
    "CompletionRequest",
    "ContentPart",
    "EmbeddingRequest",
    "Function",
    "FunctionName",
    "Generating",
    "JsonSchema",
    "MadeCall",
    "NamedTool",
    "PromptItems",
    "ResponseFormat",
    "SamplingRequest",
    "StreamOptions",
    "StructuredOutputs",
    "ToolChoiceObject",
]

_LONGEST_NAME = 256
_INT64 = (1 << 63) - 1

Name = Annotated[str, Meta(min_length=1, max_length=_LONGEST_NAME)]
ToolName = Annotated[
    # Not followed by a line end, which a dollar sign alone lets pass.
    str, Meta(pattern=r"^[a-zA-Z0-9_.-]+(?!\n)$", min_length=1, max_length=128)
]
Count = Annotated[int, Meta(ge=0, le=_INT64)]
Positive = Annotated[int, Meta(ge=1, le=_INT64)]
Seed = Annotated[int, Meta(ge=-_INT64 - 1, le=_INT64)]
Token = Annotated[int, Meta(ge=0, le=(1 << 31) - 1)]
StopText = Annotated[str, Meta(min_length=1, max_length=1024)]
StructureText = Annotated[str, Meta(max_length=1 << 16)]
Penalty = Annotated[float, Meta(ge=-2, le=2)]
LogprobCount = Annotated[int, Meta(ge=0, le=20)]
Effort = Literal["none", "minimal", "low", "medium", "high", "xhigh"]
Object = dict[str, Any]
PromptItems = list[str | int | list[Token]]
"""Texts, tokens, or lists of tokens; `parsing.read_prompts` tells them apart."""


class StructuredOutputs(Struct):
    """vLLM's `structured_outputs`: one of these."""

    json: str | Object | None = None
    regex: StructureText | None = None
    choice: Annotated[list[str], Meta(min_length=1, max_length=1024)] | None = None
    grammar: StructureText | None = None
    json_object: bool | None = None


class StreamOptions(Struct):
    """What a stream holds besides the answer."""

    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None


class ApiRequest(Struct, kw_only=True):
    """The body of a request.

    Attributes:
        REFUSED: Fields that would change the answer and are not supported, with the values of
            them that do not.
        HARMLESS: Fields that change nothing in an answer; they are taken without a word.
    """

    REFUSED: ClassVar[Mapping[str, tuple[Any, ...]]] = MappingProxyType({})
    HARMLESS: ClassVar[frozenset[str]] = frozenset()

    model: Name


class Generating(ApiRequest, kw_only=True):
    """What every request for a generation may hold."""

    REFUSED = MappingProxyType(
        {
            **dict.fromkeys(("chat_template", "allowed_token_ids", "prompt_logprobs"), ()),
            **dict.fromkeys(("truncate_prompt_tokens", "moderation", "kv_transfer_params"), ()),
            **dict.fromkeys(("use_beam_search", "include_stop_str_in_output"), (False,)),
            **dict.fromkeys(("return_token_ids", "return_tokens_as_token_ids"), (False,)),
            **{name: ([],) for name in ("bad_words", "logits_processors")},
            "include_reasoning": (True,),
            "length_penalty": (1,),
            "min_tokens": (0,),
            "skip_special_tokens": (True,),
        }
    )
    HARMLESS = frozenset(
        {
            *("cache_salt", "detokenize", "metadata", "mm_processor_kwargs", "prediction"),
            *("prompt_cache_key", "prompt_cache_options", "prompt_cache_retention", "request_id"),
            *("safety_identifier", "service_tier", "spaces_between_special_tokens", "store"),
            *("user", "verbosity"),
        }
    )

    stream: bool | None = None
    temperature: Annotated[float, Meta(ge=0, le=100)] | None = None
    top_p: Annotated[float, Meta(gt=0, le=1)] | None = None
    # vLLM's
    top_k: Annotated[int, Meta(ge=-1, le=_INT64)] | None = None
    min_p: Annotated[float, Meta(ge=0, lt=1)] | None = None
    repetition_penalty: Annotated[float, Meta(ge=0.01, le=100)] | None = None
    ignore_eos: bool | None = None
    stop_token_ids: Annotated[list[Token], Meta(max_length=1024)] | None = None
    structured_outputs: StructuredOutputs | None = None
    priority: Annotated[int, Meta(ge=-(1 << 31), le=1 << 31)] | None = None
    # Hasten's
    timeout: Annotated[float, Meta(gt=0, le=86400)] | None = None


class ContentPart(Struct):
    """A part of a message; texts alone are understood."""

    type: str
    text: str | None = None
    refusal: str | None = None


class CallText(Struct):
    """A function that was called, with its arguments as JSON text."""

    name: ToolName
    arguments: str | None = None


class MadeCall(Struct):
    """A tool call of an earlier answer."""

    function: CallText
    id: str | None = None
    type: Literal["function"] | None = None


class AskedMessage(Struct):
    """A message of the conversation."""

    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: str | list[ContentPart] | None = None
    name: str | None = None
    tool_calls: list[MadeCall] | None = None
    tool_call_id: str | None = None
    function_call: CallText | None = None
    refusal: str | None = None
    reasoning: str | None = None
    reasoning_content: str | None = None


class Function(Struct):
    """A function that the model may call."""

    name: ToolName
    description: str | None = None
    parameters: Object | None = None


class AskedTool(Struct):
    """A tool that the model may use; functions alone are supported."""

    type: str
    function: Function | None = None


class FunctionName(Struct):
    """Names a function."""

    name: ToolName


class NamedTool(Struct):
    """Names a tool."""

    type: str = "function"
    function: FunctionName | None = None


class AllowedTools(Struct):
    """Restricts the tools for this answer."""

    mode: Literal["auto", "required"]
    tools: list[NamedTool]


class ToolChoiceObject(Struct):
    """Demands one tool, or restricts them."""

    type: str = "function"
    function: FunctionName | None = None
    allowed_tools: AllowedTools | None = None


class JsonSchema(Struct, rename={"schema_": "schema"}):
    """A schema that the answer must follow."""

    schema_: Object | bool | None = None
    name: str | None = None


class ResponseFormat(Struct):
    """What the answer must look like."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None


class SamplingRequest(Generating, kw_only=True):
    """What chat completions and completions have in common."""

    n: Annotated[int, Meta(ge=1, le=_INT64)] | None = None
    stop: StopText | Annotated[list[StopText], Meta(max_length=64)] | None = None
    seed: Seed | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    logit_bias: dict[Token, Annotated[float, Meta(ge=-100, le=100)]] | None = None
    stream_options: StreamOptions | None = None
    # vLLM's
    response_format: ResponseFormat | None = None
    guided_json: str | Object | None = None
    guided_regex: StructureText | None = None
    guided_choice: Annotated[list[str], Meta(min_length=1, max_length=1024)] | None = None
    guided_grammar: StructureText | None = None


class ChatRequest(SamplingRequest, kw_only=True):
    """POST /v1/chat/completions."""

    REFUSED = MappingProxyType(
        {
            **Generating.REFUSED,
            **dict.fromkeys(("audio", "web_search_options"), ()),
            "add_special_tokens": (False,),
            "echo": (False,),
            "modalities": (["text"],),
        }
    )

    messages: Annotated[list[AskedMessage], Meta(min_length=1)]
    tools: list[AskedTool] | None = None
    tool_choice: Literal["none", "auto", "required"] | ToolChoiceObject | None = None
    parallel_tool_calls: bool | None = None
    functions: list[Function] | None = None
    function_call: Literal["none", "auto"] | FunctionName | None = None
    max_tokens: Positive | None = None
    max_completion_tokens: Positive | None = None
    logprobs: bool | None = None
    top_logprobs: LogprobCount | None = None
    reasoning_effort: Effort | None = None
    # vLLM's
    chat_template_kwargs: Object | None = None
    documents: list[Object] | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None


class CompletionRequest(SamplingRequest, kw_only=True):
    """POST /v1/completions."""

    REFUSED = MappingProxyType(
        {**Generating.REFUSED, "add_special_tokens": (True,), "suffix": ("",)}
    )

    prompt: str | Annotated[PromptItems, Meta(min_length=1)]
    max_tokens: Count | None = None
    best_of: Positive | None = None
    echo: bool | None = None
    logprobs: LogprobCount | None = None


class EmbeddingRequest(ApiRequest, kw_only=True):
    """POST /v1/embeddings."""

    REFUSED = MappingProxyType({"add_special_tokens": (True,), "normalize": (True,)})
    HARMLESS = frozenset({"priority", "request_id", "user"})

    input: str | Annotated[PromptItems, Meta(min_length=1)]
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: Annotated[int, Meta(ge=1, le=1 << 20)] | None = None
    # vLLM's: -1 cuts texts to the longest that the model takes.
    truncate_prompt_tokens: Literal[-1] | None = None
    # Hasten's
    timeout: Annotated[float, Meta(gt=0, le=86400)] | None = None

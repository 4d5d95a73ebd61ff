"""From Anthropic's messages and blocks to a conversation as chat templates take it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from hasten.errors import UsageError
from hasten.serve.jobs import Conversation, ToolChoice
from hasten.serve.protocols.anthropic.schema import (
    AnyTool,
    CountRequest,
    DisabledThinking,
    DocumentBlock,
    EnabledThinking,
    ImageBlock,
    Message,
    NamedTool,
    NoTool,
    TextBlock,
    ThinkingBlock,
    Tool,
    ToolResultBlock,
    ToolUseBlock,
)

__all__ = ["read_conversation"]

_EFFORT = {"low": "low", "medium": "medium", "high": "high", "xhigh": "high", "max": "high"}


def read_conversation(request: CountRequest) -> Conversation:
    """What the model is to read.

    Raises:
        UsageError: A block is of a kind, or at a place, that cannot be told to a model.
    """
    if not request.messages:
        raise UsageError("messages is empty", allowed="at least one message")
    messages: list[dict[str, Any]] = []
    if request.system:
        messages.append({"role": "system", "content": _text(request.system, "system")})
    names: dict[str, str] = {}
    for place, message in enumerate(request.messages):
        where = f"messages[{place}].content"
        if message.role == "assistant":
            messages.append(_answer(message, where, names))
        else:
            messages += _question(message, where, names)
    last = request.messages[-1].role == "assistant"
    return Conversation(
        messages,
        tools=[_tool(tool) for tool in request.tools or ()],
        tool_choice=_choice(request),
        extra=_extra(request),
        continue_last=last and "tool_calls" not in messages[-1],
    )


def _answer(message: Message, where: str, names: dict[str, str]) -> dict[str, Any]:
    """An earlier answer; notes the names of the tools that it calls."""
    if isinstance(message.content, str):
        return {"role": "assistant", "content": message.content}
    texts, thoughts, calls = [], [], []
    for number, block in enumerate(message.content):
        match block:
            case TextBlock():
                texts.append(block.text)
            case ThinkingBlock():
                thoughts.append(block.thinking)
            case ToolUseBlock():
                names[block.id] = block.name
                function = {"name": block.name, "arguments": block.input}
                calls.append({"id": block.id, "type": "function", "function": function})
            case ToolResultBlock() | ImageBlock() | DocumentBlock():
                raise _misplaced(block, f"{where}[{number}]", "an assistant's message")
    told: dict[str, Any] = {"role": "assistant", "content": "".join(texts)}
    if thoughts:
        told["reasoning_content"] = "".join(thoughts)
    if calls:
        told["tool_calls"] = calls
    return told


def _question(message: Message, where: str, names: dict[str, str]) -> list[dict[str, Any]]:
    """A message of the user's: results of tools each become a message before its text."""
    if isinstance(message.content, str):
        return [{"role": message.role, "content": message.content}]
    results, texts = [], []
    for number, block in enumerate(message.content):
        match block:
            case TextBlock():
                texts.append(block.text)
            case ToolResultBlock():
                results.append(_result(block, f"{where}[{number}].content", names))
            case _:
                raise _misplaced(block, f"{where}[{number}]", "a user's message")
    if texts or not results:
        results.append({"role": message.role, "content": "\n".join(texts)})
    return results


def _result(block: ToolResultBlock, where: str, names: dict[str, str]) -> dict[str, Any]:
    text = _text(block.content or "", where)
    told = {
        "role": "tool",
        "tool_call_id": block.tool_use_id,
        "content": f"Error: {text}" if block.is_error else text,
    }
    if block.tool_use_id in names:
        told["name"] = names[block.tool_use_id]
    return told


def _text(content: str | Sequence[TextBlock | ImageBlock | DocumentBlock], where: str) -> str:
    if isinstance(content, str):
        return content
    texts = []
    for number, block in enumerate(content):
        if not isinstance(block, TextBlock):
            raise _misplaced(block, f"{where}[{number}]", "a text")
        texts.append(block.text)
    return "\n".join(texts)


def _misplaced(block: object, where: str, place: str) -> UsageError:
    match block:
        case ImageBlock() | DocumentBlock():
            kind = "an image" if isinstance(block, ImageBlock) else "a document"
            return UsageError(f"{where} is {kind}: the models here read text", allowed="text")
    kind = str(getattr(block, "__struct_config__").tag)  # noqa: B009 - mypy knows no such field
    return UsageError(f"{where} is of the type {kind!r}, which has no place in {place}")


def _tool(tool: Tool) -> dict[str, Any]:
    return {
        "type": "function",
        "function": {
            "name": tool.name,
            "description": tool.description or "",
            "parameters": tool.input_schema,
        },
    }


def _choice(request: CountRequest) -> ToolChoice:
    choice = request.tool_choice
    if choice is None:
        return ToolChoice()
    if isinstance(choice, NoTool):
        return ToolChoice("none")
    parallel = not choice.disable_parallel_tool_use
    if not isinstance(choice, AnyTool | NamedTool):
        return ToolChoice("auto", parallel=parallel)
    names = [tool.name for tool in request.tools or ()]
    if not names:
        raise UsageError("tool_choice demands a call and there are no tools", do="add tools")
    if isinstance(choice, AnyTool):
        return ToolChoice("required", parallel=parallel)
    if choice.name not in names:
        raise UsageError(f"tool_choice names {choice.name!r:.80}", allowed=", ".join(names))
    return ToolChoice("required", choice.name, parallel)


def _extra(request: CountRequest) -> dict[str, Any]:
    """What the template is told of reasoning, which this protocol's clients must ask for."""
    thinking = request.thinking
    extra: dict[str, Any] = {"enable_thinking": not isinstance(thinking, DisabledThinking | None)}
    if isinstance(thinking, EnabledThinking) and thinking.budget_tokens is not None:
        extra["thinking_budget"] = thinking.budget_tokens
    if request.output_config is not None and request.output_config.effort is not None:
        extra["reasoning_effort"] = _EFFORT[request.output_config.effort]
    return extra

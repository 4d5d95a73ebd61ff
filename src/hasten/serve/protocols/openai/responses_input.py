"""From the items of a response's input to a conversation, and to items that can be shown again."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from hasten.serve.jobs import Conversation, ToolChoice
from hasten.serve.protocols.openai.conversation import (
    join_parts,
    read_arguments,
    template_values,
)
from hasten.serve.protocols.openai.responses_schema import (
    InputItem,
    ResponsesRequest,
    ResponseTool,
    ResponseToolChoice,
)
from hasten.serve.protocols.openai.schema import CallText, ContentPart, Function
from hasten.serve.protocols.openai.tools import Tools, choose_tools, declare_tools
from hasten.serve.protocols.reading import FieldError, check_count
from hasten.serve.settings import Limits

__all__ = ["input_items", "read_response", "show_items"]


def input_items(request: ResponsesRequest) -> list[InputItem]:
    """The input as items; a text is a message of the user's."""
    if isinstance(request.input, str):
        return [InputItem("message", role="user", content=request.input)]
    return request.input


def read_response(
    request: ResponsesRequest, earlier: Sequence[InputItem], limits: Limits
) -> Conversation:
    """What a request says, after what was said before it.

    Args:
        request: What was asked.
        earlier: Input and output of the responses before.
        limits: Of requests.

    Raises:
        FieldError: Something in it is not supported, contradicts the rest, or is too much.
    """
    items = [*earlier, *input_items(request)]
    check_count(len(items), limits.messages, "input", "items, those of earlier responses included")
    reader = _ItemReader(request.instructions)
    for number, item in enumerate(items, -len(earlier)):
        # Earlier items were checked when they came.
        reader.add(item, f"input[{number}]")
    functions = [_function(tool, f"tools[{n}]") for n, tool in enumerate(request.tools or ())]
    tools, choice = _choose(declare_tools(functions, limits), request)
    effort = request.reasoning.effort if request.reasoning else None
    return Conversation(reader.finish(), tools, choice, template_values(effort, None))


class _ItemReader:
    """Puts items together to messages: a turn of the assistant's is several items, one message."""

    def __init__(self, instructions: str | None) -> None:
        self._messages: list[dict[str, Any]] = []
        self._names: dict[str, str] = {}  # of the tools, by the id of their call
        if instructions:
            self._messages.append({"role": "system", "content": instructions})

    def finish(self) -> list[dict[str, Any]]:
        for message in self._messages:
            if message["content"] is None and "tool_calls" not in message:
                message["content"] = ""  # reasoning alone
        return self._messages

    def add(self, item: InputItem, field: str) -> None:
        kind = item.type or ("message" if item.role else None)
        match kind:
            case "message":
                self._add_message(item, field)
            case "reasoning":
                self._add_reasoning(item, field)
            case "function_call":
                self._add_call(item, field)
            case "function_call_output":
                self._add_output(item, field)
            case None:
                raise FieldError(f"{field}.type", "it is missing")
            case _:
                raise FieldError(
                    f"{field}.type",
                    f"{kind!r:.60} is not supported",
                    allowed="message, reasoning, function_call, function_call_output",
                )

    def _add_message(self, item: InputItem, field: str) -> None:
        if item.role is None:
            raise FieldError(f"{field}.role", "it is missing")
        text = _text(item.content, f"{field}.content")
        last = self._messages[-1] if self._messages else None
        if item.role == "assistant":
            turn = self._turn()
            if turn["content"] or "tool_calls" in turn:
                self._messages.append({"role": "assistant", "content": text})
            else:
                turn["content"] = text
        elif item.role == "user":
            self._messages.append({"role": "user", "content": text})
        elif last is not None and last["role"] == "system":
            # Most templates have a place for one only.
            last["content"] += f"\n\n{text}"
        else:
            self._messages.append({"role": "system", "content": text})

    def _add_reasoning(self, item: InputItem, field: str) -> None:
        parts = item.content if item.content is not None else item.summary
        text = _text(parts or "", f"{field}.content")
        if text:
            made = {"role": "assistant", "content": None, "reasoning_content": text}
            self._messages.append(made)

    def _add_call(self, item: InputItem, field: str) -> None:
        if item.name is None or item.call_id is None:
            missing = "name" if item.name is None else "call_id"
            raise FieldError(f"{field}.{missing}", "it is missing")
        self._names[item.call_id] = item.name
        arguments = read_arguments(CallText(item.name, item.arguments), field)
        function = {"name": item.name, "arguments": arguments}
        call = {"id": item.call_id, "type": "function", "function": function}
        self._turn().setdefault("tool_calls", []).append(call)

    def _add_output(self, item: InputItem, field: str) -> None:
        made = {"role": "tool", "content": _text(item.output, f"{field}.output")}
        if item.call_id is not None:
            made["tool_call_id"] = item.call_id
            if name := item.name or self._names.get(item.call_id):
                made["name"] = name
        self._messages.append(made)

    def _turn(self) -> dict[str, Any]:
        """The assistant's message that is being put together."""
        if not self._messages or self._messages[-1]["role"] != "assistant":
            self._messages.append({"role": "assistant", "content": None})
        return self._messages[-1]


def _text(content: str | Sequence[ContentPart] | None, field: str) -> str:
    if content is None:
        raise FieldError(field, "it is missing", allowed="a text, or a list of parts")
    return content if isinstance(content, str) else join_parts(content, field)


def _function(tool: ResponseTool, field: str) -> Function:
    if tool.type != "function":
        raise FieldError(f"{field}.type", f"{tool.type!r:.60} is not supported", allowed="function")
    if tool.name is None:
        raise FieldError(f"{field}.name", "it is missing")
    return Function(tool.name, tool.description, tool.parameters)


def _choose(tools: Tools, request: ResponsesRequest) -> tuple[Tools, ToolChoice]:
    asked, parallel = request.tool_choice, request.parallel_tool_calls is not False
    if not isinstance(asked, ResponseToolChoice):
        return choose_tools(tools, asked or "auto", parallel=parallel)
    if asked.type == "allowed_tools":
        names = [_name(tool) for tool in asked.tools or ()]
        return choose_tools(tools, asked.mode or "auto", allowed=names, parallel=parallel)
    return choose_tools(tools, "required", name=_name(asked), parallel=parallel)


def _name(asked: ResponseToolChoice) -> str:
    if asked.type != "function":
        raise FieldError("tool_choice.type", f"{asked.type!r:.60} is unknown", allowed="function")
    if asked.name is None:
        raise FieldError("tool_choice.name", "it is missing")
    return asked.name


def show_items(items: Sequence[InputItem], prefix: str) -> list[dict[str, Any]]:
    """Items as they are listed: with type, status and an id, which begins with a prefix."""
    shown = []
    for number, item in enumerate(items):
        made = {k: v for k, v in msgspec.to_builtins(item).items() if v is not None}
        made.setdefault("type", "message")
        made.setdefault("status", "completed")
        made.setdefault("id", f"{prefix}{number}")
        if made["type"] == "message" and isinstance(made["content"], str):
            kind = "output_text" if item.role == "assistant" else "input_text"
            made["content"] = [{"type": kind, "text": made["content"]}]
        shown.append(made)
    return shown

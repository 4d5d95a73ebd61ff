"""From OpenAI's messages and tools to a conversation for the chat template."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from hasten.models.chat import ChatTemplate
from hasten.serve.jobs import Conversation
from hasten.serve.protocols.openai.schema import (
    AskedMessage,
    CallText,
    ChatRequest,
    ContentPart,
    MadeCall,
)
from hasten.serve.protocols.openai.tools import read_tools
from hasten.serve.protocols.reading import FieldError, check_count, check_depth
from hasten.serve.settings import Limits

__all__ = [
    "join_parts",
    "read_arguments",
    "read_conversation",
    "template_values",
]

_ARGUMENTS = msgspec.json.Decoder(dict[str, Any])


def read_conversation(request: ChatRequest, limits: Limits) -> Conversation:
    """What the messages, tools and template values of a request say.

    Raises:
        FieldError: Something in them is not supported, contradicts the rest, or is too much.
    """
    check_count(len(request.messages), limits.messages, "messages", "messages")
    messages = read_messages(request.messages)
    tools, choice = read_tools(request, limits)
    continues = bool(request.continue_final_message)
    if continues and (messages[-1]["role"] != "assistant" or request.add_generation_prompt):
        raise FieldError(
            "continue_final_message",
            "there is nothing to continue",
            allowed="with an assistant's message as the last, and without add_generation_prompt",
        )
    if request.add_generation_prompt is False and not continues:
        raise FieldError(
            "add_generation_prompt", "false is for continue_final_message only", do="leave it out"
        )
    extra = template_values(request.reasoning_effort, request.chat_template_kwargs)
    if request.documents is not None:
        extra.setdefault("documents", request.documents)
    return Conversation(messages, tools, choice, extra, continues)


def template_values(effort: str | None, asked: Mapping[str, Any] | None) -> dict[str, Any]:
    """Values for the chat template: those of the reasoning's effort, and those asked by name.

    Raises:
        FieldError: A name that templates are not given.
    """
    values: dict[str, Any] = {}
    if effort == "none":
        # Templates know this as a switch (Qwen 3's name, DeepSeek's name).
        values |= {"enable_thinking": False, "thinking": False}
    elif effort is not None:
        values["reasoning_effort"] = effort
    for name, value in (asked or {}).items():
        field = f"chat_template_kwargs.{name:.60}"
        if name not in ChatTemplate.ALLOWED:
            raise FieldError(
                field,
                "chat templates are not given this",
                allowed=", ".join(sorted(ChatTemplate.ALLOWED)),
            )
        values[name] = value
    return values


def read_messages(asked: Sequence[AskedMessage]) -> list[dict[str, Any]]:
    """Messages as chat templates take them.

    Raises:
        FieldError: One holds what is not supported.
    """
    names: dict[str, str] = {}  # of the tools, by the id of their call
    messages = []
    for number, message in enumerate(asked):
        field = f"messages[{number}]"
        for call in message.tool_calls or ():
            if call.id is not None:
                names[call.id] = call.function.name
        match message.role:
            case "assistant":
                messages.append(_assistant(message, field))
            case "tool" | "function":
                messages.append(_tool_result(message, names, field))
            case role:
                messages.append(
                    {
                        "role": "system" if role == "developer" else role,
                        "content": _content(message, field),
                        **({} if message.name is None else {"name": message.name}),
                    }
                )
    return messages


def _content(message: AskedMessage, field: str) -> str:
    if message.content is None:
        raise FieldError(f"{field}.content", "it is missing", allowed="a text, or a list of parts")
    if isinstance(message.content, str):
        return message.content
    return join_parts(message.content, f"{field}.content")


def join_parts(parts: Sequence[ContentPart], field: str) -> str:
    """The text of a message whose content is a list, each part on lines of its own, as in vLLM.

    Raises:
        FieldError: A part is no text.
    """
    texts = []
    for number, part in enumerate(parts):
        text = part.refusal if part.type == "refusal" else part.text
        if part.type not in ("text", "input_text", "output_text", "refusal"):
            raise FieldError(
                f"{field}[{number}].type",
                f"{part.type!r:.60} is not supported: this server's models read text only",
                allowed="text",
            )
        if text is None:
            raise FieldError(f"{field}[{number}].text", "it is missing", allowed="a text")
        texts.append(text)
    return "\n".join(texts)


def _assistant(message: AskedMessage, field: str) -> dict[str, Any]:
    calls = [
        _made_call(call, f"{field}.tool_calls[{number}].function")
        for number, call in enumerate(message.tool_calls or ())
    ]
    if message.function_call is not None:
        call = MadeCall(message.function_call)
        calls.append(_made_call(call, f"{field}.function_call"))
    content: str | None = message.refusal or ""
    if message.content is not None:
        content = _content(message, field)
    elif calls and not content:
        content = None
    made: dict[str, Any] = {"role": "assistant", "content": content}
    reasoning = message.reasoning_content or message.reasoning
    if reasoning:
        made["reasoning_content"] = reasoning
    if calls:
        made["tool_calls"] = calls
    return made


def _made_call(call: MadeCall, field: str) -> dict[str, Any]:
    function = {
        "name": call.function.name,
        "arguments": read_arguments(call.function, field),
    }
    return {"id": call.id or "", "type": "function", "function": function}


def read_arguments(call: CallText, field: str) -> dict[str, Any]:
    """The arguments of a call that an earlier answer made.

    Raises:
        FieldError: They are not the text of a JSON object.
    """
    if not call.arguments:
        return {}
    try:
        arguments = _ARGUMENTS.decode(call.arguments)
    except (msgspec.DecodeError, RecursionError) as error:
        raise FieldError(
            f"{field}.arguments",
            f"{call.arguments!r:.60} is not the text of a JSON object ({error})",
        ) from None
    check_depth(arguments, f"{field}.arguments")
    return arguments


def _tool_result(message: AskedMessage, names: Mapping[str, str], field: str) -> dict[str, Any]:
    made = {"role": "tool", "content": _content(message, field)}
    if message.tool_call_id is not None:
        made["tool_call_id"] = message.tool_call_id
    name = message.name or names.get(message.tool_call_id or "")
    if name is not None:
        made["name"] = name
    return made

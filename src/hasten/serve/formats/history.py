"""Conversations as templates can take them."""

from __future__ import annotations

import hashlib
import json
import string
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from hasten.serve.formats.syntax import CallSyntax, dump

__all__ = [
    "add_tools",
    "give_tools",
    "one_call_each",
    "shorten_ids",
    "spell_calls",
    "spell_results",
]

Message = Mapping[str, Any]

_ALPHABET = string.ascii_letters + string.digits
_SHORT_ID = 9
_INSTRUCTION = """# Tools

You may call one or more functions to assist with the user query.

You are provided with function signatures within <tools></tools> XML tags:
<tools>
{tools}
</tools>

For each function call, return a JSON object with the function's name and arguments, like this:
{example}"""
_EXAMPLE = {"name": "<function-name>", "arguments": {"<argument>": "<value>"}}


def add_tools(
    messages: Sequence[Message],
    tools: Sequence[Mapping[str, Any]],
    syntax: CallSyntax,
    role: str,
) -> list[Message]:
    """Puts tools, and how to call them, into the first message of a role, or before all."""
    text = _INSTRUCTION.format(tools="\n".join(map(dump, tools)), example=syntax.write([_EXAMPLE]))
    place = 0 if role == "system" else next(_places(messages, role), 0)
    found = messages[place] if place < len(messages) else None
    if found is None or found["role"] != role:
        return [{"role": role, "content": text}, *messages]
    before, after = (found["content"], text) if role == "system" else (text, found["content"])
    joined = {**found, "content": f"{before}\n\n{after}"}
    return [*messages[:place], joined, *messages[place + 1 :]]


def give_tools(messages: Sequence[Message], tools: Sequence[Mapping[str, Any]]) -> list[Message]:
    """Gives the system message a field with the tools, for templates that look there."""
    text = json.dumps([tool["function"] for tool in tools], ensure_ascii=False)
    if messages and messages[0]["role"] == "system":
        return [{**messages[0], "tools": text}, *messages[1:]]
    helpful = "You are a helpful assistant with some tools."
    return [{"role": "system", "content": helpful, "tools": text}, *messages]


def spell_calls(messages: Sequence[Message], syntax: CallSyntax) -> list[Message]:
    """Writes the calls of each message into its content."""
    return [
        _spelled(message, syntax) if message.get("tool_calls") else message for message in messages
    ]


def spell_results(messages: Sequence[Message]) -> list[Message]:
    """Makes what tools gave part of the user's side; several in a row become one message."""
    spelled: list[Message] = []
    open_results = False
    for message in messages:
        result = message["role"] == "tool"
        text = message["content"] or ""
        if result:
            text = f"<tool_response>\n{text}\n</tool_response>"
        if open_results and (result or message["role"] == "user"):
            spelled[-1] = {"role": "user", "content": f"{spelled[-1]['content']}\n{text}"}
        else:
            spelled.append({"role": "user", "content": text} if result else message)
        open_results = result
    return spelled


def one_call_each(messages: Sequence[Message]) -> list[Message]:
    """Splits messages of several calls: each call comes before what its tool gave."""
    split: list[Message] = []
    place = 0
    while place < len(messages):
        message = messages[place]
        place += 1
        calls = message.get("tool_calls") or ()
        if len(calls) < 2:
            split.append(message)
            continue
        results = []
        while place < len(messages) and messages[place]["role"] == "tool":
            results.append(messages[place])
            place += 1
        for number, call in enumerate(calls):
            content = message.get("content") if number == 0 else ""
            split.append({**message, "content": content, "tool_calls": [call]})
            split += _take(results, call.get("id"))
        split += results
    return split


def shorten_ids(messages: Sequence[Message]) -> list[Message]:
    """Gives calls ids of 9 letters and digits, the same for the same id."""
    short: list[Message] = []
    for message in messages:
        changes: dict[str, Any] = {}
        if calls := message.get("tool_calls"):
            changes["tool_calls"] = [{**call, "id": _short(call.get("id") or "")} for call in calls]
        if message.get("tool_call_id") is not None:
            changes["tool_call_id"] = _short(message["tool_call_id"])
        short.append({**message, **changes} if changes else message)
    return short


def _spelled(message: Message, syntax: CallSyntax) -> Message:
    text = syntax.write([call["function"] for call in message["tool_calls"]])
    content = f"{message['content']}\n{text}" if message.get("content") else text
    return {k: v for k, v in message.items() if k != "tool_calls"} | {"content": content}


def _places(messages: Sequence[Message], role: str) -> Iterator[int]:
    return (place for place, message in enumerate(messages) if message["role"] == role)


def _take(results: list[Message], call_id: str | None) -> list[Message]:
    """Removes the first result of a call, or of no call in particular."""
    for place, result in enumerate(results):
        if result.get("tool_call_id") in (call_id, None):
            return [results.pop(place)]
    return []


def _short(call_id: str) -> str:
    if len(call_id) == _SHORT_ID and set(call_id) <= set(_ALPHABET):
        return call_id
    digest = hashlib.sha256(call_id.encode(errors="surrogatepass")).digest()
    return "".join(_ALPHABET[byte % len(_ALPHABET)] for byte in digest[:_SHORT_ID])

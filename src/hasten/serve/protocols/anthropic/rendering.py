"""Generations as Anthropic writes them: one message, or the events that build it up."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import msgspec

from hasten.serve.jobs import Answer, CallPiece, Ended, Event, Piece, Usage
from hasten.serve.protocols.anthropic.dialect import error_event
from hasten.serve.protocols.streaming import encode

__all__ = ["PING", "MessageWriter"]

PING = b'event: ping\ndata: {"type":"ping"}\n\n'
"""A sign of life."""

_SIGNATURE = "unsigned"
"""Comes back with the reasoning, and nobody here checks it; an empty one some clients miss."""

_Open = Literal["thinking", "text"] | int | None
"""The block that grows: reasoning, text, or the number of a tool call."""


class MessageWriter:
    """Writes one generation, for a stream (see `EventRenderer`) or as a whole.

    Args:
        model: As the client named it.
        request_id: Of the HTTP request; the message's id follows from it.
        prompt_tokens: Length of the prompt.
        max_tokens: What the client allowed; an output that ended before it filled the context.
    """

    def __init__(self, model: str, request_id: str, prompt_tokens: int, max_tokens: int) -> None:
        self._model = model
        self._request_id = request_id
        self._prompt_tokens = prompt_tokens
        self._max_tokens = max_tokens
        self._open: _Open = None
        self._blocks = 0
        self._delta = b""
        self._end = Ended(0, "stop")

    def begin(self) -> bytes:
        """The message without content: it is sent before the first token is there."""
        message = self._message([], None, None)
        message["usage"] = {**_NO_CACHE, "input_tokens": self._prompt_tokens, "output_tokens": 0}
        begun = _event("message_start", {"type": "message_start", "message": message})
        return begun + PING

    def event(self, event: Event) -> bytes:
        """What an event adds to the blocks; the reason and the figures at the end."""
        match event:
            case Piece():
                added = b""
                if event.reasoning:
                    added += self._grow("thinking", event.reasoning)
                if event.content:
                    added += self._grow("text", event.content)
                for call in event.calls:
                    added += self._call(call)
                return added
            case Ended():
                self._end = event
                return self._close()
            case Usage():
                return self._finish(event)

    def failure(self, error: Exception) -> bytes:
        """The event that clients raise an error for."""
        return error_event(error, self._request_id)

    def whole(self, answer: Answer, usage: Usage) -> bytes:
        """The message in one object."""
        reason, stop = self._reason(Ended(0, answer.reason, answer.stop), usage)
        message = self._message(_blocks(answer), reason, stop)
        message["usage"] = _usage(usage)
        return encode(message)

    def _grow(self, kind: Literal["thinking", "text"], text: str) -> bytes:
        grown = self._delta + encode(text) + b"}}\n\n"
        if self._open == kind:
            return grown
        block = {"type": kind, kind: ""}
        if kind == "thinking":
            block["signature"] = ""
        begun = self._start(kind, block, f"{kind}_delta", kind)
        return begun + self._delta + encode(text) + b"}}\n\n"

    def _call(self, call: CallPiece) -> bytes:
        begun = b""
        if self._open != call.number:
            block = {"type": "tool_use", "id": call.id, "name": call.name, "input": {}}
            begun = self._start(call.number, block, "input_json_delta", "partial_json")
        if not call.arguments:
            return begun
        return begun + self._delta + encode(call.arguments) + b"}}\n\n"

    def _start(self, kind: _Open, block: dict[str, Any], delta: str, field: str) -> bytes:
        """Opens a block; all of its events but the text that they add are the same."""
        closed = self._close()
        self._open = kind
        self._delta = (
            "event: content_block_delta\n"
            f'data: {{"type":"content_block_delta","index":{self._blocks},'
            f'"delta":{{"type":"{delta}","{field}":'
        ).encode()
        begun = {
            "type": "content_block_start",
            "index": self._blocks,
            "content_block": block,
        }
        return closed + _event("content_block_start", begun)

    def _close(self) -> bytes:
        if self._open is None:
            return b""
        index, signed = self._blocks, b""
        if self._open == "thinking":
            delta = {"type": "signature_delta", "signature": _SIGNATURE}
            told = {"type": "content_block_delta", "index": index, "delta": delta}
            signed = _event("content_block_delta", told)
        self._open = None
        self._blocks += 1
        stopped = {"type": "content_block_stop", "index": index}
        return signed + _event("content_block_stop", stopped)

    def _finish(self, usage: Usage) -> bytes:
        reason, stop = self._reason(self._end, usage)
        told = {
            "type": "message_delta",
            "delta": {"stop_reason": reason, "stop_sequence": stop},
            "usage": _usage(usage),
        }
        stopped = _event("message_stop", {"type": "message_stop"})
        return _event("message_delta", told) + stopped

    def _reason(self, end: Ended, usage: Usage) -> tuple[str, str | None]:
        match end.reason:
            case "tool_calls":
                return "tool_use", None
            case "length":
                full = usage.output_tokens < self._max_tokens
                return "model_context_window_exceeded" if full else "max_tokens", None
            case "stop":
                return "end_turn" if end.stop is None else "stop_sequence", end.stop

    def _message(
        self, content: list[dict[str, Any]], reason: str | None, stop: str | None
    ) -> dict[str, Any]:
        return {
            "id": f"msg_{self._request_id}",
            "type": "message",
            "role": "assistant",
            "model": self._model,
            "content": content,
            "stop_reason": reason,
            "stop_sequence": stop,
        }


_NO_CACHE = {"cache_creation_input_tokens": 0, "cache_read_input_tokens": 0}


def _usage(usage: Usage) -> dict[str, Any]:
    """Tokens from the prefix cache are counted apart from the others of the prompt."""
    return {
        "input_tokens": usage.prompt_tokens - usage.cached_tokens,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": usage.cached_tokens,
        "output_tokens": usage.output_tokens,
        "output_tokens_details": {"thinking_tokens": usage.reasoning_tokens},
    }


def _blocks(answer: Answer) -> list[dict[str, Any]]:
    blocks: list[dict[str, Any]] = []
    if answer.reasoning:
        thought = {"type": "thinking", "thinking": answer.reasoning, "signature": _SIGNATURE}
        blocks.append(thought)
    if answer.content:
        blocks.append({"type": "text", "text": answer.content})
    return blocks + _calls(answer.calls)


def _calls(calls: Sequence[CallPiece]) -> list[dict[str, Any]]:
    return [
        {"type": "tool_use", "id": call.id, "name": call.name, "input": _input(call.arguments)}
        for call in calls
    ]


def _input(arguments: str) -> dict[str, Any]:
    """A call's arguments; empty where the end of the output cut them off."""
    try:
        value = msgspec.json.decode(arguments or "{}")
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def _event(name: str, data: dict[str, Any]) -> bytes:
    return b"event: " + name.encode() + b"\ndata: " + encode(data) + b"\n\n"

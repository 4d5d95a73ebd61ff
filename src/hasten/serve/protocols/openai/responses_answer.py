"""Responses: their items, whole and as typed events."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import msgspec

from hasten.serve.jobs import CallPiece, Ended, Event, Piece, Usage
from hasten.serve.protocols.openai.errors import explain
from hasten.serve.protocols.openai.logprobs import chat_logprobs
from hasten.serve.protocols.openai.responses_schema import ResponsesRequest
from hasten.serve.protocols.streaming import encode
from hasten.types import SamplingParams, TokenLogprobs

__all__ = ["ResponseWriter"]

Kind = Literal["reasoning", "message", "function_call"]
_PREFIXES: dict[Kind, str] = {"reasoning": "rs", "message": "msg", "function_call": "fc"}
_PARTS: dict[Kind, str] = {"reasoning": "reasoning_text", "message": "output_text"}
_DELTAS: dict[Kind, str] = {
    "reasoning": "response.reasoning_text",
    "message": "response.output_text",
    "function_call": "response.function_call_arguments",
}


@dataclass
class _Item:
    """An item of the output while it grows."""

    kind: Kind
    id: str
    place: int
    call: CallPiece | None = None
    texts: list[str] = field(default_factory=list)
    logprobs: list[dict[str, Any]] = field(default_factory=list)
    delta: bytes = b""  # what comes before the sequence number of a delta

    def shown(self, status: str) -> dict[str, Any]:
        item: dict[str, Any] = {"type": self.kind, "id": self.id, "status": status}
        if self.call is not None:
            made = {"name": self.call.name, "arguments": "".join(self.texts)}
            return {**item, "call_id": self.call.id, **made}
        content = [self.part()] if self.texts else []
        if self.kind == "reasoning":
            return {**item, "summary": [], "content": content}
        return {**item, "role": "assistant", "content": content}

    def part(self) -> dict[str, Any]:
        part: dict[str, Any] = {"type": _PARTS[self.kind], "text": "".join(self.texts)}
        if self.kind == "message":
            part |= {"annotations": [], "logprobs": self.logprobs}
        return part


class ResponseWriter:
    """Turns what happens into a response, and into the events that tell of it as it grows.

    Args:
        request: What was asked.
        sampling: What that comes to.
        id: Of the response.
        request_id: Of the HTTP request.
        created: When, in Unix seconds.
        model: What answers.
        spell: The bytes of a token, where the client wants log probabilities.
        keep: Told of the response once it is complete.

    Attributes:
        response: As it is now.
    """

    def __init__(
        self,
        request: ResponsesRequest,
        *,
        sampling: SamplingParams,
        id: str,  # noqa: A002 - the name of the field
        request_id: str,
        created: int,
        model: str,
        spell: Callable[[int], bytes] | None,
        keep: Callable[[dict[str, Any]], None],
    ) -> None:
        self.response = _begin(request, sampling, id, created, model)
        self._request_id = request_id
        self._spell = spell
        self._keep = keep
        self._number = 0
        self._item: _Item | None = None
        self._waiting: list[TokenLogprobs] = []
        self._ended: Ended | None = None

    def begin(self) -> bytes:
        """The response before anything happened."""
        created = self._event("response.created", response=self.response)
        return created + self._event("response.in_progress", response=self.response)

    def event(self, event: Event) -> bytes:
        """The events that one of the engine's makes."""
        if isinstance(event, Piece):
            return self._piece(event)
        if isinstance(event, Ended):
            self._ended = event
            return self._close("incomplete" if event.reason == "length" else "completed")
        return self._complete(event)

    def failure(self, error: Exception) -> bytes:
        """What is told of an error, and the end."""
        closed = self._close("incomplete")
        message = explain(error, self._request_id)
        self.response |= {
            "status": "failed",
            "error": {"code": "server_error", "message": message},
        }
        return closed + self._event("response.failed", response=self.response)

    def _piece(self, piece: Piece) -> bytes:
        made = b""
        if piece.reasoning:
            made += self._open("reasoning") + self._add(piece.reasoning)
        if self._spell is not None and not piece.reasoning:
            self._waiting += piece.logprobs
        if piece.content:
            made += self._open("message") + self._add(piece.content)
        for call in piece.calls:
            made += self._open("function_call", call)
            made += self._add(call.arguments) if call.arguments else b""
        return made

    def _open(self, kind: Kind, call: CallPiece | None = None) -> bytes:
        """Makes sure that text of a kind goes to an item of that kind."""
        item = self._item
        if item is not None and item.kind == kind and _number(item.call) == _number(call):
            return b""
        closed = self._close("completed")
        place = len(self.response["output"])
        name = f"{_PREFIXES[kind]}_{self.response['id'].partition('_')[2]}{place}"
        self._item = item = _Item(kind, name, place, call)
        added = self._event(
            "response.output_item.added", output_index=place, item=item.shown("in_progress")
        )
        where: dict[str, Any] = {"item_id": name, "output_index": place}
        if call is None:
            where["content_index"] = 0
            added += self._event("response.content_part.added", **where, part=item.part())
        item.delta = _prefix(f"{_DELTAS[kind]}.delta", where)
        return closed + added

    def _add(self, text: str) -> bytes:
        """A delta; the hot path, so what all deltas of an item share is prepared."""
        item = self._item
        assert item is not None  # noqa: S101 - it was opened
        item.texts.append(text)
        number, self._number = self._number, self._number + 1
        extra = b""
        if item.kind == "message":
            extra = b',"logprobs":[]'
            if self._waiting and self._spell is not None:
                shown = chat_logprobs(self._waiting, self._spell)
                item.logprobs += shown
                self._waiting = []
                extra = b',"logprobs":' + encode(shown)
        return item.delta + b"%d" % number + extra + b',"delta":' + encode(text) + b"}\n\n"

    def _close(self, status: str) -> bytes:
        """Ends the item that grows, if one does."""
        item, self._item = self._item, None
        if item is None:
            return b""
        text = "".join(item.texts)
        where: dict[str, Any] = {"item_id": item.id, "output_index": item.place}
        done = f"{_DELTAS[item.kind]}.done"
        if item.call is not None:
            status = status if _is_object(text) else "incomplete"
            made = self._event(done, **where, name=item.call.name, arguments=text)
        else:
            where["content_index"] = 0
            extra = {"logprobs": item.logprobs} if item.kind == "message" else {}
            made = self._event(done, **where, text=text, **extra)
            made += self._event("response.content_part.done", **where, part=item.part())
        shown = item.shown(status)
        self.response["output"].append(shown)
        return made + self._event("response.output_item.done", output_index=item.place, item=shown)

    def _complete(self, usage: Usage) -> bytes:
        cut = self._ended is not None and self._ended.reason == "length"
        status = "incomplete" if cut else "completed"
        self.response |= {
            "status": status,
            "completed_at": None if cut else int(time.time()),
            "incomplete_details": {"reason": "max_output_tokens"} if cut else None,
            "usage": _usage(usage),
        }
        self._keep(self.response)
        return self._event(f"response.{status}", response=self.response)

    def _event(self, kind: str, **fields: object) -> bytes:
        number, self._number = self._number, self._number + 1
        data = encode({"type": kind, "sequence_number": number, **fields})
        return b"event: " + kind.encode() + b"\ndata: " + data + b"\n\n"


def _is_object(arguments: str) -> bool:
    """Whether a call can be understood: a model that is not held to a schema may write anything."""
    try:
        return isinstance(msgspec.json.decode(arguments or "{}"), dict)
    except (ValueError, RecursionError):
        return False


def _number(call: CallPiece | None) -> int | None:
    return None if call is None else call.number


def _prefix(kind: str, where: dict[str, Any]) -> bytes:
    data = encode({"type": kind, **where})[:-1]
    return b"event: " + kind.encode() + b"\ndata: " + data + b',"sequence_number":'


def _begin(
    request: ResponsesRequest, sampling: SamplingParams, name: str, created: int, model: str
) -> dict[str, Any]:
    """A response whose output is still to come; it repeats what was asked."""
    text = request.text
    text_format = text.format if text is not None and text.format is not None else None
    reasoning = request.reasoning
    return {
        "id": name,
        "object": "response",
        "created_at": created,
        "completed_at": None,
        "status": "in_progress",
        "background": False,
        "error": None,
        "incomplete_details": None,
        "instructions": request.instructions,
        "max_output_tokens": request.max_output_tokens,
        "metadata": request.metadata or {},
        "model": model,
        "output": [],
        "parallel_tool_calls": request.parallel_tool_calls is not False,
        "previous_response_id": request.previous_response_id,
        "reasoning": {
            "effort": reasoning.effort if reasoning else None,
            "summary": None,
        },
        "store": request.store is not False,
        "temperature": sampling.temperature,
        "text": {
            "format": {"type": "text"} if text_format is None else msgspec.to_builtins(text_format)
        },
        "tool_choice": msgspec.to_builtins(request.tool_choice or "auto"),
        "tools": [msgspec.to_builtins(tool) for tool in request.tools or ()],
        "top_logprobs": request.top_logprobs,
        "top_p": sampling.top_p,
        "truncation": "disabled",
        "usage": None,
        "user": request.user,
    }


def _usage(usage: Usage) -> dict[str, Any]:
    return {
        "input_tokens": usage.prompt_tokens,
        "input_tokens_details": {"cached_tokens": usage.cached_tokens, "cache_write_tokens": 0},
        "output_tokens": usage.output_tokens,
        "output_tokens_details": {"reasoning_tokens": usage.reasoning_tokens},
        "total_tokens": usage.prompt_tokens + usage.output_tokens,
    }

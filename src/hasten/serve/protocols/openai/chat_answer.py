"""Answers of chat completions, whole and in chunks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from hasten.serve.jobs import Answer, CallPiece, Ended, Event, Piece, Usage
from hasten.serve.protocols.openai.answer import AnswerForm, ChunkFrame, usage_object
from hasten.serve.protocols.openai.logprobs import chat_logprobs
from hasten.serve.protocols.streaming import encode

__all__ = ["ChatChunks", "render_chat"]


def render_chat(form: AnswerForm, answers: Sequence[Answer], usage: Usage) -> bytes:
    """A whole answer."""
    return encode(
        {
            **form.head("chat.completion"),
            "choices": [_choice(form, answer) for answer in answers],
            "usage": usage_object(usage),
            "system_fingerprint": None,
        }
    )


def _choice(form: AnswerForm, answer: Answer) -> dict[str, Any]:
    message: dict[str, Any] = {
        "role": "assistant",
        "content": None if answer.calls and not answer.content else answer.content,
        "refusal": None,
    }
    if answer.reasoning:
        message |= {"reasoning_content": answer.reasoning, "reasoning": answer.reasoning}
    if answer.calls and form.functions:
        call = answer.calls[0]
        message["function_call"] = {"name": call.name, "arguments": call.arguments}
    elif answer.calls:
        message["tool_calls"] = [
            {
                "id": call.id,
                "type": "function",
                "function": {"name": call.name, "arguments": call.arguments},
            }
            for call in answer.calls
        ]
    return {
        "index": answer.index,
        "message": message,
        "logprobs": form.spell and {"content": chat_logprobs(answer.logprobs, form.spell)},
        "finish_reason": form.reason(answer.reason),
        "stop_reason": answer.stop,
    }


class ChatChunks:
    """A streamed answer.

    A server sends hundreds of chunks a second beside the engine, so what all chunks share is
    prepared once, and the text alone is encoded; `tests` hold the plain way to do it.

    Args:
        form: What is known of the answer.
    """

    def __init__(self, form: AnswerForm) -> None:
        self._form = form
        self._frame = ChunkFrame(form, "chat.completion.chunk")
        self._tail = b'},"logprobs":null,"finish_reason":null}' + self._frame.tail
        self._plain: dict[int, bytes] = {}  # by index, once it has begun: up to a chunk's text
        self._calls: set[tuple[int, int]] = set()  # index and number of those that have begun

    def begin(self) -> bytes:
        """Nothing: the first chunk comes with the first token."""
        return b""

    def event(self, event: Event) -> bytes:
        """The chunks that an event makes."""
        if isinstance(event, Piece):
            plain = self._plain.get(event.index)
            if plain is None or event.reasoning or event.calls or event.logprobs:
                return self._piece(event)
            if self._form.continuous_usage:
                return self._piece(event)
            return plain + encode(event.content) + self._tail if event.content else b""
        if isinstance(event, Ended):
            choice = {
                "index": event.index,
                "delta": {},
                "logprobs": None,
                "finish_reason": self._form.reason(event.reason),
                "stop_reason": event.stop,
            }
            return self._opening(event.index) + self._frame.chunk(choice)
        return self._frame.close(event)

    def failure(self, error: Exception) -> bytes:
        """What is told of an error, and the end."""
        return self._frame.fail(error)

    def _piece(self, piece: Piece) -> bytes:
        opening = self._opening(piece.index)
        self._frame.output_tokens += len(piece.tokens)
        delta: dict[str, Any] = {}
        if piece.reasoning:
            delta |= {"reasoning_content": piece.reasoning, "reasoning": piece.reasoning}
        if piece.calls and self._form.functions:
            delta |= self._function_call(piece)
        elif piece.calls:
            delta["tool_calls"] = [self._call(piece.index, call) for call in piece.calls]
        logprobs = None
        if self._form.spell is not None and piece.logprobs:
            logprobs = {"content": chat_logprobs(piece.logprobs, self._form.spell)}
        if piece.content or (logprobs and not delta):
            delta["content"] = piece.content
        return opening + self._chunk(piece.index, delta, logprobs) if delta else opening

    def _opening(self, index: int) -> bytes:
        """The first chunk of an output, where it has not come yet."""
        if index in self._plain:
            return b""
        self._plain[index] = self._frame.head + b'{"index":%d,"delta":{"content":' % index
        return self._chunk(index, {"role": "assistant", "content": ""})

    def _chunk(
        self, index: int, delta: dict[str, Any], logprobs: dict[str, Any] | None = None
    ) -> bytes:
        choice = {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": None}
        return self._frame.chunk(choice)

    def _call(self, index: int, call: CallPiece) -> dict[str, Any]:
        if (index, call.number) in self._calls:
            return {"index": call.number, "function": {"arguments": call.arguments}}
        self._calls.add((index, call.number))
        function = {"name": call.name, "arguments": call.arguments}
        return {"index": call.number, "id": call.id, "type": "function", "function": function}

    def _function_call(self, piece: Piece) -> dict[str, Any]:
        first = [call for call in piece.calls if call.number == 0]
        if not first:
            return {}
        made = {"arguments": "".join(call.arguments for call in first)}
        if (piece.index, 0) not in self._calls:
            self._calls.add((piece.index, 0))
            made = {"name": first[0].name, **made}
        return {"function_call": made}

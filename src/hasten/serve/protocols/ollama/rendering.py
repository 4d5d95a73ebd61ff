"""Generations as Ollama writes them: one JSON object, or one a line."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from hasten.serve.jobs import Answer, CallPiece, Ended, Event, Piece, Usage
from hasten.serve.protocols.ollama.dialect import error_line
from hasten.serve.protocols.ollama.times import now
from hasten.serve.protocols.streaming import encode
from hasten.types import TokenLogprobs

__all__ = ["ChatWriter", "GenerateWriter", "Writer", "nanoseconds"]

Spell = Callable[[int], bytes]


class Writer:
    """Writes one generation, for a stream (see `EventRenderer`) or as a whole.

    Args:
        model: As the client named it.
        request_id: Told with errors that are no fault of the client's.
        spell: The bytes of a token.
    """

    def __init__(self, model: str, request_id: str, spell: Spell) -> None:
        self._model = model
        self._request_id = request_id
        self._spell = spell
        self._calls = _Calls()
        self._reason = "stop"

    def begin(self) -> bytes:
        """Nothing: lines come with what happens."""
        return b""

    def event(self, event: Event) -> bytes:
        """A line, or nothing."""
        match event:
            case Piece():
                calls = self._calls.add(event.calls) if event.calls else []
                if not (event.content or event.reasoning or calls or event.logprobs):
                    return b""
                return self._line(event.content, event.reasoning, calls, event.logprobs)
            case Ended():
                self._reason = "length" if event.reason == "length" else "stop"
                calls = self._calls.finish()
                return self._line("", "", calls, ()) if calls else b""
            case Usage():
                return encode(self._last("", "", [], (), event)) + b"\n"

    def failure(self, error: Exception) -> bytes:
        """The line that clients raise an error for."""
        return error_line(error, self._request_id)

    def whole(self, answer: Answer, usage: Usage) -> bytes:
        """The answer in one object."""
        self._reason = "length" if answer.reason == "length" else "stop"
        calls = [*self._calls.add(answer.calls), *self._calls.finish()]
        return encode(self._last(answer.content, answer.reasoning, calls, answer.logprobs, usage))

    def _line(
        self,
        content: str,
        reasoning: str,
        calls: list[dict[str, Any]],
        logprobs: Sequence[TokenLogprobs],
    ) -> bytes:
        line = {
            "model": self._model,
            "created_at": now(),
            **self._said(content, reasoning, calls),
            "done": False,
        }
        if logprobs:
            line["logprobs"] = self._told(logprobs)
        return encode(line) + b"\n"

    def _last(
        self,
        content: str,
        reasoning: str,
        calls: list[dict[str, Any]],
        logprobs: Sequence[TokenLogprobs],
        usage: Usage,
    ) -> dict[str, Any]:
        timing = usage.timing
        return {
            "model": self._model,
            "created_at": now(),
            **self._said(content, reasoning, calls),
            "done": True,
            "done_reason": self._reason,
            **({"logprobs": self._told(logprobs)} if logprobs else {}),
            "total_duration": nanoseconds(timing.total),
            "load_duration": nanoseconds(timing.load),
            "prompt_eval_count": usage.prompt_tokens,
            "prompt_eval_duration": nanoseconds(timing.prompt),
            "eval_count": usage.output_tokens,
            "eval_duration": nanoseconds(timing.decode),
        }

    def _said(self, content: str, reasoning: str, calls: list[dict[str, Any]]) -> dict[str, Any]:
        raise NotImplementedError

    def _told(self, logprobs: Sequence[TokenLogprobs]) -> list[dict[str, Any]]:
        return [
            {
                **self._token(one.token, one.logprob),
                "top_logprobs": [self._token(token, value) for token, value in one.top],
            }
            for one in logprobs
        ]

    def _token(self, token: int, logprob: float | None) -> dict[str, Any]:
        text = self._spell(token)
        return {
            "token": text.decode("utf-8", "replace"),
            "logprob": logprob,
            "bytes": list(text),
        }


class GenerateWriter(Writer):
    """For /api/generate."""

    def _said(self, content: str, reasoning: str, calls: list[dict[str, Any]]) -> dict[str, Any]:
        said: dict[str, Any] = {"response": content}
        if reasoning:
            said["thinking"] = reasoning
        if calls:
            said["tool_calls"] = calls
        return said


class ChatWriter(Writer):
    """For /api/chat."""

    def _said(self, content: str, reasoning: str, calls: list[dict[str, Any]]) -> dict[str, Any]:
        message: dict[str, Any] = {"role": "assistant", "content": content}
        if reasoning:
            message["thinking"] = reasoning
        if calls:
            message["tool_calls"] = calls
        return {"message": message}


class _Calls:
    """Gathers the pieces of tool calls, which Ollama tells whole.

    A call that the end of the output cut off is left out: it cannot be told as an object.
    """

    def __init__(self) -> None:
        self._call: CallPiece | None = None
        self._arguments: list[str] = []

    def add(self, pieces: Sequence[CallPiece]) -> list[dict[str, Any]]:
        """Takes pieces in the order they come; gives the calls that they show to be complete."""
        complete = []
        for piece in pieces:
            if self._call is not None and piece.number != self._call.number:
                complete += self.finish()
            self._call = piece
            self._arguments.append(piece.arguments)
        return complete

    def finish(self) -> list[dict[str, Any]]:
        """Gives the last call."""
        call, text = self._call, "".join(self._arguments)
        self._call, self._arguments = None, []
        if call is None:
            return []
        try:
            arguments = msgspec.json.decode(text or "{}")
        except (ValueError, RecursionError):
            return []
        if not isinstance(arguments, dict):
            return []
        function = {"index": call.number, "name": call.name, "arguments": arguments}
        return [{"id": call.id, "function": function}]


def nanoseconds(seconds: float) -> int:
    """A duration as Ollama tells it."""
    return round(seconds * 1e9)

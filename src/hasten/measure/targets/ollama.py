"""Servers that speak Ollama's protocol: /api/chat and /api/generate, streamed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from hasten.errors import UsageError
from hasten.measure.records import Answer
from hasten.measure.targets.http import HttpOptions, HttpTarget
from hasten.measure.targets.replies import Count, expect_success, read, said
from hasten.measure.targets.streams import LineStream
from hasten.measure.targets.target import TargetError
from hasten.measure.workload import Chat, Item, Tensors

__all__ = ["OllamaStream", "OllamaTarget"]

PARTS = {
    "total": "total_duration",
    "load": "load_duration",
    "prefill": "prompt_eval_duration",
    "decode": "eval_duration",
}
"""What a server tells of its time, and its own names for it."""


class OllamaTarget(HttpTarget):
    """Asks for answers as a stream, greedily unless `extra` says otherwise.

    Conversations go to /api/chat, and texts as they are, without a template, to /api/generate.

    Args:
        url: Of the server.
        model: As the server calls it.
        extra: Fields of the request that are added, or replace those here; its "options" are put
            together with them.
        options: How requests are made.
    """

    def __init__(
        self,
        url: str,
        model: str,
        *,
        extra: Mapping[str, Any] | None = None,
        options: HttpOptions | None = None,
    ) -> None:
        super().__init__(url, options)
        self._model = model
        self._extra = dict(extra or {})

    def describe(self) -> Mapping[str, object]:
        """The server, the model, and what is asked for."""
        return {
            "kind": "ollama",
            "url": self.client.url,
            "model": self._model,
            "extra": self._extra,
        }

    async def send(self, work: Item | Tensors, answer: Answer) -> None:
        """Asks for an answer and notes each piece of content, thinking or call."""
        if isinstance(work, Tensors):
            raise UsageError("a server of Ollama's protocol takes prompts, not tensors")
        path, body = self._request(work)
        stream = OllamaStream(answer)
        reply = await self.client.request(
            "POST", path, msgspec.json.encode(body), sink=stream.feed, clock=answer.clock
        )
        expect_success(reply)
        stream.close(reply.at)
        answer.arrive(at=reply.at)

    def _request(self, item: Item) -> tuple[str, dict[str, Any]]:
        extra = dict(self._extra)
        options = {"num_predict": item.output_tokens, "temperature": 0, **extra.pop("options", {})}
        body = {"model": self._model, "stream": True, "options": options}
        if isinstance(item.prompt, Chat):
            messages = [dict(message) for message in item.prompt.messages]
            return "/api/chat", {**body, "messages": messages, **extra}
        if isinstance(item.prompt, str):
            return "/api/generate", {**body, "prompt": item.prompt, "raw": True, **extra}
        raise UsageError("a server of Ollama's protocol takes texts, not tokens")


class _Message(msgspec.Struct):
    content: str | None = None
    thinking: str | None = None
    tool_calls: list[Any] | None = None


class _Line(msgspec.Struct):
    done: bool = False
    done_reason: str | None = None
    message: _Message | None = None
    response: str | None = None
    thinking: str | None = None
    error: Any = None
    prompt_eval_count: Count | None = None
    eval_count: Count | None = None
    total_duration: Count | None = None
    load_duration: Count | None = None
    prompt_eval_duration: Count | None = None
    eval_duration: Count | None = None

    def pieces(self) -> tuple[str, bool]:
        """The content, and whether there is thinking or a call."""
        message = self.message or _Message(self.response, self.thinking)
        return message.content or "", bool(message.thinking or message.tool_calls)


_LINE = msgspec.json.Decoder(_Line)


class OllamaStream:
    """Reads the stream of one answer; each piece counts as a token until the last line counts.

    Args:
        answer: Filled with what comes; its parts are "total", which holds the others, "load",
            "prefill" and "decode".
    """

    def __init__(self, answer: Answer) -> None:
        self._answer = answer
        self._lines = LineStream()
        self._ended = False

    def feed(self, data: bytes, at: float) -> None:
        """Takes bytes that arrived at some time.

        Raises:
            TargetError: They tell of an error, or are no such stream.
        """
        for line in self._lines.feed(data):
            if line.strip():
                self._take(read(line, _LINE, "a line of the stream"), at)

    def close(self, at: float) -> None:
        """Takes the end of the body, and raises TargetError if the stream is not at its end."""
        self.feed(b"\n", at)  # which some servers leave out at the end
        if not self._ended:
            raise TargetError('the stream ended without "done"')

    def _take(self, line: _Line, at: float) -> None:
        if line.error is not None:
            raise TargetError(f"the server broke the stream off: {said(line.error)}")
        text, other = line.pieces()
        if text or other:
            self._answer.arrive(1, text=text, at=at)
        if not line.done:
            return
        self._ended = True
        self._answer.stopped = line.done_reason != "length"
        self._answer.prompt_tokens = line.prompt_eval_count
        self._answer.output_tokens = line.eval_count
        for part, name in PARTS.items():
            nanoseconds = getattr(line, name)
            if nanoseconds is not None:
                self._answer.parts[part] = nanoseconds / 1e9

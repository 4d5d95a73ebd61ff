"""Servers that speak OpenAI's protocol: chat completions and completions, streamed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import msgspec

from hasten.errors import UsageError
from hasten.measure.records import Answer
from hasten.measure.targets.http import HttpOptions, HttpTarget
from hasten.measure.targets.replies import Count, expect_success, read, said
from hasten.measure.targets.streams import EventStream
from hasten.measure.targets.target import TargetError
from hasten.measure.workload import Chat, Item, Tensors

__all__ = ["OpenAiStream", "OpenAiTarget"]

Api = Literal["chat", "completions"]


class OpenAiTarget(HttpTarget):
    """Asks for completions as a stream, greedily unless `extra` says otherwise.

    Conversations go to /v1/chat/completions and other prompts to /v1/completions, unless `api` says
    where all go: texts can be sent as a user's message, but tokens to no chat and conversations to
    no completions.

    Args:
        url: Of the server, with or without "/v1" at its end.
        model: As the server calls it.
        api: "chat" or "completions"; None for what fits a prompt.
        ignore_eos: Ask for the whole length whatever the model says; not all servers know that.
        extra: Fields of the request that are added, or replace those here; None leaves one out.
        options: How requests are made.
    """

    def __init__(
        self,
        url: str,
        model: str,
        *,
        api: Api | None = None,
        ignore_eos: bool = False,
        extra: Mapping[str, Any] | None = None,
        options: HttpOptions | None = None,
    ) -> None:
        super().__init__(url.rstrip("/").removesuffix("/v1"), options)
        self._model = model
        self._api = api
        self._ignore_eos = ignore_eos
        self._extra = dict(extra or {})

    def describe(self) -> Mapping[str, object]:
        """The server, the model, and what is asked for."""
        return {
            "kind": "openai",
            "url": self.client.url,
            "model": self._model,
            "api": self._api or "by prompt",
            "ignore_eos": self._ignore_eos,
            "extra": self._extra,
        }

    async def send(self, work: Item | Tensors, answer: Answer) -> None:
        """Asks for a completion and notes each piece of content, reasoning or call."""
        if isinstance(work, Tensors):
            raise UsageError("a server of OpenAI's protocol takes prompts, not tensors")
        path, prompt = self._prompt(work)
        stream = OpenAiStream(answer)
        reply = await self.client.request(
            "POST",
            path,
            msgspec.json.encode(self._body(prompt, work.output_tokens)),
            sink=stream.feed,
            clock=answer.clock,
        )
        expect_success(reply)
        stream.close(reply.at)
        answer.arrive(at=reply.at)

    def _prompt(self, item: Item) -> tuple[str, dict[str, Any]]:
        """Where to send a prompt, and the fields that hold it."""
        prompt = item.prompt
        chat = isinstance(prompt, Chat) if self._api is None else self._api == "chat"
        if not chat:
            if isinstance(prompt, Chat):
                raise UsageError("a conversation cannot be sent to /v1/completions", do="use chat")
            return "/v1/completions", {"prompt": prompt}
        if isinstance(prompt, tuple):
            raise UsageError("tokens cannot be sent as a chat", do="use completions, or texts")
        if isinstance(prompt, str):
            prompt = Chat(({"role": "user", "content": prompt},))
        messages = [dict(message) for message in prompt.messages]
        return "/v1/chat/completions", {"messages": messages}

    def _body(self, prompt: dict[str, Any], tokens: int) -> dict[str, Any]:
        body = {
            "model": self._model,
            **prompt,
            "max_tokens": tokens,
            "temperature": 0,
            "stream": True,
            "stream_options": {"include_usage": True, "continuous_usage_stats": True},
            **({"ignore_eos": True} if self._ignore_eos else {}),
            **self._extra,
        }
        return {name: value for name, value in body.items() if value is not None}


class _Function(msgspec.Struct):
    name: str | None = None
    arguments: str | None = None


class _Call(msgspec.Struct):
    function: _Function | None = None


class _Delta(msgspec.Struct):
    content: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    tool_calls: list[_Call] | None = None

    def pieces(self) -> tuple[str, bool]:
        """The content, and whether there is reasoning or a call."""
        calls = [call.function for call in self.tool_calls or () if call.function is not None]
        other = self.reasoning_content or self.reasoning
        return self.content or "", bool(other) or any(c.name or c.arguments for c in calls)


class _Choice(msgspec.Struct):
    delta: _Delta | None = None
    text: str | None = None
    finish_reason: str | None = None


class _Usage(msgspec.Struct):
    prompt_tokens: Count | None = None
    completion_tokens: Count | None = None


class _Chunk(msgspec.Struct):
    choices: list[_Choice] | None = None
    usage: _Usage | None = None
    error: Any = None


_CHUNK = msgspec.json.Decoder(_Chunk)


class OpenAiStream:
    """Reads the stream of one answer.

    An event carries as many tokens as the usage has grown since the last one, where the server
    counts all along, else one for each piece.

    Args:
        answer: Filled with what comes.
    """

    def __init__(self, answer: Answer) -> None:
        self._answer = answer
        self._events = EventStream()
        self._counted = 0  # tokens of the events so far
        self._ended = False

    def feed(self, data: bytes, at: float) -> None:
        """Takes bytes that arrived at some time.

        Raises:
            TargetError: They tell of an error, or are no such stream.
        """
        for event in self._events.feed(data):
            if event == b"[DONE]":
                self._ended = True
            else:
                self._take(read(event, _CHUNK, "a chunk of the stream"), at)

    def close(self, at: float) -> None:
        """Takes the end of the body, and raises TargetError if the stream is not at its end."""
        self.feed(b"\n\n", at)  # which some servers leave out at the end
        if not self._ended:
            raise TargetError("the stream ended without [DONE] or a finish reason")

    def _take(self, chunk: _Chunk, at: float) -> None:
        if chunk.error is not None:
            raise TargetError(f"the server broke the stream off: {said(chunk.error)}")
        total = None
        if chunk.usage is not None:
            total = self._answer.output_tokens = chunk.usage.completion_tokens
            self._answer.prompt_tokens = chunk.usage.prompt_tokens
        for choice in chunk.choices or ():
            text, other = choice.delta.pieces() if choice.delta else (choice.text or "", False)
            if text or other:
                tokens = 1 if total is None else max(total - self._counted, not self._counted)
                self._counted += tokens
                self._answer.arrive(tokens, text=text, at=at)
            if choice.finish_reason is not None:
                self._ended = True
                self._answer.stopped = choice.finish_reason != "length"

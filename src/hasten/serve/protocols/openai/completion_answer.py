"""Answers of completions, whole and in chunks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from hasten.serve.jobs import Answer, Ended, Event, Piece, Usage
from hasten.serve.protocols.openai.answer import AnswerForm, ChunkFrame, usage_object
from hasten.serve.protocols.openai.logprobs import LegacyLogprobs
from hasten.serve.protocols.streaming import encode

__all__ = ["CompletionChunks", "Echo", "render_completion"]


@dataclass(frozen=True, slots=True)
class Echo:
    """A prompt that the answer begins with.

    Attributes:
        text: Of the prompt.
        silent: The client wants nothing else (`max_tokens` 0); the one token that the engine
            makes in any case is left out.
    """

    text: str
    silent: bool


def render_completion(
    form: AnswerForm,
    echoes: Sequence[Echo],
    outputs: int,
    answers: Sequence[Answer],
    usage: Usage,
) -> bytes:
    """A whole answer.

    Args:
        form: What is known of it.
        echoes: One a prompt where prompts are to be shown, else empty.
        outputs: How many each prompt has.
        answers: All outputs of the first prompt, then those of the next.
        usage: What they took.
    """
    choices = []
    for answer in answers:
        echo = echoes[answer.index // outputs] if echoes else None
        # The prompt's log probabilities come with its first output.
        prompt = answers[answer.index - answer.index % outputs].prompt_logprobs if echo else ()
        shown = _silenced(answer) if echo and echo.silent else answer
        tokens = (*prompt, *shown.logprobs)
        choices.append(
            {
                "index": answer.index,
                "text": (echo.text if echo else "") + shown.content,
                "logprobs": form.spell and LegacyLogprobs(form.spell).add(tokens),
                "finish_reason": form.reason(shown.reason),
                "stop_reason": shown.stop,
            }
        )
    if echoes and echoes[0].silent:
        usage = replace(usage, output_tokens=0)
    head = form.head("text_completion")
    return encode({**head, "choices": choices, "usage": usage_object(usage)})


def _silenced(answer: Answer) -> Answer:
    return replace(answer, content="", logprobs=(), reason="length", stop=None)


class CompletionChunks:
    """A streamed answer; see `ChatChunks` for why parts are prepared.

    Args:
        form: What is known of it.
        echoes: One a prompt where prompts are to be shown, else empty.
        outputs: How many each prompt has.
    """

    def __init__(self, form: AnswerForm, echoes: Sequence[Echo], outputs: int) -> None:
        self._form = form
        self._echoes = echoes
        self._outputs = outputs
        self._silent = bool(echoes) and echoes[0].silent
        self._frame = ChunkFrame(form, "text_completion")
        self._tail = b',"logprobs":null,"finish_reason":null}' + self._frame.tail
        self._plain: dict[int, bytes] = {}  # by index: up to a chunk's text
        self._logprobs: dict[int, LegacyLogprobs] = {}

    def begin(self) -> bytes:
        """Nothing: the first chunk comes with the first token."""
        return b""

    def event(self, event: Event) -> bytes:
        """The chunks that an event makes."""
        if isinstance(event, Piece):
            plain = self._plain.get(event.index)
            if plain is None or event.logprobs or self._silent or self._form.continuous_usage:
                return self._piece(event)
            return plain + encode(event.content) + self._tail if event.content else b""
        if isinstance(event, Ended):
            reason = "length" if self._silent else self._form.reason(event.reason)
            stop = None if self._silent else event.stop
            opening = self._piece(Piece(event.index))
            return opening + self._chunk(event.index, "", None, reason, stop_reason=stop)
        return self._frame.close(replace(event, output_tokens=0) if self._silent else event)

    def failure(self, error: Exception) -> bytes:
        """What is told of an error, and the end."""
        return self._frame.fail(error)

    def _piece(self, piece: Piece) -> bytes:
        text = ""
        if piece.index not in self._plain:
            self._plain[piece.index] = self._frame.head + b'{"index":%d,"text":' % piece.index
            if self._echoes:
                text = self._echoes[piece.index // self._outputs].text
        entries = piece.prompt_logprobs if self._echoes else ()
        if not self._silent:
            text += piece.content
            entries = (*entries, *piece.logprobs)
            self._frame.output_tokens += len(piece.tokens)
        logprobs = None
        if self._form.spell is not None and entries:
            made = self._logprobs.setdefault(piece.index, LegacyLogprobs(self._form.spell))
            logprobs = made.add(entries)
        return self._chunk(piece.index, text, logprobs, None) if text or logprobs else b""

    def _chunk(
        self,
        index: int,
        text: str,
        logprobs: dict[str, list[Any]] | None,
        reason: str | None,
        **extra: str | None,
    ) -> bytes:
        choice = {"index": index, "text": text, "logprobs": logprobs, "finish_reason": reason}
        return self._frame.chunk({**choice, **extra})

"""What answers of chat completions and completions have in common."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from hasten.serve.jobs import EndReason, Usage
from hasten.serve.protocols.openai.errors import stream_error
from hasten.serve.protocols.streaming import encode

__all__ = ["DONE", "AnswerForm", "ChunkFrame", "usage_object"]

DONE = b"data: [DONE]\n\n"
"""The last event of a stream."""


@dataclass(frozen=True, slots=True)
class AnswerForm:
    """What is known of an answer before it comes, and what the client wants to see of it.

    Attributes:
        id: Of the answer.
        request_id: Of the HTTP request.
        created: When, in Unix seconds.
        model: What answers.
        spell: The bytes of a token, where the client wants log probabilities.
        include_usage: A stream ends with what it took.
        continuous_usage: Each chunk says what it took so far.
        prompt_tokens: Length of the prompt.
        functions: The client gave functions rather than tools, and expects such calls.
    """

    id: str
    request_id: str
    created: int
    model: str
    spell: Callable[[int], bytes] | None = None
    include_usage: bool = False
    continuous_usage: bool = False
    prompt_tokens: int = 0
    functions: bool = False

    def head(self, kind: str) -> dict[str, Any]:
        """The fields that an answer of some kind, or each of its chunks, begins with."""
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model}

    def reason(self, reason: EndReason) -> str:
        """The end of an output, as the client knows it."""
        return "function_call" if reason == "tool_calls" and self.functions else reason


def usage_object(usage: Usage) -> dict[str, Any]:
    """What an answer took."""
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.output_tokens,
        "total_tokens": usage.prompt_tokens + usage.output_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cached_tokens},
        "completion_tokens_details": {"reasoning_tokens": usage.reasoning_tokens},
    }


class ChunkFrame:
    """What all chunks of a stream share, prepared once.

    Args:
        form: What is known of the answer.
        kind: Of the chunks.

    Attributes:
        output_tokens: How many came so far, for clients that count all along.
        head: Up to the first choice.
        tail: From the end of the last choice on.
    """

    def __init__(self, form: AnswerForm, kind: str) -> None:
        self._form = form
        self.output_tokens = 0
        self.head = b"data: " + encode(form.head(kind))[:-1] + b',"choices":['
        self.tail = b'],"usage":null}\n\n' if form.include_usage else b"]}\n\n"

    def chunk(self, choice: dict[str, Any]) -> bytes:
        """A chunk with one choice."""
        tail = self.tail
        if self._form.continuous_usage:
            prompt, output = self._form.prompt_tokens, self.output_tokens
            counts = {"prompt_tokens": prompt, "completion_tokens": output}
            tail = b'],"usage":' + encode({**counts, "total_tokens": prompt + output}) + b"}\n\n"
        return self.head + encode(choice) + tail

    def close(self, usage: Usage) -> bytes:
        """The end of the stream."""
        if not self._form.include_usage:
            return DONE
        return self.head + b'],"usage":' + encode(usage_object(usage)) + b"}\n\n" + DONE

    def fail(self, error: Exception) -> bytes:
        """What is told of an error, and the end."""
        return stream_error(error, self._form.request_id) + DONE

"""The lines that a batch writes."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import NamedTuple

import msgspec

from hasten.serve.protocols.streaming import encode

__all__ = ["RUN_DIGITS", "Seen", "Tally", "make_id", "render_answer", "render_error"]

RUN_DIGITS = 16
_ID = re.compile(rf"batch_req_([0-9a-f]{{{RUN_DIGITS}}})_([1-9][0-9]{{0,17}})")


class _Response(msgspec.Struct):
    status_code: int
    request_id: str
    body: msgspec.Raw


class _Error(msgspec.Struct):
    code: str
    message: str


class _Answer(msgspec.Struct):
    id: str
    custom_id: str | None
    response: _Response | None
    error: _Error | None


class _Details(msgspec.Struct):
    cached_tokens: int = 0
    reasoning_tokens: int = 0


class _Usage(msgspec.Struct):
    """Usage of any of the endpoints."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    prompt_tokens_details: _Details | None = None
    completion_tokens_details: _Details | None = None
    input_tokens_details: _Details | None = None
    output_tokens_details: _Details | None = None


class _Body(msgspec.Struct):
    usage: _Usage | None = None


_ANSWER = msgspec.json.Decoder(_Answer)
_BODY = msgspec.json.Decoder(_Body)


class Seen(NamedTuple):
    """What an answer says of itself.

    Attributes:
        run: The run that it belongs to.
        number: Of its line of the input.
        failed: Whether it is an error.
    """

    run: str
    number: int
    failed: bool


@dataclass(slots=True)
class Tally:
    """What the answered lines of a batch amount to.

    Attributes:
        answered: Lines with an answer, failed ones included.
        failed: Those whose answer is an error.
        prompt_tokens: Of all prompts or texts.
        cached_tokens: Those of them that the prefix cache held.
        output_tokens: Of all outputs.
        reasoning_tokens: Those of them that belong to reasoning.
    """

    answered: int = 0
    failed: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    reasoning_tokens: int = 0

    def count(self, line: bytes) -> Seen:
        """Adds an answer, and says which.

        Raises:
            ValueError: If it is none; nothing is added.
        """
        try:
            answer = _ANSWER.decode(line)
        except (msgspec.DecodeError, RecursionError, UnicodeError) as error:
            raise ValueError(f"no answer of a batch: {error}") from error
        match = _ID.fullmatch(answer.id)
        if match is None:
            raise ValueError(f"no id of an answer: {answer.id!r}")
        failed = answer.response is None or answer.response.status_code >= 400
        self.answered += 1
        self.failed += failed
        if answer.response is not None and not failed:
            self._add_usage(answer.response.body)
        return Seen(match[1], int(match[2]), failed)

    def _add_usage(self, body: msgspec.Raw) -> None:
        try:
            usage = _BODY.decode(body).usage
        except msgspec.DecodeError:
            return  # an endpoint that tells of its work in another way
        if usage is None:
            return
        self.prompt_tokens += usage.prompt_tokens or usage.input_tokens
        self.output_tokens += usage.completion_tokens or usage.output_tokens
        for details in (usage.prompt_tokens_details, usage.input_tokens_details):
            self.cached_tokens += details.cached_tokens if details else 0
        for details in (usage.completion_tokens_details, usage.output_tokens_details):
            self.reasoning_tokens += details.reasoning_tokens if details else 0


def make_id(run: str, number: int) -> str:
    """The id of a line's answer: the run that it belongs to and the line's number."""
    return f"batch_req_{run}_{number}"


def render_answer(id_: str, custom_id: str, status: int, request_id: str, body: bytes) -> bytes:
    """The line of a request that an endpoint answered.

    Args:
        id_: From `make_id`.
        custom_id: Of the line of the input.
        status: Of HTTP.
        request_id: Of the call that was answered.
        body: JSON.
    """
    if b"\n" in body or b"\r" in body:  # between JSON's tokens; in its strings they are escaped
        body = msgspec.json.format(body, indent=-1)
    response = _Response(status, request_id, msgspec.Raw(body))
    return encode(_Answer(id_, custom_id, response, None)) + b"\n"


def render_error(id_: str, custom_id: str | None, code: str, message: str) -> bytes:
    """The line of a request that no endpoint saw."""
    return encode(_Answer(id_, custom_id, None, _Error(code, message))) + b"\n"

"""What a line of a batch asks for."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import msgspec

__all__ = ["LineError", "LineRequest", "custom_id", "parse"]

_NULL = msgspec.Raw(b"null")


class _Fields(msgspec.Struct):
    """The fields of a line, each still to be looked at."""

    custom_id: msgspec.Raw = _NULL
    method: msgspec.Raw = _NULL
    url: msgspec.Raw = _NULL
    body: msgspec.Raw = _NULL


_FIELDS = msgspec.json.Decoder(_Fields)
_TEXT = msgspec.json.Decoder(str)
_BODY = msgspec.json.Decoder(dict[str, msgspec.Raw])
_FAULTS = (msgspec.DecodeError, RecursionError, UnicodeError)


class LineError(Exception):
    """A line that no endpoint sees.

    Args:
        code: As in the answer's error.
        message: What is wrong and what is allowed.
        custom_id: Of the line, as far as it has one.
    """

    def __init__(self, code: str, message: str, custom_id: str | None = None) -> None:
        self.code = code
        self.message = message
        self.custom_id = custom_id
        super().__init__(message)


@dataclass(frozen=True, slots=True)
class LineRequest:
    """What a well-formed line asks for.

    Attributes:
        custom_id: The client's name of the line.
        url: Of the endpoint.
        model: That the body names; None where it names none.
        body: For the endpoint.
    """

    custom_id: str
    url: str
    model: str | None
    body: bytes


def custom_id(text: bytes) -> str | None:
    """The custom_id of a line, whatever else is wrong with it; None where it has none."""
    try:
        return _text(_FIELDS.decode(text).custom_id) or None
    except _FAULTS:
        return None


def parse(text: bytes, urls: Collection[str], model: str | None) -> LineRequest:
    """Reads one line.

    Args:
        text: Of the line.
        urls: The endpoints that a line may name.
        model: Replaces the model of the body; None leaves it as it is.

    Raises:
        LineError: If no endpoint can be asked.
    """
    try:
        fields = _FIELDS.decode(text)
    except _FAULTS as error:
        raise LineError("invalid_json_line", f"not a JSON object: {error}") from None
    name = _text(fields.custom_id)
    if not name:
        raise LineError("missing_custom_id", "custom_id must be a text that is not empty")
    method, url = _text(fields.method), _text(fields.url)
    if method != "POST":
        raise LineError("invalid_method", "method must be 'POST'", name)
    if url is None or url not in urls:
        allowed = ", ".join(sorted(urls))
        raise LineError("invalid_url", f"url is {url!r}; allowed: {allowed}", name)
    try:
        body = _BODY.decode(fields.body)
    except _FAULTS:
        raise LineError("invalid_body", "body must be a JSON object", name) from None
    if bytes(body.get("stream", _NULL)) == b"true":
        raise LineError("stream_not_supported", "a batch cannot stream; leave out stream", name)
    named = _text(body.get("model", _NULL))
    if model is None:
        return LineRequest(name, url, named, bytes(fields.body))
    body["model"] = msgspec.Raw(msgspec.json.encode(model))
    return LineRequest(name, url, named, msgspec.json.encode(body))


def _text(value: msgspec.Raw) -> str | None:
    """A JSON string; None for anything else."""
    try:
        return _TEXT.decode(value)
    except _FAULTS:
        return None

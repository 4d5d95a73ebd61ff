"""What servers answer, read with suspicion: JSON of a given form, and refusals."""

from __future__ import annotations

from typing import Annotated, TypeVar

import msgspec

from hasten.measure.targets.http import Reply
from hasten.measure.targets.target import TargetError

__all__ = ["NOTHING", "Count", "expect_success", "read", "refusal", "said"]

T = TypeVar("T")
Count = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]
"""A number that cannot be negative, in what is read; JSON's may have any number of digits."""

NOTHING = msgspec.Raw(b"")
"""Of a field that is only looked for, where it is missing."""
_MALFORMED = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
LONGEST = 500
"""Characters that are told of what a server said."""


def read(data: bytes, decoder: msgspec.json.Decoder[T], what: str) -> T:
    """Reads JSON of the decoder's form.

    Raises:
        TargetError: It is none; `what` names it.
    """
    try:
        return decoder.decode(data)
    except _MALFORMED as error:
        raise TargetError(f"{what} is not as its protocol has it: {error}: {said(data)}") from error


def expect_success(reply: Reply) -> None:
    """Raises TargetError with the status and what the server said, unless the status is 2xx."""
    if not 200 <= reply.status < 300:
        raise refusal(reply.status, reply.body)


def refusal(status: int, body: bytes) -> TargetError:
    """The error of an answer that refuses a request."""
    try:
        told = said(msgspec.json.decode(body))
    except _MALFORMED:
        told = said(body)
    return TargetError(f"status {status}: {told}")


def said(error: object) -> str:
    """The message in what protocols tell of an error, as in `{"error": {"message": ...}}`."""
    if isinstance(error, dict):
        for name in ("error", "message", "detail"):
            if error.get(name):
                return said(error[name])
    if isinstance(error, bytes):
        error = error.decode("utf-8", "replace")
    text = " ".join((error if isinstance(error, str) else str(error)).split())
    if len(text) <= LONGEST:
        return text
    return f"{text[: LONGEST // 2]} ... {text[-LONGEST // 2 :]}"  # a traceback ends with the error

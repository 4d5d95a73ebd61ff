"""Bodies of requests to structs: what is wrong becomes an error, what is unknown gets named."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from functools import cache
from typing import Any, TypeVar

import msgspec

from hasten.errors import TooLargeError, UsageError

__all__ = [
    "MAX_DEPTH",
    "FieldError",
    "cache_wanted",
    "check_count",
    "check_depth",
    "convert",
    "extra_headers",
    "read",
]

MAX_DEPTH = 64
"""How deep the values of a request may be nested."""

_T = TypeVar("_T", bound=msgspec.Struct)

_MOST_MARKS = 1 << 20
"""Commas and brackets of a body: each may begin a value, which takes far more room than they do."""

_PLAIN_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}", re.ASCII)
_MOST_NAMES = 32
_PLACE = re.compile(r" - at (?:`key` in )?`\$\.?([^`]*)`$")
_MISSING = re.compile(r"missing required field `([^`]*)`$")


class FieldError(UsageError):
    """A field of the request is not what it must be.

    Args:
        field: Its path, as in "messages[0].content"; empty for the body as a whole.
        what: What was wrong with it, with the value that was found.
        allowed: What would have been accepted.
        do: What to do about it.
    """

    def __init__(
        self, field: str, what: str, *, allowed: str | None = None, do: str | None = None
    ) -> None:
        super().__init__(f"{field}: {what}" if field else what, allowed=allowed, do=do)
        self.field = field


def read(body: bytes, kind: type[_T]) -> tuple[_T, list[str]]:
    """Reads a JSON object.

    Args:
        body: UTF-8 text.
        kind: What it holds.

    Returns:
        The struct, and the names of the object's fields that the struct does not have.

    Raises:
        UsageError: The body is no JSON, or a field is not what it must be; the error says where.
        TooLargeError: It holds too many values.
    """
    if not body:
        raise UsageError("the request has no body", allowed="a JSON object")
    marks = sum(map(body.count, (b",", b"[", b"{"))) if len(body) > _MOST_MARKS else 0
    if marks > _MOST_MARKS:
        raise TooLargeError(
            f"the body has {marks} commas and brackets",
            allowed=f"up to {_MOST_MARKS}",
            do="spread it over several requests",
        )
    try:
        value = msgspec.json.decode(body)
    except RecursionError as error:
        raise _too_deep() from error
    except ValueError as error:
        raise UsageError(f"the body is no JSON that can be read: {error}") from error
    if not isinstance(value, dict):
        raise UsageError("the body is no JSON object", allowed="a JSON object")
    check_depth(value)
    return convert(value, kind)


def convert(value: Mapping[str, Any], kind: type[_T], *, place: str = "") -> tuple[_T, list[str]]:
    """The same for an object that is decoded already, found at a place such as "options"."""
    try:
        struct = msgspec.convert(value, kind, str_keys=True)
    except ValueError as error:
        raise _located(str(error), place) from None
    known = _names(kind)
    return struct, [name for name in value if name not in known]


@cache
def _names(kind: type[msgspec.Struct]) -> frozenset[str]:
    return frozenset(field.encode_name for field in msgspec.structs.fields(kind))


def cache_wanted(headers: Mapping[str, str]) -> bool:
    """Whether a request's headers let its answer come from the response cache."""
    directives = headers.get("cache-control", "").lower()
    return "no-cache" not in directives and "no-store" not in directives


def extra_headers(ignored: Iterable[str], cache: str = "off") -> dict[str, str]:
    """Headers that name what the server did not heed, and what the response cache did.

    The names come from the client, so only plain ones appear, and not too many.
    """
    headers = {} if cache == "off" else {"x-hasten-cache": cache}
    if plain := sorted({name for name in ignored if _PLAIN_NAME.fullmatch(name)}):
        headers["x-hasten-ignored"] = ", ".join(plain[:_MOST_NAMES])
    return headers


def check_count(count: int, limit: int, field: str, things: str) -> None:
    """Refuses more of something than the server takes.

    Raises:
        FieldError: `count` is above `limit`.
    """
    if count > limit:
        raise FieldError(field, f"{count} {things}", allowed=f"up to {limit}")


def check_depth(value: object, field: str = "") -> None:
    """Refuses a value that is nested deeper than `MAX_DEPTH`.

    Raises:
        FieldError: It is; names the field.
    """
    layer = [value]
    for _ in range(MAX_DEPTH):
        layer = [
            item
            for outer in layer
            if isinstance(outer, dict | list)
            for item in (outer.values() if isinstance(outer, dict) else outer)
            if isinstance(item, dict | list)
        ]
        if not layer:
            return
    raise _too_deep(field)


def _located(message: str, place: str) -> FieldError:
    match = _PLACE.search(message)
    reason = message[: match.start()] if match else message
    missing = _MISSING.search(reason)
    names = (place, match[1] if match else "", missing[1] if missing else "")
    return FieldError(".".join(filter(None, names)), "it is missing" if missing else reason)


def _too_deep(field: str = "") -> FieldError:
    return FieldError(field, "it is nested too deep", allowed=f"values {MAX_DEPTH} deep")

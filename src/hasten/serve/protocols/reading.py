"""Bodies of requests to structs: what is wrong becomes an error, what is unknown gets named."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

import msgspec

from hasten.errors import UsageError

__all__ = ["MAX_DEPTH", "cache_wanted", "convert", "extra_headers", "read"]

MAX_DEPTH = 64
"""How deep the values of a request may be nested."""

_T = TypeVar("_T", bound=msgspec.Struct)

_PLAIN_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}", re.ASCII)
_MOST_NAMES = 32
_PLACE = re.compile(r" - at (?:`key` in )?`\$\.?([^`]*)`$")


def read(body: bytes, kind: type[_T]) -> tuple[_T, list[str]]:
    """Reads a JSON object.

    Args:
        body: UTF-8 text.
        kind: What it holds.

    Returns:
        The struct, and the names of the object's fields that the struct does not have.

    Raises:
        UsageError: The body is no JSON, or a field is not what it must be; the error says where.
    """
    if not body:
        raise UsageError("the request has no body", allowed="a JSON object")
    try:
        value = msgspec.json.decode(body)
    except RecursionError as error:
        raise _too_deep() from error
    except ValueError as error:
        raise UsageError(f"the body is no JSON that can be read: {error}") from error
    if not isinstance(value, dict):
        raise UsageError("the body is no JSON object", allowed="a JSON object")
    _check_depth(value)
    return convert(value, kind)


def convert(value: Mapping[str, Any], kind: type[_T], *, place: str = "") -> tuple[_T, list[str]]:
    """The same for an object that is decoded already, found at a place such as "options"."""
    try:
        struct = msgspec.convert(value, kind)
    except ValueError as error:
        raise _located(str(error), place) from error
    known = {field.encode_name for field in msgspec.structs.fields(kind)}
    return struct, [name for name in value if name not in known]


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


def _located(message: str, place: str) -> UsageError:
    match = _PLACE.search(message)
    path = ".".join(filter(None, (place, match[1] if match else "")))
    reason = message[: match.start()] if match else message
    return UsageError(f"{path}: {reason}" if path else reason)


def _check_depth(value: object) -> None:
    layer = [value]
    for _ in range(MAX_DEPTH):
        layer = [
            item
            for outer in layer
            if isinstance(outer, dict | list)
            for item in (outer.values() if isinstance(outer, dict) else outer)
        ]
        if not layer:
            return
    raise _too_deep()


def _too_deep() -> UsageError:
    return UsageError("the body is nested too deep", allowed=f"values {MAX_DEPTH} deep")

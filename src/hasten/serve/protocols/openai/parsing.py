"""From bodies to checked requests, and what several endpoints read alike."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Generic, TypeVar

import msgspec

from hasten.errors import AccessError
from hasten.serve.endpoint import Call
from hasten.serve.protocols.openai.errors import FieldError
from hasten.serve.protocols.openai.schema import ApiRequest, Generating, PromptItems

__all__ = [
    "MAX_DEPTH",
    "Parsed",
    "RequestDecoder",
    "asked_priority",
    "cache_wanted",
    "check_count",
    "check_depth",
    "extra_headers",
    "read_prompts",
]

MAX_DEPTH = 64
"""How deep values of any shape (schemas, tools, template values) may be nested."""

_PLACE = re.compile(r" - at (?:`key` in )?`\$\.?(?P<path>[^`]*)`$")
_MISSING = re.compile(r"missing required field `(?P<name>[^`]*)`")
_LONGEST_IGNORED = 1024


R = TypeVar("R", bound=ApiRequest)


@dataclass(frozen=True, slots=True)
class Parsed(Generic[R]):
    """A request, as far as its fields can be checked one by one.

    Attributes:
        request: What was asked.
        ignored: Names of its fields that mean nothing here.
    """

    request: R
    ignored: tuple[str, ...]


class RequestDecoder(Generic[R]):
    """Reads the bodies of one endpoint.

    Args:
        kind: The struct that they hold.
    """

    def __init__(self, kind: type[R]) -> None:
        self._kind = kind
        self._decoder = msgspec.json.Decoder(kind)
        self._fields = msgspec.json.Decoder(dict[str, msgspec.Raw])

    def decode(self, body: bytes) -> Parsed[R]:
        """Reads a body.

        Raises:
            FieldError: It is not JSON, or a field is not what it should be.
        """
        try:
            request = self._decoder.decode(body)
            fields = self._fields.decode(body)
            self._refuse(fields)
        except msgspec.ValidationError as error:
            raise _invalid(str(error)) from None
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise FieldError(None, f"the body is not JSON: {error}") from None
        except RecursionError:
            raise FieldError(
                None, "the body is nested too deep", allowed=f"values {MAX_DEPTH} deep"
            ) from None
        known = {*self._kind.__struct_encode_fields__, *self._kind.HARMLESS, *self._kind.REFUSED}
        return Parsed(request, tuple(name for name in fields if name not in known))

    def _refuse(self, fields: Mapping[str, msgspec.Raw]) -> None:
        for name, harmless in self._kind.REFUSED.items():
            if name in fields:
                value = msgspec.json.decode(fields[name])
                if value is not None and value not in harmless:
                    allowed = " or ".join(msgspec.json.encode(v).decode() for v in harmless)
                    raise FieldError(
                        name,
                        f"{msgspec.json.encode(value).decode():.60} is not supported",
                        allowed=allowed or None,
                        do="leave it out",
                    )


def _invalid(message: str) -> FieldError:
    """Of msgspec's message: the field that it names, and what is wrong with it."""
    place = _PLACE.search(message)
    path = place["path"] if place else ""
    reason = message[: place.start()] if place else message
    if missing := _MISSING.search(reason):
        path = f"{path}.{missing['name']}" if path else missing["name"]
        return FieldError(path, "it is missing")
    return FieldError(path or None, reason)


def check_depth(value: object, field: str) -> None:
    """Refuses a value of any shape that is nested deeper than `MAX_DEPTH`.

    Raises:
        FieldError: It is.
    """
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
    raise FieldError(field, "it is nested too deep", allowed=f"values {MAX_DEPTH} deep")


def check_count(count: int, limit: int, field: str, things: str) -> None:
    """Refuses more of something than the server takes.

    Raises:
        FieldError: `count` is above `limit`.
    """
    if count > limit:
        raise FieldError(field, f"{count} {things}", allowed=f"up to {limit}")


def asked_priority(request: Generating, call: Call) -> int:
    """The priority that a request may give itself: nobody gets ahead of other clients that way.

    Raises:
        AccessError: It asks to run before others, and its client may not.
    """
    priority = request.priority or 0
    if priority < 0 and not call.client.admin:
        raise AccessError(f"priority is {priority}", allowed="0 (first) or more for this API key")
    return priority


def cache_wanted(call: Call) -> bool:
    """Whether the headers let an answer come from the response cache."""
    directives = call.headers.get("cache-control", "").lower()
    return "no-cache" not in directives and "no-store" not in directives


def extra_headers(ignored: tuple[str, ...], cache: str = "off") -> dict[str, str]:
    """Headers that say what was ignored and what the response cache did."""
    headers = {} if cache == "off" else {"x-hasten-cache": cache}
    # Names come from the client, and headers hold printable ASCII only.
    names = [name for name in ignored if name.isascii() and name.isprintable()]
    if text := ", ".join(names)[:_LONGEST_IGNORED]:
        headers["x-hasten-ignored"] = text
    return headers


def read_prompts(asked: str | PromptItems, field: str) -> list[str] | list[tuple[int, ...]]:
    """Tells a text, texts, tokens and lists of tokens apart.

    Raises:
        FieldError: The list is mixed, or one of its lists is not of tokens.
    """
    if isinstance(asked, str):
        return [asked]
    texts = [item for item in asked if isinstance(item, str)]
    if len(texts) == len(asked):
        return texts
    tokens = [item for item in asked if isinstance(item, int)]
    if len(tokens) == len(asked):
        if min(tokens) < 0:
            raise FieldError(field, f"it holds the token {min(tokens)}", allowed="0 or more")
        return [tuple(tokens)]
    lists = [tuple(item) for item in asked if isinstance(item, list)]
    if len(lists) < len(asked):
        raise FieldError(
            field, "it holds different things", allowed="texts, tokens, or lists of tokens"
        )
    if () in lists:
        raise FieldError(f"{field}[{lists.index(())}]", "it is empty", allowed="a token or more")
    return lists

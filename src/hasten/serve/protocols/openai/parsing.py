"""What the endpoints of OpenAI's protocol read alike."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, TypeVar

import msgspec

from hasten.errors import AccessError
from hasten.serve.endpoint import Call
from hasten.serve.protocols.openai.schema import ApiRequest, Generating, PromptItems
from hasten.serve.protocols.reading import FieldError, read

__all__ = ["Parsed", "asked_priority", "read_prompts", "read_request"]

R = TypeVar("R", bound=ApiRequest)


@dataclass(frozen=True, slots=True)
class Parsed(Generic[R]):
    """A request, as far as its fields can be checked one by one.

    Attributes:
        request: What was asked.
        ignored: Names of its fields that mean nothing here.
    """

    request: R
    ignored: list[str]


def read_request(body: bytes, kind: type[R]) -> Parsed[R]:
    """Reads a body.

    Raises:
        UsageError: It is not JSON, a field is not what it should be, or it is not supported.
    """
    request, unknown = read(body, kind)
    if refused := kind.REFUSED.keys() & set(unknown):
        values = msgspec.json.decode(body)
        for name in sorted(refused):
            _check_harmless(name, values[name], kind)
    known = kind.HARMLESS | kind.REFUSED.keys()
    return Parsed(request, [name for name in unknown if name not in known])


def _check_harmless(name: str, value: object, kind: type[ApiRequest]) -> None:
    harmless = kind.REFUSED[name]
    if value is not None and value not in harmless:
        raise FieldError(
            name,
            f"{msgspec.json.encode(value).decode():.60} is not supported",
            allowed=" or ".join(msgspec.json.encode(one).decode() for one in harmless) or None,
            do="leave it out",
        )


def asked_priority(request: Generating, call: Call) -> int:
    """The priority that a request may give itself: nobody gets ahead of other clients that way.

    Raises:
        AccessError: It asks to run before others, and its client may not.
    """
    priority = request.priority or 0
    if priority < 0 and not call.client.admin:
        raise AccessError(f"priority is {priority}", allowed="0 (first) or more for this API key")
    return priority


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

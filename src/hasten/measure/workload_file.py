"""Workloads from files: JSON Lines of prompts or recorded requests, and ShareGPT conversations."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from hasten.errors import UsageError
from hasten.measure.workload import Chat, Item, Session, Turn, Work, Workload

__all__ = ["read_workload"]

MAX_CHARACTERS = 1 << 30
MAX_REQUESTS = 1_000_000
MAX_TOKENS = 1 << 24
EXPECTED = '{"prompt": "text", "max_tokens": 64}'
KEYS = ("prompt", "messages", "text", "tokens")
SPEAKERS = {"human": "user", "user": "user", "gpt": "assistant", "chatgpt": "assistant"}
SPEAKERS |= {"assistant": "assistant", "bot": "assistant", "model": "assistant"}

Count = Callable[[str], int]


def read_workload(
    path: Path,
    *,
    output_tokens: int,
    warmup: int,
    limit: int | None = None,
    turns: int = 1,
    count: Count | None = None,
) -> Workload:
    """Reads requests from a file.

    A line of a JSON Lines file holds one of "prompt" (what a user says), "messages" (a
    conversation), "text" (to go on with) and "tokens" (ids); "max_tokens" may be missing, as may
    "at", the second at which it was sent, which all lines have or none. Other keys are
    refused, so that a misspelt one is not ignored. A file that begins with "[" is one of ShareGPT:
    entries with "conversations" of "from" and "value".

    The warm-up takes its requests from the end of the file and does not count them.

    Args:
        path: The file, UTF-8.
        output_tokens: Tokens to ask for where the file does not say.
        warmup: Requests that do not count.
        limit: Most requests that count; None takes all.
        turns: Messages of a user at most in a conversation of ShareGPT; with 1, requests are their
            first messages alone.
        count: Tells the tokens of an answer of ShareGPT, which are as many as will be asked for;
            None asks for `output_tokens`.

    Raises:
        UsageError: The file cannot be read, is not as described, or there are too few requests.
    """
    text = _read(path)
    works: list[Work] = []
    times: list[float] = []
    if text.lstrip()[:1] == "[":
        said = (_conversation(entry, output_tokens, turns, count) for entry in _entries(path, text))
        works += itertools.islice(filter(None, said), MAX_REQUESTS)
    else:
        for number, line in enumerate(text.splitlines(), start=1):
            if not line.strip():
                continue
            where = f"{path} line {number}"
            if len(works) == MAX_REQUESTS:
                raise UsageError(f"{where} is one too many", allowed=f"{MAX_REQUESTS} requests")
            work, at = _request(where, line, output_tokens)
            if (at is None) != (len(times) == 0) and works:
                raise UsageError(
                    f"{where} has no 'at'" if at is None else f"{where} has an 'at'",
                    allowed="a time in every line, or in none",
                )
            works.append(work)
            times += [] if at is None else [at]
    if times:  # a recording holds requests in the order in which they ended
        order = sorted(range(len(times)), key=times.__getitem__)
        works, times = [works[at] for at in order], [times[at] for at in order]
    measured = len(works) - warmup
    if measured < 1:
        raise UsageError(
            f"{path} holds {len(works)} requests, of which the warm-up takes {warmup}",
            do="give more requests or a smaller --warmup",
        )
    taken = measured if limit is None else min(limit, measured)
    return Workload(
        source=str(path),
        seed=None,
        warmup=tuple(works[measured:]),
        items=tuple(works[:taken]),
        times=tuple(times[:taken]) or None,
    )


def _read(path: Path) -> str:
    try:
        with path.open(encoding="utf-8-sig") as file:
            text = file.read(MAX_CHARACTERS + 1)
    except OSError as error:
        raise UsageError(f"cannot read requests from {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"{path} is not UTF-8: {error.reason} at byte {error.start}") from error
    if len(text) > MAX_CHARACTERS:
        raise UsageError(f"{path} is too long", allowed=f"{MAX_CHARACTERS} characters")
    return text


def _request(where: str, line: str, output_tokens: int) -> tuple[Work, float | None]:
    entry = _json(where, line)
    if not isinstance(entry, dict):
        raise UsageError(f"{where} is no JSON object", allowed=EXPECTED)
    if unknown := entry.keys() - {*KEYS, "max_tokens", "at"}:
        raise UsageError(f"{where} has the unknown key {min(unknown)!r:.60}", allowed=EXPECTED)
    given = [key for key in KEYS if key in entry]
    if len(given) != 1:
        raise UsageError(
            f"{where} has {' and '.join(map(repr, given)) or 'no prompt'}",
            allowed=f"one of {', '.join(map(repr, KEYS))}",
        )
    wanted = entry.get("max_tokens", output_tokens)
    if type(wanted) is not int or not 1 <= wanted <= MAX_TOKENS:
        raise UsageError(f"{where} has max_tokens {wanted!r:.40}", allowed=f"1 to {MAX_TOKENS}")
    at = entry.get("at")
    if at is not None and not _is_time(at):
        raise UsageError(f"{where} has at {at!r:.40}", allowed="seconds, 0 or more")
    return Item(_prompt(where, given[0], entry[given[0]]), wanted), at


def _is_time(value: Any) -> bool:  # noqa: ANN401 - any JSON
    return type(value) in (int, float) and math.isfinite(value) and value >= 0


def _prompt(
    where: str,
    key: str,
    value: Any,  # noqa: ANN401 - any JSON
) -> tuple[int, ...] | str | Chat:
    match key, value:
        case ("prompt", str() as text) if text:
            return Chat(({"role": "user", "content": text},))
        case ("text", str() as text) if text:
            return text
        case ("tokens", [*ids]) if ids and all(type(one) is int and one >= 0 for one in ids):
            return tuple(ids)
        case ("messages", [*messages]) if messages and all(map(_is_message, messages)):
            return Chat(tuple(messages))
    allowed = {
        "prompt": "a text that is not empty",
        "text": "a text that is not empty",
        "tokens": "a list of token ids",
        "messages": '[{"role": "user", "content": "text"}]',
    }
    raise UsageError(f"{where} has {key!r} {value!r:.60}", allowed=allowed[key])


def _is_message(value: object) -> bool:
    return (
        isinstance(value, dict)
        and value.keys() == {"role", "content"}
        and all(isinstance(one, str) for one in value.values())
    )


def _entries(path: Path, text: str) -> list[Any]:
    entries = _json(str(path), text)
    if not isinstance(entries, list) or not all(
        isinstance(entry, dict) and isinstance(entry.get("conversations"), list)
        for entry in entries
    ):
        raise UsageError(
            f"{path} is a list, but not of conversations", allowed='[{"conversations": [...]}]'
        )
    return entries


def _conversation(
    entry: Mapping[str, Any], output_tokens: int, turns: int, count: Count | None
) -> Work | None:
    """A conversation in which a user and a model take turns; None where it is none."""
    system: str | None = None
    said: list[str] = []
    for one in entry["conversations"]:
        speaker, text = _spoken(one)
        if speaker == "system" and not said:
            system = text
        elif speaker is None or not text or (speaker == "user") != (len(said) % 2 == 0):
            break
        else:
            said.append(text)
    pairs = list(zip(said[::2], said[1::2], strict=False))[:turns]
    if not pairs:
        return None
    asked = [
        Turn(question, output_tokens if count is None else max(1, count(answer)))
        for question, answer in pairs
    ]
    if turns > 1:
        return Session(system, tuple(asked))
    messages = [] if system is None else [{"role": "system", "content": system}]
    messages.append({"role": "user", "content": asked[0].text})
    return Item(Chat(tuple(messages)), asked[0].output_tokens)


def _spoken(one: object) -> tuple[str | None, str]:
    if not isinstance(one, dict):
        return None, ""
    speaker, text = one.get("from"), one.get("value")
    if not isinstance(speaker, str) or not isinstance(text, str):
        return None, ""
    return ("system" if speaker == "system" else SPEAKERS.get(speaker)), text


def _json(where: str, text: str) -> Any:  # noqa: ANN401 - any JSON
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{where} is not JSON: {error}", allowed=EXPECTED) from error

"""Reads labelled items from a file of JSON Lines, strictly: a misspelt key is never ignored."""

from __future__ import annotations

import hashlib
import json
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

from hasten.errors import UsageError
from hasten.measure.tasks.items import Choice, Custom, Exact, Expectation, Pattern, Task, TaskSet
from hasten.measure.workload import Chat

__all__ = ["MAX_PATTERN", "parse_tasks", "read_tasks"]

MAX_BYTES = 256 << 20
MAX_ITEMS = 100_000
MAX_CHARACTERS = 1 << 20
MAX_MESSAGES = 1000
MAX_CHOICES = 64
MAX_PATTERN = 1000
MAX_TOKENS = 1 << 16
MAX_STOPS = 8

_PROMPTS = ("prompt", "messages", "text")
_EXPECTED = ("answer", "pattern", "expected")
_KEYS = {*_PROMPTS, *_EXPECTED, "choices", "max_tokens", "stop"}
_EXAMPLE = '{"prompt": "2 + 2 = ?", "answer": "4"}'


def read_tasks(path: Path, *, custom: bool = False) -> TaskSet:
    """Reads a file of at most 256 MiB and 100,000 items.

    Args:
        path: UTF-8, a JSON object a line; empty lines are skipped.
        custom: The user's function scores the items: "expected" may stand for an answer.

    Raises:
        UsageError: The file cannot be read, or a line is not as docs/accuracy.md says.
    """
    try:
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise UsageError(f"cannot read items from {path}: {error.strerror}") from error
    if len(content) > MAX_BYTES:
        raise UsageError(f"{path} is too long", allowed=f"{MAX_BYTES} bytes", do="give a part")
    return parse_tasks(str(path), content, custom=custom)


def parse_tasks(name: str, content: bytes, *, custom: bool = False) -> TaskSet:
    """The items that the bytes of a file hold; see `read_tasks`."""
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UsageError(f"{name} is not UTF-8: {error.reason} at byte {error.start}") from error
    found: dict[str, Task] = {}
    duplicates = 0
    # Not splitlines(), which also splits at characters that JSON allows in a text.
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        task = _task(f"{name} line {number}", number, line, custom)
        first = found.setdefault(task.digest, task)
        if first is task:
            if len(found) > MAX_ITEMS:
                raise UsageError(f"{name} line {number} is one too many", allowed=f"{MAX_ITEMS}")
            continue
        if (first.expected, first.stop) != (task.expected, task.stop):
            raise UsageError(
                f"{name}: lines {first.line} and {number} ask the same and expect something else",
                do="leave one of them out",
            )
        duplicates += 1
    if not found:
        raise UsageError(f"{name} holds no items", allowed=f"lines such as {_EXAMPLE}")
    digest = hashlib.sha256(content).hexdigest()
    return TaskSet(Path(name).name, digest, tuple(found.values()), duplicates)


def _task(where: str, number: int, line: str, custom: bool) -> Task:
    try:
        entry = json.loads(line, parse_constant=_no_number)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{where} is not JSON: {error}", allowed=_EXAMPLE) from error
    if not isinstance(entry, dict):
        raise UsageError(f"{where} is no JSON object", allowed=_EXAMPLE)
    if unknown := entry.keys() - _KEYS:
        raise UsageError(
            f"{where} has the unknown key {min(unknown)!r:.60}", allowed=", ".join(sorted(_KEYS))
        )
    longest = entry.get("max_tokens")
    if longest is not None and (type(longest) is not int or not 1 <= longest <= MAX_TOKENS):
        raise UsageError(f"{where} has max_tokens {longest!r:.40}", allowed=f"1 to {MAX_TOKENS}")
    expected = _expectation(where, entry, custom)
    return Task(number, _prompt(where, entry), expected, longest, _stop(where, entry))


def _prompt(where: str, entry: Mapping[str, Any]) -> Chat | str:
    key = _only(where, entry, _PROMPTS)
    if key == "text":
        return _text(where, key, entry[key])
    if key == "prompt":
        return Chat(({"role": "user", "content": _text(where, key, entry[key])},))
    messages = entry[key]
    if not isinstance(messages, list) or not 1 <= len(messages) <= MAX_MESSAGES:
        _refuse(where, key, messages, f"a list of 1 to {MAX_MESSAGES} messages")
    for message in messages:
        if not isinstance(message, dict) or message.keys() != {"role", "content"}:
            _refuse(where, key, message, '{"role": "user", "content": "text"}')
        _text(where, "role", message["role"])
        _text(where, "content", message["content"], empty=True)
    return Chat(tuple(messages))


def _expectation(where: str, entry: Mapping[str, Any], custom: bool) -> Expectation:
    key = _only(where, entry, _EXPECTED)
    if "choices" in entry:
        if key != "answer":
            raise UsageError(f"{where} has 'choices' and no 'answer'", allowed="both together")
        return _choice(where, entry["choices"], entry["answer"])
    if key == "pattern":
        return Pattern(_pattern(where, entry[key]))
    if custom:
        return Custom(entry[key])
    if key == "expected":
        raise UsageError(
            f"{where} has 'expected', which a function of yours must judge",
            do="name it with --score, or give 'answer', 'choices' or 'pattern' instead",
        )
    return Exact(_text(where, key, entry[key]))


def _choice(where: str, choices: Any, answer: Any) -> Choice:  # noqa: ANN401 - any JSON
    if not isinstance(choices, list) or not 2 <= len(choices) <= MAX_CHOICES:
        _refuse(where, "choices", choices, f"a list of 2 to {MAX_CHOICES} texts")
    texts = tuple(_text(where, "choices", one) for one in choices)
    if len(set(texts)) != len(texts):
        _refuse(where, "choices", choices, "each text once")
    if type(answer) is int and 0 <= answer < len(texts):
        return Choice(texts, answer)
    if isinstance(answer, str) and answer in texts:
        return Choice(texts, texts.index(answer))
    return _refuse(where, "answer", answer, f"one of the choices, or 0 to {len(texts) - 1}")


def _pattern(where: str, value: Any) -> str:  # noqa: ANN401 - any JSON
    pattern = _text(where, "pattern", value)
    if len(pattern) > MAX_PATTERN:
        _refuse(where, "pattern", pattern, f"up to {MAX_PATTERN} characters")
    try:
        with warnings.catch_warnings():  # of what later Pythons may read otherwise
            warnings.simplefilter("ignore")
            re.compile(pattern)
    except (re.error, RecursionError, OverflowError) as error:
        raise UsageError(
            f"{where} has the pattern {pattern!r:.60}, which is none: {error}"
        ) from error
    return pattern


def _stop(where: str, entry: Mapping[str, Any]) -> tuple[str, ...]:
    stops = entry.get("stop", [])
    if not isinstance(stops, list) or len(stops) > MAX_STOPS:
        _refuse(where, "stop", stops, f"a list of up to {MAX_STOPS} texts")
    return tuple(_text(where, "stop", one) for one in stops)


def _only(where: str, entry: Mapping[str, Any], keys: tuple[str, ...]) -> str:
    given = [key for key in keys if key in entry]
    if len(given) != 1:
        raise UsageError(
            f"{where} has {' and '.join(map(repr, given)) or 'none of ' + ', '.join(keys)}",
            allowed=f"one of {', '.join(keys)}",
        )
    return given[0]


def _text(where: str, key: str, value: Any, *, empty: bool = False) -> str:  # noqa: ANN401
    if not isinstance(value, str) or not (value or empty):
        _refuse(where, key, value, "a text that is not empty")
    if len(value) > MAX_CHARACTERS:
        _refuse(where, key, value, f"up to {MAX_CHARACTERS} characters")
    try:
        value.encode()
    except UnicodeEncodeError:
        _refuse(where, key, value, "text without half of a surrogate pair")
    return value


def _refuse(where: str, key: str, value: object, allowed: str) -> NoReturn:
    raise UsageError(f"{where} has {key!r} {value!r:.60}", allowed=allowed)


def _no_number(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON")

"""Typed values out of a model's metadata (a JSON object, or the keys of a GGUF file)."""

from __future__ import annotations

import reprlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, TypeVar

from hasten.errors import HastenError, ModelFileError

__all__ = [
    "MISSING",
    "naming_file",
    "read_flag",
    "read_number",
    "read_optional",
    "read_token_ids",
]

MISSING: Final = object()
"""Default of `read_number` for a value that a file must give."""

_Number = TypeVar("_Number", int, float)


@contextmanager
def naming_file(path: Path) -> Iterator[None]:
    """Puts the file's name before the errors of checks that do not know it."""
    try:
        yield
    except HastenError as error:
        raise type(error)(f"{path}: {error.what}", allowed=error.allowed, do=error.do) from error


def read_number(
    values: Mapping[str, Any],
    key: str,
    kind: type[_Number],
    default: Any = MISSING,  # noqa: ANN401 - a number, or the sentinel
    *,
    null: _Number | None = None,
) -> _Number:
    """A number from a model's metadata.

    Args:
        values: JSON object or GGUF metadata.
        key: Its name.
        kind: int takes whole numbers only; float takes both.
        default: Value if the key is absent; an absent key without a default is an error.
        null: Value if the key is there and None; as if absent when not given.

    Raises:
        ModelFileError: Absent without a default, or not such a number.
    """
    value = values.get(key)
    if value is None:
        value = null if key in values and null is not None else default
    if value is MISSING:
        raise ModelFileError(f"{key} is missing from the model's configuration")
    accepted = (int,) if kind is int else (int, float)
    if isinstance(value, bool) or not isinstance(value, accepted):
        raise ModelFileError(
            f"{key} is {reprlib.repr(value)}", allowed=f"a number ({kind.__name__})"
        )
    try:
        return kind(value)
    except OverflowError as error:
        raise ModelFileError(f"{key} is too large for a float") from error


def read_optional(
    values: Mapping[str, Any], key: str, kind: type[_Number], default: _Number | None = None
) -> _Number | None:
    """A number of the kind or None; `default` if the key is absent.

    Raises:
        ModelFileError: Neither.
    """
    if values.get(key, default) is None:
        return None
    return read_number(values, key, kind, default)


def read_token_ids(values: Mapping[str, Any], key: str) -> tuple[int, ...]:
    """One token id or a list of them, ascending and without repetition.

    Raises:
        ModelFileError: Something else.
    """
    value = values.get(key)
    listed = value if isinstance(value, list) else [] if value is None else [value]
    return tuple(sorted({read_number({key: one}, key, int) for one in listed}))


def read_flag(values: Mapping[str, Any], key: str) -> bool:
    """True or false; false if absent or null.

    Raises:
        ModelFileError: Something else.
    """
    value = values.get(key)
    if value is None:
        return False
    if not isinstance(value, bool):
        raise ModelFileError(f"{key} is {reprlib.repr(value)}", allowed="true, false")
    return value

"""JSON from files that are not trusted."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from hasten.errors import ModelFileError

__all__ = ["parse_json_object", "read_json_list", "read_json_object"]

_MAX_BYTES = 64 << 20


def read_json_object(path: Path) -> dict[str, Any]:
    """The object in a JSON file of at most 64 MiB.

    Raises:
        ModelFileError: The file cannot be read, is too large, or holds no JSON object.
    """
    return parse_json_object(_read_small(path), str(path))


def read_json_list(path: Path) -> list[Any]:
    """The list in a JSON file of at most 64 MiB.

    Raises:
        ModelFileError: The file cannot be read, is too large, or holds no JSON list.
    """
    value = _parse(_read_small(path), str(path))
    if not isinstance(value, list):
        raise ModelFileError(f"{path}: holds {type(value).__name__}, not a JSON list")
    return value


def _read_small(path: Path) -> bytes:
    try:
        size = path.stat().st_size
        if not path.is_file() or size > _MAX_BYTES:
            raise ModelFileError(
                f"{path}: not a file of at most {_MAX_BYTES} bytes", allowed="a small JSON file"
            )
        return path.read_bytes()
    except OSError as error:
        raise ModelFileError(f"{path}: cannot be read ({error.strerror or error})") from error


def parse_json_object(content: bytes, source: str) -> dict[str, Any]:
    """The object in JSON text; a key that appears twice is refused.

    Args:
        content: UTF-8 text.
        source: What it is called in errors.

    Raises:
        ModelFileError: The text is no JSON object.
    """
    value = _parse(content, source)
    if not isinstance(value, dict):
        raise ModelFileError(f"{source}: holds {type(value).__name__}, not a JSON object")
    return value


def _parse(content: bytes, source: str) -> object:
    try:
        value: object = json.loads(content.decode(), object_pairs_hook=_distinct)
    except (ValueError, RecursionError) as error:  # JSON, Unicode and digit-limit errors
        reason = "nested too deeply" if isinstance(error, RecursionError) else error
        raise ModelFileError(f"{source}: not valid JSON ({reason})") from error
    return value


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"the key {key!r} appears twice")
        found[key] = value
    return found

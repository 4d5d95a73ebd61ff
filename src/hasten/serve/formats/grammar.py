"""Grammars in llguidance's form of Lark, rule by rule."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

__all__ = ["Grammar"]

_WHITESPACE = r"( |\n{1,2}[ \t]{0,20})"
"""As for a JSON schema by itself: without a bound a model may never leave it."""

_CLOSES = frozenset(
    {"$defs", "$schema", "definitions", "description", "properties", "required", "title", "type"}
)
"""Keywords that say nothing of further properties."""


class Grammar:
    """Collects rules.

    Args:
        special: Ids of special tokens, by their text.
    """

    def __init__(self, special: Mapping[str, int]) -> None:
        self._special = special
        self._rules: list[str] = []

    def text(self, text: str) -> str:
        """A term for this text; a special token where the vocabulary has it as one."""
        number = self._special.get(text)
        return json.dumps(text) if number is None else f"<[{number}]>"

    def rule(self, body: str, options: str = "") -> str:
        """Adds a rule and returns its name."""
        name = f"r{len(self._rules)}"
        self._rules.append(f"{name}{options}: {body}")
        return name

    def several(self, term: str, separator: str, most: int) -> str:
        """A term once, or up to so many times with a separator between."""
        if most == 1:
            return term
        return f"{term} ({json.dumps(separator)} {term}){{0,{most - 1}}}"

    def until(self, mark: str) -> str:
        """A term for any text up to a mark, and the mark."""
        number = self._special.get(mark)
        if number is not None:
            return f"/(.|\\n)*/ <[{number}]>"
        escaped = "".join(f"\\x{{{ord(c):x}}}" for c in mark)
        return self.rule(f"/(.|\\n)*{escaped}/", "[lazy]")

    def parameters(self, schema: Mapping[str, Any]) -> str:
        """A term for the arguments of a tool: an object of those that its schema names.

        An object whose schema names properties and is silent about others holds no others.
        """
        whole = {"type": "object", **schema}
        if "properties" in whole and set(whole) <= _CLOSES:
            whole["additionalProperties"] = False
        return self.json(whole)

    def json(self, schema: Mapping[str, Any]) -> str:
        """A term for a JSON value."""
        own = {"x-guidance": {"whitespace_pattern": _WHITESPACE}, **schema}
        return self.rule("%json " + json.dumps(own))

    def join(self, start: str) -> str:
        """The whole grammar, with the body of its first rule."""
        return "\n".join([f"start: {start}", *self._rules])

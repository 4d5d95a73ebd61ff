"""How a family of models writes tool calls."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

from hasten.errors import UsageError
from hasten.serve.formats.grammar import Grammar
from hasten.serve.formats.parts import Sink
from hasten.serve.formats.reader import Marks, Reader, Steps

__all__ = ["MOST_CALLS", "CallSyntax", "Tools", "dump", "parameters_of"]

MOST_CALLS = 16
"""In an answer that must call: a model that can end only by its own choice may never end."""

_KINDS: Mapping[str, type] = {"properties": dict, "required": list}

Tools = Mapping[str, Mapping[str, Any]]
"""The schema of each tool's parameters, by the tool's name."""


class CallSyntax(ABC):
    """How a family of models writes tool calls: reads them, demands them, writes them.

    Attributes:
        opens: What a call begins with.
        special: Texts that may be special tokens of the vocabulary.
        bare: A call may begin with the output, without a mark.
        several: One message may hold several calls.
    """

    opens: Marks
    special: tuple[str, ...] = ()
    bare: bool = False
    several: bool = True

    @abstractmethod
    def read(self, opened: str, reader: Reader, sink: Sink, tools: Tools) -> Steps[bool]:
        """Reads what follows a mark, or the beginning of the output where calls are bare.

        What is not a call goes to the sink as content, with the mark.

        Args:
            opened: The mark, which has been read; empty for a bare call.
            reader: At the place behind it. It does not record.
            sink: Takes the calls.
            tools: Those that may be called.

        Returns:
            Whether there was a call.
        """

    @abstractmethod
    def demand(self, grammar: Grammar, tools: Tools, several: bool) -> str:
        """The rules of a call.

        Args:
            grammar: Takes further rules.
            tools: One of these is to be called.
            several: One answer may hold several calls.

        Returns:
            The right side of the rule.
        """

    @abstractmethod
    def write(self, calls: Sequence[Mapping[str, Any]]) -> str:
        """Calls as text, for templates that have no place for them.

        Args:
            calls: "name" and "arguments" of each.
        """


def parameters_of(tool: Mapping[str, Any]) -> Mapping[str, Any]:
    """The schema of a tool's parameters; one without any takes none.

    Raises:
        UsageError: It is not a schema of an object.
    """
    schema = tool["function"].get("parameters") or {"properties": {}}
    fine = isinstance(schema, Mapping) and all(
        isinstance(schema.get(key, kind()), kind) for key, kind in _KINDS.items()
    )
    if not fine:
        raise UsageError(
            f"the parameters of the tool {tool['function']['name']!r:.80} are {schema!r:.80}",
            allowed="a JSON schema of an object",
        )
    return schema


def dump(value: object) -> str:
    """JSON as models were trained on it."""
    return json.dumps(value, ensure_ascii=False)

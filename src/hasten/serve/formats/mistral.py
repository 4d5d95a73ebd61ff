"""Mistral: a JSON list after a mark, or a mark, a name and arguments for each call.

    [TOOL_CALLS] [{"name": "weather", "arguments": {"city": "Bern"}}]
    [TOOL_CALLS]weather[ARGS]{"city": "Bern"}
    [TOOL_CALLS]weather[CALL_ID]a1b2c3d4e[ARGS]{"city": "Bern"}

The older models write the first, the newer ones the others; both are read from each.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hasten.serve.formats.grammar import Grammar
from hasten.serve.formats.json_calls import read_objects
from hasten.serve.formats.parts import Sink
from hasten.serve.formats.reader import Marks, Reader, Steps
from hasten.serve.formats.syntax import MOST_CALLS, CallSyntax, Tools, dump

__all__ = ["MistralCalls"]

_CALLS, _ID, _ARGUMENTS = "[TOOL_CALLS]", "[CALL_ID]", "[ARGS]"
_AFTER_NAME, _AFTER_ID = Marks(_ID, _ARGUMENTS), Marks(_ARGUMENTS)
_NAME = re.compile(r"[^\[{\s]")
_LONGEST_NAME = 256


@dataclass(frozen=True)
class MistralCalls(CallSyntax):
    """Calls of Mistral's models.

    Attributes:
        listed: The model writes one list of all calls.
    """

    listed: bool
    opens = Marks(_CALLS)
    special = (_CALLS, _ID, _ARGUMENTS)

    def read(self, opened: str, reader: Reader, sink: Sink, tools: Tools) -> Steps[bool]:
        """See `CallSyntax.read`."""
        reader.record(opened)
        yield from reader.space()
        if (yield from reader.peek()) in ("[", "{"):
            found = yield from read_objects(reader, sink)
        else:
            found = yield from self._read_named(reader, sink)
        if found:
            yield from reader.space()
        return found

    def demand(self, grammar: Grammar, tools: Tools, several: bool) -> str:
        """See `CallSyntax.demand`."""
        mark = grammar.text(_CALLS)
        calls = []
        for name, schema in tools.items():
            arguments = grammar.parameters(schema)
            if self.listed:
                begin = grammar.text(f'{{"name": {dump(name)}, "arguments": ')
                calls.append(grammar.rule(f'{begin} {arguments} "}}"'))
            else:
                calls.append(
                    grammar.rule(
                        f"{mark} {grammar.text(name)} {grammar.text(_ARGUMENTS)} {arguments}"
                    )
                )
        call = grammar.rule(" | ".join(calls))
        most = MOST_CALLS if several else 1
        if self.listed:
            return f'{mark} " "? "[" {grammar.several(call, ", ", most)} "]"'
        return f"{call}{{1,{most}}}"

    def write(self, calls: Sequence[Mapping[str, Any]]) -> str:
        """See `CallSyntax.write`."""
        if self.listed:
            return _CALLS + dump([{k: c[k] for k in ("name", "arguments")} for c in calls])
        return "".join(f"{_CALLS}{c['name']}{_ARGUMENTS}{dump(c['arguments'])}" for c in calls)

    def _read_named(self, reader: Reader, sink: Sink) -> Steps[bool]:
        """Reads a name and its arguments; what is no call goes to the sink as content."""
        name = yield from reader.word(_NAME, _LONGEST_NAME)
        if (yield from reader.mark(_AFTER_NAME)) == _ID:
            yield from reader.word(_NAME, _LONGEST_NAME)
            yield from reader.mark(_AFTER_ID)
        yield from reader.space()
        if not name or (yield from reader.peek()) != "{":
            sink.content(reader.recorded())
            return False
        reader.recorded()
        sink.call(name)
        yield from reader.value(sink.argument)
        return True

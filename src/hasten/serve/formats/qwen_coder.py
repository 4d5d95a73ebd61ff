"""Qwen 3 coder, Nemotron 3: a tag for each argument.

    <tool_call>
    <function=weather>
    <parameter=city>
    Bern
    </parameter>
    </function>
    </tool_call>

A parameter that its schema calls a text is written as it is, others as JSON.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from hasten.serve.formats.grammar import Grammar
from hasten.serve.formats.parts import Sink
from hasten.serve.formats.reader import Marks, Reader, Steps
from hasten.serve.formats.syntax import MOST_CALLS, CallSyntax, Tools, dump

__all__ = ["QwenCoderCalls"]

_CALL, _CALL_END = "<tool_call>", "</tool_call>"
_FUNCTION, _FUNCTION_END = "<function=", "</function>"
_PARAMETER, _PARAMETER_END = "<parameter=", "</parameter>"
_NAME = re.compile(r"[^<>\s]")
_LONGEST_NAME = 256
_VALUE_ENDS = Marks("\n" + _PARAMETER_END, _PARAMETER_END)
_NO_SCHEMA: Mapping[str, Any] = {}


class QwenCoderCalls(CallSyntax):
    """Calls of Qwen 3 coder."""

    opens = Marks(_CALL, _FUNCTION)
    special = (_CALL, _CALL_END)

    def read(self, opened: str, reader: Reader, sink: Sink, tools: Tools) -> Steps[bool]:
        """See `CallSyntax.read`."""
        reader.record(opened)
        if opened == _CALL:
            yield from reader.space()
        if opened == _CALL and not (yield from reader.mark(Marks(_FUNCTION))):
            sink.content(reader.recorded())
            return False
        name = yield from reader.word(_NAME, _LONGEST_NAME)
        if not name or not (yield from reader.one(">")):
            sink.content(reader.recorded())
            return False
        reader.recorded()
        sink.call(name)
        yield from self._read_parameters(reader, sink, tools.get(name, _NO_SCHEMA))
        reader.record()
        yield from reader.space()
        ended = yield from reader.mark(Marks(_FUNCTION_END))
        yield from reader.space()
        closed = yield from reader.mark(Marks(_CALL_END))
        yield from reader.space()
        rest = reader.recorded()
        if not (ended or closed) and rest.strip():
            sink.content(rest)
        return True

    def demand(self, grammar: Grammar, tools: Tools, several: bool) -> str:
        """See `CallSyntax.demand`."""
        calls = [
            grammar.rule(
                f"{grammar.text(_CALL)} {grammar.text(f'{chr(10)}{_FUNCTION}{name}>{chr(10)}')} "
                f"{self._demand_parameters(grammar, schema)} "
                f"{grammar.text(_FUNCTION_END + chr(10))} {grammar.text(_CALL_END)}"
            )
            for name, schema in tools.items()
        ]
        call = grammar.rule(" | ".join(calls))
        return f'{call} ("\\n" {call}){{0,{MOST_CALLS - 1 if several else 0}}}'

    def write(self, calls: Sequence[Mapping[str, Any]]) -> str:
        """See `CallSyntax.write`."""
        texts = []
        for call in calls:
            parameters = "".join(
                f"{_PARAMETER}{key}>\n{value if isinstance(value, str) else dump(value)}\n"
                f"{_PARAMETER_END}\n"
                for key, value in call["arguments"].items()
            )
            function = f"{_FUNCTION}{call['name']}>\n{parameters}{_FUNCTION_END}"
            texts.append(f"{_CALL}\n{function}\n{_CALL_END}")
        return "\n".join(texts)

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
_FUNCTIONS = Marks(_FUNCTION)
_KEY = re.compile(r"[^<>\n]")
_AFTER_FUNCTION = Marks(_PARAMETER, _FUNCTION_END)
_AFTER_PARAMETER = Marks(_PARAMETER, _FUNCTION_END, _CALL_END)
_VALUE_ENDS = Marks("\n" + _PARAMETER_END, _PARAMETER_END)
_CALL_ENDS = Marks(_CALL_END)


class QwenCoderCalls(CallSyntax):
    """Calls of Qwen 3 coder."""

    opens = Marks(_CALL, _FUNCTION)
    special = (_CALL, _CALL_END)

    def read(self, opened: str, reader: Reader, sink: Sink, tools: Tools) -> Steps[bool]:
        """See `CallSyntax.read`."""
        reader.record(opened)
        if opened == _CALL:
            yield from reader.space()
        if opened == _CALL and not (yield from reader.mark(_FUNCTIONS)):
            sink.content(reader.recorded())
            return False
        name = yield from reader.word(_NAME, _LONGEST_NAME)
        yield from reader.one(">")
        yield from reader.space()
        begun = bool(name) and (yield from reader.mark(_AFTER_FUNCTION))
        if not begun:
            sink.content(reader.recorded())
            return False
        reader.recorded()
        sink.call(name)
        whole = begun == _FUNCTION_END
        if whole:
            sink.argument("{}")
        else:
            whole = yield from _read_parameters(reader, sink, tools.get(name, {}))
        yield from reader.space()
        if whole:
            yield from reader.mark(_CALL_ENDS)
            yield from reader.space()
        return True

    def demand(self, grammar: Grammar, tools: Tools, several: bool) -> str:
        """See `CallSyntax.demand`."""
        calls = [
            grammar.rule(
                f"{grammar.text(_CALL)} {grammar.text(f'{chr(10)}{_FUNCTION}{name}>{chr(10)}')} "
                f"{_demand_parameters(grammar, schema)} "
                f"{grammar.text(_FUNCTION_END + chr(10))} {grammar.text(_CALL_END)}"
            )
            for name, schema in tools.items()
        ]
        call = grammar.rule(" | ".join(calls))
        return grammar.several(call, "\n", MOST_CALLS if several else 1)

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


def _read_parameters(reader: Reader, sink: Sink, schema: Mapping[str, Any]) -> Steps[bool]:
    """Reads parameters, behind the first one's mark; they go to the sink as a JSON object.

    Returns:
        Whether their end came.
    """
    before = "{"
    mark: str | None = _PARAMETER
    while mark == _PARAMETER:
        key = yield from reader.word(_KEY, _LONGEST_NAME)
        yield from reader.one(">")
        yield from reader.one("\n")
        sink.argument(f"{before}{dump(key)}: ")
        before = ", "
        if not (yield from _read_value(reader, sink, _types(_property(schema, key)))):
            return False
        yield from reader.space()
        mark = yield from reader.mark(_AFTER_PARAMETER)
    if mark is None and reader.ended and not (yield from reader.peek()):
        return False
    sink.argument("}")
    return mark == _FUNCTION_END


def _read_value(reader: Reader, sink: Sink, types: frozenset[str]) -> Steps[bool]:
    """Reads a value and its end; it goes to the sink as JSON, texts as they come."""
    if types == {"string"}:
        sink.argument('"')
        if not (yield from reader.until(_VALUE_ENDS, lambda text: sink.argument(_inside(text)))):
            return False
        sink.argument('"')
        return True
    pieces: list[str] = []
    ended = yield from reader.until(_VALUE_ENDS, pieces.append)
    text = "".join(pieces)
    sink.argument(_as_json(text, types) if ended else text)
    return ended is not None


def _inside(text: str) -> str:
    """A piece of a text as it stands in a JSON string."""
    return dump(text)[1:-1]


def _as_json(text: str, types: frozenset[str]) -> str:
    """A value as JSON: as it is where it is JSON of the right type, else as a text."""
    bare = _PYTHON.get(text.strip(), text.strip())
    try:
        value = json.loads(bare, parse_constant=_refuse)
    except (ValueError, RecursionError):
        return dump(text)
    return bare if not types or _TYPE_OF[type(value)] & types else dump(text)


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")


_PYTHON = {"True": "true", "False": "false", "None": "null"}
_TYPE_OF: dict[type, frozenset[str]] = {
    bool: frozenset({"boolean"}),
    int: frozenset({"integer", "number"}),
    float: frozenset({"number"}),
    str: frozenset({"string"}),
    list: frozenset({"array"}),
    dict: frozenset({"object"}),
    type(None): frozenset({"null"}),
}


def _property(schema: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    properties = schema.get("properties")
    found = properties.get(key) if isinstance(properties, Mapping) else None
    return found if isinstance(found, Mapping) else {}


def _types(schema: Mapping[str, Any]) -> frozenset[str]:
    """The JSON types that a schema allows, as far as it says so; empty where it does not."""
    if isinstance(named := schema.get("type"), str):
        return frozenset({named})
    if isinstance(named, list):
        return frozenset(name for name in named if isinstance(name, str))
    for key in ("anyOf", "oneOf"):
        if isinstance(choices := schema.get(key), list):
            found = [_types(choice) for choice in choices if isinstance(choice, Mapping)]
            return frozenset().union(*found) if all(found) else frozenset()
    if isinstance(values := schema.get("enum"), list):
        return frozenset({"string"}) if all(isinstance(v, str) for v in values) else frozenset()
    return frozenset()


def _texts(schema: Mapping[str, Any]) -> list[str]:
    """The texts that a schema names one by one."""
    values = schema.get("enum")
    return [v for v in values if isinstance(v, str)] if isinstance(values, list) else []


def _demand_parameters(grammar: Grammar, schema: Mapping[str, Any]) -> str:
    """The rules of parameters, in the order in which the schema names them."""
    shared = {key: schema[key] for key in ("$defs", "definitions") if key in schema}
    required = schema.get("required", ())
    terms = []
    for key in schema.get("properties", {}):
        own = _property(schema, key)
        term = grammar.text(f"{_PARAMETER}{key}>\n")
        end = f"\n{_PARAMETER_END}\n"
        texts = _texts(own)
        if _types(own) != {"string"}:
            term += f" {grammar.json({**own, **shared})} {grammar.text(end)}"
        elif texts:
            choices = " | ".join(grammar.text(text) for text in texts)
            term += f" ({choices}) {grammar.text(end)}"
        else:
            term += f" {grammar.until(end)}"
        terms.append(term if key in required else f"({term})?")
    return " ".join(terms)

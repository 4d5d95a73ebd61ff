"""Calls as JSON objects of a name and arguments, one or a list, between marks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hasten.serve.formats.grammar import Grammar
from hasten.serve.formats.parts import Sink
from hasten.serve.formats.reader import Marks, Reader, Steps
from hasten.serve.formats.syntax import MOST_CALLS, CallSyntax, Tools, dump

__all__ = ["JsonCalls", "read_objects"]

_LONGEST_NAME = 256
_ARGUMENTS = ("arguments", "parameters")


@dataclass(frozen=True, kw_only=True)
class JsonCalls(CallSyntax):
    """Calls as JSON objects between marks.

    Attributes:
        opens: What calls begin with.
        open: The one of them that is written; empty where a call stands bare.
        close: What ends them; None where nothing does.
        key: What the arguments come under.
        listed: All calls stand in one list; otherwise each has marks of its own.
        around: What stands between a mark and the JSON text.
        special: Marks that may be special tokens.
        bare: A call may begin with the output, without a mark.
        several: One message may hold several calls.
    """

    opens: Marks
    open: str
    close: Marks | None = None
    key: str = "arguments"
    listed: bool = False
    around: str = ""
    special: tuple[str, ...] = ()
    bare: bool = False
    several: bool = True

    def read(self, opened: str, reader: Reader, sink: Sink, tools: Tools) -> Steps[bool]:
        """See `CallSyntax.read`."""
        reader.record(opened)
        yield from reader.space()
        if not (yield from read_objects(reader, sink, complete=not opened)):
            return False
        if self.close is not None:
            yield from reader.mark(self.close)
        yield from reader.space()
        return True

    def demand(self, grammar: Grammar, tools: Tools, several: bool) -> str:
        """See `CallSyntax.demand`."""
        calls = [self._one(grammar, name, schema) for name, schema in tools.items()]
        call = grammar.rule(" | ".join(calls))
        most = MOST_CALLS if several and self.several else 1
        if self.listed:
            call = grammar.rule(f'"[" {grammar.several(call, ", ", most)} "]"')
        around = [grammar.text(self.around)] if self.around else []
        opens = [grammar.text(self.open)] if self.open else []
        closes = [] if self.close is None else [grammar.text(self.close.texts[0])]
        whole = grammar.rule(" ".join([*opens, *around, call, *around, *closes]))
        return whole if self.listed else grammar.several(whole, "\n", most)

    def write(self, calls: Sequence[Mapping[str, Any]]) -> str:
        """See `CallSyntax.write`."""
        texts = [dump({"name": c["name"], self.key: c["arguments"]}) for c in calls]
        if self.listed:
            texts = ["[" + ", ".join(texts) + "]"]
        end = "" if self.close is None else self.close.texts[0]
        return "\n".join(f"{self.open}{self.around}{text}{self.around}{end}" for text in texts)

    def _one(self, grammar: Grammar, name: str, schema: Mapping[str, Any]) -> str:
        begin = grammar.text(f'{{"name": {dump(name)}, "{self.key}": ')
        return grammar.rule(f'{begin} {grammar.parameters(schema)} "}}"')


def read_objects(reader: Reader, sink: Sink, *, complete: bool = False) -> Steps[bool]:
    """Reads a call, several of them, or a list.

    What turns out not to be a call goes to the sink as content, with all that was recorded.

    Args:
        reader: At the first call's place; it records.
        sink: Takes the calls.
        complete: An object without arguments is no call.

    Returns:
        Whether there was a call.
    """
    listed = bool((yield from reader.one("[")))
    found = False
    while True:
        yield from reader.space()
        if not (yield from _read_object(reader, sink, complete)):
            break
        found = True
        reader.record()
        yield from reader.space()
        if listed and (yield from reader.one("]")):
            reader.recorded()
            return True
        yield from reader.one(",;")
    rest = reader.recorded()
    if not found or rest.strip():
        sink.content(rest)
    return found


def _read_object(reader: Reader, sink: Sink, complete: bool) -> Steps[bool]:
    """Reads one call; its arguments go to the sink as they come, once its name is known.

    Returns:
        Whether it is one; if not, all of it is still recorded.
    """
    if not (yield from reader.one("{")):
        return False
    name: str | None = None
    held: list[str] | None = None  # arguments that came before the name
    begun = closed = False
    while (key := (yield from _read_key(reader))) is not None:
        if key == "name" and name is None:
            name = yield from reader.string(_LONGEST_NAME)
            if name is None:
                break
        elif key in _ARGUMENTS and held is None:
            if name is not None and (yield from reader.peek()) == "{":
                reader.recorded()
                begun, held = True, []
                sink.call(name)
                whole = yield from reader.value(sink.argument)
                reader.record()
                if not whole:
                    break
            elif (held := (yield from _read_arguments(reader))) is None:
                break
        elif not (yield from reader.value(_nothing)):
            break
        if name is not None and held and not begun:
            begun = _begin(reader, sink, name, held)
    else:
        closed = bool((yield from reader.one("}")))
    if closed and name is not None and not begun and not complete:
        begun = _begin(reader, sink, name, ["{}"])
    if begun:
        rest = reader.recorded()
        if not closed and rest.strip():
            sink.content(rest)
    return begun


def _begin(reader: Reader, sink: Sink, name: str, arguments: list[str]) -> bool:
    """Begins a call whose arguments are known."""
    reader.recorded()
    sink.call(name)
    sink.argument("".join(arguments))
    reader.record()
    return True


def _read_key(reader: Reader) -> Steps[str | None]:
    """Reads up to the value of an object's next key; None where there is none."""
    yield from reader.space()
    yield from reader.one(",")
    yield from reader.space()
    key = yield from reader.string(_LONGEST_NAME)
    yield from reader.space()
    if key is None or not (yield from reader.one(":")):
        return None
    yield from reader.space()
    return key


def _read_arguments(reader: Reader) -> Steps[list[str] | None]:
    """Reads arguments as a whole: an object, the text of one, or nothing at all."""
    first = yield from reader.peek()
    if first == '"':
        text = yield from reader.string()
        if text is None or text.strip()[:1] not in ("{", ""):
            return None
        return [text if text.strip() else "{}"]
    pieces: list[str] = []
    whole = yield from reader.value(pieces.append)
    if first != "{" and "".join(pieces) != "null":
        return None
    if not whole:
        return None
    return pieces if first == "{" else ["{}"]


def _nothing(_text: str) -> None:
    """Takes what nobody wants."""

"""Takes reasoning and tool calls out of an output while it comes."""

from __future__ import annotations

from collections.abc import Callable

from hasten.serve.formats.parts import Part, Sink
from hasten.serve.formats.reader import Marks, Reader, Steps
from hasten.serve.formats.reasoning import Thoughts
from hasten.serve.formats.syntax import CallSyntax, Tools

__all__ = ["Splitter"]

_NO_MARKS = Marks()


class Splitter:
    """Takes reasoning and tool calls out of one output.

    The parts join to the same texts however the output came in pieces. White space next to a mark
    belongs to neither side. A call whose arguments have begun stays one if it breaks off; what
    breaks off earlier is content, with all of its text.

    Args:
        syntax: How calls are written; None where none are expected.
        thoughts: How reasoning is marked; None where none is expected.
        tools: Those that may be called.
        new_id: Makes the id of a call.
        thinking: The prompt has begun the reasoning.

    Attributes:
        in_reasoning: What comes next belongs to the reasoning, as far as is known.
    """

    def __init__(
        self,
        syntax: CallSyntax | None,
        thoughts: Thoughts | None,
        tools: Tools,
        new_id: Callable[[], str],
        *,
        thinking: bool = False,
    ) -> None:
        self.in_reasoning = thinking
        self._syntax = syntax
        self._thoughts = thoughts
        self._tools = tools
        self._reader = Reader()
        self._sink = Sink(new_id)
        self._steps = self._run()
        self._over = False

    def push(self, text: str) -> list[Part]:
        """Adds the next piece of the output; returns the parts that became certain with it."""
        self._reader.feed(text)
        self._resume()
        return self._sink.drain()

    def finish(self) -> list[Part]:
        """Ends the output; returns what was held back."""
        self._reader.ended = True
        self._resume()
        self._sink.flush()
        return self._sink.drain()

    def _resume(self) -> None:
        if not self._over:
            self._over = next(self._steps, _OVER) is _OVER

    def _run(self) -> Steps[None]:
        reader, sink = self._reader, self._sink
        answer_end = ""
        if self._thoughts is not None:
            answer_end = yield from self._read_thoughts(self._thoughts)
        calls = self._syntax
        if calls is not None and calls.bare:
            yield from calls.read("", reader, sink, self._tools)
        opens = () if calls is None else calls.opens.texts
        marks = Marks(*opens, answer_end) if answer_end else Marks(*opens)
        sink.marks_may_come = bool(marks.texts)
        while (mark := (yield from reader.until(marks, sink.content))) is not None:
            if calls is None or mark == answer_end:
                sink.strip()
                marks = Marks(*opens)
                sink.marks_may_come = bool(opens)
            else:
                yield from calls.read(mark, reader, sink, self._tools)

    def _read_thoughts(self, thoughts: Thoughts) -> Steps[str]:
        """Reads the reasoning, if the output begins with it.

        Returns:
            What ends the answer then; empty where nothing does.
        """
        reader, sink = self._reader, self._sink
        reader.record()
        yield from reader.space()
        opened = yield from reader.mark(Marks(*thoughts.opens))
        before = reader.recorded()
        if opened is None and not self.in_reasoning:
            sink.content(before)
            return ""
        self.in_reasoning = True
        yield from reader.space()
        closed = yield from reader.until(Marks(*thoughts.closes), sink.reasoning)
        if closed is None:
            return ""
        self.in_reasoning = False
        sink.strip()
        yield from reader.space()
        if thoughts.answer is None or not (yield from reader.mark(Marks(thoughts.answer[0]))):
            return ""
        yield from reader.space()
        return thoughts.answer[1]


_OVER = object()

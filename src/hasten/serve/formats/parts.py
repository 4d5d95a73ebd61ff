"""What becomes of an output: parts of content, reasoning and tool calls."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

__all__ = ["Part", "Sink"]

Kind = Literal["content", "reasoning", "call"]


@dataclass(frozen=True, slots=True)
class Part:
    """A part of an output.

    Attributes:
        kind: What it belongs to.
        text: Its next characters; of a call, those of the arguments' JSON text.
        number: Which call of the output, from 0.
        id: Of the call; every part of a call carries it.
        name: Of the call's tool; every part of a call carries it.
    """

    kind: Kind
    text: str
    number: int = 0
    id: str = ""
    name: str = ""


class Sink:
    """Collects the parts of an output.

    Args:
        new_id: Makes the id of a call.

    Attributes:
        marks_may_come: White space is held back until something follows it, for next to a mark it
            is none of the text. Where no mark can come, it goes through at once.
    """

    def __init__(self, new_id: Callable[[], str]) -> None:
        self.marks_may_come = True
        self._new_id = new_id
        self._parts: list[Part] = []
        self._pieces: list[str] = []
        self._open = Part("content", "")
        self._space: list[str] = []
        self._calls = 0

    def content(self, text: str) -> None:
        """Adds text of the answer."""
        self._add("content", text)

    def reasoning(self, text: str) -> None:
        """Adds text of the reasoning."""
        self._add("reasoning", text)

    def call(self, name: str) -> None:
        """Begins a call; the white space before it waits for more text of the answer."""
        self._turn_to(Part("call", "", self._calls, self._new_id(), name))
        self._calls += 1
        self._pieces.append("")

    def argument(self, text: str) -> None:
        """Adds text of the arguments of the call that began last."""
        self._pieces.append(text)

    def strip(self) -> None:
        """Drops the white space that is held back."""
        self._space.clear()

    def flush(self) -> None:
        """Lets the white space at the end through, unless a call came last."""
        if self._open.kind != "call":
            self._pieces += self._space
        self._space.clear()

    def drain(self) -> list[Part]:
        """What was collected since the last time."""
        self._close()
        parts, self._parts = self._parts, []
        return parts

    def _add(self, kind: Kind, text: str) -> None:
        if not text:
            return
        if self._open.kind != kind:
            self._turn_to(Part(kind, ""))
        solid = text.rstrip() if self.marks_may_come else text
        if solid:
            self._pieces += [*self._space, solid]
            self._space.clear()
        if len(solid) < len(text):
            self._space.append(text[len(solid) :])

    def _turn_to(self, part: Part) -> None:
        self._close()
        self._open = part

    def _close(self) -> None:
        """Makes a part of the pieces, if there are any."""
        if not self._pieces:
            return
        text = "".join(self._pieces)
        self._pieces.clear()
        part = self._open
        if text or part.kind == "call":
            self._parts.append(Part(part.kind, text, part.number, part.id, part.name))

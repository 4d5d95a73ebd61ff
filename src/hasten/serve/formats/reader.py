"""Reads a text that comes in pieces, in time linear in its length however it was cut.

A parser is a generator that yields where it needs more text; so it reads like the grammar that it
follows, and holds no state but its own place. What it reads is the same for any cut of the text.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Collection, Generator
from typing import TypeVar

__all__ = ["Marks", "Reader", "Steps"]

T = TypeVar("T")
Steps = Generator[None, None, T]
"""A part of a parser: yields where it needs more text, and returns what it read."""

Take = Callable[[str], None]

_SPACE = re.compile(r"\s*")
_BRACKETS = re.compile(r'["{}\[\]]')
_STRING_END = re.compile(r'["\\]')
_SCALAR_END = re.compile(r"[,}\]\s]")
_NO_LIMIT = sys.maxsize


class Marks:
    """Texts to look for, all at once.

    Args:
        texts: At least one character each. One may be the end of another, which then counts, but
            stand nowhere else in it: what is found would depend on how the text was cut.
    """

    def __init__(self, *texts: str) -> None:
        for one in texts:
            if not one or any(one in other[:-1] for other in texts):
                raise ValueError(f"{one!r} is empty, or stands inside another mark of {texts}")
        self.texts = texts
        self.longest = max(map(len, texts), default=0)
        self._pattern = re.compile("|".join(map(re.escape, texts))) if texts else None
        self._beginnings = {text[:n] for text in texts for n in range(1, len(text))}
        self._first = {text[0] for text in texts}

    def find(self, text: str, begin: int) -> tuple[int, int] | None:
        """Where the first of them stands in a text, from a place on."""
        found = None if self._pattern is None else self._pattern.search(text, begin)
        return None if found is None else found.span()

    def held(self, text: str, begin: int) -> int:
        """Length of the longest end of a text, from a place on, that one of them begins with."""
        for at in range(max(begin, len(text) - self.longest + 1), len(text)):
            if text[at] in self._first and text[at:] in self._beginnings:
                return len(text) - at
        return 0

    def begin_with(self, text: str) -> bool:
        """Whether one of them begins with a text and is longer."""
        return text in self._beginnings


class Reader:
    """A text and the place that a parser has come to.

    Attributes:
        ended: No more text will come.
    """

    def __init__(self) -> None:
        self.ended = False
        self._text = ""
        self._at = 0
        self._record: list[str] | None = None

    def feed(self, text: str) -> None:
        """Adds the next piece."""
        self._text = self._text[self._at :] + text
        self._at = 0

    def record(self, begin: str = "") -> None:
        """From now on, keep what is read, for `recorded`; it begins with a text."""
        self._record = [begin]

    def recorded(self) -> str:
        """What was read since `record`; nothing is kept any longer."""
        kept, self._record = self._record, None
        return "".join(kept or ())

    def until(self, marks: Marks, take: Take) -> Steps[str | None]:
        """Passes on what comes before the first of the marks, as it comes.

        Returns:
            The mark, which has been read; None at the end of the text.
        """
        while True:
            found = marks.find(self._text, self._at)
            if found is not None:
                take(self._read(found[0]))
                return self._read(found[1])
            held = 0 if self.ended else marks.held(self._text, self._at)
            take(self._read(len(self._text) - held))
            if self.ended:
                return None
            yield

    def mark(self, marks: Marks) -> Steps[str | None]:
        """Reads one of the marks if it comes next."""
        while True:
            ahead = self._text[self._at : self._at + marks.longest]
            for text in marks.texts:
                if ahead.startswith(text):
                    return self._read(self._at + len(text))
            if self.ended or (ahead and not marks.begin_with(ahead)):
                return None
            yield

    def peek(self) -> Steps[str]:
        """The next character, which stays unread; empty at the end."""
        while self._at == len(self._text) and not self.ended:
            yield
        return self._text[self._at : self._at + 1]

    def space(self) -> Steps[None]:
        """Reads white space."""
        while True:
            found = _SPACE.match(self._text, self._at)
            self._read(self._at if found is None else found.end())
            if self._at < len(self._text) or self.ended:
                return
            yield

    def word(self, allowed: re.Pattern[str], limit: int) -> Steps[str]:
        """Reads the characters that match, at most so many of them."""
        pieces: list[str] = []
        left = limit
        while left:
            end = self._at
            while end < min(len(self._text), self._at + left) and allowed.match(self._text[end]):
                end += 1
            pieces.append(piece := self._read(end))
            left -= len(piece)
            if self._at < len(self._text) or self.ended:
                break
            yield
        return "".join(pieces)

    def one(self, characters: Collection[str]) -> Steps[str]:
        """Reads the next character if it is one of these; empty if not."""
        if (yield from self.peek()) in characters and self._at < len(self._text):
            return self._read(self._at + 1)
        return ""

    def string(self, limit: int | None = None) -> Steps[str | None]:
        """Reads a JSON string.

        Args:
            limit: Most characters to read, with its quotes.

        Returns:
            Its value; None where there is none, or it is not well formed or too long.
        """
        pieces: list[str] = []
        if (yield from self.peek()) != '"':
            return None
        if not (yield from self._string(pieces.append, limit)):
            return None
        try:
            value = json.loads("".join(pieces), strict=False)
            value.encode()  # half a surrogate pair is no text
        except ValueError:
            return None
        return str(value)

    def value(self, take: Take) -> Steps[bool]:
        """Passes on a JSON value as it comes; only its brackets and quotes are looked at.

        Returns:
            Whether its end came.
        """
        first = yield from self.peek()
        if first == '"':
            return (yield from self._string(take, None))
        if first not in ("{", "["):
            return (yield from self._scalar(take))
        depth = 0
        while True:
            found = _BRACKETS.search(self._text, self._at)
            if found is None:
                take(self._read(len(self._text)))
                if self.ended:
                    return False
                yield
                continue
            if found[0] == '"':
                take(self._read(found.start()))
                if not (yield from self._string(take, None)):
                    return False
                continue
            take(self._read(found.end()))
            depth += 1 if found[0] in "{[" else -1
            if depth == 0:
                return True

    def _string(self, take: Take, limit: int | None) -> Steps[bool]:
        """Passes on a JSON string with its quotes; the first of them comes next."""
        take(self._read(self._at + 1))
        left = _NO_LIMIT if limit is None else limit - 1
        escaped = False
        while left:
            if self._at == len(self._text):
                if self.ended:
                    return False
                yield
                continue
            end = self._at + 1
            if not escaped:
                found = _STRING_END.search(self._text, self._at)
                end = len(self._text) if found is None else found.end()
            take(piece := self._read(min(end, self._at + left)))
            left -= len(piece)
            if not escaped and piece[-1] == '"':
                return True
            escaped = not escaped and piece[-1] == "\\"
        return False

    def _scalar(self, take: Take) -> Steps[bool]:
        while True:
            found = _SCALAR_END.search(self._text, self._at)
            take(self._read(len(self._text) if found is None else found.start()))
            if found is not None:
                return True
            if self.ended:
                return False
            yield

    def _read(self, end: int) -> str:
        text = self._text[self._at : end]
        self._at = end
        if self._record is not None and text:
            self._record.append(text)
        return text

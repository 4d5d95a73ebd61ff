"""Tokens of one request to text: whole characters only, and nothing past a stop string."""

from __future__ import annotations

from typing import Protocol

__all__ = ["TextDecoder", "TextStream"]


class TextDecoder(Protocol):
    """Turns one sequence of tokens into text as they come."""

    def push(self, token_id: int) -> str:
        """The text that became final with a token."""

    def flush(self) -> str:
        """The text that was held back, at the end of the sequence."""


class TextStream:
    """Joins a request's text and watches for its stop strings.

    Args:
        detokenizer: Turns tokens into whole characters; None for models without a tokenizer, whose
            text is always empty.
        stop: Output ends before the first of these.

    Attributes:
        stopped: The stop string that ended the output, None while none did.
    """

    def __init__(self, detokenizer: TextDecoder | None, stop: tuple[str, ...]) -> None:
        self._detokenizer = detokenizer
        self._stop = stop
        self._pending = ""
        self.stopped: str | None = None

    def push(self, token: int) -> str:
        """The text that became final with this token; sets `stopped` at a stop string."""
        if self._detokenizer is None:
            return ""
        self._pending += self._detokenizer.push(token)
        return self._release(hold=True)

    def finish(self) -> str:
        """The text that was still held back."""
        if self._detokenizer is None or self.stopped is not None:
            return ""
        self._pending += self._detokenizer.flush()
        return self._release(hold=False)

    def _release(self, *, hold: bool) -> str:
        if not self._stop:
            text, self._pending = self._pending, ""
            return text
        begins = {stop: self._pending.find(stop) for stop in self._stop}
        found = [(begin + len(stop), begin, stop) for stop, begin in begins.items() if begin >= 0]
        if found:
            # The one that is complete first, however the text came in pieces.
            _, begin, self.stopped = min(found)
            text, self._pending = self._pending[:begin], ""
            return text
        held = self._possible_stop() if hold else 0
        cut = len(self._pending) - held
        text, self._pending = self._pending[:cut], self._pending[cut:]
        return text

    def _possible_stop(self) -> int:
        """Length of the longest end of the text that a stop string could begin with."""
        longest = max((len(stop) for stop in self._stop), default=0)
        for length in range(min(longest - 1, len(self._pending)), 0, -1):
            if any(stop.startswith(self._pending[-length:]) for stop in self._stop):
                return length
        return 0

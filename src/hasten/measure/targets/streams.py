"""Streams of text over HTTP, read as they come: lines of JSON, and server-sent events."""

from __future__ import annotations

from hasten.measure.targets.target import TargetError

__all__ = ["EventStream", "LineStream"]

MAX_LINE = 16 * 2**20
"""Bytes of a line, and of an event's data."""


class LineStream:
    """Splits bytes into lines, which end with LF, CR LF or CR."""

    def __init__(self) -> None:
        self._held: list[bytes] = []
        self._size = 0

    def feed(self, data: bytes) -> list[bytes]:
        """The lines that these bytes complete, without their ends.

        Raises:
            TargetError: A line does not end within 16 MiB.
        """
        if b"\n" not in data and b"\r" not in data and not self._ends_in_cr():
            self._hold(data)
            return []
        lines = (b"".join(self._held) + data).splitlines(keepends=True)
        self._held, self._size = [], 0
        # A CR at the end may be the first half of an end.
        if lines and not lines[-1].endswith(b"\n"):
            self._hold(lines.pop())
        return [line.rstrip(b"\r\n") for line in lines]

    def _ends_in_cr(self) -> bool:
        return bool(self._held) and self._held[-1].endswith(b"\r")

    def _hold(self, data: bytes) -> None:
        self._size += len(data)
        if self._size > MAX_LINE:
            raise TargetError(f"the stream has a line of more than {MAX_LINE} bytes")
        if data:
            self._held.append(data)


class EventStream:
    """Reads the data of server-sent events; their names, ids and comments are left out.

    See https://html.spec.whatwg.org/multipage/server-sent-events.html#event-stream-interpretation.
    """

    def __init__(self) -> None:
        self._lines = LineStream()
        self._data: list[bytes] = []
        self._size = 0

    def feed(self, data: bytes) -> list[bytes]:
        """The data of the events that these bytes complete.

        Raises:
            TargetError: An event has more than 16 MiB.
        """
        events = []
        for line in self._lines.feed(data):
            if line.startswith(b"data:"):
                self._add(line[5:].removeprefix(b" "))
            elif line == b"data":
                self._add(b"")
            elif not line and self._data:
                events.append(b"\n".join(self._data))
                self._data, self._size = [], 0
        return events

    def _add(self, line: bytes) -> None:
        self._size += len(line) + 1
        if self._size > MAX_LINE:
            raise TargetError(f"the stream has an event of more than {MAX_LINE} bytes")
        self._data.append(line)

"""The loop of a batch: lines in, answers out, as many under way as keep the machine busy."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator

from hasten.errors import UsageError
from hasten.serve.batch.answer import Tally
from hasten.serve.batch.caller import LineCaller
from hasten.serve.batch.journal import Journal
from hasten.serve.batch.source import Line, Scan, Source

__all__ = ["BatchRun"]

_LOOK = 4096
_LOOK_BYTES = 4 << 20
"""Lines, and bytes of them, that are read in one go: an end of the run waits for no more."""
_MEMORY = 64 << 20
"""Bytes of the lines under way; a longer line goes alone."""


class BatchRun:
    """One run over an input, from the first line without an answer to the last.

    Args:
        source: The input.
        scan: Of it.
        journal: Where answers go; it has begun.
        caller: What answers.
        width: Lines under way at once.
        told: Receives the tally after an answer was written.
    """

    def __init__(
        self,
        source: Source,
        scan: Scan,
        journal: Journal,
        caller: LineCaller,
        *,
        width: int,
        told: Callable[[Tally], object] | None = None,
    ) -> None:
        self._source = source
        self._scan = scan
        self._journal = journal
        self._caller = caller
        self._width = width
        self._told = told
        self._next: asyncio.Queue[Line | None] = asyncio.Queue(maxsize=1)
        self._room = _Room(_MEMORY)

    async def run(self) -> None:
        """Answers every line that has no answer yet. What was answered is kept if this is left.

        Raises:
            HastenError: If it cannot go on: no room for answers, no engine, another input.
        """
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._read())
                for _ in range(self._width):
                    group.create_task(self._work())
        except ExceptionGroup as errors:
            raise errors.exceptions[0] from None
        if self._source.changed():
            raise UsageError(f"{str(self._source.path)!r} changed while it was read")

    async def _read(self) -> None:
        lines = self._source.lines()
        more = True
        while more:
            chunk, more = await asyncio.to_thread(self._look, lines)
            for line in chunk:
                await self._room.take(line)
                await self._next.put(line)
        for _ in range(self._width):
            await self._next.put(None)

    def _look(self, lines: Iterator[Line]) -> tuple[list[Line], bool]:
        """The next lines without an answer, and whether there may be more."""
        found = []
        size = 0
        for count, line in enumerate(lines, 1):
            if line.number not in self._journal.answered:
                found.append(line)
            size += line.size
            if count == _LOOK or size >= _LOOK_BYTES:
                return found, True
        return found, False

    async def _work(self) -> None:
        while (line := await self._next.get()) is not None:
            repeated = line.number in self._scan.repeated
            answer = await self._caller.answer(line, self._journal.run, repeated=repeated)
            # A write to the page cache takes less than handing it to a thread; the disk is another
            # matter.
            self._journal.append(answer)
            self._room.give(line)
            if self._told is not None:
                self._told(self._journal.tally)
            if self._journal.sync_due():
                await asyncio.to_thread(self._journal.sync)


class _Room:
    """Bounds the bytes of lines under way."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._used = 0
        self._given = asyncio.Event()

    async def take(self, line: Line) -> None:
        size = len(line.text or b"")
        while self._used and self._used + size > self._limit:
            self._given.clear()
            await self._given.wait()
        self._used += size

    def give(self, line: Line) -> None:
        self._used -= len(line.text or b"")
        self._given.set()

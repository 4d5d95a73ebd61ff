"""Counters that a server publishes for Prometheus, read before and after a load."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Collection

from hasten.measure.server_times import Totals
from hasten.measure.targets.http import HttpClient, HttpTarget
from hasten.measure.targets.target import Target, TargetError

__all__ = ["CounterReader", "parse_totals"]

PATH = "/metrics"
MOST_BYTES = 16 * 2**20
MOST_LINES = 200_000
MOST = 2.0**53
"""Up to which float64 has every whole number."""
SECONDS = 5.0
"""For one reading; it is not worth more of the user's time."""
PAUSE = 0.05
READINGS = 8
"""At most, until two in a row agree: a server may count a request after its last byte."""

_NAME = re.compile(rb"[ \t]*+([a-zA-Z_:][a-zA-Z0-9_:]*+)")
_REST = re.compile(
    rb'(?:[ \t]*+\{(?:[^"}]|"(?:[^"\\]|\\.)*+")*+\}[ \t]*+|[ \t]++)'  # labels
    rb"\+?([0-9]{1,64}+(?:\.[0-9]{0,64}+)?(?:[eE][+-]?[0-9]{1,3})?)"
    rb"(?:[ \t]++-?[0-9.]++)?(?:[ \t]++#.*+)?[ \t\r]*+"  # when, an exemplar
)


def parse_totals(body: bytes, names: Collection[str]) -> dict[str, float]:
    """Sums samples over their labels, as of Prometheus' text format or OpenMetrics.

    Args:
        body: The page; of other lines than those of these names nothing is asked.
        names: Of samples that cannot be negative, such as `x_seconds_sum`.

    Returns:
        Totals by name, of those that the page has.

    Raises:
        TargetError: A line is none of the format, a value is negative, not finite or above
            2⁵³, or there are more than 200,000 lines.
    """
    if body.count(b"\n") > MOST_LINES:
        raise TargetError(f"{PATH} has more than {MOST_LINES} lines")
    wanted = {name.encode(): name for name in names}
    totals: dict[str, float] = {}
    for line in body.split(b"\n"):
        found = _NAME.match(line)
        name = wanted.get(found[1]) if found else None
        if found and name is not None:
            totals[name] = totals.get(name, 0.0) + _value(line, found.end())
            if totals[name] > MOST:
                raise TargetError(f"{PATH}: {name} is too large")
    return totals


def _value(line: bytes, at: int) -> float:
    """The value of a sample whose name ends at some byte."""
    found = _REST.fullmatch(line, at)
    if found is None:
        raise TargetError(f"{PATH} has a line that is no sample: {line[:100]!r}")
    return float(found[1])


class CounterReader:
    """Reads counters of the server behind a target, around a load.

    Args:
        target: Where it is no server over HTTP, nothing is read.
        names: Of the counters, as for `parse_totals`.
    """

    def __init__(self, target: Target, names: Collection[str]) -> None:
        self._target = target
        self._names = names
        self._before: Totals | None = None

    async def begin(self) -> None:
        """Reads them within the load, when the warm-up is over."""
        if isinstance(self._target, HttpTarget):
            self._before = await _settled(self._target.client, self._names)

    def end(self) -> tuple[Totals, Totals] | None:
        """Reads them again, when the load is over.

        Returns:
            What they were before and after; None where the server publishes nothing.
        """
        if self._before is None or not isinstance(self._target, HttpTarget):
            return None
        after = asyncio.run(_reopened(self._target, self._names))
        return None if after is None else (self._before, after)


async def _reopened(target: HttpTarget, names: Collection[str]) -> Totals | None:
    async with target:
        return await _settled(target.client, names)


async def _settled(client: HttpClient, names: Collection[str]) -> Totals | None:
    """The counters when they have come to rest, or as they are where others keep them moving."""
    last = await _read(client, names)
    for _ in range(READINGS - 1):
        if last is None:
            break
        await asyncio.sleep(PAUSE)
        before, last = last, await _read(client, names)
        if last == before:
            break
    return last


async def _read(client: HttpClient, names: Collection[str]) -> Totals | None:
    """One reading; None where there is no such page, or none that can be read."""
    pieces: list[bytes] = []
    size = 0

    def take(piece: bytes, _: float) -> None:
        nonlocal size
        size += len(piece)
        if size > MOST_BYTES:
            raise TargetError(f"{PATH} is larger than {MOST_BYTES} bytes")
        pieces.append(piece)

    try:
        async with asyncio.timeout(SECONDS):
            reply = await client.request("GET", PATH, sink=take)
        return parse_totals(b"".join(pieces), names) if reply.status == 200 else None
    except (TargetError, TimeoutError):
        return None

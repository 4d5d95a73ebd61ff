"""What processes use: processor time and memory, their children's included, from /proc."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from hasten.measure.memory import reset_peak_rss

__all__ = ["ProcessUse", "family", "process_use", "reset_peaks"]

PROC = Path("/proc")


@dataclass(frozen=True, slots=True)
class ProcessUse:
    """What some processes have used so far.

    Attributes:
        cpu_seconds: User and system time; children that have ended count where a parent among the
            processes has waited for them.
        peak_rss_bytes: Sum of their largest resident sets; memory that they share counts for each.
    """

    cpu_seconds: float
    peak_rss_bytes: int


def family(pids: Iterable[int], proc: Path = PROC) -> frozenset[int]:
    """The processes, and all that come from them and still run."""
    children: dict[int, list[int]] = {}
    for pid, fields in _processes(proc):
        children.setdefault(int(fields[1]), []).append(pid)
    found: set[int] = set()
    waiting = list(pids)
    while waiting:
        pid = waiting.pop()
        if pid not in found:
            found.add(pid)
            waiting += children.get(pid, [])
    return frozenset(found)


def process_use(pids: Iterable[int], proc: Path = PROC) -> ProcessUse:
    """Reads the counters; a process that has ended counts as nothing."""
    tick = os.sysconf("SC_CLK_TCK")
    seconds, peak = 0.0, 0
    for pid in pids:
        fields = _stat(proc / str(pid))
        if fields is not None:
            # utime, stime and the same of children, counted from the state as field 0
            seconds += sum(int(field) for field in fields[11:15]) / tick
            peak += _peak(proc / str(pid))
    return ProcessUse(seconds, peak)


def reset_peaks(pids: Iterable[int], proc: Path = PROC) -> bool:
    """Makes the kernel forget the largest resident sets; False where it does not allow that."""
    return sum(not reset_peak_rss(proc / str(pid)) for pid in pids) == 0


def _processes(proc: Path) -> Iterator[tuple[int, list[str]]]:
    for entry in proc.iterdir():
        if entry.name.isdigit() and (fields := _stat(entry)) is not None:
            yield int(entry.name), fields


def _stat(folder: Path) -> list[str] | None:
    """Fields of /proc/PID/stat after the name, which may itself hold spaces and brackets."""
    try:
        text = (folder / "stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    return text.rpartition(")")[2].split()


def _peak(folder: Path) -> int:
    try:
        lines = (folder / "status").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:")), 0)

"""Who else used the processor while something was measured, from /proc/stat.

A benchmark that shared its cores measured its neighbours too. The kernel counts ticks of 10 ms, so
windows under a second say little.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from hasten.measure.processes import process_use

__all__ = ["CpuTimes", "Interference", "between", "read_cpu_times"]

STAT = Path("/proc/stat")
MAX_OTHERS = 0.10
MAX_STEAL = 0.05
SHORTEST = 0.5  # seconds of all cores together: 50 ticks


@dataclass(frozen=True, slots=True)
class CpuTimes:
    """Processor time since boot, in seconds over all cores.

    Attributes:
        busy: Spent on anything but idling, steal excluded.
        idle: Idle or waiting for disks.
        steal: Taken by the hypervisor for other machines.
        own: Spent by this process and what it measures.
    """

    busy: float
    idle: float
    steal: float
    own: float


@dataclass(frozen=True, slots=True)
class Interference:
    """Shares, in [0, 1], of all cores' time between two readings.

    Attributes:
        others: Used by other processes of this machine.
        steal: Taken by the hypervisor.
    """

    others: float
    steal: float

    def problems(self) -> list[str]:
        """Why figures that were measured meanwhile do not stand for the target alone."""
        found = []
        if self.others > MAX_OTHERS:
            found.append(
                f"invalid: other processes used {self.others:.0%} of the processor "
                f"(at most {MAX_OTHERS:.0%}); stop them and measure again"
            )
        if self.steal > MAX_STEAL:
            found.append(
                f"invalid: the hypervisor took {self.steal:.0%} of the processor "
                f"(at most {MAX_STEAL:.0%}); measure again"
            )
        return found


def read_cpu_times(stat: Path = STAT, target: Iterable[int] = ()) -> CpuTimes | None:
    """Read the counters; None where the kernel does not show them.

    Args:
        stat: Where they stand.
        target: Other processes that are measured, such as those of a server.
    """
    try:
        with stat.open(encoding="ascii") as file:
            name, *fields = file.readline().split()
        user, nice, system, idle, iowait, irq, softirq, steal = (int(x) for x in fields[:8])
    except (OSError, ValueError):
        return None
    if name != "cpu":
        return None
    ticks = os.sysconf("SC_CLK_TCK")
    own = os.times()
    others = [pid for pid in target if pid != os.getpid()]
    return CpuTimes(
        busy=(user + nice + system + irq + softirq) / ticks,
        idle=(idle + iowait) / ticks,
        steal=steal / ticks,
        own=own.user + own.system + process_use(others).cpu_seconds,
    )


def between(before: CpuTimes | None, after: CpuTimes | None) -> Interference | None:
    """Shares of the time between two readings; None if it is unknown or too short to tell."""
    if before is None or after is None:
        return None
    busy = after.busy - before.busy
    steal = after.steal - before.steal
    total = busy + steal + after.idle - before.idle
    if total < SHORTEST:
        return None
    others = busy - (after.own - before.own)
    return Interference(others=min(1.0, max(0.0, others / total)), steal=max(0.0, steal / total))

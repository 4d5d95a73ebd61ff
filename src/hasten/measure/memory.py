"""Peak memory of this process while something runs."""

from __future__ import annotations

import re
import resource
from dataclasses import dataclass
from pathlib import Path

__all__ = ["PeakRss", "peak_rss", "reset_peak_rss"]

PROC = Path("/proc/self")
RESET_PEAK = "5"  # see clear_refs in proc(5)


@dataclass(frozen=True, slots=True)
class PeakRss:
    """The largest resident set.

    Attributes:
        size_bytes: Its size; memory that is mapped from files counts where it was touched.
        since_start: True if it covers the life of the process, because the kernel would not
            reset the mark.
    """

    size_bytes: int
    since_start: bool


def reset_peak_rss(proc: Path = PROC) -> bool:
    """Make the kernel forget the largest resident set so far; False if it does not allow that."""
    try:
        (proc / "clear_refs").write_text(RESET_PEAK, encoding="ascii")
    except OSError:
        return False
    return True


def peak_rss(*, was_reset: bool, proc: Path = PROC) -> PeakRss:
    """Read the largest resident set since `reset_peak_rss`, or since the process began."""
    try:
        status = (proc / "status").read_text(encoding="ascii", errors="replace")
    except OSError:
        status = ""
    match = re.search(r"^VmHWM:\s+([0-9]+) kB", status, re.MULTILINE)
    if match is not None:
        return PeakRss(int(match[1]) * 1024, since_start=not was_reset)
    # getrusage keeps its own mark, which clear_refs does not reset.
    kilobytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return PeakRss(kilobytes * 1024, since_start=True)

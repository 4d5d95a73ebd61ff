"""Energy of the processor's packages, where the kernel shows a counter (RAPL)."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Counter", "joules_between", "read_energy"]

POWERCAP = Path("/sys/class/powercap")
PACKAGE = re.compile(r"intel-rapl:[0-9]+")  # AMD's, too; subzones such as :0:0 are parts of these


@dataclass(frozen=True, slots=True)
class Counter:
    """A reading of one package.

    Attributes:
        microjoules: Since some moment; it starts over after `range_microjoules`.
        range_microjoules: The largest reading.
    """

    microjoules: int
    range_microjoules: int


def read_energy(root: Path = POWERCAP) -> dict[str, Counter] | None:
    """Reads all packages; None where there are none, or root alone may read them."""
    try:
        zones = [zone for zone in root.iterdir() if PACKAGE.fullmatch(zone.name)]
        found = {
            zone.name: Counter(
                int((zone / "energy_uj").read_text(encoding="ascii")),
                int((zone / "max_energy_range_uj").read_text(encoding="ascii")),
            )
            for zone in zones
            if (zone / "name").read_text(encoding="ascii").startswith("package")
        }
    except (OSError, ValueError):
        return None
    return found or None


def joules_between(
    before: dict[str, Counter] | None, after: dict[str, Counter] | None
) -> float | None:
    """Energy of all packages between two readings; None if either is not known.

    A counter starts over once in minutes to hours; a reading that fell did so once.
    """
    if before is None or after is None or before.keys() != after.keys():
        return None
    total = 0
    for name, end in after.items():
        used = end.microjoules - before[name].microjoules
        total += used if used >= 0 else used + end.range_microjoules
    return total / 1e6

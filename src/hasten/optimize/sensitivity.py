"""Mixed precision: which parts of a model bear a coarser format, found by measuring each.

One part at a time is given the coarser format while the rest keeps the finer one, and the KL
divergence that this costs is measured. Parts are then taken in the order of KL per byte saved,
as many as the budget bears. The losses of parts do not simply add up, so the number of parts is
found by measuring mixtures (binary search), not by summing.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from hasten.generation.formats import MatrixFormat
from hasten.measure.accuracy import Accuracy
from hasten.optimize.candidates import Candidate, MatrixShapes

__all__ = [
    "Part",
    "Sensitivity",
    "bytes_saved",
    "largest_admitted",
    "measure_parts",
    "mix",
    "parts_of",
]

_LAYER = re.compile(r"(?:^|\.)layers\.(\d+)\.")


@dataclass(frozen=True, slots=True)
class Part:
    """Matrices that change format together: those of one layer, or one outside the layers."""

    name: str
    tensors: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Sensitivity:
    """What giving one part the coarser format costs, and the bytes (more than 0) it saves."""

    part: Part
    kl: float
    saved_bytes: int

    @property
    def price(self) -> float:
        """KL in nats per mebibyte saved."""
        return self.kl / (self.saved_bytes / 2**20)


def parts_of(names: Iterable[str]) -> list[Part]:
    """Groups tensor names by layer, in the order of the layers; others stand alone, first."""
    layers: dict[int, list[str]] = {}
    alone: list[str] = []
    for name in names:
        match = _LAYER.search(name)
        if match is None:
            alone.append(name)
        else:
            layers.setdefault(int(match[1]), []).append(name)
    parts = [Part(name.removesuffix(".weight"), (name,)) for name in sorted(alone)]
    parts += [Part(f"layer {index}", tuple(sorted(layers[index]))) for index in sorted(layers)]
    return parts


def measure_parts(
    saved: Mapping[Part, int],
    base: Candidate,
    coarse: str,
    *,
    measure: Callable[[Candidate], Accuracy],
    bearable: Callable[[Accuracy], bool],
    go_on: Callable[[float], bool],
) -> list[Sensitivity]:
    """Measures each part alone in the coarser format.

    Args:
        saved: The parts to try, and the bytes that the coarser format saves in each.
        base: The candidate whose other tensors keep their format.
        coarse: The format to give the part.
        measure: Accuracy of a candidate on a part of the calibration text.
        bearable: Whether the budget bears it; a part that is too much alone is left out.
        go_on: Told the share that is done, before each part; False ends the measurement early.

    Returns:
        The parts that may be made coarser, the cheapest per byte saved first.
    """
    found: list[Sensitivity] = []
    for index, (part, count) in enumerate(saved.items()):
        if not go_on(index / len(saved)):
            break
        if count <= 0:
            continue
        accuracy = measure(mix(base, coarse, [part]))
        if bearable(accuracy):
            found.append(Sensitivity(part, accuracy.kl.estimate, count))
    return sorted(found, key=lambda one: one.price)


def mix(base: Candidate, coarse: str, parts: Sequence[Part]) -> Candidate:
    """The base with some parts in the coarser format."""
    overrides = dict(base.overrides)
    overrides.update({name: coarse for part in parts for name in part.tensors})
    what = (
        f"{base.mixed or base.weights} with {coarse} in {len(parts)} part{'s' * (len(parts) != 1)}"
    )
    return replace(base, overrides=tuple(sorted(overrides.items())), mixed=what)


def largest_admitted(
    ordered: Sequence[Sensitivity],
    base: Candidate,
    coarse: str,
    admits: Callable[[Candidate], bool],
) -> Candidate | None:
    """The base with as many parts coarser, cheapest first, as `admits` bears; None for no part.

    Binary search: it takes the loss to grow with the number of parts, which measurements on a
    small sample only nearly do, so the result is measured again by whoever uses it.
    """
    low, high = 0, len(ordered)
    while low < high:
        middle = (low + high + 1) // 2
        if admits(mix(base, coarse, [one.part for one in ordered[:middle]])):
            low = middle
        else:
            high = middle - 1
    return mix(base, coarse, [one.part for one in ordered[:low]]) if low else None


def bytes_saved(
    parts: Sequence[Part],
    shapes: MatrixShapes,
    before: Mapping[str, MatrixFormat],
    after: Mapping[str, MatrixFormat],
) -> dict[Part, int]:
    """What each part saves when the formats change.

    Args:
        parts: The parts.
        shapes: The model's matrices.
        before: The format that each tensor runs in now, by name.
        after: The format it would run in.
    """
    return {
        part: sum(
            before[name].nbytes(shapes[name]) - after[name].nbytes(shapes[name])
            for name in part.tensors
        )
        for part in parts
    }

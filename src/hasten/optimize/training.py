"""How passes that train went: their losses, from the file that they keep to the recipe."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from hasten.models import Model
from hasten.models.json_file import read_json_object
from hasten.optimize.passes.interface import Pass

__all__ = ["LOSSES_FILE", "Kept", "loss_curve", "training_curves"]

LOSSES_FILE = "losses.json"
"""In the directory of a pass that trains: {"losses": [{"step", "loss", "held_out"}, ...]}."""
_MOST_POINTS = 100


class Kept(Protocol):
    """Where passes keep what they did; `hasten.optimize.variants.Variants` is one."""

    def losses(self, steps: Sequence[Pass[Model]]) -> Path | None:
        """The losses of the last of these passes, if it trained."""


def training_curves(
    candidates: Sequence[Sequence[Pass[Model]]], kept: Kept
) -> list[dict[str, Any]]:
    """The losses of each training that candidates went through; one that several share is one.

    Args:
        candidates: Passes of each, as the recipe numbers them.
        kept: Has the losses.

    Returns:
        "pass" (its label), "candidates" (numbers) and what `loss_curve` gives, JSON-ready.
    """
    found: dict[Path, dict[str, Any]] = {}
    for number, steps in enumerate(candidates):
        for end, step in enumerate(steps, 1):
            path = kept.losses(steps[:end])
            if path is None:
                continue
            if path not in found:
                curve = loss_curve(read_json_object(path)["losses"])
                found[path] = {"pass": step.label, "candidates": [], **curve}
            found[path]["candidates"].append(number)
    return list(found.values())


def loss_curve(losses: Iterable[Mapping[str, Any]]) -> dict[str, list[list[float]]]:
    """Points [steps done, loss] to draw.

    Args:
        losses: Of each step, as in `LOSSES_FILE`.

    Returns:
        "loss", where many steps become about a hundred means of as many neighbours, and
        "held_out", wherever it was measured.
    """
    listed = list(losses)
    steps = [(one["step"], one["loss"]) for one in listed if one["loss"] is not None]
    width = -(-len(steps) // _MOST_POINTS) or 1
    bins = [steps[begin : begin + width] for begin in range(0, len(steps), width)]
    return {
        "loss": [[sum(column) / len(one) for column in zip(*one, strict=True)] for one in bins],
        "held_out": [
            [one["step"], one["held_out"]] for one in listed if one["held_out"] is not None
        ],
    }

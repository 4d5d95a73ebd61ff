"""Models that passes make, kept on disk while a search runs, so that none is made twice."""

from __future__ import annotations

import functools
import hashlib
import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path

from hasten.measure.corpus import Windows
from hasten.models import Model
from hasten.models.artefact import load_artefact, write_artefact
from hasten.optimize.passes.interface import Pass, Workshop, parameters_of
from hasten.optimize.passes.quantize import lossless
from hasten.optimize.training import LOSSES_FILE

__all__ = ["Variants"]

Steps = Sequence[Pass[Model]]
_PROGRESS = "progress"


class Variants:
    """The original after passes; each is made when it is first asked for.

    What a pass made is found again by its parameters and those of the passes before it, so a search
    that was stopped goes on from there. A directory belongs to one original and one text.

    Args:
        original: The model before any pass.
        calibration: Text that passes may use.
        directory: Where to keep them.
        progress: Told what a pass does, and the share of it that is done.
        seed: For passes.
        training_text: Text for passes that train.
    """

    def __init__(
        self,
        original: Model,
        calibration: Windows,
        directory: Path,
        progress: Callable[[str, float], None],
        *,
        seed: int,
        training_text: Windows | None = None,
    ) -> None:
        self._original = original
        self._calibration = calibration
        self._directory = directory
        self._progress = progress
        self._seed = seed
        self._training_text = training_text
        self._made: dict[str, Model] = {}
        self._told: tuple[str, int] | None = None

    def model(self, steps: Steps) -> Model:
        """The original after these passes, in this order.

        Raises:
            HastenError: A pass cannot be applied.
            KeyboardInterrupt: What was done so far is kept.
        """
        if not steps:
            return self._original
        key = _key(steps)
        if key not in self._made:
            place = self._directory / key
            if not (place / "model").is_dir():
                self._make(steps, place)
            self._made[key] = load_artefact(place / "model", self._original.name)
        return self._made[key]

    def losses(self, steps: Steps) -> Path | None:
        """The file with the losses of the last of these passes, if it has trained."""
        path = self._directory / _key(steps) / _PROGRESS / LOSSES_FILE
        return path if path.exists() else None

    def _make(self, steps: Steps, place: Path) -> None:
        *before, last = steps
        workspace = place / _PROGRESS
        workspace.mkdir(parents=True, exist_ok=True)
        workshop = Workshop(
            original=self._original,
            calibration=self._calibration,
            directory=workspace,
            progress=functools.partial(self._tell, last.label),
            seed=self._seed,
            training_text=self._training_text,
        )
        made = last.apply(self.model(before), workshop)
        tensors = {name: lossless(tensor) for name, tensor in made.weights.items()}
        # An artefact appears whole or not at all, so a directory of that name is complete.
        write_artefact(place / "model", made, tensors, {"passes": [*map(parameters_of, steps)]})
        for state in workspace.glob("*.safetensors"):
            # What a pass would have gone on from may be larger than the model; losses are kept.
            state.unlink()

    def _tell(self, label: str, doing: str, share: float) -> None:
        """Tenths are enough: a pass may tell of every matrix."""
        tenth = math.floor(10 * share)
        if (label, tenth) != self._told:
            self._told = (label, tenth)
            self._progress(f"{label}: {10 * tenth} %, {doing}", share)


def _key(steps: Steps) -> str:
    text = json.dumps([*map(parameters_of, steps)], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:24]

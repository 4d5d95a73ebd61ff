"""How far a distillation came, on disk: one file, replaced whole, and the losses for a plot."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hasten.errors import UsageError
from hasten.measure.corpus import Windows
from hasten.models import Model
from hasten.models.safetensors import StoredArray, read_safetensors, write_safetensors
from hasten.optimize.distillation.settings import DistillSettings
from hasten.optimize.training import LOSSES_FILE

__all__ = ["Loss", "State", "StateFile", "fingerprint"]

STATE = "state.safetensors"
_SCHEMA = "hasten.distillation/1"
_VALUES = "values"


@dataclass(frozen=True, slots=True)
class Loss:
    """Losses after so many steps.

    Attributes:
        step: Steps done.
        loss: Mean over the windows of the last step; None before the first.
        held_out: Loss of the logits on the windows held out; None where it was not measured.
    """

    step: int
    loss: float | None
    held_out: float | None


@dataclass(slots=True)
class State:
    """Everything that changes while a student learns; what comes next follows from it alone.

    Attributes:
        step: Steps done.
        losses: One entry a step, the first before any.
        best: Held-out loss of the best weights.
        tensors: By kind ("weights", "mean", "square" as AdamW has them, "best") and name; those
            of a finished distillation are the best weights alone.
    """

    step: int = 0
    losses: list[Loss] = field(default_factory=list)
    best: float = float("inf")
    tensors: dict[str, dict[str, Tensor]] = field(default_factory=dict)


class StateFile:
    """Reads and writes the state of one distillation.

    Args:
        directory: Where; made when something is written.
        identity: What the state belongs to, as `fingerprint` says.
    """

    def __init__(self, directory: Path, identity: str) -> None:
        self._directory = directory
        self._identity = identity

    def read(self) -> State | None:
        """What was written last, None where there is nothing.

        Raises:
            UsageError: It belongs to another distillation.
            ModelFileError: It cannot be read.
        """
        path = self._directory / STATE
        if not path.exists():
            return None
        arrays = dict(read_safetensors(path))
        values = json.loads(arrays.pop(_VALUES).data.tobytes()) if _VALUES in arrays else {}
        if values.get("schema") != _SCHEMA or values.get("identity") != self._identity:
            raise UsageError(
                f"{path} holds the state of a distillation of other models, text or settings",
                do="give another directory, or remove it to begin anew",
            )
        tensors: dict[str, dict[str, Tensor]] = {}
        for name, array in arrays.items():
            kind, _, weight = name.partition("/")
            tensors.setdefault(kind, {})[weight] = torch.tensor(array.data)
        losses = [Loss(**one) for one in values["losses"]]
        best = float("inf") if values["best"] is None else values["best"]
        return State(values["step"], losses, best, tensors)

    def write(self, state: State) -> None:
        """Replaces what was written; a process that is killed leaves either whole.

        Raises:
            UsageError: It cannot be written.
        """
        values = {
            "schema": _SCHEMA,
            "identity": self._identity,
            "step": state.step,
            "best": state.best if np.isfinite(state.best) else None,
            "losses": [asdict(one) for one in state.losses],
        }
        arrays = {
            f"{kind}/{name}": StoredArray("F32", tensor.detach().cpu().numpy())
            for kind, tensors in state.tensors.items()
            for name, tensor in tensors.items()
        }
        encoded = np.frombuffer(json.dumps(values).encode(), np.uint8)
        arrays[_VALUES] = StoredArray("U8", encoded)
        report = json.dumps({"schema": _SCHEMA, "losses": values["losses"]}, indent=1)
        try:
            self._directory.mkdir(parents=True, exist_ok=True)
            _replace(self._directory / LOSSES_FILE, lambda path: path.write_text(report + "\n"))
            _replace(self._directory / STATE, lambda path: write_safetensors(path, arrays))
        except OSError as error:
            raise UsageError(
                f"{self._directory}: cannot be written ({error.strerror or error})",
                do="choose a directory with enough space and the right to write",
            ) from error


def _replace(path: Path, write: Callable[[Path], object]) -> None:
    """Writes a file beside another and puts it in its place once it is on the disk."""
    new = path.with_name(f"{path.name}.new")
    write(new)
    with new.open("rb") as file:
        os.fsync(file.fileno())
    new.replace(path)


def fingerprint(
    student: Model, teacher: Model, windows: Windows, settings: DistillSettings, seed: int
) -> str:
    """SHA-256 in hexadecimal of all that the result depends on."""
    total = hashlib.sha256()
    values: Mapping[str, Any] = {
        field: getattr(settings, field) for field in DistillSettings.__dataclass_fields__
    }
    total.update(json.dumps([values, seed, windows.ids], sort_keys=True).encode())
    for model in (student, teacher):
        total.update(repr(model.config).encode())
        for name, tensor in sorted(model.weights.items()):
            total.update(f"{name} {tensor.shape}".encode())
            total.update(np.ascontiguousarray(tensor.to_float32()).data)
    return total.hexdigest()

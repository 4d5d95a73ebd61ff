"""Where a long pass keeps what it has finished, so that it goes on from there after a kill."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hasten.errors import ModelFileError
from hasten.measure.corpus import Windows
from hasten.models import Model
from hasten.models.safetensors import StoredArray, read_safetensors, write_safetensors

__all__ = ["Shelf", "fingerprint"]

_TYPES = {
    np.dtype("u1"): "U8",
    np.dtype("i1"): "I8",
    np.dtype("i4"): "I32",
    np.dtype("f2"): "F16",
    np.dtype("f4"): "F32",
    np.dtype("f8"): "F64",
}


class Shelf:
    """Sets of arrays in files of one directory; each appears whole or not at all.

    Args:
        directory: Of the workshop.
        key: Says all that the content depends on; what lies under another key is not seen.
    """

    def __init__(self, directory: Path, key: str) -> None:
        self._directory = directory / key[:32]

    def take(self, name: str) -> dict[str, NDArray[Any]] | None:
        """What was put there under a name; None for nothing, or a file that is damaged."""
        path = self._path(name)
        if not path.exists():
            return None
        try:
            return {key: array.data for key, array in read_safetensors(path).items()}
        except ModelFileError:
            return None

    def put(self, name: str, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Keeps arrays (not empty) under a name."""
        self._directory.mkdir(parents=True, exist_ok=True)
        unfinished = self._path(f"{name}.{os.getpid()}.unfinished")
        stored = {key: StoredArray(_TYPES[array.dtype], array) for key, array in arrays.items()}
        write_safetensors(unfinished, stored)
        unfinished.replace(self._path(name))

    def _path(self, name: str) -> Path:
        return self._directory / f"{name}.safetensors"


def fingerprint(model: Model, windows: Windows, parameters: Mapping[str, Any]) -> str:
    """SHA-256 in hex of what a pass's result depends on: weights, shape, text and parameters."""
    total = hashlib.sha256(json.dumps(dict(parameters), sort_keys=True).encode())
    total.update(f"{model.config}\0{windows.digest}\0".encode())
    for name, tensor in sorted(model.weights.items()):
        total.update(f"{name}\0{tensor.shape}\0".encode())
        total.update(np.ascontiguousarray(tensor.to_float32()).data)
    return total.hexdigest()

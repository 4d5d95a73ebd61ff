"""What any export begins with: the tensors under the names of the family's own checkpoints."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from hasten.errors import UnsupportedModelError
from hasten.models import architectures
from hasten.models.model import Model
from hasten.models.weights import DenseEncoding, DenseTensor, StoredTensor

__all__ = ["HalfType", "Report", "checkpoint_tensors", "dense_values", "require_decoder"]

HalfType = Literal["F16", "BF16"]
"""Floats of two bytes that a matrix may be written in where its codes have no place."""
_LARGEST_HALF = float(np.finfo(np.float16).max)


@dataclass(slots=True)
class Report:
    """What became of the matrices of an export.

    Attributes:
        kept: Encodings in the new file of matrices that went over without loss, and how many.
        changed: Names of matrices that did not, and what became of each and why.
        remarks: What else is not as it was.
    """

    kept: dict[str, int] = field(default_factory=dict)
    changed: dict[str, str] = field(default_factory=dict)
    remarks: list[str] = field(default_factory=list)

    def note(self, name: str, encoding: str, reason: str, *, same: bool) -> None:
        """Counts a matrix that lost nothing, or says what one became and why."""
        if same:
            self.kept[encoding] = self.kept.get(encoding, 0) + 1
        else:
            self.changed[name] = f"{encoding}: {reason}"


def require_decoder(model: Model) -> None:
    """Refuses what has no tokens as its output, or what only Hasten computes.

    Raises:
        UnsupportedModelError: An encoder, a decoder without its output projection, or one with
            products of low rank.
    """
    if model.config.encoder is not None or model.config.output != "logits":
        raise UnsupportedModelError(
            f"{model.name} gives hidden states, no tokens", allowed="language models"
        )
    if model.config.factored:
        raise UnsupportedModelError(
            f"{model.config.factored[0][0]!r} is two products of low rank, for which the files of"
            " other programs have no words",
            do="keep it as an artefact of Hasten",
        )


def checkpoint_tensors(model: Model) -> dict[str, Sequence[StoredTensor]]:
    """The model's tensors by the names that its family has in Hugging Face checkpoints.

    Returns:
        For each name one tensor, or those whose rows, one after another, are the joint projection
        of that name.
    """
    joint = architectures.family(model.config.model_type).joint
    parts = {} if joint is None else joint(model.config)
    places = {single: module for module, singles in parts.items() for single in singles}
    found: dict[str, list[StoredTensor]] = {}
    for name, tensor in model.weights.items():
        found.setdefault(_joint_name(name, places), []).append(tensor)
    return {name: tuple(tensors) for name, tensors in found.items()}


def _joint_name(name: str, places: Mapping[str, str]) -> str:
    prefix, _, last = name.rpartition(".")
    stem, _, module = prefix.rpartition(".")
    return f"{stem}.{places[module]}.{last}" if module in places else name


def dense_values(
    name: str, tensors: Sequence[StoredTensor], half: HalfType
) -> tuple[DenseTensor, bool]:
    """The values of stacked tensors as one dense tensor.

    Args:
        name: Of the result.
        tensors: Their rows, one after another.
        half: The type for values that are not stored dense.

    Returns:
        The tensor, of the type that all are stored in or else of `half`, and whether each value is
        as it was.

    Raises:
        UnsupportedModelError: A value is beyond the range of `half`.
    """
    if len(tensors) == 1 and isinstance(tensors[0], DenseTensor):
        return tensors[0], True
    arrays = [tensor.to_float32() for tensor in tensors]
    values = arrays[0] if len(arrays) == 1 else np.concatenate(arrays)
    encodings = {tensor.encoding for tensor in tensors}
    found = _encode(name, values, _common(encodings, half))
    return found, np.array_equal(found.to_float32(), values)


def _common(encodings: set[str], half: HalfType) -> DenseEncoding:
    for encoding in ("F32", "F16", "BF16"):
        if encodings == {encoding}:
            return encoding
    return "F32" if "F32" in encodings else half


def _encode(name: str, values: NDArray[np.float32], encoding: DenseEncoding) -> DenseTensor:
    if encoding == "F32":
        return DenseTensor(name, encoding, values)
    if encoding == "BF16":
        bits = np.ascontiguousarray(values).view(np.uint32)
        nearest = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16  # ties to even
        return DenseTensor(name, encoding, nearest.astype(np.uint16))
    largest = np.abs(values).max()
    if largest > _LARGEST_HALF:
        raise UnsupportedModelError(
            f"tensor {name!r} holds {largest:.3g}",
            allowed=f"up to {_LARGEST_HALF:.0f} in float16",
            do="write dense matrices in bfloat16 (--dtype bfloat16)",
        )
    return DenseTensor(name, encoding, values.astype(np.float16))

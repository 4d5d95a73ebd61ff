"""Tensors for models that take them: what a model's inputs look like, made up and as bytes.

Datatypes go by their names in KServe's protocol.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from hasten.errors import UsageError
from hasten.measure.targets.target import Target, TargetError
from hasten.measure.workload import Item, Tensors, Workload

__all__ = [
    "NUMPY",
    "TensorSpec",
    "TensorTarget",
    "bytes_of",
    "check_size",
    "datatype_of",
    "random_workload",
    "tensors_of",
    "to_bytes",
]

NUMPY = {
    "BOOL": "?",
    "INT8": "i1",
    "INT16": "<i2",
    "INT32": "<i4",
    "INT64": "<i8",
    "UINT8": "u1",
    "UINT16": "<u2",
    "UINT32": "<u4",
    "UINT64": "<u8",
    "FP16": "<f2",
    "FP32": "<f4",
    "FP64": "<f8",
}
"""NumPy's names of the datatypes of a fixed size."""
_NAMES = {np.dtype(code): name for name, code in NUMPY.items()}
MAX_VALUES = 2**28
"""Values of a made-up tensor."""
LETTERS = np.frombuffer(b"abcdefghijklmnopqrstuvwxyz ", "S1")
WORD = 16
"""Bytes of a made-up value of BYTES."""


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """What an input looks like.

    Attributes:
        name: As the model calls it.
        datatype: "BOOL", "INT8" to "INT64", "UINT8" to "UINT64", "FP16" to "FP64", or "BYTES".
        shape: Sizes; -1 where any goes.
    """

    name: str
    datatype: str
    shape: tuple[int, ...]


class TensorTarget(Target, Protocol):
    """A target that takes tensors and tells which."""

    async def signature(self) -> tuple[TensorSpec, ...]:
        """The inputs of the model; the target must be open.

        Raises:
            TargetError: The target does not tell.
        """
        ...


def random_workload(
    signature: Sequence[TensorSpec],
    requests: int,
    *,
    warmup: int = 0,
    seed: int = 0,
    shapes: Mapping[str, Sequence[int]] | None = None,
    integers: tuple[int, int] = (0, 100),
) -> Workload:
    """Requests of made-up tensors, all different.

    Floats are drawn from [0, 1), texts of 16 letters, and integers from `integers`.

    Args:
        signature: The inputs.
        requests: To count.
        warmup: To make first.
        seed: What is drawn hangs on it alone.
        shapes: Of inputs by name, where the model leaves a size open.
        integers: The least, and the one after the largest.

    Raises:
        UsageError: A size is not given, or does not fit what the model says.
    """
    shapes = shapes or {}
    unknown = sorted(set(shapes) - {spec.name for spec in signature})
    if unknown:
        names = ", ".join(spec.name for spec in signature)
        raise UsageError(f"the model has no input {unknown[0]!r}", allowed=names)
    sized = [(spec, _shape(spec, shapes.get(spec.name))) for spec in signature]
    draws = np.random.default_rng(seed)
    items = [
        Tensors({spec.name: _draw(draws, spec, shape, integers) for spec, shape in sized})
        for _ in range(requests + warmup)
    ]
    return Workload("random tensors", seed, tuple(items[requests:]), tuple(items[:requests]))


def tensors_of(work: Item | Tensors) -> Mapping[str, NDArray[Any]]:
    """The inputs of a request; a prompt raises UsageError."""
    if isinstance(work, Item):
        raise UsageError("this model takes tensors, not prompts")
    return work.inputs


def datatype_of(array: NDArray[Any]) -> str:
    """The datatype of an array.

    Raises:
        UsageError: There is none for it.
    """
    if array.dtype.kind in "OSU":
        return "BYTES"
    name = _NAMES.get(array.dtype.newbyteorder("<"))
    if name is None:
        raise UsageError(f"no datatype for arrays of {array.dtype}", allowed=", ".join(NUMPY))
    return name


def to_bytes(array: NDArray[Any]) -> bytes:
    """Row-major and little-endian; each value of BYTES after its length."""
    if datatype_of(array) == "BYTES":
        values = [bytes_of(value) for value in array.ravel().tolist()]
        return b"".join(len(value).to_bytes(4, "little") + value for value in values)
    return np.ascontiguousarray(array, array.dtype.newbyteorder("<")).tobytes()


def check_size(name: str, datatype: str, shape: Sequence[int], size: int) -> None:
    """Raises TargetError unless an output of so many bytes can be of the datatype and shape."""
    code = NUMPY.get(datatype)
    if code is None or any(n < 0 for n in shape):
        return
    expected = np.dtype(code).itemsize
    for n in shape:
        expected *= n
    if expected != size:
        raise TargetError(
            f"the output {name!r} of {datatype} {list(shape)} has {size} bytes, not {expected}"
        )


def bytes_of(value: object) -> bytes:
    """A value of BYTES; a text is encoded in UTF-8."""
    return value if isinstance(value, bytes) else str(value).encode()


def _shape(spec: TensorSpec, given: Sequence[int] | None) -> tuple[int, ...]:
    shape = spec.shape if given is None else tuple(given)
    if any(size < 0 for size in shape):
        raise UsageError(
            f"the input {spec.name!r} has the shape {list(spec.shape)}",
            do="give a size for each -1",
        )
    fits = len(shape) == len(spec.shape) and all(
        said in (-1, size) for said, size in zip(spec.shape, shape, strict=True)
    )
    if not fits:
        raise UsageError(
            f"the shape {list(shape)} does not fit the input {spec.name!r}",
            allowed=f"{list(spec.shape)}, any size for -1",
        )
    count = 1
    for size in shape:
        count *= size
    if count > MAX_VALUES:
        raise UsageError(f"the shape {list(shape)} has {count} values", allowed=f"{MAX_VALUES}")
    return shape


def _draw(
    draws: np.random.Generator, spec: TensorSpec, shape: tuple[int, ...], integers: tuple[int, int]
) -> NDArray[Any]:
    if spec.datatype == "BYTES":
        letters = draws.choice(LETTERS, (*shape, WORD))
        return letters.view(f"S{WORD}").reshape(shape).astype(object)
    code = NUMPY.get(spec.datatype)
    if code is None:
        allowed = ", ".join([*NUMPY, "BYTES"])
        raise UsageError(
            f"the input {spec.name!r} is of {spec.datatype}, which is not made up", allowed=allowed
        )
    if spec.datatype.startswith("FP"):
        return draws.random(shape, np.float32).astype(code)
    if spec.datatype == "BOOL":
        return draws.integers(0, 2, shape).astype(code)
    low, high = integers
    least = np.iinfo(code)
    if not (least.min <= low < high <= int(least.max) + 1):
        raise UsageError(f"integers from {low} to {high - 1} do not fit {spec.datatype}")
    return draws.integers(low, high, shape, dtype=np.dtype(code).newbyteorder("="))

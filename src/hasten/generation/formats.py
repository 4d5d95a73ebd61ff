"""Which format each weight matrix runs in, and where its rows go."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Literal, cast

import numpy as np
from numpy.typing import NDArray

from hasten.errors import UsageError
from hasten.kernels.quantization import BLOCK, QuantizedMatrix, quantize_rtn
from hasten.models.grouped import GroupedTensor
from hasten.models.weights import StoredTensor
from hasten.types import EngineOptions

__all__ = [
    "MatrixFormat",
    "activation_group",
    "choose_formats",
    "column_order",
    "keeps_values",
    "pack_bias",
    "parse_format",
    "product_rows",
    "quantize_as",
    "shared_orders",
]

Kind = Literal["f32", "bf16", "int8", "int4"]
ALLOWED = "carried, f32, bf16, int8, int8:G, int4:G with G a multiple of 32"
_FLOAT_BYTES = {"f32": 4, "bf16": 2}
_HALF_PANEL = 16
_FALLBACK = "int8:32"


@dataclass(frozen=True, slots=True)
class MatrixFormat:
    """How the native executor holds a matrix.

    Attributes:
        kind: Element type.
        group: Columns that share a scale; 0 for float.
        minimum: Codes count from a minimum for each group.
    """

    kind: Kind
    group: int = 0
    minimum: bool = False

    def __str__(self) -> str:
        if self.group == 0:
            return self.kind
        return f"{self.kind}:{self.group}" + ("+min" if self.minimum else "")

    @classmethod
    def from_name(cls, name: str, columns: int) -> MatrixFormat:
        """The format that an engine names "f32", "int8:64" or "int4:32+min".

        Args:
            name: As `str` gives it; "int8" alone is one scale a row.
            columns: Of the matrix.

        Raises:
            UsageError: Not the name of a format that a matrix runs in.
        """
        kind, group = parse_format(name.removesuffix("+min"))
        if kind == "carried":
            raise UsageError(f"no matrix runs as {name!r}", allowed=ALLOWED)
        if kind in ("f32", "bf16"):
            return cls(kind)
        return cls(kind, group or _round_up(columns, BLOCK), name.endswith("+min"))

    def nbytes(self, shape: tuple[int, ...]) -> int:
        """Bytes of a matrix [rows, columns]: codes or floats, scales and minimums."""
        rows, columns = shape
        if self.group == 0:
            return rows * columns * _FLOAT_BYTES[self.kind]
        padded = _round_up(columns, BLOCK)
        codes = padded if self.kind == "int8" else padded // 2
        return rows * (codes + (4 if self.minimum else 2) * (padded // self.group))


def choose_formats(
    weights: Mapping[str, StoredTensor], names: Iterable[str], options: EngineOptions
) -> dict[str, MatrixFormat]:
    """The format of each matrix by the options.

    `int4:G` leaves the embedding and the output projection at int8: they hold the vocabulary, where
    4 bits cost most accuracy.

    Raises:
        UsageError: An unknown format, a group that does not fit, or an override that names no
            matrix of the model.
    """
    chosen = {}
    names = list(names)
    unknown = sorted(set(options.overrides) - set(names))
    if unknown:
        raise UsageError(
            f"override for {unknown[0]!r}, which is no matrix of this model",
            allowed=f"full tensor names such as {names[-1]!r}",
        )
    for name in names:
        wanted = options.overrides.get(name, options.weights)
        if name not in options.overrides and wanted.startswith("int4") and "proj" not in name:
            wanted = _FALLBACK
        chosen[name] = _resolve(weights[name], wanted)
    return chosen


def parse_format(text: str) -> tuple[Literal["carried"] | Kind, int | None]:
    """Splits "int4:64" into ("int4", 64); the group is None where none was given.

    Raises:
        UsageError: Not a format.
    """
    match = re.fullmatch(r"(carried|f32|bf16|int8|int4)(?::([0-9]{1,6}))?", text)
    if match is None:
        raise UsageError(f"unknown weight format {text!r}", allowed=ALLOWED)
    kind, group = cast("Literal['carried'] | Kind", match[1]), match[2] and int(match[2])
    if (group is not None and (kind not in ("int8", "int4") or group == 0 or group % BLOCK)) or (
        kind == "int4" and group is None
    ):
        raise UsageError(f"weight format {text!r} has no usable group size", allowed=ALLOWED)
    return kind, group or None


def _resolve(tensor: StoredTensor, wanted: str) -> MatrixFormat:
    kind, group = parse_format(wanted)
    padded = -(-tensor.shape[1] // BLOCK) * BLOCK
    if kind == "carried":
        return _carried(tensor)
    if kind == "f32":
        return MatrixFormat("f32")
    if kind == "bf16":
        return MatrixFormat("bf16")
    size = group or padded
    if padded % size:
        raise UsageError(
            f"weight format {wanted!r} does not fit {tensor.name} with {tensor.shape[1]} columns",
            allowed=f"groups that divide {padded}",
        )
    if kind == "int8":
        return MatrixFormat("int8", size)
    return MatrixFormat("int4", size, minimum=True)


def _carried(tensor: StoredTensor) -> MatrixFormat:
    """What the file holds, if a kernel runs it as it is."""
    if tensor.encoding in ("F32", "F16", "BF16"):
        return MatrixFormat("f32" if tensor.encoding == "F32" else "bf16")
    layout = tensor.layout()
    if layout is None:
        unfit = isinstance(tensor, GroupedTensor) and not tensor.fits_halves
        return _resolve(tensor, "f32" if unfit else _FALLBACK)
    return MatrixFormat("int8" if layout.bits == 8 else "int4", layout.group, layout.minimum)


def activation_group(form: MatrixFormat) -> int:
    """Columns of activations that share a scale: as fine as the weights' groups, at most 64."""
    if form.group == 0:
        return 0
    return 64 if form.group % 64 == 0 else BLOCK


def pack_bias(biases: list[NDArray[np.float32]], *, gated: bool = False) -> NDArray[np.float32]:
    """The biases at the rows where `pack_matrix` puts their weights, padded to whole panels."""
    targets, rows = product_rows([len(bias) for bias in biases], gated=gated)
    packed = np.zeros(_round_up(rows, 2 * _HALF_PANEL), np.float32)
    for target, bias in zip(targets, biases, strict=True):
        packed[target] = bias
    return packed


def product_rows(counts: Sequence[int], *, gated: bool) -> tuple[list[NDArray[np.int32]], int]:
    """Where the rows of several tensors go in the product over all of them.

    Args:
        counts: Rows of each tensor.
        gated: There are two, gate and up, and each panel gets 16 rows of both.

    Returns:
        int32 [rows] for each tensor, and the rows of the product.
    """
    if gated:
        index = np.arange(counts[0], dtype=np.int32)
        gate = index // _HALF_PANEL * 2 * _HALF_PANEL + index % _HALF_PANEL
        return [gate, gate + np.int32(_HALF_PANEL)], 2 * _round_up(counts[0], _HALF_PANEL)
    ends = list(accumulate(counts))
    starts = zip(ends, counts, strict=True)
    return [np.arange(end - count, end, dtype=np.int32) for end, count in starts], ends[-1]


def quantize_as(tensor: StoredTensor, form: MatrixFormat) -> QuantizedMatrix:
    """The file's own codes where they have this format, else rounded to nearest."""
    if _carries(tensor, form):
        carried = tensor.quantized()
        if carried is not None:
            return carried
    return quantize_rtn(tensor.to_float32(), 8 if form.kind == "int8" else 4, form.group)


def keeps_values(tensor: StoredTensor, form: MatrixFormat) -> bool:
    """Whether a format holds the matrix as the file does.

    True of codes taken over (products of two scales and minimums are rounded to half precision),
    and of floats in a type that holds them.
    """
    if form.kind == "f32":
        return True
    if form.kind == "bf16":
        return tensor.encoding == "BF16"
    return _carries(tensor, form)


def column_order(tensor: StoredTensor, form: MatrixFormat) -> NDArray[np.int32] | None:
    """Which column of the matrix each column of its codes is, where they are not in order."""
    layout = tensor.layout()
    return layout.order if layout is not None and _carries(tensor, form) else None


def shared_orders(
    weights: Mapping[str, StoredTensor], formats: Mapping[str, MatrixFormat]
) -> dict[str, str]:
    """For each matrix with an order of columns, the first matrix with the same order."""
    first: dict[bytes, str] = {}
    orders = {name: column_order(weights[name], form) for name, form in formats.items()}
    return {
        name: first.setdefault(order.tobytes(), name)
        for name, order in orders.items()
        if order is not None
    }


def _carries(tensor: StoredTensor, form: MatrixFormat) -> bool:
    layout = tensor.layout()
    return (
        layout is not None
        and layout.bits == (8 if form.kind == "int8" else 4)
        and layout.group == form.group
        and layout.minimum == form.minimum
    )


def _round_up(value: int, step: int) -> int:
    return -(-value // step) * step

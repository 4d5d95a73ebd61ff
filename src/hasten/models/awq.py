"""AWQ checkpoints (Lin et al. 2023) in the layout "gemm" of AutoAWQ.

A module of `columns` input and `rows` output features, 4 bits a code:

    qweight  I32 [columns, rows / 8]   word (c, j) holds rows 8 j .. 8 j + 7 of column c
    qzeros   I32 [groups, rows / 8]    zero points alike
    scales   F16 or BF16 [groups, rows]

Field i of a word (lowest bits first) belongs to row 8 j + (0, 2, 4, 6, 1, 3, 5, 7)[i], and
value = scale * (code - zero). Source: ``awq/modules/linear/gemm.py`` of AutoAWQ.
"""

from __future__ import annotations

import reprlib
from collections.abc import Mapping, MutableMapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hasten.errors import UnsupportedModelError
from hasten.models.fields import read_number
from hasten.models.grouped import GroupedCodes, GroupedTensor, group_size
from hasten.models.packing import read_floats, transpose
from hasten.models.safetensors import StoredArray, take_array

__all__ = ["take_awq"]

_SUFFIX = ".qweight"
_PER_WORD = 8
_FIELD_OF_ROW = (0, 4, 1, 5, 2, 6, 3, 7)


def take_awq(
    quantization: Mapping[str, Any], arrays: MutableMapping[str, StoredArray]
) -> dict[str, GroupedTensor]:
    """Moves the quantised modules out of a checkpoint: see `hasten.models.gptq.take_gptq`."""
    bits = read_number(quantization, "bits", int, quantization.get("w_bit", 4))
    if bits != 4:
        raise UnsupportedModelError(f"AWQ with {bits} bits", allowed="4")
    _check_layout(quantization)
    size = read_number(quantization, "group_size", int, quantization.get("q_group_size", 128))
    stems = [name.removesuffix(_SUFFIX) for name in arrays if name.endswith(_SUFFIX)]
    taken = [_take(stem, arrays, size) for stem in stems]
    return {tensor.name: tensor for tensor in taken}


def _check_layout(quantization: Mapping[str, Any]) -> None:
    keys = ("checkpoint_format", "format", "version")
    layout = next((quantization[key] for key in keys if quantization.get(key)), "gemm")
    if str(layout).lower() != "gemm" or quantization.get("backend") == "llm-awq":
        raise UnsupportedModelError(
            f"an AWQ checkpoint in the layout {reprlib.repr(layout)}",
            allowed="'gemm' as AutoAWQ writes it",
        )


def _take(stem: str, arrays: MutableMapping[str, StoredArray], size: int) -> GroupedTensor:
    words = take_array(arrays, stem + _SUFFIX, ("I32",), (None, None)).data
    columns, row_words = words.shape
    rows = row_words * _PER_WORD
    scales = take_array(arrays, stem + ".scales", ("F16", "BF16", "F32"), (None, rows))
    groups = len(scales.data)
    packed_zeros = take_array(arrays, stem + ".qzeros", ("I32",), (groups, row_words)).data

    parts = GroupedCodes(
        bits=4,
        shape=(rows, columns),
        group=group_size(stem, columns, groups, (size,)),
        codes=lambda begin, end: _rows(words, begin, end),
        scales=lambda begin, end: transpose(read_floats(scales, np.s_[:, begin:end])),
        zeros=lambda begin, end: _rows(packed_zeros, begin, end).astype(np.int16),
        half_scales=scales.dtype == "F16",
        group_of=None,
        nbytes=words.nbytes + packed_zeros.nbytes + scales.data.nbytes,
    )
    return GroupedTensor(stem + ".weight", f"AWQ 4-bit g{parts.group}", parts)


def _rows(words: NDArray[np.int32], begin: int, end: int) -> NDArray[np.uint8]:
    """Rows begin .. end - 1 of codes in words [columns, n], as [end - begin, columns]."""
    first = begin // _PER_WORD
    turned = transpose(words[:, first : -(-end // _PER_WORD)]).view(np.uint32)
    rows = np.empty((len(turned), _PER_WORD, turned.shape[1]), np.uint8)
    shifted = np.empty_like(turned)
    for row, field in enumerate(_FIELD_OF_ROW):
        np.right_shift(turned, np.uint32(4 * field), out=shifted)
        np.bitwise_and(shifted, np.uint32(15), out=rows[:, row], casting="unsafe")
    return rows.reshape(-1, turned.shape[1])[begin - first * _PER_WORD :][: end - begin]

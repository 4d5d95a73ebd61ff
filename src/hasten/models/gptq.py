"""GPTQ checkpoints (Frantar et al. 2022), as AutoGPTQ and GPTQModel write them.

A module of `columns` input and `rows` output features, b bits a code, n = 32 / b codes a word:

    qweight  I32 [columns / n, rows]   word (i, r) holds columns n i .. n i + n - 1, lowest bits
                                       first
    qzeros   I32 [groups, rows / n]    the zero points of rows n j .. n j + n - 1 alike
    scales   F16 or BF16 [groups, rows]
    g_idx    I32 [columns]             the group of each column; absent where it is i // group_size

and value = scale * (code - zero). The format "gptq" stores zero - 1; "gptq_v2" stores zero. With
`desc_act` the columns of a group lie scattered. Sources: ``qlinear_cuda.py`` of AutoGPTQ (packing),
``convert_gptq_v1_to_v2_format_module`` of GPTQModel (the two formats: 1 is added to every field of
a whole word at once).
"""

from __future__ import annotations

import reprlib
from collections.abc import Mapping, MutableMapping
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from hasten.errors import ModelFileError, UnsupportedModelError
from hasten.models.fields import read_number
from hasten.models.grouped import GroupedCodes, GroupedTensor, group_size, read_group_of
from hasten.models.packing import read_floats, transpose, unpack_rows, unpack_words
from hasten.models.safetensors import StoredArray, take_array

__all__ = ["take_gptq"]

_SUFFIX = ".qweight"
_FORMATS = ("gptq", "gptq_v2")
_ONES = {4: np.uint32(0x11111111), 8: np.uint32(0x01010101)}


def take_gptq(
    quantization: Mapping[str, Any], arrays: MutableMapping[str, StoredArray]
) -> dict[str, GroupedTensor]:
    """Moves the quantised modules out of a checkpoint.

    Args:
        quantization: The `quantization_config`.
        arrays: All arrays of the checkpoint; what remains is not quantised.

    Returns:
        Tensors by their Hugging Face names.

    Raises:
        ModelFileError: An array is missing or contradicts the others.
        UnsupportedModelError: Another number of bits, or another format.
    """
    bits = read_number(quantization, "bits", int)
    form = quantization.get("checkpoint_format") or quantization.get("format") or "gptq"
    if form not in _FORMATS:
        raise UnsupportedModelError(
            f"a GPTQ checkpoint of format {reprlib.repr(form)}", allowed="gptq, gptq_v2"
        )
    stems = [name.removesuffix(_SUFFIX) for name in arrays if name.endswith(_SUFFIX)]
    size = read_number(quantization, "group_size", int)
    # "dynamic" gives modules settings of their own; then their arrays say which.
    sizes, all_bits = ((), None) if quantization.get("dynamic") else ((size,), bits)
    taken = [_take(stem, arrays, all_bits, sizes, form) for stem in stems]
    return {tensor.name: tensor for tensor in taken}


def _take(
    stem: str,
    arrays: MutableMapping[str, StoredArray],
    bits: int | None,
    sizes: tuple[int, ...],
    form: str,
) -> GroupedTensor:
    words = take_array(arrays, stem + _SUFFIX, ("I32",), (None, None)).data
    rows = words.shape[1]
    scales = take_array(arrays, stem + ".scales", ("F16", "BF16", "F32"), (None, rows))
    packed_zeros = take_array(arrays, stem + ".qzeros", ("I32",), (len(scales.data), None)).data
    wide = _bits(stem, rows, packed_zeros.shape[1], bits)
    columns = len(words) * (32 // wide)
    group = group_size(stem, columns, len(scales.data), sizes)
    group_of = None
    if stem + ".g_idx" in arrays:
        stored = take_array(arrays, stem + ".g_idx", ("I32",), (columns,)).data
        group_of = read_group_of(stem, stored, group)

    def codes(begin: int, end: int) -> NDArray[np.uint8]:
        return unpack_words(transpose(words[:, begin:end]), wide)

    def zeros(begin: int, end: int) -> NDArray[np.int16]:
        stored = packed_zeros.view(np.uint32)
        if form == "gptq":
            stored = stored + _ONES[wide]
        return unpack_rows(stored, wide, begin, end).astype(np.int16)

    parts = GroupedCodes(
        bits=wide,
        shape=(rows, columns),
        group=group,
        codes=codes,
        scales=lambda begin, end: transpose(read_floats(scales, np.s_[:, begin:end])),
        zeros=zeros,
        half_scales=scales.dtype == "F16",
        group_of=group_of,
        nbytes=words.nbytes + packed_zeros.nbytes + scales.data.nbytes,
    )
    return GroupedTensor(stem + ".weight", _encoding(parts), parts)


def _bits(stem: str, rows: int, zero_words: int, bits: int | None) -> Literal[4, 8]:
    """Bits of a code, as many as the zero points have."""
    found = 32 * zero_words // rows
    if found not in (4, 8) or zero_words * (32 // found) != rows:
        if bits in (4, 8):
            raise ModelFileError(f"{stem!r} has {zero_words} words of zero points for {rows} rows")
        raise UnsupportedModelError(f"GPTQ with {bits or found} bits", allowed="4, 8")
    if bits not in (None, found):
        raise ModelFileError(f"{stem!r} has codes of {found} bits, the configuration says {bits}")
    return 4 if found == 4 else 8


def _encoding(parts: GroupedCodes) -> str:
    order = "" if parts.group_of is None else " act-order"
    return f"GPTQ {parts.bits}-bit g{parts.group}{order}"

"""compressed-tensors checkpoints with integer weights, as LLM Compressor writes them.

A module of `columns` input and `rows` output features holds either

    weight             I8 [rows, columns]                  (int-quantized, naive-quantized)

or, n = 32 / b codes of b bits a word, lowest bits first, each stored plus 2^(b - 1),

    weight_packed      I32 [rows, ceil(columns / n)]       (pack-quantized)
    weight_shape       I64 [2]                             rows, columns

and beside it

    weight_scale       F16, BF16 or F32 [rows, groups], [rows, 1] or one for the whole tensor
    weight_zero_point  I8 [rows, groups], or I32 packed along the rows like the weight; absent
                       where weights are symmetric
    weight_g_idx       I32 [columns], the group of each column; absent or -1 where it is
                       i // group_size

and value = scale * (code - zero). Sources: ``compressors/pack_quantized`` and
``quantization/lifecycle/forward.py`` of compressed-tensors.
"""

from __future__ import annotations

import reprlib
from collections.abc import Callable, Mapping, MutableMapping
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from hasten.errors import ModelFileError, UnsupportedModelError
from hasten.models.fields import read_number
from hasten.models.grouped import GroupedCodes, GroupedTensor, group_size, read_group_of
from hasten.models.packing import read_floats, unpack_rows, unpack_words
from hasten.models.safetensors import StoredArray, take_array

__all__ = ["take_compressed_tensors"]

_FORMATS = ("pack-quantized", "int-quantized", "naive-quantized", "mixed-precision")
_PACKED, _SCALE, _ZERO = ".weight_packed", ".weight_scale", ".weight_zero_point"
_RUN_TIME = (
    "input_scale", "input_zero_point", "input_g_idx", "output_scale", "output_zero_point",
    "k_scale", "v_scale", "k_zero_point", "v_zero_point", "q_scale", "q_zero_point",
)  # fmt: skip
"""Static scales of activations and of the KV cache. Hasten computes its own, finer ones."""

_Arrays = MutableMapping[str, StoredArray]


def take_compressed_tensors(
    quantization: Mapping[str, Any], arrays: _Arrays
) -> dict[str, GroupedTensor]:
    """Moves the quantised modules out of a checkpoint: see `hasten.models.gptq.take_gptq`.

    Scales of activations and of the KV cache are dropped.
    """
    sizes = _check_schemes(quantization)
    taken = {}
    for stem in [name.removesuffix(_SCALE) for name in arrays if name.endswith(_SCALE)]:
        packed = stem + _PACKED in arrays
        tensor = _take_packed(stem, arrays, sizes) if packed else _take_plain(stem, arrays, sizes)
        taken[tensor.name] = tensor
        for name in _RUN_TIME:
            arrays.pop(f"{stem}.{name}", None)
    for name in [name for name in arrays if name.rpartition(".")[2] in _RUN_TIME]:
        del arrays[name]
    return taken


def _check_schemes(quantization: Mapping[str, Any]) -> tuple[int, ...]:
    """The group sizes that the configuration names, -1 for a whole row."""
    sizes = set()
    _check_format(quantization.get("format", "pack-quantized"))
    if _object(quantization, "transform_config").get("config_groups"):
        raise UnsupportedModelError("weights with a transform that runs on activations")
    sparsity = _object(quantization, "sparsity_config").get("format", "dense")
    if sparsity != "dense":
        raise UnsupportedModelError(f"sparse weights ({reprlib.repr(sparsity)})", allowed="dense")
    schemes = _object(quantization, "config_groups")
    for scheme in [_object(schemes, name) for name in schemes]:
        _check_format(scheme.get("format") or "pack-quantized")
        weights = _object(scheme, "weights")
        if not weights:
            continue
        bits = read_number(weights, "num_bits", int)
        kind = weights.get("type", "int")
        strategy = weights.get("strategy") or "tensor"
        if kind != "int" or bits not in (4, 8) or strategy not in ("tensor", "channel", "group"):
            raise UnsupportedModelError(
                f"weights of {bits} bits, type {kind!r}, strategy {strategy!r}",
                allowed="4 or 8 bits, type 'int', strategies 'tensor', 'channel', 'group'",
            )
        sizes.add(read_number(weights, "group_size", int) if strategy == "group" else -1)
    return tuple(sorted(sizes, reverse=True))


def _object(values: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    """A JSON object; an empty one if it is absent or null."""
    value = values.get(key)
    if value is not None and not isinstance(value, dict):
        raise ModelFileError(f"{key} is {reprlib.repr(value)}", allowed="a JSON object")
    return value or {}


def _check_format(form: object) -> None:
    if form not in _FORMATS:
        raise UnsupportedModelError(
            f"compressed-tensors of the format {reprlib.repr(form)}", allowed=", ".join(_FORMATS)
        )


def _take_packed(stem: str, arrays: _Arrays, sizes: tuple[int, ...]) -> GroupedTensor:
    shape = take_array(arrays, stem + ".weight_shape", ("I64", "I32"), (2,)).data
    rows, columns = int(shape[0]), int(shape[1])
    words = take_array(arrays, stem + _PACKED, ("I32",), (rows, None)).data
    bits = _bits(stem, columns, words.shape[1])

    def codes(begin: int, end: int) -> NDArray[np.uint8]:
        return unpack_words(words[begin:end], bits)[:, :columns]

    return _finish(stem, arrays, sizes, bits, (rows, columns), codes, words.nbytes, "pack")


def _take_plain(stem: str, arrays: _Arrays, sizes: tuple[int, ...]) -> GroupedTensor:
    name = stem + ".weight"
    if name in arrays and arrays[name].dtype != "I8":
        raise UnsupportedModelError(
            f"tensor {name!r} has scales, but is stored as {arrays[name].dtype}", allowed="I8"
        )
    stored = take_array(arrays, name, ("I8",), (None, None)).data

    def codes(begin: int, end: int) -> NDArray[np.uint8]:
        return stored[begin:end].view(np.uint8) ^ np.uint8(0x80)

    return _finish(stem, arrays, sizes, 8, stored.shape, codes, stored.nbytes, "int")


def _bits(stem: str, columns: int, words: int) -> Literal[4, 8]:
    if words == -(-columns // 8):
        return 4
    if words == -(-columns // 4):
        return 8
    raise ModelFileError(
        f"{stem!r} has {words} packed words a row for {columns} columns",
        allowed="codes of 4 or 8 bits",
    )


def _finish(
    stem: str,
    arrays: _Arrays,
    sizes: tuple[int, ...],
    bits: Literal[4, 8],
    shape: tuple[int, int],
    codes: Callable[[int, int], NDArray[np.uint8]],
    nbytes: int,
    kind: str,
) -> GroupedTensor:
    rows, columns = shape
    scales, scale_bytes = _take_scales(stem, arrays, rows)
    groups = scales.data.shape[1]
    zeros, zero_bytes = _take_zeros(stem, arrays, bits, rows, groups)
    group = group_size(stem, columns, groups, sizes)
    group_of = None
    if stem + ".weight_g_idx" in arrays:
        stored = take_array(arrays, stem + ".weight_g_idx", ("I32", "I64"), (columns,)).data
        # -1 is what the buffer holds before an order was found.
        group_of = None if (stored == -1).any() else read_group_of(stem, stored, group)
    form = "channel" if groups == 1 else f"g{group}"
    order = "" if group_of is None else " act-order"
    parts = GroupedCodes(
        bits=bits,
        shape=shape,
        group=group,
        codes=codes,
        scales=lambda begin, end: read_floats(scales, np.s_[begin:end]),
        zeros=zeros,
        half_scales=scales.dtype == "F16",
        group_of=group_of,
        nbytes=nbytes + scale_bytes + zero_bytes,
    )
    return GroupedTensor(stem + ".weight", f"{kind}-quantized {bits}-bit {form}{order}", parts)


def _take_scales(stem: str, arrays: _Arrays, rows: int) -> tuple[StoredArray, int]:
    """The scales [rows, groups], and their bytes in the file."""
    name = stem + _SCALE
    stored = take_array(arrays, name, ("F16", "BF16", "F32"), _shape_by_row(arrays[name], rows))
    return StoredArray(stored.dtype, _by_row(stored.data, rows)), stored.data.nbytes


def _take_zeros(
    stem: str, arrays: _Arrays, bits: Literal[4, 8], rows: int, groups: int
) -> tuple[Callable[[int, int], NDArray[np.int16]] | None, int]:
    """The zero points plus 2^(bits - 1), and their bytes in the file."""
    name = stem + _ZERO
    if name not in arrays:
        return None, 0
    if arrays[name].dtype == "I32":
        words = -(-rows // (32 // bits))
        packed = take_array(arrays, name, ("I32",), (words, groups)).data
        return (
            lambda begin, end: unpack_rows(packed.T, bits, begin, end).astype(np.int16)
        ), packed.nbytes
    stored = take_array(arrays, name, ("I8",), _shape_by_row(arrays[name], rows)).data
    spread = _by_row(stored, rows)
    if spread.shape[1] != groups:
        raise ModelFileError(f"tensor {name!r} has {spread.shape[1]} groups, the scales {groups}")
    middle = np.int16(1 << (bits - 1))
    return lambda begin, end: spread[begin:end] + middle, stored.nbytes


def _shape_by_row(array: StoredArray, rows: int) -> tuple[int | None, ...]:
    """The shape to ask for: one value for the tensor, one a row, or one a row and group."""
    if array.data.size == 1:
        return array.data.shape
    return (rows, None) if array.data.ndim > 1 else (rows,)


def _by_row(values: NDArray[Any], rows: int) -> NDArray[Any]:
    """As [rows, groups]."""
    groups = max(1, values.size // rows)
    return np.broadcast_to(values.reshape(-1, groups), (rows, groups))

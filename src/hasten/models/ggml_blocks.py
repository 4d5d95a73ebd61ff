"""The block encodings of ggml tensors, and their values as float32.

Each encoding cuts a row into blocks of 32 or 256 columns that carry their own scales. The layouts
are those of ``ggml-common.h`` (llama.cpp); the arithmetic is done in float32 in the same order as
ggml's ``dequantize_row_*``, so the values equal its own bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "GGML_TYPES",
    "KNOWN_TYPE_NAMES",
    "BlockCodes",
    "BlockParts",
    "GgmlType",
    "dequantize_rows",
]

_Bytes = NDArray[np.uint8]
_Floats = NDArray[np.float32]
_Decoder = Callable[[_Bytes, _Floats], None]

_CHUNK = 1 << 18
"""Elements decoded at a time: the intermediates stay in the cache and memory stays bounded."""


class BlockParts(NamedTuple):
    """Blocks taken apart.

    Attributes:
        codes: uint8 [n, columns].
        scales: float32 [n, columns / 32].
        minimums: float32 like `scales`, or None.
    """

    codes: _Bytes
    scales: _Floats
    minimums: _Floats | None = None


@dataclass(frozen=True, slots=True)
class BlockCodes:
    """How the blocks of an encoding hold one integer code a column, with a scale for 32 of them.

    The value of a code is `scale * (code - zero)`, or `scale * code + minimum`.

    Attributes:
        bits: 4 where codes are 0..15; 8 where they are wider.
        zero: Code of the value 0; 0 where there are minimums.
        minimum: Whether there are minimums.
        split: Takes blocks uint8 [n, nbytes] apart.
    """

    bits: Literal[4, 8]
    zero: int
    minimum: bool
    split: Callable[[_Bytes], BlockParts]

    def decode(self, blocks: _Bytes, out: _Floats) -> None:
        """Writes the values as float32 into out [n, columns]."""
        codes, scales, minimums = self.split(blocks)
        out[...] = codes
        if self.zero:
            out -= self.zero
        _scaled_groups(out, scales, minimums)


@dataclass(frozen=True, slots=True)
class GgmlType:
    """One encoding.

    Attributes:
        name: As ggml names it, for example "Q4_1".
        columns: Columns of one block.
        nbytes: Bytes of one block.
        decode: Writes blocks uint8 [n, nbytes] as float32 into out [n, columns].
        codes: The integer codes, where they have the form of `BlockCodes`.
    """

    name: str
    columns: int
    nbytes: int
    decode: _Decoder
    codes: BlockCodes | None = None


def dequantize_rows(kind: GgmlType, rows: _Bytes, order: NDArray[np.intp] | None = None) -> _Floats:
    """Decodes whole rows.

    Args:
        kind: The encoding.
        rows: uint8 [n, bytes a row].
        order: If given, row i of the result is row order[i] of `rows`.

    Returns:
        float32 [n, columns]; with an order, as many rows as it names.
    """
    count = len(rows if order is None else order)
    columns = rows.shape[1] // kind.nbytes * kind.columns
    out = np.empty((count, columns), np.float32)
    step = max(1, _CHUNK // max(1, columns))
    for start in range(0, count, step):
        end = min(start + step, count)
        chunk = rows[start:end] if order is None else rows[order[start:end]]
        kind.decode(chunk.reshape(-1, kind.nbytes), out[start:end].reshape(-1, kind.columns))
    return out


def _half(blocks: _Bytes, start: int) -> _Floats:
    """The float16 at byte `start` of each block, as float32 [n, 1]."""
    return blocks[:, start : start + 2].view(np.float16).astype(np.float32)


def _fields(packed: _Bytes, bits: int, fields: int) -> _Bytes:
    """Splits bytes [n, run] into their bit fields, lowest first: uint8 [n, fields, run]."""
    # Four bytes at a time, and whole runs as opaque items: NumPy is slow at short rows of bytes.
    words = np.ascontiguousarray(packed).view(np.uint32)
    mask = np.uint32(0x01010101 * ((1 << bits) - 1))
    run = np.dtype(f"V{packed.shape[1]}")
    out = np.empty((len(packed), fields, packed.shape[1]), np.uint8)
    runs = out.view(run)[:, :, 0]
    shifted = np.empty_like(words)
    for field in range(fields):
        np.right_shift(words, np.uint32(bits * field), out=shifted)
        shifted &= mask
        runs[:, field] = shifted.view(run)[:, 0]
    return out


def _high_bits(packed: _Bytes) -> _Bytes:
    """The bits of 4 bytes a block in order, moved to the value 16: uint8 [n, 32]."""
    return np.unpackbits(packed, axis=1, bitorder="little") << np.uint8(4)


def _decode_f32(blocks: _Bytes, out: _Floats) -> None:
    out[...] = blocks.view(np.float32)


def _decode_f16(blocks: _Bytes, out: _Floats) -> None:
    out[...] = blocks.view(np.float16)


def _decode_bf16(blocks: _Bytes, out: _Floats) -> None:
    np.left_shift(blocks.view(np.uint16), np.uint32(16), out=out.view(np.uint32), dtype=np.uint32)


def _split_q4_0(blocks: _Bytes) -> BlockParts:
    return BlockParts(_fields(blocks[:, 2:18], 4, 2).reshape(-1, 32), _half(blocks, 0))


def _split_q4_1(blocks: _Bytes) -> BlockParts:
    codes = _fields(blocks[:, 4:20], 4, 2).reshape(-1, 32)
    return BlockParts(codes, _half(blocks, 0), _half(blocks, 2))


def _split_q5_0(blocks: _Bytes) -> BlockParts:
    codes = _fields(blocks[:, 6:22], 4, 2).reshape(-1, 32) | _high_bits(blocks[:, 2:6])
    return BlockParts(codes, _half(blocks, 0))


def _split_q5_1(blocks: _Bytes) -> BlockParts:
    codes = _fields(blocks[:, 8:24], 4, 2).reshape(-1, 32) | _high_bits(blocks[:, 4:8])
    return BlockParts(codes, _half(blocks, 0), _half(blocks, 2))


def _split_q8_0(blocks: _Bytes) -> BlockParts:
    return BlockParts(blocks[:, 2:34] ^ np.uint8(0x80), _half(blocks, 0))


def _scaled_groups(out: _Floats, scales: _Floats, minimums: _Floats | None = None) -> None:
    """out[n, columns] *= scales[n, g] and += minimums[n, g], each over columns / g."""
    groups = out.reshape(len(out), scales.shape[1], -1)
    groups *= scales[:, :, None]
    if minimums is not None:
        groups += minimums[:, :, None]


def _decode_q2_k(blocks: _Bytes, out: _Floats) -> None:
    packed = blocks[:, 16:80].reshape(-1, 32)
    out[...] = _fields(packed, 2, 4).reshape(-1, 256)
    scales = _half(blocks, 80) * (blocks[:, :16] & 15).astype(np.float32)
    minimums = -_half(blocks, 82) * (blocks[:, :16] >> 4).astype(np.float32)
    _scaled_groups(out, scales, minimums)


def _decode_q3_k(blocks: _Bytes, out: _Floats) -> None:
    low = _fields(blocks[:, 32:96].reshape(-1, 32), 2, 4).reshape(-1, 256)
    # A set mask bit means that nothing is subtracted: codes are low + 4 * bit - 4.
    high = _fields(blocks[:, :32], 1, 8).reshape(-1, 256) << np.uint8(2)
    out[...] = low | high
    out -= 4
    low_scales = _fields(blocks[:, 96:104], 4, 2).reshape(-1, 16)
    high_scales = _fields(blocks[:, 104:108], 2, 4).reshape(-1, 16) << np.uint8(4)
    scales = (low_scales | high_scales).astype(np.float32) - np.float32(32)
    _scaled_groups(out, _half(blocks, 108) * scales)


def _scales_and_minimums(packed: _Bytes) -> tuple[_Floats, _Floats]:
    """Eight 6-bit scales and eight 6-bit minimums from the 12 bytes of a Q4_K or Q5_K block."""
    first, second, mixed = packed[:, 0:4], packed[:, 4:8], packed[:, 8:12]
    scales = np.hstack([first & 63, (mixed & 15) | ((first >> 2) & 48)])
    minimums = np.hstack([second & 63, (mixed >> 4) | ((second >> 2) & 48)])
    return scales.astype(np.float32), minimums.astype(np.float32)


def _split_q4_k(blocks: _Bytes) -> BlockParts:
    codes = _fields(blocks[:, 16:144].reshape(-1, 32), 4, 2).reshape(-1, 256)
    scales, minimums = _scales_and_minimums(blocks[:, 4:16])
    return BlockParts(codes, _half(blocks, 0) * scales, -_half(blocks, 2) * minimums)


def _split_q5_k(blocks: _Bytes) -> BlockParts:
    low = _fields(blocks[:, 48:176].reshape(-1, 32), 4, 2).reshape(-1, 256)
    high = _fields(blocks[:, 16:48], 1, 8).reshape(-1, 256) << np.uint8(4)
    scales, minimums = _scales_and_minimums(blocks[:, 4:16])
    return BlockParts(low | high, _half(blocks, 0) * scales, -_half(blocks, 2) * minimums)


def _decode_q6_k(blocks: _Bytes, out: _Floats) -> None:
    low = _fields(blocks[:, :128].reshape(-1, 64), 4, 2).reshape(-1, 256)
    high = _fields(blocks[:, 128:192].reshape(-1, 32), 2, 4).reshape(-1, 256) << np.uint8(4)
    out[...] = low | high
    out -= 32
    scales = blocks[:, 192:208].view(np.int8).astype(np.float32)
    _scaled_groups(out, _half(blocks, 208) * scales)


def _grouped(name: str, columns: int, nbytes: int, codes: BlockCodes) -> GgmlType:
    return GgmlType(name, columns, nbytes, codes.decode, codes)


GGML_TYPES: dict[int, GgmlType] = {
    0: GgmlType("F32", 1, 4, _decode_f32),
    1: GgmlType("F16", 1, 2, _decode_f16),
    2: _grouped("Q4_0", 32, 18, BlockCodes(4, 8, False, _split_q4_0)),
    3: _grouped("Q4_1", 32, 20, BlockCodes(4, 0, True, _split_q4_1)),
    6: _grouped("Q5_0", 32, 22, BlockCodes(8, 16, False, _split_q5_0)),
    7: _grouped("Q5_1", 32, 24, BlockCodes(8, 0, True, _split_q5_1)),
    8: _grouped("Q8_0", 32, 34, BlockCodes(8, 128, False, _split_q8_0)),
    10: GgmlType("Q2_K", 256, 84, _decode_q2_k),
    11: GgmlType("Q3_K", 256, 110, _decode_q3_k),
    12: _grouped("Q4_K", 256, 144, BlockCodes(4, 0, True, _split_q4_k)),
    13: _grouped("Q5_K", 256, 176, BlockCodes(8, 0, True, _split_q5_k)),
    14: GgmlType("Q6_K", 256, 210, _decode_q6_k),
    30: GgmlType("BF16", 1, 2, _decode_bf16),
}
"""Encodings that Hasten reads, by their number in a GGUF file (``enum ggml_type``)."""

KNOWN_TYPE_NAMES: dict[int, str] = {
    9: "Q8_1", 15: "Q8_K", 16: "IQ2_XXS", 17: "IQ2_XS", 18: "IQ3_XXS", 19: "IQ1_S", 20: "IQ4_NL",
    21: "IQ3_S", 22: "IQ2_S", 23: "IQ4_XS", 24: "I8", 25: "I16", 26: "I32", 27: "I64", 28: "F64",
    29: "IQ1_M", 34: "TQ1_0", 35: "TQ2_0", 39: "MXFP4", 40: "NVFP4", 41: "Q1_0",
}  # fmt: skip
"""Encodings that exist but that Hasten does not read, so that an error can name them."""

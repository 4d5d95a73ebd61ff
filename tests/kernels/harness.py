"""Runs single ops of the native executor on arrays.

A program takes nothing but tokens, so an array [tokens, width] becomes the rows of a float32
"embedding", and token t looks up row t.
"""

from dataclasses import dataclass, field

import numpy as np

from hasten import _native
from hasten.kernels.quantization import BLOCK, QuantizedMatrix, dequantize, quantize_rtn

EPS = float(np.finfo(np.float32).eps)


def normal(*shape, seed=0, scale=1.0):
    """Normally distributed float32 values."""
    return (np.random.default_rng(seed).standard_normal(shape) * scale).astype(np.float32)


def to_bf16(values):
    """Float32 rounded to bfloat16 (nearest, ties to even), still as float32."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    rounded = (bits + 0x7FFF + (bits >> 16 & 1)) & np.uint32(0xFFFF0000)
    return rounded.astype(np.uint32).view(np.float32)


def float_matrix(values, kind="f32"):
    """A packed matrix of float32 values [rows, columns]."""
    matrix = _native.Matrix(kind, *values.shape)
    matrix.place_float(np.ascontiguousarray(values), np.arange(len(values), dtype=np.int32))
    return matrix


def place(matrix, quantized: QuantizedMatrix, rows):
    """Puts the rows of a quantised matrix at the given rows of a packed one."""
    rows = np.asarray(rows, np.int32)
    scales = quantized.scales.view(np.uint16)
    low = None if quantized.minimums is None else quantized.minimums.view(np.uint16)
    put = matrix.place_int8 if quantized.bits == 8 else matrix.place_int4
    put(quantized.codes, scales, low, rows)
    return matrix


def integer_matrix(quantized: QuantizedMatrix):
    """A packed matrix with the codes of a quantised one."""
    matrix = _native.Matrix(
        f"int{quantized.bits}", *quantized.shape, quantized.group, quantized.minimums is not None
    )
    return place(matrix, quantized, np.arange(quantized.shape[0]))


@dataclass
class Weight:
    """A weight as the kernels see it, and what it means.

    Attributes:
        matrix: Packed.
        quantized: Its codes, None for float formats.
        values: float32 [rows, columns] that the packed matrix stands for.
    """

    matrix: _native.Matrix
    quantized: QuantizedMatrix | None
    values: np.ndarray

    @property
    def group(self):
        """Columns of activations that share a scale."""
        return self.matrix.activation_group


def make_weight(kind, rows, columns, *, group=0, minimum=False, seed=1) -> Weight:
    """A weight of any format with random codes over their whole range."""
    if kind in ("f32", "bf16"):
        values = normal(rows, columns, seed=seed)
        exact = values if kind == "f32" else to_bf16(values)
        return Weight(float_matrix(values, kind), None, exact)
    quantized = random_codes(kind, rows, columns, group, minimum, seed)
    return Weight(integer_matrix(quantized), quantized, dequantize(quantized))


def random_codes(kind, rows, columns, group, minimum, seed) -> QuantizedMatrix:
    """Codes and scales drawn evenly, the extreme codes among them."""
    rng = np.random.default_rng(seed)
    padded = -(-columns // BLOCK) * BLOCK
    size = group or padded
    scales = rng.uniform(-0.1, 0.1, (rows, padded // size)).astype(np.float16)
    if kind == "int8":
        codes = rng.integers(-128, 128, (rows, padded)).astype(np.int8)
        codes[0], codes[-1] = 127, -128
        low = rng.uniform(-10, 10, scales.shape).astype(np.float16) if minimum else None
        return QuantizedMatrix(8, (rows, columns), size, codes, scales, low)
    nibbles = rng.integers(0, 256, (rows, padded // 2)).astype(np.uint8)
    nibbles[0] = 255
    low = rng.uniform(-1, 1, scales.shape).astype(np.float16) if minimum else None
    return QuantizedMatrix(4, (rows, columns), size, nibbles, scales, low)


@dataclass
class Bench:
    """A program under construction: `give` arrays, add ops, `take` one result.

    Args:
        isa: Instruction set.
        tokens: Rows of every array.
        threads: Size of the team.
        context: Longest sequence.
    """

    isa: str
    tokens: int
    threads: int = 1
    context: int = 512
    program: _native.Program = field(init=False)

    def __post_init__(self):
        limit = self.tokens
        self.program = _native.Program(self.threads, self.isa, limit, limit, self.context)

    def give(self, values) -> int:
        """A buffer that holds the array [tokens, width] when the program runs."""
        assert len(values) == self.tokens
        buffer = self.buffer(values.shape[1])
        self.program.embed(float_matrix(np.asarray(values, np.float32)), buffer)
        return buffer

    def buffer(self, width) -> int:
        """An empty float buffer."""
        return self.program.add_buffer(width)

    def quantized(self, source, width, group) -> int:
        """A float buffer's values as int8 codes."""
        buffer = self.program.add_quantized_buffer(width, group)
        self.program.quantize(source, buffer)
        return buffer

    def take(self, buffer, width, *, starts=None, positions=None, tables=None, adapters=None):
        """Runs the program; the rows [tokens, width] of a buffer."""
        self.program.select(buffer, self.program.add_output(width))
        return self.run(width, starts=starts, positions=positions, tables=tables, adapters=adapters)

    def run(self, width, *, starts=None, positions=None, tables=None, out=None, adapters=None):
        """Runs the finished program again."""
        tokens = np.arange(self.tokens, dtype=np.int32)
        out = np.full((self.tokens, width), np.nan, np.float32) if out is None else out
        self.program.run(
            tokens,
            tokens if positions is None else np.asarray(positions, np.int32),
            np.asarray([0, self.tokens] if starts is None else starts, np.int32),
            np.zeros((1, 1), np.int32) if tables is None else np.asarray(tables, np.int32),
            tokens,
            out,
            None if adapters is None else np.asarray(adapters, np.int32),
        )
        return out


def run_linear(
    isa, x, weight: Weight, *, bias=None, epilogue="store", into=None, threads=1, scale=1
):
    """One product; `into` [tokens, rows] is what the epilogue "add" adds to."""
    bench = Bench(isa, len(x), threads)
    source = bench.give(x)
    if weight.quantized is not None:
        source = bench.quantized(source, x.shape[1], weight.group)
    width = weight.values.shape[0] // (2 if epilogue.endswith("_mul") else 1)
    out = bench.buffer(width) if into is None else bench.give(into)
    bench.program.linear(source, weight.matrix, out, pad_bias(bias), epilogue, scale)
    return bench.take(out, width)


def pad_bias(bias):
    """A bias padded to whole panels of 32 rows."""
    return None if bias is None else np.pad(bias, (0, -len(bias) % 32)).astype(np.float32)


def code_probe(width, group) -> Weight:
    """An int8 identity: the product with it is code * scale of each column, rounded once."""
    padded = -(-width // BLOCK) * BLOCK
    codes = np.zeros((width, padded), np.int8)
    codes[np.arange(width), np.arange(width)] = 1
    scales = np.ones((width, padded // group), np.float16)
    quantized = QuantizedMatrix(8, (width, width), group, codes, scales)
    return Weight(integer_matrix(quantized), quantized, np.eye(width, dtype=np.float32))


def rounded_weight(values, bits, group=None) -> Weight:
    """A weight by rounding to nearest."""
    quantized = quantize_rtn(values, bits, group)
    return Weight(integer_matrix(quantized), quantized, dequantize(quantized))

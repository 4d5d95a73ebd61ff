"""Stored tensors: float32 values and codes taken over as they are."""

from dataclasses import replace

import gguf
import numpy as np
import pytest
from test_ggml_blocks import random_rows

from hasten.errors import ModelFileError, UnsupportedModelError
from hasten.kernels.quantization import QuantizedMatrix, dequantize, quantize_rtn
from hasten.models.ggml_blocks import GGML_TYPES
from hasten.models.weights import DenseTensor, GgmlTensor, QuantizedTensor

KINDS = {kind.name: kind for kind in GGML_TYPES.values()}


def ggml_tensor(encoding, shape=(6, 256), seed=0, order=None):
    """A tensor that the gguf package quantised, and its values as that package decodes them."""
    values = np.random.default_rng(seed).standard_normal(shape).astype(np.float32)
    number = gguf.GGMLQuantizationType[encoding]
    rows = gguf.quants.quantize(values, number).view(np.uint8).reshape(shape[0], -1)
    expected = gguf.quants.dequantize(rows, number)
    tensor = GgmlTensor("w", shape, KINDS[encoding], rows, order)
    return tensor, expected if order is None else expected[order]


@pytest.mark.parametrize("encoding", ["F32", "F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q8_0"])
@pytest.mark.parametrize("order", [None, np.array([3, 1, 0, 2, 5, 4])], ids=["plain", "ordered"])
def test_ggml_values(encoding, order):
    tensor, expected = ggml_tensor(encoding, order=order)
    assert (tensor.shape, tensor.encoding) == ((6, 256), encoding)
    assert np.array_equal(tensor.to_float32(), expected)


@pytest.mark.parametrize(
    ("encoding", "bits", "minimum"),
    [
        ("Q4_0", 4, False),
        ("Q4_1", 4, True),
        ("Q5_0", 8, False),
        ("Q5_1", 8, True),
        ("Q8_0", 8, False),
    ],
)
@pytest.mark.parametrize("order", [None, np.array([3, 1, 0, 2, 5, 4])], ids=["plain", "ordered"])
@pytest.mark.parametrize("columns", [32, 96, 256])
def test_ggml_codes_are_taken_over_exactly(encoding, bits, minimum, order, columns):
    tensor, expected = ggml_tensor(encoding, (6, columns), order=order)
    matrix, layout = tensor.quantized(), tensor.layout()
    assert (layout.bits, layout.group, layout.minimum, layout.order) == (bits, 32, minimum, None)
    assert (matrix.bits, matrix.group, matrix.shape) == (bits, 32, (6, columns))
    assert (matrix.minimums is not None) == minimum
    assert matrix.codes.flags.c_contiguous
    assert np.array_equal(dequantize(matrix), expected)


@pytest.mark.parametrize(("encoding", "bits"), [("Q4_K", 4), ("Q5_K", 8)])
@pytest.mark.parametrize("order", [None, np.random.default_rng(0).permutation(600)])
def test_k_quants_keep_their_codes_and_round_only_scales_and_minimums(encoding, bits, order):
    """Both are a half times six bits; half precision keeps 11 of the up to 17 bits."""
    rows = random_rows(KINDS[encoding], 600, 3)  # in two pieces
    tensor = GgmlTensor("w", (600, 768), KINDS[encoding], rows, order)
    matrix, exact = tensor.quantized(), tensor.to_float32()
    assert (matrix.bits, matrix.group, matrix.layout.minimum) == (bits, 32, True)
    codes = matrix.integer_codes().reshape(600, -1, 32)
    scales = matrix.scales.astype(float)[:, :, None]
    minimums = matrix.minimums.astype(float)[:, :, None]
    bound = (np.abs(scales * codes) + np.abs(minimums)) * 2.0**-11
    assert (
        np.abs(dequantize(matrix).reshape(codes.shape) - exact.reshape(codes.shape)) <= bound
    ).all()
    spread = exact.reshape(codes.shape).max(2) - exact.reshape(codes.shape).min(2)
    integers = np.ptp(codes, axis=2) * np.abs(scales[:, :, 0])
    np.testing.assert_allclose(spread, integers, rtol=2.0**-11, atol=1e-6 * np.abs(exact).max())


def test_subnormal_scales_of_k_quants_lose_nothing():
    """A product of a half and a whole number is a multiple of the smallest half."""
    rows = random_rows(KINDS["Q4_K"], 4, 2).reshape(8, -1)
    rows[:, :2] = np.full((8, 1), 3 * 2.0**-24, np.float16).view(np.uint8)
    rows[:, 2:4] = np.full((8, 1), 2.0**-24, np.float16).view(np.uint8)
    tensor = GgmlTensor("w", (4, 512), KINDS["Q4_K"], rows.reshape(4, -1))
    assert np.array_equal(dequantize(tensor.quantized()), tensor.to_float32())


def test_names_a_scale_beyond_half_precision():
    rows = random_rows(KINDS["Q4_K"], 4, 2).reshape(8, -1)
    rows[3, :2] = np.full(1, 2000, np.float16).view(np.uint8)
    rows[3, 4:16] = 0xFF
    tensor = GgmlTensor("w", (4, 512), KINDS["Q4_K"], rows.reshape(4, -1))
    assert tensor.to_float32().max() > 65504
    with pytest.raises(UnsupportedModelError, match=r"'w' holds a scale .* 1.26e\+05; .*65504"):
        tensor.quantized()


@pytest.mark.parametrize("encoding", ["F32", "F16", "BF16", "Q2_K", "Q3_K", "Q6_K"])
def test_other_encodings_have_no_codes(encoding):
    rows = random_rows(KINDS[encoding], 4, 2)
    tensor = GgmlTensor("w", (4, 2 * KINDS[encoding].columns), KINDS[encoding], rows)
    assert tensor.quantized() is None
    assert tensor.layout() is None


def test_vectors_have_no_codes():
    tensor = GgmlTensor("w", (256,), KINDS["Q8_0"], random_rows(KINDS["Q8_0"], 1, 8))
    assert tensor.quantized() is None
    assert tensor.layout() is None


def test_q8_0_keeps_the_code_minus_128():
    tensor, _ = ggml_tensor("Q8_0")
    rows = np.array(tensor._rows)
    rows[2, 2 + 5] = 0x80  # the sixth code of the third row
    changed = GgmlTensor("w", (6, 256), KINDS["Q8_0"], rows)
    assert changed.quantized().codes[2, 5] == -128
    assert np.array_equal(dequantize(changed.quantized()), changed.to_float32())


@pytest.mark.parametrize("encoding", ["F32", "F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q8_0"])
@pytest.mark.parametrize("bits", [0x7C00, 0xFC00, 0x7E01], ids=["inf", "-inf", "nan"])
def test_refuses_values_that_are_not_finite(encoding, bits):
    tensor, _ = ggml_tensor(encoding)
    rows = np.array(tensor._rows)
    high = {"F32": 0x7F80, "BF16": 0x7F80}.get(encoding, bits)
    rows[1, 2 if encoding in ("F32", "Q4_1") else 0 :][:2] = np.array([high], "<u2").view(np.uint8)
    changed = GgmlTensor("w", (6, 256), KINDS[encoding], rows)
    with pytest.raises(ModelFileError, match=r"'w' holds NaN or infinite"):
        changed.to_float32()
    if encoding.startswith("Q"):
        with pytest.raises(ModelFileError, match=r"'w' holds NaN or infinite"):
            changed.quantized()


def test_dense_values():
    values = np.random.default_rng(0).standard_normal((5, 7)).astype(np.float32)
    halves = DenseTensor("w", "F16", values.astype(np.float16))
    assert np.array_equal(halves.to_float32(), values.astype(np.float16).astype(np.float32))
    bits = (values.view(np.uint32) >> 16).astype(np.uint16)
    brain = DenseTensor("w", "BF16", bits)
    assert np.array_equal(brain.to_float32().view(np.uint32) >> 16, bits)
    assert (brain.nbytes, brain.shape, brain.quantized()) == (70, (5, 7), None)
    assert np.shares_memory(DenseTensor("w", "F32", values).to_float32(), values)
    with pytest.raises(TypeError):
        DenseTensor("w", "BF16", values)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("encoding", ["F32", "F16", "BF16"])
def test_refuses_dense_values_that_are_not_finite(encoding, value):
    values = np.zeros((1000, 700), np.float32)  # three pieces of the check
    values[-1, -1] = value
    stored = {
        "F32": values,
        "F16": values.astype(np.float16),
        "BF16": (values.view(np.uint32) >> 16).astype(np.uint16),
    }[encoding]
    with pytest.raises(ModelFileError, match="NaN or infinite"):
        DenseTensor("w", encoding, stored).to_float32()


def test_values_at_odd_addresses_come_out_aligned():
    buffer = np.zeros(4 * 6 + 1, np.uint8)
    unaligned = buffer[1:].view(np.float32).reshape(2, 3)
    assert not unaligned.flags.aligned
    found = DenseTensor("w", "F32", unaligned).to_float32()
    assert found.flags.aligned
    assert found.flags.c_contiguous


def test_columns_of_codes_in_another_order():
    values = np.random.default_rng(0).standard_normal((5, 100)).astype(np.float32)
    order = np.random.default_rng(1).permutation(100).astype(np.int32)
    plain = quantize_rtn(values, 4, 32)
    ordered = replace(plain, order=order)
    assert np.array_equal(dequantize(ordered)[:, order], dequantize(plain))
    assert ordered.layout.order is order


@pytest.mark.parametrize(("bits", "group"), [(4, 32), (8, 64), (8, None)])
def test_quantised_values(bits, group):
    values = np.random.default_rng(0).standard_normal((5, 100)).astype(np.float32)
    matrix = quantize_rtn(values, bits, group if bits == 8 else 32)
    tensor = QuantizedTensor("w", matrix)
    assert (tensor.shape, tensor.encoding) == ((5, 100), matrix.format)
    assert tensor.quantized() is matrix
    assert tensor.nbytes == matrix.nbytes
    assert np.array_equal(tensor.to_float32(), dequantize(matrix))


def test_refuses_bad_quantised_content():
    codes = np.zeros((2, 32), np.int8)
    scales = np.ones((2, 1), np.float16)
    bad = np.array([[1], [np.inf]], np.float16)
    with pytest.raises(ModelFileError, match="NaN or infinite"):
        QuantizedTensor("w", QuantizedMatrix(8, (2, 32), 32, codes, bad)).to_float32()
    nibbles = np.zeros((2, 16), np.uint8)
    with pytest.raises(ModelFileError, match="NaN or infinite"):
        QuantizedTensor("w", QuantizedMatrix(4, (2, 32), 32, nibbles, scales, bad)).quantized()


ROWS = np.array([4, 0, 5])


@pytest.mark.parametrize("encoding", ["F32", "Q4_0", "Q4_1", "Q8_0"])
@pytest.mark.parametrize("order", [None, np.array([3, 1, 0, 2, 5, 4])], ids=["plain", "ordered"])
def test_selected_rows_of_a_file_keep_its_encoding(encoding, order):
    tensor, expected = ggml_tensor(encoding, order=order)
    picked = tensor.select_rows("part", ROWS)
    assert (picked.name, picked.shape, picked.encoding) == ("part", (3, 256), encoding)
    assert np.array_equal(picked.to_float32(), expected[ROWS])


def test_selected_values_of_a_vector_in_a_file():
    values = np.arange(6, dtype=np.float32)
    tensor = GgmlTensor("b", (6,), KINDS["F32"], values.view(np.uint8).reshape(1, -1))
    assert np.array_equal(tensor.select_rows("b", ROWS).to_float32(), values[ROWS])


@pytest.mark.parametrize(("bits", "group"), [(4, 32), (4, 64), (8, 32), (8, None)])
def test_selected_rows_keep_their_codes(bits, group):
    values = np.random.default_rng(2).standard_normal((6, 128)).astype(np.float32)
    tensor = QuantizedTensor("w", quantize_rtn(values, bits, group))
    picked = tensor.select_rows("part", ROWS)
    assert picked.encoding == tensor.encoding
    assert np.array_equal(picked.to_float32(), tensor.to_float32()[ROWS])


@pytest.mark.parametrize("encoding", ["F32", "F16", "BF16"])
def test_selected_rows_of_floats_keep_their_bits(encoding):
    kind = {"F32": np.float32, "F16": np.float16, "BF16": np.uint16}[encoding]
    tensor = DenseTensor("w", encoding, np.arange(12).reshape(6, 2).astype(kind))
    picked = tensor.select_rows("w", ROWS)
    assert picked.encoding == encoding
    assert np.array_equal(picked.data, tensor.data[ROWS])

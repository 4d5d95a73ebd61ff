"""Every block encoding against the gguf package's own decoder."""

import gguf
import numpy as np
import pytest

from hasten.models.ggml_blocks import GGML_TYPES, KNOWN_TYPE_NAMES, dequantize_rows

HALVES = {
    "Q4_0": (0,),
    "Q4_1": (0, 2),
    "Q5_0": (0,),
    "Q5_1": (0, 2),
    "Q8_0": (0,),
    "Q2_K": (80, 82),
    "Q3_K": (108,),
    "Q4_K": (0, 2),
    "Q5_K": (0, 2),
    "Q6_K": (208,),
}
"""Where float16 numbers lie in a block."""


def random_rows(kind, rows, blocks, seed=0):
    rng = np.random.default_rng(seed)
    data = rng.integers(0, 256, (rows, blocks, kind.nbytes), dtype=np.uint8)
    if kind.name in HALVES:
        for start in HALVES[kind.name]:
            halves = rng.standard_normal((rows, blocks, 1)).astype(np.float16)
            data[..., start : start + 2] = halves.view(np.uint8)
    else:
        floats = rng.standard_normal((rows, blocks, kind.nbytes // 2)).astype(np.float16)
        data = floats.view(np.uint8) if kind.nbytes == 2 else data & 0xBF
    return data.reshape(rows, blocks * kind.nbytes)


@pytest.mark.parametrize("number", GGML_TYPES, ids=lambda n: GGML_TYPES[n].name)
@pytest.mark.parametrize(("rows", "blocks"), [(1, 1), (3, 2), (517, 5)])
def test_values_equal_ggml_bit_for_bit(number, rows, blocks):
    kind = GGML_TYPES[number]
    data = random_rows(kind, rows, blocks)
    expected = gguf.quants.dequantize(data, gguf.GGMLQuantizationType(number))
    found = dequantize_rows(kind, data)
    assert found.dtype == np.float32
    assert np.array_equal(found.view(np.uint32), expected.view(np.uint32))


def test_many_chunks_and_an_order_give_the_same_rows():
    kind = GGML_TYPES[3]
    data = random_rows(kind, 900, 20)  # 576,000 elements: three chunks
    order = np.random.default_rng(1).permutation(900)
    assert np.array_equal(dequantize_rows(kind, data, order), dequantize_rows(kind, data)[order])


def test_encodings_have_ggml_numbers_names_and_sizes():
    for number, kind in GGML_TYPES.items():
        theirs = gguf.GGMLQuantizationType(number)
        assert theirs.name == kind.name
        assert gguf.GGML_QUANT_SIZES[theirs] == (kind.columns, kind.nbytes)
    for number, name in KNOWN_TYPE_NAMES.items():
        assert gguf.GGMLQuantizationType(number).name == name

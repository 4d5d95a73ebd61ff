"""Which format each matrix gets."""

import numpy as np
import pytest
from tiny import int8_with_minimum, make_model, symmetric_int4

from hasten.errors import UsageError
from hasten.generation.formats import (
    MatrixFormat,
    activation_group,
    choose_formats,
    keeps_values,
    pack_bias,
    parse_format,
)
from hasten.generation.packing import pack_matrix
from hasten.kernels.quantization import quantize_rtn
from hasten.models.weights import DenseTensor, QuantizedTensor
from hasten.types import EngineOptions


def dense(name="a", rows=8, columns=64, encoding="F32"):
    kinds = {"F32": np.float32, "F16": np.float16, "BF16": np.uint16}
    return DenseTensor(name, encoding, np.ones((rows, columns), kinds[encoding]))


def chosen(tensors, weights="carried", **overrides):
    options = EngineOptions(weights=weights, overrides=overrides)
    formats = choose_formats({t.name: t for t in tensors}, [t.name for t in tensors], options)
    return {name: str(form) for name, form in formats.items()}


@pytest.mark.parametrize(
    ("text", "parsed"),
    [
        ("carried", ("carried", None)),
        ("f32", ("f32", None)),
        ("bf16", ("bf16", None)),
        ("int8", ("int8", None)),
        ("int8:32", ("int8", 32)),
        ("int4:128", ("int4", 128)),
    ],
)
def test_parse(text, parsed):
    assert parse_format(text) == parsed


@pytest.mark.parametrize(
    "text",
    ["", "int4", "int4:", "int4:0", "int4:33", "int8:16", "int8:-32", "f32:32", "carried:32",
     "fp16", "INT8", "int8:32 ", "int8:9999999", "int4:32+min", "int8:٣٢"],
)  # fmt: skip
def test_parse_refuses(text):
    with pytest.raises(UsageError, match="format"):
        parse_format(text)


def test_carried_dense_tensors():
    tensors = [dense("a"), dense("b", encoding="F16"), dense("c", encoding="BF16")]
    assert chosen(tensors) == {"a": "f32", "b": "bf16", "c": "bf16"}


def test_carried_codes_run_as_they_are():
    values = np.random.default_rng(0).standard_normal((8, 64)).astype(np.float32)
    tensors = [
        QuantizedTensor("a", quantize_rtn(values, 4, 32)),
        QuantizedTensor("b", quantize_rtn(values, 8, 64)),
        QuantizedTensor("c", symmetric_int4(values)),
        QuantizedTensor("d", int8_with_minimum(values)),
    ]
    assert chosen(tensors) == {
        "a": "int4:32+min",
        "b": "int8:64",
        "c": "int4:32",
        "d": "int8:32+min",
    }


def test_says_which_formats_keep_the_values():
    values = np.random.default_rng(0).standard_normal((8, 64)).astype(np.float32)
    codes = QuantizedTensor("a", int8_with_minimum(values))
    kept = [
        (codes, "int8:32+min", True),
        (codes, "int8:32", False),
        (codes, "f32", True),
        (codes, "bf16", False),
        (dense(), "f32", True),
        (dense(), "int8:32", False),
        (dense(encoding="F16"), "bf16", False),
        (dense(encoding="BF16"), "bf16", True),
    ]
    for tensor, name, expected in kept:
        assert keeps_values(tensor, MatrixFormat.from_name(name, 64)) == expected


@pytest.mark.parametrize(
    ("weights", "expected"),
    [("f32", "f32"), ("bf16", "bf16"), ("int8", "int8:64"), ("int8:32", "int8:32")],
)
def test_one_format_for_all(weights, expected):
    tensors = [dense("q_proj"), dense("lm_head", columns=50)]
    assert set(chosen(tensors, weights).values()) == {expected}


def test_int4_spares_the_vocabulary():
    tensors = [dense("embed_tokens"), dense("q_proj"), dense("lm_head")]
    expected = {"embed_tokens": "int8:32", "q_proj": "int4:64+min", "lm_head": "int8:32"}
    assert chosen(tensors, "int4:64") == expected
    assert chosen(tensors, "int4:64", lm_head="int4:32")["lm_head"] == "int4:32+min"


def test_overrides():
    tensors = [dense("a"), dense("b")]
    assert chosen(tensors, "int8:32", b="f32") == {"a": "int8:32", "b": "f32"}
    with pytest.raises(UsageError, match="'c'"):
        chosen(tensors, "int8:32", c="f32")
    with pytest.raises(UsageError, match="'int5'"):
        chosen(tensors, "int8:32", b="int5")


def test_groups_that_do_not_divide_the_columns():
    with pytest.raises(UsageError, match="int8:64"):
        chosen([dense(columns=96)], "int8:64")
    assert chosen([dense(columns=90)], "int8:32") == {"a": "int8:32"}


def test_activation_groups_are_as_fine_as_the_weights():
    groups = {0: 0, 32: 32, 64: 64, 96: 32, 128: 64}
    for group, expected in groups.items():
        form = MatrixFormat("int8" if group else "f32", group)
        assert activation_group(form) == expected
        if group:
            packed = pack_matrix([dense(columns=384)], form)
            assert packed.activation_group == expected


def test_gated_biases_follow_their_rows():
    gate, up = np.arange(20, dtype=np.float32), np.arange(100, 120, dtype=np.float32)
    packed = pack_bias([gate, up], gated=True)
    assert packed.shape == (64,)
    np.testing.assert_array_equal(packed[:16], gate[:16])
    np.testing.assert_array_equal(packed[16:32], up[:16])
    np.testing.assert_array_equal(packed[32:36], gate[16:])
    np.testing.assert_array_equal(packed[48:52], up[16:])
    assert packed[36:48].any() == packed[52:].any() == False  # noqa: E712


def test_stacked_biases_are_padded():
    packed = pack_bias([np.ones(20, np.float32), np.full(13, 2, np.float32)])
    assert packed.tolist() == [1] * 20 + [2] * 13 + [0] * 31


def test_matrix_names_are_those_of_the_model():
    from hasten.generation import Engine

    name = "model.layers.0.self_attn.q_proj.weight"
    options = EngineOptions(weights="int8:32", overrides={name: "f32"}, max_context=32)
    with Engine(make_model(), options) as engine:
        assert engine.formats[name] == "f32"
        assert engine.formats["lm_head.weight"] == "int8:32"


@pytest.mark.parametrize(
    ("bits", "group"), [(4, 32), (4, 64), (4, 192), (8, 32), (8, 64), (8, 192), (8, None)]
)
@pytest.mark.parametrize("shape", [(3, 192), (7, 576)])
def test_predicted_bytes_are_those_of_the_quantised_matrix(bits, group, shape):
    values = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    name = f"int{bits}" + ("" if group is None else f":{group}") + ("+min" if bits == 4 else "")
    form = MatrixFormat.from_name(name, shape[1])
    assert form.nbytes(shape) == quantize_rtn(values, bits, group).nbytes


def test_predicted_bytes_of_int8_with_minimums():
    matrix = int8_with_minimum(np.arange(576, dtype=np.float32).reshape(3, 192))
    assert MatrixFormat.from_name("int8:32+min", 192).nbytes((3, 192)) == matrix.nbytes


def test_predicted_bytes_of_floats_and_of_int4_without_minimums():
    assert MatrixFormat.from_name("f32", 64).nbytes((2, 64)) == 512
    assert MatrixFormat.from_name("bf16", 30).nbytes((2, 30)) == 120
    assert MatrixFormat.from_name("int4:32", 64).nbytes((2, 64)) == 64 + 2 * 2 * 2
    with pytest.raises(UsageError, match="carried"):
        MatrixFormat.from_name("carried", 64)

"""GPTQ, AWQ and compressed-tensors checkpoints: their values and codes as the tools define them."""

import json
from dataclasses import replace

import numpy as np
import pytest
from packed_models import (
    SCHEMES,
    floats,
    pack_compressed,
    pack_gptq,
    packed_tensors,
    scheme,
    write_packed,
)

from hasten.errors import ModelFileError, UnsupportedModelError
from hasten.kernels.quantization import dequantize
from hasten.models import load_model
from hasten.models.artefact import write_artefact
from hasten.models.safetensors import StoredArray

QUERY = "model.layers.1.self_attn.q_proj"
DOWN = "model.layers.0.mlp.down_proj"


@pytest.fixture(params=SCHEMES.values(), ids=SCHEMES)
def kind(request):
    return request.param


def load(tmp_path, kind, arrays, **changes):
    return load_model(write_packed(tmp_path / "model", kind, arrays, **changes))


def test_values_are_those_of_the_published_formula(tmp_path, kind):
    quantised, arrays = packed_tensors(kind)
    model = load(tmp_path, kind, arrays)
    for stem, codes in quantised.items():
        tensor = model.weights[stem + ".weight"]
        assert tensor.shape == codes.codes.shape
        assert np.array_equal(tensor.to_float32(), codes.values())
    rest = {name: tensor.encoding for name, tensor in model.weights.items() if "proj" not in name}
    assert set(rest.values()) == {"F16"}
    assert "lm_head.weight" in rest


def test_codes_are_taken_over_exactly(tmp_path, kind):
    quantised, arrays = packed_tensors(kind)
    model = load(tmp_path, kind, arrays)
    for stem, codes in quantised.items():
        tensor = model.weights[stem + ".weight"]
        matrix, layout = tensor.quantized(), tensor.layout()
        group = kind.options.get("group", 32)
        assert layout.bits == codes.bits
        assert layout.group == (codes.codes.shape[1] if group == -1 else group)
        assert layout.minimum == (not kind.options.get("symmetric", True))
        assert (layout.order is not None) == kind.options.get("act_order", False)
        order = np.arange(codes.codes.shape[1]) if layout.order is None else layout.order
        found = matrix.integer_codes() + (128 if codes.bits == 8 else 0)
        assert np.array_equal(found, codes.codes[:, order])
        assert np.array_equal(matrix.scales, codes.scales)
        # A minimum is rounded to 11 bits; everything else is exact.
        low = np.abs(codes.scales * (codes.zeros - (128 if codes.bits == 8 else 0)))
        bound = 2.0**-11 * low[:, codes.g_idx] if layout.minimum else 0
        assert (np.abs(dequantize(matrix) - codes.values()) <= bound).all()


@pytest.mark.parametrize("name", ["gptq 8 bit asymmetric", "awq", "gptq act-order", "int"])
def test_an_artefact_holds_the_same_codes(tmp_path, name):
    _, arrays = packed_tensors(SCHEMES[name])
    model = load(tmp_path, SCHEMES[name], arrays)
    write_artefact(tmp_path / "artefact", model, model.weights, {})
    again = load_model(tmp_path / "artefact")
    for stem in (QUERY, DOWN):
        one, two = (m.weights[stem + ".weight"].quantized() for m in (model, again))
        assert (one.bits, one.group) == (two.bits, two.group)
        for part in ("codes", "scales", "minimums", "order"):
            assert np.array_equal(getattr(one, part), getattr(two, part)), part


def test_a_short_last_group_is_cut_into_equal_ones(tmp_path):
    kind = scheme("gptq", group=96, symmetric=False)  # 128 columns: 96 and 32; 256: 96, 96, 64
    quantised, arrays = packed_tensors(kind)
    model = load(tmp_path, kind, arrays)
    for stem, codes in quantised.items():
        tensor = model.weights[stem + ".weight"]
        assert tensor.layout().group == 32
        assert np.array_equal(tensor.to_float32(), codes.values())
        np.testing.assert_allclose(dequantize(tensor.quantized()), codes.values(), atol=2e-3)


def test_groups_that_fit_no_kernel_have_no_codes(tmp_path):
    kind = scheme("gptq", group=16)
    quantised, arrays = packed_tensors(kind)
    model = load(tmp_path, kind, arrays)
    tensor = model.weights[QUERY + ".weight"]
    assert tensor.layout() is None
    assert tensor.quantized() is None
    assert np.array_equal(tensor.to_float32(), quantised[QUERY].values())


def test_an_order_with_groups_of_different_sizes_has_no_codes(tmp_path):
    kind = SCHEMES["gptq act-order"]
    quantised, arrays = packed_tensors(kind)
    g_idx = quantised[QUERY].g_idx.copy()
    g_idx[np.flatnonzero(g_idx == 0)[0]] = 1
    arrays[QUERY + ".g_idx"] = StoredArray("I32", g_idx.astype(np.int32))
    tensor = load(tmp_path, kind, arrays).weights[QUERY + ".weight"]
    assert tensor.quantized() is None
    assert np.array_equal(tensor.to_float32(), replace(quantised[QUERY], g_idx=g_idx).values())


@pytest.mark.parametrize("form", ["gptq", "gptq_v2"])
def test_zero_points_of_zero_survive_both_formats(tmp_path, form):
    """In the first format they borrow from the neighbour's field."""
    kind = scheme("gptq", {"form": form}, symmetric=False)
    quantised, arrays = packed_tensors(kind)
    zeros = np.random.default_rng(0).integers(0, 16, quantised[QUERY].zeros.shape)
    zeros[:, 0] = 0
    codes = replace(quantised[QUERY], zeros=zeros)
    model = load(tmp_path, kind, arrays | pack_gptq(QUERY, codes, form))
    assert np.array_equal(model.weights[QUERY + ".weight"].to_float32(), codes.values())


def test_modules_with_settings_of_their_own(tmp_path):
    kind = scheme("gptq", config={"dynamic": {"+:.*q_proj": {"bits": 8, "group_size": 64}}})
    _, arrays = packed_tensors(kind)
    other = packed_tensors(scheme("gptq", bits=8, group=64, symmetric=False))[0][QUERY]
    model = load(tmp_path, kind, arrays | pack_gptq(QUERY, other))
    layouts = [model.weights[stem + ".weight"].layout() for stem in (QUERY, DOWN)]
    assert [(one.bits, one.group) for one in layouts] == [(8, 64), (4, 32)]
    assert np.array_equal(model.weights[QUERY + ".weight"].to_float32(), other.values())
    with pytest.raises(ModelFileError, match=r"codes of 8 bits, the configuration says 4"):
        load(tmp_path, kind, arrays | pack_gptq(QUERY, other), dynamic=None)


def test_a_quantised_output_projection(tmp_path):
    kind = SCHEMES["gptq"]
    quantised, arrays = packed_tensors(kind)
    del arrays["lm_head.weight"]
    codes = replace(quantised[QUERY], codes=quantised[QUERY].codes[:48])
    codes = replace(codes, scales=codes.scales[:48], zeros=codes.zeros[:48])
    model = load(tmp_path, kind, arrays | pack_gptq("lm_head", codes), lm_head=True)
    assert np.array_equal(model.weights["lm_head.weight"].to_float32(), codes.values())


def test_biases_of_nothing_but_zeros_are_no_biases(tmp_path):
    """AutoGPTQ adds them to every module."""
    kind = SCHEMES["gptq"]
    _, arrays = packed_tensors(kind)
    zeros = StoredArray("F16", np.zeros(128, np.float16))
    model = load(tmp_path, kind, arrays | {QUERY + ".bias": zeros})
    assert QUERY + ".bias" not in model.weights
    ones = StoredArray("F16", np.ones(128, np.float16))
    with pytest.raises(ModelFileError, match=r"q_proj.bias' has no place"):
        load(tmp_path, kind, arrays | {QUERY + ".bias": ones})


def test_the_configuration_may_lie_beside(tmp_path):
    kind = SCHEMES["gptq"]
    quantised, arrays = packed_tensors(kind)
    directory = write_packed(tmp_path / "model", kind, arrays)
    config = directory / "config.json"
    values = json.loads(config.read_text())
    old = values.pop("quantization_config")
    del old["quant_method"]
    config.write_text(json.dumps(values))
    (directory / "quantize_config.json").write_text(json.dumps(old))
    found = load_model(directory).weights[QUERY + ".weight"].to_float32()
    assert np.array_equal(found, quantised[QUERY].values())


def test_scales_of_run_time_are_dropped(tmp_path):
    kind = SCHEMES["int"]
    quantised, arrays = packed_tensors(kind)
    one = StoredArray("F32", np.ones(1, np.float32))
    extra = {f"{QUERY}.input_scale": one, "model.layers.0.self_attn.k_scale": one}
    model = load(tmp_path, kind, arrays | extra)
    assert np.array_equal(model.weights[QUERY + ".weight"].to_float32(), quantised[QUERY].values())


def test_one_scale_for_a_whole_tensor(tmp_path):
    kind = SCHEMES["int"]
    quantised, arrays = packed_tensors(kind)
    codes = replace(quantised[QUERY], scales=np.full((128, 1), 0.0078125))
    arrays |= pack_compressed(QUERY, codes, "int-quantized")
    arrays[QUERY + ".weight_scale"] = StoredArray("F32", np.full((), 0.0078125, np.float32))
    model = load(tmp_path, kind, arrays)
    assert np.array_equal(model.weights[QUERY + ".weight"].to_float32(), codes.values())
    assert np.array_equal(dequantize(model.weights[QUERY + ".weight"].quantized()), codes.values())


def with_scale(tmp_path, scale, code):
    """A tensor with a row whose scales are 2^-7 but for one group, whose codes are all alike."""
    kind = SCHEMES["gptq bf16"]
    quantised, arrays = packed_tensors(kind)
    codes = quantised[QUERY]
    scales, integers = codes.scales.copy(), codes.codes.copy()
    scales[5] = 2.0**-7
    scales[5, 1] = scale
    integers[5, 32:64] = codes.zeros[5, 1] + code
    integers = integers.clip(0, 15)
    changed = replace(codes, scales=scales, codes=integers)
    arrays |= pack_gptq(QUERY, changed)
    arrays[QUERY + ".scales"] = StoredArray("F32", scales.T.astype(np.float32))
    return load(tmp_path, kind, arrays).weights[QUERY + ".weight"], changed


@pytest.mark.parametrize(
    ("scale", "code", "kept"),
    [
        (2.0**-14, 1, True),  # the smallest half with all its bits
        (1.01 * 2.0**-20, 1, True),  # fewer bits, but nothing beside 2^-7
        (1e-30, 0, True),  # of no consequence
        (4000.0, 1, True),
        (5000.0, 1, False),  # its minimum might reach 5000 * 15
        (1e10, 0, False),
    ],
)
def test_scales_at_the_ends_of_half_precision(tmp_path, scale, code, kept):
    tensor, codes = with_scale(tmp_path, scale, code)
    assert (tensor.layout() is not None) == kept
    assert np.array_equal(tensor.to_float32(), codes.values().astype(np.float32))
    if kept:
        error = np.abs(dequantize(tensor.quantized()) - codes.values())
        largest = np.abs(codes.scales).max(axis=1)[:, None]
        assert (error <= 16 * 2.0**-11 * largest).all()
    else:
        assert tensor.quantized() is None


def test_a_row_of_scales_too_small_for_halves_has_no_codes(tmp_path):
    kind = SCHEMES["gptq bf16"]
    quantised, arrays = packed_tensors(kind)
    codes = quantised[QUERY]
    codes.scales[7] = np.float32(1.01 * 2.0**-22)
    arrays |= pack_gptq(QUERY, codes)
    arrays[QUERY + ".scales"] = StoredArray("F32", codes.scales.T.astype(np.float32))
    tensor = load(tmp_path, kind, arrays).weights[QUERY + ".weight"]
    assert tensor.layout() is None
    assert tensor.to_float32()[7].any()


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("name", ["gptq", "awq", "int"])
def test_refuses_scales_that_are_not_finite(tmp_path, name, value):
    kind = SCHEMES[name]
    quantised, arrays = packed_tensors(kind)
    suffix = ".weight_scale" if name == "int" else ".scales"
    scales = quantised[QUERY].scales.copy()
    scales[3, 0] = value
    arrays[QUERY + suffix] = floats(scales if name == "int" else scales.T, quantised[QUERY].dtype)
    tensor = load(tmp_path, kind, arrays).weights[QUERY + ".weight"]
    for ask in (tensor.layout, tensor.quantized, tensor.to_float32):
        if name == "int" or ask != tensor.layout:
            with pytest.raises(ModelFileError, match=r"q_proj.weight' holds NaN or infinite"):
                ask()


PARTS = {
    "gptq": ("qweight", "qzeros", "scales", "g_idx"),
    "awq": ("qweight", "qzeros", "scales"),
    "packed asymmetric": ("weight_packed", "weight_scale", "weight_zero_point", "weight_shape"),
    "int asymmetric": ("weight", "weight_scale", "weight_zero_point"),
}


@pytest.mark.parametrize(("name", "part"), [(n, p) for n, parts in PARTS.items() for p in parts])
@pytest.mark.parametrize("lie", ["absent", "type", "rows", "columns", "flat"])
def test_refuses_arrays_that_lie(tmp_path, name, part, lie):
    _, arrays = packed_tensors(SCHEMES[name])
    array = arrays[f"{DOWN}.{part}"]
    if lie == "absent":
        del arrays[f"{DOWN}.{part}"]
    elif lie == "type":
        arrays[f"{DOWN}.{part}"] = StoredArray("U8", np.ones(array.data.shape, np.uint8))
    else:
        cut = {"rows": array.data[:-1], "columns": array.data[..., 1:], "flat": array.data[None]}
        arrays[f"{DOWN}.{part}"] = StoredArray(array.dtype, cut[lie])
    if lie == "absent" and part in ("g_idx", "weight_zero_point"):  # then it means something else
        load(tmp_path, SCHEMES[name], arrays)
        return
    with pytest.raises((ModelFileError, UnsupportedModelError), match="down_proj"):
        load(tmp_path, SCHEMES[name], arrays)


@pytest.mark.parametrize("index", [-1, 4, 2**31 - 1])
def test_refuses_groups_that_are_not_there(tmp_path, index):
    kind = SCHEMES["gptq act-order"]
    quantised, arrays = packed_tensors(kind)
    g_idx = quantised[QUERY].g_idx.astype(np.int32)
    g_idx[17] = index
    with pytest.raises(ModelFileError, match=rf"q_proj' puts a column into group {index}"):
        load(tmp_path, kind, arrays | {QUERY + ".g_idx": StoredArray("I32", g_idx)})


def test_an_order_of_minus_ones_is_none(tmp_path):
    """compressed-tensors initialises its buffer so."""
    kind = SCHEMES["packed"]
    quantised, arrays = packed_tensors(kind)
    arrays[QUERY + ".weight_g_idx"] = StoredArray("I32", np.full(128, -1, np.int32))
    tensor = load(tmp_path, kind, arrays).weights[QUERY + ".weight"]
    assert tensor.layout().order is None
    assert np.array_equal(tensor.to_float32(), quantised[QUERY].values())


def test_refuses_encoders(tmp_path):
    kind = SCHEMES["gptq"]
    directory = write_packed(tmp_path, kind, packed_tensors(kind)[1])
    config = directory / "config.json"
    values = json.loads(config.read_text()) | {"model_type": "bert", "hidden_act": "gelu"}
    config.write_text(json.dumps(values))
    with pytest.raises(UnsupportedModelError, match="the encoder's weights are quantised"):
        load_model(directory)


def test_parts_of_the_rows(tmp_path, kind):
    """Packing takes a matrix apart; the parts have the layout of the whole."""
    _, arrays = packed_tensors(kind)
    whole = load(tmp_path, kind, arrays).weights[QUERY + ".weight"]
    matrix = whole.quantized()
    for begin, end in ((0, 32), (32, 128), (5, 18), (127, 128)):
        part = whole.part(begin, end)
        assert part.shape == (end - begin, 128)
        assert part.layout() is whole.layout()
        assert np.array_equal(part.to_float32(), whole.to_float32()[begin:end])
        found = part.quantized()
        assert np.array_equal(found.codes, matrix.codes[begin:end])
        assert np.array_equal(found.scales, matrix.scales[begin:end])
        if matrix.minimums is not None:
            assert np.array_equal(found.minimums, matrix.minimums[begin:end])
    again = whole.part(5, 50).part(2, 20)
    assert np.array_equal(again.to_float32(), whole.to_float32()[7:25])


def test_refuses_a_weight_that_is_there_twice(tmp_path):
    kind = SCHEMES["gptq"]
    _, arrays = packed_tensors(kind)
    arrays[QUERY + ".weight"] = StoredArray("F16", np.ones((128, 128), np.float16))
    with pytest.raises(ModelFileError, match=r"q_proj.weight' is there twice"):
        load(tmp_path, kind, arrays)


def test_refuses_a_matrix_of_another_shape(tmp_path):
    kind = SCHEMES["gptq"]
    quantised, arrays = packed_tensors(kind)
    stem = QUERY.replace("q_proj", "k_proj")
    with pytest.raises(ModelFileError, match=r"k_proj.weight' has shape \[128, 128\]"):
        load(tmp_path, kind, arrays | pack_gptq(stem, quantised[QUERY]))


@pytest.mark.parametrize(
    ("name", "changes", "words"),
    [
        ("gptq", {"quant_method": "bitsandbytes"}, "'bitsandbytes'.*allowed: 'gptq', 'awq'"),
        ("gptq", {"quant_method": "fp8"}, "'fp8'"),
        ("gptq", {"quant_method": None}, "None"),
        ("gptq", {"quant_method": ["gptq"]}, "gptq"),
        ("gptq", {"checkpoint_format": "marlin"}, "'marlin'.*allowed: gptq, gptq_v2"),
        ("awq", {"version": "gemv"}, "'gemv'.*allowed: 'gemm'"),
        ("awq", {"backend": "llm-awq"}, "AWQ"),
        ("awq", {"bits": 8}, "8 bits; allowed: 4"),
        ("packed", {"format": "marlin-24"}, "'marlin-24'"),
        ("packed", {"format": "float-quantized"}, "'float-quantized'"),
        ("packed", {"sparsity_config": {"format": "sparse-24-bitmask"}}, "sparse"),
        ("packed", {"transform_config": {"config_groups": {"R1": {}}}}, "transform"),
    ],
)
def test_names_variants_that_are_not_supported(tmp_path, name, changes, words):
    _, arrays = packed_tensors(SCHEMES[name])
    with pytest.raises(UnsupportedModelError, match=words):
        load(tmp_path, SCHEMES[name], arrays, **changes)


@pytest.mark.parametrize(
    ("weights", "words"),
    [
        ({"type": "float"}, "type 'float'"),
        ({"num_bits": 2}, "2 bits"),
        ({"strategy": "block"}, "'block'"),
    ],
)
def test_names_schemes_that_are_not_supported(tmp_path, weights, words):
    kind = SCHEMES["packed"]
    _, arrays = packed_tensors(kind)
    groups = kind.quantization_config()["config_groups"]
    groups["group_0"]["weights"] |= weights
    with pytest.raises(UnsupportedModelError, match=words):
        load(tmp_path, kind, arrays, config_groups=groups)


@pytest.mark.parametrize("bits", [2, 3])
def test_names_a_number_of_bits_that_is_not_supported(tmp_path, bits):
    kind = SCHEMES["gptq"]
    quantised, arrays = packed_tensors(kind)
    for stem, codes in quantised.items():
        rows, groups = codes.zeros.shape
        zeros = np.zeros((groups, rows * bits // 32), np.int32)
        arrays[stem + ".qzeros"] = StoredArray("I32", zeros)
    with pytest.raises(UnsupportedModelError, match=f"{bits} bits; allowed: 4, 8"):
        load(tmp_path, kind, arrays, bits=bits)


def test_refuses_float_weights_with_scales(tmp_path):
    """As a model that was calibrated, but not compressed, holds them."""
    kind = SCHEMES["int"]
    _, arrays = packed_tensors(kind)
    arrays[QUERY + ".weight"] = StoredArray("BF16", np.zeros((128, 128), np.uint16))
    with pytest.raises(UnsupportedModelError, match="has scales, but is stored as BF16"):
        load(tmp_path, kind, arrays)

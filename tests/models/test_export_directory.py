"""Directories for transformers and vLLM: codes come back, and transformers computes the same."""

import errno
import json
import warnings
from dataclasses import replace

import numpy as np
import pytest
from exported import VOCABULARY, make_model, quantised
from hypothesis import given
from hypothesis import strategies as st
from packed_models import SCHEMES, packed_tensors, write_packed
from safetensors import safe_open

from hasten.errors import UnsupportedModelError, UsageError
from hasten.kernels.quantization import QuantizedMatrix, dequantize, pack_nibbles
from hasten.models import load_model
from hasten.models.export import directory as export_module
from hasten.models.export.directory import export_directory
from hasten.models.export.integer import stack, with_zero_points
from hasten.models.weights import QuantizedTensor

EMBEDDING = "model.embed_tokens.weight"
QUERY = "model.layers.0.self_attn.q_proj.weight"


def with_codes(values, bits, group, *, zeros=False):
    """A matrix rounded to symmetric codes, or to codes with integer zero points."""
    rows, columns = values.shape
    size = group or columns
    grouped = values.reshape(rows, -1, size)
    top = (1 << bits) - 1
    if zeros:
        low, high = np.minimum(grouped.min(2), 0), np.maximum(grouped.max(2), 0)
        scales = ((high - low) / top).astype(np.float16)
        zero = np.rint(-low / scales.astype(np.float32))
    else:
        scales = (2 * np.abs(grouped).max(2) / top).astype(np.float16)
        zero = np.full(scales.shape, (top + 1) // 2, np.float32)
    wide = scales.astype(np.float32)
    unsigned = np.clip(np.rint(grouped / wide[:, :, None]) + zero[:, :, None], 0, top)
    codes = unsigned.reshape(rows, columns).astype(np.uint8)
    lows = (wide * ((0 if bits == 4 else 128) - zero)).astype(np.float16) if zeros else None
    packed = pack_nibbles(codes) if bits == 4 else (codes ^ np.uint8(128)).view(np.int8)
    return QuantizedMatrix(bits, (rows, columns), size, packed, scales, lows)


def rounded(model, *forms):
    """The model with the matrices of its layers as `with_codes` makes them, by turns."""
    weights = dict(model.weights)
    names = [name for name in weights if ".layers." in name and len(weights[name].shape) == 2]
    for number, name in enumerate(names):
        bits, group, zeros = forms[number % len(forms)]
        matrix = with_codes(weights[name].to_float32(), bits, group, zeros=zeros)
        weights[name] = QuantizedTensor(name, matrix)
    return model.derive(weights)


def same_codes(one, two):
    """Whether two matrices have the same codes, scales and minimums, bit for bit."""
    return (one.bits, one.group, one.shape) == (two.bits, two.group, two.shape) and all(
        (a is None and b is None) or np.array_equal(a, b)
        for a, b in (
            (one.integer_codes()[:, : one.shape[1]], two.integer_codes()[:, : two.shape[1]]),
            (one.scales, two.scales),
            (one.minimums, two.minimums),
            (one.order, two.order),
        )
    )


@pytest.mark.parametrize("family", ["llama", "phi3", "gemma3", "llama tied, biases"])
@pytest.mark.parametrize(
    "forms",
    [
        [(4, 32, False)],
        [(4, 32, True)],
        [(8, 32, False)],
        [(8, None, False)],
        [(8, 32, True)],
        [(4, None, True)],
    ],
    ids=str,
)
def test_codes_come_back_bit_for_bit(tmp_path, family, forms):
    model = rounded(make_model(tmp_path / "source", family), *forms)
    report = export_directory(model, tmp_path / "out")
    assert report.changed == {}
    found = load_model(tmp_path / "out")
    assert found.config == model.config
    for name, tensor in model.weights.items():
        again = found.weights[name]
        if tensor.quantized() is None:
            assert np.array_equal(again.to_float32(), tensor.to_float32()), name
        else:
            assert same_codes(tensor.quantized(), again.quantized()), name
    assert found.tokenizer.encode("12 words") == model.tokenizer.encode("12 words")
    assert found.chat_template.source == model.chat_template.source


@pytest.mark.parametrize("name", SCHEMES)
def test_checkpoints_of_other_tools_keep_their_codes(tmp_path, name):
    _, arrays = packed_tensors(SCHEMES[name])
    model = load_model(write_packed(tmp_path / "model", SCHEMES[name], arrays))
    report = export_directory(model, tmp_path / "out")
    assert report.changed == {}
    found = load_model(tmp_path / "out")
    for stem, tensor in model.weights.items():
        if tensor.quantized() is None:
            assert np.array_equal(found.weights[stem].to_float32(), tensor.to_float32())
        else:
            assert same_codes(tensor.quantized(), found.weights[stem].quantized())


def test_groups_of_formats_and_what_is_ignored(tmp_path):
    model = rounded(make_model(tmp_path / "source"), (4, 32, False), (8, None, False))
    export_directory(model, tmp_path / "out")
    values = json.loads((tmp_path / "out" / "config.json").read_text())
    assert values["dtype"] == "float32"
    quantization = values["quantization_config"]
    assert quantization["ignore"] == ["lm_head"]
    first, second = quantization["config_groups"].values()
    assert first["weights"]["num_bits"] == 4
    assert (second["weights"]["strategy"], second["weights"]["group_size"]) == ("channel", None)
    assert len(first["targets"] + second["targets"]) == 14
    with safe_open(tmp_path / "out" / "model.safetensors", "np") as file:
        assert file.metadata() == {"format": "pt"}
        for stem in first["targets"]:
            scale = file.get_tensor(f"{stem}.weight_scale")
            assert scale.dtype == np.float16
            assert file.get_tensor(f"{stem}.weight_packed").dtype == np.int32


def settings_of(directory):
    return json.loads((directory / "config.json").read_text())["quantization_config"]


def test_activations_in_8_bits_where_rows_have_one_scale(tmp_path):
    forms = [(8, None, False), (8, None, False), (8, None, False), (4, 32, False)]
    model = rounded(make_model(tmp_path / "source"), *forms)
    report = export_directory(model, tmp_path / "out", activations=True)
    assert report.changed == {}
    assert report.kept["8-bit channel, activations 8-bit"] == 11
    quantization = settings_of(tmp_path / "out")
    assert quantization["format"] == "mixed-precision"
    plain, packed = quantization["config_groups"].values()
    assert (plain["format"], packed["format"]) == ("int-quantized", "pack-quantized")
    # vLLM asks for these (`_is_dynamic_token_w8a8`), and for symmetric weights of whole rows.
    given = plain["input_activations"]
    assert (given["num_bits"], given["type"], given["strategy"]) == (8, "int", "token")
    assert (given["dynamic"], given["symmetric"]) == (True, True)
    assert plain["weights"]["symmetric"]
    assert packed["input_activations"] is None
    assert quantization["ignore"] == ["lm_head"]
    with safe_open(tmp_path / "out" / "model.safetensors", "np") as file:
        for stem in plain["targets"]:
            assert file.get_tensor(f"{stem}.weight").dtype == np.int8
            assert file.get_tensor(f"{stem}.weight_scale").shape[1] == 1
    found = load_model(tmp_path / "out")
    for name, tensor in model.weights.items():
        if tensor.quantized() is not None:
            assert same_codes(tensor.quantized(), found.weights[name].quantized()), name


def test_activations_stay_where_no_matrix_asks_for_less(tmp_path):
    model = rounded(make_model(tmp_path / "source"), (8, 32, False), (8, None, True))
    report = export_directory(model, tmp_path / "out", activations=True)
    export_directory(model, tmp_path / "plain")
    assert settings_of(tmp_path / "out") == settings_of(tmp_path / "plain")
    assert report.remarks[0].startswith("activations stay as they are: no matrix has")


def test_what_vllm_would_refuse_is_said(tmp_path):
    source = make_model(tmp_path / "source")
    order = np.random.default_rng(0).permutation(64).astype(np.int32)
    model = rounded(source, (4, 32, False))
    turned = QuantizedTensor(QUERY, replace(model.weights[QUERY].quantized(), order=order))
    mixed = model.derive({**model.weights, QUERY: turned})
    report = export_directory(mixed, tmp_path / "turned")
    assert report.remarks == [
        f"vLLM refuses columns in another order (GPTQ's desc_act): {QUERY.removesuffix('.weight')}",
        "vLLM refuses different forms of q_proj, k_proj, v_proj: model.layers.0.self_attn",
    ]
    assert export_directory(model, tmp_path / "alike").remarks == []
    # What vLLM keeps apart may differ.
    down = "model.layers.0.mlp.down_proj.weight"
    dense = model.derive({**model.weights, down: source.weights[down]})
    assert export_directory(dense, tmp_path / "apart").remarks == []


def test_minimums_without_zero_points_become_dense_or_are_rounded(tmp_path):
    model = quantised(make_model(tmp_path / "source"), (4, 32), (8, 32))
    report = export_directory(model, tmp_path / "dense")
    fours = {n for n, t in model.weights.items() if t.layout() and t.layout().bits == 4}
    assert set(report.changed) == fours | {EMBEDDING}
    some = next(iter(fours - {EMBEDDING}))
    assert report.changed[some] == "F16: its minimums are no integer multiples of its scales"
    assert report.changed[EMBEDDING] == "F16: readers expect an embedding of floats"
    found = load_model(tmp_path / "dense").weights
    for name, tensor in model.weights.items():
        np.testing.assert_allclose(
            found[name].to_float32(), tensor.to_float32(), rtol=2**-11, atol=1e-6
        )
    report = export_directory(model, tmp_path / "rounded", lossy=True)
    assert report.changed[some] == "4-bit g32 with zero points: zero points rounded"
    found = load_model(tmp_path / "rounded").weights
    for name in fours - {EMBEDDING}:
        ours, theirs = model.weights[name].quantized(), found[name].quantized()
        assert np.array_equal(ours.codes, theirs.codes)
        step = np.repeat(ours.scales.astype(np.float32), 32, axis=1)
        error = np.abs(found[name].to_float32() - model.weights[name].to_float32())
        assert error.max() > 0
        assert (error <= 0.51 * step).all()


def test_plain_safetensors(tmp_path):
    model = quantised(make_model(tmp_path / "source", "phi3"), (4, 32), (8, 32))
    report = export_directory(model, tmp_path / "out", quantized=False, half="BF16")
    assert "quantization_config" not in json.loads((tmp_path / "out" / "config.json").read_text())
    assert set(report.changed.values()) == {"BF16: its codes are written as floats"}
    found = load_model(tmp_path / "out").weights
    for name, tensor in model.weights.items():
        np.testing.assert_allclose(found[name].to_float32(), tensor.to_float32(), rtol=2**-8)


@given(
    rows=st.integers(1, 20),
    columns=st.integers(5, 130),
    bits=st.sampled_from([4, 8]),
    group=st.sampled_from([32, 64, None]),
    zeros=st.booleans(),
    seed=st.integers(0, 99),
)
def test_any_shape_comes_back_or_is_refused_with_a_reason(rows, columns, bits, group, zeros, seed):
    from hasten.models.compressed_tensors import take_compressed_tensors
    from hasten.models.export.integer import why_not_integer

    padded = -(-columns // 32) * 32
    group = group if group and padded % group == 0 else None
    values = np.random.default_rng(seed).standard_normal((rows, padded)).astype(np.float32)
    matrix = replace(with_codes(values, bits, group, zeros=zeros), shape=(rows, columns))
    if why_not_integer(matrix) is not None:
        assert columns % matrix.group
        return
    packed = with_zero_points(matrix, rounded=False)
    assert packed is not None
    arrays = {f"x.{part}": array for part, array in export_module._packed_arrays(packed).items()}
    schemes = {"x": packed.scheme}
    quantization = export_module._quantization(schemes, arrays, activations=False)
    taken = take_compressed_tensors(quantization, arrays)
    found = taken["x.weight"].quantized()
    assert same_codes(matrix, found) or (matrix.minimums is not None and found.minimums is None)
    assert np.array_equal(dequantize(found), dequantize(matrix))


def test_matrices_stack_only_if_they_are_alike():
    values = np.random.default_rng(0).standard_normal((8, 64)).astype(np.float32)
    forms = [(4, 32, False), (4, 64, False), (8, 32, False), (4, 32, True)]
    made = [with_zero_points(with_codes(values, *f[:2], zeros=f[2]), rounded=False) for f in forms]
    assert all((stack([a, b]) is None) == (a is not b) for a in made for b in made)
    order = np.arange(64, dtype=np.int32)[::-1].copy()
    turned = with_zero_points(replace(with_codes(values, 4, 32), order=order), rounded=False)
    assert stack([made[0], turned]) is None
    assert np.array_equal(stack([turned, turned]).group_of, turned.group_of)


def test_nothing_is_overwritten_and_nothing_is_left(tmp_path, monkeypatch):
    model = make_model(tmp_path / "source")
    with pytest.raises(UsageError, match="source exists, so it is not overwritten"):
        export_directory(model, tmp_path / "source")
    (tmp_path / "empty").mkdir()
    export_directory(model, tmp_path / "empty")
    headless = {k: v for k, v in model.weights.items() if k != "lm_head.weight"}
    hidden = model.derive(headless, replace(model.config, output="hidden"))
    with pytest.raises(UnsupportedModelError, match="gives hidden states"):
        export_directory(hidden, tmp_path / "out")

    def fill(path, *_):
        path.write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(export_module, "write_safetensors", fill)
    with pytest.raises(UsageError, match=r"cannot be written \(No space left on device"):
        export_directory(model, tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "source"]


@pytest.mark.parity
@pytest.mark.parametrize(
    ("family", "forms"),
    [
        ("llama", [(4, 32, False)]),
        ("llama tied, biases", [(8, 32, False), (4, None, False)]),
        ("phi3", [(8, None, False)]),
        ("qwen2", [(4, 32, True)]),
        ("gemma3", [(4, 32, False)]),
    ],
)
def test_transformers_computes_the_same(tmp_path, family, forms):
    import torch
    from transformers import AutoModelForCausalLM, CompressedTensorsConfig

    from hasten.generation import Engine
    from hasten.types import EngineOptions

    model = rounded(make_model(tmp_path / "source", family), *forms)
    assert export_directory(model, tmp_path / "out").changed == {}
    tokens = np.random.default_rng(0).integers(0, VOCABULARY, 40).tolist()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        # Without this, transformers 5.23 expects zero points that are not packed, and fails.
        unpack = {"quantization_config": CompressedTensorsConfig(dequantize=True)}
        made = AutoModelForCausalLM.from_pretrained(
            tmp_path / "out", dtype=torch.float32, **unpack if forms[0][2] else {}
        )
        with torch.no_grad():
            want = made(input_ids=torch.tensor([tokens])).logits[0].numpy()
    options = EngineOptions(executor="reference", weights="f32", kv="f32", max_context=64)
    with Engine(load_model(tmp_path / "out"), options) as engine:
        got = np.concatenate([rows for _, rows in engine.score(tokens)])
    # Minimums are rounded to half precision here, zero points are exact there.
    bound = 1e-3 if forms[0][2] else 1e-5
    assert np.abs(got - want).max() < bound * np.abs(want).max()

"""Checkpoints that others quantised run on the codes that they hold."""

from dataclasses import replace

import numpy as np
import pytest
from packed_models import SCHEMES, VOCABULARY, packed_tensors, scheme, write_packed
from tiny import Player, some_tokens

from hasten.errors import UnsupportedModelError
from hasten.generation import reference as reference_module
from hasten.kernels.linear import linear, quantize_activations
from hasten.kernels.quantization import dequantize, quantize_rtn
from hasten.models import load_model
from hasten.models.weights import QuantizedTensor

SEQUENCES = [some_tokens(n, seed=n, vocabulary=VOCABULARY) for n in (40, 1, 7)]
FORMATS = {
    "gptq": {"int4:128", "int4:256"},
    "gptq asymmetric": {"int4:64+min"},
    "gptq rows": {"int4:128", "int4:256"},
    "gptq 8 bit asymmetric": {"int8:32+min"},
    "gptq act-order": {"int4:32"},
    "gptq act-order asymmetric": {"int4:64+min"},
    "awq": {"int4:128+min"},
    "packed": {"int4:128"},
    "int": {"int8:128", "int8:256"},
}


def load(tmp_path, kind):
    return load_model(write_packed(tmp_path / "model", kind, packed_tensors(kind)[1]))


def formats_of_products(player):
    return {form for name, form in player.executor.formats.items() if "proj" in name}


def rounding_linear(model, executor):
    """The reference's product, with activations rounded to int8 as the kernels round them."""
    layouts = {id(executor._weights[n]): t.layout() for n, t in model.weights.items()}

    def product(x, weight, bias=None):
        layout = layouts[id(weight)]
        if layout is not None:
            order = np.arange(x.shape[1]) if layout.order is None else layout.order
            size = 64 if layout.group % 64 == 0 else 32
            codes, scales = quantize_activations(x[:, order], size)
            rounded = (codes.reshape(len(x), -1, size) * scales[:, :, None]).reshape(len(x), -1)
            x = np.empty_like(x)
            x[:, order] = rounded
        return linear(x, weight, bias)

    return product


@pytest.mark.parametrize("name", FORMATS)
def test_logits_are_those_of_the_dequantised_weights(isa, tmp_path, monkeypatch, name):
    """All the same but where an activation on the border of two codes goes the other way.

    So each token is a text of its own, lest one such activation reach them all.
    """
    model = load(tmp_path, SCHEMES[name])
    tokens = [[token] for token in range(VOCABULARY)]
    player = Player(model, tokens, isa=isa, kv="f32")
    assert formats_of_products(player) <= FORMATS[name]
    assert player.executor.formats["lm_head.weight"] == "bf16"
    found = player.alone()
    reference = Player(model, tokens, executor="reference")
    for weight, tensor in model.weights.items():
        reference.executor._weights[weight] = as_held(tensor)
    monkeypatch.setattr(reference_module, "linear", rounding_linear(model, reference.executor))
    want = reference.alone()
    difference = np.abs(found - want).max(axis=1) / np.abs(want).max()
    assert np.mean(difference < 1e-5) > 0.7
    assert difference.max() < 0.05


def as_held(tensor):
    """What the native executor holds: minimums rounded to halves, F16 matrices to bf16."""
    values = tensor.to_float32()
    if tensor.layout() is not None:
        return dequantize(tensor.quantized())
    if values.ndim == 1:
        return values
    bits = values.view(np.uint32)
    rounded = (bits + 0x7FFF + (bits >> 16 & 1)) & np.uint32(0xFFFF0000)
    return rounded.astype(np.uint32).view(np.float32)


@pytest.mark.parametrize("name", ["gptq act-order asymmetric", "gptq 8 bit asymmetric"])
def test_bits_do_not_depend_on_how_they_are_run(isa, tmp_path, name):
    model = load(tmp_path, SCHEMES[name])
    want = Player(model, SEQUENCES, isa=isa).alone()
    for threads, fuse, size in ((1, False, 512), (3, True, 512), (2, False, 7)):
        got = Player(model, SEQUENCES, isa=isa, threads=threads, fuse=fuse).together(size)
        np.testing.assert_array_equal(got, want, f"{threads=} {fuse=} {size=}")


def test_groups_that_fit_no_kernel_become_int8(tmp_path):
    player = Player(load(tmp_path, scheme("gptq", group=16)), SEQUENCES)
    assert formats_of_products(player) == {"int8:32"}


def test_scales_that_fit_no_half_become_float(tmp_path):
    kind = scheme("gptq", group=32, dtype="BF16")
    quantised, arrays = packed_tensors(kind)
    stem = "model.layers.1.mlp.down_proj"
    quantised[stem].scales[7] = 2.0**-30
    arrays |= kind.arrays(stem, quantised[stem])
    model = load_model(write_packed(tmp_path / "model", kind, arrays))
    player = Player(model, SEQUENCES, kv="f32")
    assert player.executor.formats.pop(stem + ".weight") == "f32"
    assert formats_of_products(player) == {"int4:32"}


def test_refuses_an_embedding_out_of_order(tmp_path):
    model = load(tmp_path, SCHEMES["gptq"])
    name = "model.embed_tokens.weight"
    matrix = quantize_rtn(model.weights[name].to_float32(), 4, 32)
    backwards = np.arange(128, dtype=np.int32)[::-1].copy()
    model.weights[name] = QuantizedTensor(name, replace(matrix, order=backwards))
    with pytest.raises(UnsupportedModelError, match=r"embed_tokens.weight' is an embedding"):
        Player(model, SEQUENCES)

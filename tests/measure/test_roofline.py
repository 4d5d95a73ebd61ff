from __future__ import annotations

import numpy as np
import pytest

from hasten.kernels.quantization import quantize_rtn
from hasten.machine import Rates
from hasten.measure.footprint import (
    fitting_formats,
    kv_bytes_per_token,
    measure_footprint,
    product_matrices,
)
from hasten.measure.roofline import expect
from hasten.models.config import ModelConfig
from hasten.models.weights import DenseTensor, QuantizedTensor, StoredTensor

RATES = Rates(threads=2, isa="scalar", bandwidth=1e9, int8=1e12, fp32=1e11)


def config(**changes) -> ModelConfig:
    values = {
        "model_type": "llama",
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_layers": 1,
        "num_heads": 4,
        "num_kv_heads": 2,
        "head_dim": 16,
        "vocab_size": 100,
        "max_position": 512,
        "norm_eps": 1e-5,
        "rope_theta": 1e4,
        "tie_embeddings": True,
    } | changes
    return ModelConfig(**values)


SHAPES = {
    "model.embed_tokens.weight": (100, 64),
    "model.layers.0.input_layernorm.weight": (64,),
    "model.layers.0.self_attn.q_proj.weight": (64, 64),
    "model.layers.0.self_attn.k_proj.weight": (32, 64),
    "model.layers.0.mlp.down_proj.weight": (64, 128),
}


def dense(**extra: tuple[int, ...]) -> dict[str, StoredTensor]:
    shapes = SHAPES | {name.replace("__", "."): shape for name, shape in extra.items()}
    return {
        name: DenseTensor(name, "F32", np.zeros(shape, np.float32))
        for name, shape in shapes.items()
    }


LAYERS = 64 * 64 + 32 * 64 + 64 * 128
EMBEDDING = 100 * 64


def test_parameters_and_encodings():
    footprint = measure_footprint(config(), dense())
    assert footprint.parameters == {
        "embedding": EMBEDDING,
        "attention": 64 * 64 + 32 * 64,
        "feed-forward": 64 * 128,
        "norms": 64,
    }
    assert footprint.total_parameters == LAYERS + EMBEDDING + 64
    assert footprint.file_bytes == 4 * footprint.total_parameters
    assert footprint.encodings["F32"].tensors == 5


def test_memory_counts_a_separate_output_twice():
    tied = measure_footprint(config(), dense())
    apart = measure_footprint(config(tie_embeddings=False), dense(lm_head__weight=(100, 64)))
    assert apart.memory_bytes["f32"]["f32"] - tied.memory_bytes["f32"]["f32"] == 4 * EMBEDDING
    assert tied.memory_bytes["f32"]["f32"] == 4 * (LAYERS + EMBEDDING) + 512 * 2 * 2 * 16 * 4


def test_kv_bytes():
    assert kv_bytes_per_token(config(), "f32") == 2 * 2 * 16 * 4
    assert kv_bytes_per_token(config(), "bf16") == 2 * 2 * 16 * 2
    assert kv_bytes_per_token(config(), "int8") == 2 * 2 * (16 + 4)


def test_bytes_agree_with_a_real_quantised_matrix():
    values = np.random.default_rng(0).normal(size=(64, 100)).astype(np.float32)
    for bits, group in ((8, None), (8, 32), (4, 32), (4, 64)):
        matrix = quantize_rtn(values, bits, group)
        name = "model.layers.0.mlp.up_proj.weight"
        tensor = QuantizedTensor(name, matrix)
        form = fitting_formats({name: tensor}, ["carried"])["carried"][name]
        assert form.nbytes(tensor.shape) == matrix.nbytes


def test_a_group_that_does_not_fit_is_left_out():
    tensor = DenseTensor("x.up_proj", "F32", np.zeros((4, 96), np.float32))
    assert list(fitting_formats({"x.up_proj": tensor}, ["f32", "int4:64", "int4:32"])) == [
        *("f32", "int4:32")
    ]


def test_the_output_is_the_embedding_where_they_are_tied():
    layers, output = product_matrices(config(), dense())
    assert [tensor.name for tensor in output] == ["model.embed_tokens.weight"]
    assert len(layers) == 3


def test_a_model_of_hidden_states_has_no_output_matrix():
    layers, output = product_matrices(config(output="hidden"), dense())
    assert (len(layers), output) == (3, [])


def test_decode_is_bound_by_bytes_and_prefill_by_operations():
    (bound,) = expect(config(), dense(), RATES, formats=["f32"], kv="bf16", context=10, prompt=20)
    size = 4 * (LAYERS + EMBEDDING)
    assert bound.weight_bytes == size
    assert bound.decode_tokens_per_s == pytest.approx(1e9 / (size + 10 * 128))
    seconds = (2 * LAYERS + 2 * EMBEDDING / 20) / 1e11 + 2 * 4 * 16 * 20 / 1e11
    assert bound.prefill_tokens_per_s == pytest.approx(1 / seconds)


def test_a_slow_processor_bounds_decode_too():
    slow = Rates(threads=1, isa="scalar", bandwidth=1e15, int8=1e6, fp32=1e6)
    (bound,) = expect(config(), dense(), slow, formats=["int8"])
    assert bound.decode_tokens_per_s == pytest.approx(1e6 / (2 * (LAYERS + EMBEDDING)))


def test_fewer_bits_are_never_slower():
    found = expect(config(), dense(), RATES, formats=["f32", "bf16", "int8", "int4:64"])
    assert [bound.weights for bound in found] == ["f32", "bf16", "int8", "int4:64"]
    decode = [bound.decode_tokens_per_s for bound in found]
    assert decode == sorted(decode)

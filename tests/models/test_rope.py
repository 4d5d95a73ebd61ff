"""Rotary frequencies against transformers and against llama.cpp's converter."""

import math
import warnings

import numpy as np
import pytest
from tiny_models import CONFIG

from hasten.errors import ModelFileError
from hasten.models.config_json import from_huggingface
from hasten.models.rope import (
    Llama3Scaling,
    LongRopeScaling,
    Rotation,
    YarnScaling,
    inverse_frequencies,
)

LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}
LONGROPE = {
    "rope_type": "longrope",
    "short_factor": [1.0 + 0.01 * i for i in range(32)],
    "long_factor": [1.0 + 0.5 * i for i in range(32)],
    "original_max_position_embeddings": 4096,
}
SCALINGS = {
    "default": {"rope_type": "default"},
    "linear": {"rope_type": "linear", "factor": 4.0},
    "llama3": LLAMA3 | {"original_max_position_embeddings": 8192},
    "other llama3": LLAMA3
    | {"low_freq_factor": 2.0, "high_freq_factor": 8.0, "original_max_position_embeddings": 4096},
    "yarn": YARN,
    "yarn, not truncated": YARN | {"truncate": False, "beta_fast": 20, "beta_slow": 2},
    "yarn with scales": YARN | {"mscale": 1.2, "mscale_all_dim": 0.7},
    "yarn with a factor": YARN | {"attention_factor": 1.5},
    "yarn of one pair": YARN | {"beta_fast": 1.001, "beta_slow": 1.0, "truncate": False},
    "longrope": LONGROPE,
    "longrope with a factor": LONGROPE | {"attention_factor": 1.19},
    "longrope with another": LONGROPE | {"factor": 7.0},
    "dynamic": {"rope_type": "dynamic", "factor": 2.5},
}
CONTEXTS = (4096, 4097, 1 << 17, 300_000)
SIZES = {key: CONFIG[key] for key in ("hidden_size", "num_attention_heads")}


def ours(rope, head_dim, theta):
    values = CONFIG | {
        "head_dim": head_dim,
        "rope_parameters": rope | {"rope_theta": theta},
        "max_position_embeddings": 1 << 17,
    }
    return from_huggingface(values).rotation(0)


@pytest.mark.parity
@pytest.mark.parametrize("rope", SCALINGS.values(), ids=SCALINGS)
@pytest.mark.parametrize(("head_dim", "theta"), [(64, 1e5), (64, 1e4), (128, 5e5), (16, 1e4)])
def test_frequencies_equal_those_of_transformers(rope, head_dim, theta):
    if rope["rope_type"] == "longrope" and head_dim != 64:
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import torch
        from transformers import LlamaConfig
        from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
        from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

        config = LlamaConfig(
            **SIZES,
            head_dim=head_dim,
            rope_parameters=rope | {"rope_theta": theta},
            max_position_embeddings=1 << 17,
        )
    init = ROPE_INIT_FUNCTIONS.get(rope["rope_type"])
    rotation = ours(rope, head_dim, theta)
    for context in CONTEXTS:
        if init is None:
            expected, magnitude = LlamaRotaryEmbedding.compute_default_rope_parameters(config)
        else:
            expected, magnitude = init(config, torch.device("cpu"), seq_len=context)
        found = inverse_frequencies(rotation, context)
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, expected.numpy(), rtol=2e-6)
        assert rotation.magnitude == pytest.approx(magnitude, rel=1e-12)


def test_scalings_that_depend_on_the_length():
    """Within the first training's length nothing is stretched."""
    plain = inverse_frequencies(Rotation(64, 1e4), 1)
    dynamic = ours(SCALINGS["dynamic"], 64, 1e4)
    np.testing.assert_array_equal(inverse_frequencies(dynamic, 1 << 17), plain)
    assert (inverse_frequencies(dynamic, 1 << 18)[1:] < plain[1:]).all()
    long = ours(LONGROPE, 64, 1e4)
    short = plain / np.float32(LONGROPE["short_factor"])
    np.testing.assert_allclose(inverse_frequencies(long, 4096), short, rtol=1e-6)
    assert (inverse_frequencies(long, 4097)[1:] < short[1:]).all()


def test_a_head_of_two_dimensions_has_one_frequency():
    rotation = ours(SCALINGS["dynamic"], 2, 1e4)
    assert inverse_frequencies(rotation, 1 << 20).tolist() == [1.0]


@pytest.mark.parametrize(
    "make",
    [
        lambda: YarnScaling(0.5, 32768, 1.0),
        lambda: YarnScaling(4.0, 0, 1.0),
        lambda: YarnScaling(4.0, 32768, math.nan),
        lambda: YarnScaling(4.0, 32768, 1.0, beta_fast=1.0, beta_slow=32.0),
        lambda: YarnScaling(4.0, 32768, 1.0, beta_slow=0.0),
        lambda: LongRopeScaling((1.0, 0.0), (1.0, 1.0), 4096, 1.0),
        lambda: LongRopeScaling((1.0,), (math.inf,), 4096, 1.0),
        lambda: LongRopeScaling((1.0,), (1.0,), 4096, -1.0),
        lambda: Rotation(4, 1e4, LongRopeScaling((1.0,), (1.0, 2.0), 4096, 1.0)),
    ],
)
def test_refuses_values_out_of_range(make):
    with pytest.raises(ModelFileError):
        make()


def test_divisors_equal_those_that_the_gguf_converter_stores():
    """The loop of `LlamaModel.generate_extra_tensors` in convert_hf_to_gguf.py."""
    base = inverse_frequencies(Rotation(64, 5e5), 1)
    expected = []
    for frequency in base.astype(float):
        wavelength = 2 * math.pi / frequency
        if wavelength < 8192 / 4:
            expected.append(1)
        elif wavelength > 8192 / 1:
            expected.append(32)
        else:
            smooth = (8192 / wavelength - 1) / (4 - 1)
            expected.append(1 / ((1 - smooth) / 32 + smooth))
    divisors = Llama3Scaling(32.0).divisors(base)
    assert {1.0, 32.0} < set(divisors.tolist())
    np.testing.assert_allclose(divisors, expected, rtol=1e-6)

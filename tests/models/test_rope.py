"""Rotary frequencies against transformers and against llama.cpp's converter."""

import math
import warnings

import numpy as np
import pytest
from tiny_models import CONFIG

from hasten.models.rope import RopeScaling, frequency_divisors, inverse_frequencies

SCALINGS = {
    "default": None,
    "linear": RopeScaling("linear", 4.0),
    "llama3": RopeScaling("llama3", 8.0, 1.0, 4.0, 8192),
    "other llama3": RopeScaling("llama3", 32.0, 2.0, 8.0, 4096),
}


@pytest.mark.parity
@pytest.mark.parametrize("scaling", SCALINGS.values(), ids=SCALINGS)
@pytest.mark.parametrize(("head_dim", "theta"), [(64, 1e5), (128, 5e5), (16, 1e4)])
def test_frequencies_equal_those_of_transformers(scaling, head_dim, theta):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from transformers import LlamaConfig
        from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

        rope = {"rope_type": "default", "rope_theta": theta}
        if scaling is not None:
            rope |= {"rope_type": scaling.kind, "factor": scaling.factor}
        if scaling is not None and scaling.kind == "llama3":
            rope |= {
                "low_freq_factor": scaling.low_freq_factor,
                "high_freq_factor": scaling.high_freq_factor,
                "original_max_position_embeddings": scaling.original_max_position,
            }
        sizes = {key: CONFIG[key] for key in ("hidden_size", "num_attention_heads")}
        config = LlamaConfig(
            **sizes, head_dim=head_dim, rope_parameters=rope, max_position_embeddings=131072
        )
        expected = LlamaRotaryEmbedding(config).inv_freq.numpy()
    found = inverse_frequencies(head_dim, theta, scaling)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_divisors_equal_those_that_the_gguf_converter_stores():
    """The loop of `LlamaModel.generate_extra_tensors` in convert_hf_to_gguf.py."""
    base = inverse_frequencies(64, 5e5, None)
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
    divisors = frequency_divisors(base, RopeScaling("llama3", 32.0))
    assert {1.0, 32.0} < set(divisors.tolist())
    np.testing.assert_allclose(divisors, expected, rtol=1e-6)

"""What the metadata of GGUF files mean in each family; see also the parity tests of generation."""

import numpy as np
import pytest

from hasten.errors import ModelFileError, UnsupportedModelError
from hasten.models import load_model
from hasten.models.gguf import read_gguf
from hasten.models.gguf_model import config_from_gguf
from hasten.models.rope import LinearScaling, LongRopeScaling, YarnScaling

LAYERS = 12


def write(path, architecture, keys=(), tensors=(), layers=LAYERS):
    """A file with an embedding and what is given; keys without the architecture's prefix."""
    import gguf

    writer = gguf.GGUFWriter(path, architecture)
    writer.add_context_length(1000)
    writer.add_embedding_length(64)
    writer.add_block_count(layers)
    writer.add_feed_forward_length(96)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-5)
    for key, value in dict(keys).items():
        add = {int: writer.add_uint32, float: writer.add_float32, bool: writer.add_bool}
        add.get(type(value), writer.add_string)(f"{architecture}.{key}", value)
    writer.add_tensor("token_embd.weight", np.zeros((48, 64), np.float32))
    for name, values in dict(tensors).items():
        writer.add_tensor(name, np.asarray(values, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def config(tmp_path, architecture, keys=(), tensors=(), layers=LAYERS):
    return config_from_gguf(
        read_gguf(write(tmp_path / "a.gguf", architecture, keys, tensors, layers))
    )


def windows(found):
    return [found.window(layer) for layer in range(found.num_layers)]


def test_gemma2(tmp_path):
    found = config(tmp_path, "gemma2", {"attention.sliding_window": 9, "attention.key_length": 32})
    assert (found.model_type, found.head_dim, found.query_pre_attn_scalar) == ("gemma2", 32, 32)
    assert windows(found) == [9, None] * 6
    assert (found.attn_logit_softcapping, found.final_logit_softcapping) == (50, 30)
    assert found.tie_embeddings
    keys = {"attn_logit_softcapping": 2.5, "final_logit_softcapping": 0.0}
    found = config(tmp_path, "gemma2", keys)
    assert (found.attn_logit_softcapping, found.final_logit_softcapping) == (2.5, None)


def test_gemma3(tmp_path):
    keys = {
        "attention.sliding_window": 9,
        "rope.freq_base": 1e6,
        "rope.scaling.type": "linear",
        "rope.scaling.factor": 8.0,
    }
    found = config(tmp_path, "gemma3", keys)
    assert found.model_type == "gemma3_text"
    assert windows(found) == ([9] * 5 + [None]) * 2
    assert (found.rotation(0).theta, found.rotation(0).scaling) == (1e4, None)
    assert (found.rotation(5).theta, found.rotation(5).scaling) == (1e6, LinearScaling(8.0))
    more = {"attention.sliding_window_pattern": 2, "rope.freq_base_swa": 5e3}
    found = config(tmp_path, "gemma3", keys | more | {"final_logit_softcapping": 7.5})
    assert windows(found) == [9, None] * 6
    assert (found.local_rope_theta, found.final_logit_softcapping) == (5e3, 7.5)
    assert windows(config(tmp_path, "gemma3")) == [None] * LAYERS


@pytest.mark.parametrize(("architecture", "layers"), [("gemma2", 46), ("gemma3", 62)])
def test_the_scale_of_the_largest_gemmas(tmp_path, architecture, layers):
    keys = {"attention.key_length": 32}
    assert config(tmp_path, architecture, keys).query_pre_attn_scalar == 32
    assert config(tmp_path, architecture, keys, layers=layers).query_pre_attn_scalar == 16


def test_norms_of_gemma_lose_what_the_converter_added(tmp_path):
    """Exactly, where the weights were bfloat16 as they are in published models."""
    weights = np.float32([0.0, -0.75, 2.0**-9, 1.0, 3.0, 100.5, -(2.0**-14), 0.8359375])
    weights = np.resize(weights, 64)
    norms = {
        f"blk.0.{name}.weight": weights + 1
        for name in ("attn_norm", "post_attention_norm", "ffn_norm", "post_ffw_norm")
    }
    matrices = {
        "attn_q": (64, 64),
        "attn_k": (32, 64),
        "attn_v": (32, 64),
        "attn_output": (64, 64),
        "ffn_gate": (96, 64),
        "ffn_up": (96, 64),
        "ffn_down": (64, 96),
    }
    tensors = {f"blk.0.{name}.weight": np.ones(shape) for name, shape in matrices.items()}
    tensors |= norms | {"output_norm.weight": weights + 1}
    model = load_model(write(tmp_path / "a.gguf", "gemma2", tensors=tensors, layers=1))
    for name in (
        *("input", "post_attention", "pre_feedforward", "post_feedforward"),
        "final",
    ):
        full = "model.norm" if name == "final" else f"model.layers.0.{name}_layernorm"
        np.testing.assert_array_equal(model.weights[f"{full}.weight"].to_float32(), weights)


def test_phi3(tmp_path):
    factors = {"rope_factors_short.weight": [1.0, 1.5], "rope_factors_long.weight": [2.0, 4.0]}
    keys = {
        "attention.sliding_window": 9,
        "rope.dimension_count": 4,
        "rope.scaling.original_context_length": 250,
        "rope.scaling.attn_factor": 1.25,
    }
    found = config(tmp_path, "phi3", keys, factors)
    assert windows(found) == [9] * LAYERS
    assert found.rotary_dim == 4
    assert found.rope_scaling == LongRopeScaling((1.0, 1.5), (2.0, 4.0), 250, 1.25)
    found = config(tmp_path, "phi3", {"attention.sliding_window": 0})
    assert (found.sliding_window, found.rotary_dim, found.rope_scaling) == (None, None, None)


def test_granite(tmp_path):
    keys = {
        "attention.scale": 0.25,
        "embedding_scale": 12.0,
        "residual_scale": 0.5,
        "logit_scale": 8.0,
        "rope.scaling.finetuned": True,
    }
    found = config(tmp_path, "granite", keys)
    assert (found.attention_multiplier, found.embedding_multiplier) == (0.25, 12)
    assert (found.residual_multiplier, found.logits_scaling) == (0.5, 8)
    plain = config(tmp_path, "granite")
    assert (plain.attention_multiplier, plain.embedding_multiplier) == (None, 1)


def test_qwen(tmp_path):
    yarn = {"rope.scaling.type": "yarn", "rope.scaling.factor": 4.0}
    for name in ("qwen2", "qwen3"):
        keys = yarn | {"rope.scaling.original_context_length": 250}
        scaling = config(tmp_path, name, keys).rope_scaling
        assert scaling == YarnScaling(4.0, 250, scaling.attention_factor)
        assert scaling.attention_factor == pytest.approx(1.1386294361119891)
    keys = yarn | {
        "rope.scaling.attn_factor": 0.5,
        "rope.scaling.yarn_beta_fast": 16.0,
        "rope.scaling.yarn_beta_slow": 2.0,
    }
    scaling = config(tmp_path, "qwen3", keys).rope_scaling
    assert (scaling.original_max_position, scaling.beta_fast, scaling.beta_slow) == (1000, 16, 2)
    assert scaling.attention_factor == pytest.approx(1.1386294361119891 / 2)


@pytest.mark.parametrize(
    ("architecture", "keys", "words"),
    [
        ("qwen3", {"rope.dimension_count": 8}, "dimension_count is 8"),
        ("qwen3", {"expert_count": 4}, "4 experts"),
        ("gemma3", {"attention.key_length_swa": 8}, "key_length_swa"),
        ("granite", {"rope.scaling.finetuned": False}, "without RoPE"),
        ("granite", {"rope.scaling.yarn_ext_factor": 0.5}, "yarn_ext_factor"),
        ("qwen2moe", {}, "'qwen2moe'.*gemma2, gemma3, granite, llama, phi3, qwen2, qwen3"),
        ("bert", {}, "'bert'"),
    ],
)
def test_names_variants_that_are_not_supported(tmp_path, architecture, keys, words):
    with pytest.raises(UnsupportedModelError, match=words):
        config(tmp_path, architecture, keys)


@pytest.mark.parametrize(
    ("architecture", "keys", "tensors"),
    [
        ("phi3", {"rope.scaling.type": "longrope"}, {}),
        ("phi3", {"rope.dimension_count": 5}, {}),
        ("phi3", {"rope.dimension_count": 18}, {}),
        ("phi3", {}, {"rope_factors_short.weight": [1] * 7, "rope_factors_long.weight": [1] * 8}),
        ("phi3", {}, {"rope_factors_short.weight": [0] * 8, "rope_factors_long.weight": [1] * 8}),
        ("phi3", {"attention.sliding_window": "9"}, {}),
        ("gemma3", {"attention.sliding_window": 9, "attention.sliding_window_pattern": True}, {}),
        ("gemma2", {"attn_logit_softcapping": -1.0}, {}),
        ("granite", {"attention.scale": 0.0}, {}),
        ("qwen2", {"rope.scaling.type": "yarn", "rope.scaling.factor": 0.5}, {}),
    ],
)
def test_refuses_values_out_of_range(tmp_path, architecture, keys, tensors):
    with pytest.raises(ModelFileError):
        config(tmp_path, architecture, keys, tensors)

"""GGUF files as models: names, shapes, row order, RoPE factors, and what is refused."""

import numpy as np
import pytest
from tiny_models import (
    HEAD_DIM,
    HIDDEN,
    VOCABULARY,
    permuted,
    tiny_tensors,
    write_directory,
    write_gguf,
)

from hasten.errors import ModelFileError, UnsupportedModelError
from hasten.kernels.quantization import dequantize
from hasten.models import load_model
from hasten.models.artefact import write_artefact
from hasten.models.gguf_model import half_split_order
from hasten.models.rope import LinearScaling, Llama3Scaling, Rotation, inverse_frequencies


def test_float_file_holds_the_tensors_of_the_huggingface_directory(tmp_path):
    tensors = tiny_tensors()
    found = load_model(write_gguf(tmp_path / "tiny.gguf", tensors))
    other = load_model(write_directory(tmp_path / "tiny", tensors))
    assert (found.name, found.recipe) == ("tiny", None)
    assert found.weights.keys() == other.weights.keys() == tensors.keys()
    for name, values in tensors.items():
        assert found.weights[name].shape == values.shape
        assert np.array_equal(found.weights[name].to_float32(), values)
        assert np.array_equal(other.weights[name].to_float32(), values)
    for field in (
        "hidden_size",
        "num_layers",
        "num_heads",
        "num_kv_heads",
        "head_dim",
        "vocab_size",
    ):
        assert getattr(found.config, field) == getattr(other.config, field)


@pytest.mark.parametrize("encoding", ["F16", "BF16", "Q4_0", "Q4_1", "Q8_0", "Q5_1"])
def test_encoded_files(tmp_path, encoding):
    tensors = tiny_tensors()
    model = load_model(write_gguf(tmp_path / "tiny.gguf", tensors, encoding=encoding))
    for name, values in tensors.items():
        stored = model.weights[name]
        assert stored.encoding == (encoding if values.ndim == 2 else "F32")
        np.testing.assert_allclose(stored.to_float32(), values, atol=0.5)
        matrix = stored.quantized()
        assert (matrix is not None) == (values.ndim == 2 and encoding.startswith("Q"))
        if matrix is not None:
            assert np.array_equal(dequantize(matrix), stored.to_float32())


def test_row_order_undoes_the_converters_permutation():
    for heads, head_dim in ((1, 2), (9, 64), (3, 64), (4, 6)):
        rows = np.arange(heads * head_dim)
        assert np.array_equal(permuted(rows, heads)[half_split_order(heads, head_dim)], rows)


def test_tied_embeddings_and_biases_are_seen(tmp_path):
    tensors = tiny_tensors(tied=True, bias=True)
    model = load_model(write_gguf(tmp_path / "tiny.gguf", tensors))
    assert model.config.tie_embeddings
    assert model.config.attention_bias
    assert not model.config.mlp_bias
    assert model.weights.keys() == tensors.keys()
    name = "model.layers.1.self_attn.k_proj.bias"
    assert np.array_equal(model.weights[name].to_float32(), tensors[name])


def test_special_tokens_come_from_the_tokenizers_keys(tmp_path):
    keys = {"bos": 5, "eos": 7, "eot": 3}
    metadata = [(f"tokenizer.ggml.{name}_token_id", value) for name, value in keys.items()]
    config = load_model(write_gguf(tmp_path / "tiny.gguf", metadata=metadata)).config
    assert (config.bos_id, config.eos_ids) == (5, (3, 7))


def test_linear_scaling(tmp_path):
    metadata = [("llama.rope.scaling.type", "linear"), ("llama.rope.scaling.factor", 4.0)]
    config = load_model(write_gguf(tmp_path / "new.gguf", metadata=metadata)).config
    assert config.rope_scaling == LinearScaling(4.0)
    metadata = [("llama.rope.scale_linear", 2.0)]
    config = load_model(write_gguf(tmp_path / "old.gguf", metadata=metadata)).config
    assert config.rope_scaling == LinearScaling(2.0)
    metadata = [("llama.rope.scaling.type", "none"), ("llama.rope.scaling.factor", 4.0)]
    config = load_model(write_gguf(tmp_path / "off.gguf", metadata=metadata)).config
    assert config.rope_scaling is None


@pytest.mark.parametrize(("stored", "family"), [(32, "mistral"), (0, "llama")])
def test_a_sliding_window_is_kept(tmp_path, stored, family):
    """Also in an artefact made of it, whose config.json must name the family that has windows."""
    metadata = [("llama.attention.sliding_window", stored)]
    model = load_model(write_gguf(tmp_path / "tiny.gguf", metadata=metadata))
    assert (model.config.sliding_window, model.config.model_type) == (stored or None, family)
    write_artefact(tmp_path / "out", model, model.weights, {})
    assert load_model(tmp_path / "out").config == model.config


@pytest.mark.parametrize("factor", [8.0, 32.0])
def test_the_rope_factors_of_llama_3_are_recognised(tmp_path, factor):
    scaling = Llama3Scaling(factor)
    divisors = scaling.divisors(inverse_frequencies(Rotation(HEAD_DIM, 1e4), 1))
    more = [("rope_freqs.weight", divisors)]
    model = load_model(write_gguf(tmp_path / "tiny.gguf", more=more))
    assert model.config.rope_scaling == scaling
    assert "rope_freqs.weight" not in model.weights
    ones = [("rope_freqs.weight", np.ones_like(divisors))]
    assert load_model(write_gguf(tmp_path / "ones.gguf", more=ones)).config.rope_scaling is None


def test_other_rope_factors_are_refused(tmp_path):
    divisors = np.linspace(1, 5, HEAD_DIM // 2).astype(np.float32)
    with pytest.raises(UnsupportedModelError, match="RoPE factors other than"):
        load_model(write_gguf(tmp_path / "a.gguf", more=[("rope_freqs.weight", divisors)]))
    divisors[3] = np.nan
    with pytest.raises(ModelFileError, match="nan"):
        load_model(write_gguf(tmp_path / "b.gguf", more=[("rope_freqs.weight", divisors)]))
    with pytest.raises(ModelFileError, match="rope_freqs"):
        load_model(write_gguf(tmp_path / "c.gguf", more=[("rope_freqs.weight", divisors[1:])]))
    divisors[3] = 2
    both = [("llama.rope.scaling.type", "linear"), ("llama.rope.scaling.factor", 4.0)]
    more = [("rope_freqs.weight", divisors)]
    with pytest.raises(UnsupportedModelError, match="both"):
        load_model(write_gguf(tmp_path / "d.gguf", metadata=both, more=more))


@pytest.mark.parametrize(
    ("metadata", "words"),
    [
        ([("general.architecture", "gpt2")], "'gpt2'.*allowed.*llama"),
        ([("llama.expert_count", 8)], "8 experts"),
        ([("split.count", 3)], "one of 3 parts"),
        ([("llama.rope.scaling.type", "ntk")], "'ntk'.*'yarn'"),
        ([("llama.rope.scaling.yarn_log_multiplier", 0.1)], "yarn_log_multiplier"),
        ([("llama.rope.scaling.attn_factor", 1.2)], "attn_factor"),
        ([("llama.rope.dimension_count", 8)], "rope.dimension_count is 8"),
        ([("llama.attention.value_length", 8)], "value_length is 8"),
    ],
)
def test_names_variants_that_are_not_supported(tmp_path, metadata, words):
    with pytest.raises(UnsupportedModelError, match=words):
        load_model(write_gguf(tmp_path / "tiny.gguf", metadata=metadata))


@pytest.mark.parametrize(
    ("metadata", "words"),
    [
        ([("llama.attention.key_length", 32)], "128 rows"),
        ([("llama.attention.head_count_kv", 3)], "4 attention heads and 3"),
        ([("llama.attention.head_count_kv", [2, 2])], "head_count_kv is"),
        ([("llama.embedding_length", 32)], "32"),
        ([("llama.block_count", 3)], "'model.layers.2.input_layernorm.weight' is missing"),
        ([("llama.block_count", 1)], "'model.layers.1.*no place"),
        ([("llama.feed_forward_length", 64)], r"gate_proj.*\[96, 64\].*implies \[64, 64\]"),
        ([("llama.context_length", 0)], "max_position is 0"),
        ([("tokenizer.ggml.eos_token_id", VOCABULARY)], "48"),
    ],
)
def test_refuses_metadata_that_the_tensors_contradict(tmp_path, metadata, words):
    path = write_gguf(tmp_path / "tiny.gguf", metadata=metadata)
    with pytest.raises(ModelFileError, match=words) as caught:
        load_model(path)
    assert str(caught.value).startswith(str(path))


def test_refuses_missing_and_unknown_tensors(tmp_path):
    for name, words in (
        ("model.embed_tokens.weight", "'token_embd.weight' is missing"),
        ("model.layers.1.mlp.up_proj.weight", "up_proj.weight' is missing"),
    ):
        tensors = tiny_tensors()
        del tensors[name]
        with pytest.raises(ModelFileError, match=words):
            load_model(write_gguf(tmp_path / "missing.gguf", tensors))
    for name in ("blk.0.attn_q_norm.weight", "blk.00.attn_q.weight", "v.patch.weight", "blk.x"):
        more = [(name, np.zeros(HIDDEN, np.float32))]
        with pytest.raises(ModelFileError, match="no place"):
            load_model(write_gguf(tmp_path / "more.gguf", more=more))
    bias = [("blk.0.attn_q.bias", np.zeros(HIDDEN, np.float32))]
    with pytest.raises(ModelFileError, match=r"k_proj.bias' is missing"):
        load_model(write_gguf(tmp_path / "bias.gguf", more=bias))


@pytest.mark.model
def test_smollm2_codes_are_those_of_the_file():
    import gguf

    model = load_model("smollm2")
    assert model.config.num_layers == 30
    encodings = {tensor.encoding for tensor in model.weights.values()}
    assert encodings == {"F32", "Q4_1", "Q8_0"}
    assert sum(tensor.quantized() is not None for tensor in model.weights.values()) == 211
    reader = {tensor.name: tensor for tensor in gguf.GGUFReader(model.path).tensors}
    for theirs, ours, heads in (
        ("token_embd.weight", "model.embed_tokens.weight", None),
        ("blk.3.ffn_down.weight", "model.layers.3.mlp.down_proj.weight", None),
        ("blk.7.attn_q.weight", "model.layers.7.self_attn.q_proj.weight", 9),
        ("blk.7.attn_k.weight", "model.layers.7.self_attn.k_proj.weight", 3),
    ):
        stored = reader[theirs]
        expected = gguf.quants.dequantize(stored.data, stored.tensor_type)
        found = model.weights[ours].to_float32()
        assert np.array_equal(found if heads is None else permuted(found, heads), expected)
        assert np.array_equal(dequantize(model.weights[ours].quantized()), found)

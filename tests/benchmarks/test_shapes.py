"""All files of a shape hold the same model."""

import numpy as np
import pytest

from hasten.models import load_model

TINY = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "vocab_size": 512,
    "bos_token_id": 500,
    "eos_token_id": 501,
}


@pytest.fixture(scope="module", params=["llama-3.2-1b"])
def files(request, tmp_path_factory):
    from shapes import SHAPES, write_gguf, write_huggingface

    folder = tmp_path_factory.mktemp("shape")
    write_huggingface(folder / "model", {**SHAPES[request.param], **TINY})
    for encoding in ("F16", "Q8_0", "Q4_0"):
        write_gguf(folder / "model", folder / f"{encoding}.gguf", encoding)
    return folder


@pytest.mark.parametrize(("encoding", "most"), [("F16", 1e-3), ("Q8_0", 0.02), ("Q4_0", 0.2)])
def test_gguf_files_hold_the_same_weights(files, encoding, most):
    ours, theirs = load_model(files / "model"), load_model(files / f"{encoding}.gguf")
    assert set(ours.weights) == set(theirs.weights)
    for name, tensor in ours.weights.items():
        wanted, found = tensor.to_float32(), theirs.weights[name].to_float32()
        assert np.abs(found - wanted).max() <= most * np.abs(wanted).max(), name


def test_gguf_files_hold_the_same_configuration(files):
    ours, theirs = load_model(files / "model").config, load_model(files / "Q4_0.gguf").config
    for name in ("head_dim", "rope_theta", "rope_scaling", "max_position", "tie_embeddings"):
        assert getattr(ours, name) == getattr(theirs, name), name
    assert ours.rope_scaling is not None


def test_tokenizers_agree_and_cover_bytes(files):
    text = "a round\ttrip, é 漢"
    for model in (load_model(files / "model"), load_model(files / "F16.gguf")):
        ids = model.tokenizer.encode(text, add_special=False)
        assert max(ids) < 257
        assert model.tokenizer.decode(ids) == text


def test_weights_keep_activations_in_range(files):
    weights = load_model(files / "model").weights
    matrix = weights["model.layers.0.mlp.gate_proj.weight"].to_float32()
    assert np.std(matrix) == pytest.approx(matrix.shape[1] ** -0.5, rel=0.05)

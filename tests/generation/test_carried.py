"""The int4 codes that SmolLM2's file carries run as they are."""

from dataclasses import replace

import numpy as np
import pytest

from hasten.generation import Engine
from hasten.generation import reference as reference_module
from hasten.kernels.linear import linear, quantize_activations
from hasten.models import load_model
from hasten.types import EngineOptions

TEXT = "The capital of France is Paris. def add(a, b):\n    return a + b\n" * 3


def first_layers(count):
    """SmolLM2 cut short: each layer adds activations that round the other way by a hair."""
    model = load_model("smollm2")
    weights = {
        name: tensor
        for name, tensor in model.weights.items()
        if not name.startswith("model.layers.") or int(name.split(".")[2]) < count
    }
    return replace(model, config=replace(model.config, num_layers=count), weights=weights)


def logits(model, alone=False, **options):
    """Logits of the text, or of each of its tokens as a text of its own."""
    with Engine(model, EngineOptions(max_context=128, kv="f32", **options)) as engine:
        tokens = model.tokenizer.encode(TEXT)
        texts = [[token] for token in tokens] if alone else [tokens]
        rows = [rows for text in texts for _, rows in engine.score(text)]
        return np.concatenate(rows), engine.formats


def divergence(reference, other):
    def log_probabilities(rows):
        shifted = rows - rows.max(axis=1, keepdims=True)
        return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))

    p, q = log_probabilities(reference), log_probabilities(other)
    return float((np.exp(p) * (p - q)).sum(axis=1).mean())


def rounding_linear(x, weight, bias=None):
    codes, scales = quantize_activations(x, 32)
    rounded = codes.reshape(len(x), -1, 32) * scales[:, :, None]
    return linear(rounded.reshape(len(x), -1).astype(np.float32), weight, bias)


@pytest.mark.model
def test_logits_are_those_of_the_dequantised_weights_with_rounded_activations(monkeypatch):
    # Alone, so that a value on the border between two codes, which may go either way, stays with
    # its token instead of reaching all later ones.
    model = first_layers(1)
    found, formats = logits(model, alone=True)
    assert formats.pop("model.embed_tokens.weight") == "int8:32"
    assert set(formats.values()) == {"int4:32+min"}
    monkeypatch.setattr(reference_module, "linear", rounding_linear)
    expected, _ = logits(model, alone=True, executor="reference")
    difference = np.abs(found - expected).max(axis=1) / np.abs(expected).max()
    assert np.mean(difference < 1e-5) > 0.8
    assert difference.max() < 1e-2


@pytest.mark.model
def test_the_whole_model_stays_near_float32():
    model = load_model("smollm2")
    exact, _ = logits(model, weights="f32")
    found, _ = logits(model)
    assert 0 < divergence(exact, found) < 0.01

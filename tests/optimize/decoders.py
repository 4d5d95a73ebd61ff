"""A small decoder of every family, text for it, and what a pass must leave it able to do."""

from pathlib import Path

import numpy as np
from tiny import FAMILIES, Player, make_model

from hasten.measure.corpus import Windows
from hasten.models import load_model
from hasten.models.artefact import write_artefact
from hasten.optimize.passes import make_pass
from hasten.optimize.passes.interface import Workshop, parameters_of

LAYERS = 4
SHAPE = {
    "hidden_size": 48,
    "intermediate_size": 128,
    "num_layers": LAYERS,
    "num_heads": 8,
    "num_kv_heads": 4,
}
DECODERS = {
    "llama": {"attention_bias": True, "mlp_bias": True},
    "mistral": {"model_type": "mistral", "sliding_window": 9, "tie_embeddings": True},
    **FAMILIES,
}


def decoder(family="llama", **changes):
    """A model with random weights."""
    fields = SHAPE | DECODERS[family] | changes
    if "layer_types" in fields:
        fields["layer_types"] = (fields["layer_types"] * LAYERS)[: fields["num_layers"]]
    return make_model(**fields)


def text(vocabulary=77, seed=3, lengths=(40, 40, 23)):
    """Windows of random tokens."""
    draw = np.random.default_rng(seed)
    ids = tuple(tuple(draw.integers(0, vocabulary, length).tolist()) for length in lengths)
    return Windows("random", "", ids, max(lengths))


def workshop(model, windows=None, directory=Path("unused")):
    """What passes are given; progress goes nowhere."""
    return Workshop(model, text() if windows is None else windows, directory, lambda *_: None)


def logits(model, **options):
    """What an executor computes for a text, float32 [tokens, vocabulary]."""
    tokens = np.random.default_rng(5).integers(0, model.config.vocab_size, 30).tolist()
    return Player(model, [tokens], **options).together()


def check(step, model, tmp_path):
    """Applies a pass and holds that the result runs everywhere and survives being written."""
    assert make_pass(parameters_of(step)) == step
    assert step.why_unfit(model) is None
    before = {name: tensor.to_float32().copy() for name, tensor in model.weights.items()}
    changed = step.apply(model, workshop(model))
    for name, values in before.items():
        np.testing.assert_array_equal(model.weights[name].to_float32(), values)
    again = step.apply(model, workshop(model))
    assert changed.config == again.config
    expected = logits(changed, executor="reference")
    np.testing.assert_array_equal(logits(again, executor="reference"), expected)
    assert np.isfinite(expected).all()
    np.testing.assert_allclose(logits(changed, kv="f32"), expected, rtol=1e-3, atol=1e-3)
    write_artefact(tmp_path / "artefact", changed, changed.weights, {})
    read = load_model(tmp_path / "artefact")
    assert read.config == changed.config
    np.testing.assert_array_equal(logits(read, executor="reference"), expected)
    return changed

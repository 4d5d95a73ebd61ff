"""Another order of channels computes the same; the order is by what runs through them."""

import numpy as np
import pytest
from decoders import DECODERS, check, decoder, logits, text, workshop
from encoders import make_encoder
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import make_model, quantised_model

from hasten.errors import UnsupportedModelError, UsageError
from hasten.kernels.quantization import quantize_rtn
from hasten.models import architectures
from hasten.models.weights import DenseTensor
from hasten.optimize.calibration import calibrate
from hasten.optimize.passes.reorder import ReorderChannels, reordered
from hasten.optimize.pruning.narrowing import feed_forward_insides

STEP = ReorderChannels()


def sizes(model, windows):
    """Mean squares of the inputs of each down_proj on the text."""
    found = {}

    def look(executor, op, values):
        for name in getattr(op, "weights", ()):
            if name.endswith("down_proj.weight"):
                found[name] = np.square(values[op.source], dtype=np.float64).mean(axis=0)

    calibrate(model, windows, look)
    return found


@pytest.mark.parametrize("family", DECODERS)
def test_every_family_computes_the_same(family, tmp_path):
    model = decoder(family)
    changed = check(STEP, model, tmp_path)
    before, after = (logits(one, executor="reference") for one in (model, changed))
    np.testing.assert_allclose(after, before, rtol=1e-4, atol=1e-4)
    moved = {
        name
        for name, tensor in model.weights.items()
        if not np.array_equal(tensor.to_float32(), changed.weights[name].to_float32())
    }
    assert moved == {
        name for name in model.weights if ".mlp." in name and not name.endswith("down_proj.bias")
    }


def test_channels_stand_in_the_order_of_what_runs_through_them():
    model, windows = decoder(), text()
    before = sizes(model, windows)
    after = sizes(STEP.apply(model, workshop(model, windows)), windows)
    assert before.keys() == after.keys()
    for name, values in after.items():
        assert not np.array_equal(values, before[name])
        np.testing.assert_allclose(values, np.sort(before[name])[::-1], rtol=1e-4)


@given(seed=st.integers(0, 2**32 - 1), family=st.sampled_from([*DECODERS]))
@settings(max_examples=15)
def test_any_order_computes_the_same(seed, family):
    model = decoder(family)
    draw = np.random.default_rng(seed)
    weights = dict(model.weights)
    for inside in feed_forward_insides(architectures.build(model.config)):
        weights |= reordered(weights, inside, draw.permutation(inside.units))
    before, after = (logits(one, kv="f32") for one in (model, model.derive(weights)))
    np.testing.assert_allclose(after, before, rtol=1e-3, atol=1e-3)


def test_what_is_stored_in_half_precision_stays_so():
    model = decoder()
    halves = {
        name: DenseTensor(name, "F16", tensor.to_float32().astype(np.float16))
        for name, tensor in model.weights.items()
    }
    changed = STEP.apply(model.derive(halves), workshop(model))
    assert {tensor.encoding for tensor in changed.weights.values()} == {"F16"}


def test_it_saves_nothing_and_says_so():
    assert STEP.exact
    assert STEP.predict(decoder()).weight_bytes == STEP.predict(decoder()).operations == 1.0


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (make_encoder(), "bert has no gated feed-forward blocks"),
        (quantised_model(lambda values: quantize_rtn(values, 8, 32)), r"groups of codes \(int8:32"),
        (quantised_model(lambda values: quantize_rtn(values, 4, 32)), r"groups of codes \(int4:32"),
    ],
)
def test_says_why_it_does_not_fit(model, words):
    with pytest.raises(UsageError, match=words):
        STEP.apply(model, workshop(model))
    assert STEP.why_unfit(model) is not None


def test_values_that_are_not_finite_are_refused():
    model = make_model(intermediate_size=64)
    name = "model.layers.0.mlp.up_proj.weight"
    huge = np.full(model.weights[name].shape, 3e38, np.float32)
    broken = model.derive({**model.weights, name: DenseTensor(name, "F32", huge)})
    with (
        np.errstate(over="ignore", invalid="ignore"),
        pytest.raises(UnsupportedModelError, match="not finite"),
    ):
        STEP.apply(broken, workshop(broken))

"""Layers go by their influence on the residual stream, and what is left is a model."""

from dataclasses import replace

import numpy as np
import pytest
from decoders import DECODERS, LAYERS, check, decoder, logits, text, workshop
from encoders import make_encoder
from tiny import Player, quantised_model

from hasten.errors import HastenError, UsageError
from hasten.kernels.quantization import quantize_rtn
from hasten.models.weights import DenseTensor
from hasten.optimize.passes import make_pass
from hasten.optimize.passes.prune_layers import PruneLayers, block_influence, without_layers


def silenced(model, layers, *, share=0.0):
    """The model with the products that end a layer's blocks made small, or zero."""
    weights = dict(model.weights)
    for name, tensor in model.weights.items():
        ends = (
            "o_proj" in name
            or "down_proj" in name
            or name.endswith("_feedforward_layernorm.weight")
        )
        if ends and any(f"layers.{layer}." in name for layer in layers):
            weights[name] = DenseTensor(name, "F32", tensor.to_float32() * np.float32(share))
    return model.derive(weights)


@pytest.mark.parametrize("family", DECODERS)
def test_every_family_runs_with_fewer_layers(family, tmp_path):
    model = decoder(family)
    pruned = check(PruneLayers(count=2), model, tmp_path)
    assert pruned.config.num_layers == LAYERS - 2
    assert pruned.config.window(0) == model.config.window(0)
    assert pruned.config.window(1) == model.config.window(3)
    kept = ("model.layers.0.", "model.layers.3.")
    for name, tensor in model.weights.items():
        if name.startswith(kept):
            new = name.replace("layers.3.", "layers.1.")
            values = pruned.weights[new].to_float32()
            np.testing.assert_array_equal(values, tensor.to_float32())
            assert pruned.weights[new].name == new


@pytest.mark.parametrize("family", ["llama", "gemma2", "granite", "phi3"])
def test_a_layer_that_adds_nothing_has_no_influence_and_can_go(family):
    model = silenced(decoder(family), [2])
    influence = block_influence(model, text())
    assert influence[2] == pytest.approx(0, abs=1e-6)
    assert min(influence[:2] + influence[3:]) > 1e-3
    pruned = PruneLayers(count=1).apply(model, workshop(model))
    difference = logits(pruned, executor="reference") - logits(model, executor="reference")
    assert np.abs(difference).max() == 0


def test_influence_is_one_minus_the_mean_cosine_of_the_stream():
    model = decoder()
    windows = text(lengths=(20,))
    streams = []
    for count in range(LAYERS + 1):
        cut = without_layers(model, range(count, LAYERS)) if count else model
        streams.append(_stream(cut, windows, count))
    for layer, found in enumerate(block_influence(model, windows)):
        a, b = (streams[layer + more].astype(np.float64) for more in (0, 1))
        cosine = (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
        assert found == pytest.approx(1 - cosine.mean(), rel=1e-5)


def _stream(model, windows, layers):
    """The residual stream after all layers of a model; after none the embedding."""
    tokens = np.asarray(windows.ids[0])
    if layers == 0:
        return model.weights["model.embed_tokens.weight"].to_float32()[tokens]
    weights = {name: one for name, one in model.weights.items() if name != "lm_head.weight"}
    hidden = model.derive(weights, replace(model.config, output="hidden"))
    norm = hidden.weights["model.norm.weight"].to_float32()
    # What the last norm divides by is lost, and a cosine does not see it.
    return Player(hidden, [tokens.tolist()], executor="reference").together() / norm


def test_least_influence_goes_first_and_ends_stay():
    model = silenced(silenced(decoder(num_layers=6), [0, 5]), [3, 1], share=0.02)
    influence = block_influence(model, text())
    assert influence[0] < 1e-6 > influence[5]
    order = sorted(range(1, 5), key=lambda layer: influence[layer])
    assert set(order[:2]) == {1, 3}
    for count in (1, 2, 3):
        pruned = PruneLayers(count=count).apply(model, workshop(model))
        expected = without_layers(model, order[:count])
        np.testing.assert_array_equal(logits(pruned), logits(expected))


def test_one_by_one_looks_again_after_each():
    model = decoder(num_layers=6)
    progress = []
    place = replace(workshop(model), progress=lambda words, share: progress.append(share))
    pruned = PruneLayers(count=3, iterative=True).apply(model, place)
    gone, kept = [], list(range(6))
    for _ in range(3):
        influence = block_influence(without_layers(model, gone), text())
        least = min(range(1, len(kept) - 1), key=lambda one: influence[one])
        gone.append(kept.pop(least))
    np.testing.assert_array_equal(logits(pruned), logits(without_layers(model, gone)))
    assert progress == sorted(progress)
    assert progress[-1] == 1


def test_named_layers_go_even_the_first_and_the_last():
    model = decoder("gemma3")
    pruned = PruneLayers(layers=(3, 0)).apply(model, workshop(model))
    assert pruned.config.num_layers == 2
    assert pruned.config.window(0) is None
    q = "model.layers.{}.self_attn.q_proj.weight"
    for new, old in ((0, 1), (1, 2)):
        values = pruned.weights[q.format(new)].to_float32()
        np.testing.assert_array_equal(values, model.weights[q.format(old)].to_float32())


@pytest.mark.parametrize("kept", [(0, 2), (1, 3)])
def test_layers_of_one_kind_are_said_without_a_list(kept, tmp_path):
    gone = tuple(set(range(LAYERS)) - set(kept))
    pruned = check(PruneLayers(layers=gone), decoder("gemma3"), tmp_path)
    assert pruned.config.layer_types == ()


def test_codes_of_a_file_stay_as_they_are():
    model = quantised_model(lambda values: quantize_rtn(values, 4, 32), num_layers=4)
    pruned = without_layers(model, [1])
    for new, old in ((0, 0), (1, 2), (2, 3)):
        name = "model.layers.{}.mlp.down_proj.weight"
        a, b = pruned.weights[name.format(new)], model.weights[name.format(old)]
        np.testing.assert_array_equal(a.quantized().codes, b.quantized().codes)


def test_prediction_is_the_share_that_stays():
    model = decoder()
    shares = PruneLayers(count=2).predict(model)
    layer = sum(
        tensor.shape[0] * tensor.shape[1]
        for name, tensor in model.weights.items()
        if ".0." in name and len(tensor.shape) == 2
    )
    head = model.weights["lm_head.weight"].nbytes // 4
    expected = (2 * layer + head) / (4 * layer + head)
    assert shares.operations == pytest.approx(expected)
    assert shares.weight_bytes == pytest.approx(expected)


@pytest.mark.parametrize(
    ("step", "words"),
    [
        (PruneLayers(count=3), "the first and the last stay"),
        (PruneLayers(layers=(4,)), "there is no layer 4; the model has 4"),
        (PruneLayers(layers=(0, 1, 2, 3)), "no layer would be left"),
    ],
)
def test_says_why_it_does_not_fit(step, words):
    model = decoder()
    assert words in step.why_unfit(model)
    with pytest.raises(UsageError, match=words):
        step.apply(model, workshop(model))


@pytest.mark.parametrize(
    "fields",
    [{}, {"count": -1}, {"count": 1, "layers": (1,)}, {"layers": (-1,)}, {"layers": (1, 1)}],
)
def test_refuses_fields_that_say_nothing_or_two_things(fields):
    with pytest.raises(UsageError, match="allowed"):
        PruneLayers(**fields)
    with pytest.raises(HastenError):
        make_pass({"pass": "prune_layers"} | fields)


def test_refuses_encoders_and_values_that_overflow():
    assert "encoder" in PruneLayers(count=1).why_unfit(make_encoder())
    with pytest.raises(HastenError, match="encoder"):
        block_influence(make_encoder(), text())
    model = decoder()
    weights = dict(model.weights)
    name = "model.layers.1.mlp.down_proj.weight"
    weights[name] = DenseTensor(name, "F32", np.full_like(weights[name].to_float32(), 3e38))
    with (
        np.errstate(over="ignore", invalid="ignore"),
        pytest.raises(HastenError, match="not finite"),
    ):
        block_influence(model.derive(weights), text())

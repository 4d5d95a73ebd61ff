"""Channels and head groups go by what they add, and the rest is corrected by least squares."""

import numpy as np
import pytest
from decoders import DECODERS, check, decoder, logits, text, workshop
from encoders import make_encoder
from tiny import quantised_model

from hasten.errors import HastenError, UsageError
from hasten.kernels.quantization import quantize_rtn
from hasten.models import architectures
from hasten.models.weights import DenseTensor
from hasten.optimize.calibration import calibrate
from hasten.optimize.passes import make_pass
from hasten.optimize.passes.prune_channels import PruneChannels
from hasten.optimize.passes.prune_heads import PruneHeads
from hasten.optimize.pruning.narrowing import feed_forward_insides, least_squares, narrow

LAYER = "model.layers.{}."


def changed(model, change):
    """The model with tensors that `change(name, values)` gives; None keeps one."""
    weights = dict(model.weights)
    for name, tensor in model.weights.items():
        values = change(name, tensor.to_float32().copy())
        if values is not None:
            weights[name] = DenseTensor(name, "F32", values)
    return model.derive(weights)


def with_dead_channels(model, dead):
    """The model with columns of zeros, other ones in each layer, and which they are."""
    draw = np.random.default_rng(8)
    columns = {}

    def change(name, values):
        if "down_proj.weight" not in name:
            return None
        columns[name] = draw.choice(values.shape[1], dead, replace=False)
        values[:, columns[name]] = 0
        return values

    return changed(model, change), columns


@pytest.mark.parametrize(
    ("family", "reconstruct"), [*((family, True) for family in DECODERS), ("llama", False)]
)
def test_channels_that_add_nothing_go_and_nothing_changes(family, reconstruct, tmp_path):
    model, dead = with_dead_channels(decoder(family), 32)
    step = PruneChannels(0.25, reconstruct=reconstruct, multiple=32)
    pruned = check(step, model, tmp_path)
    assert pruned.config.intermediate_size == 96
    for layer in range(model.config.num_layers):
        mlp = LAYER.format(layer) + "mlp."
        kept = np.setdiff1d(np.arange(128), dead[f"{mlp}down_proj.weight"])
        for one in ("gate_proj.weight", "up_proj.weight", "gate_proj.bias", "up_proj.bias"):
            if mlp + one in model.weights:
                values = model.weights[mlp + one].to_float32()[kept]
                np.testing.assert_array_equal(pruned.weights[mlp + one].to_float32(), values)
    difference = logits(pruned, executor="reference") - logits(model, executor="reference")
    assert np.abs(difference).max() < 1e-4


@pytest.mark.parametrize(
    ("family", "reconstruct"), [*((family, True) for family in DECODERS), ("llama", False)]
)
def test_head_groups_that_add_nothing_go_and_nothing_changes(family, reconstruct, tmp_path):
    model = decoder(family)
    config = model.config
    dead = {
        f"model.layers.{i}.self_attn.o_proj.weight": i % config.num_kv_heads
        for i in range(config.num_layers)
    }
    width = config.num_heads // config.num_kv_heads * config.head_dim

    def silence(name, values):
        if name not in dead:
            return None
        values[:, dead[name] * width : (dead[name] + 1) * width] = 0
        return values

    silent = changed(model, silence)
    pruned = check(PruneHeads(1, reconstruct=reconstruct), silent, tmp_path)
    assert (pruned.config.num_heads, pruned.config.num_kv_heads) == (6, 3)
    assert pruned.config.head_dim == config.head_dim
    difference = logits(pruned, executor="reference") - logits(silent, executor="reference")
    assert np.abs(difference).max() < 1e-4


@pytest.mark.parametrize("family", ["llama", "gemma2", "qwen3", "phi3"])
def test_the_unit_that_adds_least_goes(family):
    model = decoder(family)
    groups = model.config.num_kv_heads
    weak = 2

    def weaken(name, values):
        if name != "model.layers.1.self_attn.o_proj.weight":
            return None
        values.reshape(len(values), groups, -1)[:, weak] *= 0.01
        return values

    model = changed(model, weaken)
    pruned = PruneHeads(1, reconstruct=False).apply(model, workshop(model))
    name = "model.layers.1.self_attn.{}.weight"
    for one, rows in (("v_proj", groups), ("k_proj", groups), ("q_proj", groups)):
        before = model.weights[name.format(one)].to_float32()
        expected = np.delete(before.reshape(rows, -1, before.shape[1]), weak, axis=0)
        found = pruned.weights[name.format(one)].to_float32()
        np.testing.assert_array_equal(found, expected.reshape(found.shape))
    before = model.weights[name.format("o_proj")].to_float32()
    expected = np.delete(before.reshape(len(before), groups, -1), weak, axis=1)
    found = pruned.weights[name.format("o_proj")].to_float32()
    np.testing.assert_array_equal(found, expected.reshape(found.shape))


def outputs(model, windows, ending):
    """What each product whose weight ends so gives on the windows, by the name of the weight."""
    found = {}

    def look(executor, op, values):
        for name in getattr(op, "weights", ()):
            if name.endswith(ending):
                found[name] = values[op.source] @ executor.weight(name).T

    calibrate(model, windows, look)
    return found


@pytest.mark.parametrize(
    ("step", "plain", "ending"),
    [
        (PruneChannels(0.25, True, 32), PruneChannels(0.25, False, 32), "down_proj.weight"),
        (PruneHeads(1, True), PruneHeads(1, False), "o_proj.weight"),
    ],
)
def test_correction_brings_the_first_outputs_nearer(step, plain, ending):
    model = decoder()
    windows = text(lengths=(100, 100, 100))
    name = LAYER.format(0) + ("mlp." if "down" in ending else "self_attn.") + ending
    before = outputs(model, windows, ending)[name]
    place = workshop(model, windows)
    errors = [
        np.square(outputs(one.apply(model, place), windows, ending)[name] - before).sum()
        for one in (step, plain)
    ]
    assert errors[0] < 0.9 * errors[1]


def test_correction_is_that_of_ridge_regression():
    draw = np.random.default_rng(4)
    inputs = draw.standard_normal((50, 12)) @ draw.standard_normal((12, 12))
    matrix = draw.standard_normal((7, 12)).astype(np.float32)
    columns = np.array([0, 2, 3, 5, 8, 9, 11])
    gone = np.setdiff1d(np.arange(12), columns)
    ridge = 0.3
    weight = np.sqrt(ridge * np.trace(inputs.T @ inputs) / 12)
    stacked = np.vstack([inputs[:, columns], weight * np.eye(len(columns))])
    target = np.vstack([inputs[:, gone] @ matrix[:, gone].T, np.zeros((len(columns), 7))])
    expected = np.linalg.lstsq(stacked, target, rcond=None)[0].T
    found = least_squares(inputs.T @ inputs, matrix, columns, ridge)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_correction_without_any_activation_is_none():
    found = least_squares(np.zeros((4, 4)), np.ones((2, 4), np.float32), np.array([1, 2]), 0.1)
    np.testing.assert_array_equal(found, np.zeros((2, 2)))


def test_later_blocks_see_what_earlier_ones_compute_now():
    model = decoder()
    place = workshop(model)
    insides = feed_forward_insides(architectures.build(model.config))
    first, second = (LAYER.format(layer) + "mlp.down_proj.weight" for layer in (0, 1))
    both = narrow(model, insides[:2], 64, place, reconstruct=True, ridge=0.1)
    gate = first.replace("down", "gate")
    rows = {row.tobytes(): i for i, row in enumerate(model.weights[gate].to_float32())}
    kept = [rows[row.tobytes()] for row in both[gate].to_float32()]

    def narrowed(name, values):
        if name != first:
            return None
        values[:] = 0
        values[:, kept] = both[first].to_float32()
        return values

    then = narrow(changed(model, narrowed), insides[1:2], 64, place, reconstruct=True, ridge=0.1)
    alone = narrow(model, insides[1:2], 64, place, reconstruct=True, ridge=0.1)
    found = both[second].to_float32()
    np.testing.assert_array_equal(then[second].to_float32(), found)
    assert not np.array_equal(alone[second].to_float32(), found)


def test_codes_of_rows_that_stay_are_kept():
    model = quantised_model(lambda values: quantize_rtn(values, 4, 32), intermediate_size=128)
    pruned = PruneChannels(0.25, multiple=32).apply(model, workshop(model))
    gate = LAYER.format(0) + "mlp.gate_proj.weight"
    kept = pruned.weights[gate]
    assert kept.encoding == "int4:32"
    rows = {row.tobytes() for row in model.weights[gate].quantized().codes}
    assert {row.tobytes() for row in kept.quantized().codes} <= rows
    assert np.isfinite(logits(pruned, executor="reference")).all()


@pytest.mark.parametrize(
    ("step", "config"),
    [
        (PruneChannels(0.25, multiple=32), {"intermediate_size": 96}),
        (PruneHeads(2), {"num_heads": 4, "num_kv_heads": 2}),
    ],
)
def test_prediction_is_the_share_that_stays(step, config):
    model = decoder()
    shares = step.predict(model)
    smaller = decoder(**config)

    def products(one):
        ops = architectures.build(one.config).ops
        return sum(op.rows[0] * op.columns for op in ops if hasattr(op, "rows") and op.weights)

    assert shares.operations == pytest.approx(products(smaller) / products(model))
    assert shares.weight_bytes == pytest.approx(shares.operations)


@pytest.mark.parametrize(
    ("step", "model", "words"),
    [
        (PruneChannels(0.1), decoder(), "10% of 128 channels leave as many, in multiples of 64"),
        (PruneHeads(4), decoder(), "4 of 4 key/value heads cannot go"),
        (PruneChannels(0.5), make_encoder(), "is an encoder"),
        (PruneHeads(1), make_encoder(), "is an encoder"),
    ],
)
def test_says_why_it_does_not_fit(step, model, words):
    assert words in step.why_unfit(model)
    with pytest.raises(UsageError, match=words):
        step.apply(model, workshop(model))


@pytest.mark.parametrize(
    "fields",
    [
        {"pass": "prune_channels", "share": 0.0},
        {"pass": "prune_channels", "share": 1.0},
        {"pass": "prune_channels", "share": float("nan")},
        {"pass": "prune_channels", "share": 0.2, "multiple": 48},
        {"pass": "prune_channels", "share": 0.2, "multiple": 0},
        {"pass": "prune_channels", "share": 0.2, "ridge": 0.0},
        {"pass": "prune_heads", "groups": 0},
        {"pass": "prune_heads", "groups": 1, "ridge": 101.0},
        {"pass": "prune_heads", "heads": 1},
    ],
)
def test_refuses_values_out_of_range(fields):
    with pytest.raises(HastenError):
        make_pass(fields)


def test_refuses_values_that_overflow():
    model = changed(
        decoder(),
        lambda name, values: values * 0 + 3e38 if "1.mlp.up_proj.weight" in name else None,
    )
    with (
        np.errstate(over="ignore", invalid="ignore"),
        pytest.raises(HastenError, match="not finite"),
    ):
        PruneChannels(0.25, multiple=32).apply(model, workshop(model))

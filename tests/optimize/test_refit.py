"""Refitting: its formula, that it nears the original, what stays, what it refuses."""

from dataclasses import replace

import numpy as np
import pytest
from decoders import DECODERS, check, decoder, logits, text, workshop

from hasten.errors import CapacityError, UnsupportedModelError, UsageError
from hasten.generation.reference import ReferenceExecutor
from hasten.measure.corpus import Windows
from hasten.models import architectures
from hasten.models.ops import output_of
from hasten.models.weights import DenseTensor
from hasten.optimize.calibration import calibrate
from hasten.optimize.distillation import follow as module
from hasten.optimize.passes.prune_layers import without_layers
from hasten.optimize.passes.refit import Refit
from hasten.optimize.pruning.structure import residual_stream, stream_writers

pytestmark = pytest.mark.usefixtures("one_thread")

STEP = Refit(tokens=800, ridge=1e-3)
WINDOWS = text(lengths=(40,) * 20)


@pytest.fixture(scope="module")
def original():
    return decoder("llama")


@pytest.fixture(scope="module")
def pruned(original):
    return without_layers(original, [2])


def shop(original, directory, windows=WINDOWS):
    return replace(workshop(original, windows), directory=directory)


def seen(model, wanted, windows=WINDOWS):
    """Values of the graph by name, as the reference executor computes them."""
    found = {}

    def look(_: ReferenceExecutor, op, values):
        found.update({name: values[name].copy() for name in wanted if name in values})

    calibrate(model, windows, look)
    return found


def streams(model):
    return list(residual_stream(architectures.build(model.config)).values())


def far(model, original, windows):
    """Relative square error of the states after the last layer."""
    ours, theirs = (
        seen(one, [streams(one)[-1]], windows)[streams(one)[-1]] for one in (model, original)
    )
    return float(np.mean(((ours - theirs) ** 2).sum(-1) / (theirs**2).sum(-1)))


@pytest.mark.parametrize("family", DECODERS)
def test_follows_the_original(family, tmp_path):
    original = decoder(family)
    student = without_layers(original, [2])
    if stream_writers(architectures.build(original.config)) is None:
        assert "do not end with a product" in STEP.why_unfit(student)
        with pytest.raises(UsageError, match="do not end"):
            STEP.apply(student, shop(original, tmp_path))
        return
    changed = STEP.apply(student, shop(original, tmp_path))
    assert far(changed, original, WINDOWS) < 0.9 * far(student, original, WINDOWS)


def test_formula(original, pruned, tmp_path):
    """The first corrected layer beside NumPy's least squares with the ridge as further rows."""
    changed = STEP.apply(pruned, shop(original, tmp_path))
    writer = stream_writers(architectures.build(pruned.config))[1]
    source, after = writer.product.source, streams(pruned)[2]
    ours = seen(pruned, [source, after])
    target = seen(original, [streams(original)[3]])[streams(original)[3]]
    share = 1 / np.sqrt((target.astype(np.float64) ** 2).sum(-1, keepdims=True))
    inputs, missing = ours[source] * share, (target - ours[after]) * share
    columns = inputs.shape[1]
    ridge = np.sqrt(STEP.ridge * (inputs**2).sum() / columns) * np.eye(columns)
    rows = np.concatenate([inputs, ridge]), np.pad(missing, ((0, columns), (0, 0)))
    want = np.linalg.lstsq(*rows, rcond=None)[0].T
    name = writer.product.weights[0]
    got = changed.weights[name].to_float32() - pruned.weights[name].to_float32()
    np.testing.assert_allclose(got, want, atol=1e-3 * np.abs(want).max())


def test_only_what_follows_the_change_is_corrected(original, pruned, tmp_path):
    changed = STEP.apply(pruned, shop(original, tmp_path))
    differ = [
        name
        for name, one in changed.weights.items()
        if not np.array_equal(one.to_float32(), pruned.weights[name].to_float32())
    ]
    assert differ == [f"model.layers.{layer}.mlp.down_proj.weight" for layer in (1, 2)]
    untouched = STEP.apply(original, shop(original, tmp_path))
    assert untouched.weights == original.weights


def test_is_a_pass(original, pruned, tmp_path):
    """It survives a recipe and an artefact, and gives the same bits again."""

    step = replace(STEP, layers=(0, 1, 3))
    first, second = (step.apply(pruned, shop(original, tmp_path / name)) for name in "ab")
    np.testing.assert_array_equal(
        logits(first, executor="reference"), logits(second, executor="reference")
    )
    # Beside itself a model needs no correction.
    check(Refit(tokens=100), pruned, tmp_path)


def test_goes_on_after_an_interruption(original, pruned, tmp_path, monkeypatch):
    whole = STEP.apply(pruned, shop(original, tmp_path / "whole"))

    def stop(what, _share):
        if "layer 3" in what:
            raise KeyboardInterrupt

    stopped = replace(shop(original, tmp_path / "stopped"), progress=stop)
    with pytest.raises(KeyboardInterrupt):
        STEP.apply(pruned, stopped)
    solved = []
    solve = module._least_squares
    monkeypatch.setattr(module, "_least_squares", lambda *given: solved.append(1) or solve(*given))
    again = STEP.apply(pruned, shop(original, tmp_path / "stopped"))
    assert len(solved) == 1
    for name, one in whole.weights.items():
        np.testing.assert_array_equal(again.weights[name].to_float32(), one.to_float32())


def test_saves_nothing(pruned):
    assert STEP.predict(pruned).weight_bytes == pytest.approx(1)
    assert STEP.label == "refitted on 800 tokens"


@pytest.mark.parametrize(
    ("values", "words"),
    [({"tokens": 0}, "0 tokens"), ({"ridge": 0.0}, "ridge of 0"), ({"ridge": 1e9}, "ridge of 10")],
)
def test_bad_parameters(values, words):
    with pytest.raises(UsageError, match=words):
        Refit(**values)


@pytest.mark.parametrize("layers", [(0, 1), (0, 2, 1), (0, 1, 4), (-1, 0, 1)])
def test_bad_layers(original, pruned, tmp_path, layers):
    with pytest.raises(UsageError, match="ascending order"):
        replace(STEP, layers=layers).apply(pruned, shop(original, tmp_path))


def test_other_models(original, pruned, tmp_path):
    with pytest.raises(UsageError, match="of the original's layers"):
        STEP.apply(decoder("llama", seed=4), shop(original, tmp_path))
    with pytest.raises(UsageError, match="of 48 values cannot follow one of 32"):
        STEP.apply(pruned, shop(decoder("llama", hidden_size=32), tmp_path))


def test_no_text(original, pruned, tmp_path):
    empty = Windows("nothing", "", (), 40)
    with pytest.raises(UsageError, match="no text to refit on"):
        STEP.apply(pruned, shop(original, tmp_path, empty))


def test_no_memory(original, pruned, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "memory_limit", lambda: 1 << 16)
    with pytest.raises(CapacityError, match="fewer tokens"):
        STEP.apply(pruned, shop(original, tmp_path))


def test_values_that_are_not_finite(original, pruned, tmp_path):
    name = "model.layers.1.mlp.up_proj.weight"
    huge = np.full(pruned.weights[name].shape, 3e38, np.float32)
    model = pruned.derive({**pruned.weights, name: DenseTensor(name, "F32", huge)})
    with pytest.raises(UnsupportedModelError, match="not finite"):
        STEP.apply(model, shop(original, tmp_path))


def test_writers_are_what_the_stream_is_made_of():
    """Of each layer the product whose output is added last."""
    for family in DECODERS:
        graph = architectures.build(decoder(family).config)
        writers = stream_writers(graph)
        if writers is None:
            continue
        outputs = {output_of(op) for op in graph.ops}
        names = [writer.product.weights[0] for writer in writers]
        assert all(name.endswith("down_proj.weight") for name in names)
        assert {writer.product.out for writer in writers} <= outputs
        assert (writers[0].factor != 1) == (family == "granite")

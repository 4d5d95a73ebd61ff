"""One run over the calibration text shows every op all tokens, and takes replaced weights."""

import numpy as np
import pytest

from hasten.generation import Engine
from hasten.measure.corpus import Windows
from hasten.models import load_model
from hasten.models.ops import Linear
from hasten.optimize.calibration import calibrate
from hasten.types import EngineOptions

DOWN = "model.layers.0.mlp.down_proj.weight"


@pytest.fixture(scope="module")
def model(tiny_model):
    return load_model(str(tiny_model))


@pytest.fixture(scope="module")
def windows(model):
    draw = np.random.default_rng(1)
    ids = tuple(
        tuple(draw.integers(0, model.config.vocab_size, length).tolist()) for length in (40, 33, 7)
    )
    return Windows("random", "", ids, 40)


def test_visitor_sees_inputs_of_all_tokens(model, windows):
    seen = {}

    def look(_, op, values):
        if isinstance(op, Linear):
            seen[op.weights[0]] = values[op.source].shape

    calibrate(model, windows, look)
    assert seen[DOWN] == (80, model.config.intermediate_size)


def test_windows_do_not_see_each_other(model, windows):
    last = []

    def look(executor, op, values):
        if isinstance(op, Linear) and op.rows == (model.config.vocab_size,):
            last.append(values[op.source] @ executor.weight(op.weights[0]).T)

    calibrate(model, windows, look)
    with Engine(model, EngineOptions(executor="reference", max_context=64)) as engine:
        for row, ids in enumerate(windows.ids):
            expected = [part.copy() for _, part in engine.score(ids)][-1][-1]
            np.testing.assert_allclose(last[0][row], expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("replace", [False, True])
def test_replaced_weight_counts_from_its_op_on(model, windows, replace):
    outputs = []

    def look(executor, op, values):
        if isinstance(op, Linear) and op.weights[0] == DOWN and replace:
            executor.replace_weight(DOWN, np.zeros_like(executor.weight(DOWN)))
        if getattr(op, "a", None) is not None:
            outputs.append(np.array_equal(values[op.a] + values[op.b], values[op.a]))

    calibrate(model, windows, look)
    # The second sum of the first layer adds the feed-forward block, which is zero when replaced.
    assert outputs[1] is replace


def test_a_weight_keeps_its_shape(model, windows):
    def look(executor, *_):
        executor.replace_weight(DOWN, np.zeros((1, 1), np.float32))

    with pytest.raises(ValueError, match="shape"):
        calibrate(model, windows, look)

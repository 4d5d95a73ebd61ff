"""Weights of a row of logits, on every instruction set."""

import numpy as np
import pytest
from harness import EPS, normal

from hasten import _native
from hasten.generation.softmax import native_softmax
from hasten.kernels.softmax import SUM_BLOCK, softmax_weights

WIDTHS = (1, 7, 16, 33, 511, 512, 513, 1024, 5000, 49152)


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("scale", [0.01, 1.0, 1.7, 30.0])
def test_weights_and_sums(isa, width, scale):
    x = normal(width, scale=4)
    peak = float(x.max())
    want = np.exp((x.astype(float) - peak) * scale)
    sums = np.add.reduceat(want, np.arange(0, width, SUM_BLOCK))
    for softmax in (native_softmax(isa), softmax_weights):
        got, got_sums = softmax(x, peak, scale)
        # Rounding (x - peak) * scale changes the exponent by as much.
        spread = 3 * EPS * (1 + np.abs(x - peak) * scale)
        assert (np.abs(got - want) <= want * spread + 2e-38).all()
        np.testing.assert_allclose(got_sums, sums, rtol=3e-6, atol=1e-30)
        assert got[x.argmax()] == 1


def test_a_weight_does_not_depend_on_its_place(isa):
    softmax = native_softmax(isa)
    x = normal(600, scale=5)
    peak = float(x.max())
    whole, _ = softmax(x, peak, 0.8)
    for begin in (0, 1, 5, 17):
        part, _ = softmax(x[begin:].copy(), peak, 0.8)
        np.testing.assert_array_equal(part, whole[begin:])
    single = [softmax(x[i : i + 1].copy(), peak, 0.8)[0][0] for i in range(0, 600, 37)]
    np.testing.assert_array_equal(single, whole[::37])


def test_what_must_not_come_weighs_nothing(isa):
    x = np.array([0, -np.inf, -3e38, -1, -200, -88, -86], np.float32)
    for softmax in (native_softmax(isa), softmax_weights):
        weights, sums = softmax(x, 0.0, 1.0)
        assert (weights[[1, 2, 4]] == 0).all()
        assert weights[5] < 1e-37
        np.testing.assert_allclose(weights[[0, 3]], [1, np.exp(-1)], rtol=1e-6)
        np.testing.assert_allclose(sums, [1 + np.exp(-1)], rtol=1e-6)
        weights, _ = softmax(np.array([3e38, -3e38], np.float32), 3e38, 1e6)
        assert weights.tolist() == [1, 0]


def test_calls_that_are_wrong(isa):
    run = _native.Softmax(isa)
    x, y, sums = np.zeros(600, np.float32), np.zeros(600, np.float32), np.zeros(2)
    run(x, 0.0, 1.0, y, sums)
    for wrong in (
        (x, 0.0, 1.0, y[:-1], sums),
        (x, 0.0, 1.0, y, sums[:1]),
        (x, 0.0, 0.0, y, sums),
        (x, 0.0, np.nan, y, sums),
        (x[:0], 0.0, 1.0, y[:0], sums[:0]),
    ):
        with pytest.raises(ValueError, match=r"needed|must be|between"):
            run(*wrong)
    for wrong in (
        (x.astype(float), 0.0, 1.0, y, sums),
        (x[::2], 0.0, 1.0, y[:300], sums[:1]),
        (x, 0.0, 1.0, y.astype(float), sums),
        (x, 0.0, 1.0, y, sums.astype(np.float32)),
    ):
        with pytest.raises(TypeError):
            run(*wrong)
    with pytest.raises(ValueError, match="vax"):
        _native.Softmax("vax")

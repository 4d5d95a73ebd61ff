"""Codes, scales and minimums of groups."""

import numpy as np
import pytest

from hasten.generation.formats import MatrixFormat
from hasten.kernels.quantization import dequantize, quantize_rtn
from hasten.optimize.quantization.rounding import Grid, round_nearest

INT4 = MatrixFormat("int4", 32, minimum=True)
SYMMETRIC = MatrixFormat("int4", 32)
INT8 = MatrixFormat("int8", 64)
FORMS = [INT4, SYMMETRIC, INT8]


def drawn(rows=40, columns=128, seed=0):
    return np.random.default_rng(seed).standard_normal((rows, columns)).astype(np.float32)


@pytest.mark.parametrize("form", [INT4, INT8], ids=str)
@pytest.mark.parametrize("columns", [128, 120])
def test_without_search_it_is_the_rounding_of_the_engine(form, columns):
    values = drawn(columns=columns)
    found = round_nearest(values, form)
    expected = quantize_rtn(values, Grid(form).bits, form.group)
    assert found.shape == expected.shape
    np.testing.assert_array_equal(found.codes, expected.codes)
    np.testing.assert_array_equal(found.scales, expected.scales)
    if form.minimum:
        np.testing.assert_array_equal(found.minimums, expected.minimums)


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_search_never_makes_a_group_worse(form):
    values = drawn()
    values[:, ::32] *= 6  # outliers, which are worth clipping
    importance = np.random.default_rng(1).uniform(0.1, 3, 128).astype(np.float32)
    errors = [
        ((dequantize(found) - values) ** 2 * importance).reshape(40, -1, form.group).sum(axis=2)
        for found in (round_nearest(values, form, importance), round_nearest(values, form))
    ]
    assert (errors[0] <= errors[1] * 1.0001).all()
    assert errors[0].sum() < (0.99 if form is INT8 else 0.95) * errors[1].sum()


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_values_on_a_grid_are_kept(form):
    rng = np.random.default_rng(2)
    low, high, zero = Grid(form).codes
    codes = rng.integers(low, high + 1, (10, 128)).reshape(10, -1, form.group)
    codes[:, :, :2] = low, high
    scale = np.float32(0.25)
    values = ((codes - zero) * scale - (2 if form.minimum else 0)).astype(np.float32)
    values = values.reshape(10, 128)
    np.testing.assert_allclose(dequantize(round_nearest(values, form)), values, atol=1e-6)
    searched = round_nearest(values, form, np.ones(128, np.float32))
    np.testing.assert_allclose(dequantize(searched), values, atol=1e-6)


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_groups_of_zeros_and_of_tiny_values(form):
    values = drawn() * np.float32(1e-9)
    values[3] = 0
    for importance in (None, np.ones(128, np.float32)):
        found = dequantize(round_nearest(values, form, importance))
        assert np.abs(found - values).max() <= np.abs(values).max()
        assert (found[3] == 0).all()

"""GPTQ's rounding against GPTQ as the paper has it, and what it promises."""

import numpy as np
import pytest

from hasten.generation.formats import MatrixFormat
from hasten.kernels.quantization import dequantize
from hasten.optimize.quantization.feedback import Hessian, output_error, round_with_feedback
from hasten.optimize.quantization.rounding import Grid, round_nearest

FORMS = [
    MatrixFormat("int4", 32, minimum=True),
    MatrixFormat("int4", 64, minimum=False),
    MatrixFormat("int8", 64),
]


def gptq_of_the_paper(weights, squares, grid, damping):
    """Algorithm 1 with lazy groups, column by column: [rows, columns], an inverse, no blocks."""
    weights, count = weights.copy(), len(squares)
    index = np.arange(count)
    squares = squares.copy()
    squares[index, index] += damping * np.median(np.diag(squares))
    diagonal = Hessian.of(squares, 0.0).diagonal
    upper = np.linalg.cholesky(np.linalg.inv(squares)).T
    quantised = np.zeros_like(weights)
    for k in range(count):
        if k % grid.form.group == 0:
            span = slice(k, k + grid.form.group)
            scale, low = grid.fit(weights[:, None, span], diagonal[None, span])
        codes = grid.encode(weights[:, k], scale[:, 0], low[:, 0])
        quantised[:, k] = grid.decode(codes, scale[:, 0], low[:, 0])
        error = (weights[:, k] - quantised[:, k]) / upper[k, k]
        weights[:, k + 1 :] -= error[:, None] * upper[k, k + 1 :]
    return quantised


def drawn(columns=128, rows=24, tokens=300, seed=0):
    """Weights [columns, rows] and X X' of inputs that are correlated and of varied size."""
    rng = np.random.default_rng(seed)
    mix = rng.standard_normal((columns, columns)) * rng.lognormal(0, 1, columns)
    inputs = rng.standard_normal((tokens, columns)) @ mix
    return rng.standard_normal((columns, rows)), inputs.T @ inputs


def values_of(found, grid):
    shape = found.codes.T.shape
    return dequantize(grid.pack(shape, found.codes.T, found.scales.T, found.minimums.T)).T


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_it_is_the_algorithm_of_the_paper(form):
    grid, (weights, squares) = Grid(form), drawn()
    found = round_with_feedback(weights, squares, grid, damping=0.01, order=False)
    expected = gptq_of_the_paper(weights.T, squares, grid, 0.01).T
    np.testing.assert_allclose(values_of(found, grid), expected, atol=1e-6)


@pytest.mark.parametrize("order", [False, True])
@pytest.mark.parametrize("form", FORMS, ids=str)
@pytest.mark.parametrize("seed", range(3))
def test_outputs_change_less_than_by_rounding_to_nearest(form, order, seed):
    grid, (weights, squares) = Grid(form), drawn(seed=seed)
    found = round_with_feedback(weights, squares, grid, damping=0.01, order=order)
    nearest = dequantize(round_nearest(weights.T.astype(np.float32), form)).T
    after = output_error(weights - values_of(found, grid), squares)
    assert after < 0.7 * output_error(weights - nearest, squares)


def test_inputs_that_have_nothing_to_do_with_each_other_leave_rounding_to_nearest():
    """With a diagonal Hessian no column can make up for another."""
    form = FORMS[1]
    weights, _ = drawn()
    for order in (False, True):
        found = round_with_feedback(weights, np.eye(128), Grid(form), damping=0.0, order=order)
        nearest = round_nearest(weights.T.astype(np.float32), form, np.ones(128))
        np.testing.assert_allclose(values_of(found, Grid(form)), dequantize(nearest).T, atol=2e-3)


@pytest.mark.parametrize("order", [False, True])
@pytest.mark.parametrize("damping", [0.0, 0.01])
@pytest.mark.parametrize("dead", [slice(3, 50), slice(None)])
def test_columns_without_any_input_are_rounded_to_nearest(damping, dead, order):
    grid = Grid(FORMS[0])
    weights, squares = drawn()
    squares[dead] = 0
    squares[:, dead] = 0
    found = round_with_feedback(weights, squares, grid, damping=damping, order=order)
    assert np.isfinite(values_of(found, grid)).all()
    scales, lows = (np.repeat(part, 32, axis=0) for part in (found.scales, found.minimums))
    nearest = grid.encode(weights, scales, lows)
    np.testing.assert_array_equal(found.codes[dead], nearest[dead])
    # Columns that saw no input still have a say in the scale of a group of their own.
    assert np.abs(weights - values_of(found, grid))[dead].mean() < 0.2


def test_the_factors_make_up_the_matrix():
    _, squares = drawn()
    hessian = Hessian.of(squares, 0.01)
    product = hessian.upper * hessian.diagonal @ hessian.upper.T
    np.testing.assert_allclose(product, hessian.matrix, rtol=1e-9, atol=1e-9 * product.max())
    assert np.array_equal(hessian.upper, np.triu(hessian.upper))
    np.testing.assert_array_equal(np.diag(hessian.upper), 1)

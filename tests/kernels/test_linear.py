"""Products with weight matrices on every instruction set, against float64."""

import numpy as np
import pytest
from harness import (
    EPS,
    Bench,
    Weight,
    float_matrix,
    integer_matrix,
    make_weight,
    normal,
    place,
    run_linear,
)

from hasten import _native
from hasten.kernels.linear import linear_quantized, quantize_activations

ROWS = (1, 5, 31, 32, 33, 100)
COLUMNS = (4, 30, 32, 40, 64, 96, 200)
TOKENS = (1, 2, 3, 4, 5, 6, 7, 8, 9, 130)
INTEGER = [
    (kind, group, minimum)
    for kind in ("int8", "int4")
    for group in (0, 32, 64, 96, 128)
    for minimum in (False, True)
    if not (group in (0, 96) and (kind == "int4" or minimum))
]
FORMATS = [("f32", 0, False), ("bf16", 0, False), *INTEGER]


def fits(group, columns):
    return group == 0 or -(-columns // 32) * 32 % group == 0


SHAPES = [(*form, columns) for form in FORMATS for columns in COLUMNS if fits(form[1], columns)]


def some_columns(group):
    """A width that is no multiple of the group where the format allows it."""
    return {0: 200, 32: 200, 64: 190, 96: 190, 128: 250}[group]


def bound(x, weight):
    """Most that float32 rounding can make of a result, [tokens, rows]."""
    if weight.quantized is None:
        terms, count = np.abs(x).astype(float) @ np.abs(weight.values.T), x.shape[1]
    else:
        terms, count = group_magnitudes(x, weight)
    return (count + 4) * EPS * terms + 1e-30


def group_magnitudes(x, weight):
    """Sum of the magnitudes of the terms that a product adds up: one for each activation group.

    The dot product inside a group is an integer, so only these additions round.
    """
    quantized = weight.quantized
    codes, scales = quantize_activations(x, weight.group)
    groups = codes.astype(float).reshape(len(x), -1, weight.group)
    integers = quantized.integer_codes().astype(float)
    if quantized.bits == 4 and quantized.minimums is None:
        integers -= 8
    integers = integers.reshape(len(integers), -1, weight.group)
    repeat = quantized.group // weight.group
    row_scales = np.repeat(quantized.scales.astype(float), repeat, axis=1)
    dots = np.abs(np.einsum("tgk,rgk->trg", groups, integers)) * np.abs(row_scales)
    if quantized.minimums is not None:
        lows = np.repeat(np.abs(quantized.minimums.astype(float)), repeat, axis=1)
        dots += np.abs(groups.sum(axis=2))[:, None, :] * lows
    terms = np.einsum("trg,tg->tr", dots, scales.astype(float))
    return terms, 2 * groups.shape[1]


def expected(x, weight):
    """The product in float64, of the codes where the weight is quantised."""
    if weight.quantized is None:
        return x.astype(float) @ weight.values.T.astype(float)
    return linear_quantized(x, weight.quantized, weight.group)


def assert_close(got, want, tolerance):
    worst = np.unravel_index(np.argmax(np.abs(got - want) - tolerance), got.shape)
    assert (np.abs(got - want) <= tolerance).all(), f"at {worst}: {got[worst]}, not {want[worst]}"


@pytest.mark.parametrize(("kind", "group", "minimum", "columns"), SHAPES)
def test_every_shape_matches_float64(isa, kind, group, minimum, columns):
    x = normal(9, columns)
    for rows in ROWS:
        weight = make_weight(kind, rows, columns, group=group, minimum=minimum, seed=rows)
        got = run_linear(isa, x, weight)
        assert_close(got, expected(x, weight), bound(x, weight))


@pytest.mark.parametrize(("kind", "group", "minimum"), FORMATS)
def test_rows_do_not_see_the_batch(isa, kind, group, minimum):
    x = normal(max(TOKENS), some_columns(group), seed=3)
    weight = make_weight(kind, 70, some_columns(group), group=group, minimum=minimum)
    whole = run_linear(isa, x, weight)
    assert_close(whole, expected(x, weight), bound(x, weight))
    for tokens in TOKENS:
        np.testing.assert_array_equal(run_linear(isa, x[-tokens:], weight), whole[-tokens:])


@pytest.mark.parametrize(("kind", "group", "minimum"), FORMATS)
def test_threads_do_not_change_bits(isa, kind, group, minimum):
    x = normal(130, some_columns(group), seed=4)
    weight = make_weight(kind, 100, some_columns(group), group=group, minimum=minimum)
    alone = run_linear(isa, x, weight)
    for threads in (2, 3):
        np.testing.assert_array_equal(run_linear(isa, x, weight, threads=threads), alone)


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize(("kind", "group", "minimum"), FORMATS)
def test_bias_and_residual(isa, kind, group, minimum, rows):
    columns = some_columns(group)
    x, bias, into = normal(7, columns), normal(rows, seed=5), normal(7, rows, seed=6)
    weight = make_weight(kind, rows, columns, group=group, minimum=minimum)
    plain = run_linear(isa, x, weight)
    biased = run_linear(isa, x, weight, bias=bias)
    np.testing.assert_array_equal(biased, plain + bias)
    added = run_linear(isa, x, weight, bias=bias, epilogue="add", into=into)
    np.testing.assert_array_equal(added, into + biased)
    factor = np.float32(0.3)
    scaled = run_linear(isa, x, weight, bias=bias, epilogue="add", into=into, scale=factor)
    np.testing.assert_array_equal(scaled, into + biased * factor)


@pytest.mark.parametrize(("epilogue", "tolerance"), [("silu_mul", 1e-6), ("gelu_mul", 1e-5)])
@pytest.mark.parametrize("rows", [32, 96])
@pytest.mark.parametrize(("kind", "group", "minimum"), FORMATS)
def test_gated_epilogues(isa, kind, group, minimum, rows, epilogue, tolerance):
    columns = some_columns(group)
    x, bias = normal(7, columns, scale=0.1), normal(rows, seed=5)
    weight = make_weight(kind, rows, columns, group=group, minimum=minimum)
    plain = run_linear(isa, x, weight, bias=bias).astype(float)
    panels = plain.reshape(7, -1, 2, 16)
    gate, up = panels[:, :, 0], panels[:, :, 1]
    power = -gate if epilogue == "silu_mul" else -1.5957691216 * (gate + 0.044715 * gate**3)
    with np.errstate(over="ignore"):
        want = (gate / (1 + np.exp(power)) * up).reshape(7, -1)
    got = run_linear(isa, x, weight, bias=bias, epilogue=epilogue)
    np.testing.assert_allclose(got, want, rtol=tolerance, atol=1e-30)


@pytest.mark.parametrize("minimum", [False, True])
@pytest.mark.parametrize("kind", ["int8", "int4"])
@pytest.mark.parametrize("sign", [1, -1])
def test_extreme_codes_do_not_saturate(isa, kind, minimum, sign):
    """The largest codes against the largest activations: 16-bit partial sums must hold them."""
    x = np.full((5, 64), sign, np.float32)
    weight = make_weight(kind, 64, 64, group=32, minimum=minimum)
    weight.quantized.codes[:32] = 255 if kind == "int4" else 127
    weight.quantized.codes[32:] = 0 if kind == "int4" else -128
    weight.matrix = integer_matrix(weight.quantized)
    assert_close(run_linear(isa, x, weight), expected(x, weight), bound(x, weight))


@pytest.mark.parametrize(("kind", "group", "minimum"), FORMATS)
def test_embedding_rows_are_exact(isa, kind, group, minimum):
    columns = some_columns(group)
    weight = make_weight(kind, 70, columns, group=group, minimum=minimum)
    bench = Bench(isa, 70, threads=2)
    out = bench.buffer(columns)
    bench.program.embed(weight.matrix, out)
    np.testing.assert_array_equal(bench.take(out, columns), weight.values)


@pytest.mark.parametrize(("kind", "group", "minimum"), FORMATS)
def test_rows_land_where_they_are_placed(isa, kind, group, minimum):
    columns = some_columns(group)
    order = np.random.default_rng(0).permutation(100).astype(np.int32)
    weight = make_weight(kind, 100, columns, group=group, minimum=minimum)
    size = 0 if weight.quantized is None else weight.quantized.group
    matrix = _native.Matrix(kind, 100, columns, size, minimum)
    if weight.quantized is None:
        matrix.place_float(weight.values, order)
    else:
        place(matrix, weight.quantized, order)
    shuffled = Weight(matrix, weight.quantized, weight.values)
    x = normal(3, columns)
    straight = run_linear(isa, x, weight)
    np.testing.assert_array_equal(run_linear(isa, x, shuffled)[:, order], straight)


def test_bf16_bits_are_taken_as_they_are(isa):
    values = make_weight("bf16", 40, 50).values
    matrix = _native.Matrix("bf16", 40, 50)
    bits = (values.view(np.uint32) >> 16).astype(np.uint16)
    matrix.place_bf16(bits, np.arange(40, dtype=np.int32))
    x = normal(3, 50)
    rounded = Weight(float_matrix(values, "bf16"), None, values)
    got = run_linear(isa, x, Weight(matrix, None, values))
    np.testing.assert_array_equal(got, run_linear(isa, x, rounded))

"""Ops on one row at a time, on every instruction set."""

import numpy as np
import pytest
from harness import EPS, Bench, code_probe, normal, run_linear

from hasten.kernels.activation import gelu_mul, silu_mul, softcap
from hasten.kernels.linear import quantize_activations
from hasten.kernels.norm import rms_norm
from hasten.kernels.rope import rope_tables, rotate

WIDTHS = (1, 7, 8, 15, 16, 17, 31, 33, 64, 100, 250, 577)
GROUPS = (32, 64)
PECULIAR = {
    "zeros": 0.0,
    "negative zeros": -0.0,
    "denormal": 1e-38,
    "below the threshold": 9e-31,
    "above the threshold": 1.1e-30,
    "huge": 3e38,
    "ties": 0.5,
}


def quantized_values(isa, x, group):
    """code * scale of each value as the native quantisation sees it."""
    return run_linear(isa, x, code_probe(x.shape[1], group))


def reference_values(x, group):
    codes, scales = quantize_activations(x, group)
    return (codes * np.repeat(scales, group, axis=1))[:, : x.shape[1]]


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("threads", [1, 3])
def test_rms_norm(isa, width, threads):
    x, weight = normal(11, width), normal(width, seed=1)
    bench = Bench(isa, 11, threads)
    out = bench.buffer(width)
    bench.program.rms_norm(bench.give(x), weight, 1e-5, out)
    wide = x.astype(float)
    want = wide / np.sqrt((wide**2).mean(axis=1, keepdims=True) + 1e-5) * weight
    got = bench.take(out, width)
    np.testing.assert_allclose(got, want, rtol=(width / 8 + 6) * EPS)
    np.testing.assert_allclose(got, rms_norm(x, weight, 1e-5), rtol=(width / 8 + 6) * EPS)


@pytest.mark.parametrize(
    ("width", "group"), [(w, g) for w in WIDTHS for g in GROUPS if -(-w // 32) * 32 % g == 0]
)
def test_quantize_gives_the_codes_of_the_reference(isa, width, group):
    x = normal(5, width) * np.float32(10.0) ** np.arange(-2, 3, dtype=np.float32)[:, None]
    np.testing.assert_array_equal(quantized_values(isa, x, group), reference_values(x, group))


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("width", [32, 100, 577])
def test_quantize_in_another_order_of_columns(isa, width, threads):
    x = normal(11, width)
    order = np.random.default_rng(0).permutation(width).astype(np.int32)
    probe = code_probe(width, 32)
    bench = Bench(isa, 11, threads)
    codes = bench.program.add_quantized_buffer(width, 32)
    bench.program.quantize(bench.give(x), codes, order)
    out = bench.buffer(width)
    bench.program.linear(codes, probe.matrix, out)
    np.testing.assert_array_equal(bench.take(out, width), reference_values(x[:, order], 32))


@pytest.mark.parametrize("group", GROUPS)
@pytest.mark.parametrize("value", PECULIAR.values(), ids=PECULIAR.keys())
def test_quantize_peculiar_values(isa, value, group):
    x = normal(4, 128, scale=1e-3) if value == 0.5 else np.zeros((4, 128), np.float32)
    x[:, :64] = value
    x[1, ::2] *= -1
    x[2, 3] = 127.0 if value == 0.5 else 0.0
    x[3, 3:] = 0.0
    got = quantized_values(isa, x, group)
    assert np.isfinite(got).all()
    np.testing.assert_array_equal(got, reference_values(x, group))


@pytest.mark.parametrize("width", [32, 100, 577])
def test_norm_and_quantize_in_one_op_equals_both(isa, width):
    x, weight = normal(11, width), normal(width, seed=1)
    probe = code_probe(width, 32)
    results = []
    for fused in (True, False):
        bench = Bench(isa, 11, threads=2)
        source = bench.give(x)
        codes = bench.program.add_quantized_buffer(width, 32)
        if fused:
            bench.program.rms_norm(source, weight, 1e-5, codes)
        else:
            normed = bench.buffer(width)
            bench.program.rms_norm(source, weight, 1e-5, normed)
            bench.program.quantize(normed, codes)
        out = bench.buffer(width)
        bench.program.linear(codes, probe.matrix, out)
        results.append(bench.take(out, width))
    np.testing.assert_array_equal(*results)


@pytest.mark.parametrize(("heads", "dim"), [(2, 1), (3, 10), (4, 64), (5, 33)])
def test_rms_norm_of_heads(isa, heads, dim):
    x, weight = normal(11, heads * dim), normal(dim, seed=1)
    bench = Bench(isa, 11, threads=2)
    out = bench.buffer(heads * dim)
    bench.program.rms_norm(bench.give(x), weight, 1e-5, out)
    got = bench.take(out, heads * dim).reshape(-1, dim)
    alone = Bench(isa, 11 * heads)
    each = alone.buffer(dim)
    alone.program.rms_norm(alone.give(x.reshape(-1, dim)), weight, 1e-5, each)
    np.testing.assert_array_equal(got, alone.take(each, dim))


def wide_silu(gate, up):
    return gate / (1 + np.exp(-gate)) * up


def wide_gelu(gate, up):
    return gate / (1 + np.exp(-2 * np.sqrt(2 / np.pi) * (gate + 0.044715 * gate**3))) * up


GATES = {"silu_mul": (silu_mul, wide_silu), "gelu_mul": (gelu_mul, wide_gelu)}


@pytest.mark.parametrize("gate", GATES)
@pytest.mark.parametrize("width", WIDTHS)
def test_gates(isa, gate, width):
    reference, wide = GATES[gate]
    x, up = normal(9, width, scale=3), normal(9, width, seed=1)
    got = run_gate(isa, gate, x, up)
    tolerance = 8 * EPS if gate == "silu_mul" else 60 * EPS
    np.testing.assert_allclose(got, wide(x.astype(float), up), rtol=tolerance, atol=1e-36)
    # The reference's 1 + tanh loses its digits where tanh is near -1.
    lost = 0 if gate == "silu_mul" else 1e-6 * np.abs(x * up).max()
    np.testing.assert_allclose(got, reference(x, up), rtol=tolerance, atol=lost)


@pytest.mark.parametrize("gate", GATES)
def test_gates_at_extremes(isa, gate):
    values = [0.0, -0.0, 1e-38, 30, -30, 87, -87, 88.5, -88.5, 104, -104, 1e10, 3e38]
    x = np.array([values], np.float32)
    got = run_gate(isa, gate, x, np.ones_like(x))
    with np.errstate(over="ignore", invalid="ignore"):
        want = GATES[gate][1](x.astype(float), 1)
    np.testing.assert_allclose(got, want, rtol=1e-6, atol=1e-35)
    large = run_gate(isa, gate, np.array([[-1e10, -3e38]], np.float32), np.ones((1, 2)))
    assert np.isfinite(large).all()


def run_gate(isa, gate, x, up):
    bench = Bench(isa, len(x), threads=2)
    out = bench.buffer(x.shape[1])
    getattr(bench.program, gate)(bench.give(x), bench.give(up), out)
    return bench.take(out, x.shape[1])


@pytest.mark.parametrize("in_place", [False, True])
@pytest.mark.parametrize("width", WIDTHS)
def test_softcap(isa, width, in_place):
    x = normal(9, width, scale=40)
    x[0] *= 1e-6
    bench = Bench(isa, 9, threads=2)
    source = bench.give(x)
    out = source if in_place else bench.buffer(width)
    bench.program.softcap(source, 30.0, out)
    got = bench.take(out, width)
    np.testing.assert_allclose(got, 30 * np.tanh(x.astype(float) / 30), rtol=6 * EPS)
    np.testing.assert_allclose(got, softcap(x, 30.0), rtol=6 * EPS)


def test_softcap_at_extremes(isa):
    x = np.array([[0.0, -0.0, 1e-38, 1e-7, 0.34, 0.35, -0.35, 9, 10, 11, 1e10, -3e38]], np.float32)
    bench = Bench(isa, 1)
    out = bench.buffer(x.shape[1])
    bench.program.softcap(bench.give(x), 1.0, out)
    want = np.tanh(x.astype(float))
    np.testing.assert_allclose(bench.take(out, x.shape[1]), want, rtol=4 * EPS)


@pytest.mark.parametrize("width", [1, 33, 100])
def test_scale(isa, width):
    x = normal(9, width)
    bench = Bench(isa, 9, threads=2)
    out = bench.give(x)
    bench.program.scale(out, 0.3, out)
    np.testing.assert_array_equal(bench.take(out, width), x * np.float32(0.3))


@pytest.mark.parametrize("width", WIDTHS)
def test_add(isa, width):
    a, b = normal(9, width), normal(9, width, seed=1)
    bench = Bench(isa, 9, threads=3)
    out = bench.buffer(width)
    bench.program.add(bench.give(a), bench.give(b), out)
    np.testing.assert_array_equal(bench.take(out, width), a + b)


@pytest.mark.parametrize(("heads", "dim", "half"), [(1, 2, 1), (3, 10, 5), (2, 64, 32), (5, 16, 4)])
def test_rope(isa, heads, dim, half):
    """Dimensions past twice the tables' width pass through (partial rotation)."""
    x = normal(9, heads * dim)
    frequencies = (0.3 ** np.arange(half)).astype(np.float32)
    cosine, sine = rope_tables(frequencies, 64)
    positions = np.arange(40, 49)
    bench = Bench(isa, 9, threads=2)
    bench.program.add_rope(cosine, sine)
    out = bench.buffer(heads * dim)
    bench.program.rope(bench.give(x), heads, out)
    got = bench.take(out, heads * dim, positions=positions)
    want = rotate(x.reshape(9, heads, dim), cosine[positions], sine[positions])
    np.testing.assert_array_equal(got, want.reshape(9, -1))


def test_rows_do_not_see_the_batch(isa):
    gate, up, weight = normal(130, 100), normal(130, 100, seed=1), normal(100, seed=2)

    def run(rows):
        bench = Bench(isa, len(rows), threads=2)
        hidden, out = bench.buffer(100), bench.buffer(100)
        bench.program.silu_mul(bench.give(gate[rows]), bench.give(up[rows]), hidden)
        bench.program.softcap(hidden, 1.5, hidden)
        bench.program.gelu_mul(hidden, hidden, hidden)
        bench.program.rms_norm(hidden, weight, 1e-5, out)
        return bench.take(out, 100)

    whole = run(np.arange(130))
    for rows in (np.arange(1), np.arange(3, 9), np.arange(100, 130)):
        np.testing.assert_array_equal(run(rows), whole[rows])

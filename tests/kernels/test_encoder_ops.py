"""The ops that encoders add, on every instruction set, against float64."""

import math

import numpy as np
import pytest
from harness import EPS, Bench, code_probe, make_weight, normal, run_linear, to_bf16

from hasten import _native
from hasten.kernels import activation
from hasten.kernels.attention import attention
from hasten.kernels.norm import layer_norm

WIDTHS = (1, 7, 8, 17, 64, 100, 577)
ERF_ERROR = 4e-7
"""What csrc/kernels/math.h promises."""

exact_erf = np.vectorize(math.erf, otypes=[float])


def exact_gelu(x):
    return x / 2 * (1 + exact_erf(x / math.sqrt(2)))


def exact_gelu_tanh(x):
    return x / 2 * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def sweep():
    """Values over the whole range, close to zero and far out."""
    even = np.linspace(-8, 8, 40001)
    small = np.logspace(-37, 0, 2000)
    return np.concatenate([even, small, -small, [0.0, -0.0, 1e10, -1e10, 1e-42]]).astype(np.float32)


def run_gelu(isa, x, *, tanh=False):
    bench = Bench(isa, len(x), threads=2)
    out = bench.buffer(x.shape[1])
    bench.program.gelu(bench.give(x), tanh, out)
    return bench.take(out, x.shape[1])


def test_gelu_is_as_exact_as_promised(isa):
    x = sweep()
    wide = x.astype(float)
    bound = np.abs(wide) * (ERF_ERROR / 2 + EPS) + 1e-37
    for got in (run_gelu(isa, x[None])[0], activation.gelu(x)):
        assert (np.abs(got - exact_gelu(wide)) <= bound).all()


def test_erf_reference():
    x = sweep()
    want = exact_erf(x.astype(float))
    got = activation.erf(x)
    assert (np.abs(got - want) <= np.minimum(ERF_ERROR, ERF_ERROR * np.abs(want) + 1e-38)).all()
    assert np.abs(got).max() == 1


def test_gelu_tanh(isa):
    x = sweep()
    x = x[np.abs(x) < 1e9]
    wide = x.astype(float)
    bound = np.abs(wide) * 1e-6 + 1e-37
    for got in (run_gelu(isa, x[None], tanh=True)[0], activation.gelu_tanh(x)):
        assert (np.abs(got - exact_gelu_tanh(wide)) <= bound).all()


@pytest.mark.parametrize("tanh", [False, True])
@pytest.mark.parametrize("width", WIDTHS)
def test_gelu_of_any_width(isa, width, tanh):
    x = normal(9, width, scale=3)
    want = (exact_gelu_tanh if tanh else exact_gelu)(x.astype(float))
    np.testing.assert_allclose(run_gelu(isa, x, tanh=tanh), want, atol=2e-6)


@pytest.mark.parametrize("epilogue", ["gelu", "gelu_tanh"])
@pytest.mark.parametrize("rows", [5, 32, 70])
@pytest.mark.parametrize("form", [("f32", 0), ("bf16", 0), ("int8", 0), ("int4", 32)])
def test_gelu_as_epilogue_equals_both_ops(isa, form, rows, epilogue):
    x, bias = normal(7, 96), normal(rows, seed=5)
    weight = make_weight(form[0], rows, 96, group=form[1])
    got = run_linear(isa, x, weight, bias=bias, epilogue=epilogue)
    plain = run_linear(isa, x, weight, bias=bias)
    np.testing.assert_array_equal(got, run_gelu(isa, plain, tanh=epilogue == "gelu_tanh"))


@pytest.mark.parametrize("shift", [0.0, 100.0])
@pytest.mark.parametrize("width", WIDTHS)
def test_layer_norm(isa, width, shift):
    x, weight, bias = normal(11, width) + np.float32(shift), normal(width, seed=1), normal(width)
    bench = Bench(isa, 11, threads=3)
    out = bench.buffer(width)
    bench.program.layer_norm(bench.give(x), weight, bias, 1e-5, out)
    got = bench.take(out, width)
    wide = x.astype(float)
    centred = wide - wide.mean(axis=1, keepdims=True)
    variance = (centred**2).mean(axis=1, keepdims=True)
    # The mean itself is rounded, which the division by the spread makes larger.
    rounding = (width / 8 + 6) * EPS * (1 + np.abs(wide).max() / np.sqrt(variance + 1e-5).min())
    want = centred / np.sqrt(variance + 1e-5) * weight + bias
    np.testing.assert_allclose(got, want, rtol=rounding, atol=rounding * np.abs(weight).max())
    np.testing.assert_allclose(
        layer_norm(x, weight, bias, 1e-5), want, rtol=rounding, atol=rounding
    )


@pytest.mark.parametrize("width", [32, 100, 577])
def test_layer_norm_and_quantize_in_one_op_equals_both(isa, width):
    x, weight, bias = normal(11, width), normal(width, seed=1), normal(width, seed=2)
    probe = code_probe(width, 32)
    results = []
    for fused in (True, False):
        bench = Bench(isa, 11, threads=2)
        source = bench.give(x)
        codes = bench.program.add_quantized_buffer(width, 32)
        normed = codes if fused else bench.buffer(width)
        bench.program.layer_norm(source, weight, bias, 1e-5, normed)
        if not fused:
            bench.program.quantize(normed, codes)
        out = bench.buffer(width)
        bench.program.linear(codes, probe.matrix, out)
        results.append(bench.take(out, width))
    np.testing.assert_array_equal(*results)


def test_positions_and_rows(isa):
    table, x, added = normal(50, 33), normal(9, 33, seed=1), normal(33, seed=2)
    bench = Bench(isa, 9, threads=2)
    place, out = bench.buffer(33), bench.buffer(33)
    bench.program.embed_position(table, 2, place)
    bench.program.add_row(bench.give(x), added, out)
    bench.program.add(out, place, out)
    got = bench.take(out, 33, positions=np.arange(39, 48))
    np.testing.assert_array_equal(got, x + added + table[41:50])
    with pytest.raises(ValueError, match="position"):
        bench.run(33, positions=np.arange(40, 49))


class Sequences:
    """Attention without causality over sequences of these lengths, each in two blocks or more."""

    lengths = (1, 31, 32, 33, 70, 5)
    heads, kv_heads, dim = 4, 2, 10

    def arrays(self):
        total = sum(self.lengths)
        widths = [n * self.dim for n in (self.heads, self.kv_heads, self.kv_heads)]
        return [normal(total, width, seed=i) for i, width in enumerate(widths)]

    def run(self, isa, kv, order, *, threads=2, joint=False):
        """Results [tokens, width] of each sequence in `order`, computed in one call."""
        first = np.cumsum([0, *self.lengths])
        rows = np.concatenate([np.arange(first[s], first[s + 1]) for s in order])
        bench = Bench(isa, len(rows), threads)
        p = bench.program
        p.set_cache(_native.KvCache(kv, 1, 3 * len(order), self.kv_heads, self.dim))
        query, key, value = (a[rows] for a in self.arrays())
        out = bench.buffer(self.heads * self.dim)
        if joint:
            queries = bench.buffer(self.heads * self.dim)
            whole = bench.give(np.concatenate([query, key, value], axis=1))
            p.split_kv_write(whole, 0, queries)
        else:
            queries = bench.give(query)
            p.kv_write(bench.give(key), bench.give(value), 0)
        p.attention(queries, self.heads, 0, out, 0, False)
        lengths = [self.lengths[s] for s in order]
        starts = np.cumsum([0, *lengths])
        got = bench.take(
            out,
            self.heads * self.dim,
            starts=starts,
            positions=np.concatenate([np.arange(n) for n in lengths]),
            tables=np.random.default_rng(1).permutation(3 * len(order)).reshape(-1, 3),
        )
        return np.split(got, starts[1:-1])

    def expected(self, kv):
        for rows in np.split(np.arange(sum(self.lengths)), np.cumsum(self.lengths)[:-1]):
            query, key, value = (a[rows].reshape(len(rows), -1, self.dim) for a in self.arrays())
            if kv == "bf16":
                key, value = to_bf16(key), to_bf16(value)
            wide = [a.astype(float) for a in (query, key, value)]
            yield attention(*wide, np.arange(len(rows)), causal=False).reshape(len(rows), -1)


@pytest.mark.parametrize("kv", ["f32", "bf16"])
def test_attention_over_whole_sequences(isa, kv):
    got = Sequences().run(isa, kv, range(6))
    for one, want in zip(got, Sequences().expected(kv), strict=True):
        np.testing.assert_allclose(one, want, atol=2e-6, rtol=2e-6)


@pytest.mark.parametrize("kv", ["f32", "bf16", "int8"])
def test_attention_over_whole_sequences_does_not_see_the_batch(isa, kv):
    together = Sequences().run(isa, kv, range(6))
    for joint in (False, True):
        mixed = Sequences().run(isa, kv, (4, 2, 0), threads=3, joint=joint)
        for s, got in zip((4, 2, 0), mixed, strict=True):
            np.testing.assert_array_equal(got, together[s])
            np.testing.assert_array_equal(
                Sequences().run(isa, kv, (s,), threads=1, joint=joint)[0], got
            )


def encoder_program():
    program = _native.Program(1, _native.isas()[0], 8, 8, 64)
    program.set_cache(_native.KvCache("f32", 1, 2, 2, 16))
    buffers = {
        "wide": program.add_buffer(64),
        "narrow": program.add_buffer(32),
        "codes": program.add_quantized_buffer(64, 32),
        "chosen": program.add_buffer(64, selected=True),
    }
    return program, buffers


def bad_calls(p, b):
    row = normal(64)
    return [
        lambda: p.layer_norm(b["narrow"], row, row, 1e-5, b["wide"]),
        lambda: p.layer_norm(b["wide"], row, row[:63], 1e-5, b["wide"]),
        lambda: p.layer_norm(b["wide"], row, row, 1e-5, b["narrow"]),
        lambda: p.layer_norm(b["codes"], row, row, 1e-5, b["wide"]),
        lambda: p.layer_norm(b["wide"], row, row, 1e-5, b["chosen"]),
        lambda: p.gelu(b["codes"], False, b["wide"]),
        lambda: p.gelu(b["wide"], False, b["narrow"]),
        lambda: p.gelu(b["wide"], True, b["chosen"]),
        lambda: p.add_row(b["narrow"], row, b["wide"]),
        lambda: p.add_row(b["wide"], row, b["codes"]),
        lambda: p.add_row(b["wide"], row, b["chosen"]),
        lambda: p.embed_position(normal(5, 64), -1, b["wide"]),
        lambda: p.embed_position(normal(5, 64), 5, b["wide"]),
        lambda: p.embed_position(normal(5, 32), 0, b["wide"]),
        lambda: p.embed_position(normal(0, 64), 0, b["wide"]),
        lambda: p.embed_position(normal(5, 64), 0, b["chosen"]),
        lambda: p.split_kv_write(b["wide"], 0, b["narrow"]),
        lambda: p.split_kv_write(b["wide"], 1, b["wide"]),
        lambda: p.attention(b["wide"], 4, 0, b["wide"], 3, False),
    ]


@pytest.mark.parametrize("number", range(len(bad_calls(None, dict.fromkeys(
    ("wide", "narrow", "codes", "chosen"), 0)))))  # fmt: skip
def test_calls_that_do_not_fit(number):
    with pytest.raises(ValueError, match=r"\w"):
        bad_calls(*encoder_program())[number]()


def test_attention_that_is_not_causal_refuses_the_rest_of_a_sequence():
    bench = Bench(_native.isas()[0], 4)
    bench.program.set_cache(_native.KvCache("f32", 1, 2, 1, 4))
    x, out = bench.give(normal(4, 4)), bench.buffer(4)
    bench.program.kv_write(x, x, 0)
    bench.program.attention(x, 1, 0, out, 0, False)
    with pytest.raises(ValueError, match="whole sequences"):
        bench.take(out, 4, positions=np.arange(1, 5), tables=[[0, 1]])

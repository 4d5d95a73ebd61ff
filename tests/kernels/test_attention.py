"""Attention over the blocked cache on every instruction set, against float64."""

from dataclasses import dataclass

import numpy as np
import pytest
from harness import Bench, float_matrix, normal, to_bf16

from hasten import _native
from hasten.kernels.attention import attention
from hasten.kernels.norm import rms_norm
from hasten.kernels.rope import rope_tables, rotate

CONTEXTS = (1, 31, 32, 33, 200)
BLOCK = 32


@dataclass
class Case:
    """Sequences whose queries, keys and values come from one generator."""

    heads: int = 4
    kv_heads: int = 2
    dim: int = 16
    kv: str = "f32"
    window: int = 0
    scale: float | None = None
    cap: float = 0.0
    lengths: tuple[int, ...] = CONTEXTS

    def arrays(self):
        total = sum(self.lengths)
        query = normal(total, self.heads * self.dim, seed=1)
        key = normal(total, self.kv_heads * self.dim, seed=2)
        return query, key, normal(total, self.kv_heads * self.dim, seed=3)

    def tables(self):
        """Blocks of each sequence, scattered over the cache; -1 where unused."""
        counts = [-(-length // BLOCK) for length in self.lengths]
        free = list(np.random.default_rng(0).permutation(sum(counts) + 3))
        tables = np.full((len(counts), max(counts)), -1, np.int32)
        for row, count in zip(tables, counts, strict=True):
            row[:count] = [free.pop() for _ in range(count)]
        return tables

    def cache(self):
        blocks = sum(-(-length // BLOCK) for length in self.lengths) + 3
        return _native.KvCache(self.kv, 2, blocks, self.kv_heads, self.dim)


class Runner:
    """A program that writes keys and values, then attends; run it in any pieces."""

    def __init__(self, case: Case, isa, threads=1):
        self.case = case
        arrays = case.arrays()
        total, widths = len(arrays[0]), [a.shape[1] for a in arrays]
        p = self.program = _native.Program(threads, isa, total, total, 256)
        p.set_cache(case.cache())
        query, key, value = (p.add_buffer(width) for width in widths)
        for array, buffer in zip(arrays, (query, key, value), strict=True):
            p.embed(float_matrix(array), buffer)
        out = p.add_buffer(widths[0])
        p.kv_write(key, value, 1)
        p.attention(query, case.heads, 1, out, case.window, scale=case.scale, cap=case.cap)
        p.select(out, p.add_output(widths[0]))
        self.first = np.cumsum([0, *case.lengths])
        self.result = np.full((total, widths[0]), np.nan, np.float32)

    def run(self, parts):
        """Computes [(sequence, begin, end), ...] in one call."""
        tokens = np.concatenate([self.first[s] + np.arange(b, e) for s, b, e in parts])
        positions = np.concatenate([np.arange(b, e) for _, b, e in parts])
        starts = np.cumsum([0, *(e - b for _, b, e in parts)])
        tables = np.ascontiguousarray(self.case.tables()[[s for s, _, _ in parts]])
        out = np.empty((len(tokens), self.result.shape[1]), np.float32)
        rows = np.arange(len(tokens), dtype=np.int32)
        ints = [a.astype(np.int32) for a in (tokens, positions, starts)]
        self.program.run(*ints, tables, rows, out)
        self.result[tokens] = out
        return self

    def run_whole(self):
        return self.run([(s, 0, n) for s, n in enumerate(self.case.lengths)]).result

    def run_chunks(self, size):
        """Every sequence in pieces, all sequences side by side."""
        for begin in range(0, max(self.case.lengths), size):
            lengths = enumerate(self.case.lengths)
            self.run([(s, begin, min(begin + size, n)) for s, n in lengths if begin < n])
        return self.result

    def run_alone(self):
        for s, n in enumerate(self.case.lengths):
            self.run([(s, 0, n)])
        return self.result


def stored(values, kv, dim):
    """What the cache holds of keys or values [tokens, heads * dim]."""
    if kv == "f32":
        return values
    if kv == "bf16":
        return to_bf16(values)
    heads = values.reshape(len(values), -1, dim)
    scales = np.abs(heads).max(axis=2, keepdims=True) / np.float32(127)
    return (np.rint(heads * (np.float32(127) / (scales * 127))) * scales).reshape(values.shape)


def expected(case: Case):
    query, key, value = case.arrays()
    key, value = (stored(a, case.kv, case.dim) for a in (key, value))
    out, first = [], 0
    for length in case.lengths:
        rows = slice(first, first + length)
        heads = [a[rows].reshape(length, -1, case.dim).astype(float) for a in (query, key, value)]
        positions = np.arange(length)
        result = attention(*heads, positions, case.window or None, case.scale, case.cap or None)
        out.append(result.reshape(length, -1))
        first += length
    return np.concatenate(out)


def check(case, isa):
    tolerance = 2e-6 if case.kv == "f32" else 2e-5
    got = Runner(case, isa, threads=2).run_whole()
    np.testing.assert_allclose(got, expected(case), atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("kv", ["f32", "bf16", "int8"])
@pytest.mark.parametrize("dim", [2, 4, 16, 64, 80, 128])
def test_head_dimensions(isa, dim, kv):
    check(Case(dim=dim, kv=kv), isa)


@pytest.mark.parametrize("kv", ["f32", "bf16", "int8"])
@pytest.mark.parametrize("ratio", [1, 3, 4, 9])
def test_grouped_heads(isa, ratio, kv):
    check(Case(heads=2 * ratio, kv_heads=2, kv=kv), isa)


@pytest.mark.parametrize("window", [1, 2, 31, 32, 33, 64, 500])
def test_windows(isa, window):
    check(Case(window=window), isa)


@pytest.mark.parametrize("kv", ["f32", "bf16", "int8"])
@pytest.mark.parametrize("window", [0, 33])
def test_scale_and_cap(isa, kv, window):
    check(Case(kv=kv, window=window, scale=0.7, cap=2.0), isa)
    check(Case(kv=kv, window=window, scale=1 / 16), isa)


@pytest.mark.parametrize("kv", ["f32", "bf16", "int8"])
@pytest.mark.parametrize(("window", "cap"), [(0, 0.0), (33, 0.0), (33, 2.0)])
def test_bits_do_not_depend_on_batch_chunks_or_threads(isa, kv, window, cap):
    case = Case(heads=6, kv=kv, window=window, cap=cap)
    whole = Runner(case, isa).run_whole()
    for threads in (1, 2, 3):
        np.testing.assert_array_equal(Runner(case, isa, threads).run_alone(), whole)
        for size in (1, 7, 32) if threads == 1 else (7,):
            np.testing.assert_array_equal(Runner(case, isa, threads).run_chunks(size), whole)


def test_stale_blocks_are_not_seen(isa):
    """A block that another sequence used before holds its keys past the new one's length."""
    case = Case(lengths=(50,))
    runner = Runner(case, isa)
    first = runner.run([(0, 0, 50)]).result.copy()
    runner.result[:] = np.nan
    runner.run([(0, 0, 10)])
    np.testing.assert_array_equal(runner.result[:10], first[:10])


@pytest.mark.parametrize("scale", [1e-38, 1e-20, 30.0])
@pytest.mark.parametrize("kv", ["f32", "bf16", "int8"])
def test_magnitudes(isa, kv, scale):
    """Scores far apart, and next to nothing."""
    query, key, value = (scale * a for a in Case(lengths=(40,)).arrays())
    bench = Bench(isa, 40)
    bench.program.set_cache(_native.KvCache(kv, 1, 2, 2, 16))
    out = bench.buffer(64)
    bench.program.kv_write(bench.give(key), bench.give(value), 0)
    bench.program.attention(bench.give(query), 4, 0, out)
    got = bench.take(out, 64, tables=[[1, 0]])
    assert np.isfinite(got).all()
    assert np.abs(got).max() <= np.abs(value).max() * 1.01


@pytest.mark.parametrize("normed", [False, True])
def test_rope_and_write_in_one_op_equals_the_parts(isa, normed):
    """`rope_kv_write` on a joint projection against norm, rope and kv_write."""
    heads, kv_heads, dim, tokens, eps = 6, 2, 10, 40, 1e-5
    query, key, value = (
        normal(tokens, n * dim, seed=i) for i, n in enumerate((heads, kv_heads, kv_heads))
    )
    norms = [normal(dim, seed=3), normal(dim, seed=4)] if normed else [None, None]
    tables = rope_tables((0.5 ** np.arange(dim // 2)).astype(np.float32), 64)
    results = []
    for fused in (True, False):
        bench = Bench(isa, tokens, threads=2)
        p = bench.program
        p.add_rope(*rope_tables(np.ones(1, np.float32), 64))
        table = p.add_rope(*tables)
        p.set_cache(_native.KvCache("bf16", 1, 2, kv_heads, dim))
        rotated, out = bench.buffer(heads * dim), bench.buffer(heads * dim)
        if fused:
            joint = bench.give(np.concatenate([query, key, value], axis=1))
            p.rope_kv_write(joint, heads, 0, rotated, table, *norms, eps)
        else:
            turned = bench.buffer(kv_heads * dim)
            for array, count, norm, target in (
                (query, heads, norms[0], rotated),
                (key, kv_heads, norms[1], turned),
            ):
                source = bench.give(array)
                if norm is not None:
                    p.rms_norm(source, norm, eps, source)
                p.rope(source, count, target, table)
            p.kv_write(turned, bench.give(value), 0)
        p.attention(rotated, heads, 0, out)
        results.append(bench.take(out, heads * dim, tables=[[0, 1]]))
    np.testing.assert_array_equal(*results)
    turned = []
    for array, norm in ((query, norms[0]), (key, norms[1])):
        split = array.reshape(tokens, -1, dim)
        split = split if norm is None else rms_norm(split, norm, eps)
        turned.append(rotate(split, *(t[:tokens] for t in tables)))
    want = attention(
        turned[0], to_bf16(turned[1]), to_bf16(value).reshape(tokens, -1, dim), np.arange(tokens)
    )
    # bf16 keys that the two norms round to either side
    np.testing.assert_allclose(
        results[0], want.reshape(tokens, -1), **({"atol": 2e-3} if normed else {"atol": 1e-5})
    )

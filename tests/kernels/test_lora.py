"""The low-rank products of LoRA adapters against float64, and calls that do not fit."""

import numpy as np
import pytest
from harness import (
    EPS,
    Bench,
    code_probe,
    float_matrix,
    integer_matrix,
    normal,
    random_codes,
    run_linear,
    to_bf16,
)

from hasten import _native
from hasten.kernels.lora import lora

STARTS = [0, 3, 4, 10, 11, 150]
SLOTS = [1, -1, 0, 1, 2]  # nothing is in slot 2
TOKENS = STARTS[-1]
BAD = (ValueError, TypeError)


def new_pair(rows, rank, columns, kind="f32", seed=0, spans=None):
    """A packed pair, and what its matrices hold."""
    a, b = normal(rank, columns, seed=seed), normal(rows, rank, seed=seed + 1)
    scales = np.linspace(0.5, 2, rank).astype(np.float32)
    if spans is None:
        spans = [(0, rank)] * -(-rows // 16)
    pair = _native.LoraPair(kind, a, b, scales, np.asarray(spans, np.int32))
    if kind == "bf16":
        a, b = to_bf16(a), to_bf16(b)
    return pair, a, b, scales


def zero_matrix(kind, rows, columns):
    """A weight that leaves what the adapters add alone."""
    if kind == "f32":
        return float_matrix(np.zeros((rows, columns), np.float32))
    codes = random_codes("int8", rows, columns, 32, False, 0)
    codes.scales[:] = 0
    return integer_matrix(codes)


def run_pairs(isa, x, pairs, matrix, rows, *, threads=1, epilogue="store", width=80):
    bench = Bench(isa, len(x), threads)
    bench.program.reserve_adapters(3)
    source = bench.give(x)
    if matrix.activation_group:
        source = bench.quantized(source, x.shape[1], matrix.activation_group)
    site = bench.program.lora_shrink(source, bench.buffer(width))
    out = bench.buffer(rows)
    bench.program.linear(source, matrix, out, None, epilogue, lora=site)
    for slot, pair in enumerate(pairs):
        bench.program.set_adapter(site, slot, pair)
    tables = np.zeros((len(SLOTS), 1))
    return bench.take(
        out,
        rows,
        starts=STARTS,
        tables=tables,
        adapters=SLOTS,
        positions=np.concatenate([np.arange(n) for n in np.diff(STARTS)]),
    )


def check(got, x, made):
    """Each sequence has what its adapter adds, and nothing else."""
    for begin, end, slot in zip(STARTS, STARTS[1:], SLOTS, strict=False):
        if not 0 <= slot < len(made):
            assert not got[begin:end].any()
            continue
        _, a, b, scales = made[slot]
        part = x[begin:end].astype(np.float64)
        want = (part @ a.T.astype(np.float64) * scales) @ b.T.astype(np.float64)
        size = (np.abs(part) @ np.abs(a).T * scales) @ np.abs(b).T
        assert (np.abs(got[begin:end] - want) <= EPS * (a.shape[1] + len(a)) * size).all()
        assert want.any()


@pytest.mark.parametrize("kind", ["f32", "bf16"])
@pytest.mark.parametrize(("rank", "rows", "columns"), [(1, 33, 7), (8, 64, 100), (19, 70, 31)])
def test_every_rank_matches_float64(isa, kind, rank, rows, columns):
    made = [new_pair(rows, rank, columns, kind), new_pair(rows, 64, columns, kind, seed=5)]
    x = normal(TOKENS, columns, seed=9)
    matrix = zero_matrix("f32", rows, columns)
    got = run_pairs(isa, x, [pair for pair, *_ in made], matrix, rows, threads=3)
    check(got, x, made)


@pytest.mark.parametrize("columns", [64, 100])
def test_integer_products_adapt_what_they_multiply(isa, columns):
    """A sees the codes and scales of the activations, as the weights do."""
    made = [new_pair(40, 8, columns), new_pair(40, 17, columns, seed=5)]
    x = normal(TOKENS, columns, seed=9)
    matrix = zero_matrix("int8", 40, columns)
    got = run_pairs(isa, x, [pair for pair, *_ in made], matrix, 40)
    check(got, run_linear(isa, x, code_probe(columns, 32)), made)


def test_columns_outside_a_span_are_left_out(isa):
    rank, rows = 12, 40
    spans = [(0, 5), (3, 12), (7, 7)]
    a, scales = normal(rank, 20), np.ones(rank, np.float32)
    b = normal(rows, rank, seed=1)
    for panel, (begin, end) in enumerate(spans):
        b[16 * panel : 16 * panel + 16, :begin] = 0
        b[16 * panel : 16 * panel + 16, end:] = 0
    x = normal(TOKENS, 20, seed=2)
    matrix = zero_matrix("f32", rows, 20)
    full = [(0, rank)] * 3
    got, want = (
        run_pairs(
            isa,
            x,
            [_native.LoraPair("f32", a, b, scales, np.asarray(s, np.int32))] * 2,
            matrix,
            rows,
        )
        for s in (spans, full)
    )
    np.testing.assert_array_equal(got, want)


def test_the_reference_is_the_definition():
    x, a, b = normal(5, 7), normal(3, 7, seed=1), normal(4, 3, seed=2)
    np.testing.assert_allclose(lora(x, a, b, 0.5), 0.5 * x @ (b @ a).T, rtol=1e-4, atol=1e-5)


def arrays(rank=4, columns=8, rows=20):
    return [
        normal(rank, columns),
        normal(rows, rank),
        np.ones(rank, np.float32),
        np.zeros((-(-rows // 16), 2), np.int32),
    ]


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (0, normal(5, 8)),
        (0, normal(0, 8)),
        (0, normal(4, 8).astype(np.float64)),
        (1, normal(20, 5)),
        (1, normal(40, 4)),
        (1, normal(4, 20).T),
        (2, np.ones(5, np.float32)),
        (3, np.zeros((1, 2), np.int32)),
        (3, np.zeros((2, 3), np.int32)),
        (3, np.asarray([[0, 5], [0, 0]], np.int32)),
        (3, np.asarray([[-1, 2], [0, 0]], np.int32)),
        (3, np.asarray([[3, 2], [0, 0]], np.int32)),
    ],
)
def test_pairs_that_do_not_fit(place, value):
    given = arrays()
    _native.LoraPair("f32", *given)
    given[place] = value
    with pytest.raises(BAD):
        _native.LoraPair("f32", *given)


def test_formats_of_adapters():
    for kind in ("int8", "int4", "f64"):
        with pytest.raises(BAD):
            _native.LoraPair(kind, *arrays())


def test_calls_that_do_not_fit():
    program = _native.Program(1, _native.isas()[0], 8, 8, 64)
    wide, narrow = program.add_buffer(8), program.add_buffer(16)
    with pytest.raises(BAD):
        program.lora_shrink(wide, narrow)  # nothing is reserved
    for slots in (0, -1, 4097):
        with pytest.raises(BAD):
            program.reserve_adapters(slots)
    program.reserve_adapters(2)
    with pytest.raises(BAD):
        program.reserve_adapters(2)
    for source, out in ((wide, wide), (9, narrow), (wide, 9), (wide, -1)):
        with pytest.raises(BAD):
            program.lora_shrink(source, out)
    site = program.lora_shrink(wide, narrow)
    out = program.add_buffer(20)
    matrix = float_matrix(normal(20, 8))
    for wrong in (site + 1, -2):
        with pytest.raises(BAD):
            program.linear(wide, matrix, out, None, "store", lora=wrong)
    with pytest.raises(BAD):
        program.linear(narrow, float_matrix(normal(20, 16)), out, None, "store", lora=site)
    program.linear(wide, matrix, out, None, "store", lora=site)
    with pytest.raises(BAD):
        program.linear(wide, matrix, out, None, "store", lora=site)  # a site has one product
    fitting = _native.LoraPair("f32", *arrays())
    for slot, pair in (
        (2, fitting),
        (-1, fitting),
        (0, _native.LoraPair("f32", *arrays(rank=17))),
        (0, _native.LoraPair("f32", *arrays(columns=7))),
        (0, _native.LoraPair("f32", *arrays(rows=21))),
    ):
        with pytest.raises(BAD):
            program.set_adapter(site, slot, pair)
    program.set_adapter(site, 1, fitting)


@pytest.mark.parametrize("adapters", [[3], [-2], [0, 0], [], np.zeros(1, np.int64)])
def test_slots_that_do_not_exist(adapters):
    bench = Bench(_native.isas()[0], 4)
    bench.program.reserve_adapters(3)
    source = bench.give(normal(4, 8))
    bench.program.select(source, bench.program.add_output(8))
    tokens = np.arange(4, dtype=np.int32)
    slots = adapters if isinstance(adapters, np.ndarray) else np.asarray(adapters, np.int32)
    starts, table = np.asarray([0, 4], np.int32), np.zeros((1, 1), np.int32)
    out = np.empty((4, 8), np.float32)
    with pytest.raises(BAD):
        bench.program.run(tokens, tokens, starts, table, tokens, out, slots)

"""Calls that do not fit raise, and never touch memory that is not theirs."""

import numpy as np
import pytest
from harness import float_matrix, make_weight, normal, random_codes
from hypothesis import given, settings
from hypothesis import strategies as st

from hasten import _native
from hasten.kernels.rope import rope_tables

ISA = _native.isas()[0]
BAD = (ValueError, TypeError)


def new_program(threads=1, isa=ISA, tokens=8, selected=8, context=64):
    return _native.Program(threads, isa, tokens, selected, context)


def int32(*values):
    return np.asarray(values, np.int32)


@pytest.mark.parametrize(
    "arguments",
    [
        ("f64", 4, 4),
        ("f32", 0, 4),
        ("f32", 4, 0),
        ("f32", -1, 4),
        ("f32", 1 << 30, 1 << 30),
        ("f32", 4, 4, 32),
        ("int8", 4, 64),
        ("int8", 4, 64, 16),
        ("int8", 4, 64, 48),
        ("int8", 4, 64, 128),
        ("int8", 4, 64, -32),
        ("f32", 4, 4, 0, True),
        ("f32", 4.5, 4),
        ("f32", 2**40, 4),
    ],
)
def test_matrices(arguments):
    with pytest.raises(BAD):
        _native.Matrix(*arguments)


@pytest.mark.parametrize("rows", [(-1, 0), (0, 40), (0,), (0, 1, 2), (2**31 - 1, 0)])
def test_rows_out_of_range(rows):
    with pytest.raises(BAD):
        _native.Matrix("f32", 40, 8).place_float(normal(2, 8), int32(*rows))
    quantized = random_codes("int8", 2, 64, 32, False, 0)
    with pytest.raises(BAD):
        _native.Matrix("int8", 40, 64, 32).place_int8(
            quantized.codes, quantized.scales.view(np.uint16), None, int32(*rows)
        )


@pytest.mark.parametrize(
    "values",
    [
        normal(2, 7),
        normal(2, 9),
        normal(2),
        normal(2, 8, 1),
        normal(2, 8).astype(np.float64),
        normal(8, 2).T,
        normal(4, 8)[::2],
        normal(2, 16)[:, :8],
        None,
        "values",
    ],
)
def test_float_arrays_that_do_not_fit(values):
    with pytest.raises(BAD):
        _native.Matrix("f32", 40, 8).place_float(values, int32(0, 1))


def test_target_rows_of_another_type():
    for rows in (np.array([0, 1]), np.array([0.0, 1.0], np.float32), int32(0, 9, 1, 9)[::2]):
        with pytest.raises(BAD):
            _native.Matrix("f32", 40, 8).place_float(normal(2, 8), rows)


def test_codes_that_do_not_fit():
    quantized = random_codes("int4", 2, 64, 32, True, 0)
    codes, scales, low = (
        quantized.codes,
        quantized.scales.view(np.uint16),
        quantized.minimums.view(np.uint16),
    )
    with_minimum = _native.Matrix("int4", 40, 64, 32, True)
    without = _native.Matrix("int4", 40, 64, 32)
    wide = _native.Matrix("int8", 40, 64, 32, True)
    rows = int32(0, 1)
    calls = [
        lambda: with_minimum.place_int4(codes, scales, None, rows),
        lambda: without.place_int4(codes, scales, low, rows),
        lambda: with_minimum.place_int4(codes[:, :31].copy(), scales, low, rows),
        lambda: with_minimum.place_int4(codes, scales[:, :1].copy(), low, rows),
        lambda: with_minimum.place_int4(codes, scales, low[:1], rows),
        lambda: with_minimum.place_int4(codes, scales[:1], low, rows),
        lambda: with_minimum.place_int4(codes.view(np.int8), scales, low, rows),
        lambda: with_minimum.place_int8(codes.view(np.int8), scales, low, rows),
        lambda: wide.place_int8(codes.view(np.int8), scales, low, rows),
        lambda: wide.place_int8(np.zeros((2, 64), np.int8), scales, None, rows),
        lambda: wide.place_int8(np.zeros((2, 64), np.int8), scales, low[:1], rows),
        lambda: with_minimum.place_float(normal(2, 64), rows),
        lambda: with_minimum.place_bf16(np.zeros((2, 64), np.uint16), rows),
        lambda: _native.Matrix("f32", 40, 64).place_bf16(np.zeros((2, 64), np.uint16), rows),
    ]
    for call in calls:
        with pytest.raises(BAD):
            call()


@pytest.mark.parametrize(
    "arguments",
    [
        ("f16", 1, 1, 1, 2),
        ("f32", 0, 1, 1, 2),
        ("f32", 1, 0, 1, 2),
        ("f32", 1, 1, 0, 2),
        ("f32", 1, 1, 1, 0),
        ("f32", 1, 1, 1, 513),
        ("f32", 2**31 - 1, 2**31 - 1, 2**31 - 1, 512),
    ],
)
def test_caches(arguments):
    with pytest.raises(BAD):
        _native.KvCache(*arguments)


@pytest.mark.parametrize(
    "changes",
    [
        {"threads": 0},
        {"threads": -1},
        {"threads": 10**6},
        {"isa": "sse"},
        {"tokens": 0},
        {"selected": 0},
        {"context": 0},
        {"context": 2**31 - 1},
        {"tokens": 2**31 - 1},
    ],
)
def test_programs(changes):
    with pytest.raises(BAD):
        new_program(**changes)


def test_buffers():
    p = new_program()
    calls = [
        lambda: p.add_buffer(0),
        lambda: p.add_buffer(-1),
        lambda: p.add_buffer(2**31 - 1),
        lambda: p.add_quantized_buffer(0, 32),
        lambda: p.add_quantized_buffer(64, 16),
        lambda: p.add_output(0),
        lambda: p.add_rope(normal(4, 2), normal(4, 3)),
        lambda: p.add_rope(normal(0, 2), normal(0, 2)),
    ]
    for call in calls:
        with pytest.raises(BAD):
            call()


@pytest.fixture
def parts():
    """A program with a buffer of each kind, a cache and rotary tables."""
    p = new_program()
    p.set_cache(_native.KvCache("f32", 1, 2, 2, 16))
    p.add_rope(*rope_tables(np.ones(8, np.float32), 64))
    return p, {
        "wide": p.add_buffer(64),
        "other": p.add_buffer(64),
        "narrow": p.add_buffer(32),
        "joint": p.add_buffer(128),
        "codes": p.add_quantized_buffer(64, 32),
        "chosen": p.add_buffer(64, selected=True),
        "out": p.add_output(64),
    }


def op_calls(p, b):
    """Calls whose buffers do not fit, by name."""
    weight, square = normal(64), make_weight("f32", 64, 64).matrix
    integer = make_weight("int8", 64, 64, group=32).matrix
    return {
        "embed into codes": lambda: p.embed(square, b["codes"]),
        "embed of another width": lambda: p.embed(square, b["narrow"]),
        "embed into selected rows": lambda: p.embed(square, b["chosen"]),
        "embed into the output": lambda: p.embed(square, b["out"]),
        "no such buffer": lambda: p.embed(square, 99),
        "negative buffer": lambda: p.embed(square, -1),
        "no matrix": lambda: p.embed(None, b["wide"]),
        "norm of codes": lambda: p.rms_norm(b["codes"], weight, 1e-5, b["wide"]),
        "norm of another width": lambda: p.rms_norm(b["narrow"], weight, 1e-5, b["wide"]),
        "norm of a part": lambda: p.rms_norm(b["wide"], normal(60), 1e-5, b["other"]),
        "norm of nothing": lambda: p.rms_norm(b["wide"], normal(0), 1e-5, b["other"]),
        "norm to another width": lambda: p.rms_norm(b["wide"], weight, 1e-5, b["narrow"]),
        "norm to selected rows": lambda: p.rms_norm(b["wide"], weight, 1e-5, b["chosen"]),
        "norm weight of float64": lambda: p.rms_norm(b["wide"], weight.astype(float), 0, b["wide"]),
        "quantize to float": lambda: p.quantize(b["wide"], b["other"]),
        "quantize another width": lambda: p.quantize(b["narrow"], b["codes"]),
        "quantize with a short order": lambda: p.quantize(b["wide"], b["codes"], int32(0)),
        "quantize with a column out of range": lambda: p.quantize(
            b["wide"], b["codes"], np.full(64, 64, np.int32)
        ),
        "quantize with a negative column": lambda: p.quantize(
            b["wide"], b["codes"], np.full(64, -1, np.int32)
        ),
        "quantize selected rows": lambda: p.quantize(b["chosen"], b["codes"]),
        "float product of codes": lambda: p.linear(b["codes"], square, b["wide"]),
        "integer product of floats": lambda: p.linear(b["wide"], integer, b["other"]),
        "product of another width": lambda: p.linear(b["narrow"], square, b["wide"]),
        "product to another width": lambda: p.linear(b["wide"], square, b["narrow"]),
        "product to selected rows": lambda: p.linear(b["wide"], square, b["chosen"]),
        "product to codes": lambda: p.linear(b["wide"], square, b["codes"]),
        "short bias": lambda: p.linear(b["wide"], square, b["other"], weight[:63]),
        "unknown epilogue": lambda: p.linear(b["wide"], square, b["other"], None, "relu"),
        "gated width": lambda: p.linear(b["wide"], square, b["other"], None, "silu_mul"),
        "silu of codes": lambda: p.silu_mul(b["codes"], b["wide"], b["other"]),
        "silu of widths": lambda: p.silu_mul(b["wide"], b["narrow"], b["other"]),
        "silu of selected rows": lambda: p.silu_mul(b["wide"], b["chosen"], b["other"]),
        "add to codes": lambda: p.add(b["wide"], b["other"], b["codes"]),
        "add codes": lambda: p.add(b["codes"], b["other"], b["wide"]),
        "add selected rows": lambda: p.add(b["chosen"], b["other"], b["wide"]),
        "rope of codes": lambda: p.rope(b["codes"], 4, b["wide"]),
        "rope heads": lambda: p.rope(b["wide"], 3, b["other"]),
        "rope no heads": lambda: p.rope(b["wide"], 0, b["other"]),
        "rope of small heads": lambda: p.rope(b["wide"], 16, b["other"]),
        "rope to selected rows": lambda: p.rope(b["wide"], 4, b["chosen"]),
        "kv layer": lambda: p.kv_write(b["narrow"], b["narrow"], 1),
        "kv negative layer": lambda: p.kv_write(b["narrow"], b["narrow"], -1),
        "kv width": lambda: p.kv_write(b["wide"], b["narrow"], 0),
        "joint width": lambda: p.rope_kv_write(b["wide"], 4, 0, b["wide"]),
        "joint heads": lambda: p.rope_kv_write(b["joint"], -1, 0, b["wide"]),
        "joint many heads": lambda: p.rope_kv_write(b["joint"], 2**31 - 1, 0, b["wide"]),
        "attention heads": lambda: p.attention(b["wide"], 3, 0, b["other"]),
        "attention of no heads": lambda: p.attention(b["wide"], 0, 0, b["other"]),
        "attention window": lambda: p.attention(b["wide"], 4, 0, b["other"], -1),
        "attention layer": lambda: p.attention(b["wide"], 4, 7, b["other"]),
        "attention of selected rows": lambda: p.attention(b["chosen"], 4, 0, b["other"]),
        "select selected rows": lambda: p.select(b["chosen"], b["out"]),
        "select codes": lambda: p.select(b["codes"], b["out"]),
        "select to all rows": lambda: p.select(b["wide"], b["other"]),
        "a second output": lambda: p.add_output(64),
        "a second cache": lambda: p.set_cache(_native.KvCache("f32", 1, 1, 2, 16)),
        "rope without tables": lambda: p.rope(b["wide"], 4, b["other"], 1),
        "rope of negative tables": lambda: p.rope(b["wide"], 4, b["other"], -1),
        "joint norm of another width": lambda: p.rope_kv_write(
            b["joint"], 4, 0, b["wide"], 0, normal(15)
        ),
        "scale of codes": lambda: p.scale(b["codes"], 2, b["wide"]),
        "scale to another width": lambda: p.scale(b["wide"], 2, b["narrow"]),
        "scale of selected rows": lambda: p.scale(b["chosen"], 2, b["wide"]),
        "softcap of zero": lambda: p.softcap(b["wide"], 0, b["other"]),
        "softcap of nan": lambda: p.softcap(b["wide"], float("nan"), b["other"]),
        "softcap of selected rows": lambda: p.softcap(b["chosen"], 2, b["wide"]),
        "gelu of widths": lambda: p.gelu_mul(b["wide"], b["narrow"], b["other"]),
        "attention cap": lambda: p.attention(b["wide"], 4, 0, b["other"], cap=-1),
    }


NAMES = list(op_calls(None, dict.fromkeys(
    ("wide", "other", "narrow", "joint", "codes", "chosen", "out"), 0)))  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_ops_whose_buffers_do_not_fit(parts, name):
    with pytest.raises(BAD):
        op_calls(*parts)[name]()


def test_ops_without_cache_or_tables():
    p = new_program()
    wide = p.add_buffer(64)
    for call in (
        lambda: p.kv_write(wide, wide, 0),
        lambda: p.attention(wide, 4, 0, wide),
        lambda: p.rope(wide, 4, wide),
        lambda: p.rope_kv_write(wide, 4, 0, wide),
    ):
        with pytest.raises(BAD):
            call()


VOCABULARY, CONTEXT, BLOCKS = 10, 64, 3


@pytest.fixture(scope="module")
def attention_program():
    """Embedding, KV write and attention over 3 blocks, 8 tokens a run, 64 positions."""
    p = new_program(tokens=8, selected=4, context=CONTEXT)
    p.set_cache(_native.KvCache("f32", 1, BLOCKS, 1, 4))
    p.add_rope(*rope_tables(np.ones(2, np.float32), 40))
    x, out = p.add_buffer(4), p.add_buffer(4)
    p.embed(float_matrix(normal(VOCABULARY, 4)), x)
    p.rope(x, 1, x)
    p.kv_write(x, x, 0)
    p.attention(x, 1, 0, out)
    p.select(out, p.add_output(4))
    return p


GOOD = {
    "tokens": int32(1, 2, 3, 4),
    "positions": int32(0, 1, 0, 1),
    "starts": int32(0, 2, 4),
    "tables": int32(0, -1, 1, -1).reshape(2, 2),
    "rows": int32(1, 3),
    "output": np.zeros((2, 4), np.float32),
}


def run(program, **changes):
    program.run(*(GOOD | changes).values())


def test_the_good_batch_runs(attention_program):
    run(attention_program)


def test_a_program_that_ran_takes_no_more(attention_program):
    run(attention_program)
    for call in (
        lambda: attention_program.add(0, 0, 0),
        lambda: attention_program.add_buffer(4),
        lambda: attention_program.add_quantized_buffer(32, 32),
    ):
        with pytest.raises(BAD):
            call()


@pytest.mark.parametrize(
    "changes",
    [
        {"tokens": int32(1, 2, 3, -1)},
        {"tokens": int32(1, 2, 3, VOCABULARY)},
        {"tokens": int32(1, 2, 3)},
        {"tokens": int32()},
        {"tokens": np.array([1, 2, 3, 4])},
        {"tokens": int32(1, 0, 2, 0, 3, 0, 4, 0)[::2]},
        {"tokens": None},
        {"positions": int32(0, 1, -1, 0)},
        {"positions": int32(0, 1, 39, 40)},
        {"positions": int32(0, 1, 31, 32)},
        {"positions": int32(0, 2, 0, 1)},
        {"positions": int32(1, 0, 0, 1)},
        {"positions": int32(0, 1, 2**31 - 2, 2**31 - 1)},
        {"starts": int32(0, 4)},
        {"starts": int32(0, 0, 4)},
        {"starts": int32(0, 2, 5)},
        {"starts": int32(0, 2, 3)},
        {"starts": int32(1, 2, 4)},
        {"starts": int32(0, 10**9, 4)},
        {"starts": int32(0, -5, 4)},
        {"starts": int32()},
        {"tables": int32(0, BLOCKS).reshape(2, 1)},
        {"tables": int32(0, -1).reshape(2, 1)},
        {"tables": int32(0, 1)},
        {"tables": int32().reshape(2, 0)},
        {"tables": int32(0, 1, 2).reshape(3, 1)},
        {"rows": int32(1, 4)},
        {"rows": int32(-1, 1)},
        {"rows": int32(1)},
        {"rows": int32(0, 0, 1, 1, 2), "output": np.zeros((5, 4), np.float32)},
        {"output": np.zeros((2, 5), np.float32)},
        {"output": np.zeros((2, 4))},
        {"output": np.zeros((4, 2), np.float32).T},
        {"output": None},
    ],
)
def test_batches_that_do_not_fit(attention_program, changes):
    with pytest.raises(BAD):
        run(attention_program, **changes)


def test_more_tokens_than_the_program_holds(attention_program):
    with pytest.raises(BAD):
        run(
            attention_program,
            tokens=np.ones(9, np.int32),
            positions=np.arange(9, dtype=np.int32),
            starts=int32(0, 9),
            tables=int32(0).reshape(1, 1),
        )


def test_read_only_output(attention_program):
    output = np.zeros((2, 4), np.float32)
    output.flags.writeable = False
    with pytest.raises(BAD):
        run(attention_program, output=output)


small = st.integers(-2, 12)
wild = st.one_of(small, st.integers(-(2**31), 2**31 - 1))


def arrays(elements, **size):
    return st.lists(elements, **size).map(lambda values: np.asarray(values, np.int32))


@settings(deadline=None, max_examples=300)
@given(
    data=st.data(), sequences=st.integers(0, 3), count=st.integers(0, 9), width=st.integers(0, 3)
)
def test_any_batch_runs_or_is_refused(attention_program, data, sequences, count, width):
    numbers = wild if data.draw(st.booleans()) else small
    positions = data.draw(
        st.one_of(
            arrays(numbers, min_size=count, max_size=count),
            st.integers(0, 45).map(lambda first: np.arange(first, first + count, dtype=np.int32)),
        )
    )
    rows = data.draw(arrays(numbers, max_size=5))
    output = np.full((len(rows), 4), np.nan, np.float32)
    batch = {
        "tokens": data.draw(arrays(st.integers(0, 10), min_size=count, max_size=count)),
        "positions": positions,
        "starts": data.draw(
            st.one_of(
                arrays(numbers, min_size=sequences + 1, max_size=sequences + 1),
                st.just(np.linspace(0, count, sequences + 1).astype(np.int32)),
            )
        ),
        "tables": data.draw(
            arrays(numbers, min_size=sequences * width, max_size=sequences * width)
        ).reshape(sequences, width),
        "rows": rows,
        "output": output,
    }
    try:
        run(attention_program, **batch)
    except ValueError:
        assert np.isnan(output).all()
    else:
        assert np.isfinite(output).all()


def test_probes_refuse_silly_sizes():
    for call in (
        lambda: _native.stream_bandwidth(0),
        lambda: _native.stream_bandwidth(1, 0),
        lambda: _native.int8_rate(0, ISA),
        lambda: _native.fp32_rate(1, "none"),
    ):
        with pytest.raises(BAD):
            call()

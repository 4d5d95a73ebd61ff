"""Names of ops, and the least that they can take."""

from dataclasses import replace

import numpy as np
import pytest

from hasten.generation.executor import make_executor
from hasten.generation.op_times import PhaseTimes
from hasten.machine import Rates
from hasten.measure.profile.floors import Costs, Work
from hasten.measure.profile.ops import name_ops
from hasten.models import load_model
from hasten.models.ops import Attention
from hasten.types import Batch, EngineOptions


@pytest.fixture(scope="module")
def model(tiny_model):
    return load_model(str(tiny_model))


def named(model, **options):
    executor = make_executor(model, EngineOptions(threads=1, **options), 4, 64)
    return executor, name_ops(executor.graph, executor.formats)


def test_fused_ops_name_what_they_hold(model):
    _, ops = named(model, weights="int8:32")
    config = model.config
    first = [one for one in ops if one.layer == 0]
    width = config.num_heads * config.head_dim
    joint = width + 2 * config.num_kv_heads * config.head_dim
    assert [(one.kind, one.label) for one in first] == [
        ("rms_norm", "input_layernorm, quantize"),
        ("linear", "q_proj + k_proj + v_proj"),
        ("rope_kv_write", "rope, kv write"),
        ("attention", "attention"),
        ("quantize", "quantize"),
        ("linear", "o_proj, add residual"),
        ("rms_norm", "post_attention_layernorm, quantize"),
        ("linear", "gate_proj + up_proj, silu_mul"),
        ("quantize", "quantize"),
        ("linear", "down_proj, add residual"),
    ]
    assert first[1].shape == f"{joint}x{config.hidden_size} int8:32"
    assert first[3].shape == f"{config.num_heads} heads of {config.head_dim}"


def test_ops_outside_of_layers(model):
    _, ops = named(model, weights="int8:32")
    outside = [one for one in ops if one.layer is None]
    assert outside[0].kind == "embed"
    assert [one.kind for one in outside[1:]] == ["select", "rms_norm", "linear"]
    assert outside[-1].selected
    assert not outside[0].selected
    assert {one.layer for one in ops} == {None, *range(model.config.num_layers)}


@pytest.mark.parametrize("executor", ["native", "reference", "torch"])
def test_unfused_ops_keep_their_layers(model, executor):
    _, ops = named(model, fuse=False, executor=executor)
    layers = [one.layer for one in ops if one.layer is not None]
    assert layers == sorted(layers)
    kinds = {one.kind for one in ops if one.layer == 1}
    assert {"rope", "kv_write", "silu_mul", "add", "linear", "attention"} <= kinds


def decode_batch(*positions):
    """One token of sequences at these positions."""
    count = len(positions)
    starts = np.arange(count + 1, dtype=np.int32)
    tables = np.zeros((count, 1), np.int32)
    tokens = np.zeros(count, np.int32)
    return Batch(tokens, np.asarray(positions, np.int32), starts, tables, starts[:-1])


def test_work_of_decoding(model):
    executor, ops = named(model, weights="int8:32", kv="bf16")
    times = PhaseTimes(len(ops))
    times.add(decode_batch(9, 19), 1.0)
    times.add(decode_batch(10, 20), 1.0)
    config = model.config
    costs = Costs(config, executor.formats, "bf16")
    works = {one.label: costs.work(one, times) for one in ops if one.layer in (0, None)}
    down = works["down_proj, add residual"]
    rows, columns = config.hidden_size, config.intermediate_size
    padded = -(-columns // 32) * 32
    # Each step reads the codes and a scale of 2 bytes for each 32 of them once.
    assert down.bytes == 2 * rows * (padded + 2 * padded // 32)
    assert down.operations == 2 * rows * columns * 4
    assert down.integer
    attention = works["attention"]
    seen = 10 + 20 + 11 + 21
    assert attention.bytes == seen * 2 * config.num_kv_heads * config.head_dim * 2
    assert attention.operations == 4 * config.num_heads * config.head_dim * seen
    assert not attention.integer
    assert works["input_layernorm, quantize"] is None


def test_a_window_limits_what_is_seen(model):
    executor, ops = named(model, weights="f32", kv="f32")
    times = PhaseTimes(len(ops))
    times.add(decode_batch(9), 1.0)
    costs = Costs(model.config, executor.formats, "f32")
    whole = next(one for one in ops if isinstance(one.op, Attention))
    narrow = replace(whole, op=replace(whole.op, window=4))
    assert costs.work(narrow, times).bytes == costs.work(whole, times).bytes * 4 / 10
    assert costs.work(narrow, times).operations == costs.work(whole, times).operations * 4 / 10


def test_the_bytes_of_all_products_are_those_of_the_packed_weights(model):
    executor, ops = named(model, weights="int8:32")
    times = PhaseTimes(len(ops))
    times.add(decode_batch(0), 1.0)
    costs = Costs(model.config, executor.formats, "bf16")
    total = sum(costs.work(one, times).bytes for one in ops if one.kind == "linear")
    tied = model.config.tie_embeddings
    embedding = model.weights["model.embed_tokens.weight"].shape
    unread = 0 if tied else embedding[0] * (-(-embedding[1] // 32) * 34)
    # Packing pads rows to whole panels, which are read, too, but not counted: a floor.
    assert total <= executor.memory["weights"]
    assert total >= 0.5 * (executor.memory["weights"] - unread)


def test_floors():
    rates = Rates(threads=1, isa="scalar", bandwidth=10.0, int8=100.0, fp32=50.0)
    assert Work(20.0, 50.0, integer=True).floor(rates) == 2.0
    assert Work(20.0, 500.0, integer=True).floor(rates) == 5.0
    assert Work(20.0, 500.0, integer=False).floor(rates) == 10.0

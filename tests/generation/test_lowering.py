"""Which ops are fused, and which must not be."""

from collections import Counter, defaultdict

import pytest

from hasten.generation.lowering import lower
from hasten.models import architectures
from hasten.models.config import ModelConfig
from hasten.models.graph import Graph, GraphBuilder
from hasten.models.ops import (
    Add,
    Attention,
    GeluMul,
    HeadNorm,
    KvWrite,
    Linear,
    Quantize,
    RmsNorm,
    Rope,
    RopeKvWrite,
    Scale,
    Select,
    SiluMul,
)
from hasten.models.rope import Rotation

WIDTH = 64
ROTATION = Rotation(16, 1e4)


class Groups(dict):
    """Activation groups: every matrix the same."""

    def __init__(self, group):
        super().__init__()
        self._group = group

    def __missing__(self, name):
        return self._group


def lowered(graph, formats=None, group=0, fuse=True):
    formats = defaultdict(lambda: "f32", formats or {})
    return lower(graph, formats, Groups(group), fuse)


def kinds(graph):
    return Counter(type(op) for op in graph.ops)


def of_type(graph, kind):
    return [op for op in graph.ops if isinstance(op, kind)]


def attention_block(g, x, *, query_rope=True, bias=False):
    """QKV, rope, KV write, attention; returns its output."""
    q, k, v = (
        g.linear(x, name, WIDTH, bias=f"{name}.bias" if bias else None) for name in ("q", "k", "v")
    )
    query = g.rope(q, 4, ROTATION) if query_rope else q
    g.kv_write(g.rope(k, 4, ROTATION), v, 0)
    return g.attention(query, 4, 0)


def start():
    g = GraphBuilder()
    return g, g.embed("embed", WIDTH)


def check_runs_in_order(graph):
    """Every value is written before it is read, and once."""
    made = set()
    for op in graph.ops:
        assert made.issuperset(graph.inputs(op)), op
        if not isinstance(op, KvWrite):
            assert op.out not in made, op
            made.add(op.out)
    assert graph.output in made


def test_qkv_become_one_product():
    g, x = start()
    graph = lowered(g.finish(attention_block(g, x, bias=True)))
    check_runs_in_order(graph)
    (product,) = of_type(graph, Linear)
    assert product.weights == ("q", "k", "v")
    assert product.biases == ("q.bias", "k.bias", "v.bias")
    assert product.rows == (WIDTH,) * 3
    assert kinds(graph)[RopeKvWrite] == 1
    assert kinds(graph)[Rope] == kinds(graph)[KvWrite] == 0


@pytest.mark.parametrize("other", ["q", "k", "v"])
def test_formats_that_differ_keep_qkv_apart(other):
    g, x = start()
    graph = g.finish(attention_block(g, x))
    assert lowered(graph, {other: "int8:32"}).ops == graph.ops


def test_qkv_of_different_sources_stay_apart():
    g, x = start()
    y = g.rms_norm(x, "norm", 1e-5)
    q, k, v = g.linear(x, "q", WIDTH), g.linear(x, "k", WIDTH), g.linear(y, "v", WIDTH)
    query = g.rope(q, 4, ROTATION)
    g.kv_write(g.rope(k, 4, ROTATION), v, 0)
    graph = g.finish(g.attention(query, 4, 0))
    assert lowered(graph).ops == graph.ops


def test_biases_on_some_keep_qkv_apart():
    g, x = start()
    q, k = g.linear(x, "q", WIDTH, bias="q.bias"), g.linear(x, "k", WIDTH)
    v = g.linear(x, "v", WIDTH)
    query = g.rope(q, 4, ROTATION)
    g.kv_write(g.rope(k, 4, ROTATION), v, 0)
    graph = g.finish(g.attention(query, 4, 0))
    assert lowered(graph).ops == graph.ops


def test_qkv_without_rope_stay_apart():
    g, x = start()
    graph = g.finish(attention_block(g, x, query_rope=False))
    assert lowered(graph).ops == graph.ops


def test_a_projection_that_is_read_twice_stays():
    g, x = start()
    q, k, v = (g.linear(x, name, WIDTH) for name in ("q", "k", "v"))
    query = g.rope(q, 4, ROTATION)
    g.kv_write(g.rope(k, 4, ROTATION), v, 0)
    y = g.attention(query, 4, 0)
    graph = g.finish(g.add(y, v))
    assert lowered(graph).ops == graph.ops


def normed_block(g, x, *, eps=(1e-5, 1e-5), heads=(4, 4), share=False, rotation=ROTATION):
    """The same with a norm of queries and keys."""
    q, k, v = (g.linear(x, name, WIDTH) for name in ("q", "k", "v"))
    q = g.rms_norm(q, "q_norm", eps[0], heads=heads[0], offset=1.0)
    k = g.rms_norm(k, "k_norm", eps[1], heads=heads[1])
    query = g.rope(q, 4, ROTATION)
    g.kv_write(g.rope(k, 4, rotation), v, 0)
    y = g.attention(query, 4, 0)
    return g.add(y, k) if share else y


def test_norms_of_heads_join_rope_and_write():
    g, x = start()
    graph = lowered(g.finish(normed_block(g, x)))
    check_runs_in_order(graph)
    (fused,) = of_type(graph, RopeKvWrite)
    assert fused.query_norm == HeadNorm("q_norm", 1e-5, 1.0)
    assert fused.key_norm == HeadNorm("k_norm", 1e-5, 0.0)
    assert len(of_type(graph, Linear)) == 1
    assert kinds(graph)[RmsNorm] == 0


@pytest.mark.parametrize(
    "changes",
    [
        {"eps": (1e-5, 1e-6)},
        {"heads": (1, 1)},
        {"share": True},
        {"rotation": Rotation(16, 1e6)},
    ],
    ids=str,
)
def test_norms_that_do_not_fit_stay_apart(changes):
    g, x = start()
    graph = g.finish(normed_block(g, x, **changes))
    assert lowered(graph).ops == graph.ops


def gate_block(g, x, *, bias=(None, None), gate=GraphBuilder.silu_mul):
    gated = g.linear(x, "gate", 52, bias=bias[0])
    return gated, gate(g, gated, g.linear(x, "up", 52, bias=bias[1]))


@pytest.mark.parametrize("gate", ["silu_mul", "gelu_mul"])
def test_gate_and_up_become_one_product(gate):
    g, x = start()
    graph = lowered(
        g.finish(gate_block(g, x, bias=("b", "c"), gate=getattr(GraphBuilder, gate))[1])
    )
    check_runs_in_order(graph)
    (product,) = of_type(graph, Linear)
    assert (product.weights, product.epilogue) == (("gate", "up"), gate)
    assert product.biases == ("b", "c")
    assert product.width == 52
    assert graph.output == product.out
    assert kinds(graph)[SiluMul] == kinds(graph)[GeluMul] == 0


@pytest.mark.parametrize("case", ["format", "bias", "shared"])
def test_gate_and_up_stay_apart(case):
    g, x = start()
    gate, y = gate_block(g, x, bias=("b", None) if case == "bias" else (None, None))
    graph = g.finish(g.add(y, gate) if case == "shared" else y)
    formats = {"up": "bf16"} if case == "format" else {}
    assert lowered(graph, formats).ops == graph.ops


def test_the_residual_is_added_by_the_product():
    g, x = start()
    graph = lowered(g.finish(g.add(x, g.linear(x, "w", WIDTH))))
    check_runs_in_order(graph)
    (product,) = of_type(graph, Linear)
    assert (product.epilogue, product.residual, product.out) == ("add", x, graph.output)
    assert kinds(graph)[Add] == 0


@pytest.mark.parametrize(
    "case", ["product read later", "residual read later", "gated", "no product"]
)
def test_the_residual_is_added_apart(case):
    g, x = start()
    y = g.linear(x, "w", WIDTH)
    if case == "product read later":
        graph = g.finish(g.add(g.add(x, y), y))
    elif case == "residual read later":
        graph = g.finish(g.add(g.add(x, y), x))
    elif case == "gated":
        gated = g.silu_mul(y, g.linear(x, "up", WIDTH))
        graph = g.finish(g.add(x, gated))
    else:
        graph = g.finish(g.add(x, g.rms_norm(x, "norm", 1e-5)))
    assert kinds(lowered(graph))[Add] == kinds(graph)[Add]


def test_a_factor_joins_the_product_before_it():
    g, x = start()
    graph = lowered(g.finish(g.add(x, g.scale(g.linear(x, "w", WIDTH), 0.5))))
    check_runs_in_order(graph)
    (product,) = of_type(graph, Linear)
    assert (product.epilogue, product.residual, product.scale) == ("add", x, 0.5)
    assert len(graph.ops) == 2


@pytest.mark.parametrize("case", ["embedding", "product read twice", "gated"])
def test_factors_stay_apart(case):
    g, x = start()
    y = g.linear(x, "w", WIDTH)
    if case == "embedding":
        graph = g.finish(g.scale(x, 0.5))
    elif case == "product read twice":
        graph = g.finish(g.add(g.scale(y, 0.5), y))
    else:
        graph = g.finish(g.scale(gate_block(g, x)[1], 0.5))
    assert kinds(lowered(graph))[Scale] == 1
    check_runs_in_order(lowered(graph))


def test_a_factor_of_one_is_no_op():
    g, x = start()
    assert g.scale(x, 1.0) == x
    assert g.softcap(x, None) == x


def test_products_share_the_codes_of_their_source():
    g, x = start()
    a, b = g.linear(x, "a", WIDTH), g.linear(x, "b", WIDTH)
    graph = lowered(g.finish(g.silu_mul(a, b)), {"b": "other"}, group=32)
    check_runs_in_order(graph)
    (codes,) = of_type(graph, Quantize)
    assert {op.source for op in of_type(graph, Linear)} == {codes.out}


def test_groups_that_differ_need_codes_of_their_own():
    g, x = start()
    a, b = g.linear(x, "a", WIDTH), g.linear(x, "b", WIDTH)
    graph = g.finish(g.silu_mul(a, b))
    result = lower(graph, {"a": "int8:32", "b": "int8:64"}, {"a": 32, "b": 64}, fuse=True)
    assert [op.group for op in of_type(result, Quantize)] == [32, 64]


def test_orders_of_columns_that_differ_need_codes_of_their_own():
    g, x = start()
    y = g.rms_norm(x, "norm", 1e-5)
    a, b, c = (g.linear(y, name, WIDTH) for name in "abc")
    graph = g.finish(g.silu_mul(g.silu_mul(a, b), c))
    formats = dict.fromkeys("abc", "int4:32")
    result = lower(graph, formats, Groups(32), fuse=True, orders={"a": "a", "c": "a"})
    check_runs_in_order(result)
    first, second = of_type(result, Quantize)
    assert (first.order, second.order) == ("a", None)
    assert [op.source for op in of_type(result, Linear)] == [first.out, second.out, first.out]
    assert kinds(result)[RmsNorm] == 1  # its floats are read


def test_only_products_of_one_order_are_merged():
    g, x = start()
    graph = g.finish(g.silu_mul(g.linear(x, "a", WIDTH), g.linear(x, "b", WIDTH)))
    formats = dict.fromkeys("ab", "int4:32")
    for orders, products in (({"a": "a", "b": "a"}, 1), ({"a": "a", "b": "b"}, 2), ({"b": "b"}, 2)):
        result = lower(graph, formats, Groups(32), fuse=True, orders=orders)
        check_runs_in_order(result)
        assert kinds(result)[Linear] == products


def test_a_norm_before_another_order_keeps_its_floats():
    g, x = start()
    graph = g.finish(g.linear(g.rms_norm(x, "norm", 1e-5), "a", WIDTH))
    result = lower(graph, {"a": "int4:32"}, Groups(32), fuse=True, orders={"a": "a"})
    assert [type(op) for op in result.ops[1:]] == [RmsNorm, Quantize, Linear]


def test_float_products_take_no_codes():
    g, x = start()
    graph = lowered(g.finish(g.linear(x, "a", WIDTH)))
    assert kinds(graph)[Quantize] == 0


@pytest.mark.parametrize("shared", [False, True])
def test_a_norm_writes_codes_unless_its_floats_are_read(shared):
    g, x = start()
    y = g.rms_norm(x, "norm", 1e-5)
    z = g.linear(y, "w", WIDTH)
    graph = lowered(g.finish(g.silu_mul(y, z) if shared else z), group=64)
    check_runs_in_order(graph)
    (norm,) = of_type(graph, RmsNorm)
    assert norm.group == (0 if shared else 64)
    assert kinds(graph)[Quantize] == int(shared)


@pytest.mark.parametrize("biases", [False, True])
@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2", "qwen3", "phi3"])
def test_ops_of_a_lowered_model(family, biases):
    config = ModelConfig(
        family, 64, 96, 3, 4, 2, 16, 50, 128, 1e-5, 1e4, attention_bias=biases, mlp_bias=biases
    )
    graph = lowered(architectures.build(config), group=32)
    check_runs_in_order(graph)
    counts = kinds(graph)
    # In each layer: norm, QKV, rope + write, attention, quantise, o, norm, gate + up, quantise,
    # down; then select, norm and the output projection.
    assert counts[RmsNorm] == counts[Quantize] + 1 == 7
    assert counts[Linear] == 3 * 4 + 1
    assert counts[RopeKvWrite] == counts[Attention] == 3
    assert counts[Select] == 1
    assert counts[Add] == counts[SiluMul] == counts[Rope] == counts[KvWrite] == 0
    assert len(graph.ops) == 1 + 3 * 10 + 3


def test_ops_of_a_lowered_gemma():
    """Norms after the blocks stand between the products and the residual stream."""
    config = ModelConfig("gemma3_text", 64, 96, 3, 4, 2, 16, 50, 128, 1e-5, 1e4)
    graph = lowered(architectures.build(config), group=32)
    check_runs_in_order(graph)
    counts = kinds(graph)
    assert counts[RmsNorm] == 3 * 4 + 1
    assert counts[Linear] == 3 * 4 + 1
    assert counts[RopeKvWrite] == 3
    assert counts[Add] == 3 * 2
    assert counts[Scale] == counts[Select] == 1
    assert counts[GeluMul] == counts[Rope] == counts[KvWrite] == 0
    assert [op.group for op in of_type(graph, RmsNorm)] == [32, 0, 32, 0] * 3 + [32]


def test_ops_of_a_lowered_granite():
    config = ModelConfig(
        *("granite", 64, 96, 3, 4, 2, 16, 50, 128, 1e-5, 1e4),
        residual_multiplier=0.5,
        logits_scaling=2.0,
    )
    graph = lowered(architectures.build(config))
    check_runs_in_order(graph)
    assert kinds(graph)[Scale] == kinds(graph)[Add] == 0
    assert [op.scale for op in of_type(graph, Linear)] == [1, 0.5, 1, 0.5] * 3 + [0.5]


def test_unfused_graphs_keep_their_ops():
    config = ModelConfig("llama", 64, 96, 3, 4, 2, 16, 50, 128, 1e-5, 1e4)
    graph = architectures.build(config)
    assert lowered(graph, fuse=False).ops == graph.ops
    quantized = lowered(graph, group=32, fuse=False)
    check_runs_in_order(quantized)
    assert kinds(quantized) - Counter({Quantize: 13}) == kinds(graph)
    assert isinstance(quantized, Graph)

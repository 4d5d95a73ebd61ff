"""From a model's graph to the ops the native executor runs: the fusions, each a function.

Each fusion computes the same numbers in the same order as the ops it replaces, so a fused and an
unfused run agree bit for bit; a test holds that.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace

from hasten.kernels.lora import LORA_PANEL
from hasten.models.graph import Graph
from hasten.models.ops import (
    Add,
    Attention,
    Epilogue,
    Gelu,
    GeluMul,
    HeadNorm,
    KvWrite,
    LayerNorm,
    Linear,
    LoraShrink,
    Op,
    Quantize,
    RmsNorm,
    Rope,
    RopeKvWrite,
    Scale,
    SiluMul,
    SplitKvWrite,
    output_of,
)

__all__ = ["FUSIONS", "lower", "quantize_inputs"]


def lower(
    graph: Graph,
    formats: Mapping[str, str],
    groups: Mapping[str, int],
    fuse: bool,
    orders: Mapping[str, str] | None = None,
    lora_rank: int = 0,
) -> Graph:
    """The graph with its fusions applied and the quantisation of activations made visible.

    Args:
        graph: As an architecture file built it.
        formats: Format of each matrix by tensor name; only equal ones can share a product.
        groups: Columns of activations that share a scale, by tensor name; 0 for float matrices.
        fuse: False leaves the ops as they are.
        orders: For matrices whose codes have their columns in another order, the name of a matrix
            with that order.
        lora_rank: Highest rank of LoRA adapters; 0 makes a graph that takes none.
    """
    orders = orders or {}
    if orders:
        ordered = {name: f"{formats[name]} as {order}" for name, order in orders.items()}
        formats = {**formats, **ordered}
    if fuse:
        for fusion in FUSIONS:
            graph = fusion(graph, formats)
    graph = quantize_inputs(graph, groups, orders)
    graph = fuse_norm_quantize(graph) if fuse else graph
    return add_adapters(graph, lora_rank) if lora_rank else graph


def merge_projections(graph: Graph, formats: Mapping[str, str]) -> Graph:
    """QKV in one product, where what follows takes it whole: `RopeKvWrite`, `SplitKvWrite`."""
    producers = _producers(graph)
    uses = _uses(graph)
    queries = {op.layer: op.source for op in graph.ops if isinstance(op, Attention)}
    replaced: dict[str, Op] = {}
    dropped: set[str] = set()
    for op in graph.ops:
        if not isinstance(op, KvWrite):
            continue
        if op.layer not in queries:
            continue
        query = _prepared(producers[queries[op.layer]], producers, uses)
        key = _prepared(producers[op.key], producers, uses)
        parts = [query.projection, key.projection, producers[op.value]]
        if not _alike(query, key) or not _mergeable(parts, formats):
            continue
        if any(uses[output_of(part)] != 1 for part in parts):
            continue
        joint = _join([part for part in parts if isinstance(part, Linear)], f"qkv.{op.layer}")
        dropped |= {output_of(part) for part in parts[1:]} | query.names | key.names
        replaced[output_of(parts[0])] = joint
        if query.rope is not None:
            dropped.add(output_of(op))
            dropped.remove(query.rope.out)
            replaced[query.rope.out] = _rope_kv_write(joint, query, key, op.layer)
        else:
            source = queries[op.layer]
            replaced[output_of(op)] = SplitKvWrite(joint.out, source, op.layer, joint.rows[0])
    return _rewrite(graph, replaced, dropped)


@dataclass(frozen=True, slots=True)
class _Prepared:
    """Queries or keys on their way to the cache: a projection, perhaps norms of heads, and RoPE."""

    projection: Op
    norm: HeadNorm | None
    rope: Rope | None
    names: frozenset[str]
    """Of what norm and RoPE compute."""


def _prepared(last: Op, producers: Mapping[str, Op], uses: Counter[str]) -> _Prepared:
    if not isinstance(last, Rope):
        return _Prepared(last, None, None, frozenset())
    source = producers[last.source]
    if isinstance(source, RmsNorm) and source.heads == last.heads and uses[source.out] == 1:
        norm = HeadNorm(source.weight, source.eps, source.offset)
        names = frozenset({source.out, last.out})
        return _Prepared(producers[source.source], norm, last, names)
    return _Prepared(source, None, last, frozenset({last.out}))


def _alike(query: _Prepared, key: _Prepared) -> bool:
    """Whether one op can prepare both."""
    rotations = [None if one.rope is None else one.rope.rotation for one in (query, key)]
    eps = {one.norm.eps for one in (query, key) if one.norm is not None}
    return rotations[0] == rotations[1] and len(eps) < 2


def _rope_kv_write(joint: Linear, query: _Prepared, key: _Prepared, layer: int) -> RopeKvWrite:
    rope = query.rope
    if rope is None:
        raise TypeError(f"nothing turns the queries of layer {layer}")
    return RopeKvWrite(
        joint.out, rope.out, rope.heads, layer, rope.width, rope.rotation, query.norm, key.norm
    )


def fuse_gate(graph: Graph, formats: Mapping[str, str]) -> Graph:
    """Gate and up in one product whose epilogue is SwiGLU or GeGLU."""
    producers = _producers(graph)
    uses = _uses(graph)
    replaced: dict[str, Op] = {}
    dropped: set[str] = set()
    for op in graph.ops:
        if not isinstance(op, SiluMul | GeluMul):
            continue
        parts = [producers[op.gate], producers[op.up]]
        if not _mergeable(parts, formats) or any(uses[output_of(part)] != 1 for part in parts):
            continue
        joint = _join([part for part in parts if isinstance(part, Linear)], op.out)
        dropped |= {op.gate, op.up}
        epilogue: Epilogue = "silu_mul" if isinstance(op, SiluMul) else "gelu_mul"
        replaced[op.out] = replace(joint, epilogue=epilogue)
    return _rewrite(graph, replaced, dropped)


def fuse_map(graph: Graph, _formats: Mapping[str, str]) -> Graph:
    """GELU or a factor as part of the product before it."""
    producers = _producers(graph)
    uses = _uses(graph)
    replaced: dict[str, Op] = {}
    dropped: set[str] = set()
    for op in graph.ops:
        if not isinstance(op, Gelu | Scale):
            continue
        product = producers[op.source]
        if isinstance(product, Linear) and product.epilogue == "store" and uses[product.out] == 1:
            dropped.add(product.out)
            joint = replace(product, out=op.out)
            if isinstance(op, Scale):
                replaced[op.out] = replace(joint, scale=op.factor)
            else:
                replaced[op.out] = replace(joint, epilogue="gelu_tanh" if op.tanh else "gelu")
    return _rewrite(graph, replaced, dropped)


def fuse_residual(graph: Graph, _formats: Mapping[str, str]) -> Graph:
    """The residual addition as the epilogue of the product before it, in place."""
    producers = _producers(graph)
    uses = _uses(graph)
    remaining = Counter(uses)
    replaced: dict[str, Op] = {}
    dropped: set[str] = set()
    for op in graph.ops:
        for name in graph.inputs(op):
            remaining[name] -= 1
        if not isinstance(op, Add):
            continue
        product = producers[op.b]
        if not isinstance(product, Linear) or product.epilogue != "store" or uses[op.b] != 1:
            continue
        if remaining[op.a]:  # it is read afterwards, and the sum would have overwritten it
            continue
        dropped.add(op.b)
        replaced[op.out] = replace(product, out=op.out, epilogue="add", residual=op.a)
    return _rewrite(graph, replaced, dropped)


def quantize_inputs(graph: Graph, groups: Mapping[str, int], orders: Mapping[str, str]) -> Graph:
    """Puts a `Quantize` before the products with integer weights; products share it."""
    ops: list[Op] = []
    made: dict[tuple[str, int, str | None], str] = {}
    for op in graph.ops:
        group = groups[op.weights[0]] if isinstance(op, Linear) else 0
        if not isinstance(op, Linear) or group == 0:
            ops.append(op)
            continue
        order = orders.get(op.weights[0])
        key = (op.source, group, order)
        if key not in made:
            made[key] = f"{op.source}.int8:{group}" + (f" as {order}" if order else "")
            ops.append(Quantize(op.source, made[key], op.columns, group, order))
        ops.append(replace(op, source=made[key]))
    return Graph(tuple(ops), graph.output)


def fuse_norm_quantize(graph: Graph) -> Graph:
    """A norm that only feeds one quantisation writes its int8 codes at once."""
    producers = _producers(graph)
    uses = _uses(graph)
    replaced: dict[str, Op] = {}
    dropped: set[str] = set()
    for op in graph.ops:
        if not isinstance(op, Quantize) or op.order is not None:
            continue
        norm = producers[op.source]
        if isinstance(norm, RmsNorm | LayerNorm) and uses[norm.out] == 1:
            dropped.add(norm.out)
            replaced[op.out] = replace(norm, out=op.out, group=op.group)
    return _rewrite(graph, replaced, dropped)


def add_adapters(graph: Graph, rank: int) -> Graph:
    """Puts a `LoraShrink` before every product; it reads what the product reads."""
    ops: list[Op] = []
    for op in graph.ops:
        if isinstance(op, Linear):
            width = -(-len(op.weights) * rank // LORA_PANEL) * LORA_PANEL
            shrink = LoraShrink(op.source, f"{op.out}.lora", op.weights, op.columns, width)
            ops += [shrink, replace(op, lora=shrink.out)]
        else:
            ops.append(op)
    return Graph(tuple(ops), graph.output)


FUSIONS: tuple[Callable[[Graph, Mapping[str, str]], Graph], ...] = (
    merge_projections,
    fuse_gate,
    fuse_map,
    fuse_residual,
)


def _unrotated(op: Op) -> str:
    """The value that a rope turns, or that goes unturned."""
    return op.source if isinstance(op, Rope) else output_of(op)


def _producers(graph: Graph) -> dict[str, Op]:
    return {output_of(op): op for op in graph.ops}


def _uses(graph: Graph) -> Counter[str]:
    uses = Counter(name for op in graph.ops for name in graph.inputs(op))
    uses[graph.output] += 1
    return uses


def _rewrite(graph: Graph, replaced: Mapping[str, Op], dropped: Iterable[str]) -> Graph:
    gone = set(dropped)
    ops = (replaced.get(output_of(op), op) for op in graph.ops if output_of(op) not in gone)
    return Graph(tuple(ops), graph.output)


def _mergeable(parts: Iterable[Op], formats: Mapping[str, str]) -> bool:
    linears = [part for part in parts if isinstance(part, Linear) and part.epilogue == "store"]
    kinds = {
        (op.source, op.columns, len(op.biases), op.scale, *(formats[name] for name in op.weights))
        for op in linears
    }
    return len(linears) == len(list(parts)) and len(kinds) == 1


def _join(parts: list[Linear], out: str) -> Linear:
    return replace(
        parts[0],
        out=out,
        weights=tuple(name for part in parts for name in part.weights),
        rows=tuple(rows for part in parts for rows in part.rows),
        biases=tuple(name for part in parts for name in part.biases),
    )

"""From a model's graph to the ops the native executor runs: the fusions, each a function.

Each fusion computes the same numbers in the same order as the ops it replaces, so a fused and an
unfused run agree bit for bit; a test holds that.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace

from hasten.models.graph import (
    Add,
    Attention,
    Graph,
    KvWrite,
    Linear,
    Op,
    Quantize,
    RmsNorm,
    Rope,
    RopeKvWrite,
    SiluMul,
)

__all__ = ["FUSIONS", "lower", "quantize_inputs"]


def lower(graph: Graph, formats: Mapping[str, str], groups: Mapping[str, int], fuse: bool) -> Graph:
    """The graph with its fusions applied and the quantisation of activations made visible.

    Args:
        graph: As an architecture file built it.
        formats: Format of each matrix by tensor name; only equal ones can share a product.
        groups: Columns of activations that share a scale, by tensor name; 0 for float matrices.
        fuse: False leaves the ops as they are.
    """
    if fuse:
        for fusion in FUSIONS:
            graph = fusion(graph, formats)
    graph = quantize_inputs(graph, groups)
    return fuse_norm_quantize(graph) if fuse else graph


def merge_projections(graph: Graph, formats: Mapping[str, str]) -> Graph:
    """QKV in one product, where rope and KV write take it whole: see `RopeKvWrite`."""
    producers = _producers(graph)
    uses = _uses(graph)
    queries = {op.layer: producers[op.source] for op in graph.ops if isinstance(op, Attention)}
    replaced: dict[str, Op] = {}
    dropped: set[str] = set()
    for op in graph.ops:
        if not isinstance(op, KvWrite):
            continue
        query_rope, rope_key = queries.get(op.layer), producers[op.key]
        value = producers[op.value]
        if not isinstance(query_rope, Rope) or not isinstance(rope_key, Rope):
            continue
        parts = [producers[query_rope.source], producers[rope_key.source], value]
        if not _mergeable(parts, formats) or any(uses[_out(part)] != 1 for part in parts):
            continue
        joint = _join([part for part in parts if isinstance(part, Linear)], f"qkv.{op.layer}")
        fused = RopeKvWrite(joint.out, query_rope.out, query_rope.heads, op.layer, query_rope.width)
        dropped |= {_out(part) for part in parts[1:]} | {rope_key.out, f"kv_write.{op.layer}"}
        replaced |= {_out(parts[0]): joint, query_rope.out: fused}
    return _rewrite(graph, replaced, dropped)


def fuse_gate(graph: Graph, formats: Mapping[str, str]) -> Graph:
    """Gate and up in one product whose epilogue is SwiGLU."""
    producers = _producers(graph)
    uses = _uses(graph)
    replaced: dict[str, Op] = {}
    dropped: set[str] = set()
    for op in graph.ops:
        if not isinstance(op, SiluMul):
            continue
        parts = [producers[op.gate], producers[op.up]]
        if not _mergeable(parts, formats) or any(uses[_out(part)] != 1 for part in parts):
            continue
        joint = _join([part for part in parts if isinstance(part, Linear)], op.out)
        dropped |= {op.gate, op.up}
        replaced[op.out] = replace(joint, epilogue="silu_mul")
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


def quantize_inputs(graph: Graph, groups: Mapping[str, int]) -> Graph:
    """Puts a `Quantize` before the products with integer weights; products share it."""
    ops: list[Op] = []
    made: dict[tuple[str, int], str] = {}
    for op in graph.ops:
        group = groups[op.weights[0]] if isinstance(op, Linear) else 0
        if not isinstance(op, Linear) or group == 0:
            ops.append(op)
            continue
        key = (op.source, group)
        if key not in made:
            made[key] = f"{op.source}.int8:{group}"
            ops.append(Quantize(op.source, made[key], op.columns, group))
        ops.append(replace(op, source=made[key]))
    return Graph(tuple(ops), graph.output)


def fuse_norm_quantize(graph: Graph) -> Graph:
    """A norm that only feeds one quantisation writes its int8 codes at once."""
    producers = _producers(graph)
    uses = _uses(graph)
    replaced: dict[str, Op] = {}
    dropped: set[str] = set()
    for op in graph.ops:
        if not isinstance(op, Quantize):
            continue
        norm = producers[op.source]
        if isinstance(norm, RmsNorm) and uses[norm.out] == 1:
            dropped.add(norm.out)
            replaced[op.out] = replace(norm, out=op.out, group=op.group)
    return _rewrite(graph, replaced, dropped)


FUSIONS: tuple[Callable[[Graph, Mapping[str, str]], Graph], ...] = (
    merge_projections,
    fuse_gate,
    fuse_residual,
)


def _out(op: Op) -> str:
    return f"kv_write.{op.layer}" if isinstance(op, KvWrite) else op.out


def _producers(graph: Graph) -> dict[str, Op]:
    return {_out(op): op for op in graph.ops}


def _uses(graph: Graph) -> Counter[str]:
    uses = Counter(name for op in graph.ops for name in graph.inputs(op))
    uses[graph.output] += 1
    return uses


def _rewrite(graph: Graph, replaced: Mapping[str, Op], dropped: Iterable[str]) -> Graph:
    gone = set(dropped)
    ops = (replaced.get(_out(op), op) for op in graph.ops if _out(op) not in gone)
    return Graph(tuple(ops), graph.output)


def _mergeable(parts: Iterable[Op], formats: Mapping[str, str]) -> bool:
    linears = [part for part in parts if isinstance(part, Linear) and part.epilogue == "store"]
    kinds = {
        (op.source, op.columns, len(op.biases), *(formats[name] for name in op.weights))
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

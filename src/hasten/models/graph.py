"""A model as a small graph of ops, and the builder that architecture files use.

Every value is a float32 matrix [tokens, width] with a name of its own; a graph is a list of ops in
an order that runs. Ops say what is computed, not how: the reference executor runs a graph as it is,
`hasten.generation.lowering` turns it into fused ops for the native one.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from hasten.errors import ModelFileError
from hasten.models.ops import (
    Add,
    AddRow,
    Attention,
    Embed,
    EmbedPosition,
    Gelu,
    GeluMul,
    KvWrite,
    LayerNorm,
    Linear,
    Op,
    RmsNorm,
    Rope,
    Scale,
    Select,
    SiluMul,
    Softcap,
)
from hasten.models.rope import Rotation

__all__ = ["Graph", "GraphBuilder", "factor", "without_head"]


@dataclass(frozen=True, slots=True)
class Graph:
    """Ops in the order they run; `output` names the logits, or the last hidden states."""

    ops: tuple[Op, ...]
    output: str

    def inputs(self, op: Op) -> tuple[str, ...]:
        """Names of the values that an op reads."""
        match op:
            case Embed() | EmbedPosition():
                return ()
            case KvWrite(key, value, _):
                return (key, value)
            case SiluMul(gate, up, _, _) | GeluMul(gate, up, _, _):
                return (gate, up)
            case Add(a, b, _, _):
                return (a, b)
            case Linear():
                return tuple(n for n in (op.source, op.residual, op.lora) if n is not None)
            case _:
                return (op.source,)


@dataclass(slots=True)
class GraphBuilder:
    """Appends ops and names their values; an architecture file reads like the model's forward."""

    ops: list[Op] = field(default_factory=list)
    widths: dict[str, int] = field(default_factory=dict)

    def embed(self, weight: str, width: int) -> str:
        """Looks the batch's tokens up."""
        out = self._name("embed", width)
        self.ops.append(Embed(out, weight, width))
        return out

    def embed_position(self, weight: str, rows: int, width: int, *, offset: int = 0) -> str:
        """Looks the positions of the batch's tokens up (learned position embeddings)."""
        out = self._name("position", width)
        self.ops.append(EmbedPosition(out, weight, rows, width, offset))
        return out

    def add_row(self, source: str, weight: str, rows: int, row: int) -> str:
        """Adds one row of a table to every token (the token type of a text by itself)."""
        width = self.widths[source]
        out = self._name("add_row", width)
        self.ops.append(AddRow(source, out, weight, rows, width, row))
        return out

    def layer_norm(self, source: str, weight: str, bias: str, eps: float) -> str:
        """Layer normalisation (Ba et al. 2016)."""
        width = self.widths[source]
        out = self._name("norm", width)
        self.ops.append(LayerNorm(source, out, weight, bias, width, eps))
        return out

    def scale(self, source: str, factor: float) -> str:
        """Multiplies by a constant; by 1 it is the source itself."""
        if factor == 1:
            return source
        width = self.widths[source]
        out = self._name("scale", width)
        self.ops.append(Scale(source, out, width, factor))
        return out

    def softcap(self, source: str, cap: float | None) -> str:
        """Keeps values inside -cap to cap (Gemma 2, section 2); None leaves them as they are."""
        if cap is None:
            return source
        width = self.widths[source]
        out = self._name("softcap", width)
        self.ops.append(Softcap(source, out, width, cap))
        return out

    def rms_norm(
        self, source: str, weight: str, eps: float, *, offset: float = 0.0, heads: int = 1
    ) -> str:
        """Root-mean-square norm (Zhang and Sennrich 2019) of a row, or of each head of it."""
        width = self.widths[source]
        out = self._name("norm", width)
        self.ops.append(RmsNorm(source, out, weight, width, eps, offset, heads))
        return out

    def linear(self, source: str, weight: str, rows: int, *, bias: str | None = None) -> str:
        """Projects to `rows` columns."""
        out = self._name("linear", rows)
        biases = () if bias is None else (bias,)
        self.ops.append(Linear(source, out, (weight,), (rows,), self.widths[source], biases))
        return out

    def rope(self, source: str, heads: int, rotation: Rotation) -> str:
        """Rotary position embedding (Su et al. 2021), half-split."""
        width = self.widths[source]
        out = self._name("rope", width)
        self.ops.append(Rope(source, out, heads, width, rotation))
        return out

    def kv_write(self, key: str, value: str, layer: int) -> None:
        """Puts keys and values into the cache."""
        self.ops.append(KvWrite(key, value, layer))

    def attention(
        self,
        query: str,
        heads: int,
        layer: int,
        *,
        scale: float | None = None,
        window: int | None = None,
        cap: float | None = None,
        causal: bool = True,
    ) -> str:
        """Attention with grouped key/value heads (Ainslie et al. 2023).

        Scores are scaled by 1 / sqrt(head dimensions) unless a scale is given.
        """
        width = self.widths[query]
        out = self._name("attention", width)
        if scale is None:
            scale = 1 / math.sqrt(width // heads)
        self.ops.append(Attention(query, out, heads, layer, width, scale, window, causal, cap))
        return out

    def silu_mul(self, gate: str, up: str) -> str:
        """SwiGLU (Shazeer 2020)."""
        width = self.widths[gate]
        out = self._name("silu_mul", width)
        self.ops.append(SiluMul(gate, up, out, width))
        return out

    def gelu(self, source: str, *, tanh: bool = False) -> str:
        """GELU (Hendrycks and Gimpel 2016)."""
        width = self.widths[source]
        out = self._name("gelu", width)
        self.ops.append(Gelu(source, out, width, tanh))
        return out

    def gelu_mul(self, gate: str, up: str) -> str:
        """GeGLU (Shazeer 2020) with the tanh approximation of GELU."""
        width = self.widths[gate]
        out = self._name("gelu_mul", width)
        self.ops.append(GeluMul(gate, up, out, width))
        return out

    def add(self, a: str, b: str) -> str:
        """A residual connection."""
        width = self.widths[a]
        out = self._name("add", width)
        self.ops.append(Add(a, b, out, width))
        return out

    def select(self, source: str) -> str:
        """Keeps the rows whose logits are wanted."""
        width = self.widths[source]
        out = self._name("select", width)
        self.ops.append(Select(source, out, width))
        return out

    def finish(self, output: str) -> Graph:
        """The graph whose result is `output`."""
        return Graph(tuple(self.ops), output)

    def _name(self, kind: str, width: int) -> str:
        name = f"{kind}.{len(self.ops)}"
        self.widths[name] = width
        return name


def without_head(graph: Graph) -> Graph:
    """The graph up to the last hidden states: less the projection to logits and what follows it.

    Args:
        graph: Of a model whose last product is that projection.
    """
    last = max(i for i, op in enumerate(graph.ops) if isinstance(op, Linear))
    head = graph.ops[last]
    if not isinstance(head, Linear):
        raise TypeError(f"{head} is no product")
    return Graph(graph.ops[:last], head.source)


def factor(graph: Graph, factored: Iterable[tuple[str, int]]) -> Graph:
    """The graph with two products of low rank in the place of some: W x becomes up (down x).

    Args:
        graph: As an architecture file built it.
        factored: (module, rank) pairs. The tensor "<module>.weight" [rows, columns] gives way to
            "<module>.down.weight" [rank, columns] and "<module>.up.weight" [rows, rank].

    Raises:
        ModelFileError: The model has no product of that name.
    """
    ranks = dict(factored)
    ops: list[Op] = []
    for op in graph.ops:
        module = op.weights[0].removesuffix(".weight") if isinstance(op, Linear) else ""
        if not isinstance(op, Linear) or module not in ranks:
            ops.append(op)
            continue
        rank, inner = ranks.pop(module), f"{op.out}.down"
        ops.append(Linear(op.source, inner, (f"{module}.down.weight",), (rank,), op.columns))
        ops.append(replace(op, source=inner, weights=(f"{module}.up.weight",), columns=rank))
    if ranks:
        raise ModelFileError(f"factored product {min(ranks)!r} is none of this model's")
    return Graph(tuple(ops), graph.output)

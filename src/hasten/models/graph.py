"""A model as a small graph of ops, and the builder that architecture files use.

Every value is a float32 matrix [tokens, width] with a name of its own; a graph is a list of ops in
an order that runs. Ops say what is computed, not how: the reference executor runs a graph as it is,
`hasten.generation.lowering` turns it into fused ops for the native one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

__all__ = [
    "Add",
    "Attention",
    "Embed",
    "Epilogue",
    "Graph",
    "GraphBuilder",
    "KvWrite",
    "Linear",
    "Op",
    "Quantize",
    "RmsNorm",
    "Rope",
    "RopeKvWrite",
    "Select",
    "SiluMul",
    "weights_of",
]

Epilogue = Literal["store", "add", "silu_mul"]


@dataclass(frozen=True, slots=True)
class Embed:
    """out[t] = row tokens[t] of the weight."""

    out: str
    weight: str
    width: int


@dataclass(frozen=True, slots=True)
class RmsNorm:
    """out = source / sqrt(mean(source^2) + eps) * weight; fused, it also quantises (group > 0)."""

    source: str
    out: str
    weight: str
    width: int
    eps: float
    group: int = 0


@dataclass(frozen=True, slots=True)
class Quantize:
    """out = source as int8 codes with a scale for each `group` columns; made by the lowering."""

    source: str
    out: str
    width: int
    group: int


@dataclass(frozen=True, slots=True)
class Linear:
    """out = source W^T + bias.

    Several weights are one product over their rows, one after another. The epilogue "add" adds to
    `residual` in place; "silu_mul" takes two weights, gate and up, and yields silu(gate) * up.
    """

    source: str
    out: str
    weights: tuple[str, ...]
    rows: tuple[int, ...]
    columns: int
    biases: tuple[str, ...] = ()
    epilogue: Epilogue = "store"
    residual: str | None = None

    @property
    def width(self) -> int:
        """Columns of the output."""
        return self.rows[0] if self.epilogue == "silu_mul" else sum(self.rows)


@dataclass(frozen=True, slots=True)
class Rope:
    """Rotates each head of the source by the token's position."""

    source: str
    out: str
    heads: int
    width: int


@dataclass(frozen=True, slots=True)
class KvWrite:
    """Stores the keys and values of the batch's tokens in the cache of a layer."""

    key: str
    value: str
    layer: int


@dataclass(frozen=True, slots=True)
class RopeKvWrite:
    """RoPE on queries and keys of one joint projection, and the KV write; made by the lowering."""

    source: str
    out: str
    heads: int
    layer: int
    width: int


@dataclass(frozen=True, slots=True)
class Attention:
    """Causal attention of each query head over the cached positions of its sequence.

    With a window, a token sees that many positions, its own included.
    """

    source: str
    out: str
    heads: int
    layer: int
    width: int
    window: int | None = None


@dataclass(frozen=True, slots=True)
class SiluMul:
    """out = gate / (1 + exp(-gate)) * up."""

    gate: str
    up: str
    out: str
    width: int


@dataclass(frozen=True, slots=True)
class Add:
    """out = a + b."""

    a: str
    b: str
    out: str
    width: int


@dataclass(frozen=True, slots=True)
class Select:
    """Keeps the rows whose logits are wanted."""

    source: str
    out: str
    width: int


Op = (
    Embed
    | RmsNorm
    | Quantize
    | Linear
    | Rope
    | KvWrite
    | RopeKvWrite
    | Attention
    | SiluMul
    | Add
    | Select
)


@dataclass(frozen=True, slots=True)
class Graph:
    """Ops in the order they run; `output` names the logits."""

    ops: tuple[Op, ...]
    output: str

    def inputs(self, op: Op) -> tuple[str, ...]:
        """Names of the values that an op reads."""
        match op:
            case Embed():
                return ()
            case KvWrite(key, value, _):
                return (key, value)
            case SiluMul(gate, up, _, _):
                return (gate, up)
            case Add(a, b, _, _):
                return (a, b)
            case Linear():
                return (op.source,) if op.residual is None else (op.source, op.residual)
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

    def rms_norm(self, source: str, weight: str, eps: float) -> str:
        """Root-mean-square norm (Zhang and Sennrich 2019)."""
        width = self.widths[source]
        out = self._name("norm", width)
        self.ops.append(RmsNorm(source, out, weight, width, eps))
        return out

    def linear(self, source: str, weight: str, rows: int, *, bias: str | None = None) -> str:
        """Projects to `rows` columns."""
        out = self._name("linear", rows)
        biases = () if bias is None else (bias,)
        self.ops.append(Linear(source, out, (weight,), (rows,), self.widths[source], biases))
        return out

    def rope(self, source: str, heads: int) -> str:
        """Rotary position embedding (Su et al. 2021), half-split."""
        width = self.widths[source]
        out = self._name("rope", width)
        self.ops.append(Rope(source, out, heads, width))
        return out

    def kv_write(self, key: str, value: str, layer: int) -> None:
        """Puts keys and values into the cache."""
        self.ops.append(KvWrite(key, value, layer))

    def attention(self, query: str, heads: int, layer: int, *, window: int | None = None) -> str:
        """Causal attention with grouped key/value heads (Ainslie et al. 2023)."""
        width = self.widths[query]
        out = self._name("attention", width)
        self.ops.append(Attention(query, out, heads, layer, width, window))
        return out

    def silu_mul(self, gate: str, up: str) -> str:
        """SwiGLU (Shazeer 2020)."""
        width = self.widths[gate]
        out = self._name("silu_mul", width)
        self.ops.append(SiluMul(gate, up, out, width))
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


def weights_of(ops: Sequence[Op]) -> list[str]:
    """Names of the matrices that the ops multiply with or look up, each once, in order."""
    names: dict[str, None] = {}
    for op in ops:
        if isinstance(op, Embed):
            names[op.weight] = None
        elif isinstance(op, Linear):
            names.update(dict.fromkeys(op.weights))
    return list(names)

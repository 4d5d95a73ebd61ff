"""A model as a small graph of ops, and the builder that architecture files use.

Every value is a float32 matrix [tokens, width] with a name of its own; a graph is a list of ops in
an order that runs. Ops say what is computed, not how: the reference executor runs a graph as it is,
`hasten.generation.lowering` turns it into fused ops for the native one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from hasten.models.rope import Rotation

__all__ = [
    "Add",
    "AddRow",
    "Attention",
    "Embed",
    "EmbedPosition",
    "Epilogue",
    "Gelu",
    "GeluMul",
    "Graph",
    "GraphBuilder",
    "HeadNorm",
    "KvWrite",
    "LayerNorm",
    "Linear",
    "LoraShrink",
    "Op",
    "Quantize",
    "RmsNorm",
    "Rope",
    "RopeKvWrite",
    "Scale",
    "Select",
    "SiluMul",
    "Softcap",
    "SplitKvWrite",
    "output_of",
    "rotations_of",
    "weights_of",
    "without_head",
]

Epilogue = Literal["store", "add", "silu_mul", "gelu_mul", "gelu", "gelu_tanh"]


@dataclass(frozen=True, slots=True)
class Embed:
    """out[t] = row tokens[t] of the weight."""

    out: str
    weight: str
    width: int


@dataclass(frozen=True, slots=True)
class EmbedPosition:
    """out[t] = row position[t] + offset of the weight [rows, width]."""

    out: str
    weight: str
    rows: int
    width: int
    offset: int


@dataclass(frozen=True, slots=True)
class AddRow:
    """out[t] = source[t] + one row of the weight [rows, width]."""

    source: str
    out: str
    weight: str
    rows: int
    width: int
    row: int


@dataclass(frozen=True, slots=True)
class LayerNorm:
    """out = (source - mean) / sqrt(variance + eps) * weight + bias; quantises like `RmsNorm`."""

    source: str
    out: str
    weight: str
    bias: str
    width: int
    eps: float
    group: int = 0


@dataclass(frozen=True, slots=True)
class Scale:
    """out = source * factor."""

    source: str
    out: str
    width: int
    factor: float


@dataclass(frozen=True, slots=True)
class Softcap:
    """out = cap * tanh(source / cap)."""

    source: str
    out: str
    width: int
    cap: float


@dataclass(frozen=True, slots=True)
class RmsNorm:
    """out = source / sqrt(mean(source^2) + eps) * (offset + weight), for each head of a row.

    The weight has width / heads values. Fused, the op also quantises (group > 0).
    """

    source: str
    out: str
    weight: str
    width: int
    eps: float
    offset: float = 0.0
    heads: int = 1
    group: int = 0


@dataclass(frozen=True, slots=True)
class Quantize:
    """out = source as int8 codes with a scale for each `group` columns; made by the lowering.

    With `order`, the name of a matrix, the columns are in the order that its codes have.
    """

    source: str
    out: str
    width: int
    group: int
    order: str | None = None


@dataclass(frozen=True, slots=True)
class LoraShrink:
    """out = A source, with the A of each token's LoRA adapter; made by the lowering.

    Several weights have their A one after another; the product with them adds scale * B out.
    """

    source: str
    out: str
    weights: tuple[str, ...]
    columns: int
    width: int


@dataclass(frozen=True, slots=True)
class Linear:
    """out = (source W^T + bias) * scale.

    Several weights are one product over their rows, one after another. The epilogue "add" adds to
    `residual` in place; "silu_mul" and "gelu_mul" take two weights, gate and up, and yield what
    `SiluMul` and `GeluMul` do; "gelu" and "gelu_tanh" apply `Gelu`. What LoRA
    adapters add counts as part of the sum; `lora` names its `LoraShrink`.
    """

    source: str
    out: str
    weights: tuple[str, ...]
    rows: tuple[int, ...]
    columns: int
    biases: tuple[str, ...] = ()
    epilogue: Epilogue = "store"
    residual: str | None = None
    scale: float = 1.0
    lora: str | None = None

    @property
    def gated(self) -> bool:
        """Whether the epilogue takes two weights."""
        return self.epilogue in ("silu_mul", "gelu_mul")

    @property
    def width(self) -> int:
        """Columns of the output."""
        return self.rows[0] if self.gated else sum(self.rows)


@dataclass(frozen=True, slots=True)
class Rope:
    """Rotates each head of the source by the token's position."""

    source: str
    out: str
    heads: int
    width: int
    rotation: Rotation


@dataclass(frozen=True, slots=True)
class KvWrite:
    """Stores the keys and values of the batch's tokens in the cache of a layer."""

    key: str
    value: str
    layer: int


@dataclass(frozen=True, slots=True)
class HeadNorm:
    """A root-mean-square norm of each head, as `RmsNorm` has it."""

    weight: str
    eps: float
    offset: float


@dataclass(frozen=True, slots=True)
class SplitKvWrite:
    """Queries of one joint projection, and the KV write of the rest; made by the lowering."""

    source: str
    out: str
    layer: int
    width: int


@dataclass(frozen=True, slots=True)
class RopeKvWrite:
    """Norms and RoPE on queries and keys of one joint projection, and the KV write.

    Made by the lowering.
    """

    source: str
    out: str
    heads: int
    layer: int
    width: int
    rotation: Rotation
    query_norm: HeadNorm | None = None
    key_norm: HeadNorm | None = None


@dataclass(frozen=True, slots=True)
class Attention:
    """Attention of each query head over the cached positions of its sequence.

    Scores are query . key * scale, and with a cap then cap * tanh(score / cap). A token sees the
    positions up to its own or, if attention is not causal, all those of its sequence, which the
    batch must hold whole. With a window, it sees that many positions, its own included.
    """

    source: str
    out: str
    heads: int
    layer: int
    width: int
    scale: float
    window: int | None = None
    causal: bool = True
    cap: float | None = None


@dataclass(frozen=True, slots=True)
class SiluMul:
    """out = gate / (1 + exp(-gate)) * up."""

    gate: str
    up: str
    out: str
    width: int


@dataclass(frozen=True, slots=True)
class Gelu:
    """out = source / 2 * (1 + erf(source / sqrt(2))), or its approximation by tanh."""

    source: str
    out: str
    width: int
    tanh: bool = False


@dataclass(frozen=True, slots=True)
class GeluMul:
    """out = gelu_tanh(gate) * up."""

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
    | EmbedPosition
    | AddRow
    | LayerNorm
    | Scale
    | Softcap
    | RmsNorm
    | Quantize
    | LoraShrink
    | Linear
    | Rope
    | KvWrite
    | RopeKvWrite
    | SplitKvWrite
    | Attention
    | SiluMul
    | Gelu
    | GeluMul
    | Add
    | Select
)


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


def output_of(op: Op) -> str:
    """Name of what an op computes; a KV write, which yields no value, has one of its own."""
    return f"kv_write.{op.layer}" if isinstance(op, KvWrite) else op.out


def rotations_of(ops: Sequence[Op]) -> list[Rotation]:
    """The rotations that the ops turn by, each once, in order."""
    return list(dict.fromkeys(op.rotation for op in ops if isinstance(op, Rope | RopeKvWrite)))


def weights_of(ops: Sequence[Op]) -> list[str]:
    """Names of the matrices that the ops multiply with or look up, each once, in order."""
    names: dict[str, None] = {}
    for op in ops:
        if isinstance(op, Embed):
            names[op.weight] = None
        elif isinstance(op, Linear):
            names.update(dict.fromkeys(op.weights))
    return list(names)


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

"""The ops that a model's graph is made of: what is computed, not how.

Values are float32 matrices [tokens, width], known by name.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
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

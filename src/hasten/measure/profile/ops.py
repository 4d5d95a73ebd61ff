"""The ops of a profile by name: what each is, which layer it is of, what it holds."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from hasten.models.graph import Graph
from hasten.models.ops import (
    AddRow,
    Attention,
    Embed,
    EmbedPosition,
    KvWrite,
    LayerNorm,
    Linear,
    LoraShrink,
    Op,
    Quantize,
    RmsNorm,
    Rope,
    RopeKvWrite,
    Select,
    SplitKvWrite,
    output_of,
)

__all__ = ["NamedOp", "name_ops"]

_LAYER = re.compile(r"(?:^|\.)(?:layers?|blocks?|h)\.([0-9]+)\.")
_KIND = re.compile(r"(?<!^)(?=[A-Z])")
_EPILOGUES = {"add": "add residual", "gelu_tanh": "gelu"}


@dataclass(frozen=True, slots=True)
class NamedOp:
    """An op as a report shows it.

    Attributes:
        op: As the graph has it.
        kind: "linear", "attention", "rms_norm"...
        label: What it does; a fused op names all that it holds.
        shape: Rows x columns and format of a matrix, or the width of what is computed.
        layer: Of the model; None before the first and after the last.
        selected: It computes only the tokens whose logits are wanted.
    """

    op: Op
    kind: str
    label: str
    shape: str
    layer: int | None
    selected: bool


def name_ops(graph: Graph, formats: Mapping[str, str]) -> list[NamedOp]:
    """All ops of a graph, in order.

    Args:
        graph: As an executor runs it.
        formats: Of the matrices, by tensor name.
    """
    found = []
    selected: set[str] = set()
    layer: int | None = None
    for op in graph.ops:
        if isinstance(op, Select) or not selected.isdisjoint(graph.inputs(op)):
            selected.add(output_of(op))
        layer = _layer(op, layer)
        kind = _KIND.sub("_", type(op).__name__).lower()
        rows_selected = output_of(op) in selected
        found.append(NamedOp(op, kind, _label(op, kind), _shape(op, formats), layer, rows_selected))
    return found


def _layer(op: Op, before: int | None) -> int | None:
    """By the op itself, or by the name of its weights; other ops follow the one before."""
    match op:
        case KvWrite() | RopeKvWrite() | SplitKvWrite() | Attention():
            return op.layer
        case Select():
            return None
        case Linear() | LoraShrink():
            name = op.weights[0]
        case Embed() | EmbedPosition() | AddRow() | LayerNorm() | RmsNorm():
            name = op.weight
        case _:
            return before
    found = _LAYER.search(name)
    return None if found is None else int(found[1])


def _label(op: Op, kind: str) -> str:
    match op:
        case Linear():
            parts = [" + ".join(map(_part, op.weights))]
            parts += ["bias"] * bool(op.biases) + ["scale"] * (op.scale != 1)
            if op.epilogue != "store":
                parts.append(_EPILOGUES.get(op.epilogue, op.epilogue))
            return ", ".join(parts)
        case LoraShrink():
            return f"lora A of {' + '.join(map(_part, op.weights))}"
        case RmsNorm() | LayerNorm():
            return f"{_part(op.weight)}, quantize" if op.group else _part(op.weight)
        case RopeKvWrite():
            norms = ["head norms"] if op.query_norm or op.key_norm else []
            return ", ".join([*norms, "rope", "kv write"])
        case SplitKvWrite():
            return "split, kv write"
        case Attention():
            return "attention" + (f", window {op.window}" if op.window else "")
        case Embed() | EmbedPosition() | AddRow():
            return _part(op.weight)
        case _:
            return kind.replace("_", " ")


def _part(name: str) -> str:
    """The part of a tensor's name that says what it is: "q_proj"."""
    pieces = [piece for piece in name.split(".") if piece not in ("weight", "bias")]
    return pieces[-1] if pieces else name


def _shape(op: Op, formats: Mapping[str, str]) -> str:
    match op:
        case Linear():
            return f"{sum(op.rows)}x{op.columns} {formats.get(op.weights[0], 'f32')}"
        case LoraShrink():
            return f"{op.width}x{op.columns}"
        case Attention() | Rope() | RopeKvWrite():
            return f"{op.heads} heads of {op.width // op.heads}"
        case Quantize():
            return f"{op.width} in {op.group}s"
        case KvWrite():
            return ""
        case _:
            return str(op.width)

"""A model's graph in torch: op by op as the reference executor has it, with gradients."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Literal, Protocol

import torch
from torch import Tensor

from hasten.generation import torch_ops
from hasten.generation.reference import last_uses
from hasten.kernels.rope import rope_tables
from hasten.models import architectures
from hasten.models.config import ModelConfig
from hasten.models.graph import Graph, without_head
from hasten.models.model import Model
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
    rotations_of,
)
from hasten.models.rope import Rotation, inverse_frequencies

__all__ = [
    "Decoder",
    "Step",
    "Tables",
    "compute",
    "device_of",
    "rotation_tables",
    "run_on_threads",
    "weight_tensors",
]

Tables = Mapping[Rotation, tuple[Tensor, Tensor]]
"""Cosines and sines of each rotation, float32 [positions, half]."""


class Step(Protocol):
    """What the ops of one run have in common; sequences lie one after another.

    Attributes:
        tokens: int64 [T].
        positions: int64 [T].
    """

    tokens: Tensor
    positions: Tensor

    def turn(self, rotation: Rotation) -> tuple[Tensor, Tensor]:
        """Cosine and sine of each token, [T, half]."""
        ...

    def write(self, layer: int, key: Tensor, value: Tensor) -> None:
        """Keeps keys and values [T, width] of a layer."""
        ...

    def attend(self, op: Attention, query: Tensor) -> Tensor:
        """Attention of [T, width] over what was kept."""
        ...

    def select(self, x: Tensor) -> Tensor:
        """The rows whose logits are wanted."""
        ...

    def adapt(self, weight: str, x: Tensor, product: Tensor) -> Tensor:
        """The product x W^T with what adapters add to it."""
        ...


def compute(op: Op, values: dict[str, Tensor], weights: Mapping[str, Tensor], step: Step) -> None:
    """Runs one op of a graph without fusions, and puts its result among the values."""
    if isinstance(op, KvWrite):
        step.write(op.layer, values[op.key], values[op.value])
    else:
        values[op.out] = _result(op, values, weights, step)


def _result(
    op: Op, values: Mapping[str, Tensor], weights: Mapping[str, Tensor], step: Step
) -> Tensor:
    match op:
        case Embed():
            rows = torch.nn.functional.embedding(step.tokens, weights[op.weight])
            return rows.to(torch.promote_types(rows.dtype, torch.float32))
        case EmbedPosition():
            return weights[op.weight][step.positions + op.offset]
        case AddRow():
            return values[op.source] + weights[op.weight][op.row]
        case LayerNorm():
            source = values[op.source]
            return torch_ops.layer_norm(source, weights[op.weight], weights[op.bias], op.eps)
        case RmsNorm():
            heads = values[op.source].view(-1, op.heads, op.width // op.heads)
            weight = weights[op.weight] + op.offset if op.offset else weights[op.weight]
            return torch_ops.rms_norm(heads, weight, op.eps).view(-1, op.width)
        case Scale():
            return values[op.source] * op.factor
        case Softcap():
            return torch_ops.softcap(values[op.source], op.cap)
        case Linear():
            bias = weights[op.biases[0]] if op.biases else None
            product = torch_ops.linear(values[op.source], weights[op.weights[0]], bias)
            return step.adapt(op.weights[0], values[op.source], product)
        case Rope():
            heads = values[op.source].view(-1, op.heads, op.width // op.heads)
            return torch_ops.rotate(heads, *step.turn(op.rotation)).view(-1, op.width)
        case Attention():
            return step.attend(op, values[op.source])
        case SiluMul():
            return torch_ops.silu_mul(values[op.gate], values[op.up])
        case Gelu():
            return torch_ops.gelu(values[op.source], tanh=op.tanh)
        case GeluMul():
            return torch_ops.gelu_mul(values[op.gate], values[op.up])
        case Add():
            return values[op.a] + values[op.b]
        case Select():
            return step.select(values[op.source])
    raise TypeError(f"torch runs graphs without fusions, found {op}")


def device_of(name: str | None = None) -> torch.device:
    """Where to run: CUDA where there is a device, else the processor; or what is named."""
    return torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))


@contextmanager
def run_on_threads(count: int) -> Iterator[None]:
    """Runs torch's ops on so many threads; outside, their number is the whole process's."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def weight_tensors(model: Model, device: torch.device) -> dict[str, Tensor]:
    """All weights as float32 on a device, copied, so that they may be changed there."""
    return {
        name: torch.tensor(tensor.to_float32(), device=device)
        for name, tensor in model.weights.items()
    }


def rotation_tables(graph: Graph, context: int, device: torch.device) -> Tables:
    """The tables of all rotations of a graph.

    Args:
        graph: The graph.
        context: Positions of the longest sequence.
        device: Where to.
    """
    found = {}
    for rotation in rotations_of(graph.ops):
        frequencies = inverse_frequencies(rotation, context)
        cosine, sine = rope_tables(frequencies, context, rotation.magnitude)
        found[rotation] = (torch.tensor(cosine, device=device), torch.tensor(sine, device=device))
    return found


class Decoder:
    """The graph of a decoder for training: whole sequences of one length, logits of every token.

    It has no weights of its own: what is given to each call is what gradients flow to.

    Args:
        config: A decoder that ends with logits.
        context: Positions of the longest sequence; some rotations depend on it.
        device: Where it runs.
        precision: Of the products, and of what goes into them; all else is float32.

    Attributes:
        body: The graph up to the last hidden states.
        head: The ops from there to the logits.
        vocab_size: Columns of the logits.
    """

    def __init__(
        self,
        config: ModelConfig,
        context: int,
        device: torch.device,
        *,
        precision: Literal["f32", "bf16"] = "f32",
    ) -> None:
        graph = architectures.build(config)
        self._precision = precision
        self.body = without_head(graph)
        self.head = graph.ops[len(self.body.ops) :]
        self.vocab_size = config.vocab_size
        self._output = graph.output
        self._kv_heads = config.num_kv_heads
        self._tables = rotation_tables(graph, context, device)
        self._spent = last_uses(self.body)
        nothing = torch.zeros(1, 0, dtype=torch.int64, device=device)
        self._no_tokens = _Rows(nothing, {}, config.num_kv_heads)

    def hidden(
        self, weights: Mapping[str, Tensor], tokens: Tensor, keep: Collection[str] = ()
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Runs the body.

        Args:
            weights: Every tensor of the model, by name.
            tokens: int64 [B, T]; a token sees those of its own row, up to itself.
            keep: Names of values before the last to give back besides.

        Returns:
            The last hidden states [B * T, width], and the values that were named.
        """
        values: dict[str, Tensor] = {}
        kept = self.advance(weights, tokens, values, range(len(self.body.ops)), keep)
        return values[self.body.output], kept

    def advance(
        self,
        weights: Mapping[str, Tensor],
        tokens: Tensor,
        values: dict[str, Tensor],
        ops: range,
        keep: Collection[str] = (),
    ) -> dict[str, Tensor]:
        """Runs some ops of the body.

        Args:
            weights: Every tensor that these ops read, by name.
            tokens: As for `hidden`.
            values: Those alive before them, [B * T, width]; becomes those alive after.
            ops: Places in the body; keys and values of a layer are written and read in one call.
            keep: Names of values to give back as well.
        """
        step = _Rows(tokens, self._tables, self._kv_heads)
        kept: dict[str, Tensor] = {}
        with self.products():
            for place in ops:
                compute(self.body.ops[place], values, weights, step)
                kept |= {name: values[name] for name in self._spent[place] if name in keep}
                for name in self._spent[place]:
                    del values[name]
        return kept

    def logits(self, weights: Mapping[str, Tensor], hidden: Tensor) -> Tensor:
        """Logits [rows, vocabulary], float32, of last hidden states [rows, width]."""
        values = {self.body.output: hidden}
        with self.products():
            for op in self.head:
                compute(op, values, weights, self._no_tokens)
        return values[self._output].float()

    def products(self) -> torch.autocast:
        """Where products have their precision; one around many calls converts each weight once."""
        device = self._no_tokens.tokens.device.type
        return torch.autocast(device, torch.bfloat16, enabled=self._precision == "bf16")

    def narrow(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Weights that do not change, as products read them, so that no product converts them."""
        if self._precision == "f32":
            return dict(weights)
        ops = (*self.body.ops, *self.head)
        read = {name for op in ops if isinstance(op, Linear) for name in op.weights}
        return {
            name: one.to(torch.bfloat16) if name in read else one for name, one in weights.items()
        }


class _Rows:
    """A `Step` of whole sequences side by side, with nothing before them."""

    def __init__(self, tokens: Tensor, tables: Tables, kv_heads: int) -> None:
        self._shape = tokens.shape
        self._kv_heads = kv_heads
        self._row = torch.arange(tokens.shape[1], device=tokens.device)
        self._masks: dict[int, Tensor] = {}
        self._kept: dict[int, tuple[Tensor, Tensor]] = {}
        self.tokens = tokens.reshape(-1)
        self.positions = self._row.repeat(len(tokens))
        self._turns = {
            rotation: (cosine[self.positions], sine[self.positions])
            for rotation, (cosine, sine) in tables.items()
        }

    def turn(self, rotation: Rotation) -> tuple[Tensor, Tensor]:
        return self._turns[rotation]

    def write(self, layer: int, key: Tensor, value: Tensor) -> None:
        shape = (*self._shape, self._kv_heads, -1)
        self._kept[layer] = (key.view(shape), value.view(shape))

    def attend(self, op: Attention, query: Tensor) -> Tensor:
        keys, values = self._kept.pop(op.layer)
        heads = query.view(*self._shape, op.heads, -1)
        mixed = torch_ops.attention(
            heads,
            keys,
            values,
            scale=op.scale,
            cap=op.cap,
            mask=self._mask(op.window),
            causal=op.causal,
        )
        return mixed.reshape(-1, op.width)

    def _mask(self, window: int | None) -> Tensor | None:
        """None where the window holds the whole sequence."""
        length = len(self._row)
        if window is None or window >= length:
            return None
        if window not in self._masks:
            self._masks[window] = torch_ops.visible(self._row, length, window)
        return self._masks[window]

    def select(self, x: Tensor) -> Tensor:
        return x

    def adapt(self, weight: str, x: Tensor, product: Tensor) -> Tensor:
        return product

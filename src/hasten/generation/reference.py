"""The reference executor: a model's graph, op by op, in NumPy float32. Slow, and the meaning."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from time import perf_counter
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from hasten.generation.kvcache import KV_BLOCK, check_memory
from hasten.generation.op_times import ProfiledExecutor
from hasten.generation.threads import ThreadChoice
from hasten.kernels.activation import gelu, gelu_mul, gelu_tanh, silu_mul, softcap
from hasten.kernels.attention import attention
from hasten.kernels.linear import linear
from hasten.kernels.lora import lora
from hasten.kernels.norm import layer_norm, rms_norm
from hasten.kernels.rope import rope_tables, rotate
from hasten.models import architectures
from hasten.models.graph import Graph
from hasten.models.lora import LoraAdapter, LoraWeight
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
from hasten.models.rope import inverse_frequencies
from hasten.types import Batch

__all__ = ["Observer", "ReferenceExecutor", "last_uses"]

Array = NDArray[np.float32]
Observer = Callable[[Op, Mapping[str, Array]], None]


class ReferenceExecutor(ProfiledExecutor):
    """Runs the graph as the architecture file wrote it, all weights float32.

    Args:
        model: Whose weights to use.
        blocks: KV blocks to hold.
        context: Positions of the longest sequence.
    """

    isa = "numpy"
    weights_source: Literal["cache", "files"] = "files"
    thread_choice = ThreadChoice(1, 1, "NumPy runs op by op")

    def __init__(self, model: Model, blocks: int, context: int) -> None:
        config = model.config
        floats = sum(math.prod(tensor.shape) for tensor in model.weights.values())
        check_memory(config, "f32", blocks, 4 * floats)
        self.graph = architectures.build(config)
        self._weights = {name: tensor.to_float32() for name, tensor in model.weights.items()}
        shape = (config.num_layers, blocks, KV_BLOCK, config.num_kv_heads, config.head_dim)
        self._keys = np.zeros(shape, np.float32)
        self._values = np.zeros(shape, np.float32)
        self._adapters: dict[int, Mapping[str, LoraWeight]] = {}
        self._rope = {
            rotation: rope_tables(
                inverse_frequencies(rotation, context), context, rotation.magnitude
            )
            for rotation in rotations_of(self.graph.ops)
        }
        self.formats = {name: "f32" for name, value in self._weights.items() if value.ndim == 2}
        self._spent = last_uses(self.graph)
        self._observer: Observer | None = None
        self.memory = {
            "weights": sum(value.nbytes for value in self._weights.values()),
            "kv_cache": self._keys.nbytes + self._values.nbytes,
            "buffers": 0,
        }

    def run(self, batch: Batch) -> Array:
        """See `Executor.run`."""
        times = None if self._times is None else self._times.of(batch)
        values: dict[str, Array] = {}
        began = started = perf_counter()
        for number, op in enumerate(self.graph.ops):
            if self._observer is not None:
                self._observer(op, values)
            if isinstance(op, KvWrite):
                self._write(batch, op.layer, values[op.key], values[op.value])
            else:
                values[op.out] = self._compute(op, values, batch)
            for name in self._spent[number]:
                del values[name]
            if times is not None:
                now = perf_counter()
                times.ops[0, number] += now - began
                began = now
        if times is not None:
            times.add(batch, perf_counter() - started)
        return values[self.graph.output]

    @contextmanager
    def observe(self, observer: Observer) -> Iterator[None]:
        """Shows each op with its inputs before it runs, while the block runs.

        Args:
            observer: Given the op and the values that are alive, by name; it must not change them.
                A weight that it replaces (see `replace_weight`) counts from this op on.
        """
        self._observer = observer
        try:
            yield
        finally:
            self._observer = None

    def weight(self, name: str) -> Array:
        """A tensor as it is used now."""
        return self._weights[name]

    def replace_weight(self, name: str, value: Array) -> None:
        """Puts a tensor of the same shape in the place of another.

        Raises:
            ValueError: The shape differs.
        """
        if value.shape != self._weights[name].shape:
            raise ValueError(f"{name} has shape {self._weights[name].shape}, not {value.shape}")
        self._weights[name] = value

    def _compute(self, op: Op, values: dict[str, Array], batch: Batch) -> Array:
        weights = self._weights
        match op:
            case Embed():
                return weights[op.weight][batch.tokens]
            case EmbedPosition():
                return weights[op.weight][batch.positions + op.offset]
            case AddRow():
                row: Array = weights[op.weight][op.row]
                return values[op.source] + row
            case LayerNorm():
                source = values[op.source]
                return layer_norm(source, weights[op.weight], weights[op.bias], op.eps)
            case RmsNorm():
                heads = values[op.source].reshape(-1, op.heads, op.width // op.heads)
                weight = weights[op.weight] + np.float32(op.offset)
                return rms_norm(heads, weight, op.eps).reshape(-1, op.width)
            case Scale():
                return values[op.source] * np.float32(op.factor)
            case Softcap():
                return softcap(values[op.source], op.cap)
            case Linear():
                bias = weights[op.biases[0]] if op.biases else None
                product = linear(values[op.source], weights[op.weights[0]], bias)
                return self._adapt(batch, op.weights[0], values[op.source], product)
            case Rope():
                heads = values[op.source].reshape(-1, op.heads, op.width // op.heads)
                cosine, sine = (table[batch.positions] for table in self._rope[op.rotation])
                rotated = rotate(heads, cosine, sine)
                return rotated.reshape(-1, op.width)
            case Attention():
                return self._attend(batch, op, values[op.source])
            case SiluMul():
                return silu_mul(values[op.gate], values[op.up])
            case Gelu():
                return gelu_tanh(values[op.source]) if op.tanh else gelu(values[op.source])
            case GeluMul():
                return gelu_mul(values[op.gate], values[op.up])
            case Add():
                return values[op.a] + values[op.b]
            case Select():
                return values[op.source][batch.logit_rows]
        raise TypeError(f"the reference executor runs graphs without fusions, found {op}")

    def load_adapter(self, slot: int, adapter: LoraAdapter) -> None:
        """See `Executor.load_adapter`."""
        self._adapters = {**self._adapters, slot: adapter.weights}

    def unload_adapter(self, slot: int) -> None:
        """See `Executor.unload_adapter`."""
        self._adapters = {k: v for k, v in self._adapters.items() if k != slot}

    def _adapt(self, batch: Batch, name: str, source: Array, product: Array) -> Array:
        if batch.adapters is None:
            return product
        slots = np.repeat(batch.adapters, np.diff(batch.starts))
        if len(product) != len(slots):
            slots = slots[batch.logit_rows]
        for slot, weights in self._adapters.items():
            rows = slots == slot
            if name in weights and rows.any():
                part = weights[name]
                product[rows] += lora(source[rows], part.a, part.b, part.scale)
        return product

    def _write(self, batch: Batch, layer: int, key: Array, value: Array) -> None:
        shape = (-1, *self._keys.shape[3:])
        owner = np.repeat(np.arange(len(batch.starts) - 1), np.diff(batch.starts))
        blocks = batch.block_tables[owner, batch.positions // KV_BLOCK]
        slots = batch.positions % KV_BLOCK
        self._keys[layer, blocks, slots] = key.reshape(shape)
        self._values[layer, blocks, slots] = value.reshape(shape)

    def _attend(self, batch: Batch, op: Attention, query: Array) -> Array:
        dim = op.width // op.heads
        out = np.empty_like(query)
        for sequence, table in enumerate(batch.block_tables):
            rows = slice(batch.starts[sequence], batch.starts[sequence + 1])
            positions = batch.positions[rows]
            used = table[: positions[-1] // KV_BLOCK + 1]
            shape = (-1, *self._keys.shape[3:])
            keys = self._keys[op.layer, used].reshape(shape)[: positions[-1] + 1]
            values = self._values[op.layer, used].reshape(shape)[: positions[-1] + 1]
            heads = query[rows].reshape(-1, op.heads, dim)
            result = attention(
                heads, keys, values, positions, op.window, op.scale, op.cap, causal=op.causal
            )
            out[rows] = result.reshape(-1, op.width)
        return out


def last_uses(graph: Graph) -> list[list[str]]:
    """For each op the values that no later op reads, so that they can be freed after it."""
    spent: list[list[str]] = []
    alive = {graph.output}
    for op in reversed(graph.ops):
        ends = [name for name in dict.fromkeys(graph.inputs(op)) if name not in alive]
        alive.update(ends)
        spent.append(ends)
    return spent[::-1]

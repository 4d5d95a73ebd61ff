"""The torch executor: a model's graph, op by op, in float32, on CUDA where it is found."""

from __future__ import annotations

import math
from collections.abc import Mapping
from time import perf_counter
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hasten.errors import CapacityError
from hasten.generation import torch_ops
from hasten.generation.kvcache import KV_BLOCK, check_memory
from hasten.generation.op_times import ProfiledExecutor
from hasten.generation.reference import last_uses
from hasten.generation.threads import ThreadChoice, thread_limit
from hasten.generation.torch_graph import (
    Tables,
    compute,
    device_of,
    rotation_tables,
    run_on_threads,
    weight_tensors,
)
from hasten.models import architectures
from hasten.models.lora import LoraAdapter
from hasten.models.model import Model
from hasten.models.ops import Attention
from hasten.models.rope import Rotation
from hasten.types import Batch, EngineOptions

__all__ = ["TorchExecutor"]

Adapters = Mapping[int, Mapping[str, tuple[Tensor, Tensor, float]]]
"""A, B and scale of each weight that an adapter changes, by slot and name."""


class TorchExecutor(ProfiledExecutor):
    """Runs the graph as the architecture file wrote it, weights and KV cache in float32.

    Args:
        model: Whose weights to use.
        options: `threads` counts.
        blocks: KV blocks to hold.
        context: Positions of the longest sequence.
        device: As torch names it; None for CUDA where it is found, else the processor.
    """

    weights_source: Literal["cache", "files"] = "files"

    def __init__(
        self,
        model: Model,
        options: EngineOptions,
        blocks: int,
        context: int,
        device: str | None = None,
    ) -> None:
        config = model.config
        self._device = device_of(device)
        self._threads = thread_limit(options)
        self.thread_choice = ThreadChoice(self._threads, self._threads, "torch shares out each op")
        self.isa = f"torch on {self._device}"
        shape = (config.num_layers, blocks, KV_BLOCK, config.num_kv_heads, config.head_dim)
        weights = 4 * sum(math.prod(tensor.shape) for tensor in model.weights.values())
        check_memory(config, "f32", blocks, weights)
        _check_device(self._device, weights + 8 * math.prod(shape))
        self.graph = architectures.build(config)
        self._spent = last_uses(self.graph)
        self._weights = weight_tensors(model, self._device)
        self._cache = torch.zeros(2, *shape, device=self._device)
        self._adapters: Adapters = {}
        self._tables = rotation_tables(self.graph, context, self._device)
        self.formats = {name: "f32" for name, value in self._weights.items() if value.ndim == 2}
        self.memory = {"weights": weights, "kv_cache": self._cache.nbytes, "buffers": 0}

    def run(self, batch: Batch) -> NDArray[np.float32]:
        """See `Executor.run`."""
        times = None if self._times is None else self._times.of(batch)
        with torch.inference_mode(), run_on_threads(self._threads):
            began = started = perf_counter()
            step = _PagedStep(batch, self._cache, self._tables, self._adapters)
            values: dict[str, Tensor] = {}
            for number, op in enumerate(self.graph.ops):
                compute(op, values, self._weights, step)
                for name in self._spent[number]:
                    del values[name]
                if times is not None:
                    now = self._now()
                    times.ops[0, number] += now - began
                    began = now
            result: NDArray[np.float32] = values[self.graph.output].cpu().numpy()
        if times is not None:
            times.add(batch, perf_counter() - started)
        return result

    def load_adapter(self, slot: int, adapter: LoraAdapter) -> None:
        """See `Executor.load_adapter`."""
        tensors = {
            name: (
                torch.tensor(weight.a, device=self._device),
                torch.tensor(weight.b, device=self._device),
                float(weight.scale),
            )
            for name, weight in adapter.weights.items()
        }
        self._adapters = {**self._adapters, slot: tensors}

    def unload_adapter(self, slot: int) -> None:
        """See `Executor.unload_adapter`."""
        self._adapters = {k: v for k, v in self._adapters.items() if k != slot}

    def _now(self) -> float:
        """The time, once the device has done what it was given."""
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return perf_counter()


class _PagedStep:
    """A `torch_graph.Step` of one batch over the paged cache."""

    def __init__(self, batch: Batch, cache: Tensor, tables: Tables, adapters: Adapters) -> None:
        device = cache.device
        self._cache = cache
        self._tables = tables
        self._starts = batch.starts.tolist()
        lengths = np.diff(batch.starts)
        owner = np.repeat(np.arange(len(lengths)), lengths)
        self._blocks = _indices(batch.block_tables[owner, batch.positions // KV_BLOCK], device)
        self._slots = _indices(batch.positions % KV_BLOCK, device)
        self._contexts = [int(batch.positions[end - 1]) + 1 for end in batch.starts[1:]]
        self._pages = [
            _indices(table[: -(-context // KV_BLOCK)], device)
            for table, context in zip(batch.block_tables, self._contexts, strict=True)
        ]
        self._masks: dict[tuple[int, int | None], Tensor] = {}
        self._rows = _indices(batch.logit_rows, device)
        self._adapters = {} if batch.adapters is None else adapters
        if batch.adapters is not None:
            self._owners = _indices(np.repeat(batch.adapters, lengths), device)
        self.tokens = _indices(batch.tokens, device)
        self.positions = _indices(batch.positions, device)

    def turn(self, rotation: Rotation) -> tuple[Tensor, Tensor]:
        cosine, sine = self._tables[rotation]
        return cosine[self.positions], sine[self.positions]

    def write(self, layer: int, key: Tensor, value: Tensor) -> None:
        shape = (-1, *self._cache.shape[4:])
        self._cache[0, layer, self._blocks, self._slots] = key.view(shape)
        self._cache[1, layer, self._blocks, self._slots] = value.view(shape)

    def attend(self, op: Attention, query: Tensor) -> Tensor:
        heads = query.view(1, len(query), op.heads, -1)
        parts = [self._attend(op, heads, sequence) for sequence in range(len(self._pages))]
        return torch.cat(parts, dim=1).reshape(-1, op.width)

    def _attend(self, op: Attention, heads: Tensor, sequence: int) -> Tensor:
        context = self._contexts[sequence]
        both = self._cache[:, op.layer, self._pages[sequence]]
        both = both.reshape(2, 1, -1, *self._cache.shape[4:])[:, :, :context]
        return torch_ops.attention(
            heads[:, self._starts[sequence] : self._starts[sequence + 1]],
            both[0],
            both[1],
            scale=op.scale,
            cap=op.cap,
            mask=self._mask(sequence, op.window) if op.causal else None,
        )

    def _mask(self, sequence: int, window: int | None) -> Tensor:
        key = (sequence, window)
        if key not in self._masks:
            rows = slice(self._starts[sequence], self._starts[sequence + 1])
            context = self._contexts[sequence]
            self._masks[key] = torch_ops.visible(self.positions[rows], context, window)
        return self._masks[key]

    def select(self, x: Tensor) -> Tensor:
        return x[self._rows]

    def adapt(self, weight: str, x: Tensor, product: Tensor) -> Tensor:
        if not any(weight in tensors for tensors in self._adapters.values()):
            return product
        owners = self._owners if len(product) == len(self._owners) else self._owners[self._rows]
        for slot, tensors in self._adapters.items():
            rows = (owners == slot).nonzero()[:, 0]
            if weight in tensors and len(rows):
                product[rows] += torch_ops.lora(x[rows], *tensors[weight])
        return product


def _indices(values: NDArray[np.int32], device: torch.device) -> Tensor:
    return torch.tensor(values, dtype=torch.int64, device=device)


def _check_device(device: torch.device, needed: int) -> None:
    """Refuses what does not fit into the memory of a GPU."""
    if device.type != "cuda":
        return
    free, _ = torch.cuda.mem_get_info(device)
    if needed > free:
        raise CapacityError(
            f"weights and KV cache take {needed / 2**30:.2f} GiB, and {device} has"
            f" {free / 2**30:.2f} GiB free",
            do="choose a shorter context or fewer sequences",
        )

"""The native executor: binds a lowered graph to packed weights and runs it in C++."""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from time import perf_counter

import numpy as np
from numpy.typing import NDArray

from hasten import _native
from hasten.errors import UnsupportedModelError, UsageError
from hasten.generation.executor import adapter_bytes
from hasten.generation.formats import (
    MatrixFormat,
    activation_group,
    choose_formats,
    column_order,
    pack_bias,
    shared_orders,
)
from hasten.generation.kvcache import KV_BLOCK, check_memory
from hasten.generation.lora import LoraSites
from hasten.generation.lowering import lower
from hasten.generation.op_times import ProfiledExecutor
from hasten.generation.packing import Packer
from hasten.generation.threads import LayerClock, choose_threads, thread_limit, time_ops
from hasten.generation.weight_cache import fill_weights
from hasten.kernels.rope import rope_tables
from hasten.models import architectures
from hasten.models.graph import Graph
from hasten.models.lora import LoraAdapter
from hasten.models.model import Model
from hasten.models.ops import (
    Add,
    AddRow,
    Attention,
    Embed,
    EmbedPosition,
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
    Select,
    SiluMul,
    Softcap,
    SplitKvWrite,
    output_of,
    rotations_of,
    weights_of,
)
from hasten.models.rope import Rotation, inverse_frequencies
from hasten.types import Batch, EngineOptions

__all__ = ["NativeExecutor", "choose_isa", "isa_of_recipe", "rival_isas"]

_MAX_HEAD_DIM = 512
"""As in csrc/module.cpp."""


def choose_isa(wanted: str | None) -> str:
    """The instruction set to run: the argument, else `HASTEN_ISA`, else the best there is.

    Raises:
        UsageError: It is unknown, or this machine does not have it.
    """
    available = _native.isas()
    isa = wanted or os.environ.get("HASTEN_ISA") or available[0]
    if isa not in available:
        known = "not available on this machine" if isa in _native.compiled_isas() else "unknown"
        raise UsageError(
            f"instruction set {isa!r} is {known}",
            allowed=", ".join(available),
            do="set --isa or HASTEN_ISA to one of these, or to nothing for the best",
        )
    return isa


def rival_isas() -> list[str]:
    """Instruction sets of this machine that may be as fast as `choose_isa(None)`, best first.

    Wider vectors may lower a processor's clock. Kernels without vectors are never as fast.
    """
    available = _native.isas()
    below = available[available.index(choose_isa(None)) + 1 :]
    return [isa for isa in below if isa != "scalar"]


def isa_of_recipe(named: str) -> str | None:
    """The instruction set that an artefact was measured with, if it is to be used here.

    Args:
        named: By its recipe, which may come from another processor.

    Returns:
        None if this machine does not have it, or `HASTEN_ISA` names one.
    """
    return named if named in _native.isas() and not os.environ.get("HASTEN_ISA") else None


class NativeExecutor(ProfiledExecutor):
    """Runs batches in one C++ call each, without the GIL.

    Args:
        model: Whose weights to pack.
        options: Formats, threads, instruction set, fusion.
        blocks: KV blocks to hold.
        context: Positions of the longest sequence.

    Raises:
        UsageError: An option that does not fit the model or the machine.
        UnsupportedModelError: Attention heads are wider than the kernels take.
        CapacityError: Weights and KV cache exceed the memory of this process.
    """

    def __init__(self, model: Model, options: EngineOptions, blocks: int, context: int) -> None:
        config = model.config
        if config.head_dim > _MAX_HEAD_DIM:
            raise UnsupportedModelError(
                f"the attention heads have {config.head_dim} dimensions",
                allowed=f"up to {_MAX_HEAD_DIM}",
            )
        self.isa = choose_isa(options.isa)
        graph = architectures.build(config)
        formats = choose_formats(model.weights, weights_of(graph.ops), options)
        names = {name: str(form) for name, form in formats.items()}
        groups = {name: activation_group(form) for name, form in formats.items()}
        orders = shared_orders(model.weights, formats)
        lora_rank = options.max_lora_rank if options.max_adapters else 0
        self.graph = lower(graph, names, groups, options.fuse, orders, lora_rank)
        check_memory(
            config,
            options.kv,
            blocks,
            adapter_bytes(model, options)
            + sum(form.nbytes(model.weights[name].shape) for name, form in formats.items()),
        )
        self.formats = names
        self._program = _native.Program(
            thread_limit(options), self.isa, options.chunk, options.chunk, context
        )
        cache = _native.KvCache(
            options.kv, config.kv_layers, blocks, config.num_kv_heads, config.head_dim
        )
        self._program.set_cache(cache)
        tables = {}
        for rotation in rotations_of(self.graph.ops):
            frequencies = inverse_frequencies(rotation, context)
            cosine, sine = rope_tables(frequencies, context, rotation.magnitude)
            tables[rotation] = self._program.add_rope(cosine, sine)
        if options.max_adapters:
            self._program.reserve_adapters(options.max_adapters)
        self._sites = LoraSites(self._program, options.lora)
        packer = Packer(model.weights, formats)
        _Binder(self._program, model, self.graph, packer, formats, tables, self._sites).bind()
        threads = thread_limit(options)
        self._weights = fill_weights(packer, model.files, threads, keep=options.keep_weights)
        self.weights_source = self._weights.source
        limit = min(options.chunk, context, KV_BLOCK)
        clock = LayerClock(self._program, self.graph, limit)
        self.thread_choice = choose_threads(options, clock)
        self.memory = {
            "weights": sum(matrix.nbytes for matrix in packer.matrices),
            "kv_cache": cache.nbytes,
            "buffers": self._program.buffer_bytes,
        }
        if options.max_adapters:
            self.memory["adapters"] = adapter_bytes(model, options)

    def run(self, batch: Batch) -> NDArray[np.float32]:
        """See `Executor.run`."""
        output = np.empty((len(batch.logit_rows), self._program.output_width), np.float32)
        times = None if self._times is None else self._times.of(batch)
        started = perf_counter()
        self._program.run(
            batch.tokens,
            batch.positions,
            batch.starts,
            batch.block_tables,
            batch.logit_rows,
            output,
            batch.adapters,
            self.thread_choice.for_tokens(len(batch.tokens)),
            None if times is None else times.ops,
        )
        if times is not None:
            times.add(batch, perf_counter() - started)
        # Not sooner: the first token should not wait for the disk.
        self._weights.keep()
        return output

    def op_seconds(self, tokens: int) -> dict[str, float]:
        """Where the time of a prompt goes: seconds by kind of op ("Linear", "Attention", ...).

        Each op runs alone, on the threads that it would have. What it computes means nothing and
        overwrites keys and values, so this is for an executor that serves nobody.

        Args:
            tokens: Of the prompt, at most a chunk.
        """
        output = np.empty((1, self._program.output_width), np.float32)
        threads = self.thread_choice.for_tokens(tokens)
        seconds: defaultdict[str, float] = defaultdict(float)
        for number, op in enumerate(self.graph.ops):
            ops = range(number, number + 1)
            seconds[type(op).__name__] += time_ops(self._program, ops, tokens, threads, output)
        return seconds

    def load_adapter(self, slot: int, adapter: LoraAdapter) -> None:
        """See `Executor.load_adapter`."""
        self._sites.load(slot, adapter.weights)

    def unload_adapter(self, slot: int) -> None:
        """See `Executor.unload_adapter`."""
        self._sites.load(slot, {})


class _Binder:
    """Gives each value of a lowered graph a buffer, each matrix its panels, each op its call."""

    def __init__(
        self,
        program: _native.Program,
        model: Model,
        graph: Graph,
        packer: Packer,
        formats: dict[str, MatrixFormat],
        tables: dict[Rotation, int],
        sites: LoraSites,
    ) -> None:
        self._program = program
        self._weights = model.weights
        self._layers = model.config.kv_layers
        self._graph = graph
        self._packer = packer
        self._formats = formats
        self._tables = tables
        self._buffers: dict[str, int] = {}
        self._free: dict[tuple[int, int, bool], list[int]] = {}
        self._kinds: dict[int, tuple[int, int, bool]] = {}
        self._selected: set[str] = set()
        self._reads = Counter(name for op in graph.ops for name in graph.inputs(op))
        self._outputs = self._names_of_output()
        self._sites = sites

    def bind(self) -> None:
        """Adds all ops to the program; the matrices are filled later."""
        for op in self._graph.ops:
            inputs = self._graph.inputs(op)
            if isinstance(op, Select) or not self._selected.isdisjoint(inputs):
                self._selected.add(output_of(op))
            self._bind(op)
            for name in inputs:
                self._reads[name] -= 1
                if self._reads[name] == 0:
                    self._release(name, op)

    def _bind(self, op: Op) -> None:
        program, buffers = self._program, self._buffers
        match op:
            case Embed():
                if self._order(op.weight) is not None:
                    raise UnsupportedModelError(
                        f"{op.weight!r} is an embedding whose columns are out of order",
                        do="run it in another format (`--weights int8:32`)",
                    )
                program.embed(self._packer.matrix((op.weight,)), self._place(op.out, op.width))
            case EmbedPosition():
                table = self._weights[op.weight].to_float32()
                program.embed_position(table, op.offset, self._place(op.out, op.width))
            case AddRow():
                row = self._weights[op.weight].to_float32()[op.row]
                program.add_row(buffers[op.source], row, self._place(op.out, op.width))
            case LayerNorm():
                weight, bias = (self._weights[name].to_float32() for name in (op.weight, op.bias))
                out = self._place(op.out, op.width, op.group)
                program.layer_norm(buffers[op.source], weight, bias, op.eps, out)
            case RmsNorm():
                out = self._place(op.out, op.width, op.group)
                program.rms_norm(buffers[op.source], self._norm_weight(op), op.eps, out)
            case Quantize():
                out = self._place(op.out, op.width, op.group)
                program.quantize(buffers[op.source], out, self._order(op.order))
            case LoraShrink():
                out = self._place(op.out, op.width)
                self._sites.shrink(op, buffers[op.source], out)
            case Linear():
                self._bind_linear(op)
            case Rope():
                out = self._place(op.out, op.width)
                program.rope(buffers[op.source], op.heads, out, self._tables[op.rotation])
            case KvWrite():
                layer = op.layer % self._layers
                program.kv_write(buffers[op.key], buffers[op.value], layer)
            case SplitKvWrite():
                out = self._place(op.out, op.width)
                program.split_kv_write(buffers[op.source], op.layer % self._layers, out)
            case RopeKvWrite():
                self._bind_rope_kv_write(op)
            case Attention():
                out = self._place(op.out, op.width)
                layer = op.layer % self._layers
                program.attention(
                    buffers[op.source],
                    op.heads,
                    layer,
                    out,
                    op.window or 0,
                    op.causal,
                    op.scale,
                    op.cap or 0,
                )
            case SiluMul():
                out = self._place(op.out, op.width)
                program.silu_mul(buffers[op.gate], buffers[op.up], out)
            case Gelu():
                program.gelu(buffers[op.source], op.tanh, self._place(op.out, op.width))
            case GeluMul():
                out = self._place(op.out, op.width)
                program.gelu_mul(buffers[op.gate], buffers[op.up], out)
            case Scale():
                program.scale(buffers[op.source], op.factor, self._in_place(op))
            case Softcap():
                program.softcap(buffers[op.source], op.cap, self._in_place(op))
            case Add():
                program.add(buffers[op.a], buffers[op.b], self._place(op.out, op.width))
            case Select():
                program.select(buffers[op.source], self._place(op.out, op.width))

    def _order(self, name: str | None) -> NDArray[np.int32] | None:
        return None if name is None else column_order(self._weights[name], self._formats[name])

    def _bind_linear(self, op: Linear) -> None:
        gated = op.gated
        if op.residual is not None:
            out = self._buffers[op.out] = self._buffers[op.residual]
        else:
            out = self._place(op.out, op.width)
        bias = None
        if op.biases:
            biases = [self._weights[name].to_float32() for name in op.biases]
            bias = pack_bias(biases, gated=gated)
        matrix = self._packer.matrix(op.weights, gated=gated)
        site = self._sites.expand(op, self._order(op.weights[0]))
        self._program.linear(
            self._buffers[op.source], matrix, out, bias, op.epilogue, op.scale, site
        )

    def _bind_rope_kv_write(self, op: RopeKvWrite) -> None:
        source, out = self._buffers[op.source], self._place(op.out, op.width)
        query, key = op.query_norm, op.key_norm
        self._program.rope_kv_write(
            source,
            op.heads,
            op.layer,
            out,
            self._tables[op.rotation],
            None if query is None else self._norm_weight(query),
            None if key is None else self._norm_weight(key),
            next((norm.eps for norm in (query, key) if norm is not None), 0.0),
        )

    def _norm_weight(self, norm: RmsNorm | HeadNorm) -> NDArray[np.float32]:
        weight = self._weights[norm.weight].to_float32()
        return weight + np.float32(norm.offset) if norm.offset else weight

    def _place(self, name: str, width: int, group: int = 0) -> int:
        """A buffer for a value: one that is no longer read, a new one, or the caller's array."""
        if name in self._outputs:
            self._buffers[name] = self._program.add_output(width)
            return self._buffers[name]
        selected = name in self._selected
        kind = (width, group, selected)
        free = self._free.setdefault(kind, [])
        if free:
            index = free.pop()
        elif group:
            index = self._program.add_quantized_buffer(width, group, selected)
        else:
            index = self._program.add_buffer(width, selected)
        self._kinds[index] = kind
        self._buffers[name] = index
        return index

    def _in_place(self, op: Scale | Softcap) -> int:
        """The buffer of the source, where nothing else reads it."""
        if self._reads[op.source] > 1:
            return self._place(op.out, op.width)
        self._buffers[op.out] = self._buffers[op.source]
        return self._buffers[op.out]

    def _names_of_output(self) -> set[str]:
        """The logits, and what they are before the ops that change them in place."""
        producers = {op.out: op for op in self._graph.ops if isinstance(op, Scale | Softcap)}
        name = self._graph.output
        names = {name}
        while name in producers and self._reads[producers[name].source] == 1:
            name = producers[name].source
            names.add(name)
        return names

    def _release(self, name: str, op: Op) -> None:
        in_place = (isinstance(op, Linear) and name == op.residual) or (
            isinstance(op, Scale | Softcap) and self._buffers[name] == self._buffers[op.out]
        )
        if not in_place:
            index = self._buffers[name]
            self._free[self._kinds[index]].append(index)

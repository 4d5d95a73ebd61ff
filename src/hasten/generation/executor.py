"""What every executor offers, and the choice of one."""

from __future__ import annotations

import math
from contextlib import AbstractContextManager
from types import TracebackType
from typing import Literal, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from hasten.generation.op_times import OpTimes
from hasten.generation.threads import ThreadChoice
from hasten.generation.torch_extra import require_torch
from hasten.kernels.lora import packed_values
from hasten.models import architectures
from hasten.models.lora import LoraAdapter, adapted_modules
from hasten.models.model import Model
from hasten.models.ops import weights_of
from hasten.types import Batch, EngineOptions

__all__ = ["Executor", "OverExecutor", "adapter_bytes", "make_executor", "weight_bytes"]


class Executor(Protocol):
    """Runs batches of one model; holds its packed weights and the KV cache."""

    isa: str
    thread_choice: ThreadChoice
    formats: dict[str, str]
    memory: dict[str, int]
    weights_source: Literal["cache", "files"]

    def run(self, batch: Batch) -> NDArray[np.float32]:
        """Output of the graph for the batch's `logit_rows`; the tokens' keys and values stay.

        Logits [rows, vocab], or last hidden states [rows, hidden] of a model that ends with them.
        """
        ...

    def load_adapter(self, slot: int, adapter: LoraAdapter) -> None:
        """Puts a LoRA adapter into a slot, for the batches that name it."""
        ...

    def unload_adapter(self, slot: int) -> None:
        """Empties a slot."""
        ...

    def profile(self) -> AbstractContextManager[OpTimes]:
        """Measures each op of each step while the block runs, into what it yields."""
        ...


class OverExecutor:
    """What has an executor under it: says what that runs, and frees it at the end of a `with`."""

    _executor: Executor

    @property
    def isa(self) -> str:
        """Instruction set that runs."""
        return self._executor.isa

    @property
    def threads(self) -> int:
        """Most worker threads of a step."""
        return self._executor.thread_choice.prefill

    @property
    def thread_choice(self) -> ThreadChoice:
        """Worker threads of prompts and of decoding, and why so many."""
        return self._executor.thread_choice

    @property
    def formats(self) -> dict[str, str]:
        """Format in which each weight matrix runs, by tensor name."""
        return self._executor.formats

    @property
    def weights_source(self) -> Literal["cache", "files"]:
        """Whether the packed weights of an earlier start were read, or the model's files packed."""
        return self._executor.weights_source

    @property
    def memory(self) -> dict[str, int]:
        """Bytes of the packed weights, the KV cache, the activation buffers and the adapters."""
        return self._executor.memory

    def close(self) -> None:
        """Frees the weights and the threads."""
        del self._executor

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def make_executor(model: Model, options: EngineOptions, blocks: int, context: int) -> Executor:
    """The executor that the options name.

    Args:
        model: Whose weights to bind.
        options: Which executor, and how.
        blocks: KV blocks to hold.
        context: Positions of the longest sequence.

    Raises:
        MissingDependencyError: It needs a package that is not installed.
    """
    if options.executor == "reference":
        from hasten.generation.reference import ReferenceExecutor

        return ReferenceExecutor(model, blocks, context)
    if options.executor == "torch":
        require_torch("the torch executor")
        from hasten.generation.torch_executor import TorchExecutor

        return TorchExecutor(model, options, blocks, context)
    from hasten.generation.native import NativeExecutor

    return NativeExecutor(model, options, blocks, context)


def weight_bytes(model: Model, options: EngineOptions) -> int:
    """Bytes that the matrices of a model and its adapters take in the executor of the options.

    Raises:
        UsageError: Weight formats that do not fit the model.
    """
    adapters = adapter_bytes(model, options)
    if options.executor != "native":
        return adapters + 4 * sum(math.prod(tensor.shape) for tensor in model.weights.values())
    from hasten.generation.formats import choose_formats

    names = weights_of(architectures.build(model.config).ops)
    formats = choose_formats(model.weights, names, options)
    matrices = sum(form.nbytes(model.weights[name].shape) for name, form in formats.items())
    return adapters + matrices


def adapter_bytes(model: Model, options: EngineOptions) -> int:
    """Bytes that are kept for `max_adapters` adapters of the highest rank on every product."""
    if options.max_adapters == 0:
        return 0
    values = sum(
        packed_values(rows, module.columns, options.max_lora_rank)
        for module in adapted_modules(model.config).values()
        for _, rows in module.parts
    )
    float32 = options.executor != "native" or options.lora == "f32"
    return options.max_adapters * values * (4 if float32 else 2)

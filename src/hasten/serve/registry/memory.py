"""How much memory a model takes, and how models share what there is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from hasten.errors import CapacityError
from hasten.generation.executor import weight_bytes
from hasten.generation.kvcache import block_bytes, blocks_for, cache_format, choose_context
from hasten.machine import memory_limit
from hasten.models.lora import load_adapter
from hasten.models.model import Model
from hasten.types import EngineOptions

__all__ = [
    "PROCESS_BYTES",
    "MemoryBudget",
    "Need",
    "adapter_options",
    "estimate",
    "server_budget",
]

PROCESS_BYTES = 64 << 20
"""What a process with an engine takes before it has a model: the interpreter and its libraries."""

_SERVER_SHARE = 10
_SERVER_MOST = 1 << 30


@dataclass(frozen=True, slots=True)
class Need:
    """What an engine will take, in bytes.

    Attributes:
        fixed: Weights, buffers and the process.
        least: The smallest KV cache with which it serves what it promises.
        wanted: The largest KV cache that it would use.
    """

    fixed: int
    least: int
    wanted: int


def server_budget(wanted: int | None) -> int:
    """Bytes for all models together: what is wanted, else the limit less a reserve for the server.

    Args:
        wanted: `ServerSettings.memory`.
    """
    if wanted is not None:
        return wanted
    limit = memory_limit()
    return limit - min(limit // _SERVER_SHARE, _SERVER_MOST)


def adapter_options(
    model: Model, options: EngineOptions, adapters: Mapping[str, str]
) -> EngineOptions:
    """Options with room for LoRA adapters.

    Args:
        model: What they adapt.
        options: How to run it.
        adapters: Their directories, by name.

    Raises:
        ModelFileError: A file is missing, contradicts itself or does not fit the model.
        UnsupportedModelError: A variant of LoRA that Hasten does not run.
    """
    ranks = [load_adapter(Path(path), model.config).rank for path in adapters.values()]
    return replace(
        options,
        max_adapters=max(options.max_adapters, len(adapters)),
        max_lora_rank=max(options.max_lora_rank, *ranks),
    )


def estimate(
    model: Model, kind: Literal["generate", "embed"], options: EngineOptions, budget: int
) -> Need:
    """What a model will take; reads shapes only.

    A model whose longest sequence is the default, not the user's choice, gets along with a shorter
    one where the whole budget holds no more, as engines do.

    Args:
        model: What will run.
        kind: As what.
        options: How.
        budget: Bytes for all models together.

    Raises:
        UsageError: Options that do not fit the model.
        CapacityError: It would not fit even if it were alone.
    """
    config = model.config
    if kind == "embed" and config.output == "logits":
        model = replace(model, config=replace(config, output="hidden"))
    block = block_bytes(config, cache_format(options))
    longest = blocks_for(choose_context(config, options)) * block
    rows = 4 * config.hidden_size + 3 * config.intermediate_size
    fixed = PROCESS_BYTES + weight_bytes(model, options) + 4 * options.chunk * rows
    if kind == "embed":
        size = max(longest, options.chunk // 8 * block)
        least = wanted = size
    elif options.kv_memory is not None:
        least = wanted = options.kv_memory
    else:
        left = max(block, (budget - fixed) // block * block)
        least = longest if options.max_context is not None else min(longest, left)
        wanted = longest * options.max_sequences
    if fixed + least > budget:
        raise CapacityError(
            f"{model.name} takes {_gib(fixed)} and {_gib(least)} for keys and values, and all "
            f"models together may take {_gib(budget)}",
            do="choose smaller weights or a shorter context, or give the server more memory",
        )
    return Need(fixed, least, wanted)


class MemoryBudget:
    """Who holds how much of the memory for models.

    Args:
        total: Bytes for all together.
    """

    def __init__(self, total: int) -> None:
        self.total = total
        self._held: dict[object, int] = {}

    @property
    def free(self) -> int:
        """Bytes that nobody holds; below zero where engines turned out larger than estimated."""
        return self.total - sum(self._held.values())

    def share(self, need: Need, coming: Sequence[Need] = ()) -> int | None:
        """Bytes of the KV cache that an engine may have now; None if there is no room for it.

        Engines that come together have equal shares, and leave as much to those that come later.

        Args:
            need: What it takes.
            coming: What those take that are loaded right after it.
        """
        left = self.free - need.fixed
        if left < need.least:
            return None
        shared = left - sum(other.fixed for other in coming)
        return min(need.wanted, max(need.least, shared // (2 + len(coming))))

    def hold(self, owner: object, size: int) -> None:
        """Notes that someone holds so many bytes, whatever it held before."""
        self._held[owner] = size

    def held(self, owner: object) -> int:
        """Bytes that someone holds."""
        return self._held.get(owner, 0)

    def release(self, owner: object) -> None:
        """Notes that someone holds nothing any more."""
        self._held.pop(owner, None)


def _gib(size: int) -> str:
    return f"{size / 2**30:.2f} GiB"

"""How large the KV cache is."""

from __future__ import annotations

from dataclasses import dataclass

from hasten.errors import CapacityError, UsageError
from hasten.machine import memory_limit
from hasten.models.config import ModelConfig
from hasten.types import EngineOptions

__all__ = [
    "DEFAULT_CONTEXT",
    "KV_BLOCK",
    "CacheSize",
    "block_bytes",
    "blocks_for",
    "cache_format",
    "check_memory",
    "choose_cache_size",
    "choose_context",
    "kv_bytes_per_block",
]

KV_BLOCK = 32
"""Positions of a block, in every executor (kKvBlock in csrc/kernels/kernels.h)."""

DEFAULT_CONTEXT = 8192
"""Longest sequence where neither the user nor the model says less."""

_DIM_STEP = 32
"""Heads are padded to a multiple of this (kDimStep in csrc/kv_cache.cpp)."""
_ELEMENT_BYTES = {"f32": 4, "bf16": 2, "int8": 1}


def blocks_for(positions: int) -> int:
    """Blocks that hold so many positions."""
    return -(-positions // KV_BLOCK)


def kv_bytes_per_block(kv: str, layers: int, kv_heads: int, head_dim: int) -> int:
    """Bytes of one block over all layers, without alignment."""
    scales = 2 * 4 if kv == "int8" else 0
    each = 2 * head_dim * _ELEMENT_BYTES[kv] + scales
    return layers * kv_heads * KV_BLOCK * each


def check_memory(config: ModelConfig, kv: str, blocks: int, weights: int) -> None:
    """Refuses what cannot fit, before any of it is allocated.

    Args:
        config: Shape of the cache.
        kv: Format of the cache.
        blocks: Blocks of the cache.
        weights: Bytes of the weights.

    Raises:
        CapacityError: Both together exceed the memory that this process may use.
    """
    cache = blocks * block_bytes(config, kv)
    limit = memory_limit()
    if weights + cache > limit:
        raise CapacityError(
            f"the weights take {_gib(weights)} and the KV cache {_gib(cache)}, and this process"
            f" may use {_gib(limit)}",
            do="choose smaller weights, a shorter context, fewer sequences or an int8 KV cache",
        )


@dataclass(frozen=True, slots=True)
class CacheSize:
    """What the cache holds.

    Attributes:
        blocks: Of `KV_BLOCK` positions, shared out to all sequences.
        context: Positions of the longest sequence; they fit into the blocks.
    """

    blocks: int
    context: int


def choose_cache_size(config: ModelConfig, options: EngineOptions, weights: int) -> CacheSize:
    """Sizes the cache by the memory that this process may use, before any of it is allocated.

    Args:
        config: Shape of the cache.
        options: `kv`, `kv_memory`, `max_context` and `max_sequences` count.
        weights: Bytes of the weights.

    Raises:
        UsageError: `max_context` is beyond the model's own limit.
        CapacityError: Weights and cache exceed the memory, or the longest sequence the cache.
    """
    size = block_bytes(config, cache_format(options))
    context = choose_context(config, options)
    left = memory_limit() - weights
    if options.kv_memory is None:
        most = blocks_for(context) * options.max_sequences
        blocks = min(most, max(left // 2 // size, min(blocks_for(context), left // size)))
    else:
        blocks = options.kv_memory // size
    if blocks * size > left or blocks < (1 if options.max_context is None else blocks_for(context)):
        cache = options.kv_memory or blocks_for(context) * size
        raise CapacityError(
            f"the weights take {_gib(weights)}, the KV cache {_gib(cache)}, where a sequence of"
            f" {context} tokens needs {_gib(blocks_for(context) * size)}, and this process may use"
            f" {_gib(memory_limit())}",
            do="choose smaller weights, a shorter context, another kv_memory or an int8 KV cache",
        )
    return CacheSize(blocks, min(context, blocks * KV_BLOCK))


def cache_format(options: EngineOptions) -> str:
    """Format of the KV cache; only the native executor has another than float32."""
    return options.kv if options.executor == "native" else "f32"


def block_bytes(config: ModelConfig, kv: str) -> int:
    """Bytes of one block as the native executor lays it out."""
    padded = -(-config.head_dim // _DIM_STEP) * _DIM_STEP
    return kv_bytes_per_block(kv, config.kv_layers, config.num_kv_heads, padded)


def choose_context(config: ModelConfig, options: EngineOptions) -> int:
    """Positions of the longest sequence, where there is memory for it.

    Raises:
        UsageError: `max_context` is beyond the model's own limit.
    """
    longest = config.longest
    if options.max_context is None:
        return min(config.max_position, DEFAULT_CONTEXT)
    if not 1 <= options.max_context <= longest:
        raise UsageError(
            f"max_context is {options.max_context}",
            allowed=f"1 to {longest}, the longest sequence that the model was made for",
        )
    return options.max_context


def _gib(size: int) -> str:
    return f"{size / 2**30:.2f} GiB"

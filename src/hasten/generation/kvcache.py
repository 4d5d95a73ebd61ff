"""Which sequence owns which blocks of the KV cache."""

from __future__ import annotations

from hasten.errors import CapacityError
from hasten.machine import memory_limit
from hasten.models.config import ModelConfig

__all__ = ["KV_BLOCK", "BlockPool", "blocks_for", "check_memory", "kv_bytes_per_block"]

KV_BLOCK = 32
"""Positions of a block, in every executor (kKvBlock in csrc/kernels/kernels.h)."""

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
    cache = blocks * kv_bytes_per_block(kv, config.kv_layers, config.num_kv_heads, config.head_dim)
    limit = memory_limit()
    if weights + cache > limit:
        raise CapacityError(
            f"the weights take {weights / 2**30:.1f} GiB and the KV cache {cache / 2**30:.1f} GiB,"
            f" and this process may use {limit / 2**30:.1f} GiB",
            do="choose smaller weights, a shorter context, fewer sequences or an int8 KV cache",
        )


class BlockPool:
    """Hands out blocks by number and takes them back.

    Args:
        blocks: How many there are; their numbers are 0 .. blocks - 1.
    """

    def __init__(self, blocks: int) -> None:
        self._free = list(range(blocks - 1, -1, -1))
        self.total = blocks

    @property
    def free(self) -> int:
        """Blocks that nobody owns."""
        return len(self._free)

    def take(self, count: int) -> list[int]:
        """Takes so many blocks.

        Raises:
            CapacityError: Fewer are free.
        """
        if count > len(self._free):
            raise CapacityError(
                f"{count} KV blocks are needed and {len(self._free)} of {self.total} are free",
                do="raise max_context or max_sequences, or wait for running requests",
            )
        return [self._free.pop() for _ in range(count)]

    def give_back(self, blocks: list[int]) -> None:
        """Returns blocks that `take` gave."""
        self._free.extend(reversed(blocks))

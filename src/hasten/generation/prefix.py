"""Names for what KV blocks hold, so that equal beginnings of sequences share them.

A block's name is a digest of its own tokens and of the name before it, so it stands for the whole
sequence up to its end; the first one follows a root that tenant and adapter alone determine. Equal
names mean equal keys and values: those of a position depend on the tokens up to it, on the weights
and on nothing else. After vLLM (`vllm/v1/core/kv_cache_utils.py`, hash_block_tokens).
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence as Tokens
from hashlib import sha256

from hasten.generation.kvcache import KV_BLOCK

__all__ = ["BlockNames"]


class BlockNames:
    """The names of a growing sequence's full blocks, made when they are asked for.

    Args:
        tenant: Sequences of different tenants never share.
        adapter: Nor do those with different adapters: a digest, or None for the model itself.
    """

    def __init__(self, tenant: str, adapter: str | None) -> None:
        # repr() keeps ("a", "b") and ("a', 'b", ...) apart, and None and "None".
        self._root = sha256(repr((tenant, adapter)).encode()).digest()
        self._names: list[bytes] = []

    def up_to(self, tokens: Tokens[int], count: int) -> list[bytes]:
        """The names of the first blocks of a sequence.

        Args:
            tokens: All tokens of the sequence so far; those of former calls must not have changed.
            count: How many blocks; all of them must be full.
        """
        for index in range(len(self._names), count):
            before = self._names[-1] if self._names else self._root
            block = array("i", tokens[index * KV_BLOCK : (index + 1) * KV_BLOCK])
            self._names.append(sha256(before + block.tobytes()).digest())
        return self._names[:count]

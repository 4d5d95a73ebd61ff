"""Who holds which block of the KV cache, and which blocks hold what is worth keeping."""

from __future__ import annotations

from collections.abc import Sequence as Numbers

from hasten.errors import CapacityError

__all__ = ["BlockPool"]


class BlockPool:
    """Hands out blocks by number, lets several sequences hold one, and finds full ones by name.

    A block that nobody holds any more but that has a name keeps its content until its place is
    needed; then the one that has been unused for longest goes first.

    Args:
        blocks: How many there are; their numbers are 0 .. blocks - 1.
    """

    def __init__(self, blocks: int) -> None:
        self.total = blocks
        self._free = list(range(blocks - 1, -1, -1))
        self._holders = [0] * blocks
        self._names: list[bytes | None] = [None] * blocks
        self._named: dict[bytes, int] = {}
        # Blocks with a name and without holders, the longest unused first.
        self._unused: dict[int, None] = {}

    @property
    def free(self) -> int:
        """Blocks that nobody holds, those with content included."""
        return len(self._free) + len(self._unused)

    @property
    def cached(self) -> int:
        """Blocks that nobody holds and whose content can still be found."""
        return len(self._unused)

    def holders(self, block: int) -> int:
        """How many hold a block."""
        return self._holders[block]

    def take(self, count: int) -> list[int]:
        """Takes so many blocks to write to.

        Raises:
            CapacityError: Fewer are free.
        """
        if count > self.free:
            raise CapacityError(
                f"{count} KV blocks are needed and {self.free} of {self.total} are free",
                do="wait for running requests, or give the KV cache more memory",
            )
        blocks = [self._free.pop() if self._free else self._evict() for _ in range(count)]
        for block in blocks:
            self._holders[block] = 1
        return blocks

    def has(self, name: bytes) -> bool:
        """Whether a block of this name can be shared."""
        return name in self._named

    def share(self, name: bytes) -> int | None:
        """Takes the block of this name, to read from; None where there is none."""
        block = self._named.get(name)
        if block is not None:
            self._holders[block] += 1
            self._unused.pop(block, None)
        return block

    def set_name(self, block: int, name: bytes) -> None:
        """Makes a full block findable; where another has the name already, this one stays without.

        Args:
            block: A block that somebody holds.
            name: What it holds, as `BlockNames` has it.
        """
        if self._names[block] is None and name not in self._named:
            self._names[block] = name
            self._named[name] = block

    def give_back(self, blocks: Numbers[int]) -> None:
        """Lets go of a sequence's blocks, in the order of its positions."""
        # The last positions go first when room is needed: nothing builds on them.
        for block in reversed(blocks):
            self._holders[block] -= 1
            if self._holders[block] == 0:
                if self._names[block] is None:
                    self._free.append(block)
                else:
                    self._unused[block] = None

    def forget(self) -> None:
        """Takes all names away, as when the weights that the content came from have changed."""
        self._free.extend(reversed(self._unused))
        self._unused.clear()
        self._named.clear()
        self._names = [None] * self.total

    def _evict(self) -> int:
        block = next(iter(self._unused))
        del self._unused[block]
        name = self._names[block]
        if name is not None:
            del self._named[name]
        self._names[block] = None
        return block

"""Responses that clients may come back to."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

from hasten.errors import NotFoundError

__all__ = ["ResponseStore", "StoredResponse"]

_OVERHEAD = 1024
"""Bytes that one takes besides its texts."""


@dataclass(frozen=True, slots=True)
class StoredResponse:
    """A response and what led to it, as JSON texts.

    Attributes:
        id: Of the response.
        previous: The one that it goes on from; None where it begins.
        items: What was put in.
        response: What came out.
    """

    id: str
    previous: str | None
    items: bytes
    response: bytes

    @property
    def size(self) -> int:
        """Bytes that it takes, about."""
        return len(self.items) + len(self.response) + _OVERHEAD


class ResponseStore:
    """Keeps responses in memory, apart by tenant.

    Where there are too many, the tenant with the most bytes loses what it has not asked for the
    longest, so that no tenant can push out another's.

    Args:
        limit: Bytes to keep.
    """

    def __init__(self, limit: int = 64 << 20) -> None:
        self._limit = limit
        self._kept: dict[str, OrderedDict[str, StoredResponse]] = {}
        self._sizes: dict[str, int] = {}

    def keep(self, tenant: str, stored: StoredResponse) -> None:
        """Keeps a response, as long as there is room; one that is too large is not kept."""
        if stored.size > self._limit:
            return
        kept = self._kept.setdefault(tenant, OrderedDict())
        kept[stored.id] = stored
        self._sizes[tenant] = self._sizes.get(tenant, 0) + stored.size
        while sum(self._sizes.values()) > self._limit:
            largest = max(self._sizes, key=self._sizes.__getitem__)
            self.delete(largest, next(iter(self._kept[largest])))

    def get(self, tenant: str, name: str) -> StoredResponse:
        """The response of this id.

        Raises:
            NotFoundError: This tenant has none, or it is not kept any more.
        """
        kept = self._kept.get(tenant)
        if kept is None or name not in kept:
            raise NotFoundError(
                f"there is no response {name!r:.80}, or it is not kept any more",
                do="send what was said before as input",
            )
        kept.move_to_end(name)
        return kept[name]

    def delete(self, tenant: str, name: str) -> None:
        """Forgets a response.

        Raises:
            NotFoundError: As `get`.
        """
        stored = self.get(tenant, name)
        del self._kept[tenant][name]
        self._sizes[tenant] -= stored.size
        if not self._kept[tenant]:
            del self._kept[tenant], self._sizes[tenant]

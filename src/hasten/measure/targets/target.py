"""What every target is."""

from __future__ import annotations

from collections.abc import Mapping
from types import TracebackType
from typing import Protocol

from hasten.errors import HastenError
from hasten.measure.records import Answer
from hasten.measure.workload import Item, Tensors

__all__ = ["Target", "TargetError"]


class TargetError(HastenError):
    """A target refused a request, broke it off, or answered what its protocol does not allow."""


class Target(Protocol):
    """A model in this process or a server; it is open within `async with`.

    One may be opened again after it was closed, in another event loop, too.
    """

    def describe(self) -> Mapping[str, object]:
        """JSON-ready: "kind", "model", and what else one must know to measure it again."""
        ...

    async def send(self, work: Item | Tensors, answer: Answer) -> None:
        """Makes one request and notes in `answer` what comes, until it is over.

        Being cancelled, it leaves nothing of the request behind.

        Raises:
            HastenError: The request failed; `TargetError` unless another class says more.
        """
        ...

    async def __aenter__(self) -> Target: ...

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None: ...

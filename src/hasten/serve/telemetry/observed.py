"""What became of one HTTP request, gathered while it runs, for the log, the traces and the metrics.

The front makes one, and what runs inside the request finds it in `CURRENT`.
"""

from __future__ import annotations

from contextvars import ContextVar
from dataclasses import dataclass, field

from hasten.serve.jobs import EndReason, Usage
from hasten.types import SamplingParams

__all__ = ["CURRENT", "Observed"]


@dataclass(slots=True)
class Observed:
    """One HTTP request. It never holds a body, a query string or a key.

    Attributes:
        id: Of the request; filled by the front as it learns them, as all to `error`.
        method: Of HTTP.
        path: As it was asked for, without the query string.
        received: When the request came, in seconds of `time.monotonic`.
        client: Name of its API key.
        route: The path of the `Route` that answers, "" for none; unlike `path`, one of few.
        protocol: Which protocol the route belongs to, such as "openai".
        status: Of the response, 0 while there is none.
        disconnected: The client left before the end.
        error: What went wrong.
        model: Which model answers, a name that the server knows; filled by the service, as all
            that follow.
        operation: "chat", "text_completion" or "embeddings".
        sampling: What was asked for.
        usages: One for each of its jobs that ended well.
        reasons: Why outputs ended.
        cache: What the response cache said.
    """

    id: str
    method: str
    path: str
    received: float
    client: str = ""
    route: str = ""
    protocol: str = ""
    status: int = 0
    disconnected: bool = False
    error: BaseException | None = None
    model: str = ""
    operation: str = ""
    sampling: SamplingParams | None = None
    usages: list[Usage] = field(default_factory=list)
    reasons: list[EndReason] = field(default_factory=list)
    cache: str = "off"

    @property
    def routine(self) -> bool:
        """Whether a machine asks it every few seconds, so that it is not worth a line."""
        return self.route == "/metrics" or self.route.startswith("/health")

    @property
    def prompt_tokens(self) -> int:
        """Of all its jobs."""
        return sum(usage.prompt_tokens for usage in self.usages)

    @property
    def cached_tokens(self) -> int:
        """Those of them that the prefix cache held."""
        return sum(usage.cached_tokens for usage in self.usages)

    @property
    def output_tokens(self) -> int:
        """Of all its jobs."""
        return sum(usage.output_tokens for usage in self.usages)


CURRENT: ContextVar[Observed | None] = ContextVar("hasten_request", default=None)
"""The HTTP request that the running code works for; None outside of one, as in a batch."""

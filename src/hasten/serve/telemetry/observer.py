"""What the rest of the server calls to be observed: metrics, traces and the access log in one."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

from hasten.serve.jobs import Conversation, Embeddings, EmbedJob, EndReason, Job, Timing, Usage
from hasten.serve.telemetry.logs import log_access
from hasten.serve.telemetry.metrics import Metrics
from hasten.serve.telemetry.observed import CURRENT, Observed
from hasten.serve.telemetry.tracing import NoTracer, Tracer

__all__ = ["Observer"]


class Observer:
    """Observes requests and jobs.

    Args:
        metrics: Where they are counted.
        tracer: Where they are traced.
    """

    def __init__(self, metrics: Metrics, tracer: Tracer | None = None) -> None:
        self.metrics = metrics
        self.tracer = NoTracer() if tracer is None else tracer

    @contextmanager
    def request(self, observed: Observed, headers: Mapping[str, str]) -> Iterator[Observed]:
        """One HTTP request, from its headers to the last byte of its answer.

        The block sets `status`, and `error` and `disconnected` where they apply. What runs inside
        finds the request in `CURRENT`.

        Args:
            observed: What is known of it.
            headers: With names in lower case.
        """
        span = self.tracer.start(observed, headers)
        token = CURRENT.set(observed)
        try:
            yield observed
        except BaseException as error:
            if isinstance(error, asyncio.CancelledError):
                observed.disconnected = True
            else:
                observed.error = error
                observed.status = observed.status or 500
            raise
        finally:
            try:
                log_access(observed, time.monotonic() - observed.received, span.trace_id)
            finally:
                CURRENT.reset(token)
            self.metrics.finished(
                observed.protocol,
                observed.model,
                observed.status,
                disconnected=observed.disconnected,
            )
            span.end(observed)

    def began(self, job: Job | EmbedJob, model: str) -> None:
        """A job was found to be for a model that the server knows.

        Args:
            job: What is asked for.
            model: The name it is served under.
        """
        observed = CURRENT.get()
        if observed is None:
            return
        observed.model = model
        if isinstance(job, EmbedJob):
            observed.operation = "embeddings"
        else:
            observed.operation = (
                "chat" if isinstance(job.prompt, Conversation) else "text_completion"
            )
            observed.sampling = job.sampling

    def generated(
        self, model: str, usage: Usage, reasons: Sequence[EndReason], cache: str = "off"
    ) -> None:
        """A job ended well.

        Args:
            model: The name it was served under.
            usage: The last event of its generation.
            reasons: Why its outputs ended, one each.
            cache: What the response cache said: "hit", "joined", "miss" or "off".
        """
        self.metrics.generated(model, usage, reasons, cache)
        observed = CURRENT.get()
        if observed is not None:
            observed.usages.append(usage)
            observed.reasons.extend(reasons)
            observed.cache = cache

    def embedded(self, model: str, embeddings: Embeddings) -> None:
        """Texts became vectors."""
        self.metrics.embedded(model, embeddings.prompt_tokens, embeddings.total)
        observed = CURRENT.get()
        if observed is not None:
            timing = Timing(embeddings.total, embeddings.load, 0.0, 0.0, 0.0, None)
            observed.usages.append(Usage(embeddings.prompt_tokens, 0, 0, 0, timing))

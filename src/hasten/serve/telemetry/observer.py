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

        The block fills in what it learns. What runs inside finds the request in `CURRENT`.

        Args:
            observed: What is known of it.
            headers: With names in lower case.
        """
        token = CURRENT.set(observed)
        try:
            yield observed
        except asyncio.CancelledError:
            observed.disconnected = True
            raise
        except BaseException as error:
            observed.error = error
            observed.status = observed.status or 500
            raise
        finally:
            self._over(observed, headers)
            CURRENT.reset(token)

    def _over(self, observed: Observed, headers: Mapping[str, str]) -> None:
        self.metrics.answered(
            observed.protocol,
            observed.model,
            observed.status,
            disconnected=observed.disconnected,
        )
        seconds = time.monotonic() - observed.received
        log_access(observed, seconds, self.tracer.record(observed, headers))

    def began(self, job: Job | EmbedJob) -> None:
        """A job turned out to be for a model that the server knows."""
        observed = CURRENT.get()
        if observed is None:
            return
        observed.model = job.model
        if isinstance(job, EmbedJob):
            observed.operation = "embeddings"
            return
        chat = isinstance(job.prompt, Conversation)
        observed.operation = "chat" if chat else "text_completion"
        observed.sampling = job.sampling

    def finished(
        self,
        job: Job,
        usage: Usage,
        reasons: Sequence[EndReason],
        error: Exception | None = None,
        cache: str = "off",
    ) -> None:
        """A job is over; times are taken from those alone that ended well.

        Args:
            job: For a model that the server knows.
            usage: What it took.
            reasons: Why its outputs ended, one each; fewer than outputs where the client left.
            error: What ended it, if something did.
            cache: What the response cache said: "hit", "joined", "miss" or "off".
        """
        observed = CURRENT.get()
        if observed is not None:
            observed.usages.append(usage)
            observed.reasons.extend(reasons)
            observed.cache = cache
        if error is not None:
            self.metrics.failed(job.model, error)
        elif len(reasons) == job.sampling.n:
            self.metrics.generated(job.model, usage, reasons, cache)

    def embedded(self, job: EmbedJob, embeddings: Embeddings) -> None:
        """Texts became vectors."""
        self.metrics.embedded(job.model, embeddings.prompt_tokens, embeddings.total)
        observed = CURRENT.get()
        if observed is not None:
            timing = Timing(embeddings.total, embeddings.load, 0.0, 0.0, 0.0, None)
            observed.usages.append(Usage(embeddings.prompt_tokens, 0, 0, 0, timing))

"""What answers the endpoints of every protocol: jobs in, generations and vectors out."""

from __future__ import annotations

import itertools
import time
from contextlib import AsyncExitStack
from dataclasses import replace
from functools import partial
from math import inf
from typing import TYPE_CHECKING

from hasten.errors import UsageError
from hasten.serve.access import find_model
from hasten.serve.admission import Admission, Ticket
from hasten.serve.cache import AnswerCache
from hasten.serve.generation import Generation
from hasten.serve.health import Health
from hasten.serve.jobs import CacheState, Client, Embeddings, EmbedJob, EndReason, Job, Usage
from hasten.serve.prompts import Prompt, prepare
from hasten.serve.recording import Recorder
from hasten.serve.registry import ModelRegistry, Served
from hasten.serve.response_store import ResponseStore
from hasten.serve.settings import ServerSettings
from hasten.serve.telemetry.observer import Observer
from hasten.types import Request

if TYPE_CHECKING:
    from hasten.serve.batch.queue import BatchQueue

__all__ = ["Service"]


class Service:
    """Runs jobs on the models of a registry, within what admission allows.

    Args:
        settings: How the server runs.
        registry: Its models.
        admission: Who may come in.
        answers: Those that were given before.
        observer: What counts, traces and logs.
        recorder: What keeps the traffic as a workload; None where nobody asked for that.

    Attributes:
        responses: Those that clients may come back to.
        health: Whether it can answer; set by whoever starts the server.
        batches: Files and batches; set likewise.
    """

    health: Health
    batches: BatchQueue

    def __init__(
        self,
        settings: ServerSettings,
        registry: ModelRegistry,
        admission: Admission,
        answers: AnswerCache,
        observer: Observer,
        recorder: Recorder | None = None,
    ) -> None:
        self.settings = settings
        self.registry = registry
        self.admission = admission
        self.answers = answers
        self.observer = observer
        self._recorder = recorder
        self.metrics = observer.metrics
        self.responses = ResponseStore()
        self._numbers = itertools.count()

    async def generate(self, job: Job) -> Generation:
        """Starts a generation: when this returns, the job is valid and the engine has it.

        Raises:
            NotFoundError: No model of this name.
            AccessError: The client may not use the model.
            OverloadError: As much waits as may wait.
            RateLimitError: The client has used up what it may use for now.
            UsageError: Something about the job is not as it must be.
            CapacityError: The prompt does not fit the context, or the model not into memory.
            EngineLostError: The model's process cannot be started.
        """
        job = replace(job, model=find_model(self.registry, job.client, job.model).name)
        async with AsyncExitStack() as resources:
            resources.enter_context(await self._admit(job.client, job.model, job.sampling.n))
            served = await resources.enter_async_context(
                self.registry.use(job.model, job.keep_alive)
            )
            if served.kind != "generate":
                raise UsageError(
                    f"{served.name} gives embeddings, not text", do="ask for embeddings of it"
                )
            self.observer.began(job)
            prompt = await prepare(served, job)
            state, outputs = await self.answers.submit(
                served,
                self._request(job, served, prompt),
                tenant=job.client.tenant,
                wanted=job.cache,
            )
            return Generation(
                job,
                served,
                prompt,
                outputs,
                state,
                resources.pop_all(),
                None if state == "hit" else partial(self.metrics.gap, job.model),
                partial(self._finished, job, served, prompt, state),
            )

    async def embed(self, job: EmbedJob) -> Embeddings:
        """The vectors of texts.

        Raises:
            As `generate`.
        """
        job = replace(job, model=find_model(self.registry, job.client, job.model).name)
        async with AsyncExitStack() as resources:
            resources.enter_context(await self._admit(job.client, job.model, 1))
            served = await resources.enter_async_context(
                self.registry.use(job.model, job.keep_alive)
            )
            if served.kind != "embed":
                raise UsageError(
                    f"{served.name} gives text, not embeddings",
                    do="ask a model that embeds texts",
                )
            self.observer.began(job)
            vectors, tokens = await served.engine.embed(
                job.texts,
                dimensions=job.dimensions,
                truncate=job.truncate,
            )
            self.admission.used(job.client, tokens)
            embeddings = Embeddings(
                vectors=tuple(vector.astype("<f4").tobytes() for vector in vectors),
                dimensions=int(vectors.shape[1]),
                prompt_tokens=tokens,
                load=served.load_seconds,
                total=time.monotonic() - job.received,
            )
            self.observer.embedded(job, embeddings)
            return embeddings

    async def count(self, job: Job) -> int:
        """Tokens of a job's prompt; nothing is generated.

        Raises:
            As `generate`.
        """
        info = find_model(self.registry, job.client, job.model)
        async with AsyncExitStack() as resources:
            resources.enter_context(await self._admit(job.client, info.name, 1))
            served = await resources.enter_async_context(
                self.registry.use(job.model, job.keep_alive)
            )
            return len((await prepare(served, job)).tokens)

    async def start(self) -> None:
        """Loads the models, and goes on with batches.

        Raises:
            HastenError: A model that the operator named cannot be read or loaded.
        """
        await self.registry.start()
        await self.batches.start(self)

    async def close(self) -> None:
        """Ends batches, which go on at the next start, and every engine."""
        await self.batches.close()
        await self.answers.close()
        if self._recorder is not None:
            self._recorder.close()
        await self.registry.close()

    async def _admit(self, client: Client, model: str, sequences: int) -> Ticket:
        engine = self.registry.engine_name(model)  # names that share an engine share its queue
        if client.batch:
            return await self.admission.wait_turn(client, engine, sequences)
        return self.admission.admit(client, engine, sequences)

    def _request(self, job: Job, served: Served, prompt: Prompt) -> Request:
        # A batch's lines run behind everything else, and its window ends what takes too long.
        limit = inf if job.client.batch else self.settings.limits.request_seconds
        seconds = limit if job.timeout is None else min(job.timeout, limit)
        return Request(
            str(next(self._numbers)),
            prompt.tokens,
            prompt.sampling,
            job.client.priority + job.priority,
            None if seconds == inf else job.received + seconds,
            job.client.tenant,
            served.adapter if job.adapter is None else job.adapter,
        )

    def _finished(
        self,
        job: Job,
        served: Served,
        prompt: Prompt,
        cache: CacheState,
        usage: Usage,
        reasons: list[EndReason],
        error: Exception | None,
    ) -> None:
        self.admission.used(job.client, usage.prompt_tokens + usage.output_tokens)
        self.observer.finished(job, usage, reasons, error, cache)
        ended = error is None and len(reasons) == job.sampling.n  # else its client left
        if self._recorder is not None and ended and not job.client.batch:
            self._recorder.add(
                job.model,
                served.model.tokenizer,
                prompt.tokens,
                usage.output_tokens // max(1, job.sampling.n),
                job.received,
            )

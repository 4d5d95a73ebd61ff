"""The engine: requests in, tokens and text out."""

from __future__ import annotations

import itertools
from collections import Counter, deque
from collections.abc import Iterator
from collections.abc import Sequence as Tokens
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from threading import Condition, Thread
from time import monotonic, perf_counter

import numpy as np
from numpy.typing import NDArray

from hasten.errors import GenerationError, UsageError
from hasten.generation.adapters import AdapterTable
from hasten.generation.blockpool import BlockPool
from hasten.generation.executor import OverExecutor, make_executor, weight_bytes
from hasten.generation.intake import Intake, find_tokenizer
from hasten.generation.kvcache import blocks_for, choose_cache_size
from hasten.generation.options import check_options, engine_options
from hasten.generation.pacing import Pacer
from hasten.generation.scheduler import Scheduler
from hasten.generation.sequence import Sequence
from hasten.generation.softmax import native_softmax
from hasten.generation.stopwatch import EngineProfile
from hasten.kernels.softmax import softmax_weights
from hasten.models.model import Model
from hasten.types import (
    Batch,
    EngineOptions,
    EngineStatistics,
    FinishReason,
    Output,
    Request,
    SamplingParams,
    TokenLogprobs,
)

__all__ = ["Engine"]


class Engine(OverExecutor):
    """Runs requests for one model.

    One thread drives it with `step`, `generate` or `score`. Meanwhile any thread may call `submit`,
    `cancel`, `wait` and `statistics`: what the first two bring lies in an inbox, which the next
    step empties before anything else. Any thread may load and unload adapters, too.

    Args:
        model: What `hasten.models.load_model` returned.
        options: How to run it; None takes the recipe's settings or the defaults.

    Raises:
        UsageError: An option that does not fit the model or the machine, or a model that gives
            embeddings rather than text.
        CapacityError: Weights and KV cache would not fit into memory.
    """

    def __init__(self, model: Model, options: EngineOptions | None = None) -> None:
        if model.config.output == "hidden":
            raise UsageError(
                f"{model.name} ({model.config.model_type}) gives embeddings, not text",
                do="use `hasten embed`",
            )
        self.model = model
        self.options = engine_options(model) if options is None else options
        check_options(self.options)
        size = choose_cache_size(model.config, self.options, weight_bytes(model, self.options))
        self.context = size.context
        # Weights are read outside the GIL, the tokenizer is built inside it; the model keeps it.
        helper = Thread(target=find_tokenizer, args=(model,))
        helper.start()
        try:
            self._executor = make_executor(model, self.options, size.blocks, size.context)
        finally:
            helper.join()
        self._pool = BlockPool(size.blocks)
        self._scheduler = Scheduler(
            self._pool,
            self.options.max_sequences,
            self.options.chunk,
            Pacer(self.options.prefill_stretch),
            prefix_cache=self.options.prefix_cache,
        )
        self._adapters = AdapterTable(self._executor, model.config, self.options)
        native = self.options.executor == "native"
        softmax = native_softmax(self.isa) if native else softmax_weights
        self._intake = Intake(model, self.context, self._adapters, softmax)
        self._numbers = itertools.count()
        self._arrived = Condition()
        self._inbox: deque[Sequence | list[Sequence]] = deque()  # come, or to be cancelled
        self._in_flight: dict[str, list[Sequence]] = {}
        self._unclaimed: list[Output] = []
        self._counts: Counter[str] = Counter()
        self._finished: Counter[FinishReason] = Counter()

    @property
    def adapters(self) -> tuple[str, ...]:
        """Names of the LoRA adapters that requests can have."""
        return self._adapters.names

    @property
    def has_work(self) -> bool:
        """Whether `step` has something to do or to return."""
        return bool(self._inbox or self._unclaimed or self._scheduler.has_work)

    def submit(self, request: Request) -> None:
        """Queues a request; any thread may call this.

        An output that reaches the end of the context ends there with the reason "length", as it
        does at `max_tokens`.

        Raises:
            UsageError: Sampling parameters, tokens or the deadline out of range, a structure that
                cannot be used, no adapter of this name, or the id belongs to a request in flight.
            CapacityError: The prompt does not fit the context; nothing is ever cut.
        """
        sequences = self._intake.sequences(request)
        with self._arrived:
            if request.id in self._in_flight:
                raise UsageError(f"request {request.id!r} is in flight", do="give each its own id")
            self._adapters.confirm(sequences[0].adapter)
            self._in_flight[request.id] = sequences
            self._inbox.extend(sequences)
            self._arrived.notify_all()

    def cancel(self, request_id: str) -> None:
        """Ends a request; any thread may call this, and unknown ids are ignored.

        The next step frees what it holds before it computes anything. No output tells of that:
        whoever cancels knows, and a step that runs meanwhile may still yield one.
        """
        with self._arrived:
            if request_id in self._in_flight:
                self._inbox.append(self._in_flight[request_id])
                self._arrived.notify_all()

    def wait(self, timeout: float | None = None) -> bool:
        """Blocks until there is work for `step`, or for so many seconds; whether there is."""
        with self._arrived:
            return self._arrived.wait_for(lambda: self.has_work, timeout)

    def step(self) -> list[Output]:
        """Schedules, runs, samples, updates; returns what each sequence gained."""
        outputs = self._take_in()
        if not self._scheduler.has_work:
            return outputs
        plan = self._scheduler.schedule()
        started = perf_counter()
        logits = self._executor.run(plan.batch)
        self._scheduler.update(plan, perf_counter() - started)
        self._counts["steps"] += 1
        bounds = plan.batch.logit_rows.searchsorted(plan.batch.starts).tolist()
        for number, sequence in enumerate(plan.shares):
            rows = logits[bounds[number] : bounds[number + 1]]
            samples = sequence.remaining == 0
            if sequence.prompt_logprobs is not None:
                sequence.prompt_logprobs.read(rows[:-1] if samples else rows)
            if samples:
                outputs.append(self._sample(sequence, rows[-1]))
        return outputs

    def load_adapter(self, name: str, path: str | Path) -> None:
        """Reads a LoRA adapter, for requests to name; the engine may run meanwhile.

        Args:
            name: What requests will call it.
            path: A PEFT directory (adapter_config.json, adapter_model.safetensors).

        Raises:
            UsageError: The name is taken, or `EngineOptions.max_adapters` is 0.
            CapacityError: `max_adapters` are loaded, or its rank is above `max_lora_rank`.
            ModelFileError: A file is missing, contradicts itself or does not fit the model.
            UnsupportedModelError: A variant of LoRA that Hasten does not run.
        """
        self._adapters.load(name, Path(path))

    def unload_adapter(self, name: str) -> None:
        """Frees the slot of an adapter.

        Raises:
            UsageError: No adapter of this name is loaded, or requests in flight use it.
        """
        with self._arrived:
            users = sum(
                any(one.request.adapter == name for one in sequences)
                for sequences in self._in_flight.values()
            )
            if users:
                raise UsageError(
                    f"adapter {name!r} is used by {users} requests in flight",
                    do="let them end or cancel them, and let a step pass",
                )
            adapter = self._adapters.withdraw(name)
        self._adapters.release(adapter)

    def generate(
        self,
        prompt: Tokens[int],
        sampling: SamplingParams | None = None,
        *,
        adapter: str | None = None,
    ) -> Iterator[Output]:
        """Runs one request; leaving the loop early cancels it.

        Outputs of other requests that come meanwhile are kept for the next `step` or `generate`.
        """
        request = Request(
            f"generate-{next(self._numbers)}",
            tuple(prompt),
            sampling or SamplingParams(),
            adapter=adapter,
        )

        def is_mine(output: Output) -> bool:
            return output.request_id == request.id

        self.submit(request)
        try:
            while request.id in self._in_flight or any(map(is_mine, self._unclaimed)):
                outputs = self.step()
                self._unclaimed += itertools.filterfalse(is_mine, outputs)
                yield from filter(is_mine, outputs)
        finally:
            self.cancel(request.id)
            self._unclaimed = list(itertools.filterfalse(is_mine, self._take_in()))

    def statistics(self) -> EngineStatistics:
        """What the engine does and has done; any thread may call this."""
        free, cached = self._pool.free, self._pool.cached
        return EngineStatistics(
            running=len(self._scheduler.running),
            waiting=len(self._scheduler.waiting),
            kv_blocks=self._pool.total,
            kv_blocks_used=self._pool.total - free,
            kv_blocks_cached=cached,
            steps=self._counts["steps"],
            prompt_tokens=self._counts["prompt_tokens"],
            cached_tokens=self._counts["cached_tokens"],
            output_tokens=self._counts["output_tokens"],
            preemptions=self._scheduler.preemptions,
            finished=dict(self._finished),
        )

    @contextmanager
    def profile(self) -> Iterator[EngineProfile]:
        """Measures where the time of steps goes while the block runs, into what it yields.

        One thread alone submits and steps meanwhile. Without a profile nothing is measured and
        nothing is paid for.

        Raises:
            UsageError: Another profile is being taken.
        """
        with self._executor.profile() as ops:
            profile = EngineProfile(ops)
            running = itertools.chain.from_iterable(self._in_flight.values())
            profile.attach(self, self._scheduler, self._executor, self._intake, running)
            try:
                yield profile
            finally:
                profile.detach()

    def prepare_structures(self) -> None:
        """Makes what the first request with a structure would wait for; any thread may call it."""
        self._intake.prepare_structures()

    def forget_prefixes(self) -> None:
        """Empties the prefix cache, as must be done when weights change; between two steps only."""
        self._pool.forget()

    def score(
        self, tokens: Tokens[int], *, adapter: str | None = None
    ) -> Iterator[tuple[int, NDArray[np.float32]]]:
        """Logits of every position of a text, chunk by chunk.

        Args:
            tokens: At most `context` of them.
            adapter: Name of a loaded LoRA adapter; None is the model itself.

        Yields:
            Position of the first row, and logits float32 [n, vocab].
        """
        self._intake.check_tokens(tokens, room=0)
        self._adapters.find(adapter)
        self._unclaimed = self._take_in()
        blocks = self._pool.take(blocks_for(len(tokens)))
        table = np.asarray([blocks], np.int32)
        try:
            for begin in range(0, len(tokens), self.options.chunk):
                part = np.asarray(tokens[begin : begin + self.options.chunk], np.int32)
                rows = np.arange(len(part), dtype=np.int32)
                starts = np.asarray([0, len(part)], np.int32)
                found = self._adapters.find(adapter)
                slots = None if found is None else np.asarray([found.slot], np.int32)
                batch = Batch(part, rows + np.int32(begin), starts, table, rows, slots)
                yield begin, self._executor.run(batch)
        finally:
            self._pool.give_back(blocks)

    def close(self) -> None:
        """Frees the weights, the cache and the threads."""
        super().close()
        self._intake.close()

    def _take_in(self) -> list[Output]:
        """Empties the inbox and ends what is late; what there is to tell before a step runs."""
        while self._inbox:
            arrival = self._inbox.popleft()
            if isinstance(arrival, Sequence):
                self._scheduler.add(arrival)
            else:
                for sequence in tuple(arrival):
                    self._remove(sequence, "cancelled")
        outputs, self._unclaimed = self._unclaimed, []
        late = self._scheduler.expired(monotonic())
        return outputs + [self._end(sequence, "deadline") for sequence in late]

    def _end(self, sequence: Sequence, reason: FinishReason, error: str | None = None) -> Output:
        self._remove(sequence, reason)
        output = self._output(sequence, (), sequence.text.finish(), reason)
        return output if error is None else replace(output, error=error)

    def _remove(self, sequence: Sequence, reason: FinishReason) -> None:
        self._scheduler.remove(sequence)
        self._finished[reason] += 1
        with self._arrived:
            others = self._in_flight[sequence.request.id]
            others.remove(sequence)
            if not others:
                del self._in_flight[sequence.request.id]

    def _sample(self, sequence: Sequence, logits: NDArray[np.float32]) -> Output:
        try:
            token, logprobs = sequence.sampler.choose(logits)
        except GenerationError as error:
            return self._end(sequence, "error", str(error))
        return self._update(sequence, token, logprobs)

    def _update(self, sequence: Sequence, token: int, logprobs: TokenLogprobs | None) -> Output:
        sampling = sequence.request.sampling
        reason: FinishReason | None = None
        sequence.tokens.append(token)
        if token in sequence.sampler.ends:
            reason, text = "stop", sequence.text.finish()
        else:
            text = sequence.text.push(token)
            if sequence.text.stopped is not None:
                reason = "stop"
            elif sequence.sampler.complete:
                reason = "stop"
                text += sequence.text.finish()
            elif sequence.generated >= sampling.max_tokens or len(sequence.tokens) >= self.context:
                reason = "length"
                text += sequence.text.finish()
        if sequence.generated == 1:
            self._counts["prompt_tokens"] += len(sequence.request.prompt)
            self._counts["cached_tokens"] += sequence.cached_tokens
        self._counts["output_tokens"] += 1
        output = self._output(sequence, (token,), text, reason, logprobs)
        if reason is not None:
            self._remove(sequence, reason)
        return output

    def _output(
        self,
        sequence: Sequence,
        tokens: tuple[int, ...],
        text: str,
        reason: FinishReason | None,
        logprobs: TokenLogprobs | None = None,
    ) -> Output:
        seconds, sequence.model_seconds = sequence.model_seconds, 0.0
        first = bool(tokens) and sequence.generated == 1
        prompt = sequence.prompt_logprobs if first else None
        return Output(
            sequence.request.id,
            tokens,
            text,
            reason,
            seconds,
            index=sequence.index,
            cached_tokens=sequence.cached_tokens if first else 0,
            logprobs=() if logprobs is None else (logprobs,),
            prompt_logprobs=() if prompt is None else tuple(prompt.entries),
            stop=sequence.text.stopped,
        )

"""The engine: requests in, tokens and text out."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from collections.abc import Sequence as Tokens
from dataclasses import fields
from time import perf_counter
from types import TracebackType
from typing import Self

import numpy as np
from numpy.typing import NDArray

from hasten.errors import CapacityError, HastenError, UsageError
from hasten.generation.executor import make_executor
from hasten.generation.kvcache import BlockPool, blocks_for
from hasten.generation.sampler import check_sampling, sample
from hasten.generation.scheduler import Scheduler, Sequence
from hasten.generation.text import TextStream
from hasten.machine import available_cores
from hasten.models.model import Model
from hasten.models.tokenizer import Tokenizer
from hasten.types import Batch, EngineOptions, FinishReason, Output, Request, SamplingParams

__all__ = ["DEFAULT_CONTEXT", "Engine", "engine_options"]

DEFAULT_CONTEXT = 8192
"""Longest sequence where neither the user nor the model says less."""


def engine_options(model: Model, **given: object) -> EngineOptions:
    """Options for a model: what is given, else what its recipe says, else the defaults.

    Args:
        model: Perhaps an artefact with settings in its recipe.
        given: Fields of `EngineOptions`; None counts as not given.
    """
    names = {field.name for field in fields(EngineOptions)}
    settings = dict((model.recipe or {}).get("settings", {}))
    values = {name: value for name, value in settings.items() if name in names}
    if values.get("threads") is not None:
        # The recipe may come from a larger machine.
        values["threads"] = min(values["threads"], available_cores())
    values |= {name: value for name, value in given.items() if value is not None}
    return EngineOptions(**values)


class Engine:
    """Runs requests for one model.

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
        _check_options(self.options)
        self.context = _choose_context(model, self.options)
        blocks = blocks_for(self.context) * self.options.max_sequences
        # The executor refuses a cache that does not fit, before anything is allocated for it.
        self._executor = make_executor(model, self.options, blocks, self.context)
        self._pool = BlockPool(blocks)
        self._scheduler = Scheduler(
            self._pool, self.context, self.options.max_sequences, self.options.chunk
        )
        self._tokenizer = _find_tokenizer(model)
        self._eos = frozenset(model.config.eos_ids)
        if self._tokenizer is not None:
            self._eos |= self._tokenizer.eos_ids
        self._numbers = itertools.count()

    @property
    def isa(self) -> str:
        """Instruction set that runs."""
        return self._executor.isa

    @property
    def threads(self) -> int:
        """Worker threads."""
        return self._executor.threads

    @property
    def formats(self) -> dict[str, str]:
        """Format in which each weight matrix runs, by tensor name."""
        return self._executor.formats

    @property
    def memory(self) -> dict[str, int]:
        """Bytes of the packed weights, the KV cache and the activation buffers."""
        return self._executor.memory

    @property
    def has_work(self) -> bool:
        """Whether a request waits or runs."""
        return self._scheduler.has_work

    def submit(self, request: Request) -> None:
        """Queues a request.

        Raises:
            UsageError: Sampling parameters or tokens out of range.
            CapacityError: The prompt does not fit the context; nothing is ever cut.
        """
        check_sampling(request.sampling)
        self._check_prompt(request.prompt)
        if request.sampling.stop and self._tokenizer is None:
            raise UsageError("stop strings need a tokenizer, and the model has none")
        detokenizer = None if self._tokenizer is None else self._tokenizer.detokenizer()
        text = TextStream(detokenizer, request.sampling.stop)
        self._scheduler.waiting.append(Sequence(request, text, list(request.prompt)))

    def step(self) -> list[Output]:
        """Schedules, runs, samples, updates; returns what each sequence gained."""
        if not self.has_work:
            return []
        batch, sequences = self._scheduler.schedule()
        started = perf_counter()
        logits = self._executor.run(batch)
        seconds = perf_counter() - started
        row = 0
        outputs = []
        for sequence, begin, end in zip(sequences, batch.starts, batch.starts[1:], strict=False):
            sequence.computed += int(end - begin)
            sequence.model_seconds += seconds
            if sequence.computed == len(sequence.tokens):
                sampling = sequence.request.sampling
                token = sample(logits[row], sampling, sequence.generator)
                row += 1
                outputs.append(self._update(sequence, token))
        return outputs

    def cancel(self, request_id: str) -> None:
        """Ends a request at once and frees what it holds; unknown ones are ignored."""
        sequence = self._scheduler.find(request_id)
        if sequence is not None:
            self._scheduler.finish(sequence)

    def generate(
        self, prompt: Tokens[int], sampling: SamplingParams | None = None
    ) -> Iterator[Output]:
        """Runs one request; leaving the loop early cancels it."""
        request = Request(
            f"generate-{next(self._numbers)}", tuple(prompt), sampling or SamplingParams()
        )
        self.submit(request)
        try:
            while self._scheduler.find(request.id) is not None:
                yield from (out for out in self.step() if out.request_id == request.id)
        finally:
            self.cancel(request.id)

    def score(self, tokens: Tokens[int]) -> Iterator[tuple[int, NDArray[np.float32]]]:
        """Logits of every position of a text, chunk by chunk.

        Args:
            tokens: At most `context` of them.

        Yields:
            Position of the first row, and logits float32 [n, vocab].
        """
        self._check_prompt(tokens, room=0)
        blocks = self._pool.take(blocks_for(len(tokens)))
        table = np.asarray([blocks], np.int32)
        try:
            for begin in range(0, len(tokens), self.options.chunk):
                part = np.asarray(tokens[begin : begin + self.options.chunk], np.int32)
                rows = np.arange(len(part), dtype=np.int32)
                starts = np.asarray([0, len(part)], np.int32)
                batch = Batch(part, rows + np.int32(begin), starts, table, rows)
                yield begin, self._executor.run(batch)
        finally:
            self._pool.give_back(blocks)

    def close(self) -> None:
        """Frees the weights, the cache and the threads."""
        del self._executor

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _update(self, sequence: Sequence, token: int) -> Output:
        sampling = sequence.request.sampling
        reason: FinishReason | None = None
        sequence.tokens.append(token)
        if token in self._eos and not sampling.ignore_eos:
            reason, text = "stop", sequence.text.finish()
        else:
            text = sequence.text.push(token)
            if sequence.text.stopped:
                reason = "stop"
            elif sequence.generated >= sampling.max_tokens or len(sequence.tokens) >= self.context:
                reason = "length"
                text += sequence.text.finish()
        if reason is not None:
            self._scheduler.finish(sequence)
        seconds, sequence.model_seconds = sequence.model_seconds, 0.0
        return Output(sequence.request.id, (token,), text, reason, seconds)

    def _check_prompt(self, tokens: Tokens[int], room: int = 1) -> None:
        if not tokens:
            raise UsageError("the prompt is empty", allowed="at least one token")
        if len(tokens) + room > self.context:
            raise CapacityError(
                f"the prompt has {len(tokens)} tokens and the context holds {self.context}",
                allowed=f"prompts of up to {self.context - room} tokens",
                do="shorten the prompt or raise max_context where the model allows it",
            )
        bad = [t for t in tokens if not 0 <= t < self.model.config.vocab_size]
        if bad:
            raise UsageError(
                f"token {bad[0]} is not in the vocabulary",
                allowed=f"0 to {self.model.config.vocab_size - 1}",
            )


def _check_options(options: EngineOptions) -> None:
    cores = available_cores()
    checks = [
        ("executor", options.executor in ("native", "reference"), "native, reference"),
        ("kv", options.kv in ("f32", "bf16", "int8"), "f32, bf16, int8"),
        (
            "threads",
            options.threads is None or 1 <= options.threads <= 4 * cores,
            f"1 to {4 * cores}; {cores} cores are usable",
        ),
        ("max_sequences", 1 <= options.max_sequences <= 4096, "1 to 4096"),
        ("chunk", options.max_sequences <= options.chunk <= 1 << 16, "max_sequences to 65536"),
    ]
    for name, fine, allowed in checks:
        if not fine:
            raise UsageError(f"{name} is {getattr(options, name)!r}", allowed=allowed)


def _choose_context(model: Model, options: EngineOptions) -> int:
    longest = model.config.max_position
    if options.max_context is None:
        return min(longest, DEFAULT_CONTEXT)
    if not 1 <= options.max_context <= longest:
        raise UsageError(
            f"max_context is {options.max_context}",
            allowed=f"1 to {longest}, the longest sequence that the model was made for",
        )
    return options.max_context


def _find_tokenizer(model: Model) -> Tokenizer | None:
    """A model without a tokenizer still runs on token ids."""
    try:
        return model.tokenizer
    except HastenError:
        return None

"""What a worker process does: it generates, or it embeds.

One thread runs steps. Another one brings messages; what takes longer than a moment before it can be
queued (a structure to compile, texts to take apart) is prepared by a few more.
"""

from __future__ import annotations

import sys
import traceback
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Condition, Lock
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from hasten.errors import HastenError, UsageError
from hasten.generation.embedding import Embedder, Tokens
from hasten.generation.engine import Engine
from hasten.generation.options import engine_options
from hasten.models.lora import load_adapter
from hasten.models.model import Model
from hasten.serve.wire import (
    Accepted,
    Cancel,
    Embed,
    Embedded,
    EngineSpec,
    Fault,
    FromWorker,
    LoadAdapter,
    Open,
    Ping,
    Progress,
    Refused,
    Step,
    Submit,
    ToWorker,
    UnloadAdapter,
    WireError,
    decode_request,
)
from hasten.types import EngineOptions, EngineStatistics, Output

__all__ = ["Embedding", "Generation", "Work", "open_work"]

Send = Callable[[FromWorker], None]

_PREPARERS = 2


class Work(Protocol):
    """What runs in a worker.

    Attributes:
        steps: How many have run.
    """

    steps: int

    @property
    def engine(self) -> Engine | Embedder:
        """What computes."""
        ...

    @property
    def dimensions(self) -> int | None:
        """Of vectors; None where it generates."""
        ...

    @property
    def context(self) -> int:
        """Tokens of the longest sequence or text."""
        ...

    @property
    def working(self) -> bool:
        """Whether there is something to do."""
        ...

    @property
    def statistics(self) -> EngineStatistics | None:
        """Of the engine, if it keeps any."""
        ...

    def take(self, message: ToWorker) -> None:
        """Deals with a message, from another thread than `run`'s, without making it wait."""
        ...

    def run(self) -> None:
        """Runs steps for ever."""
        ...


def open_work(model: Model, spec: EngineSpec, send: Send) -> Work:
    """Opens the engine that a spec describes.

    Args:
        model: That of the spec.
        spec: What to run.
        send: Sends a message to the server; any thread may call it.

    Raises:
        HastenError: As `Engine`, `Embedder` and `Engine.load_adapter` do.
    """
    if spec.kind == "embed":
        if spec.adapters:
            raise UsageError(f"{spec.model} is to embed with adapters", do="leave the adapters out")
        return Embedding(Embedder(model, spec.options), send)
    engine = Engine(model, _options(model, spec))
    for name, path in spec.adapters.items():
        engine.load_adapter(name, path)
    return Generation(engine, send)


def _options(model: Model, spec: EngineSpec) -> EngineOptions | None:
    """Those of the spec, with room for its adapters."""
    if not spec.adapters:
        return spec.options
    options = spec.options or engine_options(model)
    ranks = (load_adapter(Path(path), model.config).rank for path in spec.adapters.values())
    return replace(
        options,
        max_adapters=max(options.max_adapters, len(spec.adapters)),
        max_lora_rank=max(options.max_lora_rank, *ranks),
    )


class _Desk:
    """Answers messages one by one: at once, or from a thread where that takes longer.

    Args:
        send: Sends an answer.
    """

    def __init__(self, send: Send) -> None:
        self._send = send
        self._pool = ThreadPoolExecutor(_PREPARERS, thread_name_prefix="hasten-prepare")
        self._lock = Lock()
        self._prepared: dict[int, bool] = {}  # number -> whether it was cancelled

    def answer(self, number: int, accept: Callable[[], None], *, quiet: bool = False) -> None:
        """Does what was asked, and tells how that went.

        Args:
            number: Of the message.
            accept: Raises a HastenError where it cannot be done.
            quiet: Say nothing of success; another message will.
        """
        try:
            accept()
        except HastenError as error:
            self._send(Refused(number, Fault.of(error)))
        except Exception as error:
            # A bug, and ours; but only this request is known to suffer from it.
            traceback.print_exc(file=sys.stderr)
            self._send(Refused(number, Fault.of(HastenError(f"a {type(error).__name__} occurred"))))
        else:
            if not quiet:
                self._send(Accepted(number))

    def prepare(
        self,
        number: int,
        accept: Callable[[], None],
        undo: Callable[[], None],
        *,
        quiet: bool = False,
    ) -> None:
        """Does the same from a thread.

        Args:
            number: Of the message.
            accept: As in `answer`; not called where the message was cancelled before.
            undo: Called where it was cancelled meanwhile.
            quiet: As in `answer`.
        """

        def work() -> None:
            with self._lock:
                cancelled = self._prepared[number]
            if not cancelled:
                self.answer(number, accept, quiet=quiet)
            with self._lock:
                late = self._prepared.pop(number)
            if late and not cancelled:
                undo()

        with self._lock:
            self._prepared[number] = False
        self._pool.submit(work)

    def cancel(self, number: int) -> None:
        """Leaves out, or undoes, what is being prepared."""
        with self._lock:
            if number in self._prepared:
                self._prepared[number] = True


class Generation:
    """Runs an engine.

    Args:
        engine: Just opened.
        send: Sends a message to the server.

    Attributes:
        engine: As given.
        steps: How many have run.
    """

    def __init__(self, engine: Engine, send: Send) -> None:
        self.engine = engine
        self.steps = 0
        self._send = send
        self._desk = _Desk(send)

    @property
    def working(self) -> bool:
        """Whether there is something to do."""
        return self.engine.has_work

    @property
    def dimensions(self) -> None:
        """None."""

    @property
    def context(self) -> int:
        """Tokens of the longest sequence."""
        return self.engine.context

    @property
    def statistics(self) -> EngineStatistics:
        """Of the engine."""
        return self.engine.statistics()

    def take(self, message: ToWorker) -> None:
        """Submits, cancels, loads and unloads."""
        engine, desk = self.engine, self._desk
        match message:
            case Submit():
                self._submit(message)
            case Cancel(number):
                desk.cancel(number)
                engine.cancel(str(number))
            case LoadAdapter(number, name, path):
                desk.prepare(
                    number,
                    lambda: engine.load_adapter(name, path),
                    lambda: engine.unload_adapter(name),
                )
            case UnloadAdapter(number, name):
                desk.answer(number, lambda: engine.unload_adapter(name))
            case Embed(number):
                error = UsageError(
                    f"{engine.model.name} is loaded to generate text",
                    do="ask an embedding model for vectors",
                )
                self._send(Refused(number, Fault.of(error)))
            case Open() | Ping():
                raise WireError(f"{type(message).__name__} came at the wrong time")

    def run(self) -> None:
        """Runs steps for ever."""
        while True:
            self.engine.wait()
            outputs = self.engine.step()
            self.steps += 1
            self._tell(outputs)

    def _submit(self, message: Submit) -> None:
        number = message.number
        try:
            request = replace(decode_request(message.request), id=str(number))
        except WireError as error:
            refusal = UsageError(f"the request is malformed: {error}")
            self._send(Refused(number, Fault.of(refusal)))
            return

        def accept() -> None:
            self.engine.submit(request)

        if request.sampling.structure is None:
            self._desk.answer(number, accept)
        else:
            self._desk.prepare(number, accept, lambda: self.engine.cancel(request.id))

    def _tell(self, outputs: list[Output]) -> None:
        try:
            self._send(Step([Progress.of(output) for output in outputs], self.statistics))
        except WireError as error:
            self._tell_apart(outputs, str(error))

    def _tell_apart(self, outputs: list[Output], why: str) -> None:
        """What is too large for one message goes into several; if it cannot, it ends."""
        if len(outputs) > 1:
            middle = len(outputs) // 2
            self._tell(outputs[:middle])
            self._tell(outputs[middle:])
            return
        (output,) = outputs
        self.engine.cancel(output.request_id)
        ended = Output(output.request_id, (), "", "error", 0.0, index=output.index, error=why)
        self._tell([ended])


@dataclass(slots=True)
class _Texts:
    """Texts of one message on their way to vectors.

    Attributes:
        number: Of the message.
        tokens: Of each text.
        skip: Leading tokens that the mean leaves out.
        vectors: float32 [n, dimensions], filled from the first on.
        ready: How many are.
    """

    number: int
    tokens: list[Tokens]
    skip: int
    vectors: NDArray[np.float32]
    ready: int = 0

    def runs_with(self, other: _Texts) -> bool:
        """Whether one call can do both."""
        return self.skip == other.skip and self.vectors.shape[1] == other.vectors.shape[1]


class Embedding:
    """Runs an embedder. Texts of several messages share a step, and messages take turns.

    Args:
        embedder: Just opened.
        send: Sends a message to the server.

    Attributes:
        engine: The embedder.
        steps: How many have run.
        statistics: None.
    """

    def __init__(self, embedder: Embedder, send: Send) -> None:
        self.engine = embedder
        self.steps = 0
        self.statistics: EngineStatistics | None = None
        self._send = send
        self._desk = _Desk(send)
        self._arrived = Condition()
        self._queue: deque[_Texts] = deque()
        self._prompt = embedder.prompt(None)
        self._skip = embedder.prompt_tokens(self._prompt)

    @property
    def working(self) -> bool:
        """Whether there is something to do."""
        return bool(self._queue)

    @property
    def dimensions(self) -> int:
        """Of vectors."""
        return self.engine.dimensions

    @property
    def context(self) -> int:
        """Tokens of the longest text."""
        return self.engine.max_tokens

    def take(self, message: ToWorker) -> None:
        """Queues texts, and cancels."""
        match message:
            case Embed(number):
                self._desk.prepare(
                    number, lambda: self._queue_up(message), lambda: self._drop(number), quiet=True
                )
            case Cancel(number):
                self._desk.cancel(number)
                self._drop(number)
            case Submit(number) | LoadAdapter(number) | UnloadAdapter(number):
                error = UsageError(
                    f"{self.engine.model.name} is loaded to embed texts",
                    do="ask a model that generates",
                )
                self._send(Refused(number, Fault.of(error)))
            case Open() | Ping():
                raise WireError(f"{type(message).__name__} came at the wrong time")

    def run(self) -> None:
        """Runs steps for ever."""
        while True:
            with self._arrived:
                self._arrived.wait_for(lambda: self._queue)
                shares = self._schedule()
            if shares:
                self._step(shares)
            self.steps += 1

    def _queue_up(self, message: Embed) -> None:
        embedder = self.engine
        strings = [text for text in message.texts if isinstance(text, str)]
        if strings and len(strings) < len(message.texts):
            raise UsageError("some texts are tokens and some are not", do="send two requests")
        if strings:
            tokens = embedder.tokenize(strings, prompt=self._prompt, truncate=message.truncate)
        else:
            most = embedder.max_tokens if message.truncate else None
            tokens = embedder.check_tokens(
                [text[:most] for text in message.texts if not isinstance(text, str)]
            )
        dimensions = embedder.check_dimensions(message.dimensions)
        vectors = np.empty((len(tokens), dimensions), np.float32)
        texts = _Texts(message.number, tokens, self._skip if strings else 0, vectors)
        if not tokens:
            self._finish(texts)
            return
        with self._arrived:
            self._queue.append(texts)
            self._arrived.notify_all()

    def _schedule(self) -> list[tuple[_Texts, int]]:
        """Whose next texts fill one call of the executor, and how many of each."""
        if not self._queue:
            return []
        first = self._queue[0]
        room = self.engine.options.chunk
        counts: dict[int, int] = {}
        turns = deque(texts for texts in self._queue if texts.runs_with(first))
        chosen = list(turns)
        while turns:
            texts = turns.popleft()
            count = counts.get(texts.number, 0)
            room -= len(texts.tokens[texts.ready + count])
            if room < 0 and counts:
                break
            counts[texts.number] = count + 1
            if texts.ready + count + 1 < len(texts.tokens):
                turns.append(texts)
        self._queue.rotate(-1)  # what is not done is behind those that wait
        return [(texts, counts[texts.number]) for texts in chosen if texts.number in counts]

    def _step(self, shares: list[tuple[_Texts, int]]) -> None:
        first, _ = shares[0]
        parts = [texts.tokens[texts.ready : texts.ready + count] for texts, count in shares]
        vectors = self.engine.embed_tokens(
            [tokens for part in parts for tokens in part],
            skip=first.skip,
            dimensions=first.vectors.shape[1],
        )
        begin = 0
        for texts, count in shares:
            texts.vectors[texts.ready : texts.ready + count] = vectors[begin : begin + count]
            texts.ready += count
            begin += count
            if texts.ready == len(texts.tokens):
                self._drop(texts.number)
                self._finish(texts)

    def _drop(self, number: int) -> None:
        with self._arrived:
            self._queue = deque(texts for texts in self._queue if texts.number != number)

    def _finish(self, texts: _Texts) -> None:
        count = sum(map(len, texts.tokens))
        data = texts.vectors.astype("<f4", copy=False).tobytes()
        try:
            self._send(Embedded(texts.number, data, texts.vectors.shape[1], count))
        except WireError as error:
            refusal = UsageError(str(error), do="send fewer texts at once")
            self._send(Refused(texts.number, Fault.of(refusal)))

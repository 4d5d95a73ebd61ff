"""How a worker embeds: texts of many messages in shared steps."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from threading import Condition

import numpy as np
from numpy.typing import NDArray

from hasten.errors import UsageError
from hasten.generation.embedding import Embedder, Tokens
from hasten.serve.desk import Desk, Send
from hasten.serve.wire import (
    Cancel,
    Embed,
    Embedded,
    Fault,
    LoadAdapter,
    Open,
    Ping,
    Refused,
    Submit,
    ToWorker,
    UnloadAdapter,
    WireError,
)
from hasten.types import EngineStatistics

__all__ = ["EmbeddingWork"]


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


class EmbeddingWork:
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
        self._desk = Desk(send)
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
            listed = [text for text in message.texts if not isinstance(text, str)]
            tokens = [np.asarray(text[:most]) for text in listed]
        tokens = embedder.check_tokens(tokens)
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

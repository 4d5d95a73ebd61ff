"""What the server and the worker that runs an engine say to each other, and how it is written.

Each message is a tagged structure in MessagePack, in a frame that begins with its length. Requests
have numbers of the connection's own, so two clients may call theirs the same.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeVar

import msgspec
from msgspec import Raw, Struct
from msgspec.msgpack import Decoder, Encoder

from hasten import errors
from hasten.errors import HastenError, OverloadError
from hasten.types import (
    EngineOptions,
    EngineStatistics,
    FinishReason,
    Output,
    Request,
    TokenLogprobs,
)

__all__ = [
    "MAX_FRAME",
    "Accepted",
    "Cancel",
    "Embed",
    "Embedded",
    "EngineInfo",
    "EngineSpec",
    "Fault",
    "Frames",
    "FromWorker",
    "LoadAdapter",
    "Open",
    "Ping",
    "Pong",
    "Progress",
    "Ready",
    "Refused",
    "Step",
    "Submit",
    "ToWorker",
    "UnloadAdapter",
    "WireError",
    "decode_from_worker",
    "decode_request",
    "decode_to_worker",
    "encode",
    "encode_request",
]

MAX_FRAME = 256 << 20
"""Bytes of the largest message; the largest that occur hold thousands of vectors, or the log
probabilities of long prompts."""

_LENGTH = 4  # bytes before each message, little-endian


class WireError(Exception):
    """What came is no message, or one is too large to send."""


@dataclass(frozen=True, slots=True)
class EngineSpec:
    """What a worker runs; filled by whoever wants it served.

    Attributes:
        model: As `hasten.models.load_model` takes it.
        kind: Whether it generates text or embeds it.
        options: How to run it; None takes what its recipe says, or the defaults.
        adapters: Paths of LoRA adapters to load at the start, by name; room is made for them.
    """

    model: str
    kind: Literal["generate", "embed"] = "generate"
    options: EngineOptions | None = None
    adapters: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class EngineInfo:
    """What a worker has opened; filled by the worker.

    Attributes:
        pid: Of its process.
        context: Tokens of the longest sequence, or of the longest text to embed.
        vocab_size: Token ids run from 0 to one less.
        dimensions: Of the vectors; None where it generates.
        max_sequences: Sequences that can run at once.
        memory: Bytes by what they are for.
        isa: Instruction set that runs.
        threads: Most threads of a step.
        weights_source: Whether weights were read as packed by an earlier start, or packed.
        seconds: From the start of the process until it was ready.
    """

    pid: int
    context: int
    vocab_size: int
    dimensions: int | None
    max_sequences: int
    memory: Mapping[str, int]
    isa: str
    threads: int
    weights_source: Literal["cache", "files"]
    seconds: float


class _Message(Struct, array_like=True, tag=True):
    """Written as an array, its name first."""


class Open(_Message):
    """To the worker, first of all: what to run; `Ready` or `Fault` answers."""

    spec: EngineSpec


class Submit(_Message):
    """To the worker: generate; `Accepted` or `Refused` answers."""

    number: int
    request: Raw  # of its own, so that a bad one harms no other


class Embed(_Message):
    """To the worker: `Embedded` or `Refused` answers."""

    number: int
    texts: list[str | list[int]]
    dimensions: int | None = None
    truncate: bool = False


class LoadAdapter(_Message):
    """To the worker: `Accepted` or `Refused` answers."""

    number: int
    name: str
    path: str


class UnloadAdapter(_Message):
    """To the worker: `Accepted` or `Refused` answers."""

    number: int
    name: str


class Cancel(_Message):
    """To the worker: nothing more is wanted of this number; there is no answer."""

    number: int


class Ping(_Message):
    """To the worker: `Pong` answers, in the midst of a step, too."""


ToWorker = Open | Submit | Embed | LoadAdapter | UnloadAdapter | Cancel | Ping


class Fault(Struct, array_like=True, tag=True):
    """An error on its way; alone, the worker says why it ends.

    Attributes:
        kind: Name of its class in `hasten.errors`.
        what: As in `HastenError`, as are the next two.
        retry_after: Of an `OverloadError`.
    """

    kind: str
    what: str
    allowed: str | None = None
    do: str | None = None
    retry_after: float | None = None

    @classmethod
    def of(cls, error: HastenError) -> Fault:
        """What to send of an error."""
        retry_after = error.retry_after if isinstance(error, OverloadError) else None
        return cls(type(error).__name__, error.what, error.allowed, error.do, retry_after)

    def error(self) -> HastenError:
        """The error that it tells of; a plain `HastenError` where its kind is unknown."""
        kind = getattr(errors, self.kind) if self.kind in errors.__all__ else HastenError
        more: dict[str, float] = {}
        if issubclass(kind, OverloadError):
            more["retry_after"] = self.retry_after or 0.0
        error: HastenError = kind(self.what, allowed=self.allowed, do=self.do, **more)
        return error


class Progress(Struct, array_like=True):
    """An `Output`, with a number for its request."""

    number: int
    tokens: tuple[int, ...]
    text: str
    finish_reason: FinishReason | None
    model_seconds: float
    index: int = 0
    cached_tokens: int = 0
    logprobs: tuple[TokenLogprobs, ...] = ()
    prompt_logprobs: tuple[TokenLogprobs, ...] = ()
    error: str | None = None
    stop: str | None = None

    @classmethod
    def of(cls, output: Output) -> Progress:
        """What to send of an output whose request is called by its number."""
        return cls(
            int(output.request_id),
            output.tokens,
            output.text,
            output.finish_reason,
            output.model_seconds,
            output.index,
            output.cached_tokens,
            output.logprobs,
            output.prompt_logprobs,
            output.error,
            output.stop,
        )

    def output(self, request_id: str) -> Output:
        """The output, for the request as the client's side calls it."""
        return Output(
            request_id,
            self.tokens,
            self.text,
            self.finish_reason,
            self.model_seconds,
            self.index,
            self.cached_tokens,
            self.logprobs,
            self.prompt_logprobs,
            self.error,
            self.stop,
        )


class Ready(_Message):
    """From the worker: it takes requests now."""

    info: EngineInfo
    statistics: EngineStatistics | None = None


class Accepted(_Message):
    """From the worker: a request was valid and is queued, or an adapter is loaded or unloaded.

    Outputs may come before it.
    """

    number: int


class Refused(_Message):
    """From the worker: nothing, or nothing more, comes of this number."""

    number: int
    fault: Fault


class Step(_Message):
    """From the worker: all that a step of the engine yielded."""

    outputs: list[Progress]
    statistics: EngineStatistics


class Embedded(_Message):
    """From the worker: vectors as float32 [n, dimensions], and the tokens of the texts."""

    number: int
    vectors: bytes
    dimensions: int
    tokens: int


class Pong(_Message):
    """From the worker: it lives.

    Attributes:
        steps: How far its work is; grows as long as it gets on.
        working: Whether there is any.
    """

    steps: int
    working: bool


FromWorker = Ready | Fault | Accepted | Refused | Step | Embedded | Pong

T = TypeVar("T")

_ENCODER = Encoder()
_TO_WORKER: Decoder[ToWorker] = Decoder(ToWorker)
_FROM_WORKER: Decoder[FromWorker] = Decoder(FromWorker)
_REQUEST = Decoder(Request)


def encode(message: ToWorker | FromWorker) -> bytes:
    """A message as a frame.

    Raises:
        WireError: It is larger than `MAX_FRAME`, or holds what MessagePack cannot.
    """
    data = _pack(message)
    if len(data) > MAX_FRAME:
        raise WireError(f"a message of {len(data)} bytes; {MAX_FRAME} are allowed")
    return len(data).to_bytes(_LENGTH, "little") + data


def encode_request(request: Request) -> Raw:
    """A request for `Submit`.

    Raises:
        WireError: It holds what MessagePack cannot: integers of more than 64 bits, half of a
            surrogate pair.
    """
    return Raw(_pack(request))


def decode_to_worker(frame: bytes) -> ToWorker:
    """The message of a frame from the server.

    Raises:
        WireError: It is none.
    """
    return _unpack(_TO_WORKER, frame)


def decode_from_worker(frame: bytes) -> FromWorker:
    """The message of a frame from a worker.

    Raises:
        WireError: It is none.
    """
    return _unpack(_FROM_WORKER, frame)


def decode_request(data: Raw) -> Request:
    """The request of a `Submit`.

    Raises:
        WireError: It is none; the message says where.
    """
    return _unpack(_REQUEST, data)


def _pack(value: object) -> bytes:
    try:
        return _ENCODER.encode(value)
    except (OverflowError, TypeError, UnicodeEncodeError) as error:
        raise WireError(str(error)) from error


def _unpack(decoder: Decoder[T], data: bytes | Raw) -> T:
    try:
        return decoder.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, MemoryError) as error:
        raise WireError(str(error)) from error


class Frames:
    """Takes a stream of bytes apart; holds no more of it than has come.

    Args:
        largest: Bytes of the largest frame.
    """

    def __init__(self, largest: int = MAX_FRAME) -> None:
        self._largest = largest
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Sequence[bytes]:
        """The frames that are complete with these bytes.

        Raises:
            WireError: A frame says that it is larger than the largest; the stream is lost.
        """
        self._buffer += data
        frames = []
        begin = 0
        while len(self._buffer) - begin >= _LENGTH:
            first = begin + _LENGTH
            size = int.from_bytes(self._buffer[begin:first], "little")
            if size > self._largest:
                raise WireError(f"a frame of {size} bytes came; {self._largest} are allowed")
            if len(self._buffer) < first + size:
                break
            begin = first + size
            frames.append(bytes(memoryview(self._buffer)[first:begin]))
        del self._buffer[:begin]
        return frames

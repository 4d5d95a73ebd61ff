"""Answers as bytes: MessagePack after a digest, so that what is damaged or foreign is no answer."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import msgspec

from hasten.types import FinishReason, Output, TokenLogprobs

__all__ = ["decode_answer", "encode_answer", "is_complete"]

_DIGEST = 32
_WHOLE: frozenset[FinishReason | None] = frozenset({"stop", "length"})


class _Logprobs(msgspec.Struct, array_like=True):
    token: int
    logprob: float | None
    rank: int | None
    top: tuple[tuple[int, float], ...]


class _Step(msgspec.Struct, array_like=True, omit_defaults=True):
    """An `Output` without what belongs to one request: its id and its time."""

    tokens: tuple[int, ...]
    text: str
    finish_reason: FinishReason | None = None
    index: int = 0
    cached_tokens: int = 0
    logprobs: tuple[_Logprobs, ...] = ()
    prompt_logprobs: tuple[_Logprobs, ...] = ()
    stop: str | None = None


_ENCODER = msgspec.msgpack.Encoder()
_DECODER = msgspec.msgpack.Decoder(list[_Step])


def encode_answer(key: bytes, outputs: Iterable[Output]) -> bytes:
    """All outputs of a completed request."""
    steps = [
        _Step(
            output.tokens,
            output.text,
            output.finish_reason,
            output.index,
            output.cached_tokens,
            _packed(output.logprobs),
            _packed(output.prompt_logprobs),
            output.stop,
        )
        for output in outputs
    ]
    body = _ENCODER.encode(steps)
    return hashlib.sha256(key + body).digest() + body


def decode_answer(key: bytes, value: bytes, n: int) -> list[Output] | None:
    """The outputs of an answer, with no time spent and no id; None if that is no answer.

    Args:
        key: What it was found under.
        value: The bytes that were there.
        n: Outputs that the request asks for.
    """
    body = value[_DIGEST:]
    if hashlib.sha256(key + body).digest() != value[:_DIGEST]:
        return None
    try:
        steps = _DECODER.decode(body)
    except msgspec.MsgspecError:
        return None
    outputs = [
        Output(
            "",
            step.tokens,
            step.text,
            step.finish_reason,
            0.0,
            step.index,
            step.cached_tokens,
            _unpacked(step.logprobs),
            _unpacked(step.prompt_logprobs),
            None,
            step.stop,
        )
        for step in steps
    ]
    return outputs if is_complete(outputs, n) else None


def is_complete(outputs: Iterable[Output], n: int) -> bool:
    """Whether each of n outputs ended by itself or at its limit, and none otherwise."""
    ends = [(o.index, o.finish_reason) for o in outputs if o.finish_reason is not None]
    return sorted(index for index, _ in ends) == list(range(n)) and all(
        reason in _WHOLE for _, reason in ends
    )


def _packed(entries: Iterable[TokenLogprobs]) -> tuple[_Logprobs, ...]:
    return tuple([_Logprobs(e.token, e.logprob, e.rank, e.top) for e in entries])


def _unpacked(entries: Iterable[_Logprobs]) -> tuple[TokenLogprobs, ...]:
    return tuple([TokenLogprobs(e.token, e.logprob, e.rank, e.top) for e in entries])

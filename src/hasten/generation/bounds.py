"""What a request may ask of the sampler; everything is checked before any work."""

from __future__ import annotations

import math

from hasten.errors import UsageError
from hasten.types import SamplingParams, Structure

__all__ = [
    "MAX_LOGPROBS",
    "MAX_OUTPUTS",
    "MAX_STOPS",
    "MAX_STOP_CHARACTERS",
    "MAX_STOP_TOKENS",
    "MAX_STRUCTURE_CHARACTERS",
    "check_sampling",
]

MAX_OUTPUTS = 128
MAX_LOGPROBS = 20
MAX_STOPS = 64
MAX_STOP_CHARACTERS = 1024
MAX_STOP_TOKENS = 1024
MAX_STRUCTURE_CHARACTERS = 1 << 16


def check_sampling(params: SamplingParams, vocab_size: int) -> None:
    """Refuses values out of range; NaN is in no range.

    Args:
        params: What was asked.
        vocab_size: Token ids run from 0 to one less.

    Raises:
        UsageError: Names the value and what is allowed.
    """
    _check_ranges(params)
    if params.structure is not None:
        _check_structure(params.structure)
        if params.ignore_eos:
            raise UsageError(
                "ignore_eos is set together with a structure, whose end is the end of the output",
                do="leave one of them out",
            )
    ids = f"0 to {vocab_size - 1}, the ids of the vocabulary"
    for token in params.stop_tokens:
        if not 0 <= token < vocab_size:
            raise UsageError(f"stop_tokens holds {token!r}", allowed=ids)
    for token, bias in params.logit_bias.items():
        if not 0 <= token < vocab_size:
            raise UsageError(f"logit_bias holds the token {token!r}", allowed=ids)
        if not -100 <= bias <= 100:
            raise UsageError(f"logit_bias of token {token} is {bias!r}", allowed="-100 to 100")


def _check_ranges(params: SamplingParams) -> None:
    checks = [
        ("max_tokens", params.max_tokens >= 1, "1 or more"),
        ("temperature", 0 <= params.temperature <= 100, "0 (greedy) to 100"),
        ("top_k", 0 <= params.top_k < math.inf, "0 (all) or more"),
        ("top_p", 0 < params.top_p <= 1, "above 0, at most 1"),
        ("min_p", 0 <= params.min_p < 1, "0 or more, below 1"),
        ("seed", params.seed is None or 0 <= params.seed < 2**64, "0 to 2^64 - 1"),
        ("repetition_penalty", 0.01 <= params.repetition_penalty <= 100, "0.01 to 100"),
        ("presence_penalty", -2 <= params.presence_penalty <= 2, "-2 to 2"),
        ("frequency_penalty", -2 <= params.frequency_penalty <= 2, "-2 to 2"),
        ("n", 1 <= params.n <= MAX_OUTPUTS, f"1 to {MAX_OUTPUTS}"),
        ("logprobs", _fine_count(params.logprobs), f"0 to {MAX_LOGPROBS}, or None"),
        ("prompt_logprobs", _fine_count(params.prompt_logprobs), f"0 to {MAX_LOGPROBS}, or None"),
    ]
    for name, fine, allowed in checks:
        if not fine:
            raise UsageError(f"{name} is {getattr(params, name)!r}", allowed=allowed)
    _check_stops(params)


def _fine_count(count: int | None) -> bool:
    return count is None or 0 <= count <= MAX_LOGPROBS


def _check_stops(params: SamplingParams) -> None:
    if "" in params.stop:
        raise UsageError("stop holds the empty text", allowed="texts of at least one character")
    if len(params.stop) > MAX_STOPS:
        raise UsageError(f"stop holds {len(params.stop)} texts", allowed=f"up to {MAX_STOPS}")
    longest = max(map(len, params.stop), default=0)
    if longest > MAX_STOP_CHARACTERS:
        raise UsageError(
            f"a text of stop has {longest} characters", allowed=f"up to {MAX_STOP_CHARACTERS}"
        )
    if len(params.stop_tokens) > MAX_STOP_TOKENS:
        raise UsageError(
            f"stop_tokens holds {len(params.stop_tokens)} tokens",
            allowed=f"up to {MAX_STOP_TOKENS}",
        )


def _check_structure(structure: Structure) -> None:
    kinds = ("json_schema", "regex", "grammar")
    if structure.kind not in kinds:
        raise UsageError(f"structure is a {structure.kind!r}", allowed=", ".join(kinds))
    if len(structure.text) > MAX_STRUCTURE_CHARACTERS:
        raise UsageError(
            f"the text of the structure has {len(structure.text)} characters",
            allowed=f"up to {MAX_STRUCTURE_CHARACTERS}",
        )

"""Options, durations and formats as Ollama writes them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, TypeVar

from hasten.errors import UsageError
from hasten.serve.jobs import MAX_OUTPUT
from hasten.serve.protocols.ollama.schema import Options
from hasten.serve.protocols.reading import convert
from hasten.serve.protocols.streaming import encode
from hasten.types import SamplingParams, Structure

__all__ = ["read_keep_alive", "read_options", "read_sampling", "read_structure"]

_SECONDS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "μs": 1e-6, "ms": 1e-3, "s": 1, "m": 60, "h": 3600}
_PART = r"(\d{1,18}(?:\.\d{0,18})?|\.\d{1,18})(ns|us|µs|μs|ms|s|m|h)"
_DURATION = re.compile(rf"([-+]?)((?:{_PART}){{1,8}})", re.ASCII)
_NUMBER = re.compile(r"[-+]?\d{1,18}(?:\.\d{0,18})?", re.ASCII)
_FOR_EVER = 1e9

_Number = TypeVar("_Number", int, float)


def read_keep_alive(value: float | str | None) -> float | None:
    """Seconds for which a model stays loaded; negative for ever, None as the server likes.

    Args:
        value: Seconds, or a text such as "5m", "1h30m" or "-1".

    Raises:
        UsageError: The text is no duration.
    """
    if value is None:
        return None
    seconds = _parsed(value) if isinstance(value, str) else float(value)
    return -1.0 if seconds < 0 or seconds > _FOR_EVER else seconds


def _parsed(text: str) -> float:
    if _NUMBER.fullmatch(text):
        return float(text)
    match = _DURATION.fullmatch(text)
    if match is None:
        raise UsageError(
            f"keep_alive is {text!r:.80}", allowed='seconds, or a duration such as "5m" or "-1s"'
        )
    total = sum(float(number) * _SECONDS[unit] for number, unit in re.findall(_PART, match[2]))
    return -total if match[1] == "-" else total


def read_options(
    given: Mapping[str, Any] | None, *, place: str = "options"
) -> tuple[Options, list[str]]:
    """Reads options, and names those that have no effect here.

    Whole numbers may be written with a fraction of zero, as Ollama's own server takes them.

    Raises:
        UsageError: An option has another type than it must have.
    """
    plain = {
        name: int(value) if isinstance(value, float) and value.is_integer() else value
        for name, value in (given or {}).items()
    }
    options, unknown = convert(plain, Options, place=place)
    return options, [f"{place}.{name}" for name in unknown]


def read_sampling(
    options: Options, structure: Structure | None, logprobs: int | None
) -> SamplingParams:
    """How to choose the output, with Ollama's defaults but one.

    `repeat_penalty` is 1 unless asked for: Ollama's own 1.1 looks at the last 64 tokens, ours at
    the whole prompt and output, where the same figure would do harm.
    """
    stop = options.stop
    return SamplingParams(
        max_tokens=_limit(options.num_predict),
        temperature=_or(options.temperature, 0.8),
        top_k=max(0, _or(options.top_k, 40)),
        top_p=min(1.0, _or(options.top_p, 0.9)),
        min_p=_or(options.min_p, 0.0),
        seed=None if options.seed is None or options.seed < 0 else options.seed,
        stop=(stop,) if isinstance(stop, str) else tuple(stop or ()),
        repetition_penalty=1.0 if options.repeat_last_n == 0 else _or(options.repeat_penalty, 1.0),
        presence_penalty=_or(options.presence_penalty, 0.0),
        frequency_penalty=_or(options.frequency_penalty, 0.0),
        structure=structure,
        logprobs=logprobs,
    )


def _limit(num_predict: int | None) -> int:
    """Zero and less ask for as much as fits."""
    return MAX_OUTPUT if num_predict is None or num_predict <= 0 else min(num_predict, MAX_OUTPUT)


def _or(value: _Number | None, default: _Number) -> _Number:
    return default if value is None else value


def read_structure(given: str | Mapping[str, Any] | None) -> Structure | None:
    """What `format` demands: "json" any object, a schema what it says."""
    if given is None or given == "":
        return None
    schema = {"type": "object"} if given == "json" else given
    return Structure("json_schema", encode(schema).decode())

"""The options of `SamplingParams`.

A command decorated with `sampling_options` receives one `sampling: SamplingParams`; so a new field
is added here once.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import click

from hasten.cli.options import FiniteFloat, apply_options, seed_option
from hasten.types import SamplingParams, Structure

__all__ = ["sampling_options"]

Command = Callable[..., object]

MAX_STRUCTURE_BYTES = 1 << 20


def sampling_options(command: Command) -> Command:
    """Add the options of `SamplingParams`; the command receives `sampling: SamplingParams`."""

    @functools.wraps(command)
    def with_sampling(*args: object, **kwargs: object) -> object:
        values: dict[str, Any] = {name: kwargs.pop(name) for name in _FIELDS}
        structures: dict[str, Any] = {name: kwargs.pop(name) for name in _STRUCTURES}
        sampling = SamplingParams(**values, structure=_structure(structures))
        return command(*args, sampling=sampling, **kwargs)

    return apply_options(with_sampling, _OPTIONS)


def _structure(given: Mapping[str, str | None]) -> Structure | None:
    found = {name: text for name, text in given.items() if text is not None}
    if len(found) > 1:
        names = " and ".join(_STRUCTURES[name] for name in found)
        raise click.UsageError(f"{names} exclude each other.")
    match found:
        case {"json_schema": text}:
            return Structure("json_schema", text)
        case {"regex": text}:
            return Structure("regex", text)
        case {"grammar": text}:
            return Structure("grammar", text)
    return None


def _check_stop(
    ctx: click.Context, param: click.Parameter, value: tuple[str, ...]
) -> tuple[str, ...]:
    if "" in value:
        raise click.BadParameter("the empty text would end every answer at once.", ctx, param)
    return value


def _read_bias(
    ctx: click.Context, param: click.Parameter, value: tuple[str, ...]
) -> dict[int, float]:
    """Parse TOKEN=BIAS; the engine checks both against the model."""
    bias = {}
    for text in value:
        token, separator, number = text.partition("=")
        try:
            if not separator:
                raise ValueError
            bias[int(token)] = float(number)
        except ValueError:
            raise click.BadParameter(
                f"{text!r} is not a token's id, = and a number.", ctx, param
            ) from None
    return bias


def _read_schema(ctx: click.Context, param: click.Parameter, value: str | None) -> str | None:
    return _text_or_file(value, "{", "a JSON object", ctx, param)


def _read_grammar(ctx: click.Context, param: click.Parameter, value: str | None) -> str | None:
    return _text_or_file(value, ":", "a grammar", ctx, param)


def _text_or_file(
    value: str | None, mark: str, what: str, ctx: click.Context, param: click.Parameter
) -> str | None:
    """The content of the file that a value names; the value itself if it holds the mark."""
    if value is None or mark in value:
        return value
    path = Path(value)
    try:
        if path.stat().st_size > MAX_STRUCTURE_BYTES:
            raise click.BadParameter(
                f"{value!r} is larger than {MAX_STRUCTURE_BYTES} bytes.", ctx, param
            )
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise click.BadParameter(
            f"{value!r} is neither {what} nor a file that can be read ({error.strerror}).",
            ctx,
            param,
        ) from error
    except UnicodeDecodeError as error:
        raise click.BadParameter(
            f"{value!r} is not UTF-8 at byte {error.start}.", ctx, param
        ) from error


_STRUCTURES = {
    "json_schema": "--json-schema",
    "regex": "--regex",
    "grammar": "--grammar",
}
_FIELDS = (
    "max_tokens",
    "temperature",
    "top_k",
    "top_p",
    "min_p",
    "seed",
    "stop",
    "repetition_penalty",
    "presence_penalty",
    "frequency_penalty",
    "logit_bias",
    "logprobs",
)

_OPTIONS: tuple[Callable[[Command], Command], ...] = (
    click.option(
        "--max-tokens",
        type=click.IntRange(1, 2**24),
        default=256,
        show_default=True,
        help="Most output tokens.",
    ),
    click.option(
        "--temperature",
        type=FiniteFloat(0.0, 100.0),
        default=0.0,
        show_default=True,
        help="0 takes the likeliest token each time.",
    ),
    click.option(
        "--top-k",
        type=click.IntRange(0, 2**24),
        default=0,
        show_default=True,
        help="Keep the K likeliest tokens; 0 keeps all.",
    ),
    click.option(
        "--top-p",
        type=FiniteFloat(0.0, 1.0, min_open=True),
        default=1.0,
        show_default=True,
        help="Keep the likeliest tokens up to this probability.",
    ),
    click.option(
        "--min-p",
        type=FiniteFloat(0.0, 1.0, max_open=True),
        default=0.0,
        show_default=True,
        help="Drop tokens less likely than this fraction of the likeliest.",
    ),
    seed_option("Makes a sampled answer repeatable."),
    click.option(
        "--stop",
        callback=_check_stop,
        metavar="TEXT",
        multiple=True,
        help="End the answer before this text; may be given several times.",
    ),
    click.option(
        "--repetition-penalty",
        type=FiniteFloat(0.01, 100.0),
        default=1.0,
        show_default=True,
        help="Above 1 makes tokens of the prompt and the answer less likely to come again.",
    ),
    click.option(
        "--presence-penalty",
        type=FiniteFloat(-2.0, 2.0),
        default=0.0,
        show_default=True,
        help="Subtracted from the logits of tokens that the answer holds.",
    ),
    click.option(
        "--frequency-penalty",
        type=FiniteFloat(-2.0, 2.0),
        default=0.0,
        show_default=True,
        help="Subtracted for each time that the answer holds a token.",
    ),
    click.option(
        "--logit-bias",
        callback=_read_bias,
        metavar="ID=BIAS",
        multiple=True,
        help="Add -100 to 100 to a token's logit; may be given several times.",
    ),
    click.option(
        "--logprobs",
        type=click.IntRange(0, 20),
        metavar="K",
        help="Put each token's log probability and the K likeliest into --json.",
    ),
    click.option(
        "--json-schema",
        callback=_read_schema,
        metavar="FILE|TEXT",
        help="Answer with JSON that this schema accepts.",
    ),
    click.option(
        "--regex", metavar="TEXT", help="Answer with a text that this matches as a whole."
    ),
    click.option(
        "--grammar",
        callback=_read_grammar,
        metavar="FILE|TEXT",
        help="Answer with a text of this grammar, in llguidance's form of Lark.",
    ),
)

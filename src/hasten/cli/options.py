"""Options that several commands share, each checked where it is read.

A command decorated with `engine_choice` receives one `engine: EngineChoice`; so a new field is
added here once. The options of `SamplingParams` are in `hasten.cli.sampling`.
"""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from hasten.types import EngineOptions

if TYPE_CHECKING:
    from hasten.models import Model

__all__ = [
    "WEIGHT_FORMATS",
    "ByteSize",
    "EngineChoice",
    "FiniteFloat",
    "apply_options",
    "check_weight_format",
    "embedder_choice",
    "engine_choice",
    "json_option",
    "model_argument",
    "output_option",
    "seed_option",
]

Command = Callable[..., object]

WEIGHT_FORMATS = "carried, f32, bf16, int8, int8:G, int4:G with G a multiple of 32"


class FiniteFloat(click.FloatRange):
    """A float in a range; unlike `click.FloatRange` it refuses nan and infinity."""

    name = "number"

    def convert(
        self, value: float, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        """Parse and range-check one value."""
        number = float(super().convert(value, param, ctx))
        if not math.isfinite(number):
            self.fail(f"{value!r} is not a finite number", param, ctx)
        return number


class ByteSize(click.ParamType[int]):
    """A number of bytes, with a unit of 1000 (kB, MB, GB) or 1024 (KiB, MiB, GiB) or without."""

    name = "size"

    def convert(
        self, value: str | int, param: click.Parameter | None, ctx: click.Context | None
    ) -> int:
        """Parse one size."""
        if isinstance(value, int):
            return value
        match = re.fullmatch(r"([0-9]{1,18}(?:\.[0-9]{1,9})?) ?([A-Za-z]*)", value)
        factor = None if match is None else _UNITS.get(match[2].lower())
        if match is None or factor is None or (size := int(float(match[1]) * factor)) == 0:
            self.fail(f"{value!r} is not a size; allowed: 500MB, 2GiB, 1000000", param, ctx)
        return size


_UNITS = {"": 1, "b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12} | {
    "kib": 2**10,
    "mib": 2**20,
    "gib": 2**30,
    "tib": 2**40,
}


def check_weight_format(
    ctx: click.Context, param: click.Parameter, value: str | None
) -> str | None:
    """Callback of an option that names a weight format as `EngineOptions.weights` describes it."""
    if value is None:
        return None
    match = re.fullmatch(r"carried|f32|bf16|int8|int[48]:([0-9]{1,6})", value)
    group = match and match.group(1)
    if match is None or (group is not None and (int(group) == 0 or int(group) % 32)):
        raise click.BadParameter(
            f"{value!r} is not a weight format; allowed: {WEIGHT_FORMATS}.", ctx, param
        )
    return value


def model_argument(command: Command) -> Command:
    """Add MODEL: a path, a hub name, `smollm2` or `minilm`; the command receives `model: str`."""
    return click.argument("model", metavar="MODEL")(command)


def json_option(command: Command) -> Command:
    """Add `--json FILE`; the command receives `json_path: str | None`, "-" meaning stdout."""
    return click.option(
        "--json",
        "json_path",
        metavar="FILE",
        callback=_check_json_path,
        help="Also write the figures as JSON; - writes them to stdout instead of the table.",
    )(command)


def output_option(name: str, help_text: str) -> Callable[[Command], Command]:
    """Make an option that names a file to write; the command receives `Path | None`."""

    def check(ctx: click.Context, param: click.Parameter, value: str | None) -> Path | None:
        return None if value is None else Path(_writable(ctx, param, value))

    return click.option(name, metavar="FILE", callback=check, help=help_text)


def _check_json_path(ctx: click.Context, param: click.Parameter, value: str | None) -> str | None:
    return value if value is None or value == "-" else _writable(ctx, param, value)


def _writable(ctx: click.Context, param: click.Parameter, value: str) -> str:
    """Find out before the work, not after it, that its result cannot be written."""
    path = Path(value)
    if path.is_dir():
        raise click.BadParameter(f"{value!r} is a directory", ctx, param)
    if not path.absolute().parent.is_dir():
        raise click.BadParameter(f"the directory of {value!r} does not exist", ctx, param)
    return value


def seed_option(help_text: str, default: int | None = None) -> Callable[[Command], Command]:
    """Make the `--seed` option of a command, an unsigned 64-bit integer."""
    return click.option(
        "--seed",
        type=click.IntRange(0, 2**64 - 1),
        default=default,
        show_default=default is not None,
        help=help_text,
    )


@dataclass(frozen=True, slots=True)
class EngineChoice:
    """What the user said about how a model runs; what they left open, its recipe may say.

    Attributes:
        given: Fields of `EngineOptions`; None where the user said nothing.
    """

    given: Mapping[str, Any]

    def for_model(self, model: Model) -> EngineOptions:
        """The options for a model: the user's, else its recipe's, else the defaults."""
        from hasten.generation import engine_options

        return engine_options(model, **self.given)

    def or_else(self, **defaults: object) -> EngineChoice:
        """The same with a command's own defaults for what the user left open."""
        given = {name: value for name, value in self.given.items() if value is not None}
        return EngineChoice({**defaults, **given})


def engine_choice(command: Command) -> Command:
    """Add the options that say how a model runs; the command receives `engine: EngineChoice`."""
    return _with_choice(command, _EXECUTOR_OPTIONS | _ENGINE_OPTIONS)


def embedder_choice(command: Command) -> Command:
    """Add the options that say how an embedding model runs, like `engine_choice`."""
    return _with_choice(command, _EXECUTOR_OPTIONS | _EMBEDDER_OPTIONS)


def _with_choice(command: Command, options: dict[str, Callable[[Command], Command]]) -> Command:
    @functools.wraps(command)
    def with_engine(*args: object, **kwargs: object) -> object:
        given = {name: kwargs.pop(name) for name in options}
        return command(*args, engine=EngineChoice(given), **kwargs)

    return apply_options(with_engine, tuple(options.values()))


def apply_options(command: Command, options: tuple[Callable[[Command], Command], ...]) -> Command:
    """Add options to a command, in the order in which its help shows them."""
    for option in reversed(options):
        command = option(command)
    return command


_EXECUTOR_OPTIONS: dict[str, Callable[[Command], Command]] = {
    "weights": click.option(
        "--weights",
        callback=check_weight_format,
        metavar="FORMAT",
        help=f"Format of the matrices: {WEIGHT_FORMATS}  [default: the recipe's, or carried]",
    ),
    "threads": click.option(
        "--threads",
        type=click.IntRange(1, 1024),
        help="Worker threads  [default: the recipe's, or chosen by cores, quota and a measurement]",
    ),
    "isa": click.option(
        "--isa",
        metavar="NAME",
        help="Instruction set of the kernels  [default: HASTEN_ISA, or the best of this machine]",
    ),
    "executor": click.option(
        "--executor",
        type=click.Choice(["native", "reference", "torch"]),
        help="C++ kernels, or NumPy or torch in float32  [default: native]",
    ),
    "fuse": click.option(
        "--fuse/--no-fuse",
        default=None,
        help="Run the fused graph, or op by op  [default: fuse]",
    ),
}

_ENGINE_OPTIONS: dict[str, Callable[[Command], Command]] = {
    "kv": click.option(
        "--kv",
        type=click.Choice(["f32", "bf16", "int8"]),
        help="Format of the KV cache  [default: the recipe's, or bf16]",
    ),
    "decode_threads": click.option(
        "--decode-threads",
        type=click.IntRange(1, 1024),
        help="Worker threads of a step with one token  [default: the recipe's, or chosen likewise]",
    ),
    "max_context": click.option(
        "--max-context",
        type=click.IntRange(1, 2**24),
        help="Longest prompt plus output in tokens  [default: the model's, at most 8192]",
    ),
    "max_sequences": click.option(
        "--max-sequences",
        type=click.IntRange(1, 4096),
        help="Sequences that run at once  [default: 16; batch: 32; bench: 1]",
    ),
    "kv_memory": click.option(
        "--kv-memory",
        type=ByteSize(),
        help="Size of the KV cache, as in 2GiB or 500MB  [default: what the sequences need, at "
        "most half of the memory that the weights leave]",
    ),
    "prefix_cache": click.option(
        "--prefix-cache/--no-prefix-cache",
        default=None,
        help="Compute what prompts begin alike with once  [default: on; bench: off]",
    ),
}

_EMBEDDER_OPTIONS: dict[str, Callable[[Command], Command]] = {
    "kv": click.option(
        "--kv",
        type=click.Choice(["f32", "bf16", "int8"]),
        help="Format of keys and values  [default: f32 for encoders, bf16 for decoders]",
    ),
    "max_context": click.option(
        "--max-context",
        type=click.IntRange(1, 2**24),
        help="Longest text in tokens  [default: what the model's files say, at most 8192]",
    ),
}

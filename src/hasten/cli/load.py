"""The options that say what a bench asks of its target, and when."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from hasten.cli.options import FiniteFloat, apply_options, seed_option
from hasten.errors import UsageError

if TYPE_CHECKING:
    from hasten.measure.arrivals import Pattern
    from hasten.measure.synthetic import Coder
    from hasten.measure.workload import Workload

__all__ = ["REQUESTS", "LoadChoice", "load_choice"]

Command = Callable[..., Any]

REQUESTS = 44
"""The least that bounds a p90 at 99 % confidence."""


TIMINGS = ("concurrency", "rate", "ramp", "replay")
"""Options of which one says when requests are sent."""


@dataclass(frozen=True, slots=True)
class LoadChoice:
    """What the user said about the load; fields are the options of the same names."""

    input_len: str
    output_len: str
    shared_prefix: int
    prefixes: int
    turns: int
    pause: float
    requests: int | None
    warmup: int
    prompt_file: Path | None
    seed: int
    concurrency: int | None
    rate: float | None
    burstiness: float
    ramp: tuple[float, float, float] | None
    replay: float | None
    max_in_flight: int | None
    duration: float | None

    @property
    def sequences(self) -> int | None:
        """Sequences side by side that an engine needs; None for its own default."""
        if all(getattr(self, name) is None for name in TIMINGS[1:]):
            return self.concurrency or 1
        return None

    @property
    def shares_prompts(self) -> bool:
        """Whether prompts begin with what came before, for a prefix cache to find."""
        return bool(self.shared_prefix) or self.turns > 1

    def check(self) -> None:
        """Finds out before a model is opened what cannot be asked of it.

        Raises:
            UsageError: Lengths that are none, or options that exclude each other.
        """
        from hasten.measure.synthetic import Lengths

        for text in (self.input_len, self.output_len):
            Lengths.parse(text)
        given = [name for name in TIMINGS if getattr(self, name) is not None]
        if len(given) > 1:
            raise UsageError(
                f"--{given[0]} and --{given[1]} say differently when requests are sent",
                do="leave one out",
            )
        if self.rate is None and self.burstiness != 1:
            raise UsageError("--burstiness needs --rate")
        if self.max_in_flight is not None and given in ([], ["concurrency"]):
            raise UsageError(
                "--max-in-flight is of --rate, --ramp and --replay", do="use --concurrency"
            )

    def pattern(self, workload: Workload) -> Pattern:
        """When requests are sent; `check` has passed.

        Raises:
            UsageError: No times to replay.
        """
        from dataclasses import replace

        from hasten.measure import arrivals

        if self.sequences is not None:
            return arrivals.ClosedLoop(self.sequences)
        if self.rate is not None:
            loop = arrivals.gamma(self.rate, self.burstiness, self.seed)
            if self.burstiness == 1:
                loop = arrivals.poisson(self.rate, self.seed)
        elif self.ramp is not None:
            loop = arrivals.ramp(*self.ramp)
        elif workload.times is None:
            raise UsageError(
                "--replay needs the times of requests",
                do="give a --prompt-file whose lines have 'at', the second of each request",
            )
        else:
            loop = arrivals.replay(workload.times, self.replay or 1.0)
        return replace(loop, max_in_flight=self.max_in_flight)

    def workload(self, tokenizer: Coder | None, *, as_text: bool) -> Workload:
        """What is asked for.

        Args:
            tokenizer: Of the model; None where it is not known, as with most servers.
            as_text: The target takes texts, not tokens.

        Raises:
            UsageError: Lengths that are none, or a file that cannot be used.
        """
        from hasten.measure.corpus import default_corpus
        from hasten.measure.synthetic import Lengths, Pieces, Shape, synthetic
        from hasten.measure.workload_file import read_workload

        output = Lengths.parse(self.output_len)
        if self.prompt_file is not None:
            return read_workload(
                self.prompt_file,
                output_tokens=output.high,
                warmup=self.warmup,
                limit=self.requests,
                turns=self.turns,
                count=None if tokenizer is None else lambda text: len(tokenizer.encode(text)),
            )
        shape = Shape(
            Lengths.parse(self.input_len),
            output,
            prefix=self.shared_prefix,
            prefixes=self.prefixes,
            turns=self.turns,
            pause=self.pause,
        )
        return synthetic(
            tokenizer or Pieces(),
            default_corpus(),
            shape,
            requests=self.requests or REQUESTS,
            warmup=self.warmup,
            seed=self.seed,
            as_text=as_text,
        )


def load_choice(command: Command) -> Command:
    """Add the options of a load; the command receives `load: LoadChoice`."""

    @functools.wraps(command)
    def with_load(*args: object, **kwargs: Any) -> object:  # noqa: ANN401 - what click parsed
        given = {field.name: kwargs.pop(field.name) for field in fields(LoadChoice)}
        return command(*args, load=LoadChoice(**given), **kwargs)

    return apply_options(with_load, _OPTIONS)


_OPTIONS = (
    click.option(
        "--input-len",
        default="128",
        show_default=True,
        metavar="TOKENS",
        help="Tokens of a synthetic prompt: a number, or LOW:HIGH, drawn evenly.",
    ),
    click.option(
        "--output-len",
        default="64",
        show_default=True,
        metavar="TOKENS",
        help="Tokens to generate, likewise.",
    ),
    click.option(
        "--shared-prefix",
        type=click.IntRange(0, 2**24),
        default=0,
        metavar="TOKENS",
        help="Tokens that prompts begin with in common  [default: 0]",
    ),
    click.option(
        "--prefixes",
        type=click.IntRange(1, 10**6),
        default=1,
        help="Number of such beginnings, which prompts take in turns  [default: 1]",
    ),
    click.option(
        "--turns",
        type=click.IntRange(1, 10**4),
        default=1,
        help="Messages of the user in a conversation, each with all before it  [default: 1]",
    ),
    click.option(
        "--pause",
        type=FiniteFloat(0.0),
        default=0.0,
        metavar="SECONDS",
        help="Between an answer and the user's next message  [default: 0]",
    ),
    click.option(
        "--requests",
        type=click.IntRange(1, 10**6),
        help=f"Requests to measure  [default: {REQUESTS}, or all of the prompt file]",
    ),
    click.option(
        "--warmup",
        type=click.IntRange(0, 10**6),
        default=2,
        show_default=True,
        help="Requests to make first and not to count.",
    ),
    click.option(
        "--prompt-file",
        type=click.Path(path_type=Path),
        help="Requests as JSON Lines, or conversations of ShareGPT, instead of synthetic ones.",
    ),
    seed_option("Chooses where synthetic prompts begin, lengths and times.", default=0),
    click.option(
        "--concurrency",
        type=click.IntRange(1, 10**5),
        metavar="CLIENTS",
        help="Clients, each of which sends when its request before has ended  [default: 1]",
    ),
    click.option(
        "--rate",
        type=FiniteFloat(0.0, min_open=True),
        metavar="PER_SECOND",
        help="Send so many requests a second, whatever becomes of them.",
    ),
    click.option(
        "--burstiness",
        type=FiniteFloat(0.0, min_open=True),
        default=1.0,
        help="Of --rate: 1 is Poisson, more comes in bursts, less more evenly  [default: 1]",
    ),
    click.option(
        "--ramp",
        type=(float, float, float),
        metavar="FIRST LAST SECONDS",
        help="Send at a rate that changes evenly.",
    ),
    click.option(
        "--replay",
        type=FiniteFloat(0.0, min_open=True),
        metavar="SPEED",
        help="Send when the prompt file's requests were sent; 2 is twice as fast.",
    ),
    click.option(
        "--max-in-flight",
        type=click.IntRange(1, 10**6),
        help="Requests under way at most; others wait, and count from when they were due.",
    ),
    click.option(
        "--duration",
        type=FiniteFloat(0.0, min_open=True),
        metavar="SECONDS",
        help="Send no request after these seconds.",
    ),
)

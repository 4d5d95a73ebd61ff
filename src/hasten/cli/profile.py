"""`hasten profile`: where the time of a model goes, and what would make it less."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import click

from hasten.cli.console import progress, write_json, write_text
from hasten.cli.engine import describe, open_engine
from hasten.cli.options import (
    EngineChoice,
    FiniteFloat,
    engine_choice,
    json_option,
    model_argument,
    output_option,
    seed_option,
)
from hasten.cli.profile_tables import print_profile, print_sweep
from hasten.errors import CapacityError

if TYPE_CHECKING:
    from hasten.generation import Engine
    from hasten.generation.op_times import Phase
    from hasten.machine import Rates
    from hasten.measure.profile.prompts import PromptSource
    from hasten.measure.profile.report import ProfileReport
    from hasten.measure.profile.run import Measured
    from hasten.measure.profile.sweep import Sweep
    from hasten.models import Model
    from hasten.types import EngineOptions

__all__ = ["command"]

SWEEPS = ("batch", "input", "threads", "weights", "fuse")


def _check_sweeps(ctx: click.Context, param: click.Parameter, value: str | None) -> tuple[str, ...]:
    names = tuple(dict.fromkeys(name for name in (value or "").split(",") if name))
    unknown = [name for name in names if name not in SWEEPS]
    if unknown:
        raise click.BadParameter(
            f"{unknown[0]!r} is no setting to sweep; allowed: {','.join(SWEEPS)}.", ctx, param
        )
    return names


@click.command(
    epilog="Examples:\n\n"
    "\b\n"
    "  hasten profile smollm2\n"
    "  hasten profile model.gguf --input-len 1024 --batch 4 --layers\n"
    "  hasten profile ./artefact --sweep batch,threads,weights --json profile.json\n"
    "  hasten profile smollm2 --html profile.html"
)
@model_argument
@click.option(
    "--input-len",
    type=click.IntRange(1, 2**24),
    default=128,
    show_default=True,
    help="Tokens of a prompt.",
)
@click.option(
    "--output-len",
    type=click.IntRange(2, 2**24),
    default=32,
    show_default=True,
    help="Tokens to generate.",
)
@click.option(
    "--batch",
    type=click.IntRange(1, 4096),
    default=1,
    show_default=True,
    help="Requests side by side.",
)
@click.option(
    "--rounds",
    type=click.IntRange(1, 10**6),
    default=8,
    show_default=True,
    help="How often to make them; once more before, which does not count.",
)
@click.option("--layers/--no-layers", default=False, help="Show each layer, too.")
@click.option(
    "--sweep",
    "sweeps",
    metavar="NAMES",
    callback=_check_sweeps,
    help=f"Also measure what settings change, a table each: {','.join(SWEEPS)}",
)
@click.option(
    "--sweep-seconds",
    type=FiniteFloat(0.0, min_open=True),
    default=5.0,
    show_default=True,
    help="For each of these tables, as far as three rounds need no more.",
)
@seed_option("Chooses where in the text prompts begin.", default=0)
@engine_choice
@output_option("--html", "Also write a page with a roofline plot, which opens without a network.")
@json_option
def command(
    model: str,
    input_len: int,
    output_len: int,
    batch: int,
    rounds: int,
    layers: bool,
    sweeps: tuple[str, ...],
    sweep_seconds: float,
    seed: int,
    engine: EngineChoice,
    html: Path | None,
    json_path: str | None,
) -> None:
    """Show where the time of MODEL goes: by op, by part of the engine, by stage of a request.

    Beside each op stands its floor, the least time that this machine's memory bandwidth and rate of
    arithmetic allow, and a sentence says what holds each phase up and which option would help.
    Settings may be swept: their values run in turns, so that a machine whose speed moves is
    compared with itself.
    """
    from hasten.measure.corpus import default_corpus
    from hasten.measure.profile.prompts import PromptSource

    shape = Shape(input_len, output_len, batch)
    engine = engine.or_else(max_sequences=batch, prefix_cache=False)
    with open_engine(model, engine) as running:
        _check_fit(shape, running.context)
        prompts = PromptSource(running.model.tokenizer, default_corpus(), seed)
        report = _profile(running, prompts, shape, rounds)
        loaded, options, context = running.model, running.options, running.context
    if json_path != "-":
        print_profile(report, layers=layers)
    found = []
    for name in sweeps:
        sweep = _sweep(loaded, options, name, prompts, shape, context, sweep_seconds)
        found.append(sweep)
        if json_path != "-":
            print_sweep(sweep)
    if json_path is not None:
        write_json(report.with_sweeps(found).as_dict(), json_path)
    if html is not None:
        from hasten.measure.html import render_html

        document = report.with_sweeps(found).as_dict()
        write_text(render_html({loaded.name: document}, f"hasten profile {model}"), html)


class Shape(NamedTuple):
    """What is asked of the model."""

    input_tokens: int
    output_tokens: int
    batch: int


def _check_fit(shape: Shape, context: int) -> None:
    """Refuse lengths of which every request would fail or end early."""
    if shape.input_tokens + shape.output_tokens > context:
        raise CapacityError(
            f"{shape.input_tokens} input and {shape.output_tokens} output tokens do not fit the "
            f"context of {context}",
            do="lower --input-len or --output-len, or raise --max-context",
        )


def _profile(engine: Engine, prompts: PromptSource, shape: Shape, rounds: int) -> ProfileReport:
    """Profile so many rounds, between two probes of the machine."""
    from hasten.machine import detect_machine
    from hasten.measure.interference import between, read_cpu_times
    from hasten.measure.profile.report import build_report
    from hasten.measure.profile.run import profile_groups, run_group

    run_group(engine, prompts.draw(shape.batch, shape.input_tokens), shape.output_tokens)
    probes = _probe(engine, {engine.threads, engine.thread_choice.for_tokens(shape.batch)})
    groups = [prompts.draw(shape.batch, shape.input_tokens) for _ in range(rounds)]
    before = read_cpu_times()
    with progress("rounds", rounds) as show_done:
        measured = profile_groups(engine, groups, shape.output_tokens, show_done)
    interference = between(before, read_cpu_times())
    return build_report(
        engine=engine,
        measured=measured,
        rates=_rates(engine, measured, probes),
        target=describe(engine),
        workload={
            **shape._asdict(),
            "rounds": rounds,
            "source": prompts.name,
            "seed": prompts.seed,
        },
        machine=detect_machine(),
        interference=interference,
    )


def _probe(engine: Engine, threads: set[int]) -> dict[int, Rates]:
    """What the machine reaches on so many threads."""
    from hasten.machine import measure_rates

    isa = engine.isa if engine.options.executor == "native" else None
    with progress("probing the machine", None):
        return {count: measure_rates(count, isa) for count in sorted(threads)}


def _rates(engine: Engine, measured: Measured, before: dict[int, Rates]) -> dict[Phase, Rates]:
    """What it reached on the threads of each phase, at best: before it or now."""
    from hasten.measure.profile.report import best_rates, threads_by_phase

    threads = threads_by_phase(engine, measured)
    after = _probe(engine, set(threads.values()))
    return {
        phase: best_rates([one[count] for one in (before, after) if count in one])
        for phase, count in threads.items()
    }


def _sweep(
    model: Model,
    options: EngineOptions,
    name: str,
    prompts: PromptSource,
    shape: Shape,
    context: int,
    seconds: float,
) -> Sweep:
    """Measure what one setting changes."""
    from hasten.measure.profile.sweep import run_sweep, settings_of

    settings, base = settings_of(
        name,
        options,
        batch=shape.batch,
        input_tokens=shape.input_tokens,
        output_tokens=shape.output_tokens,
        context=context,
    )
    with progress(f"sweep: {name}", seconds) as show_done:
        return run_sweep(
            model,
            name,
            settings,
            base,
            prompts=prompts.draw,
            output_tokens=shape.output_tokens,
            seconds=seconds,
            on_progress=show_done,
        )

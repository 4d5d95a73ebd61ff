"""`hasten mlperf`: MLPerf's scenarios, driven by MLPerf's own LoadGen."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from hasten.cli.console import print_table, progress, remark, write_json
from hasten.cli.load import LoadChoice, load_choice
from hasten.cli.options import EngineChoice, FiniteFloat, engine_choice, json_option
from hasten.cli.target import OpenTarget, TargetChoice, open_target, target_choice
from hasten.errors import UsageError

if TYPE_CHECKING:
    from hasten.measure.loadgen import LoadGenResult, LoadGenSettings, Scenario

__all__ = ["command"]

SCHEMA = "hasten.mlperf/1"
INTERRUPTED = 130
Command = Callable[..., Any]
SIDE_BY_SIDE = 16
"""Sequences of an engine here, in scenarios that send several requests at once."""


def _bound(name: str, what: str) -> Callable[[Command], Command]:
    return click.option(
        name, type=FiniteFloat(0.0, min_open=True), metavar="MS", help=f"Of the server: {what}."
    )


@click.command(
    epilog="Examples:\n\n"
    "\b\n"
    "  hasten mlperf smollm2 --scenario single-stream\n"
    "  hasten mlperf smollm2 --scenario server --query-rate 1 --ttft-bound 2000 --tpot-bound 200\n"
    "  hasten mlperf http://127.0.0.1:8000 --scenario server --query-rate 2 --latency-bound 5000 "
    "--find-rate\n"
    "  hasten mlperf model.onnx --scenario offline --seconds 60\n\n"
    "MLPerf's rules ask for runs of 600 seconds; shorter ones are for finding one's way."
)
@click.argument("target", metavar="TARGET")
@click.option(
    "--scenario",
    type=click.Choice(["single-stream", "multi-stream", "server", "offline"]),
    default="single-stream",
    show_default=True,
    help="One query after another; the same with several samples each; queries at random times; "
    "all at once.",
)
@click.option(
    "--seconds",
    type=FiniteFloat(0.0, min_open=True),
    default=10.0,
    show_default=True,
    help="That the run lasts at least.",
)
@click.option(
    "--query-rate",
    type=FiniteFloat(0.0, min_open=True),
    metavar="PER_SECOND",
    help="Of the server: queries a second, at random times.",
)
@_bound("--latency-bound", "what the p99 latency may take")
@_bound("--ttft-bound", "what the p99 of the time to first token may take")
@_bound("--tpot-bound", "what the p99 of the time per output token may take")
@click.option("--find-rate", is_flag=True, help="Search for the highest rate within the bounds.")
@click.option(
    "--token-latencies/--no-token-latencies",
    default=None,
    help="Measure first and further tokens, too  [default: for language models but where "
    "--latency-bound is given]",
)
@click.option("--accuracy", is_flag=True, help="Send every sample once and log the answers.")
@click.option(
    "--samples-per-query",
    type=click.IntRange(1, 4096),
    default=8,
    show_default=True,
    help="Of multi-stream.",
)
@click.option(
    "--logs",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("mlperf-logs"),
    show_default=True,
    metavar="FOLDER",
    help="Keeps what LoadGen writes.",
)
@load_choice
@target_choice
@engine_choice
@json_option
def command(
    target: str,
    scenario: Scenario,
    find_rate: bool,
    logs: Path,
    load: LoadChoice,
    choice: TargetChoice,
    engine: EngineChoice,
    json_path: str | None,
    **given: Any,  # noqa: ANN401 - options of click's, as _settings names them
) -> int:
    """Run a scenario of MLPerf Inference over TARGET: a model, an ONNX file or a server's URL.

    Samples are synthetic prompts or those of --prompt-file, as in `hasten bench`; when to send them
    is LoadGen's to say. Status 1 where the result is not valid.
    """
    from hasten.measure.loadgen import find_server_rate, run_loadgen

    load.check()
    timed = ("concurrency", "rate", "ramp", "replay", "duration", "max_in_flight")
    if any(getattr(load, name) is not None for name in timed) or load.turns > 1:
        raise UsageError(
            "LoadGen says when single requests are sent",
            do="leave out --concurrency, --rate, --turns and others; the server's is --query-rate",
        )
    sequences = 1 if scenario == "single-stream" else SIDE_BY_SIDE
    with open_target(target, choice, engine, max_sequences=sequences, prefix_cache=False) as opened:
        settings = _settings(opened, scenario, load.seed, **given)
        workload = opened.workload(load)
        result: LoadGenResult | None
        if find_rate:
            found = find_server_rate(opened.target, workload, settings, logs, on_run=_tell)
            figures, result = found.as_dict(), found.best
        else:
            with progress("requests", None) as show_done:
                result = run_loadgen(opened.target, workload, settings, logs, on_progress=show_done)
            figures = result.as_dict()
        document = {"schema": SCHEMA, "target": dict(opened.target.describe()), **figures}
    if json_path != "-":
        _print(result)
    if json_path is not None:
        write_json(document, json_path)
    if result is not None and result.interrupted:
        return INTERRUPTED
    return 0 if result is not None and result.valid else 1


def _settings(
    opened: OpenTarget,
    scenario: Scenario,
    seed: int,
    *,
    seconds: float,
    query_rate: float | None,
    latency_bound: float | None,
    ttft_bound: float | None,
    tpot_bound: float | None,
    token_latencies: bool | None,
    accuracy: bool,
    samples_per_query: int,
) -> LoadGenSettings:
    from hasten.measure.loadgen import LoadGenSettings

    tokens = token_latencies
    if tokens is None:
        tokens = opened.signature is None and latency_bound is None

    def in_seconds(bound: float | None) -> float | None:
        return None if bound is None else bound / 1000

    return LoadGenSettings(
        scenario=scenario,
        accuracy=accuracy,
        tokens=tokens,
        seconds=seconds,
        rate=query_rate,
        latency_bound=in_seconds(latency_bound),
        ttft_bound=in_seconds(ttft_bound),
        tpot_bound=in_seconds(tpot_bound),
        samples_per_query=samples_per_query,
        seed=seed,
    )


def _tell(rate: float, result: LoadGenResult) -> None:
    why = "" if result.valid else f" ({'; '.join(result.problems) or result.result})"
    remark(f"{rate:.4g} queries/s: {'valid' if result.valid else 'not valid'}{why}")


def _print(result: LoadGenResult | None) -> None:
    if result is None:
        click.echo("no rate kept the bounds")
        return
    points = sorted({percent for values in result.percentiles.values() for percent in values})
    if points:
        print_table(
            ["ms", *(f"p{percent:g}" for percent in points)],
            [
                [kind, *(_figure(values.get(percent)) for percent in points)]
                for kind, values in result.percentiles.items()
            ],
            title=f"{result.settings.scenario}, {result.n} samples",
        )
    if result.score is not None:
        click.echo(f"score: {result.score:.4g} {result.score_unit}")
    click.echo(f"result: {result.result or 'none'}{'' if result.valid else ', not valid'}")
    for line in (*result.problems, *result.early_stopping.values(), *result.notes):
        remark(f"note: {line}")
    remark(f"LoadGen's logs are in {result.folder}")


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"

"""`hasten bench`: latency, throughput and memory of a model in this process."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from hasten.cli.console import format_bytes, print_table, progress, remark, write_json
from hasten.cli.engine import describe, open_engine
from hasten.cli.options import (
    EngineChoice,
    FiniteFloat,
    engine_choice,
    json_option,
    model_argument,
    seed_option,
)
from hasten.errors import CapacityError

if TYPE_CHECKING:
    from hasten.generation import Engine
    from hasten.measure.load import LoadResult
    from hasten.measure.report import BenchReport
    from hasten.measure.workload import Workload

__all__ = ["command"]

REQUESTS = 44  # the least that bounds a p90 at 99 % confidence
INTERRUPTED = 130


@click.command(
    epilog="Examples:\n\n"
    "\b\n"
    "  hasten bench smollm2\n"
    "  hasten bench model.gguf --input-len 512 --output-len 32 --json report.json\n"
    "  hasten bench ./artefact --prompt-file prompts.jsonl --duration 60\n\n"
    'A line of a prompt file is {"prompt": "text", "max_tokens": 64}; max_tokens may be missing.'
)
@model_argument
@click.option(
    "--input-len",
    type=click.IntRange(1, 2**24),
    default=128,
    show_default=True,
    help="Tokens of a synthetic prompt.",
)
@click.option(
    "--output-len",
    type=click.IntRange(1, 2**24),
    default=64,
    show_default=True,
    help="Tokens to generate.",
)
@click.option(
    "--requests",
    type=click.IntRange(1, 10**6),
    help=f"Requests to measure  [default: {REQUESTS}, or all of the prompt file]",
)
@click.option(
    "--warmup",
    type=click.IntRange(0, 10**6),
    default=2,
    show_default=True,
    help="Requests to make first and not to count.",
)
@click.option(
    "--duration", type=FiniteFloat(0.0, min_open=True), help="Send no request after these seconds."
)
@click.option(
    "--prompt-file",
    type=click.Path(path_type=Path),
    help="Prompts as JSON Lines instead of synthetic ones.",
)
@click.option(
    "--ignore-eos/--honour-eos",
    default=True,
    help="Generate the whole length, or end where the model does  [default: ignore-eos]",
)
@seed_option("Chooses where in the text synthetic prompts begin.", default=0)
@engine_choice
@json_option
def command(
    model: str,
    input_len: int,
    output_len: int,
    requests: int | None,
    warmup: int,
    duration: float | None,
    prompt_file: Path | None,
    ignore_eos: bool,
    seed: int,
    engine: EngineChoice,
    json_path: str | None,
) -> int:
    """Measure MODEL with one request at a time, each sent when the previous one has ended.

    Synthetic prompts are pieces of English text, all different, of exactly --input-len tokens.
    Definitions of all figures are in the report (--json). Ctrl-C reports what was measured so far.
    """
    from hasten.measure.corpus import default_corpus
    from hasten.measure.synthetic import Lengths, Shape, synthetic
    from hasten.measure.workload_file import read_workload

    # What is measured is one request alone, whose prompt was not seen before.
    engine = engine.or_else(max_sequences=1, prefix_cache=False)
    with open_engine(model, engine) as running:
        if prompt_file is None:
            _check_fit(input_len, output_len, running.context)
            workload = synthetic(
                running.model.tokenizer,
                default_corpus(),
                Shape(Lengths(input_len, input_len), Lengths(output_len, output_len)),
                requests=requests or REQUESTS,
                warmup=warmup,
                seed=seed,
            )
        else:
            workload = read_workload(
                prompt_file, output_tokens=output_len, warmup=warmup, limit=requests
            )
        report, result = _measure(running, workload, ignore_eos, duration)
    if json_path != "-":
        _print(report)
    if json_path is not None:
        write_json(report.as_dict(), json_path)
    if result.interrupted:
        return INTERRUPTED
    return 0 if report.requests["completed"] else 1


def _check_fit(input_len: int, output_len: int, context: int) -> None:
    """Refuse lengths of which every request would fail or end early."""
    if input_len + output_len > context:
        raise CapacityError(
            f"{input_len} input and {output_len} output tokens do not fit the context of {context}",
            do="lower --input-len or --output-len, or raise --max-context",
        )


def _measure(
    engine: Engine, workload: Workload, ignore_eos: bool, duration: float | None
) -> tuple[BenchReport, LoadResult]:
    """Run the load and gather what belongs in the report."""
    from hasten.machine import detect_machine
    from hasten.measure.interference import between, read_cpu_times
    from hasten.measure.load import run_load
    from hasten.measure.memory import peak_rss, reset_peak_rss
    from hasten.measure.report import build_report
    from hasten.measure.targets.engine import EngineTarget

    was_reset = reset_peak_rss()
    before = read_cpu_times()
    with progress("requests", len(workload.items)) as show_done:
        target = EngineTarget(engine, ignore_eos=ignore_eos, description=describe(engine))
        result = run_load(target, workload, duration=duration, on_progress=show_done)
    interference = between(before, read_cpu_times())
    report = build_report(
        target=target.describe(),
        workload=workload,
        machine=detect_machine(),
        result=result,
        peak=peak_rss(was_reset=was_reset),
        interference=interference,
    )
    return report, result


def _print(report: BenchReport) -> None:
    """Show a report on the terminal."""
    from hasten.measure.statistics import PERCENTILES

    target = report.target
    requests = report.requests
    print_table(
        ["ms", "n", "mean", *(f"p{percent}" for percent in PERCENTILES), "max"],
        report.latency_rows(),
        title=f"{target['model']}, {target['weights']} weights, {target['kv']} KV, "
        f"{target['isa']}, {target['threads']} threads; {requests['completed']} completed, "
        f"{requests['failed']} failed, {requests['truncated']} truncated",
    )
    click.echo()
    rows = [
        [name.replace("_per_s", "/s").replace("_", " "), "-" if rate is None else f"{rate:.2f}"]
        for name, rate in report.rates.items()
    ]
    rows.append(["peak RSS", format_bytes(report.peak.size_bytes)])
    print_table(["", ""], rows)
    for note in report.notes:
        remark(f"note: {note}")

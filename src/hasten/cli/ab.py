"""`hasten ab`: two targets in turns, and whether one is faster."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import replace
from statistics import median

import click

from hasten.cli.console import print_table, progress, remark, write_json
from hasten.cli.load import LoadChoice, load_choice
from hasten.cli.options import EngineChoice, engine_choice, json_option
from hasten.cli.target import TargetChoice, open_target, target_choice
from hasten.errors import UsageError

__all__ = ["command"]

SCHEMA = "hasten.ab/1"
REQUESTS = 10
METRICS = "ttft, tpot, itl, e2e, model_latency, requests_per_s or output_tokens_per_s"


@click.command(
    epilog="Examples:\n\n"
    "\b\n"
    "  hasten ab smollm2 ./artefact\n"
    "  hasten ab smollm2 http://127.0.0.1:8000 --metric ttft --metric tpot --rounds 12\n"
    "  hasten ab http://127.0.0.1:8000 ollama+http://127.0.0.1:11434 --concurrency 8\n\n"
    "One comparison in a hundred of a target with itself says that they differ; a verdict needs at "
    "least 8 rounds for one metric."
)
@click.argument("a", metavar="A")
@click.argument("b", metavar="B")
@click.option(
    "--rounds",
    type=click.IntRange(1, 10_000),
    default=12,
    show_default=True,
    help="How often each runs; the order within a round is drawn.",
)
@click.option(
    "--metric",
    "metrics",
    multiple=True,
    metavar="NAME",
    help=f"What to compare: {METRICS}; several may be given  [default: e2e]",
)
@load_choice
@target_choice
@engine_choice
@json_option
def command(
    a: str,
    b: str,
    rounds: int,
    metrics: tuple[str, ...],
    load: LoadChoice,
    choice: TargetChoice,
    engine: EngineChoice,
    json_path: str | None,
) -> int:
    """Say whether B is faster than A: models, ONNX files or servers' URLs.

    Both run in turns, with the same prompts in a round and others in the next, but for those of a
    --prompt-file. --requests is how many there are in a round (10 by default). The ratio is B over
    A.
    """
    from hasten.measure.compare import compare

    load.check()
    each = replace(load, requests=load.requests or REQUESTS)
    with ExitStack() as stack:
        first, second = (
            stack.enter_context(
                open_target(
                    spec,
                    choice,
                    engine,
                    max_sequences=load.sequences,
                    prefix_cache=load.shares_prompts,
                )
            )
            for spec in (a, b)
        )
        if first.signature != second.signature:
            raise UsageError(
                f"{a} and {b} take different inputs", do="compare models of the same kind"
            )
        # A server takes texts, and a model here takes them, too.
        both = replace(
            first,
            as_text=first.as_text or second.as_text,
            tokenizer=first.tokenizer or second.tokenizer,
        )
        workloads = [both.workload(replace(each, seed=load.seed + n)) for n in range(rounds)]
        with progress("runs", 2 * rounds) as show_done:
            found = compare(
                first.target,
                second.target,
                workloads,
                load.pattern(workloads[0]),
                metrics=metrics or ("e2e",),
                seed=load.seed,
                on_progress=show_done,
            )
    if json_path != "-":
        rows = [
            [
                one.metric,
                f"{median(one.a):.2f}",
                f"{median(one.b):.2f}",
                f"{one.ratio.estimate:.3f} [{one.ratio.low:.3f}, {one.ratio.high:.3f}]",
                one.verdict,
            ]
            for one in found.contrasts
        ]
        print_table(["median of", "A", "B", "B / A", "B is"], rows, title=f"A: {a}; B: {b}")
        for problem in found.problems:
            remark(f"note: {problem}")
    if json_path is not None:
        write_json({"schema": SCHEMA, **found.as_dict()}, json_path)
    return 0 if found.valid else 1

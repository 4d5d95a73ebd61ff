"""`hasten optimize`: make a model faster within an accuracy budget, and prove it."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from hasten.cli.console import print_table, remark, write_json
from hasten.cli.options import (
    WEIGHT_FORMATS,
    ByteSize,
    FiniteFloat,
    check_weight_format,
    json_option,
    seed_option,
)
from hasten.cli.search_progress import search_progress

if TYPE_CHECKING:
    from hasten.optimize.search import Search

__all__ = ["command"]


_TASK_POINTS = 5.0
_GO_ON = "The same command goes on from here."


def _check_formats(
    ctx: click.Context, param: click.Parameter, values: tuple[str, ...]
) -> tuple[str, ...]:
    for value in values:
        check_weight_format(ctx, param, value)
    return tuple(dict.fromkeys(values))


@click.command(
    epilog="Examples:\n\n"
    "\b\n"
    "hasten optimize smollm2 -o fast-smollm2\n"
    "hasten optimize smollm2 -o fast --goal batch --max-memory 512MiB\n"
    "hasten optimize smollm2 -o fast --p99 900   99 of 100 answers within 900 ms\n"
    "hasten optimize smollm2 -o fast --concurrency 4 --p95 ttft=800,e2e=3000\n"
    "hasten optimize model.gguf -o fast --budget-kl 0.05 --quick\n"
    "hasten optimize --verify fast              the claims of an artefact, measured again\n"
    "hasten optimize --replay fast/recipe.json --candidate 4 -o smaller\n"
    "hasten optimize ./llama -o fast --weights int4:32 --weights int8:64 --text our-mails.txt\n\n"
    "Without a --budget option the model may lose at most 1 % perplexity, 0.02 nats of KL and 6 % "
    "of its likeliest tokens; with one or more, or with --task, only what they name is checked. "
    "Each must hold for "
    "the upper end of its 95 % interval."
)
@click.argument("model", metavar="MODEL", required=False)
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Where to write the artefact, its recipe and its report; replaces an older artefact.",
)
@click.option("--budget-kl", type=FiniteFloat(0, 100), help="Most KL divergence, nats a token.")
@click.option("--budget-perplexity", type=FiniteFloat(0, 1e6), help="Most rise of perplexity, %.")
@click.option("--budget-top1", type=FiniteFloat(0, 100), help="Most changed likeliest tokens, %.")
@click.option(
    "--goal",
    type=click.Choice(["chat", "real-time", "rewrite", "batch", "mass", "edge"]),
    default="chat",
    show_default=True,
    help="The use: its requests are timed, and its bounds kept where that can be.",
)
@click.option(
    "--ttft", type=FiniteFloat(0.001, 1e9), help="Most time to first token, ms, in the median."
)
@click.option(
    "--tpot", type=FiniteFloat(0.001, 1e9), help="Most time per output token, ms, in the median."
)
@click.option(
    "--latency", type=FiniteFloat(0.001, 1e9), help="Most latency of a request, ms, in the median."
)
@click.option(
    "--p99",
    metavar="BOUNDS",
    help="Milliseconds that 99 % of requests must keep, shown with 95 % confidence from 299 of them"
    " or more: of the latency, as in 600, or as in ttft=450,tpot=40,e2e=600.",
)
@click.option(
    "--p95", metavar="BOUNDS", help="The same for 95 % of requests, which takes 59 or more."
)
@click.option(
    "--min-throughput", type=FiniteFloat(0.001, 1e12), help="Least output tokens a second."
)
@click.option(
    "--max-memory",
    type=ByteSize(),
    metavar="SIZE",
    help="Most bytes of weights, KV cache and buffers, as in 512MiB.",
)
@click.option(
    "--try",
    "tries",
    multiple=True,
    metavar="PASSES",
    help="Try these passes, too, as in prune_layers:count=2+gptq:bits=4,group=64; may be given "
    "several times. See docs/passes.md.",
)
@click.option(
    "--task",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Labelled items as JSON Lines (see docs/accuracy.md): half for the search, half for the "
    "proof.",
)
@click.option(
    "--score",
    metavar="FUNCTION",
    help="module:function or file.py:function, run to score (prompt, output, expected).",
)
@click.option(
    "--budget-task",
    type=FiniteFloat(0, 100),
    help="Most right answers lost, points  [default: 5 with --task]",
)
@click.option("--quick", is_flag=True, help="Fewer candidates and rounds, no passes.")
@click.option(
    "--weights",
    "formats",
    multiple=True,
    callback=_check_formats,
    metavar="FORMAT",
    help=f"Try only these formats: {WEIGHT_FORMATS}; may be given several times.",
)
@click.option(
    "--input-len",
    type=click.IntRange(1, 2**20),
    help="Prompt tokens of the timed requests  [default: by the goal]",
)
@click.option(
    "--output-len",
    type=click.IntRange(2, 2**20),
    help="Output tokens of the timed requests  [default: by the goal]",
)
@click.option(
    "--concurrency",
    type=click.IntRange(1, 1024),
    help="Requests that run side by side  [default: by the goal]",
)
@click.option(
    "--shared-prefix",
    type=click.IntRange(0, 2**20),
    default=0,
    help="Of the input tokens, those with which all prompts begin.",
)
@click.option(
    "--text",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Running text in UTF-8, half to search on, half for the proof"
    "  [default: Python's language reference]",
)
@click.option(
    "--tokens",
    type=click.IntRange(128, 2**24),
    help="Tokens of the proof  [default: 4096]",
)
@click.option("--threads", type=click.IntRange(1, 1024), help="Most threads  [default: all cores]")
@click.option(
    "--replay",
    "recipe_path",
    type=click.Path(path_type=Path),
    metavar="RECIPE",
    help="Measure nothing: make the artefact of a recipe.json again, bit for bit; MODEL says where "
    "its source is now.",
)
@click.option(
    "--candidate",
    type=click.IntRange(0),
    metavar="NUMBER",
    help="With --replay: make another candidate of the recipe, by its number in the report.",
)
@click.option(
    "--verify",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Measure an artefact and its source again and compare with what its recipe claims; status "
    "1 where a claim does not hold.",
)
@seed_option("Of prompts, orders and intervals.", default=0)
@json_option
def command(
    model: str | None,
    output: Path | None,
    budget_kl: float | None,
    budget_perplexity: float | None,
    budget_top1: float | None,
    goal: str,
    ttft: float | None,
    tpot: float | None,
    latency: float | None,
    p99: str | None,
    p95: str | None,
    min_throughput: float | None,
    max_memory: int | None,
    tries: tuple[str, ...],
    task: Path | None,
    score: str | None,
    budget_task: float | None,
    quick: bool,
    formats: tuple[str, ...],
    input_len: int | None,
    output_len: int | None,
    concurrency: int | None,
    shared_prefix: int,
    text: Path | None,
    tokens: int | None,
    threads: int | None,
    recipe_path: Path | None,
    candidate: int | None,
    verify: Path | None,
    seed: int,
    json_path: str | None,
) -> None:
    """Find the fastest way to run MODEL that keeps its accuracy, and write it as an artefact.

    Weight formats, mixed precision, passes that change the model, KV formats, thread counts and
    step sizes are measured on this machine, interleaved with the model in float32; what loses too
    much or gains nothing is refused, with its figures. If nothing is better, the artefact is the
    original. A search that was stopped goes on when the same command is given again.
    """
    from hasten.cli.optimize_again import replay_artefact, verify_artefact

    if verify is not None:
        verify_artefact(verify, model, text, json_path)
        return
    if output is None:
        raise click.UsageError("Missing option '-o' / '--output'.")
    if recipe_path is not None:
        replay_artefact(recipe_path, candidate, output, model, text)
        return
    if model is None:
        raise click.UsageError("Missing argument 'MODEL'.")
    if candidate is not None:
        raise click.UsageError("--candidate needs --replay.")

    from hasten.machine import available_cores
    from hasten.measure.corpus import default_corpus, read_corpus
    from hasten.measure.tasks.compare import what_few_show
    from hasten.models import load_model
    from hasten.optimize.gate import Budget
    from hasten.optimize.objective import objective_of
    from hasten.optimize.pipeline import (
        optimize,
        prepare_material,
        prepare_plan,
        prepare_tasks,
    )
    from hasten.optimize.proposals import parse_candidate
    from hasten.optimize.publish import check_destination
    from hasten.optimize.tail import parse_tail

    check_destination(output)
    tails = [
        tail
        for given, percentile in ((p99, 0.99), (p95, 0.95))
        if given is not None
        for tail in parse_tail(given, percentile)
    ]
    bounds = {"ttft": ttft, "tpot": tpot, "e2e": latency}
    objective = objective_of(
        goal,
        input_tokens=input_len,
        output_tokens=output_len,
        concurrent=concurrency,
        shared=shared_prefix,
        bounds={name: bound for name, bound in bounds.items() if bound is not None},
        least_throughput=min_throughput,
        most_memory=max_memory,
        tails=tuple(tails),
    )
    cores = threads or available_cores()
    asked = [parse_candidate(one, cores) for one in tries]
    if task is None and (score is not None or budget_task is not None):
        raise click.UsageError("--score and --budget-task need --task.")
    limits = {"perplexity_percent": budget_perplexity, "kl": budget_kl, "top1_percent": budget_top1}
    given = {name: limit for name, limit in limits.items() if limit is not None}
    if task is not None:
        given["task_points"] = _TASK_POINTS if budget_task is None else budget_task
    unchecked = dict.fromkeys(limits) if given else {}
    tasks = None if task is None else prepare_tasks(task, score)
    few = None if tasks is None else what_few_show(len(tasks.proof.tasks))
    if few is not None:
        remark(few)
    source = load_model(model)
    material = prepare_material(
        source,
        default_corpus() if text is None else read_corpus(text),
        objective.shape,
        tokens=tokens,
        quick=quick,
        seed=seed,
        tasks=tasks,
        train=any("training" in step.needs for one in asked for step in one.steps),
    )
    plan = prepare_plan(
        source, objective, threads=cores, formats=formats, asked=asked, quick=quick, seed=seed
    )
    with search_progress() as tell:
        recipe = optimize(
            source,
            output,
            budget=Budget(**unchecked | given),
            material=material,
            plan=plan,
            progress=tell,
            stopped=_tell_best,
            arguments=sys.argv[1:],
        )
    if json_path != "-":
        _show(recipe, output)
    if json_path is not None:
        write_json(recipe, json_path)


def _tell_best(search: Search) -> None:
    best = search.best_so_far()
    if best is search.original or best.speedup is None:
        remark(f"stopped; nothing better than the original was found yet. {_GO_ON}")
        return
    remark(
        f"stopped. Best so far: {best.candidate.label}, {best.speedup.estimate:.1f} times as fast"
        f" as the original, not yet proved. {_GO_ON}"
    )


def _show(recipe: Mapping[str, Any], output: Path) -> None:
    from hasten.optimize.report import before_and_after, candidate_table, headline

    print_table(["", "before", "after", "change"], before_and_after(recipe))
    click.echo()
    print_table(["candidate", "verdict", "speed", "KL", "top-1"], candidate_table(recipe), left=2)
    click.echo()
    for one in recipe["candidates"]:
        if one["status"] == "refused":
            click.echo(f"refused {one['label']}: {one['reason']}")
    for line in recipe["remarks"]:
        click.echo(f"note: {line}")
    click.echo()
    click.secho(headline(recipe), bold=True)
    click.echo(f"Artefact: {output}   report: {output / 'report.html'}")
    click.echo(f'Next: hasten run {shlex.quote(str(output))} "Hello"')

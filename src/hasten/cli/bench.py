"""`hasten bench`: latency, throughput and memory of a model, in this process or behind a URL."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from hasten.cli.console import format_bytes, print_table, progress, remark, write_json, write_text
from hasten.cli.engine import describe, open_engine
from hasten.cli.load import REQUESTS, LoadChoice, load_choice
from hasten.cli.options import (
    EngineChoice,
    FiniteFloat,
    engine_choice,
    json_option,
    output_option,
)
from hasten.errors import CapacityError, UsageError

if TYPE_CHECKING:
    from hasten.measure.goals import Goal
    from hasten.measure.load import LoadResult
    from hasten.measure.report import BenchReport
    from hasten.measure.synthetic import Coder
    from hasten.measure.targets.target import Target
    from hasten.measure.workload import Workload

__all__ = ["command"]

INTERRUPTED = 130
SWEEP_SEQUENCES = 64
"""Sequences side by side where the user does not say how far a sweep goes."""


@click.command(
    epilog="Examples:\n\n"
    "\b\n"
    "  hasten bench smollm2\n"
    "  hasten bench model.gguf --input-len 64:512 --output-len 32 --json report.json\n"
    "  hasten bench smollm2 --concurrency 8 --goal chat\n"
    "  hasten bench smollm2 --rate 2 --requests 100 --html report.html\n"
    "  hasten bench smollm2 --sweep auto --html saturation.html\n"
    "  hasten bench smollm2 --against report.json --tolerance 0.1\n"
    "  hasten bench ./artefact --prompt-file recorded.jsonl --replay 1\n\n"
    'A line of a prompt file is {"prompt": "text", "max_tokens": 64, "at": 1.5}; instead of '
    '"prompt" it may have "messages", "text" (to go on with) or "tokens"; max_tokens and at may be '
    "missing. --against ends with status 1 where a latency grew beyond the tolerance."
)
@click.argument("model", metavar="MODEL")
@load_choice
@click.option(
    "--sweep",
    metavar="CLIENTS",
    help="Measure at several loads: numbers of clients as in 1,4,16, or auto: 1, 2, 4, … until "
    "more bring no more throughput.",
)
@click.option(
    "--goal",
    metavar="NAME",
    help="Check a use's objectives: chat, real-time, rewrite, batch, mass, edge, or your own as in "
    "ttft=450,tpot=40 (ms).",
)
@click.option(
    "--against",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Compare with an earlier report; status 1 where this one is slower.",
)
@click.option(
    "--tolerance",
    type=FiniteFloat(0.0, 10.0),
    default=0.05,
    show_default=True,
    help="What a median may grow by before --against fails.",
)
@click.option(
    "--ignore-eos/--honour-eos",
    default=True,
    help="Generate the whole length, or end where the model does  [default: ignore-eos]",
)
@engine_choice
@output_option("--html", "Also write a page with plots, which opens without a network.")
@output_option("--csv", "Also write every request as a line of CSV.")
@json_option
def command(
    model: str,
    load: LoadChoice,
    sweep: str | None,
    goal: str | None,
    against: Path | None,
    tolerance: float,
    ignore_eos: bool,
    engine: EngineChoice,
    html: Path | None,
    csv: Path | None,
    json_path: str | None,
) -> int:
    """Measure MODEL under a load: by default one request at a time.

    Synthetic prompts are pieces of English text, all different, of exactly --input-len tokens.
    Definitions of all figures are in the report (--json). Ctrl-C reports what was measured so far.
    """
    from hasten.measure.gate import read_report

    chosen = _goal(goal)
    before = None if against is None else read_report(against)
    clients = None if sweep is None else _clients(sweep, load)
    with _open(model, load, clients, ignore_eos, engine) as bench:
        if clients is None:
            report, result = bench.measure(load, chosen)
            document = report.as_dict()
        else:
            report, result, document = _sweep(bench, load, clients, chosen, auto=sweep == "auto")
    if json_path != "-":
        _print(report, document)
    if json_path is not None:
        write_json(document, json_path)
    if csv is not None:
        from hasten.measure.report import write_csv

        write_csv(report.records, csv)
    documents = {"this run": document}
    if before is not None:
        documents["before"] = before
    if html is not None:
        from hasten.measure.html import render_html

        write_text(render_html(documents, f"hasten bench {model}"), html)
    if result.interrupted:
        return INTERRUPTED
    failed = _fails_gate(before, document, tolerance)
    return 0 if report.requests["completed"] and not failed else 1


@dataclass(frozen=True, slots=True)
class _Bench:
    """A target that is open, and what is known of it."""

    target: Target
    tokenizer: Coder | None
    as_text: bool
    context: int | None

    def measure(
        self, load: LoadChoice, goal: Goal | None, label: str = "requests"
    ) -> tuple[BenchReport, LoadResult]:
        """Runs a load and gathers what belongs in the report."""
        from hasten.machine import detect_machine
        from hasten.measure.interference import between, read_cpu_times
        from hasten.measure.load import run_load
        from hasten.measure.memory import peak_rss, reset_peak_rss
        from hasten.measure.report import build_report

        workload = load.workload(self.tokenizer, as_text=self.as_text)
        pattern = load.pattern(workload)
        self._check_fit(workload)
        was_reset = reset_peak_rss()
        before = read_cpu_times()
        with progress(label, len(workload.items)) as show_done:
            result = run_load(
                self.target,
                workload,
                pattern,
                duration=load.duration,
                on_progress=show_done,
            )
        report = build_report(
            target=self.target.describe(),
            pattern=pattern,
            workload=workload,
            machine=detect_machine(),
            result=result,
            peak=peak_rss(was_reset=was_reset),
            interference=between(before, read_cpu_times()),
            goal=goal,
        )
        return report, result

    def _check_fit(self, workload: Workload) -> None:
        """Refuses synthetic lengths of which requests would fail or end early."""
        from hasten.measure.workload import Item

        if self.context is None or workload.seed is None:
            return
        for item in workload.items:
            if isinstance(item, Item) and isinstance(item.prompt, tuple):
                needed = len(item.prompt) + item.output_tokens
                if needed > self.context:
                    raise CapacityError(
                        f"{len(item.prompt)} input and {item.output_tokens} output tokens do not "
                        f"fit the context of {self.context}",
                        do="lower --input-len or --output-len, or raise --max-context",
                    )


@contextmanager
def _open(
    model: str,
    load: LoadChoice,
    clients: list[int] | None,
    ignore_eos: bool,
    choice: EngineChoice,
) -> Iterator[_Bench]:
    """Opens what is to be measured."""
    from hasten.measure.targets.engine import EngineTarget

    defaults: dict[str, Any] = {}
    if clients is not None:
        defaults["max_sequences"] = max(clients, default=SWEEP_SEQUENCES)
    elif load.rate is None and load.ramp is None and load.replay is None:
        defaults["max_sequences"] = load.concurrency or 1
    if not load.shared_prefix and load.turns == 1:
        # What is measured is prompts that were not seen before.
        defaults["prefix_cache"] = False
    with open_engine(model, choice.or_else(**defaults)) as engine:
        target = EngineTarget(engine, ignore_eos=ignore_eos, description=describe(engine))
        yield _Bench(target, engine.model.tokenizer, as_text=False, context=engine.context)


def _goal(text: str | None) -> Goal | None:
    from hasten.measure.goals import GOALS, parse_bounds

    if text is None:
        return None
    return GOALS[text] if text in GOALS else parse_bounds(text)


def _clients(text: str, load: LoadChoice) -> list[int]:
    """Numbers of clients of a sweep; none for as many as it takes."""
    if any(one is not None for one in (load.concurrency, load.rate, load.ramp, load.replay)):
        raise UsageError(
            "--sweep says when requests are sent", do="leave out --concurrency, --rate and others"
        )
    if text == "auto":
        return []
    try:
        numbers = sorted({int(part) for part in text.split(",")})
    except ValueError:
        numbers = []
    if not numbers or numbers[0] < 1 or numbers[-1] > 4096:
        raise UsageError(f"sweep {text!r:.60}", allowed="auto, or 1 to 4096 clients as in 1,4,16")
    return numbers


def _sweep(
    bench: _Bench, load: LoadChoice, clients: list[int], goal: Goal | None, *, auto: bool
) -> tuple[BenchReport, LoadResult, dict[str, object]]:
    """Measures load by load; the report is that of the one that saturates the target."""
    from hasten.measure.sweep import doubling, find_saturation, step_dict, sweep

    results: dict[int, LoadResult] = {}

    def measure(number: int) -> BenchReport:
        # Other prompts each time, and enough that all clients are busy most of it.
        requests = max(load.requests or REQUESTS, 4 * number)
        step = replace(
            load, concurrency=number, seed=load.seed + number, requests=requests, warmup=number
        )
        report, results[number] = bench.measure(step, goal, f"{number} clients")
        return report

    numbers = doubling(SWEEP_SEQUENCES) if auto else iter(clients)
    steps = sweep(measure, numbers, until_saturated=auto)
    saturation = find_saturation(steps)
    report = dict(steps)[saturation.clients]
    document = report.as_dict() | {
        "sweep": [step_dict(one) for _, one in steps],
        "saturation": saturation.as_dict(),
    }
    return report, results[steps[-1][0]], document


def _fails_gate(before: dict[str, Any] | None, document: dict[str, Any], tolerance: float) -> bool:
    """Says how this run compares with an earlier one; whether it is worse."""
    from hasten.measure.gate import compare_reports, regressions

    if before is None:
        return False
    for change in compare_reports(before, document):
        remark(str(change))
    worse = regressions(before, document, tolerance)
    for reason in worse:
        remark(f"worse: {reason}")
    return bool(worse)


def _print(report: BenchReport, document: dict[str, Any]) -> None:
    """Show a report on the terminal."""
    from hasten.measure.statistics import PERCENTILES

    if "sweep" in document:
        _print_sweep(document)
    target = report.target
    requests = report.requests
    how = [f"{target[name]} {word}" for name, word in _WORDS if name in target]
    print_table(
        ["ms", "n", "mean", *(f"p{percent}" for percent in PERCENTILES), "max"],
        report.latency_rows(),
        title=f"{', '.join([str(target['model']), *how])}; {requests['completed']} completed, "
        f"{requests['failed']} failed, {requests['truncated']} truncated",
    )
    click.echo()
    rows = [
        [name.replace("_per_s", "/s").replace("_", " "), "-" if rate is None else f"{rate:.2f}"]
        for name, rate in report.rates.items()
    ]
    rows.append(["peak RSS", format_bytes(report.peak.size_bytes)])
    print_table(["", ""], rows)
    if report.checks:
        click.echo()
        print_table(
            ["objective", "bound", "found", ""],
            [[c.what, c.bound, c.found, "met" if c.met else "missed"] for c in report.checks],
        )
    for note in report.notes:
        remark(f"note: {note}")


_WORDS = (("weights", "weights"), ("kv", "KV"), ("isa", "kernels"), ("threads", "threads"))


def _print_sweep(document: dict[str, Any]) -> None:
    """A line for each load, and where the target was saturated."""
    rates = ("requests_per_s", "output_tokens_per_s")
    rows = [
        [
            str(step["scenario"]["concurrency"]),
            *(_figure(step["throughput"][name]) for name in rates),
            *(_figure(step["metrics"][name]["p50"]) for name in ("ttft", "tpot", "e2e")),
        ]
        for step in document["sweep"]
    ]
    print_table(
        ["clients", "requests/s", "output tokens/s", "ttft p50", "tpot p50", "e2e p50"], rows
    )
    found = document["saturation"]
    words = "saturated by" if found["reached"] else "most throughput, not saturated:"
    click.echo(f"{words} {found['clients']} clients: {found['requests_per_s']:.2f} requests/s\n")


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"

"""`hasten bench`: latency, throughput and memory of a model, in this process or behind a URL."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from hasten.cli.console import format_bytes, print_table, progress, remark, write_json, write_text
from hasten.cli.load import REQUESTS, LoadChoice, load_choice
from hasten.cli.options import (
    EngineChoice,
    FiniteFloat,
    engine_choice,
    json_option,
    output_option,
)
from hasten.cli.target import OpenTarget, TargetChoice, open_target, target_choice
from hasten.errors import UsageError

if TYPE_CHECKING:
    from hasten.measure.goals import Goal
    from hasten.measure.load import LoadResult
    from hasten.measure.report import BenchReport

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
    "  hasten bench ./artefact --prompt-file recorded.jsonl --replay 1\n"
    "  hasten bench http://127.0.0.1:8000 --concurrency 8 --tokenizer smollm2\n"
    "  hasten bench kserve+http://127.0.0.1:8000 --served-model resnet --shape x=1,3,224\n\n"
    'A line of a prompt file is {"prompt": "text", "max_tokens": 64, "at": 1.5}; instead of '
    '"prompt" it may have "messages", "text" (to go on with) or "tokens"; max_tokens and at may be '
    "missing. --against ends with status 1 where a latency grew beyond the tolerance."
)
@click.argument("target", metavar="TARGET")
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
@target_choice
@engine_choice
@output_option("--html", "Also write a page with plots, which opens without a network.")
@output_option("--csv", "Also write every request as a line of CSV.")
@json_option
def command(
    target: str,
    load: LoadChoice,
    choice: TargetChoice,
    sweep: str | None,
    goal: str | None,
    against: Path | None,
    tolerance: float,
    engine: EngineChoice,
    html: Path | None,
    csv: Path | None,
    json_path: str | None,
) -> int:
    """Measure TARGET under a load: by default one request at a time.

    TARGET is a model to run in this process, an ONNX file, or a server: a URL, which may say what
    it speaks, as in ollama+http://HOST:PORT, kserve+grpc://HOST:PORT or tfserving+http://HOST:PORT.
    HASTEN_API_KEY is sent to it. Synthetic prompts are pieces of English text, all different, of
    --input-len tokens: exactly so many where the tokenizer is known, about so many else.

    Definitions of all figures are in the report (--json). Ctrl-C reports what was measured so far.
    """
    from hasten.measure.gate import read_report

    load.check()
    chosen = _goal(goal)
    before = None if against is None else read_report(against)
    clients = None if sweep is None else _clients(sweep, load)
    with open_target(
        target,
        choice,
        engine,
        max_sequences=load.sequences if clients is None else max(clients, default=SWEEP_SEQUENCES),
        # What is measured is prompts that were not seen before, but where they are to share.
        prefix_cache=load.shares_prompts,
    ) as opened:
        client_rate = _client_rate(opened)
        measure = functools.partial(_measure, opened, goal=chosen, client_rate=client_rate)
        if clients is None:
            report, result = measure(load, label="requests")
            document = report.as_dict()
        else:
            report, result, document = _sweep(measure, load, clients, auto=sweep == "auto")
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

        write_text(render_html(documents, f"hasten bench {target}"), html)
    if result.interrupted:
        return INTERRUPTED
    failed = _fails_gate(before, document, tolerance)
    return 0 if report.requests["completed"] and not failed else 1


def _measure(
    opened: OpenTarget, load: LoadChoice, goal: Goal | None, client_rate: float | None, label: str
) -> tuple[BenchReport, LoadResult]:
    """Runs a load and gathers what belongs in the report."""
    from hasten.machine import detect_machine
    from hasten.measure.audit import Auditor
    from hasten.measure.load import run_load
    from hasten.measure.memory import PeakRss, peak_rss, reset_peak_rss
    from hasten.measure.report import build_report
    from hasten.measure.server_times import COUNTERS
    from hasten.measure.targets.counters import CounterReader

    workload = opened.workload(load)
    pattern = load.pattern(workload)
    auditor = Auditor(pids=opened.pids, in_process=opened.in_process)
    counters = CounterReader(opened.target, COUNTERS)
    was_reset = reset_peak_rss()
    with progress(label, len(workload.items)) as show_done:
        result = run_load(
            opened.target,
            workload,
            pattern,
            duration=load.duration,
            on_progress=show_done,
            on_warm=counters.begin,
            on_start=auditor.start,
        )
    audit = auditor.finish(result, pattern, client_rate=client_rate)
    peak = peak_rss(was_reset=was_reset) if opened.in_process else None
    if audit.target is not None:
        peak = PeakRss(audit.target.peak_rss_bytes, since_start=False)
    report = build_report(
        target=opened.target.describe(),
        pattern=pattern,
        workload=workload,
        machine=detect_machine(),
        result=result,
        peak=peak,
        audit=audit,
        goal=goal,
        counters=None if result.interrupted else counters.end(),
    )
    return report, result


def _client_rate(opened: OpenTarget) -> float | None:
    """Requests a second that this client can send; None where it sends none over a network."""
    if not opened.over_http or opened.in_process:
        return None
    from hasten.measure.audit import measure_client_rate
    from hasten.measure.targets.echo import EchoTarget

    return measure_client_rate(EchoTarget())


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
    measure: Callable[..., tuple[BenchReport, LoadResult]],
    load: LoadChoice,
    clients: list[int],
    *,
    auto: bool,
) -> tuple[BenchReport, LoadResult, dict[str, object]]:
    """Measures load by load; the report is that of the one that saturates the target."""
    from hasten.measure.sweep import doubling, find_saturation, step_dict, sweep

    results: dict[int, LoadResult] = {}

    def measure_step(number: int) -> BenchReport:
        # Other prompts each time, and enough that all clients are busy most of it.
        requests = max(load.requests or REQUESTS, 4 * number)
        step = replace(
            load, concurrency=number, seed=load.seed + number, requests=requests, warmup=number
        )
        report, results[number] = measure(step, label=f"{number} clients")
        return report

    numbers = doubling(SWEEP_SEQUENCES) if auto else iter(clients)
    steps = sweep(measure_step, numbers, until_saturated=auto)
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
    from hasten.measure.server_times import named_parts
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
    if report.peak is not None:
        rows.append(["peak RSS", format_bytes(report.peak.size_bytes)])
    print_table(["", ""], rows)
    if report.server_times is not None:
        click.echo()
        parts = named_parts(report.server_times.as_dict())
        print_table(["of a request", "mean ms"], [[name, _figure(mean)] for name, mean in parts])
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

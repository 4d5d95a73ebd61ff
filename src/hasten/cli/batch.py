"""`hasten batch`: a file of requests to a file of answers."""

from __future__ import annotations

import asyncio
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from hasten.cli.console import format_bytes, print_table, progress, remark, write_json
from hasten.cli.options import EngineChoice, engine_choice, json_option, model_argument
from hasten.cli.specs import read_spec
from hasten.errors import UsageError

if TYPE_CHECKING:
    from hasten.serve.batch.answer import Tally
    from hasten.serve.batch.journal import Journal
    from hasten.serve.batch.source import Scan, Source
    from hasten.serve.service import Service
    from hasten.serve.wire import EngineSpec

__all__ = ["command"]

SCHEMA = "hasten.batch/1"
INTERRUPTED = 130
LINE_BYTES = 16 << 20
MAX_SEQUENCES = 32
EMBED_WIDTH = 64
BAR_SECONDS = 0.2
REMARK_SECONDS = 60.0
_SHOWN_NAMES = 3


@dataclass(frozen=True, slots=True)
class Job:
    """What is to be done.

    Attributes:
        name: What answers call the model.
        spec: How it runs.
        source: Path of the requests.
        output: Path of the answers.
        overwrite: Forget answers that are there.
        check_model: Refuse lines that name another model.
    """

    name: str
    spec: EngineSpec
    source: Path
    output: Path
    overwrite: bool
    check_model: bool


@dataclass(frozen=True, slots=True)
class Done:
    """What came of it.

    Attributes:
        lines: Of the input.
        before: Those of them that earlier runs answered.
        tally: What all answers amount to.
        fresh: What those of this run do.
        seconds: That this run took, without loading the model.
        other_models: Names of other models in lines, and how often.
    """

    lines: int
    before: int
    tally: Tally
    fresh: Tally
    seconds: float
    other_models: Counter[str]


@click.command(
    epilog="Examples:\n\n"
    "\b\n"
    "  hasten batch smollm2 requests.jsonl answers.jsonl\n"
    "  hasten batch ./artefact in.jsonl out.jsonl --max-sequences 64 --strict\n"
    "  hasten batch minilm texts.jsonl vectors.jsonl --json figures.json\n\n"
    'A line of INPUT: {"custom_id": "1", "method": "POST", "url": "/v1/chat/completions", "body": '
    '{"messages": [{"role": "user", "content": "Hello"}]}}'
)
@model_argument
@click.argument("source", metavar="INPUT", type=click.Path(path_type=Path))
@click.argument("output", metavar="OUTPUT", type=click.Path(path_type=Path))
@click.option("--overwrite", is_flag=True, help="Begin anew, whatever OUTPUT holds.")
@click.option(
    "--check-model",
    is_flag=True,
    help="Lines that name another model are errors; else MODEL answers them all.",
)
@click.option("--strict", is_flag=True, help="Exit with status 1 if a line failed.")
@engine_choice
@json_option
def command(
    model: str,
    source: Path,
    output: Path,
    overwrite: bool,
    check_model: bool,
    strict: bool,
    engine: EngineChoice,
    json_path: str | None,
) -> int:
    """Answer each line of INPUT, as OpenAI's batches have them, with a line of OUTPUT.

    The same command goes on where an earlier one ended, whatever ended it: no line is lost or
    answered twice. Lines are written as they are answered, so their order may differ; custom_id
    says which is which.
    """
    from hasten.serve.telemetry.logs import logging_to

    for path in (source, output):
        if str(path) == "-":
            raise UsageError("a batch can go on after a kill, a pipe cannot", do="name two files")
    name, spec = read_spec(model, engine)
    job = Job(name, _for_throughput(spec, engine), source, output, overwrite, check_model)
    with logging_to("warning"):
        done = _run(job)
    if done is None:
        return INTERRUPTED
    _report(job, done, json_path)
    return 1 if strict and done.tally.failed else 0


def _for_throughput(spec: EngineSpec, choice: EngineChoice) -> EngineSpec:
    """Nobody waits for a single line: many at once, and prompts as they come."""
    if spec.kind == "embed":
        return spec
    from hasten.models import load_model

    options = choice.or_else(max_sequences=MAX_SEQUENCES).for_model(load_model(spec.model))
    return replace(spec, options=replace(options, prefill_stretch=float("inf")))


def _run(job: Job) -> Done | None:
    """Answers what is not answered yet; None if Ctrl-C ended that."""
    from hasten.serve.batch.journal import Journal
    from hasten.serve.batch.source import Source

    with Source(job.source, LINE_BYTES) as source, Journal(job.output) as journal:
        if journal.is_file(source.status()):
            raise UsageError("INPUT and OUTPUT are one file", do="name another OUTPUT")
        scan = None
        try:
            with progress("read", source.status().st_size) as show:
                scan = source.scan(show)
            return asyncio.run(_answer(job, source, scan, journal))
        except KeyboardInterrupt:
            lines = "?" if scan is None else scan.lines
            remark(
                f"interrupted: {journal.tally.answered} of {lines} lines are answered; the same "
                "command goes on"
            )
            return None


async def _answer(job: Job, source: Source, scan: Scan, journal: Journal) -> Done:
    from hasten.serve.batch.answer import Tally
    from hasten.serve.batch.caller import LineCaller, batch_routes
    from hasten.serve.batch.run import BatchRun
    from hasten.serve.build import build_service
    from hasten.serve.jobs import Client
    from hasten.serve.protocols.openai import ROUTES
    from hasten.serve.settings import Limits, ServerSettings

    with tempfile.TemporaryDirectory(prefix="hasten-batch-") as directory:
        # The models that a server keeps are none of ours.
        limits = replace(Limits(), body=LINE_BYTES)
        settings = ServerSettings(limits=limits, data=Path(directory))
        service = build_service(settings, {job.name: job.spec})
        try:
            digest = await service.registry.digest(job.name)
            journal.begin(scan, _fingerprint(digest, job.spec), overwrite=job.overwrite)
            before = replace(journal.tally)
            if before.answered < scan.lines:
                await service.registry.start()
            caller = LineCaller(
                batch_routes(ROUTES),
                service,
                Client(batch=True),
                lambda: _recover(service, job.name),
                model=job.name,
                same_model=job.check_model,
            )
            began = time.monotonic()
            with progress("batch", scan.lines) as show:
                meter = _Meter(show, scan.lines, before)
                meter(journal.tally)
                run = BatchRun(source, scan, journal, caller, width=_width(job.spec), told=meter)
                await run.run()
            seconds = time.monotonic() - began
        finally:
            await service.close()
    fresh = Tally(*(getattr(journal.tally, one) - old for one, old in asdict(before).items()))
    return Done(scan.lines, before.answered, journal.tally, fresh, seconds, caller.other_models)


async def _recover(service: Service, name: str) -> None:
    """Waits for the engine; one that cannot be started any more ends the run."""
    engine = service.registry.engines().get(name)
    if engine is not None:
        await engine.wait_ready()


def _width(spec: EngineSpec) -> int:
    """Lines under way: those that run, and as many that are ready to follow."""
    if spec.kind == "embed" or spec.options is None:
        return EMBED_WIDTH
    return 2 * spec.options.max_sequences + 4


def _fingerprint(digest: str, spec: EngineSpec) -> str:
    """What answers depend on besides the input."""
    parts = [digest[:32]]
    if (options := spec.options) is not None:
        overrides = [f"{name}={value}" for name, value in sorted(options.overrides.items())]
        parts += [options.executor, options.weights, f"kv={options.kv}", *overrides]
    return " ".join(parts)


class _Meter:
    """Shows how far the batch is, now and then.

    Args:
        show: The bar.
        lines: Of the input.
        before: What earlier runs answered.
    """

    def __init__(self, show: Callable[[float, str], None], lines: int, before: Tally) -> None:
        self._show = show
        self._lines = lines
        self._before = replace(before)
        self._began = self._next = time.monotonic()
        self._terminal = sys.stderr.isatty()
        if not self._terminal:
            self._next += REMARK_SECONDS

    def __call__(self, tally: Tally) -> None:
        """Takes what the answers amount to."""
        now = time.monotonic()
        if now < self._next:
            return
        self._next = now + (BAR_SECONDS if self._terminal else REMARK_SECONDS)
        note = self._note(tally, now - self._began)
        if self._terminal:
            self._show(tally.answered, note)
        else:
            remark(f"{tally.answered} of {self._lines} lines; {note}")

    def _note(self, tally: Tally, seconds: float) -> str:
        parts = []
        fresh = tally.answered - self._before.answered
        if fresh and seconds > 0:
            left = (self._lines - tally.answered) * seconds / fresh
            tokens = _work(tally) - _work(self._before)
            parts = [f"{tokens / seconds:.0f} tokens/s", f"{_duration(left)} left"]
        if tally.failed:
            parts.append(f"{tally.failed} failed")
        return ", ".join(parts)


def _work(tally: Tally) -> int:
    """The tokens that rates count: those of outputs, or of texts that are embedded."""
    return tally.output_tokens or tally.prompt_tokens


def _duration(seconds: float) -> str:
    """As a person would say it: "40 s", "12 min", "3 h 5 min"."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def _report(job: Job, done: Done, json_path: str | None) -> None:
    tally, fresh, seconds = done.tally, done.fresh, done.seconds
    if json_path is not None:
        write_json(_document(job, done), json_path)
    if json_path != "-":
        rows = [
            ["lines", str(done.lines)],
            ["failed", str(tally.failed)],
            ["prompt tokens", f"{tally.prompt_tokens} ({tally.cached_tokens} cached)"],
            ["output tokens", str(tally.output_tokens)],
        ]
        if done.before:
            rows.insert(1, ["answered before", str(done.before)])
        if fresh.answered:
            speed = f"{fresh.answered / seconds:.3g} lines/s, {_work(fresh) / seconds:.4g} tokens/s"
            rows += [["time", _duration(seconds)], ["speed", speed]]
        print_table(["", ""], rows, left=1)
    size = format_bytes(job.output.stat().st_size)
    remark(f"{job.output} holds an answer to each line ({size})")
    if tally.failed:
        remark(f"{tally.failed} lines failed; their answers say why (error, or response.body)")
    if done.other_models:
        count = done.other_models.total()
        names = ", ".join(name for name, _ in done.other_models.most_common(_SHOWN_NAMES))
        remark(
            f"{count} lines name another model ({names}); {job.name} answered them "
            "(--check-model refuses them)"
        )


def _document(job: Job, done: Done) -> dict[str, object]:
    return {
        "schema": SCHEMA,
        "model": job.name,
        "input": str(job.source),
        "output": str(job.output),
        "lines": done.lines,
        "answered_before": done.before,
        **{name: value for name, value in asdict(done.tally).items() if name != "answered"},
        "seconds": done.seconds,
        "lines_per_s": done.fresh.answered / done.seconds,
        "output_tokens_per_s": done.fresh.output_tokens / done.seconds,
        "prompt_tokens_per_s": done.fresh.prompt_tokens / done.seconds,
    }

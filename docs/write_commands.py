"""Writes docs/commands.md from the help texts of the commands; a test holds it to them."""

from __future__ import annotations

from pathlib import Path

import click

from hasten.cli.main import COMMANDS, cli

TARGET = Path(__file__).resolve().parent / "commands.md"
WIDTH = 96
HEADING = """# Commands

What `hasten COMMAND --help` prints; written by `docs/write_commands.py`. Exit status: 0 done,
1 failed, 2 wrong use, 130 ended by Ctrl-C.
"""


def render() -> str:
    """The content of docs/commands.md."""
    parts = [HEADING, _section("hasten", cli)]
    context = click.Context(cli, info_name="hasten")
    for name in COMMANDS:
        command = cli.get_command(context, name)
        if command is None:
            raise LookupError(name)
        parts.append(_section(f"hasten {name}", command))
    return "\n".join(parts)


def _section(name: str, command: click.Command) -> str:
    context = click.Context(
        command,
        info_name=name,
        terminal_width=WIDTH,
        max_content_width=WIDTH,
        help_option_names=["-h", "--help"],
    )
    return f"## {name}\n\n```text\n{command.get_help(context).rstrip()}\n```\n"


if __name__ == "__main__":
    TARGET.write_text(render(), encoding="utf-8")

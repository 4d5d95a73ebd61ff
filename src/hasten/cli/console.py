"""What goes to the terminal: tables to stdout, progress and remarks to stderr, JSON where asked.

rich is imported when a bar is first drawn, so that `hasten run` never pays for it.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import click

from hasten.errors import UsageError

__all__ = [
    "SetDone",
    "format_bytes",
    "format_rate",
    "print_table",
    "progress",
    "remark",
    "write_json",
    "write_text",
]


class SetDone(Protocol):
    """Sets how much of the work is done, and what to say of it."""

    def __call__(self, done: float, note: str = "") -> None:
        """Draw the bar anew.

        Args:
            done: As much of the total.
            note: Behind the bar.
        """


def remark(message: str) -> None:
    """Write one line to stderr."""
    click.echo(message, err=True)


def write_json(document: Mapping[str, Any], destination: str) -> None:
    """Write a report as JSON, to a file or, for "-", to stdout.

    Args:
        document: JSON-ready values; nan and infinity are refused, as JSON has none.
        destination: A file path or "-".

    Raises:
        UsageError: If the file cannot be written.
        ValueError: If a value is nan or infinite, which would be a bug of the report.
    """
    text = json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    if destination == "-":
        sys.stdout.write(text)
        sys.stdout.flush()
        return
    write_text(text, Path(destination))


def write_text(text: str, path: Path) -> None:
    """Write a file.

    Raises:
        UsageError: If it cannot be written.
    """
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UsageError(
            f"cannot write '{path}': {error.strerror}", do="choose another file"
        ) from error


def print_table(
    columns: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    title: str | None = None,
    left: int = 1,
) -> None:
    """Print an aligned table to stdout.

    Args:
        columns: Headings; all empty strings for a table without a heading line.
        rows: Cells, one sequence a row, as long as `columns`.
        title: A line above the table.
        left: How many of the first columns are aligned left; the others, figures, are aligned
            right.
    """
    heading = [columns] if any(columns) else []
    widths = [max(map(len, cells)) for cells in zip(*heading, *rows, strict=True)]
    if title is not None:
        click.secho(title, bold=True)
    for cells in (*heading, *rows):
        aligned = [
            cell.ljust(width) if index < left else cell.rjust(width)
            for index, (cell, width) in enumerate(zip(cells, widths, strict=True))
        ]
        line = "  ".join(aligned).rstrip()
        click.secho(line, bold=True) if cells is columns else click.echo(line)


@contextmanager
def progress(label: str, total: float | None) -> Iterator[SetDone]:
    """Show a transient bar on stderr while the block runs; show nothing if it is no terminal.

    The bar is drawn only when the returned function is called, in the caller's thread: a bar that
    redraws itself would take time from what is being measured.

    Args:
        label: What is being done.
        total: The amount of work, None if it is not known.

    Yields:
        A function that sets how much of the work is done, and what stands behind the bar.
    """
    if not sys.stderr.isatty():
        yield _no_progress
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[note]}"),
        console=Console(stderr=True),
        transient=True,
        auto_refresh=False,
    )
    with bar:
        task = bar.add_task(label, total=total, note="")
        bar.refresh()

        def set_done(done: float, note: str = "") -> None:
            bar.update(task, completed=done, note=note)
            bar.refresh()

        yield set_done


def _no_progress(done: float, note: str = "") -> None:
    """Stand in for the bar where there is no terminal."""


def format_bytes(count: float) -> str:
    """Write a number of bytes with a binary prefix, e.g. "97.6 MiB"."""
    for prefix in ("", "Ki", "Mi", "Gi"):
        if abs(count) < 1024:
            return f"{count:.0f} B" if not prefix else f"{count:.1f} {prefix}B"
        count /= 1024
    return f"{count:.1f} TiB"


def format_rate(per_second: float, unit: str) -> str:
    """Write a rate with a decimal prefix, e.g. "28.1 GB/s" for unit "B"."""
    for prefix in ("", "k", "M", "G"):
        if abs(per_second) < 1000:
            return f"{per_second:.3g} {prefix}{unit}/s"
        per_second /= 1000
    return f"{per_second:.3g} T{unit}/s"

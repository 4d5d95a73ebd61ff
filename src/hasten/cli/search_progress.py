"""What a long search is doing, and about how long it will still take, on stderr."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from hasten.cli.console import remark
from hasten.cli.interrupts import kept_interrupts

__all__ = ["search_progress"]


@contextmanager
def search_progress() -> Iterator[Callable[[str, float], None]]:
    """Yields what is to be told: what is being done, and the share of the whole that is done.

    Telling raises the KeyboardInterrupt of a Ctrl-C that was swallowed on the way.
    """
    with kept_interrupts() as raise_swallowed, _shown() as show:

        def tell(doing: str, share: float) -> None:
            raise_swallowed()
            show(doing, share)

        yield tell


@contextmanager
def _shown() -> Iterator[Callable[[str, float], None]]:
    began = time.perf_counter()

    def left(share: float) -> str:
        elapsed = time.perf_counter() - began
        if not 0.03 < share < 1:
            return f"{elapsed:4.0f} s"
        return f"{elapsed:4.0f} s, about {elapsed * (1 - share) / share:.0f} s left"

    if not sys.stderr.isatty():
        said = ""

        def say(doing: str, share: float) -> None:
            nonlocal said
            if doing != said:
                remark(f"[{left(share)}] {doing}")
            said = doing

        yield say
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn

    # Redrawn only when something is told: a bar that redraws itself takes time from what is timed.
    columns = (BarColumn(bar_width=24), TextColumn("{task.fields[left]}  {task.description}"))
    with Progress(
        *columns, console=Console(stderr=True), transient=True, auto_refresh=False
    ) as bar:
        task = bar.add_task("", total=1.0, left="")

        def draw(doing: str, share: float) -> None:
            bar.update(task, completed=share, description=doing, left=left(share))
            bar.refresh()

        yield draw

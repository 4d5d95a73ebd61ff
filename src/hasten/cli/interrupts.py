"""Ctrl-C that nobody may swallow, and that breaks nothing where it comes."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

__all__ = ["kept_interrupts", "noted_interrupts"]


@contextmanager
def kept_interrupts() -> Iterator[Callable[[], None]]:
    """Yields a function that raises the KeyboardInterrupt of a Ctrl-C that others have swallowed.

    The KeyboardInterrupt of a Ctrl-C rises wherever the program is. Some code there drops every
    error: an extension module of Cython does while it registers its classes, as `numpy.random`
    when it is first used. The program would go on as if nobody had asked it to end.
    """
    came: list[int] = []

    def interrupt(number: int, frame: FrameType | None) -> None:
        came.append(number)
        signal.default_int_handler(number, frame)

    def check() -> None:
        if came:
            came.clear()
            raise KeyboardInterrupt

    if signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield check  # it is ignored, as in a shell's background, or somebody else's to handle
        return
    signal.signal(signal.SIGINT, interrupt)
    try:
        yield check
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@contextmanager
def noted_interrupts() -> Iterator[Callable[[], bool]]:
    """Yields a function that tells whether Ctrl-C came; until the end, it does only that.

    For what puts its own handler in place meanwhile, as an event loop does. A KeyboardInterrupt
    that rises while the loop is made leaves it half-made, to complain when it is collected;
    `asyncio.Runner` forgets the one that comes as it puts its own handler. Blocking the signal
    would not do: another thread would take it, and tell the main one.
    """
    came: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, _: came.append(number))
    try:
        yield lambda: bool(came)
    finally:
        signal.signal(signal.SIGINT, before)

"""How a worker answers single messages: at once, or from a thread where that takes longer."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from threading import Lock

from hasten.errors import HastenError
from hasten.serve.wire import Accepted, Fault, FromWorker, Refused

__all__ = ["Desk", "Send"]

Send = Callable[[FromWorker], None]
"""Sends a message to the server; any thread may call it."""

_PREPARERS = 2


class Desk:
    """Answers messages one by one: at once, or from a thread where that takes longer.

    Args:
        send: Sends an answer.
    """

    def __init__(self, send: Send) -> None:
        self._send = send
        self._pool = ThreadPoolExecutor(_PREPARERS, thread_name_prefix="hasten-prepare")
        self._lock = Lock()
        self._prepared: dict[int, bool] = {}  # number -> whether it was cancelled

    def answer(self, number: int, accept: Callable[[], None], *, quiet: bool = False) -> bool:
        """Does what was asked, and tells how that went.

        Args:
            number: Of the message.
            accept: Raises a HastenError where it cannot be done.
            quiet: Say nothing of success; another message will.

        Returns:
            Whether it was done.
        """
        try:
            accept()
        except HastenError as error:
            self._send(Refused(number, Fault.of(error)))
        except Exception as error:
            # A bug, and ours; but only this request is known to suffer from it.
            traceback.print_exc(file=sys.stderr)
            self._send(Refused(number, Fault.of(HastenError(f"a {type(error).__name__} occurred"))))
        else:
            if not quiet:
                self._send(Accepted(number))
            return True
        return False

    def prepare(
        self,
        number: int,
        accept: Callable[[], None],
        undo: Callable[[], None],
        *,
        quiet: bool = False,
    ) -> None:
        """Does the same from a thread.

        Args:
            number: Of the message.
            accept: As in `answer`; not called where the message was cancelled before.
            undo: Called where it was done, and cancelled meanwhile.
            quiet: As in `answer`.
        """

        def work() -> None:
            with self._lock:
                cancelled = self._prepared[number]
            done = not cancelled and self.answer(number, accept, quiet=quiet)
            with self._lock:
                cancelled = self._prepared.pop(number)
            if done and cancelled:
                undo()

        with self._lock:
            self._prepared[number] = False
        self._pool.submit(work)

    def cancel(self, number: int) -> None:
        """Leaves out, or undoes, what is being prepared."""
        with self._lock:
            if number in self._prepared:
                self._prepared[number] = True

"""Sleeping to the microsecond: asyncio's own sleep is up to a millisecond late.

asyncio waits in epoll, whose time-outs are whole milliseconds, rounded up. A request that an open
loop sends late counts as slow, so half a millisecond on average would be in every latency. A timer
of the kernel's wakes the loop on time instead.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import time
from contextlib import suppress
from types import TracebackType

__all__ = ["Timer"]


class _Timespec(ctypes.Structure):
    _fields_ = (("seconds", ctypes.c_long), ("nanoseconds", ctypes.c_long))


class _Setting(ctypes.Structure):
    _fields_ = (("interval", _Timespec), ("value", _Timespec))


class Timer:
    """Wakes one sleeper at a time, within `with`, in the event loop that runs there.

    Where the kernel has no such timer, it sleeps as asyncio does.

    Args:
        real: Sleep in real time; else as the event loop does, whose time may be made up.
    """

    def __init__(self, *, real: bool = True) -> None:
        self._real = real
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._descriptor = -1
        self._woken: asyncio.Future[None] | None = None

    async def sleep(self, seconds: float) -> None:
        """Sleeps; 0 or less lets others run once."""
        if seconds <= 0 or self._descriptor < 0:
            await asyncio.sleep(max(0.0, seconds))
            return
        self._woken = asyncio.get_running_loop().create_future()
        self._set(seconds)
        try:
            await self._woken
        finally:
            self._woken = None

    def __enter__(self) -> Timer:
        create = getattr(self._libc, "timerfd_create", None)  # Linux has it
        if self._real and create is not None:
            self._descriptor = create(time.CLOCK_MONOTONIC, os.O_NONBLOCK | os.O_CLOEXEC)
        if self._descriptor >= 0:
            asyncio.get_running_loop().add_reader(self._descriptor, self._wake)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._descriptor >= 0:
            asyncio.get_running_loop().remove_reader(self._descriptor)
            os.close(self._descriptor)
            self._descriptor = -1

    def _set(self, seconds: float) -> None:
        nanoseconds = max(1, round(seconds * 1e9))  # 0 would stop the timer
        setting = _Setting(_Timespec(0, 0), _Timespec(*divmod(nanoseconds, 10**9)))
        if self._libc.timerfd_settime(self._descriptor, 0, ctypes.byref(setting), None):
            raise OSError(ctypes.get_errno(), f"cannot set a timer to {seconds} s")

    def _wake(self) -> None:
        with suppress(BlockingIOError):  # it was set anew since
            os.read(self._descriptor, 8)
        if self._woken is not None and not self._woken.done():
            self._woken.set_result(None)

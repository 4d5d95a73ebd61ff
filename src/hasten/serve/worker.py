"""The process that runs one engine: `python -m hasten.serve.worker FD`.

FD is a socket to the server. Its first message says what to open. The process ends when the socket
does, in the midst of a step, too; so it never outlives the server, and closing is all that it takes
to end it.
"""

from __future__ import annotations

import ctypes
import faulthandler
import gc
import os
import signal
import socket
import sys
import time
import traceback
from collections.abc import Iterator
from threading import Lock, Thread
from typing import NoReturn

from hasten.errors import CapacityError, EngineLostError, HastenError
from hasten.models.loading import load_model
from hasten.serve.wire import (
    EngineInfo,
    Fault,
    Frames,
    FromWorker,
    Open,
    Ping,
    Pong,
    Ready,
    ToWorker,
    WireError,
    decode_to_worker,
    encode,
)
from hasten.serve.work import Work, open_work

__all__ = ["main"]

_PR_SET_PDEATHSIG = 1
_READ = 1 << 16  # bytes


class Channel:
    """The worker's end of the socket.

    Args:
        connection: A stream socket.
    """

    def __init__(self, connection: socket.socket) -> None:
        self._socket = connection
        self._sending = Lock()

    def send(self, message: FromWorker) -> None:
        """Sends a message; any thread may call this. The process ends where nobody listens.

        Raises:
            WireError: The message is too large.
        """
        frame = encode(message)
        try:
            with self._sending:
                self._socket.sendall(frame)
        except OSError:
            _leave(0)

    def messages(self) -> Iterator[ToWorker]:
        """What comes, until the server closes the socket.

        Raises:
            WireError: Something came that is no message.
        """
        frames = Frames()
        while data := self._receive():
            yield from map(decode_to_worker, frames.feed(data))

    def _receive(self) -> bytes:
        try:
            return self._socket.recv(_READ)
        except ConnectionError:
            return b""


class Reader:
    """Brings messages to the work, and answers pings whatever the work does.

    Args:
        channel: Whose messages.
        messages: Those after the first.

    Attributes:
        work: Takes the messages; None until the engine is open.
    """

    def __init__(self, channel: Channel, messages: Iterator[ToWorker]) -> None:
        self.work: Work | None = None
        self._channel = channel
        self._messages = messages

    def run(self) -> None:
        """Runs until the socket ends, and the process with it."""
        try:
            for message in self._messages:
                self._take(message)
        except BaseException:
            traceback.print_exc()
            _leave(1)
        _leave(0)

    def _take(self, message: ToWorker) -> None:
        work = self.work
        if isinstance(message, Ping):
            pong = Pong(0, False) if work is None else Pong(work.steps, work.working)
            self._channel.send(pong)
        elif work is None:
            raise WireError(f"{type(message).__name__} came before the engine was open")
        else:
            work.take(message)


def main() -> None:
    """Runs a worker on the file descriptor that the command line names."""
    gc.set_threshold(100_000, 20, 100)  # as in hasten.cli.main
    # What a terminal or a service manager sends to all processes is the server's to act on. And
    # writing to the terminal from the background must not stop this one (stty tostop).
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGTTOU):
        signal.signal(number, signal.SIG_IGN)
    faulthandler.enable()
    # Should every thread of this process be stuck when the server dies.
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    channel = Channel(socket.socket(fileno=int(sys.argv[1])))
    try:
        _serve(channel)
    except HastenError as error:
        channel.send(Fault.of(error))
    except MemoryError:
        traceback.print_exc()
        full = CapacityError("memory ran out", do="use a smaller max_context or model")
        channel.send(Fault.of(full))
    except BaseException as error:
        traceback.print_exc()
        channel.send(Fault.of(EngineLostError(f"the engine met a {type(error).__name__}")))
    _leave(1)


def _serve(channel: Channel) -> None:
    started = time.perf_counter()
    messages = channel.messages()
    first = next(messages, None)
    if first is None:
        _leave(0)
    if not isinstance(first, Open):
        raise WireError(f"{type(first).__name__} came first")
    reader = Reader(channel, messages)
    Thread(target=reader.run, name="hasten-reader", daemon=True).start()
    work = open_work(load_model(first.spec.model), first.spec, channel.send)
    info = _info(work, time.perf_counter() - started)
    gc.freeze()  # what is there now stays
    reader.work = work
    channel.send(Ready(info, work.statistics))
    work.run()


def _info(work: Work, seconds: float) -> EngineInfo:
    engine = work.engine
    return EngineInfo(
        pid=os.getpid(),
        context=work.context,
        vocab_size=engine.model.config.vocab_size,
        dimensions=work.dimensions,
        max_sequences=engine.options.max_sequences,
        memory=engine.memory,
        isa=engine.isa,
        threads=engine.threads,
        weights_source=engine.weights_source,
        seconds=seconds,
    )


def _leave(status: int) -> NoReturn:
    """Ends the process from any thread, without waiting for the others."""
    sys.stderr.flush()
    os._exit(status)


if __name__ == "__main__":
    main()

"""The output of a batch, which says by itself which lines are answered.

Lines are appended whole and never changed, so whatever moment ends the process, the file holds the
answers that were written and at most the beginning of one more, which the next start cuts off. A
small file beside it, NAME.state, says which input and model they belong to.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
import stat
import threading
import time
from pathlib import Path
from types import TracebackType

import msgspec

from hasten.errors import HastenError, OverloadError, UsageError
from hasten.serve.batch.answer import RUN_DIGITS, Tally
from hasten.serve.batch.lineset import LineSet
from hasten.serve.batch.source import Scan
from hasten.serve.durable import sync_directory, write_atomically

__all__ = ["Journal", "state_path"]

SCHEMA = "hasten.batch.state/1"
SYNC_SECONDS = 5.0
_MAX_STATE = 1 << 16
_MAX_LINE = 1 << 30


class _State(msgspec.Struct, frozen=True):
    """What the answers belong to.

    Attributes:
        schema: `SCHEMA`.
        run: Part of every answer's id, so that another run's answers are not taken for this one's.
        input_bytes: Size of the input.
        input_digest: Of its content.
        model: The model's digest, and whatever else the answers depend on.
    """

    schema: str
    run: str
    input_bytes: int
    input_digest: str
    model: str


def state_path(path: Path) -> Path:
    """Where the state of an output is kept."""
    return path.with_name(f"{path.name}.state")


class Journal:
    """An output file, locked against other runs and open for appending.

    Args:
        path: Made if it does not exist.

    Attributes:
        answered: Numbers of the lines that have an answer; those of earlier runs.
        tally: What the answers amount to; grows with `append`.
        run: Part of every answer's id.

    Raises:
        UsageError: If it cannot be written, or another run has it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.answered = LineSet()
        self.tally = Tally()
        self.run = ""
        self._size = 0
        self._synced = time.monotonic()
        self._closing = threading.Lock()
        self._descriptor = _open_locked(path)

    def is_file(self, other: os.stat_result) -> bool:
        """Whether this is the file of that status."""
        return os.path.samestat(os.fstat(self._descriptor), other)

    def begin(self, scan: Scan, model: str, *, overwrite: bool = False) -> None:
        """Takes up what an earlier run left, or begins anew; once, before `append`.

        Args:
            scan: Of the input.
            model: The model's digest, and whatever else the answers depend on.
            overwrite: Forget what an earlier run left.

        Raises:
            UsageError: If the file holds anything but answers of this input by this model.
        """
        if overwrite:
            os.ftruncate(self._descriptor, 0)
            self._sync()
        # An empty file belongs to nobody: whatever its state says, there is nothing to lose. So a
        # process that ends between these steps leaves nothing that the next one would refuse.
        if os.fstat(self._descriptor).st_size == 0:
            self.run = secrets.token_hex(RUN_DIGITS // 2)
            state = _State(SCHEMA, self.run, scan.size, scan.digest, model)
            self._write_state(state)
            return
        state = self._read_state()
        if (state.input_bytes, state.input_digest) != (scan.size, scan.digest):
            raise self._refusal("holds answers of another input, or the input has changed since")
        if state.model != model:
            raise self._refusal(
                f"holds answers of another model ({state.model}), and this is {model}"
            )
        self.run = state.run
        self._read_answers()

    def append(self, line: bytes) -> None:
        """Writes a whole line; it outlives the process when this returns.

        Raises:
            OverloadError: If the disk does not take it; no part of it is written then.
        """
        data = memoryview(line)
        try:
            while data:  # once, unless the disk is full
                data = data[os.write(self._descriptor, data) :]
        except OSError as error:
            with contextlib.suppress(OSError):  # else the next start cuts it off
                os.ftruncate(self._descriptor, self._size)
            raise self._unwritable(error) from error
        self._size += len(line)
        self.tally.count(line)

    def sync_due(self) -> bool:
        """Whether what was appended has waited long enough for the disk; True once each time."""
        now = time.monotonic()
        if now - self._synced < SYNC_SECONDS:
            return False
        self._synced = now
        return True

    def sync(self) -> None:
        """Brings what was appended to the disk, so that it outlives the machine; in any thread.

        Raises:
            OverloadError: If the disk does not take it.
        """
        with self._closing:
            if self._descriptor >= 0:
                self._sync()

    def close(self) -> None:
        """Brings everything to the disk and gives the file free; idempotent.

        Raises:
            OverloadError: If the disk does not take it.
            UsageError: If the file is no longer where it was.
        """
        with self._closing:
            if self._descriptor < 0:
                return
            try:
                self._sync()
                if not _is_at(self._descriptor, self.path):
                    raise UsageError(
                        f"{str(self.path)!r} was removed or replaced while answers were written to "
                        "it, which are lost",
                        do="start again",
                    )
            finally:
                os.close(self._descriptor)
                self._descriptor = -1

    def __enter__(self) -> Journal:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            self.close()
        except HastenError:
            if value is None:  # else what went wrong first is what the user reads
                raise

    def _sync(self) -> None:
        try:
            os.fsync(self._descriptor)
        except OSError as error:
            raise self._unwritable(error) from error

    def _unwritable(self, error: OSError) -> OverloadError:
        return OverloadError(
            f"cannot write {str(self.path)!r}: {error.strerror}",
            retry_after=60.0,
            do="what was written before is kept: make room and start again",
        )

    def _write_state(self, state: _State) -> None:
        path = state_path(self.path)
        try:
            write_atomically(path, msgspec.json.encode(state))
        except OSError as error:
            raise self._unwritable(error) from error

    def _read_state(self) -> _State:
        path = state_path(self.path)
        try:
            with path.open("rb") as file:
                state = msgspec.json.decode(file.read(_MAX_STATE), type=_State)
        except FileNotFoundError:
            raise self._refusal(f"is not empty, and there is no {path.name} beside it") from None
        except OSError as error:
            raise UsageError(f"cannot read {str(path)!r}: {error.strerror}") from error
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise self._refusal(f"is not empty, and {path.name} is damaged ({error})") from None
        if state.schema != SCHEMA:
            raise self._refusal(f"was written by another version ({state.schema!r})")
        return state

    def _read_answers(self) -> None:
        """Finds out which lines are answered, and cuts off what a kill or a power cut left."""
        with self.path.open("rb") as file:
            if not os.path.samestat(os.fstat(file.fileno()), os.fstat(self._descriptor)):
                raise UsageError(f"{str(self.path)!r} was replaced just now", do="start again")
            for count, line in enumerate(iter(lambda: file.readline(_MAX_LINE), b""), 1):
                # A kill leaves a last line without its end. A power cut may leave zeros where the
                # data had not reached the disk; what follows them is computed again, too.
                if not line.endswith(b"\n") or b"\0" in line:
                    break
                try:
                    seen = self.tally.count(line)
                except ValueError:
                    seen = None
                if seen is None or seen.run != self.run or not self.answered.add(seen.number):
                    raise self._refusal(f"has a line {count} that is none of this batch's answers")
                self._size += len(line)
        os.ftruncate(self._descriptor, self._size)

    def _refusal(self, why: str) -> UsageError:
        return UsageError(
            f"{str(self.path)!r} {why}", do="name another output, or give --overwrite to lose it"
        )


def _open_locked(path: Path) -> int:
    flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NONBLOCK
    try:
        descriptor = os.open(path, flags, 0o666)
    except OSError as error:
        raise UsageError(f"cannot write {str(path)!r}: {error.strerror}") from error
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise UsageError(f"{str(path)!r} is no regular file", do="name a file to write to")
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if not _is_at(descriptor, path):
            raise UsageError(f"{str(path)!r} was replaced just now", do="start again")
        sync_directory(path.parent)
    except BlockingIOError:
        os.close(descriptor)
        raise UsageError(
            f"another run is writing {str(path)!r}", do="wait for it, or name another output"
        ) from None
    except OSError as error:
        os.close(descriptor)
        raise UsageError(f"cannot lock {str(path)!r}: {error.strerror}") from error
    except UsageError:
        os.close(descriptor)
        raise
    return descriptor


def _is_at(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except OSError:
        return False

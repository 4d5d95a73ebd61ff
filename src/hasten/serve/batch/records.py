"""What a server remembers of its batches, so that it goes on with them when it is back."""

from __future__ import annotations

import logging
import re
import secrets
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from threading import Lock
from typing import Literal

import msgspec

from hasten.errors import NotFoundError
from hasten.serve.batch.answer import Tally
from hasten.serve.durable import sync_directory, write_atomically
from hasten.serve.files import writable

__all__ = ["FINAL", "BatchRecord", "BatchStatus", "BatchStore", "Problem"]

BatchStatus = Literal[
    "validating",
    "in_progress",
    "finalizing",
    "completed",
    "failed",
    "expired",
    "cancelling",
    "cancelled",
]
FINAL: frozenset[BatchStatus] = frozenset({"completed", "failed", "expired", "cancelled"})

_ID = re.compile(r"batch_[0-9a-f]{32}", re.ASCII)
_NEW, _OLD = ".new-", ".old-"
_log = logging.getLogger(__name__)


class Problem(msgspec.Struct, frozen=True):
    """Why a batch failed.

    Attributes:
        code: For programs.
        message: For people.
    """

    code: str
    message: str


class BatchRecord(msgspec.Struct):
    """A batch of a server.

    Attributes:
        id: "batch_" and 32 random hexadecimal digits.
        tenant: Whose it is.
        client: Name of the API key that asked for it.
        endpoint: The url that all lines must have.
        input_file: Id of the file with the lines.
        window: How long it may take, as the client wrote it.
        created: In seconds of `time.time`, as all times here.
        expires: When it ends unfinished.
        metadata: Of the client; told, not looked at.
        result_seconds: How long its result files are kept; None for ever.
        status: How far it is.
        times: When it came to each status.
        total: Lines of the input.
        tally: What its answers amount to.
        outcome: The status that it will end with, once that is certain.
        output_file: Id of the file with the answers; it exists when the status is final.
        error_file: Likewise of that with the errors.
        problems: Why it failed.
    """

    id: str
    tenant: str
    client: str
    endpoint: str
    input_file: str
    window: str
    created: float
    expires: float
    metadata: dict[str, str] | None = None
    result_seconds: float | None = None
    status: BatchStatus = "validating"
    times: dict[BatchStatus, float] = {}
    total: int = 0
    tally: Tally = msgspec.field(default_factory=Tally)
    outcome: BatchStatus | None = None
    output_file: str | None = None
    error_file: str | None = None
    problems: list[Problem] = []

    def become(self, status: BatchStatus) -> None:
        """Changes the status and notes when."""
        self.status = status
        self.times[status] = time.time()


class BatchStore:
    """Batches in a directory that nobody else uses; each a directory of its own.

    Args:
        directory: Made if it does not exist.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._records: dict[str, BatchRecord] = {}
        self._saving = Lock()
        directory.mkdir(parents=True, exist_ok=True)
        for path in directory.iterdir():
            if path.name.startswith((_NEW, _OLD)):
                shutil.rmtree(path, ignore_errors=True)
            elif _ID.fullmatch(path.name):
                self._load(path)

    def of(self, tenant: str) -> list[BatchRecord]:
        """A tenant's batches, the oldest first."""
        found = [record for record in list(self._records.values()) if record.tenant == tenant]
        return sorted(found, key=_age)

    def get(self, tenant: str, id_: str) -> BatchRecord:
        """One of a tenant's batches.

        Raises:
            NotFoundError: If it has no such batch.
        """
        record = self._records.get(id_)
        if record is None or record.tenant != tenant:
            raise NotFoundError(f"there is no batch {id_[:80]!r}", do="GET /v1/batches lists them")
        return record

    def unfinished(self) -> Sequence[BatchRecord]:
        """All batches that are not final, the oldest first."""
        waiting = [one for one in list(self._records.values()) if one.status not in FINAL]
        return sorted(waiting, key=_age)

    def input(self, record: BatchRecord) -> Path:
        """The lines of a batch."""
        return self._directory / record.id / "input.jsonl"

    def journal(self, record: BatchRecord) -> Path:
        """The answers of a batch while it runs."""
        return self._directory / record.id / "answers.jsonl"

    def add(self, record: BatchRecord, lines: Path) -> None:
        """Keeps a new batch and its lines, whatever happens to their file later.

        Raises:
            OverloadError: If the disk does not take it.
        """
        new = self._directory / f"{_NEW}{record.id}"
        with writable(self._directory):
            new.mkdir()
            try:
                (new / "input.jsonl").hardlink_to(lines)
            except OSError:  # not every file system has links
                shutil.copyfile(lines, new / "input.jsonl")
            write_atomically(new / "record.json", msgspec.json.encode(record))
            new.rename(self._directory / record.id)
            sync_directory(self._directory)
        self._records[record.id] = record

    def save(self, record: BatchRecord) -> None:
        """Brings what changed to the disk; any thread may call this.

        Raises:
            OverloadError: If the disk does not take it.
        """
        with self._saving, writable(self._directory):
            path = self._directory / record.id / "record.json"
            write_atomically(path, msgspec.json.encode(record))

    def strip(self, record: BatchRecord) -> None:
        """Removes all of a batch but its record."""
        for path in (self._directory / record.id).iterdir():
            if path.name != "record.json":
                path.unlink(missing_ok=True)

    def forget(self, record: BatchRecord) -> None:
        """Removes a batch."""
        if self._records.pop(record.id, None) is not None:
            old = self._directory / f"{_OLD}{record.id}"
            with writable(self._directory):
                (self._directory / record.id).rename(old)
            shutil.rmtree(old, ignore_errors=True)

    def _load(self, path: Path) -> None:
        try:
            record = msgspec.json.decode((path / "record.json").read_bytes(), type=BatchRecord)
        except (OSError, msgspec.DecodeError, UnicodeDecodeError) as error:
            _log.warning("%s is no batch: %s", path, error)
            return
        if record.id == path.name:
            self._records[record.id] = record


def new_id() -> str:
    """An id that nobody can guess."""
    return f"batch_{secrets.token_hex(16)}"


def _age(record: BatchRecord) -> tuple[float, str]:
    return record.created, record.id

"""Files that clients upload and fetch: whole or not there, each seen by its tenant alone.

A file is a directory of its own, `ID/content` and `ID/about.json`, that is renamed into its place
when both are on the disk. Names from clients are told, never used as paths.
"""

from __future__ import annotations

import logging
import os
import re
import secrets
import shutil
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec

from hasten.errors import NotFoundError, OverloadError, TooLargeError
from hasten.serve.durable import sync_directory

__all__ = ["FileStore", "Incoming", "StoredFile"]

_ID = re.compile(r"file-[0-9a-f]{32}", re.ASCII)
_NEW, _OLD = ".new-", ".old-"
_log = logging.getLogger(__name__)


class StoredFile(msgspec.Struct, frozen=True):
    """What is known of a file.

    Attributes:
        id: "file-" and 32 random hexadecimal digits.
        tenant: Whose it is.
        name: As the client called it; told, never used as a path.
        purpose: "batch" or "batch_output".
        size: In bytes.
        created: In seconds of `time.time`.
        expires: From when on it is gone, likewise; None never.
    """

    id: str
    tenant: str
    name: str
    purpose: str
    size: int
    created: float
    expires: float | None = None


class FileStore:
    """Files in a directory that nobody else uses.

    Args:
        directory: Made if it does not exist.
        most_files: That a tenant may keep.
        most_bytes: Of all of a tenant's files.
    """

    def __init__(self, directory: Path, *, most_files: int, most_bytes: int) -> None:
        self._directory = directory
        self._most_files = most_files
        self._most_bytes = most_bytes
        self._lock = threading.Lock()
        self._incoming: Counter[str] = Counter()  # files, by tenant
        self._bytes: Counter[str] = Counter()  # of files and of what comes in, by tenant
        self._files: dict[str, StoredFile] = {}
        directory.mkdir(parents=True, exist_ok=True)
        for path in directory.iterdir():
            if path.name.startswith((_NEW, _OLD)):
                shutil.rmtree(path, ignore_errors=True)
            elif _ID.fullmatch(path.name):
                self._load(path)

    def of(self, tenant: str) -> list[StoredFile]:
        """A tenant's files, the oldest first."""
        found = [file for file in self._all(tenant) if not _is_over(file)]
        return sorted(found, key=lambda file: (file.created, file.id))

    def get(self, tenant: str, id_: str) -> StoredFile:
        """One of a tenant's files.

        Raises:
            NotFoundError: If it has no such file.
        """
        file = self._files.get(id_)
        if file is None or file.tenant != tenant or _is_over(file):
            raise NotFoundError(f"there is no file {id_[:80]!r}", do="GET /v1/files lists them")
        return file

    def path(self, file: StoredFile) -> Path:
        """Where its content is."""
        return self._directory / file.id / "content"

    def has(self, id_: str) -> bool:
        """Whether there is such a file, of any tenant."""
        return id_ in self._files

    def add(self, tenant: str, purpose: str) -> Incoming:
        """Begins a new file of a client.

        Raises:
            TooLargeError: If the tenant keeps as many as it may.
        """
        self._sweep()
        with self._lock:
            kept = len(self._all(tenant))
            if kept + self._incoming[tenant] >= self._most_files:
                raise TooLargeError(
                    f"{kept} files are kept already",
                    allowed=f"{self._most_files}",
                    do="delete some",
                )
            self._check_bytes(tenant, 0)
            self._incoming[tenant] += 1
        return Incoming(self, tenant, purpose, new_id(), bounded=True)

    def add_result(self, tenant: str, purpose: str, id_: str) -> Incoming:
        """Begins a file that the server itself makes, which the tenant's bounds do not hinder."""
        with self._lock:
            self._incoming[tenant] += 1
        return Incoming(self, tenant, purpose, id_, bounded=False)

    def delete(self, file: StoredFile) -> None:
        """Removes a file; from now on nobody finds it."""
        with self._lock:
            if self._files.pop(file.id, None) is None:
                return
            self._bytes[file.tenant] -= file.size
        old = self._directory / f"{_OLD}{file.id}"
        with writable(self._directory):
            (self._directory / file.id).rename(old)
        shutil.rmtree(old, ignore_errors=True)

    def _load(self, path: Path) -> None:
        try:
            about = msgspec.json.decode((path / "about.json").read_bytes(), type=StoredFile)
        except (OSError, msgspec.DecodeError, UnicodeDecodeError) as error:
            _log.warning("%s is no stored file: %s", path, error)
            return
        if about.id == path.name:
            self._files[about.id] = about
            self._bytes[about.tenant] += about.size

    def _all(self, tenant: str) -> list[StoredFile]:
        return [file for file in list(self._files.values()) if file.tenant == tenant]

    def _sweep(self) -> None:
        for file in list(self._files.values()):
            if _is_over(file):
                self.delete(file)

    def _check_bytes(self, tenant: str, more: int) -> None:
        kept = self._bytes[tenant]
        if kept + more > self._most_bytes:
            raise TooLargeError(
                f"{kept} bytes of files are kept already, or on their way",
                allowed=f"{self._most_bytes} bytes in all",
                do="delete some",
            )


class Incoming:
    """A file that is being written; nobody finds it before `keep`.

    Its methods work on the disk, so call them in a thread; one after another.
    """

    def __init__(
        self, store: FileStore, tenant: str, purpose: str, id_: str, *, bounded: bool
    ) -> None:
        self._store = store
        self._tenant = tenant
        self._purpose = purpose
        self._id = id_
        self._bounded = bounded
        self._open = True
        self.size = 0
        self._directory = store._directory / f"{_NEW}{id_}"
        try:
            with writable(store._directory):
                shutil.rmtree(self._directory, ignore_errors=True)
                self._directory.mkdir()
                self._file = (self._directory / "content").open("wb")
        except BaseException:
            self._close()
            raise

    def write(self, data: bytes) -> None:
        """Appends to the content.

        Raises:
            TooLargeError: If the tenant would keep more bytes than it may.
            OverloadError: If the disk does not take them.
        """
        with self._store._lock:
            if not self._open:
                raise ValueError("the file was discarded")
            if self._bounded:
                self._store._check_bytes(self._tenant, len(data))
            self._store._bytes[self._tenant] += len(data)
            self.size += len(data)
        with writable(self._store._directory):
            self._file.write(data)

    def keep(self, name: str, *, seconds: float | None = None) -> StoredFile:
        """Puts the file into its place.

        Args:
            name: As the client called it.
            seconds: After which it is gone; None never.

        Raises:
            OverloadError: If the disk does not take it.
        """
        now = time.time()
        expires = None if seconds is None else now + seconds
        about = StoredFile(self._id, self._tenant, name, self._purpose, self.size, now, expires)
        store = self._store
        with writable(store._directory):
            self._file.flush()
            os.fsync(self._file.fileno())
            with (self._directory / "about.json").open("wb") as file:
                file.write(msgspec.json.encode(about))
                file.flush()
                os.fsync(file.fileno())
            sync_directory(self._directory)
            self._directory.rename(store._directory / self._id)
            sync_directory(store._directory)
        with store._lock:
            store._files[self._id] = about
            store._bytes[self._tenant] += about.size
        self.discard()
        return about

    def discard(self) -> None:
        """Forgets the file, unless it was kept; idempotent."""
        if not self._close():
            return
        try:
            self._file.close()
        except OSError as error:  # what it could not write is not wanted any more
            _log.warning("%s: %s", self._directory, error)
        shutil.rmtree(self._directory, ignore_errors=True)

    def _close(self) -> bool:
        """Counts the file no longer among those that come in; once."""
        with self._store._lock:
            was_open, self._open = self._open, False
            if was_open:
                self._store._incoming[self._tenant] -= 1
                self._store._bytes[self._tenant] -= self.size
        return was_open


def new_id() -> str:
    """An id that nobody can guess."""
    return f"file-{secrets.token_hex(16)}"


@contextmanager
def writable(directory: Path) -> Iterator[None]:
    """Tells of a disk that is full or broken as something that the client may wait for.

    Raises:
        OverloadError: Instead of an OSError.
    """
    try:
        yield
    except OSError as error:
        _log.error("%s cannot be written: %s", directory, error)
        raise OverloadError(
            f"the server cannot store this: {error.strerror}", retry_after=60.0
        ) from error


def _is_over(file: StoredFile) -> bool:
    return file.expires is not None and file.expires <= time.time()

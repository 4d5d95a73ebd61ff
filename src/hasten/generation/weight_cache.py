"""Packed weights of earlier starts, in a directory of files that are bounded together.

An entry is found by what its bytes follow from: the model's files (path, size, time of change and
inode), what each matrix holds and in which format, and the code that packs. So a changed file, a
new version or another format is another entry, and an old one is forgotten when space is needed.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from threading import Thread
from time import perf_counter
from types import ModuleType
from typing import Literal

from hasten import __version__, _native, models
from hasten.generation import formats, packed_file, packing
from hasten.generation.packed_file import file_size, read_packed, write_packed
from hasten.generation.packing import Packer
from hasten.kernels import quantization

__all__ = ["CacheEntry", "FilledWeights", "WeightCache", "fill_weights", "weight_key"]

MAX_BYTES = 16 << 30
MAX_SHARE = 10
"""Entries take at most 1 / MAX_SHARE of the file system, and leave as much of it free."""
WORTH_KEEPING = 0.05
"""Seconds of packing from which on reading is expected to be faster."""
_SUFFIX = ".packed"
_UNFINISHED = ".part"
_ABANDONED = 3600.0
"""Seconds after which an unfinished file belongs to a process that has died."""

_CODE: tuple[ModuleType, ...] = (_native, formats, packed_file, packing, quantization)
"""With the readers of files, what decides about packed bytes: another build is another key."""


@dataclass(frozen=True, slots=True)
class CacheEntry:
    """One file of the cache.

    Attributes:
        path: Where it is.
        size: Bytes.
        used: When it was last read or written, in seconds since the epoch.
    """

    path: Path
    size: int
    used: float


class WeightCache:
    """A directory of packed weights. It may be missing, full or read-only: then nothing is kept.

    Args:
        directory: Made when something is to be kept.
        max_bytes: Of all entries together; None takes a tenth of the file system, 16 GiB at most.
    """

    def __init__(self, directory: Path, max_bytes: int | None = None) -> None:
        self.directory = directory
        self._max_bytes = max_bytes

    @classmethod
    def from_environment(cls) -> WeightCache | None:
        """The cache that `HASTEN_CACHE` names; None if it says "off".

        Without it, `hasten` below `XDG_CACHE_HOME` or ``~/.cache``.
        """
        wanted = os.environ.get("HASTEN_CACHE", "")
        if wanted == "off":
            return None
        if wanted:
            return cls(Path(wanted))
        try:
            home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        except RuntimeError:  # nobody knows where home is
            return None
        return cls(Path(home) / "hasten")

    @property
    def max_bytes(self) -> int:
        """Bytes that all entries together may take; 0 where nothing can be kept."""
        if self._max_bytes is not None:
            return self._max_bytes
        try:
            return min(MAX_BYTES, shutil.disk_usage(self._existing()).total // MAX_SHARE)
        except OSError:
            return 0

    @property
    def writable(self) -> bool:
        """Whether files can be made there, or the directory itself."""
        place = self._existing()
        return place.is_dir() and os.access(place, os.W_OK | os.X_OK)

    def entries(self) -> list[CacheEntry]:
        """Every entry, the one not used for longest first."""
        found = []
        for path in self._files(_SUFFIX):
            try:
                status = path.stat()
            except OSError:  # another process has removed it
                continue
            found.append(CacheEntry(path, status.st_size, status.st_mtime))
        return sorted(found, key=lambda entry: entry.used)

    def load(self, key: str, matrices: Sequence[_native.Matrix], threads: int) -> bool:
        """Fills the matrices if the cache holds them; else they hold zeros."""
        path = self._path(key)
        if not read_packed(path, key, matrices, threads):
            _remove(path)  # damaged, or not there
            return False
        with suppress(OSError):  # read-only, and so never cleaned up by us either
            os.utime(path)
        return True

    def save(self, key: str, matrices: Sequence[_native.Matrix]) -> bool:
        """Keeps the matrices, removing what was not used for longest where space is needed.

        Writers of one entry do not disturb each other: each renames a file of its own.

        Returns:
            Whether it is kept; no error is worth disturbing a run that has its weights.
        """
        needed = file_size(matrices)
        try:
            self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            if not self._make_room(needed):
                return False
            descriptor, name = tempfile.mkstemp(suffix=_UNFINISHED, dir=self.directory)
        except OSError:
            return False
        try:
            with os.fdopen(descriptor, "wb") as file:
                write_packed(file, key, matrices, threads=1)
            Path(name).replace(self._path(key))
        except OSError:
            return False
        finally:
            Path(name).unlink(missing_ok=True)
        return True

    def save_later(self, key: str, matrices: Sequence[_native.Matrix]) -> Thread:
        """Keeps the matrices from a thread of its own, which the process waits for at its end."""
        thread = Thread(target=self.save, args=(key, matrices), name="hasten-cache")
        thread.start()
        return thread

    def clear(self) -> int:
        """Removes everything; returns the bytes of the entries that were removed."""
        freed = 0
        for entry in self.entries():
            if _remove(entry.path):
                freed += entry.size
        for path in self._files(_UNFINISHED):
            _remove(path)
        return freed

    def _path(self, key: str) -> Path:
        return self.directory / (key + _SUFFIX)

    def _files(self, suffix: str) -> Iterator[Path]:
        try:
            yield from sorted(self.directory.glob(f"*{suffix}"))
        except OSError:  # not a directory, or not ours to read
            return

    def _make_room(self, needed: int) -> bool:
        """Removes entries until `needed` more bytes fit; False if they never do."""
        limit = self.max_bytes
        if needed > limit:
            return False
        for path in self._files(_UNFINISHED):
            if time.time() - path.stat().st_mtime > _ABANDONED:
                _remove(path)
        entries = self.entries()
        total = sum(entry.size for entry in entries)
        for entry in entries:
            if total + needed <= limit:
                break
            if _remove(entry.path):
                total -= entry.size
        disk = shutil.disk_usage(self.directory)
        return total + needed <= limit and disk.free - needed > disk.total // MAX_SHARE

    def _existing(self) -> Path:
        """The directory, or the nearest one above it that is there."""
        return next(path for path in (self.directory, *self.directory.parents) if path.exists())


class FilledWeights:
    """How the matrices of an executor were filled, and whether the next start may have it easier.

    Args:
        source: Where their bytes came from.
        seconds: How long that took.
        keep: What is left to be kept; None if nothing.

    Attributes:
        source: As given.
        seconds: As given.
    """

    def __init__(
        self,
        source: Literal["cache", "files"],
        seconds: float,
        keep: tuple[WeightCache, str, Sequence[_native.Matrix]] | None = None,
    ) -> None:
        self.source = source
        self.seconds = seconds
        self._keep = keep

    def keep(self) -> Thread | None:
        """Writes what is to be kept in a thread of its own; later calls do nothing."""
        if self._keep is None:
            return None
        (cache, key, matrices), self._keep = self._keep, None
        return cache.save_later(key, matrices)


def fill_weights(
    packer: Packer, files: Sequence[Path], threads: int, *, keep: bool = True
) -> FilledWeights:
    """Fills the matrices of a packer from the cache, else from their tensors.

    Args:
        packer: Has all its matrices.
        files: The model's files.
        threads: Threads that read or pack.
        keep: Whether what had to be packed may be kept for the next start.

    Raises:
        ModelFileError: A weight is NaN or infinite.
    """
    started = perf_counter()
    cache = WeightCache.from_environment()
    key = None if cache is None else weight_key(files, packer.describe())
    if cache is not None and key is not None and cache.load(key, packer.matrices, threads):
        return FilledWeights("cache", perf_counter() - started)
    packer.pack(threads)
    seconds = perf_counter() - started
    if cache is None or key is None or not keep or seconds < WORTH_KEEPING:
        return FilledWeights("files", seconds)
    return FilledWeights("files", seconds, (cache, key, packer.matrices))


def weight_key(files: Sequence[Path], contents: object) -> str | None:
    """The name of a cache entry; None where the weights come from no file.

    Args:
        files: The model's files.
        contents: JSON-ready: what each matrix holds, in which format, in order.
    """
    if not files:
        return None
    try:
        sources = [[str(path), *_identity(path)] for path in (file.resolve() for file in files)]
    except OSError:  # gone since it was mapped
        return None
    document = json.dumps([__version__, _code_identity(), sources, contents])
    return hashlib.sha256(document.encode()).hexdigest()


def _code_identity() -> list[list[int]]:
    paths = [Path(module.__file__) for module in _CODE if module.__file__ is not None]
    paths += [path for room in models.__path__ for path in sorted(Path(room).glob("*.py"))]
    return [_identity(path) for path in paths]


def _identity(path: Path) -> list[int]:
    status = path.stat()
    return [status.st_size, status.st_mtime_ns, status.st_ino]


def _remove(path: Path) -> bool:
    try:
        path.unlink()
    except OSError:
        return False
    return True
